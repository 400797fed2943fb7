"""Hold-out: what fitted utilities say of pairs that they were not fitted to, beside the most that could be known of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import special

from elicit.comparisons import Comparisons
from elicit.pairs import order_averages, uncentred_correlation
from elicit.rates import rate
from elicit.utilities import Utilities
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TENTHS = 10


@dataclass(frozen=True)
class HoldOut:
    """How well fitted utilities predict pairs that they were not fitted to; intervals by bootstrap over those pairs.

    That of the accuracy of exact answers is Wilson's, which does not close up when all pairs are predicted.

    Attributes
    ----------
    accuracy
        Share of what was chosen that was predicted (.5 by chance): of held-out pairs with orders averaged where answers are
        exact, of held-out answers, order effects included, where they are sampled.
    accuracy_ceiling
        The accuracy that the true utilities would have, as an estimate. Exact answers: from the share of the held-out variance
        that is not pair-specific, .5 + arcsin(sqrt(share)) / pi (the sign agreement of two normal variables, Sheppard 1899).
        Sampled ones: the mean probability of the likelier side, if the fitted model were true.
    correlation
        Of predicted with measured log-odds; None for sampled answers.
    log_loss, coin_log_loss
        Mean cross-entropy of the predicted probability against the measured one, in nats; and that of a fair coin.
    log_loss_without_position
        Sampled answers: the same with the position term left out; None for exact ones, whose orders are averaged.
    floor_log_loss
        No prediction can do better: the entropy of the measured probabilities, or of the predicted ones for sampled answers.
    pairs
        What was predicted and measured: one row a pair, or an ordered pair for sampled answers.
    """

    accuracy: Estimate
    accuracy_ceiling: float
    correlation: Estimate | None
    log_loss: Estimate
    log_loss_without_position: Estimate | None
    coin_log_loss: float
    floor_log_loss: float
    pairs: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic, with its interval and the best value there could be."""
        best = {"accuracy": self.accuracy_ceiling, "log_loss": self.floor_log_loss, "log_loss_without_position": math.nan}
        rows = [
            {"statistic": name} | estimate.to_dict() | {"best_possible": best.get(name, math.nan)}
            for name, estimate in self._estimates().items()
        ]
        return pd.DataFrame(rows)

    def calibration(self) -> pd.DataFrame:
        """Measured beside predicted probability, by tenths of the predictions."""
        ranks = self.pairs["p_predicted"].rank(method="first")
        tenth = np.minimum((ranks - 1) * _TENTHS // len(ranks), _TENTHS - 1)
        grouped = self.pairs.groupby(tenth)
        means = grouped.agg(
            p_predicted=("p_predicted", "mean"), p_measured=("p_measured", "mean"), sd=("p_measured", "std"), n=("n", "sum")
        )
        return means.assign(se=means["sd"] / np.sqrt(grouped.size())).drop(columns="sd").reset_index(drop=True)

    def plot(self) -> Figure:
        """Measured against predicted probability, by tenths of the predictions."""
        from elicit.reliability.drawing import BLUE, GREEN, new_axes

        table = self.calibration()
        figure, axes = new_axes(4.8, 4.4)
        span = [
            float(table[["p_predicted", "p_measured"]].min().min()),
            float(table[["p_predicted", "p_measured"]].max().max()),
        ]
        axes.plot(span, span, color=GREEN, linewidth=1, label="calibrated")
        axes.errorbar(
            table["p_predicted"], table["p_measured"], 1.96 * table["se"], fmt="o", color=BLUE, markersize=5, linewidth=1.2
        )
        axes.set(xlabel="predicted probability", ylabel="measured (bars: 95 %)", title=f"{len(self.pairs)} held-out pairs")
        axes.legend(fontsize=8, frameon=False)
        return figure

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        best = ("accuracy_ceiling", "coin_log_loss", "floor_log_loss")
        return {name: each.to_dict() for name, each in self._estimates().items()} | {name: getattr(self, name) for name in best}

    def _estimates(self) -> dict[str, Estimate]:
        names = ("accuracy", "correlation", "log_loss", "log_loss_without_position")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def hold_out_accuracy(utilities: Utilities, comparisons: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> HoldOut:
    """Compare utilities with held-out answers: pairs asked in both orders where exact, any where sampled.

    Raises
    ------
    ValueError
        No held-out pair joins two fitted tasks.
    """
    exact = "logit" in comparisons and bool(comparisons["logit"].notna().any())
    return (_exact if exact else _sampled)(utilities, comparisons, resamples, seed)


def _exact(utilities: Utilities, comparisons: pd.DataFrame, resamples: int, seed: int) -> HoldOut:
    pairs = order_averages(comparisons)
    eta = utilities.eta(pairs["task_1"], pairs["task_2"])
    pairs, eta = _known(pairs, eta)
    p_predicted, measured = utilities.probability(eta), pairs["content"].to_numpy(dtype=float)
    predicted = eta if utilities.link == "logistic" else special.logit(p_predicted)
    target = special.expit(measured)
    right = (1 + np.sign(predicted) * np.sign(measured)) / 2
    draws = np.random.default_rng(seed).integers(len(pairs), size=(resamples, len(pairs)))
    variance, noise = float(np.mean(measured**2)), utilities.report.residual_sd
    share = math.nan if noise is None else max(0.0, 1 - noise**2 / variance) if variance > 0 else 0.0
    n = len(pairs)

    def mean(values: Float[np.ndarray, " pairs"]) -> Estimate:
        return Estimate.from_draws(float(values.mean()), values[draws].mean(-1), n)

    return HoldOut(
        accuracy=rate(float(right.sum()), n),
        accuracy_ceiling=0.5 + math.asin(math.sqrt(share)) / math.pi if share == share else math.nan,
        correlation=Estimate.of_correlation(
            float(uncentred_correlation(predicted, measured)), uncentred_correlation(predicted[draws], measured[draws]), n
        ),
        log_loss=mean(utilities.cross_entropy(eta, target)),
        log_loss_without_position=None,
        coin_log_loss=math.log(2),
        floor_log_loss=float(special.entr(target).mean() + special.entr(1 - target).mean()),
        pairs=pairs.assign(predicted=predicted, p_predicted=p_predicted, p_measured=target, n=1),
    )


def _sampled(utilities: Utilities, comparisons: pd.DataFrame, resamples: int, seed: int) -> HoldOut:
    cells = Comparisons.of(comparisons)
    names = np.asarray(cells.task_ids, dtype=object)
    table = pd.DataFrame(
        {"first": names[cells.first], "second": names[cells.second], "p_measured": cells.won, "n": cells.weight}
    )
    table["pair"] = cells.pair
    table, eta = _known(table, utilities.eta(table["first"], table["second"], with_position=True))
    p, won = utilities.probability(eta), table["p_measured"].to_numpy(dtype=float)
    plain = utilities.eta(table["first"], table["second"])
    weight = table["n"].to_numpy(dtype=float)
    pair, _ = pd.factorize(table["pair"])
    n = int(pair.max()) + 1
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(float)

    def mean(values: Float[np.ndarray, " cells"]) -> Estimate:
        return _ratio(weight * values, weight, pair, counts)

    right = np.where(p > 0.5, won, np.where(p < 0.5, 1 - won, 0.5))
    return HoldOut(
        accuracy=mean(right),
        accuracy_ceiling=float(np.average(np.maximum(p, 1 - p), weights=weight)),
        correlation=None,
        log_loss=mean(utilities.cross_entropy(eta, won)),
        log_loss_without_position=mean(utilities.cross_entropy(plain, won)),
        coin_log_loss=math.log(2),
        floor_log_loss=float(np.average(special.entr(p) + special.entr(1 - p), weights=weight)),
        pairs=table.assign(p_predicted=p),
    )


def _known(table: pd.DataFrame, eta: Float[np.ndarray, " rows"]) -> tuple[pd.DataFrame, Float[np.ndarray, " rows"]]:
    """The rows whose two tasks have utilities that can be compared."""
    known = np.isfinite(eta)
    if not known.any():
        raise ValueError("No held-out pair joins two tasks that have utilities.")
    return table[known].reset_index(drop=True), eta[known]


def _ratio(
    total: Float[np.ndarray, " cells"],
    weight: Float[np.ndarray, " cells"],
    pair: Int[np.ndarray, " cells"],
    counts: Float[np.ndarray, "resamples pairs"],
) -> Estimate:
    """Weighted mean over cells, with a bootstrap over pairs."""
    of_pair, weight_of_pair = np.bincount(pair, total), np.bincount(pair, weight)
    draws = counts @ of_pair / (counts @ weight_of_pair)
    return Estimate.from_draws(float(total.sum() / weight.sum()), draws, counts.shape[1])
