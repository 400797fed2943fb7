"""Models beyond one curve of a difference: Davidson's ties, lapses, and a spread of its own for every task.

Each is a loss with its analytic gradient, minimised by L-BFGS-B; parameters are utilities, the position term, and further ones.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from joblib import Parallel, delayed
from scipy import optimize, special
from threadpoolctl import threadpool_limits

from elicit.comparisons import Comparisons
from elicit.newton import Convergence, bootstrap_counts

_SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class Extended(ABC):
    """A model with further parameters.

    Attributes
    ----------
    cells
        The comparisons.
    precision
        Of the normal prior on utilities; 0 for none.
    position
        Whether there is a position term.
    """

    cells: Comparisons
    precision: float
    position: bool

    @property
    def n_tasks(self) -> int:
        """Number of utilities."""
        return len(self.cells.task_ids)

    @abstractmethod
    def start(self) -> Float[np.ndarray, " further"]:
        """Where the further parameters start."""

    @abstractmethod
    def further_bounds(self) -> list[tuple[float | None, float | None]]:
        """Bounds of the further parameters."""

    def utility_bounds(self) -> tuple[float | None, float | None]:
        """Bounds of every utility."""
        return None, None

    @abstractmethod
    def cell_loss(
        self, eta: Float[np.ndarray, " cells"], further: Float[np.ndarray, " further"], weights: Float[np.ndarray, " cells"]
    ) -> tuple[float, Float[np.ndarray, " cells"], Float[np.ndarray, " further"]]:
        """Loss, and its derivatives by eta = u_first - u_second + position and by the further parameters."""

    def minimise(
        self,
        weights: Float[np.ndarray, " cells"],
        start: Float[np.ndarray, " parameters"] | None = None,
        tolerance: float = 1e-7,
    ) -> tuple[Float[np.ndarray, " parameters"], Convergence]:
        """Minimise the loss; the tolerance is of the largest entry of the projected gradient, per weight of a task."""
        n, first, second = self.n_tasks, self.cells.first, self.cells.second
        if start is None:
            start = np.concatenate([np.zeros(n + 1), self.start()])

        def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
            utilities, position = parameters[:n], parameters[n] if self.position else 0.0
            value, slope, further = self.cell_loss(
                utilities[first] - utilities[second] + position, parameters[n + 1 :], weights
            )
            pull = np.bincount(first, slope, n) - np.bincount(second, slope, n) + self.precision * utilities
            at_position = [slope.sum() if self.position else 0.0]
            return value + self.precision * float(utilities @ utilities) / 2, np.concatenate([pull, at_position, further])

        met = np.bincount(first, weights, n) + np.bincount(second, weights, n)
        limit = tolerance * max(1.0, float(met.max()))
        bounds = [self.utility_bounds()] * n + [(None, None), *self.further_bounds()]
        options = {"maxiter": 5000, "maxfun": 10_000, "ftol": 1e-15, "gtol": limit, "maxcor": 20}
        found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        low = np.array([-np.inf if low is None else low for low, _ in bounds])
        high = np.array([np.inf if high is None else high for _, high in bounds])
        projected = found.x - np.clip(found.x - found.jac, low, high)
        largest = float(np.abs(projected).max())
        # L-BFGS-B also ends where no step lowers the loss in float64 any more, which is as good as it gets.
        return found.x, Convergence(bool(largest <= 100 * limit), int(found.nit), largest, limit)

    def resampled(
        self, start: Float[np.ndarray, " parameters"], *, resamples: int, seed: int, n_jobs: int
    ) -> tuple[Float[np.ndarray, "resamples parameters"], int]:
        """Fit bootstrap resamples of whole pairs, warm-started, over all cores; also the number that did not converge."""

        def fit(number: int) -> tuple[np.ndarray, Convergence]:
            counts = bootstrap_counts(self.cells.n_pairs, seed, number)[self.cells.pair]
            return self.minimise(self.cells.weight * counts, start, 1e-4)

        work = (delayed(fit)(number) for number in range(resamples))
        with threadpool_limits(1):  # vectors this short are only slowed down by more threads
            found: list[Any] = list(Parallel(n_jobs=n_jobs, prefer="threads")(work))
        return np.stack([each[0] for each in found]), sum(not each[1].converged for each in found)


class Davidson(Extended):
    """Ties as a third outcome: P(tie) in proportion to nu times the geometric mean of both strengths (Davidson 1970).

    The further parameter is log nu.
    """

    def start(self) -> np.ndarray:
        """Log of the odds of a tie at equal strengths."""
        share = float(np.average(self.cells.p_tie, weights=self.cells.weight))
        return np.array([np.log(max(share, 1e-3) / max(1 - share, 1e-3) * 2)])

    def further_bounds(self) -> list[tuple[float | None, float | None]]:
        """Ties all but impossible, and all but certain."""
        return [(-15.0, 15.0)]

    def cell_loss(self, eta: np.ndarray, further: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Extended.cell_loss`."""
        log_nu, p_first, p_tie = further[0], self.cells.p_first, self.cells.p_tie
        p_second = 1 - p_first - p_tie
        scores = np.stack([eta / 2, np.full_like(eta, log_nu), -eta / 2])
        total = np.asarray(special.logsumexp(scores, axis=0))
        first, tie, second = np.exp(scores - total)
        value = float(weights @ (total - (p_first - p_second) * eta / 2 - p_tie * log_nu))
        slope = weights * ((first - second) - (p_first - p_second)) / 2
        return value, slope, np.array([weights @ (tie - p_tie)])


class Lapse(Extended):
    """A share of answers that are a fair coin: P = lapse / 2 + (1 - lapse) sigmoid(eta) (Wichmann & Hill 2001).

    The further parameter is the lapse rate, from 0 to .5.
    """

    def start(self) -> np.ndarray:
        """Few lapses."""
        return np.array([0.02])

    def further_bounds(self) -> list[tuple[float | None, float | None]]:
        """Up to every other answer."""
        return [(0.0, 0.5)]

    def cell_loss(self, eta: np.ndarray, further: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Extended.cell_loss`."""
        lapse, won, curve = further[0], self.cells.won, special.expit(eta)
        p = np.clip(lapse / 2 + (1 - lapse) * curve, _SMALLEST, 1 - _SMALLEST)
        value = -float(weights @ (won * np.log(p) + (1 - won) * np.log1p(-p)))
        by_p = weights * ((1 - won) / (1 - p) - won / p)
        return value, by_p * (1 - lapse) * curve * (1 - curve), np.array([by_p @ (0.5 - curve)])


@dataclass(frozen=True, eq=False)
class Sigmas(Extended):
    """Thurstone with a spread per task: z = (mu_i - mu_j + position) / sqrt(s_i^2 + s_j^2), P = Phi(z).

    The further parameters are log s, in [-2, 2] with a penalty of `penalty` times their sum of squares; mu is in [-10, 10].
    """

    penalty: float = 1.0

    def start(self) -> np.ndarray:
        """All alike."""
        return np.zeros(self.n_tasks)

    def further_bounds(self) -> list[tuple[float | None, float | None]]:
        """Of log s."""
        return [(-2.0, 2.0)] * self.n_tasks

    def utility_bounds(self) -> tuple[float | None, float | None]:
        """Of mu."""
        return -10.0, 10.0

    def cell_loss(self, eta: np.ndarray, further: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """See `Extended.cell_loss`."""
        variance, n = np.exp(2 * further), self.n_tasks
        first, second = self.cells.first, self.cells.second
        total = variance[first] + variance[second]
        root = np.sqrt(total)
        z = eta / root
        log_win, log_loss = special.log_ndtr(z), special.log_ndtr(-z)
        log_density = -(z**2) / 2 - np.log(2 * np.pi) / 2
        won = self.cells.won
        by_z = weights * ((1 - won) * np.exp(log_density - log_loss) - won * np.exp(log_density - log_win))
        shared = -by_z * z / total
        by_log_s = (np.bincount(first, shared, n) + np.bincount(second, shared, n)) * variance + 2 * self.penalty * further
        value = -float(weights @ (won * log_win + (1 - won) * log_loss)) + self.penalty * float(further @ further)
        return value, by_z / root, by_log_s
