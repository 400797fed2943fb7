"""False positives of the later stages: probes of utilities dealt to other tasks, and random directions tested as if made.

Utilities come from a frozen table and slopes from a dose-response, so nothing is asked of a model.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pandas as pd

from elicit import LeastSquares, regular_pairs
from experiments.findings import beats_baselines
from experiments.frozen import FrozenTable
from experiments.planted import is_used, slope_gaps
from interp import ProbeSweep
from store import Estimate

KNOWN = "activations know the utilities (probe)"
BEATS = "activations know the utilities, and more than any baseline"
USED = "a random direction is used (the whole loop)"
CONJUNCTIONS = (BEATS, USED)
"""Claims that need two things at once, so that less than 5 % is no fault of theirs."""

_TOGETHER = 50
"""Targets probed in one sweep, which share every decomposition. They share the permutations of their null too, whose luck makes
their claims a little alike: with 39 permutations, claims of 120 targets in one sweep varied by a fifth more than independent
ones (144 sweeps of noise)."""


class Probes(Protocol):
    """From labels to the probes of them: the test that an experiment puts its own labels to."""

    def __call__(self, labels: pd.DataFrame, *, seed: int) -> ProbeSweep:
        """Probe every target."""
        ...


def dealt_labels(table: FrozenTable, degree: int, n: int, seed: int) -> pd.DataFrame:
    """Utilities that have no relation to their tasks: of `n` random designs, each dealt to the tasks anew, a target each.

    As in `recovery`, in a design every task meets `degree` others, both orders.
    """
    estimator, random = LeastSquares(errors="none"), np.random.default_rng([seed, 7])
    found = []
    for number in range(n):
        pairs = regular_pairs(table.task_ids, degree, int(random.integers(2**31)))
        labels = estimator.fit(table.answers(pairs)).labels()
        found.append(labels.assign(task_id=random.permutation(labels["task_id"].to_numpy()), target=f"null {number}"))
    return pd.concat(found, ignore_index=True)


def probe_claims(labels: pd.DataFrame, probes: Probes) -> pd.DataFrame:
    """How often probes of the targets claim something, as rows of `false_positive_table` where there is nothing to claim."""
    targets, best = labels["target"].unique(), []
    for start in range(0, len(targets), _TOGETHER):
        some = targets[start : start + _TOGETHER]
        sweep = probes(labels[labels["target"].isin(some)], seed=start)
        best += [sweep.best(target) for target in some]
    claims = {KNOWN: [each["p_best"] <= 0.05 for each in best], BEATS: [beats_baselines(each) for each in best]}
    return pd.DataFrame([rate_row(claim, Estimate.of_share(made)) for claim, made in claims.items()])


def chance_of_use(organism: pd.DataFrame, untouched: pd.DataFrame, controls: int) -> Estimate:
    """How often a random direction would be said to be used: the false positives of the whole loop, by `is_used`.

    Every random direction in turn takes the place of the one tested, with `controls` of the others as its controls. About one
    in `controls + 1` stands out among the others whatever they do; whether its gap is surely above zero as well is what the
    models tell.
    """
    claims: list[bool] = []
    for _, part in organism[organism["is_random"].astype(bool)].groupby(["layer", "mode"]):
        for tested in part["direction"]:
            others = part.loc[part["direction"] != tested, "direction"].tolist()[:controls]
            both = (_as_tested(slopes, tested, others) for slopes in (part, untouched))
            gaps = slope_gaps(*both)
            claims += [is_used(row) for _, row in gaps[~gaps["is_random"]].iterrows()]
    return Estimate.of_share(claims)


def _as_tested(slopes: pd.DataFrame, tested: str, others: Sequence[str]) -> pd.DataFrame:
    part = slopes[slopes["direction"].isin([tested, *others])]
    return part.assign(is_random=part["direction"] != tested)


def rate_row(claim: str, rate: Estimate) -> dict[str, str | float]:
    """One row of `false_positive_table`."""
    return {"claim": claim, "rate": rate.value, "rate_low": rate.low, "rate_high": rate.high}
