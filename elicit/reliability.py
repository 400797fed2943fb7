"""Can the measurement be trusted? Position bias and its spread, hold-out accuracy, agreement between measures."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special, stats

from elicit.pairs import order_averages, uncentred_correlation
from elicit.utilities import Utilities
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


def dyadic_estimate(
    statistic: Callable[[np.ndarray], Any],
    first: pd.Series,
    second: pd.Series,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Estimate a statistic of pairs where pairs that share a task are dependent.

    The variance is the dyadic cluster-robust one (Aronow, Samii & Assenova 2015, equation 3) of the statistic's empirical
    influence values, never less than if pairs were independent; the interval is that of Student's t with as many degrees
    of freedom as there are tasks, less one.

    Parameters
    ----------
    statistic
        From the numbers of pairs (an array of them, with repetition) to a value; the last axis is reduced.
    first, second
        The two tasks of every pair.
    bounds
        Least and greatest possible value; the interval is cut there.
    """
    n = len(first)
    codes, names = pd.factorize(np.concatenate([np.asarray(first), np.asarray(second)]))
    value = float(statistic(np.arange(n)))
    left_out = np.array([float(statistic(np.delete(np.arange(n), pair))) for pair in range(n)])
    influence = (n - 1) * (value - left_out)
    by_task = np.bincount(codes[:n], influence, len(names)) + np.bincount(codes[n:], influence, len(names))
    own = float((influence**2).sum())
    variance = max(float((by_task**2).sum()) - own, own) / n**2 * len(names) / (len(names) - 1)
    se = float(np.sqrt(variance))
    margin = float(stats.t.ppf(0.975, len(names) - 1)) * se
    return Estimate(value, max(value - margin, bounds[0]), min(value + margin, bounds[1]), se, n)


def _symmetric_correlation(x: Float[np.ndarray, "... pairs"], y: Float[np.ndarray, "... pairs"]) -> Float[np.ndarray, "..."]:
    """Correlation of the preference for a task when first with that when second, over both tasks of every pair.

    For the other task of a pair the two are -y and -x, so each pair enters twice and the result does not depend on which
    task is called task 1.
    """
    first, second = np.concatenate([x, -y], axis=-1), np.concatenate([y, -x], axis=-1)
    first, second = first - first.mean(-1, keepdims=True), second - second.mean(-1, keepdims=True)
    return (first * second).sum(-1) / np.sqrt((first**2).sum(-1) * (second**2).sum(-1))


@dataclass(frozen=True)
class HoldOut:
    """How well fitted utilities predict pairs that they were not fitted to; intervals by bootstrap over those pairs.

    Attributes
    ----------
    accuracy
        Share of held-out pairs whose order-averaged preference has the predicted sign (.5 by chance).
    correlation
        Of predicted with measured log-odds.
    log_loss, coin_log_loss
        Mean cross-entropy of the predicted probability against the measured one, in nats; and that of a fair coin.
    floor_log_loss
        Entropy of the measured probabilities: no prediction can do better.
    """

    accuracy: Estimate
    correlation: Estimate
    log_loss: Estimate
    coin_log_loss: float
    floor_log_loss: float
    pairs: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        estimates = {name: getattr(self, name).to_dict() for name in ("accuracy", "correlation", "log_loss")}
        return estimates | {"coin_log_loss": self.coin_log_loss, "floor_log_loss": self.floor_log_loss}


def hold_out_accuracy(utilities: Utilities, comparisons: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> HoldOut:
    """Compare utilities with held-out pairs, each asked in both orders.

    Raises
    ------
    ValueError
        No held-out pair joins two fitted tasks.
    """
    pairs = order_averages(comparisons)
    utility = dict(zip(utilities.task_ids, utilities.values, strict=True))
    known = pairs["task_1"].isin(utility.keys()) & pairs["task_2"].isin(utility.keys())
    pairs = pairs[known].reset_index(drop=True)
    if pairs.empty:
        raise ValueError("No held-out pair joins two tasks that have utilities.")
    predicted = (pairs["task_1"].map(utility) - pairs["task_2"].map(utility)).to_numpy(dtype=float)
    measured = pairs["content"].to_numpy()
    right = (1 + np.sign(predicted) * np.sign(measured)) / 2
    target = special.expit(measured)
    loss = np.logaddexp(0, predicted) - target * predicted
    floor = np.logaddexp(0, measured) - target * measured
    rows = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    return HoldOut(
        Estimate.from_draws(right.mean(), right[rows].mean(-1), len(pairs)),
        Estimate.from_draws(
            float(uncentred_correlation(predicted, measured)),
            uncentred_correlation(predicted[rows], measured[rows]),
            len(pairs),
        ),
        Estimate.from_draws(loss.mean(), loss[rows].mean(-1), len(pairs)),
        float(np.log(2)),
        float(floor.mean()),
        pairs.assign(predicted=predicted),
    )


@dataclass(frozen=True)
class Agreement:
    """How far two measures of the same tasks agree; intervals by bootstrap over tasks.

    Attributes
    ----------
    pearson, spearman
        Correlation over tasks.
    partial
        Pearson's of what the controls leave of both; None without controls.
    """

    pearson: Estimate
    spearman: Estimate
    partial: Estimate | None
    tasks: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return {
            "pearson": self.pearson.to_dict(),
            "spearman": self.spearman.to_dict(),
            "partial": self.partial.to_dict() if self.partial else None,
        }


def agreement(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    controls: pd.DataFrame | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Correlate two tables of labels, each of one target, over the tasks that both have.

    Parameters
    ----------
    controls
        What both may owe to something else, such as length and origin: numbers, indexed by task id.

    Raises
    ------
    ValueError
        A table has several targets, or fewer than four tasks have both labels.
    """
    for labels in (first, second):
        if "target" in labels and labels["target"].nunique() > 1:
            raise ValueError(f"Labels have the targets {sorted(labels['target'].unique())}; agreement is of one target each.")
    tasks = first[["task_id", "value"]].merge(second[["task_id", "value"]], on="task_id", suffixes=("_1", "_2"))
    if len(tasks) < 4:
        raise ValueError(f"{len(tasks)} tasks have both labels; agreement needs at least four.")
    x, y = tasks["value_1"].to_numpy(dtype=float), tasks["value_2"].to_numpy(dtype=float)
    rows = np.random.default_rng(seed).integers(len(tasks), size=(resamples, len(tasks)))

    def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _correlation(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))

    partial = None
    if controls is not None:
        design = np.column_stack([np.ones(len(tasks)), controls.loc[tasks["task_id"]].to_numpy(dtype=float)])
        draws = [_partial_correlation(x[row], y[row], design[row]) for row in rows]
        partial = Estimate.from_draws(_partial_correlation(x, y, design), draws, len(tasks))
    return Agreement(
        Estimate.from_draws(float(_correlation(x, y)), _correlation(x[rows], y[rows]), len(tasks)),
        Estimate.from_draws(float(spearman(x, y)), spearman(x[rows], y[rows]), len(tasks)),
        partial,
        tasks,
    )


def _partial_correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n controls"]
) -> float:
    both = np.column_stack([x, y])
    rest = both - design @ np.linalg.lstsq(design, both, rcond=None)[0]
    return float(_correlation(rest[:, 0], rest[:, 1]))


def scale_agreement(labels: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean correlation over tasks between all pairs of scales; interval by bootstrap over tasks.

    Parameters
    ----------
    labels
        Labels of two or more targets, for instance of the scales of self-report.

    Raises
    ------
    ValueError
        Fewer than two targets, or fewer than four tasks that have them all.
    """
    wide = labels.pivot(index="task_id", columns="target", values="value").dropna().to_numpy(dtype=float)
    if wide.shape[1] < 2 or len(wide) < 4:
        raise ValueError(f"{wide.shape[1]} scales over {len(wide)} tasks; agreement needs two scales and four tasks.")
    upper = np.triu_indices(wide.shape[1], 1)

    def statistic(values: np.ndarray) -> np.ndarray:
        columns = np.moveaxis(values, -1, 0)
        return np.mean([_correlation(columns[i], columns[j]) for i, j in zip(*upper, strict=True)], axis=0)

    rows = np.random.default_rng(seed).integers(len(wide), size=(resamples, len(wide)))
    return Estimate.from_draws(float(statistic(wide)), statistic(wide[rows]), len(wide))


def _correlation(x: Float[np.ndarray, "... n"], y: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
