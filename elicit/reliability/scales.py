"""Scales: how much of a scale is used, what answers tell about the task, and whether another reading says the same."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special

from elicit.reliability.agreement import complete_values
from elicit.reliability.drawing import BLUE, GREY, ORANGE, estimate_table, forest, new_axes
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def divergence(distributions: Float[np.ndarray, "... tasks answers"]) -> Float[np.ndarray, "..."]:
    """Mean Kullback-Leibler divergence of each task's distribution from their mean, in nats: the mutual information."""
    mean = distributions.mean(axis=-2, keepdims=True)
    return special.rel_entr(distributions, mean).sum(axis=-1).mean(axis=-1)


def divergence_from_uniform(distribution: Float[np.ndarray, "... answers"]) -> Float[np.ndarray, "..."]:
    """KL(P || uniform) of a distribution over k answers, in nats: 0 if all are as likely, log k if one answer is certain."""
    k = distribution.shape[-1]
    return special.rel_entr(distribution, 1 / k).sum(axis=-1)


@dataclass(frozen=True, eq=False)
class ScaleUse:
    """How a scale is used, in nats; intervals by bootstrap over tasks.

    Resamples of few tasks use the scale less evenly than the tasks do, so the interval of `pooled` leans up and that of
    `information` down.

    KL(P || uniform) of a single task's answers, averaged over tasks, is `pooled` and `information` together.

    Attributes
    ----------
    pooled
        KL(P || uniform) of the mean distribution over tasks: 0 if the whole scale is used alike, `maximum` if one answer is
        given to everything.
    single
        Mean over tasks of the KL(P || uniform) of the task's own distribution: how decided answers are.
    information
        Their difference: the mutual information of task and answer, or what an answer tells about the task.
    maximum
        log k, the most that each of the three can be with k answers.
    distributions
        Tasks by answers.
    """

    pooled: Estimate
    single: Estimate
    information: Estimate
    maximum: float
    distributions: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic: value, low, high, se, n, smallest_effect, and the maximum log k."""
        found = {name: getattr(self, name) for name in ("pooled", "single", "information")}
        return estimate_table(found).assign(maximum=self.maximum)

    def plot(self) -> "Figure":
        """Mean probability of every answer, beside the uniform one."""
        figure, axes = new_axes(1.6 + 0.6 * self.distributions.shape[1], 3.6)
        mean = self.distributions.mean(axis=0)
        axes.bar(range(len(mean)), mean.to_numpy(), color=BLUE, width=0.7)
        axes.axhline(1 / len(mean), color=ORANGE, linewidth=1, label="uniform")
        axes.set(
            xlabel="answer",
            ylabel="mean probability",
            title=f"KL from uniform {self.pooled.value:.2f} of {self.maximum:.2f} nats (n={len(self.distributions)} tasks)",
        )
        axes.title.set_fontsize(9)
        axes.set_xticks(range(len(mean)), [str(name) for name in mean.index], fontsize=8)
        axes.legend(fontsize=8, frameon=False)
        return figure


def scale_use(distributions: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> ScaleUse:
    """Measure how a scale is used, from the distribution over its answers for every task.

    Parameters
    ----------
    distributions
        One row a task, one column an answer of the scale; every row sums to one. Shares of draws will do, but a plug-in KL
        of few draws is too large.

    Raises
    ------
    ValueError
        Fewer than two tasks or answers, a probability that is missing or below zero, or a row that does not sum to one.
    """
    array = distributions.to_numpy(dtype=float)
    if array.shape[0] < 2 or array.shape[1] < 2:
        raise ValueError(f"{array.shape[0]} tasks by {array.shape[1]} answers; expected at least two of each, one row a task.")
    sums = array.sum(axis=1)
    bad = ~((array >= 0).all(axis=1) & np.isclose(sums, 1, atol=1e-6))
    if bad.any():
        place = int(bad.argmax())
        raise ValueError(
            f"The answers of task {distributions.index[place]!r} have probabilities {array[place].round(4).tolist()} that "
            f"sum to {sums[place]:.4g} ({bad.sum()} such tasks); expected numbers from 0 that sum to 1. Leave out what is off "
            "format, and divide by the mass on the answers."
        )
    n = len(array)
    rows = np.random.default_rng(seed).integers(n, size=(resamples, n))
    own = divergence_from_uniform(array)
    pooled, pooled_draws = (divergence_from_uniform(each.mean(axis=-2)) for each in (array, array[rows]))
    single, single_draws = own.mean(), own[rows].mean(axis=-1)
    return ScaleUse(
        Estimate.from_draws(float(pooled), pooled_draws, n),
        Estimate.from_draws(float(single), single_draws, n),
        Estimate.from_draws(float(single - pooled), single_draws - pooled_draws, n),
        float(np.log(array.shape[1])),
        distributions,
    )


@dataclass(frozen=True, eq=False)
class IntraclassCorrelation:
    """Share of the variance of ratings that is between tasks.

    Attributes
    ----------
    single
        ICC(2,1) of Shrout & Fleiss (1979), called ICC(A,1) by McGraw & Wong (1996): of one reading, two-way random effects,
        absolute agreement. A reading that is higher throughout counts against it. Interval by F; its se is the interval's
        width by 3.92.
    mean
        ICC(2,k): of the mean of all readings.
    forms
        All six forms, as pingouin gives them.
    """

    single: Estimate
    mean: Estimate
    forms: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic: value, low, high, se, n, smallest_effect."""
        return estimate_table({"single": self.single, "mean": self.mean})

    def plot(self) -> "Figure":
        """All six forms with their intervals."""
        known = self.forms.iloc[::-1]
        bounds = np.stack([np.asarray(each, dtype=float) for each in known["CI95"]])
        figure = forest(
            known["Type"].tolist(),
            np.column_stack([known["ICC"].to_numpy(dtype=float), bounds]),
            "intraclass correlation",
            f"Readings of {self.single.n} tasks",
        )
        figure.axes[0].axvline(1, color=GREY, linewidth=0.6)
        return figure


def intraclass_correlation(ratings: pd.DataFrame) -> IntraclassCorrelation:
    """ICC(2,1) of several readings of the same tasks, by pingouin.

    Parameters
    ----------
    ratings
        One row a task, one column a reading: a wording, a seed, a model.

    Raises
    ------
    ValueError
        Fewer than three tasks or two readings, a rating that is no number, tasks all rated alike, or readings that
        do not differ at all.
    ModuleNotFoundError
        pingouin is not installed.
    """
    wide = complete_values(ratings, rows=3, columns=2, unit="reading")
    if np.ptp(wide.to_numpy().mean(axis=1)) == 0:
        raise ValueError(f"All tasks have the mean rating {wide.to_numpy().mean():g}; expected tasks that differ.")
    if np.ptp(wide.to_numpy() - wide.to_numpy()[:, :1]) == 0:
        raise ValueError("All readings are equal, so the ICC has no error to speak of; expected readings made independently.")
    try:
        import pingouin
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("The ICC needs pingouin: pip install 'penchant[statistics]'.") from error

    n, k = wide.shape
    long = pd.DataFrame(
        {"task": np.repeat(np.arange(n), k), "reading": np.tile(np.arange(k), n), "rating": wide.to_numpy().ravel()}
    )
    # pingouin rounds intervals to two digits unless told not to, by an option that is global.
    digits = pingouin.options["round.column.CI95"]
    pingouin.options["round.column.CI95"] = 12
    try:
        forms = pingouin.intraclass_corr(long, targets="task", raters="reading", ratings="rating")
    finally:
        pingouin.options["round.column.CI95"] = digits
    by_type = {str(row["Type"]): row for row in forms.to_dict("records")}

    def of(form: str) -> Estimate:
        low, high = (float(each) for each in by_type[form]["CI95"])
        return Estimate(float(by_type[form]["ICC"]), low, high, (high - low) / 3.92, n)

    return IntraclassCorrelation(of("ICC(A,1)"), of("ICC(A,k)"), forms)
