"""Consistency of tasks: which tasks a model answers alike from seed to seed, and whether other models agree on which."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from elicit.reliability.agreement import complete_values, correlation, varying_values
from elicit.reliability.drawing import BLUE, GREY, estimate_row, estimate_table, heatmap, new_axes
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHUFFLES = 200


@dataclass(frozen=True, eq=False)
class TaskConsistency:
    """How alike a task is answered from seed to seed.

    Attributes
    ----------
    mean
        Mean over tasks of 1 - sd / normaliser, each cut at zero; the interval is over seeds.
    chance
        The same on average when values are shuffled over tasks and seeds alike: standard deviations of few seeds are too
        small, and the cut takes negative ones away, so it is above zero.
    normaliser
        Standard deviation of all values, over tasks and seeds together: that of a task whose answers are as far apart as any.
    tasks
        Indexed by task: `mean`, `sd` over its seeds, `consistency`.
    """

    mean: Estimate
    chance: float
    normaliser: float
    tasks: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row: value, low, high, se, n (seeds), smallest_effect; and `chance` and `normaliser`."""
        return estimate_table({"mean": self.mean}).assign(chance=self.chance, normaliser=self.normaliser)

    def plot(self) -> "Figure":
        """Consistency of every task against its mean answer."""
        figure, axes = new_axes(5.6, 4.0)
        axes.scatter(self.tasks["mean"], self.tasks["consistency"], s=16, color=BLUE, alpha=0.7, linewidths=0)
        axes.axhline(self.chance, color=GREY, linewidth=1, linestyle="--", label=f"mean by chance ({self.chance:.2f})")
        axes.axhline(self.mean.value, color=BLUE, linewidth=1, label=f"mean ({self.mean.value:.2f})")
        axes.set(
            xlabel="mean answer of the task",
            ylabel="consistency (1 - sd / normaliser)",
            ylim=(-0.03, 1.03),
            title=f"{len(self.tasks)} tasks, {self.mean.n} seeds",
        )
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        return figure


def task_consistency(values: pd.DataFrame, *, seed: int = 0) -> TaskConsistency:
    """Measure for every task how alike its answers are under different seeds: 1 - sd over seeds / normaliser, cut at zero.

    1 means the same answer every time; 0 means answers as far apart as those to different tasks. The interval of the mean is
    by leaving out one seed after the other (jackknife, Student's t with one degree of freedom less than seeds). A bootstrap
    over seeds will not do: a seed drawn twice makes the standard deviations of all tasks too small at once, and the interval
    of five seeds comes out about twice as wide as it should.

    Parameters
    ----------
    values
        One row a task, one column a seed.
    seed
        Of the shuffles that give `chance`.

    Raises
    ------
    ValueError
        Fewer than two seeds or four tasks, a value that is no number, or one value for all tasks and seeds.
    """
    values = complete_values(values, rows=4, columns=2, unit="seed")
    array = values.to_numpy(dtype=float)
    if np.ptp(array) == 0:
        raise ValueError(f"All values are {array[0, 0]}, so there is nothing to be consistent about; expected them to vary.")
    consistency = _consistency(array)
    shuffled = np.random.default_rng(seed).permuted(np.broadcast_to(array.ravel(), (_SHUFFLES, array.size)), axis=1)
    return TaskConsistency(
        _mean_over_seeds(array),
        float(_consistency(shuffled.reshape(_SHUFFLES, *array.shape)).mean()),
        float(array.std(ddof=1)),
        pd.DataFrame(
            {"mean": array.mean(axis=1), "sd": array.std(axis=1, ddof=1), "consistency": consistency}, index=values.index
        ),
    )


def _mean_over_seeds(values: Float[np.ndarray, "tasks seeds"]) -> Estimate:
    k = values.shape[1]
    mean = float(_consistency(values).mean())
    if k < 3:  # one seed alone has no standard deviation, so none can be left out
        return Estimate(mean, float("nan"), float("nan"), float("nan"), k)
    left_out = np.array([_consistency(np.delete(values, place, axis=1)).mean() for place in range(k)])
    se = float(np.sqrt((k - 1) / k * ((left_out - left_out.mean()) ** 2).sum()))
    margin = float(stats.t.ppf(0.975, k - 1)) * se
    return Estimate(mean, max(mean - margin, 0.0), min(mean + margin, 1.0), se, k)


def _consistency(values: Float[np.ndarray, "... tasks seeds"]) -> Float[np.ndarray, "... tasks"]:
    """1 - sd over seeds / sd over tasks and seeds, cut at zero."""
    normaliser = values.std(axis=(-2, -1), ddof=1)[..., None]
    return np.maximum(0.0, 1 - values.std(axis=-1, ddof=1) / normaliser)


@dataclass(frozen=True, eq=False)
class ConsistencyAgreement:
    """Whether models are consistent about the same tasks; intervals by bootstrap over tasks.

    Attributes
    ----------
    mean
        Mean correlation over tasks of the consistency of two models.
    pairs
        One row a pair of models: `first, second`, and the correlation with its interval.
    """

    mean: Estimate
    pairs: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """The mean and every pair: value, low, high, se, n, smallest_effect."""
        pairs = self.pairs.set_index(self.pairs["first"] + " / " + self.pairs["second"]).drop(columns=["first", "second"])
        return pd.concat([estimate_table({"mean": self.mean}), pairs.rename_axis("statistic")])

    def plot(self) -> "Figure":
        """Correlation of every two models."""
        names = list(dict.fromkeys([*self.pairs["first"], *self.pairs["second"]]))
        r = np.full((len(names), len(names)), np.nan)
        i, j = self.pairs["first"].map(names.index).to_numpy(), self.pairs["second"].map(names.index).to_numpy()
        r[i, j] = r[j, i] = self.pairs["value"]
        return heatmap(r, names, names, f"Who is consistent about what ({self.mean.n} tasks)", "correlation over tasks")


def consistency_agreement(models: Mapping[str, pd.DataFrame], *, resamples: int = 1000, seed: int = 0) -> ConsistencyAgreement:
    """Correlate the consistency of tasks between models, over the tasks that all of them have.

    Consistency is measured with few seeds, so that correlations fall short of those of many.

    Parameters
    ----------
    models
        Table of tasks by seeds of every model, as for `task_consistency`; the normaliser is each model's own.

    Raises
    ------
    ValueError
        Fewer than two models or four tasks that all have, or a model that is equally consistent about all.
    """
    found = {name: task_consistency(values).tasks["consistency"] for name, values in models.items()}
    wide = varying_values(pd.DataFrame(found).dropna(), rows=4, columns=2, unit="model")
    array = wide.to_numpy(dtype=float)
    n = len(array)
    rows = np.random.default_rng(seed).integers(n, size=(resamples, n))
    i, j = np.triu_indices(array.shape[1], 1)
    columns = array.T
    values = correlation(columns[i], columns[j])
    draws = np.stack([correlation(columns[a][rows], columns[b][rows]) for a, b in zip(i, j, strict=True)])
    names = [str(name) for name in wide.columns]
    pairs = pd.DataFrame(
        {"first": names[a], "second": names[b]} | estimate_row(Estimate.of_correlation(float(value), each, n))
        for a, b, value, each in zip(i, j, values, draws, strict=True)
    )
    return ConsistencyAgreement(Estimate.of_correlation(float(values.mean()), draws.mean(axis=0), n), pairs)
