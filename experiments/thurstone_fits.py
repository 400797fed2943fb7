"""Models with and without a spread per task, fitted to many and to few of the pairs, and what each loses on held-out pairs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special
from tqdm import tqdm

from elicit import BradleyTerry, Thurstone, ThurstoneSigmas, Utilities, all_pairs, hold_out, order_averages, regular_pairs
from elicit.designs import Pair
from elicit.estimators import Estimator

if TYPE_CHECKING:
    from experiments.thurstone_regularisation import ThurstoneRegularisationSettings

DENSE, SPARSE = "dense", "sparse"
SIGMAS, BRADLEY_TERRY, THURSTONE = "thurstone sigmas", "bradley-terry", "thurstone"
EXACT = "exact"
AS_SHOWN, AVERAGED = "as shown", "orders averaged"
LARGEST_SIGMA = math.exp(2.0)
"""Upper bound of a sigma."""
_LEAST_HELD_OUT = 20


def split(task_ids: Sequence[str], degree: int, share: float, seed: int) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """The pairs of both designs, the sparse one within the dense, and the pairs held out of both.

    Raises
    ------
    ValueError
        See `regular_pairs`; or too few pairs are left to be held out.
    """
    sparse = regular_pairs(task_ids, degree, seed)
    among = {frozenset(pair) for pair in sparse}
    rest = [pair for pair in all_pairs(task_ids) if frozenset(pair) not in among]
    if len(rest) * share < _LEAST_HELD_OUT:
        raise ValueError(
            f"{len(rest)} pairs of {len(task_ids)} tasks are outside the sparse design of degree {degree}, and a share of "
            f"{share:g} of them is fewer than {_LEAST_HELD_OUT} to hold out. Raise per_origin or hold_out, or lower degree."
        )
    fitted, held = hold_out(rest, share, seed)
    return {DENSE: sparse + fitted, SPARSE: sparse}, held


def held_out_pairs(comparisons: pd.DataFrame, held: Sequence[Pair]) -> pd.DataFrame:
    """Exact probabilities of the held-out pairs: `task_1, task_2`, and P(task 1), `shown_first`, `shown_second`, `averaged`."""
    pairs = order_averages(among(comparisons, held))
    content, position = pairs["content"], pairs["position"]
    chances = {"shown_first": content + position, "shown_second": content - position, "averaged": content}
    return pairs[["task_1", "task_2"]].assign(**{name: special.expit(logit) for name, logit in chances.items()})


def among(comparisons: pd.DataFrame, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Usable comparisons of the given pairs, in either order."""
    wanted = {frozenset(pair) for pair in pairs}
    ends = zip(comparisons["first"], comparisons["second"], strict=True)
    chosen = np.fromiter((frozenset(pair) in wanted for pair in ends), dtype=bool, count=len(comparisons))
    return comparisons[chosen & (comparisons["outcome"] == "chose").to_numpy()]


@dataclass(frozen=True, eq=False)
class Fit:
    """One model under one condition, and what it loses on the held-out pairs.

    Attributes
    ----------
    design, answers, position, model, penalty
        What was fitted to what; the penalty is missing (nan) for models without one.
    losses
        By how predictions are scored: mean over sets of answers, one number a held-out pair, in nats.
    largest
        Largest sigma of every set of answers; empty for models without sigmas.
    unconverged
        Sets of answers whose fit did not converge.
    """

    design: str
    answers: str
    position: bool
    model: str
    penalty: float
    losses: dict[str, Float[np.ndarray, " pairs"]]
    largest: Float[np.ndarray, " repeats"]
    unconverged: int

    @property
    def condition(self) -> tuple[str, str, bool]:
        """All but the model."""
        return self.design, self.answers, self.position


def fit_all(
    comparisons: pd.DataFrame,
    designs: Mapping[str, Sequence[Pair]],
    test: pd.DataFrame,
    settings: "ThurstoneRegularisationSettings",
) -> list[Fit]:
    """Fit every model to every design, with both kinds of answers, with a position term and without one."""
    found = []
    conditions = [
        (design, answers, position)
        for answers in dict.fromkeys(settings.answers)
        for design in designs
        for position in (True, False)
    ]
    for design, answers, position in tqdm(conditions, desc="fits", disable=None):
        tables = _answers(among(comparisons, designs[design]), answers, settings)
        for model, penalty, estimator in _estimators(settings.penalties, position):
            fits = [estimator.fit(table) for table in tables]
            scored = [scores(fit, test) for fit in fits]
            losses = {name: np.mean([each[name] for each in scored], axis=0) for name in (AS_SHOWN, AVERAGED)}
            largest = np.array([fit.sigmas.max() for fit in fits if fit.sigmas is not None])
            failed = sum(not fit.report.convergence.converged for fit in fits)
            found.append(Fit(design, answers, position, model, penalty, losses, largest, failed))
    return found


def _estimators(penalties: Sequence[float], position: bool) -> list[tuple[str, float, Estimator]]:
    plain_ones: list[tuple[str, float, Estimator]] = [
        (BRADLEY_TERRY, math.nan, BradleyTerry(position=position, errors="none")),
        (THURSTONE, math.nan, Thurstone(position=position, errors="none")),
    ]
    return plain_ones + [
        (SIGMAS, penalty, ThurstoneSigmas(penalty=penalty, position=position, errors="none")) for penalty in penalties
    ]


def _answers(exact: pd.DataFrame, kind: str, settings: "ThurstoneRegularisationSettings") -> list[pd.DataFrame]:
    """What is fitted: the exact probabilities, or several sets of draws from them, the same for every model."""
    if kind == EXACT:
        return [exact]
    sets = []
    for number in range(settings.repeats):
        random = np.random.default_rng([settings.seed, number])
        drawn = random.binomial(settings.draws, exact["p_first"].to_numpy()) / settings.draws
        sets.append(exact.drop(columns="logit").assign(p_first=drawn, weight=float(settings.draws)))
    return sets


def scores(fit: Utilities, test: pd.DataFrame) -> dict[str, Float[np.ndarray, " pairs"]]:
    """Cross-entropy of what a fit predicts of every held-out pair with its exact probabilities, in nats."""
    one, two = test["task_1"], test["task_2"]
    first = fit.cross_entropy(fit.eta(one, two, with_position=True), test["shown_first"].to_numpy())
    second = fit.cross_entropy(fit.eta(two, one, with_position=True), 1 - test["shown_second"].to_numpy())
    return {AS_SHOWN: (first + second) / 2, AVERAGED: fit.cross_entropy(fit.eta(one, two), test["averaged"].to_numpy())}


def comparable(test: pd.DataFrame, fits: Sequence[Fit]) -> tuple[pd.DataFrame, list[Fit]]:
    """Only the held-out pairs that every fit has a prediction for.

    Raises
    ------
    ValueError
        They are too few.
    """
    known = np.all([np.isfinite(fit.losses[AS_SHOWN]) for fit in fits], axis=0)
    if known.sum() < _LEAST_HELD_OUT:
        raise ValueError(
            f"{known.sum()} held-out pairs have answers on format, and two tasks with utilities in every fit; expected "
            f"{_LEAST_HELD_OUT}. `penchant preflight` shows which templates this model can answer."
        )
    kept = [replace(fit, losses={name: losses[known] for name, losses in fit.losses.items()}) for fit in fits]
    return test[known].reset_index(drop=True), kept
