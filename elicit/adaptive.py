"""Adaptive designs: which pairs to ask next, given what the answers so far imply. Batch by batch.

A design is a rule from the state after a batch to the pairs of the next; `active.py` asks them and decides when to stop.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import ndimage, special

Places = Int[np.ndarray, "pairs 2"]
"""Pairs as places in the list of tasks."""

_CANDIDATES = 400_000
"""Of more pairs than this, so many are drawn at random and the best of them taken."""
_GRID = 144
_MAX_RATIO = 12.0
_CHOICE_PRIOR = 0.25
"""Precision of the prior of `BradleyTerry`."""


@dataclass(frozen=True, eq=False)
class State:
    """What is known after a batch.

    Attributes
    ----------
    means
        Utility of every task, in logits; zero for one without an answer.
    met
        Which pairs were asked, symmetric; the diagonal is true.
    precision
        Information about the utilities: the Hessian of the fit with its prior, `(tasks, tasks)`.
    noise
        Exact answers: the standard deviation of what a pair owes to itself alone, in logits; the precision is then in units
        of its inverse square. None where answers are single choices.
    """

    means: Float[np.ndarray, " tasks"]
    met: Bool[np.ndarray, "tasks tasks"]
    precision: Float[np.ndarray, "tasks tasks"]
    noise: float | None = None

    @classmethod
    def of(
        cls,
        ends: tuple[Int[np.ndarray, " answers"], Int[np.ndarray, " answers"]],
        weight: Float[np.ndarray, " answers"],
        means: Float[np.ndarray, " tasks"],
        met: Bool[np.ndarray, "tasks tasks"],
        noise: float | None,
    ) -> "State":
        """State after answers between `ends`, each with a weight: its curvature, or 1 for an exact one.

        The prior of exact answers is as wide as the utilities found so far, so that what is not joined stays unknown.
        """
        (first, second), n = ends, len(means)
        prior = _CHOICE_PRIOR if noise is None else min(max(noise**2 / max(float(means.var()), 1e-12), 1e-6), 1.0)
        laplacian = np.zeros((n, n))
        np.add.at(laplacian, (first, second), -weight)
        laplacian += laplacian.T
        laplacian[np.diag_indices(n)] = prior - laplacian.sum(axis=1)
        return cls(means, met, laplacian, noise)

    @cached_property
    def variances(self) -> Float[np.ndarray, "tasks tasks"]:
        """Variance of the difference of every two utilities."""
        covariance = np.linalg.inv(self.precision)
        diagonal = np.diag(covariance)
        return np.maximum(diagonal[:, None] + diagonal[None, :] - 2 * covariance, 0.0)

    def candidates(self, random: np.random.Generator) -> Places:
        """Pairs that were not asked, at most 400,000 of them."""
        n = len(self.means)
        if n * (n - 1) // 2 <= 2 * _CANDIDATES:
            pairs = np.argwhere(np.triu(~self.met, 1))
        else:
            drawn = random.integers(n, size=(3 * _CANDIDATES, 2))
            drawn = np.unique(np.sort(drawn, axis=1), axis=0)
            pairs = drawn[~self.met[drawn[:, 0], drawn[:, 1]]]
        return pairs if len(pairs) <= _CANDIDATES else pairs[random.choice(len(pairs), _CANDIDATES, replace=False)]


class Design(Protocol):
    """A rule for the next pairs."""

    def propose(self, state: State, size: int, random: np.random.Generator) -> Places:
        """Return up to `size` pairs that were not asked before; fewer if there are no more."""
        ...


@dataclass(frozen=True)
class RandomMatching:
    """Random pairs, every task as often as any other."""

    def propose(self, state: State, size: int, random: np.random.Generator) -> Places:
        """See `Design`."""
        pairs = state.candidates(random)
        return matched(pairs, random.random(len(pairs)), size)


@dataclass(frozen=True)
class Brackets:
    """Neighbours in the ranking so far: brackets of two adjacent ranks, or the nearest ones that have not met."""

    def propose(self, state: State, size: int, random: np.random.Generator) -> Places:
        """See `Design`."""
        pairs = state.candidates(random)
        rank = np.argsort(np.lexsort((random.random(len(state.means)), state.means)))
        apart = np.abs(rank[pairs[:, 0]] - rank[pairs[:, 1]])
        return matched(pairs, -apart - random.random(len(pairs)) / 2, size)


@dataclass(frozen=True)
class PercentileRule:
    """Random pairs among those that are close and little asked.

    Eligible are pairs whose difference of utilities and whose sum of degrees are both within a percentile of all pairs not
    asked yet (Mazeika et al. 2025); both limits are relaxed until there are enough.

    Attributes
    ----------
    percentile
        Of either, from 0 to 100.
    relax
        Factor of the percentile with every relaxation.
    """

    percentile: float = 30.0
    relax: float = 1.5

    def propose(self, state: State, size: int, random: np.random.Generator) -> Places:
        """See `Design`."""
        pairs = state.candidates(random)
        apart = np.abs(state.means[pairs[:, 0]] - state.means[pairs[:, 1]])
        degree = state.met.sum(axis=1)
        degrees = degree[pairs].sum(axis=1)
        percentile = min(self.percentile, 100.0)
        eligible = _within(apart, percentile) & _within(degrees, percentile)
        while eligible.sum() < size and percentile < 100.0:
            percentile = min(percentile * self.relax, 100.0)
            eligible = _within(apart, percentile) & _within(degrees, percentile)
        chosen = pairs[eligible]
        return chosen[random.permutation(len(chosen))[:size]]


@dataclass(frozen=True)
class DOptimal:
    """Pairs that shrink the joint uncertainty most: the greatest gain in log-determinant of the information, as a matching."""

    def propose(self, state: State, size: int, random: np.random.Generator) -> Places:
        """See `Design`."""
        pairs = state.candidates(random)
        first, second = pairs.T
        variance = state.variances[first, second]
        p = special.expit(state.means[first] - state.means[second])
        information = p * (1 - p) if state.noise is None else 1.0
        return matched(pairs, np.log1p(information * variance) + 1e-9 * random.random(len(pairs)), size)


@dataclass(frozen=True)
class InformationGain:
    """Pairs whose answers say most about which task is worth more: the expected information of a choice, as a matching.

    With the difference of utilities normal with mean m and variance v, that is H(E p) - E H(p), in nats, for p the logistic
    function of it (Houlsby et al. 2011, equation 2), the greater the closer and the less certain a pair is. Of an exact answer
    its sign is taken, with m and v in units of the noise: the whole answer is worth the same wherever m is (log(1 + v) / 2,
    which is D-optimality), and ranks then come slower.
    """

    def propose(self, state: State, size: int, random: np.random.Generator) -> Places:
        """See `Design`."""
        pairs = state.candidates(random)
        first, second = pairs.T
        unit = 1.0 if state.noise is None else state.noise
        apart = (state.means[first] - state.means[second]) / unit
        gain = choice_information(apart, np.sqrt(state.variances[first, second]))
        return matched(pairs, gain + 1e-9 * random.random(len(pairs)), size)


def noise_of(residual_sd: float | None, log_odds: Float[np.ndarray, " answers"]) -> float:
    """Noise of exact answers: the residual of the fit, or, where nothing is left to judge it by, half of all variance."""
    if residual_sd is not None and np.isfinite(residual_sd) and residual_sd > 0:
        return float(residual_sd)
    return max(float(np.sqrt(np.mean(log_odds**2) / 2)), 1e-6)


def _within(values: np.ndarray, percentile: float) -> Bool[np.ndarray, " pairs"]:
    return values <= np.percentile(values, percentile) if len(values) else np.zeros(0, dtype=bool)


def choice_information(mean: Float[np.ndarray, " pairs"], sd: Float[np.ndarray, " pairs"]) -> Float[np.ndarray, " pairs"]:
    """Expected information of a choice about a normal difference of utilities, in nats; from a table, to about .002.

    The table is over mean / sqrt(1 + sd^2) and sd / (1 + sd), and of the root, which is nearly linear in a small sd.
    """
    ratio = np.minimum(np.abs(mean) / np.sqrt(1 + sd**2), _MAX_RATIO) / _MAX_RATIO
    root = ndimage.map_coordinates(_information_roots(), np.stack([ratio, sd / (1 + sd)]) * (_GRID - 1), order=1)
    return root**2


@lru_cache(maxsize=1)
def _information_roots() -> Float[np.ndarray, "ratios sds"]:
    z = np.linspace(-8, 8, 1601)
    density = np.exp(-(z**2) / 2)
    share = np.linspace(0, 1, _GRID)
    sd = share / np.maximum(1 - share, 1e-3)
    found = np.empty((_GRID, _GRID))
    for column, spread in enumerate(sd):
        mean = np.linspace(0, _MAX_RATIO, _GRID) * np.sqrt(1 + spread**2)
        p = special.expit(mean[:, None] + spread * z)
        average = p @ density / density.sum()
        entropy = (special.entr(p) + special.entr(1 - p)) @ density / density.sum()
        found[:, column] = special.entr(average) + special.entr(1 - average) - entropy
    return np.sqrt(np.maximum(found, 0.0))


def matched(pairs: Places, worth: Float[np.ndarray, " pairs"], size: int) -> Places:
    """Up to `size` pairs: the greedy matching of greatest worth, then that of the rest, and so on.

    In one matching no task is in two pairs, and a pair is in it if it is the most worthy of both its tasks among those left
    (locally dominant pairs, Preis 1999: the same as taking the best pair again and again, without the loop).
    """
    if not len(pairs):
        return pairs
    rest = pairs[np.argsort(-worth, kind="stable")]
    n, chosen = int(pairs.max()) + 1, [rest[:0]]
    while sum(map(len, chosen)) < size and len(rest):
        in_matching = np.zeros(len(rest), dtype=bool)
        open_ = np.arange(len(rest))
        while len(open_):
            best = np.full((2, n), len(rest))
            for end in (0, 1):
                best[end, rest[open_[::-1], end]] = open_[::-1]  # the last one written, the best, stays
            best_of = best.min(axis=0)
            both = open_[(best_of[rest[open_, 0]] == open_) & (best_of[rest[open_, 1]] == open_)]
            in_matching[both] = True
            taken = np.zeros(n, dtype=bool)
            taken[rest[both]] = True
            open_ = open_[~taken[rest[open_]].any(axis=1)]
        chosen.append(rest[in_matching])
        rest = rest[~in_matching]
    return np.concatenate(chosen)[:size]
