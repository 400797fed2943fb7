"""Scores of held-out predictions, each with a bootstrap interval over tasks, or over groups of tasks that stay together."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

LEVELS = (0.025, 0.975)


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """How often each tested task is drawn in each resample; one set of draws serves every probe of a sweep.

    Attributes
    ----------
    counts
        Draws, `(resamples, tasks)`.
    """

    counts: Float[np.ndarray, "resamples tasks"]

    @classmethod
    def of(cls, clusters: Int[np.ndarray, " tasks"], resamples: int, seed: int) -> Self:
        """Draw whole clusters with replacement."""
        names, members = np.unique(clusters, return_inverse=True)
        random = np.random.default_rng([seed, 1])
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
        return cls(drawn[:, members].astype(float))

    def r2(self, error: Float[np.ndarray, " tasks"], baseline: Float[np.ndarray, " tasks"]) -> dict[str, float]:
        """Share of squared error that predictions save over a baseline."""
        resampled = 1 - (self.counts @ error) / (self.counts @ baseline)
        return {"r2": float(1 - error.sum() / baseline.sum())} | interval("r2", resampled)

    def gain(
        self, over: Float[np.ndarray, " tasks"], error: Float[np.ndarray, " tasks"], baseline: Float[np.ndarray, " tasks"]
    ) -> dict[str, float]:
        """R2 above that of other predictions of the same tasks, whose squared error is `over`."""
        saved = over - error
        resampled = (self.counts @ saved) / (self.counts @ baseline)
        return {"gain": float(saved.sum() / baseline.sum())} | interval("gain", resampled)

    def correlations(self, truth: Float[np.ndarray, " tasks"], predicted: Float[np.ndarray, " tasks"]) -> dict[str, float]:
        """Pearson and Spearman correlation of truth and prediction."""
        ranks = stats.rankdata(truth), stats.rankdata(predicted)
        return self._correlation("pearson", truth, predicted) | self._correlation("spearman", *ranks)

    def _correlation(self, name: str, x: Float[np.ndarray, " tasks"], y: Float[np.ndarray, " tasks"]) -> dict[str, float]:
        if np.ptp(y) == 0 or np.ptp(x) == 0:  # what is constant orders nothing
            return {name: 0.0, f"{name}_low": 0.0, f"{name}_high": 0.0}
        total = self.counts.sum(axis=1)
        mean_x, mean_y = self.counts @ x / total, self.counts @ y / total
        covariance = self.counts @ (x * y) / total - mean_x * mean_y
        spread = (self.counts @ x**2 / total - mean_x**2) * (self.counts @ y**2 / total - mean_y**2)
        resampled = covariance / np.sqrt(np.maximum(spread, 1e-300))
        return {name: float(np.corrcoef(x, y)[0, 1])} | interval(name, resampled)

    def order(self, truth: Float[np.ndarray, " tasks"]) -> "Order":
        """The order of the tasks, of which predictions can be right or wrong."""
        sign = np.sign(truth[:, None] - truth[None, :]).astype(np.float32)
        decided = (sign != 0).astype(np.float32)
        counts = self.counts.astype(np.float32)
        return Order(sign, counts, float(decided.sum()), ((counts @ decided) * counts).sum(axis=1, dtype=float))

    def pairs(
        self,
        name: str,
        first: Int[np.ndarray, " pairs"],
        second: Int[np.ndarray, " pairs"],
        scored: Float[np.ndarray, " pairs"],
        weight: Float[np.ndarray, " pairs"],
    ) -> dict[str, float]:
        """Weighted mean of what pairs of tasks scored; a pair is drawn as often as both its tasks are."""
        if not len(scored):
            return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
        drawn = self.counts[:, first] * self.counts[:, second] * weight
        resampled = drawn @ scored / np.maximum(drawn.sum(axis=1), 1e-300)
        return {name: float(weight @ scored / weight.sum())} | interval(name, resampled)


@dataclass(frozen=True, eq=False)
class Order:
    """The order of tested tasks in the truth, one for all predictions of it.

    Attributes
    ----------
    sign
        Of the difference of two tasks.
    pairs, drawn
        Number of ordered pairs that differ, and of those in each resample.
    """

    sign: Float[np.ndarray, "tasks tasks"]
    counts: Float[np.ndarray, "resamples tasks"]
    pairs: float
    drawn: Float[np.ndarray, " resamples"]

    def pairwise_accuracy(self, predicted: Float[np.ndarray, " tasks"]) -> dict[str, float]:
        """Share of task pairs put in the right order; a tied prediction is half right."""
        name = "pairwise_accuracy"
        if not self.pairs:
            return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
        agrees = self.sign * np.sign(predicted[:, None] - predicted[None, :]).astype(np.float32)
        resampled = ((self.counts @ agrees) * self.counts).sum(axis=1, dtype=float) / np.maximum(self.drawn, 1)
        return {name: float((1 + agrees.sum(dtype=float) / self.pairs) / 2)} | interval(name, (1 + resampled) / 2)


def interval(name: str, resampled: Float[np.ndarray, " resamples"]) -> dict[str, float]:
    """`name_low` and `name_high` of a 95 % percentile interval."""
    low, high = np.quantile(resampled, LEVELS)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def share_at_least(null: Float[np.ndarray, " permutations"], observed: float) -> float:
    """Permutation p-value; the observed score counts as one of the permutations, so it is never zero."""
    return float((1 + (null >= observed).sum()) / (1 + len(null)))
