"""Position: what the order of showing is worth, and how that varies over pairs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from elicit.pairs import order_averages
from elicit.reliability.drawing import BLUE, GREEN, GREY, ORANGE, estimate_table, new_axes
from elicit.reliability.dyads import dyadic_estimate
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STATISTICS = (
    "mean",
    "spread",
    "content",
    "order_correlation",
    "flips",
    "content_share",
    "position_share",
    "constant_share",
    "one_order",
    "both_orders",
)


@dataclass(frozen=True)
class PositionBias:
    """How much of a choice is due to the order of showing; mean, spread and content in logits.

    Intervals allow for pairs that share a task (see `dyadic_estimate`): position is largely a matter of which task it is.

    With c a pair's content and p its position (see `order_averages`), the log-odds for its task 1 are c + p and c - p. Over
    both orders, and whichever task is called task 1, they have mean zero and variance E[c²] + E[p²]: what the shares are of.

    One order, with the constant bias E[p] taken away, reads c + p - E[p] or c - p + E[p], as a coin says. Its covariance
    with anything else, the truth included, is that of c, and its variance is that of c and of p together. So its squared
    correlation with anything is, in expectation, that of both orders times E[c²] / (E[c²] + Var[p]): `one_order`.

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
    content_share, position_share
        Split of the variance of the log-odds into the content effect, E[c²], and the position effect, E[p²].
    constant_share
        The part of the position share that is one bias for all pairs, E[p]²: what a single position term takes away.
    one_order
        Reliability of one order by that of both: E[c²] / (E[c²] + Var[p]), which is (1 + order_correlation) / 2. Its square
        root is the correlation of one order with the content of both, and the factor by which one order shrinks any other
        correlation (attenuation, Spearman 1904).
    both_orders
        Reliability of the mean of both orders if what they differ in were noise, drawn anew in each: 1 - Var[p] / E[c²],
        the Spearman-Brown formula on order_correlation. Position cancels in that mean, so this is the least it may be, and
        it is below zero where position outweighs content. One order then has both_orders times one_order.
    """

    mean: Estimate
    spread: Estimate
    content: Estimate
    order_correlation: Estimate
    flips: Estimate
    content_share: Estimate
    position_share: Estimate
    constant_share: Estimate
    one_order: Estimate
    both_orders: Estimate
    pairs: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic: value, low, high, se, n, smallest_effect."""
        return estimate_table({name: getattr(self, name) for name in _STATISTICS})

    def plot(self) -> "Figure":
        """Preference for a task when it is shown first against the same when it is shown second."""
        figure, axes = new_axes(5.2, 5.0)
        content, position = self.pairs["content"].to_numpy(), self.pairs["position"].to_numpy()
        first, second = _both_tasks(content + position, content - position)
        limit = 1.08 * max(np.abs(first).max(), np.abs(second).max())
        axes.plot([-limit, limit], [-limit, limit], color=GREEN, linewidth=1, label="order does not matter")
        axes.plot([-limit, limit], [limit, -limit], color=ORANGE, linewidth=1, label="only order matters")
        axes.axhline(0, color=GREY, linewidth=0.6)
        axes.axvline(0, color=GREY, linewidth=0.6)
        axes.scatter(first, second, s=9, color=BLUE, alpha=0.5, linewidths=0)
        axes.set(
            xlim=(-limit, limit),
            ylim=(-limit, limit),
            xlabel="log-odds for a task shown first (logits)",
            ylabel="log-odds for the same task shown second (logits)",
            title=f"Both orders of {len(content)} pairs",
        )
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return {name: getattr(self, name).to_dict() for name in _STATISTICS}


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
        "content_share": lambda rows: _ratio((content[rows] ** 2).sum(-1), (content[rows] ** 2 + position[rows] ** 2).sum(-1)),
        "constant_share": lambda rows: _ratio(
            position[rows].mean(-1) ** 2, (content[rows] ** 2 + position[rows] ** 2).mean(-1)
        ),
        "both_orders": lambda rows: 1 - _ratio(position[rows].var(-1), (content[rows] ** 2).mean(-1)),
    }
    bounds = {
        "spread": (0, np.inf),
        "content": (0, np.inf),
        "order_correlation": (-1, 1),
        "both_orders": (-np.inf, 1),
    } | dict.fromkeys(("flips", "content_share", "constant_share"), (0, 1))
    estimates = {
        name: dyadic_estimate(each, pairs["task_1"], pairs["task_2"], bounds.get(name, (-np.inf, np.inf)))
        for name, each in statistics.items()
    }
    share, correlation = estimates["content_share"], estimates["order_correlation"]
    return PositionBias(
        pairs=pairs,
        position_share=Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.se, share.n),
        one_order=Estimate(
            (1 + correlation.value) / 2, (1 + correlation.low) / 2, (1 + correlation.high) / 2, correlation.se / 2, share.n
        ),
        **estimates,
    )


def _ratio(part: Any, whole: Any) -> Any:
    """Part by whole; missing, without a warning, where there is no whole."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.asarray(whole) > 0, np.divide(part, whole), np.nan)


def _both_tasks(
    first: Float[np.ndarray, "... pairs"], second: Float[np.ndarray, "... pairs"]
) -> tuple[Float[np.ndarray, "... tasks"], Float[np.ndarray, "... tasks"]]:
    """Preference for a task when first, and when second, of both tasks of every pair.

    For the other task of a pair the two are -second and -first, so each pair enters twice and what follows does not depend
    on which task is called task 1.
    """
    return np.concatenate([first, -second], axis=-1), np.concatenate([second, -first], axis=-1)


def _symmetric_correlation(x: Float[np.ndarray, "... pairs"], y: Float[np.ndarray, "... pairs"]) -> Float[np.ndarray, "..."]:
    """Correlation of the preference for a task when first with that when second, over both tasks of every pair."""
    first, second = _both_tasks(x, y)
    first, second = first - first.mean(-1, keepdims=True), second - second.mean(-1, keepdims=True)
    return _ratio((first * second).sum(-1), np.sqrt((first**2).sum(-1) * (second**2).sum(-1)))
