"""Hold-out: what fitted utilities say of pairs that they were not fitted to, beside what could be known of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from elicit.pairs import order_averages, uncentred_correlation
from elicit.utilities import Utilities
from store.estimates import Estimate


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
