"""Held-out losses of the fits as tables: the curve over penalties, and what a spread per task saves at the best one."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from elicit.reliability import dyadic_estimate
from experiments.thurstone_fits import AS_SHOWN, AVERAGED, BRADLEY_TERRY, SIGMAS, THURSTONE, Fit
from store import Estimate

_RESAMPLES = 1000
_MILLI = 1000.0
"""Losses differ in their third decimal: differences are told in thousandths of a nat."""


def curve_table(fits: Sequence[Fit], seed: int) -> pd.DataFrame:
    """Log loss of every fit, itself and less that of Bradley-Terry with a position term; bootstrap over held-out pairs."""
    n = len(fits[0].losses[AS_SHOWN])
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    plain_fits = {(fit.design, fit.answers): fit for fit in fits if fit.model == BRADLEY_TERRY and fit.position}
    rows = []
    for fit in fits:
        for scored, losses in fit.losses.items():
            above = _MILLI * (losses - plain_fits[fit.design, fit.answers].losses[scored])
            own, less = (Estimate.from_draws(float(each.mean()), counts @ each, n) for each in (losses, above))
            largest = fit.largest if len(fit.largest) else np.array([math.nan])
            rows.append(
                {"answers": fit.answers, "design": fit.design, "position": fit.position, "model": fit.model}
                | {"penalty": fit.penalty, "scored": scored}
                | {"log_loss": own.value, "log_loss_low": own.low, "log_loss_high": own.high}
                | {"above": less.value, "above_low": less.low, "above_high": less.high}
                | {"largest_sigma": largest.mean(), "sigma_low": largest.min(), "sigma_high": largest.max()}
                | {"unconverged": fit.unconverged}
            )
    return pd.DataFrame(rows)


def gains_table(fits: Sequence[Fit], test: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What sigmas save against models without, in thousandths of a nat an answer.

    Beside it what Bradley-Terry saves against a fair coin (`over_coin`), and by its position term (`position_gain`).

    `best` is the penalty with the least loss over all held-out pairs, with an interval by bootstrap over them.
    """
    rows = []
    for condition in dict.fromkeys(fit.condition for fit in fits):
        here = [fit for fit in fits if fit.condition == condition]
        by_model = {fit.model: fit for fit in here if fit.model != SIGMAS}
        penalised = [fit for fit in here if fit.model == SIGMAS]
        for scored in (AS_SHOWN, AVERAGED):
            losses = np.stack([fit.losses[scored] for fit in penalised])
            best, low, high = best_penalty([fit.penalty for fit in penalised], losses, seed)
            chosen = cross_chosen(losses, seed)
            row: dict[str, Any] = dict(zip(("design", "answers", "position"), condition, strict=True))
            row |= {"scored": scored, "best": best, "best_low": low, "best_high": high}
            plain_losses = by_model[BRADLEY_TERRY].losses[scored]
            differences = {"gain": plain_losses - chosen, "over_thurstone": by_model[THURSTONE].losses[scored] - chosen}
            differences["over_coin"] = math.log(2) - plain_losses
            if condition[2]:
                without = next(fit for fit in fits if fit.condition == (*condition[:2], False) and fit.model == BRADLEY_TERRY)
                differences["position_gain"] = without.losses[scored] - plain_losses
            for name, difference in differences.items():
                estimate = mean_over_pairs(_MILLI * difference, test)
                row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
                row |= {f"{name}_se": estimate.se}
            rows.append(row | {"n": len(test)})
    return pd.DataFrame(rows)


def best_penalty(
    penalties: Sequence[float], losses: Float[np.ndarray, "penalties pairs"], seed: int
) -> tuple[float, float, float]:
    """The penalty with the least mean loss, and the 95 % interval of it over bootstrap resamples of pairs."""
    n = losses.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    drawn = np.asarray(penalties)[(counts @ losses.T).argmin(axis=1)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return float(np.asarray(penalties)[losses.mean(axis=1).argmin()]), float(low), float(high)


def cross_chosen(losses: Float[np.ndarray, "penalties pairs"], seed: int) -> Float[np.ndarray, " pairs"]:
    """Loss of every pair under the penalty that is best on the half of the pairs that it is not in.

    The least of several losses on the very pairs that are scored would look better than it is.
    """
    n = losses.shape[1]
    in_half = np.random.default_rng([seed, 1]).permutation(n) < n // 2
    chosen = np.empty(n)
    for half in (in_half, ~in_half):
        chosen[half] = losses[losses[:, ~half].mean(axis=1).argmin(), half]
    return chosen


def mean_over_pairs(values: Float[np.ndarray, " pairs"], test: pd.DataFrame) -> Estimate:
    """Mean over held-out pairs; the interval allows for pairs that share a task."""
    return dyadic_estimate(lambda rows: values[rows].mean(-1), test["task_1"], test["task_2"])
