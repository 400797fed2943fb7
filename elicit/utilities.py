"""Utilities: one number per task whose differences say how often one is chosen over the other, and how sure that is."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import special, stats

from elicit.comparisons import Comparisons
from elicit.newton import Convergence
from store.estimates import Estimate
from store.labels import LABEL_COLUMNS

Link = Literal["logistic", "probit"]
NORMAL_REACH = 1.959964
"""Standard errors from the value to the end of a 95 % interval, where errors are normal."""
_NAMED = 5
_WIDE = 0.7
"""Spread of utilities, in standard deviations of the prior, above which intervals are too narrow."""


@dataclass(frozen=True)
class LikelihoodRatio:
    """Test of the position term: twice the gain in log-likelihood, against chi-square with one degree of freedom."""

    statistic: float
    p: float

    @classmethod
    def of(cls, gain: float) -> "LikelihoodRatio":
        """From the gain in log-likelihood."""
        statistic = max(0.0, 2 * gain)
        return cls(statistic, float(stats.chi2.sf(statistic, 1)))


@dataclass(frozen=True)
class FitReport:
    """What is behind a fit, and what is wrong with it.

    Attributes
    ----------
    answers, outcomes
        Answers given, and how many had each outcome; only those with outcome `chose` are fitted.
    pairs
        Unordered pairs fitted: what intervals are over.
    per_task
        Weight of the answers about every task (their number, without weights).
    unanswered
        Tasks without a usable answer: they have no utility.
    components
        Connected components of the comparisons. With more than one, only utilities of the same one can be compared.
    always_win, always_lose
        Tasks that won, or lost, all they had: how far up or down they are, the answers do not say.
    convergence
        How the fit ended; None for least squares that is solved directly.
    log_loss
        Mean cross-entropy of the fitted answers, in nats.
    unconverged_resamples
        Bootstrap resamples that did not converge.
    residual_sd
        Least squares: standard deviation of what pairs owe to themselves alone, in logits.
    position_test
        Of the position term, where answers are sampled; it counts answers as independent, which draws of one pair are not.
    prior_sd, sd
        Standard deviation of the prior, None without one, and that of the utilities.
    always_one_place
        The place, first or second, that won every comparison, if one did: the position term then has no finite value.
    parameters
        Further parameters of the model, such as the lapse rate, with intervals.
    """

    answers: int
    outcomes: dict[str, int]
    pairs: int
    per_task: dict[str, float]
    unanswered: tuple[str, ...]
    components: int
    always_win: tuple[str, ...]
    always_lose: tuple[str, ...]
    convergence: Convergence
    log_loss: float
    unconverged_resamples: int = 0
    residual_sd: float | None = None
    position_test: LikelihoodRatio | None = None
    prior_sd: float | None = None
    sd: float = math.nan
    always_one_place: str | None = None
    parameters: dict[str, Estimate] = field(default_factory=dict)

    @classmethod
    def of(cls, comparisons: Comparisons, convergence: Convergence, log_loss: float, **more: Any) -> "FitReport":
        """Report on a fit to these comparisons."""
        met, won = comparisons.per_task()
        ids = np.asarray(comparisons.task_ids, dtype=object)
        return cls(
            answers=comparisons.answers,
            outcomes=comparisons.outcomes,
            pairs=comparisons.n_pairs,
            per_task=dict(zip(comparisons.task_ids, met.tolist(), strict=True)),
            unanswered=comparisons.unanswered,
            components=int(comparisons.components().max()) + 1,
            always_win=tuple(ids[won >= met * (1 - 1e-9)]),
            always_lose=tuple(ids[won <= met * 1e-9]),
            convergence=convergence,
            log_loss=log_loss,
            **more,
        )

    def warnings(self) -> list[str]:
        """What a reader of the utilities must know."""
        found = []
        if self.components > 1:
            found.append(f"The comparisons fall into {self.components} components; utilities compare within one only.")
        if self.unanswered:
            found.append(f"{_some(self.unanswered)} without a usable answer, so without a utility.")
        for what, tasks in (("won", self.always_win), ("lost", self.always_lose)):
            if tasks:
                found.append(f"{_some(tasks)} {what} every comparison: the answers do not say by how much.")
        if self.always_one_place:
            found.append(
                f"The task shown {self.always_one_place} won every comparison: the position term is large, and the answers say "
                "nothing of the tasks."
            )
        if self.prior_sd is not None and self.sd > _WIDE * self.prior_sd:
            found.append(
                f"The utilities (sd {self.sd:.2f}) are as wide as their prior (sd {self.prior_sd:g}), which pulls them in and "
                "makes their intervals too narrow: raise prior_sd."
            )
        if not self.convergence.converged:
            found.append(f"The fit {self.convergence}.")
        if self.unconverged_resamples:
            found.append(f"{self.unconverged_resamples} bootstrap resamples did not converge.")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return asdict(self) | {"warnings": self.warnings()}

    def __str__(self) -> str:
        left_out = {name: count for name, count in self.outcomes.items() if name != "chose"}
        lines = [
            f"{self.answers} answers, {self.pairs} pairs, {len(self.per_task)} tasks"
            + (f"; left out: {', '.join(f'{count} {name}' for name, count in left_out.items())}" if left_out else ""),
            f"{self.convergence}; log loss {self.log_loss:.4f}",
        ]
        if self.residual_sd is not None and not math.isnan(self.residual_sd):
            lines.append(f"pairs owe {self.residual_sd:.2f} logits (standard deviation) to themselves alone")
        if self.position_test is not None:
            lines.append(f"position term: LR {self.position_test.statistic:.2f} on 1 df, p = {self.position_test.p:.2g}")
        return "\n".join(lines + self.warnings())


def _some(tasks: Sequence[str]) -> str:
    shown = ", ".join(tasks[:_NAMED]) + (", ..." if len(tasks) > _NAMED else "")
    return f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'} ({shown})"


@dataclass(frozen=True, eq=False)
class Utilities:
    """Fitted utilities with their uncertainty.

    Attributes
    ----------
    task_ids
        The tasks, sorted, in the order of `values`.
    values
        Utilities with mean zero over these tasks: logits, or standard deviations of a difference where the link is probit.
    draws
        The same from every resample, `(resamples, tasks)`; no rows where no errors were asked for.
    position
        What being shown first is worth at equal utilities, in the same unit.
    method
        `least squares`, `bradley-terry`, `thurstone` or `thurstone sigmas`.
    link
        From differences to probabilities.
    component
        Number of the connected component of every task.
    report
        What is behind the fit.
    sigmas, sigma_draws
        Spread of every task's utility, for the model that has one.
    se, reach
        Standard errors where they are known exactly, and how many of them an interval reaches; otherwise the draws say.
    """

    task_ids: tuple[str, ...]
    values: Float[np.ndarray, " tasks"]
    draws: Float[np.ndarray, "resamples tasks"]
    position: Estimate
    method: str
    link: Link
    component: Int[np.ndarray, " tasks"]
    report: FitReport
    sigmas: Float[np.ndarray, " tasks"] | None = None
    sigma_draws: Float[np.ndarray, "resamples tasks"] | None = None
    se: Float[np.ndarray, " tasks"] | None = None
    reach: float = NORMAL_REACH

    def labels(self, target: str = "utility") -> pd.DataFrame:
        """Utilities as labels."""
        enough = len(self.draws) > 1
        nothing = np.full(len(self.values), math.nan)
        low, high = np.quantile(self.draws, [0.025, 0.975], axis=0) if enough else (nothing, nothing)
        se = self.draws.std(axis=0, ddof=1) if enough else nothing
        if self.se is not None:
            se, low, high = self.se, self.values - self.reach * self.se, self.values + self.reach * self.se
        return pd.DataFrame(
            {
                "task_id": self.task_ids,
                "target": target,
                "value": self.values,
                "se": se,
                "low": low,
                "high": high,
                "n": [round(self.report.per_task[task]) for task in self.task_ids],
                "method": self.method,
            }
        )[list(LABEL_COLUMNS)]

    def difference(self, first: str, second: str) -> Estimate:
        """Utility of one task minus another's, order effects aside.

        Raises
        ------
        KeyError
            A task has no utility.
        ValueError
            The two are in different components: no chain of comparisons joins them.
        """
        i, j = self._place(first), self._place(second)
        if self.component[i] != self.component[j]:
            raise ValueError(
                f"No chain of comparisons joins {first!r} and {second!r}, so they cannot be compared; ask pairs that join the "
                f"{self.report.components} components."
            )
        return Estimate.from_draws(self.values[i] - self.values[j], self.draws[:, i] - self.draws[:, j], self.report.pairs)

    def predict(self, first: str, second: str) -> Estimate:
        """Probability that `first` is chosen over `second`, order effects aside; see `difference` for the errors."""
        self.difference(first, second)
        i, j = self._place(first), self._place(second)
        draws = self._probability(self.draws, self.sigma_draws, i, j)
        return Estimate.from_draws(float(self._probability(self.values, self.sigmas, i, j)), draws, self.report.pairs)

    def eta(
        self, first: Sequence[str] | pd.Series, second: Sequence[str] | pd.Series, *, with_position: bool = False
    ) -> Float[np.ndarray, " pairs"]:
        """Argument of the link for every pair of tasks; not a number where one has no utility, or they cannot be compared.

        Parameters
        ----------
        with_position
            Add what being shown first is worth.
        """
        place = pd.Index(self.task_ids)
        i, j = (place.get_indexer(pd.Index(each)) for each in (first, second))
        known = (i >= 0) & (j >= 0)
        known[known] = self.component[i[known]] == self.component[j[known]]
        eta = np.full(len(i), math.nan)
        shift = self.position.value if with_position else 0.0
        eta[known] = self._eta(self.values, self.sigmas, i[known], j[known], shift)
        return eta

    def probability(self, eta: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        """Probability of choosing the first, from the argument of the link."""
        return special.expit(eta) if self.link == "logistic" else special.ndtr(eta)

    def cross_entropy(self, eta: Float[np.ndarray, " pairs"], won: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
        """Loss of predicting with `eta` where the first is chosen with probability `won`, in nats."""
        log_probability = special.log_expit if self.link == "logistic" else special.log_ndtr
        return -won * log_probability(eta) - (1 - won) * log_probability(-eta)

    def _place(self, task: str) -> int:
        try:
            return self.task_ids.index(task)
        except ValueError:
            raise KeyError(f"Task {task!r} has no utility; expected one of the {len(self.task_ids)} fitted tasks.") from None

    def _probability(self, values: np.ndarray, sigmas: np.ndarray | None, i: Any, j: Any) -> np.ndarray:
        return self.probability(self._eta(values, sigmas, i, j))

    @staticmethod
    def _eta(values: np.ndarray, sigmas: np.ndarray | None, i: Any, j: Any, shift: float = 0.0) -> np.ndarray:
        difference = values[..., i] - values[..., j] + shift
        return difference if sigmas is None else difference / np.hypot(sigmas[..., i], sigmas[..., j])
