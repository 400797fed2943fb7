"""Consistency: the same pairs asked under several conditions (templates, seeds, system prompts), and how far they agree.

Which task of a pair is called task 1 is arbitrary, so preferences have no meaningful mean and correlations are about zero.
"""

import math
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from elicit.pairs import order_averages
from elicit.reliability import dyadic_estimate
from store.estimates import Estimate

LEAST_COVERAGE = 0.8
"""Share of the pairs that a condition must have answers to, in both orders, to be compared with others."""
ROUNDING = 1e-9
"""Logits, orders averaged: what is below is rounding."""


def contents(conditions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Order-averaged preference for task 1 of every pair under every condition.

    Parameters
    ----------
    conditions
        Comparisons of each condition, over the same pairs.

    Returns
    -------
    One row per pair (indexed by `task_1, task_2`), one column per condition. Conditions that are off format on more than a
    fifth of the pairs are left out, and those that answer by order alone, with which nothing correlates; then pairs that lack
    an answer under any of the rest are.
    """
    n_pairs = max(
        len({frozenset(pair) for pair in part[["first", "second"]].itertuples(index=False)}) for part in conditions.values()
    )
    columns = {name: order_averages(part).set_index(["task_1", "task_2"])["content"] for name, part in conditions.items()}
    kept = {
        name: column
        for name, column in columns.items()
        if len(column) >= LEAST_COVERAGE * n_pairs and (column.abs() > ROUNDING).any()
    }
    if not kept:
        return pd.DataFrame(index=pd.MultiIndex.from_tuples([], names=["task_1", "task_2"]))
    return pd.DataFrame(kept).dropna()


def correlations(preferences: Float[np.ndarray, "pairs conditions"]) -> Float[np.ndarray, "conditions conditions"]:
    """Correlation about zero of every condition with every other."""
    products = preferences.T @ preferences
    norms = np.sqrt(np.diag(products))
    with np.errstate(invalid="ignore", divide="ignore"):
        return products / np.outer(norms, norms)


def mean_agreement(preferences: pd.DataFrame, which: Bool[np.ndarray, "conditions conditions"] | None = None) -> Estimate:
    """Mean correlation between conditions, over the marked ones (by default between any two).

    Intervals allow for pairs that share a task.
    """
    chosen = ~np.eye(preferences.shape[1], dtype=bool) if which is None else which
    return over_pairs(preferences, lambda values: float(correlations(values)[chosen].mean()), bounds=(-1, 1))


def reliability(preferences: pd.DataFrame) -> Estimate:
    """Share of the variance of one condition's preferences that any other condition has too.

    The one-way intraclass correlation about zero: mean product of two conditions, by mean square. A condition's own scale
    counts against it, other than in a correlation.
    """

    def share(values: Float[np.ndarray, "pairs conditions"]) -> float:
        k, squares = values.shape[1], (values**2).sum(axis=1)
        products = (values.sum(axis=1) ** 2 - squares) / (k * (k - 1))
        return float(products.mean() / (squares / k).mean())

    return over_pairs(preferences, share, bounds=(-1, 1))


def of_mean(single: float, k: float) -> float:
    """Reliability of the mean of `k` conditions, from that of one (Spearman-Brown)."""
    return k * single / (1 + (k - 1) * single)


def needed(single: float, target: float = 0.8) -> float:
    """Number of conditions whose mean has the target reliability; infinite if one has none."""
    return math.inf if single <= 0 else max(1.0, target * (1 - single) / (single * (1 - target)))


def over_pairs(
    preferences: pd.DataFrame,
    statistic: Callable[[np.ndarray], float],
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Estimate a statistic of preferences (pairs, conditions), whose interval allows for pairs that share a task.

    It is cut at the `bounds`, the least and greatest possible value.
    """
    values = preferences.to_numpy(dtype=float)
    tasks = preferences.index.to_frame(index=False)
    return dyadic_estimate(lambda rows: statistic(values[rows]), tasks["task_1"], tasks["task_2"], bounds)
