"""Contexts: how likely a task is rated higher under a context, such as a system prompt, than under the neutral one."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from elicit.rates import rate
from elicit.reliability.agreement import complete_values
from elicit.reliability.drawing import estimate_row, forest
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_TASKS = 5


@dataclass(frozen=True, eq=False)
class HigherThanNeutral:
    """P(higher than neutral) of every context, over the same tasks.

    Attributes
    ----------
    table
        One row a context: `value`, the probability that a task is rated higher than under the neutral context, ties half, with
        `low, high, se, n, smallest_effect` (distance from one half); `higher, lower, ties` (tasks); `shift`, the mean
        difference in the unit of the values; `sign_p` and `wilcoxon_p`, two-sided, and `wilcoxon_p_holm`, adjusted for the
        number of contexts (Holm 1979).
    neutral
        The context that others are compared with.
    """

    table: pd.DataFrame
    neutral: str

    def plot(self) -> "Figure":
        """P(higher than neutral) of every context with its interval."""
        known = self.table.sort_values("value")
        return forest(
            [str(name) for name in known.index],
            known[["value", "low", "high"]].to_numpy(dtype=float),
            f"P(a task is rated higher than under {self.neutral})",
            f"Contexts, over {int(known['n'].iloc[0])} tasks",
            null=0.5,
        )


def higher_than_neutral(values: pd.DataFrame, neutral: str, *, resamples: int = 1000, seed: int = 0) -> HigherThanNeutral:
    """Compare every context with the neutral one, task by task.

    The interval is a bootstrap over tasks; where all tasks go one way, from which a bootstrap learns nothing, it is Wilson's.
    The sign test leaves ties out (scipy's binomtest); Wilcoxon's signed-rank test does so too, and asks for differences that
    are symmetric about their median.

    Parameters
    ----------
    values
        One row a task, one column a context, the neutral one included: ratings or utilities with a common origin. Utilities
        of mean zero under each context do not have one.
    neutral
        Name of the neutral column.

    Raises
    ------
    ValueError
        No column has that name, no other column is there, fewer than five tasks, or a value is no finite number.
    """
    from statsmodels.stats.multitest import multipletests

    if neutral not in values.columns:
        raise ValueError(f"There is no context {neutral!r}; expected the name of a column, one of {list(values.columns)}.")
    wide = complete_values(values, rows=_LEAST_TASKS, columns=2, unit="context")
    others = [name for name in wide.columns if name != neutral]
    difference = wide[others].to_numpy() - wide[[neutral]].to_numpy()
    scores = (1 + np.sign(difference)) / 2
    n = len(scores)
    draws = scores[np.random.default_rng(seed).integers(n, size=(resamples, n))].mean(axis=1)
    rows = []
    for place in range(len(others)):
        score, change = scores[:, place], difference[:, place]
        higher, lower = int((score == 1).sum()), int((score == 0).sum())
        row = estimate_row(_estimate(score, draws[:, place]))
        row |= {"higher": higher, "lower": lower, "ties": n - higher - lower, "shift": float(change.mean())}
        decided = higher + lower
        # Where all tasks tie there is nothing to test, and scipy would say so with NaN or an error.
        row["sign_p"] = float(stats.binomtest(higher, decided).pvalue) if decided else 1.0
        row["wilcoxon_p"] = float(np.asarray(stats.wilcoxon(change[change != 0]))[1]) if decided else 1.0
        rows.append(row)
    table = pd.DataFrame(rows, index=pd.Index(others, name="context"))
    table["wilcoxon_p_holm"] = multipletests(table["wilcoxon_p"], method="holm")[1]
    return HigherThanNeutral(table, neutral)


def _estimate(scores: Float[np.ndarray, " tasks"], draws: Float[np.ndarray, " resamples"]) -> Estimate:
    n = len(scores)
    if np.ptp(scores) > 0:
        return Estimate.from_draws(float(scores.mean()), draws, n)
    wilson = rate(float(scores.sum()), n)
    return Estimate(wilson.value, wilson.low, wilson.high, (wilson.high - wilson.low) / 3.92, n)
