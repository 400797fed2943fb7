"""Refusals: whether what a model refuses is what it would rather not do, over tasks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from elicit.rates import rate
from elicit.reliability.agreement import correlation, require_columns
from elicit.reliability.drawing import BLUE, GREY, ORANGE, estimate_row, estimate_table, new_panels
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_TASKS = 8
_QUARTILES = 4


@dataclass(frozen=True, eq=False)
class RefusalPreference:
    """How refusal goes with preference; intervals by bootstrap over tasks.

    Attributes
    ----------
    correlation
        Point-biserial r of preference with refusal (1 refused, 0 not): below zero where the refused is the less liked.
    p
        That such an r arises by chance, by scipy.
    common_language
        Probability that a task that is refused is liked more than one that is not, ties half (McGraw & Wong 1992): U by the
        number of pairs of a refused and another task. One half where refusal says nothing of preference.
    u, u_p
        Mann-Whitney U of the refused, and its two-sided p.
    rate
        Share of tasks refused; Wilson interval.
    quartiles
        One row a quartile of preference, the least liked first: `least, most` (its range of preferences), and the share
        refused with its Wilson interval. Tied preferences stay together, so that quartiles may be fewer or uneven.
    tasks
        `task_id, preference, refused`.
    """

    correlation: Estimate
    p: float
    common_language: Estimate
    u: float
    u_p: float
    rate: Estimate
    quartiles: pd.DataFrame
    tasks: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic: value, low, high, se, n, smallest_effect, and p where there is a test."""
        names = ("correlation", "common_language", "rate")
        return estimate_table({name: getattr(self, name) for name in names}).assign(p=[self.p, self.u_p, np.nan])

    def plot(self) -> "Figure":
        """Preferences of the refused and the others, and refusals by quartile of preference."""
        figure, panels = new_panels(2, 3.8, share_y=False)
        refused = self.tasks["refused"].to_numpy() == 1
        preference = self.tasks["preference"].to_numpy()
        spread = np.random.default_rng(0).uniform(-0.18, 0.18, len(preference))  # so that points do not hide each other
        for mask, place, colour in ((~refused, 0, BLUE), (refused, 1, ORANGE)):
            panels[0].scatter(place + spread[mask], preference[mask], s=12, color=colour, alpha=0.6, linewidths=0)
            panels[0].hlines(np.median(preference[mask]), place - 0.3, place + 0.3, color="black", linewidth=1.4)
        panels[0].set_xticks([0, 1], [f"done (n={(~refused).sum()})", f"refused (n={refused.sum()})"])
        panels[0].set(ylabel="preference (line: median)", title=f"r = {self.correlation}")
        places, table = np.arange(len(self.quartiles)), self.quartiles
        panels[1].vlines(places, table["low"], table["high"], color=BLUE, linewidth=1.8)
        panels[1].scatter(places, table["value"], color=BLUE, s=24, zorder=3)
        panels[1].axhline(self.rate.value, color=GREY, linewidth=0.9, linestyle="--")
        panels[1].set_xticks(places, [f"{place + 1}\n(n={n})" for place, n in zip(places, table["n"], strict=True)])
        panels[1].set(xlabel="quartile of preference, least liked first", ylabel="share refused", ylim=(-0.02, 1.02))
        panels[1].set_title("dashed: all tasks", fontsize=9)
        panels[0].title.set_fontsize(9)
        return figure


def refusal_preference(
    preferences: pd.DataFrame, refusals: pd.DataFrame, *, resamples: int = 1000, seed: int = 0
) -> RefusalPreference:
    """Relate refusal to preference over the tasks that have both.

    Parameters
    ----------
    preferences
        Labels of one target: `task_id, value`, such as utilities or ratings.
    refusals
        `task_id, value` with 1 where the task is refused and 0 where it is not.

    Raises
    ------
    ValueError
        A column is missing, a task comes twice, a refusal is neither 0 nor 1, a preference is no number or all are equal,
        fewer than eight tasks have both, or not at least two are refused and two are not.
    """
    tasks = _joined(preferences, refusals)
    x, refused = tasks["preference"].to_numpy(dtype=float), tasks["refused"].to_numpy(dtype=float)
    n = len(tasks)
    rows = np.random.default_rng(seed).integers(n, size=(resamples, n))
    r, p = np.asarray(stats.pointbiserialr(refused, x), dtype=float)
    test = stats.mannwhitneyu(x[refused == 1], x[refused == 0], alternative="two-sided")
    return RefusalPreference(
        Estimate.of_correlation(float(r), correlation(x[rows], refused[rows]), n),
        float(p),
        Estimate.from_draws(float(_common_language(x, refused)), _common_language(x[rows], refused[rows]), n),
        float(test.statistic),
        float(test.pvalue),
        rate(float(refused.sum()), n),
        _by_quartile(tasks),
        tasks,
    )


def _joined(preferences: pd.DataFrame, refusals: pd.DataFrame) -> pd.DataFrame:
    for table, what in ((preferences, "preferences"), (refusals, "refusals")):
        require_columns(table, ("task_id", "value"))
        repeated = table["task_id"][table["task_id"].duplicated()]
        if len(repeated):
            raise ValueError(f"Task {repeated.iloc[0]!r} is twice in {what}; expected one row a task: choose one target.")
    tasks = preferences[["task_id", "value"]].merge(refusals[["task_id", "value"]], on="task_id")
    tasks.columns = pd.Index(["task_id", "preference", "refused"])
    finite = np.isfinite(tasks["preference"].to_numpy(dtype=float))
    for name, allowed in (("preference", finite), ("refused", tasks["refused"].isin([0, 1]).to_numpy())):
        if not allowed.all():
            row = tasks[~allowed].iloc[0]
            hint = "a number" if name == "preference" else "0 or 1: put a threshold to rates, such as `value > .5`"
            raise ValueError(f"{name} of task {row['task_id']!r} is {row[name]}; expected {hint}, or leave the task out.")
    refused = int(tasks["refused"].sum())
    if len(tasks) < _LEAST_TASKS or min(refused, len(tasks) - refused) < 2:
        raise ValueError(
            f"{len(tasks)} tasks have both, {refused} of them refused; expected at least {_LEAST_TASKS} tasks, two refused and "
            "two not. Add tasks, some of which are refused (origin stress_test)."
        )
    if tasks["preference"].nunique() == 1:
        raise ValueError(f"All {len(tasks)} tasks have the preference {tasks['preference'].iloc[0]}; expected it to vary.")
    return tasks.astype({"preference": float, "refused": float})


def _common_language(
    values: Float[np.ndarray, "... tasks"], refused: Float[np.ndarray, "... tasks"]
) -> Float[np.ndarray, "..."]:
    """P(a refused task is liked more than another), ties half: from the sum of ranks."""
    n = refused.sum(-1)
    ranks = (stats.rankdata(values, axis=-1) * refused).sum(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (ranks - n * (n + 1) / 2) / (n * (values.shape[-1] - n))


def _by_quartile(tasks: pd.DataFrame) -> pd.DataFrame:
    quartile = pd.qcut(tasks["preference"], _QUARTILES, labels=False, duplicates="drop")
    rows = [
        {"least": part["preference"].min(), "most": part["preference"].max()}
        | estimate_row(rate(float(part["refused"].sum()), len(part)))
        for _, part in tasks.groupby(quartile)
    ]
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="quartile"))
