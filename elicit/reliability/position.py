"""Position: what the order of showing is worth, and how that varies over pairs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from elicit.pairs import order_averages
from elicit.reliability.dyads import dyadic_estimate
from store.estimates import Estimate


@dataclass(frozen=True)
class PositionBias:
    """How much of a choice is due to the order of showing; all in logits.

    Intervals allow for pairs that share a task (see `dyadic_estimate`): position is largely a matter of which task it is.

    Attributes
    ----------
    mean
        Log-odds for the task shown first, averaged over pairs.
    spread
        Standard deviation of that over pairs: bias that no single constant takes away.
    content
        Standard deviation over pairs of the order-averaged preference: what there is to measure.
    order_correlation
        Correlation over pairs of the preference for one task when it is shown first with that when it is shown second:
        1 when order does not matter, towards -1 when nothing else does.
    flips
        Share of pairs in which the order decides which task is chosen.
    """

    mean: Estimate
    spread: Estimate
    content: Estimate
    order_correlation: Estimate
    flips: Estimate
    pairs: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        names = ("mean", "spread", "content", "order_correlation", "flips")
        return {name: getattr(self, name).to_dict() for name in names}


def position_bias(comparisons: pd.DataFrame) -> PositionBias:
    """Separate position from content on pairs that were asked in both orders.

    Raises
    ------
    ValueError
        Fewer than three pairs have an answer on format in both orders.
    """
    pairs = order_averages(comparisons)
    if len(pairs) < 3:
        raise ValueError(f"{len(pairs)} pairs have answers on format in both orders; position bias needs at least three.")
    content, position = pairs["content"].to_numpy(), pairs["position"].to_numpy()
    # Which task of a pair is called task 1 is arbitrary, so content has no meaningful mean: its spread is about zero.
    preference_if_first, preference_if_second = content + position, content - position
    statistics: dict[str, Callable[[np.ndarray], Any]] = {
        "mean": lambda rows: position[rows].mean(-1),
        "spread": lambda rows: position[rows].std(-1, ddof=1),
        "content": lambda rows: np.sqrt((content[rows] ** 2).mean(-1)),
        "order_correlation": lambda rows: _symmetric_correlation(preference_if_first[rows], preference_if_second[rows]),
        "flips": lambda rows: (np.abs(position[rows]) > np.abs(content[rows])).mean(-1),
    }
    bounds = {"spread": (0, np.inf), "content": (0, np.inf), "order_correlation": (-1, 1), "flips": (0, 1)}
    estimates = {
        name: dyadic_estimate(each, pairs["task_1"], pairs["task_2"], bounds.get(name, (-np.inf, np.inf)))
        for name, each in statistics.items()
    }
    return PositionBias(pairs=pairs, **estimates)


def _symmetric_correlation(x: Float[np.ndarray, "... pairs"], y: Float[np.ndarray, "... pairs"]) -> Float[np.ndarray, "..."]:
    """Correlation of the preference for a task when first with that when second, over both tasks of every pair.

    For the other task of a pair the two are -y and -x, so each pair enters twice and the result does not depend on which
    task is called task 1.
    """
    first, second = np.concatenate([x, -y], axis=-1), np.concatenate([y, -x], axis=-1)
    first, second = first - first.mean(-1, keepdims=True), second - second.mean(-1, keepdims=True)
    return (first * second).sum(-1) / np.sqrt((first**2).sum(-1) * (second**2).sum(-1))
