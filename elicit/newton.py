"""Newton's method for losses of differences of utilities, many weightings of the same comparisons at once.

The loss is a sum over cells of weight times a convex function of eta = u_first - u_second (+ position), with a quadratic
prior. Newton directions come from preconditioned conjugate gradients on the sparse cells, so that cost is linear in them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from joblib import Parallel, delayed
from scipy import linalg, special
from scipy.sparse import coo_matrix, csr_matrix, diags_array
from scipy.sparse.csgraph import connected_components
from threadpoolctl import threadpool_limits

_MAX_STEPS = 100
_MAX_HALVINGS = 40
_ROUNDING = 1e-12
"""Share of a loss below which a rise is rounding."""
_RESAMPLE_TOLERANCE = 1e-4
"""A resample is noise: more digits of it are worth nothing."""
_DENSE = 1500
"""Up to so many parameters, many fits share one dense Cholesky factor as preconditioner."""
_BLOCK_ELEMENTS = 16_384
_CHUNK_FITS = 25
_CHUNK_ELEMENTS = 400_000
"""Cells times fits that are worked on at once: small enough for the cache, large enough for numpy."""

CellTerms = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Loss of every cell, and its first and second derivative by eta."""
CellLoss = Callable[[np.ndarray, np.ndarray], CellTerms]
"""From eta (cells, fits) and the share won (cells, 1)."""


def logistic(eta: Float[np.ndarray, "cells fits"], won: Float[np.ndarray, "cells 1"]) -> CellTerms:
    """Cross-entropy of sigmoid(eta) against the share won (Bradley & Terry 1952)."""
    p = special.expit(eta)
    value = np.log1p(np.exp(-np.abs(eta))) + np.maximum(eta, 0) - won * eta
    return value, p - won, p * (1 - p)


def probit(eta: Float[np.ndarray, "cells fits"], won: Float[np.ndarray, "cells 1"]) -> CellTerms:
    """Cross-entropy of Phi(eta) against the share won (Thurstone 1927, case V, with differences of standard deviation 1)."""
    log_win, log_loss = special.log_ndtr(eta), special.log_ndtr(-eta)
    log_density = -(eta**2) / 2 - np.log(2 * np.pi) / 2
    mills_win, mills_loss = np.exp(log_density - log_win), np.exp(log_density - log_loss)
    value = -won * log_win - (1 - won) * log_loss
    slope = -won * mills_win + (1 - won) * mills_loss
    curvature = won * mills_win * (eta + mills_win) + (1 - won) * mills_loss * (mills_loss - eta)
    return value, slope, curvature


def squared(eta: Float[np.ndarray, "cells fits"], target: Float[np.ndarray, "cells 1"]) -> CellTerms:
    """Half the squared distance of eta from a log-odds."""
    error = eta - target
    return error**2 / 2, error, np.ones_like(error)


@dataclass(frozen=True)
class Convergence:
    """How a fit ended.

    Attributes
    ----------
    converged
        Whether the gradient came below its tolerance.
    steps
        Newton steps, or iterations of L-BFGS.
    gradient, tolerance
        Largest entry of the gradient at the end, and what was asked for.
    """

    converged: bool
    steps: int
    gradient: float
    tolerance: float

    def __str__(self) -> str:
        verdict = "converged" if self.converged else "DID NOT CONVERGE"
        return f"{verdict} in {self.steps} steps (largest gradient {self.gradient:.1e}, tolerance {self.tolerance:.1e})"


@dataclass(frozen=True, eq=False)
class PairLoss:
    """The loss of a table of cells.

    Attributes
    ----------
    design
        `(cells, parameters)`: +1 for the task shown first, -1 for the second, and, last, 1 for the position term if any.
    target
        Share won, or log-odds, of every cell.
    cell_loss
        What a cell costs.
    precision
        Of the normal prior of every parameter; 0 for none.
    """

    design: csr_matrix
    target: Float[np.ndarray, " cells"]
    cell_loss: CellLoss
    precision: Float[np.ndarray, " parameters"]
    n_tasks: int

    @classmethod
    def of(
        cls,
        ends: tuple[Int[np.ndarray, " cells"], Int[np.ndarray, " cells"]],
        target: Float[np.ndarray, " cells"],
        n_tasks: int,
        *,
        cell_loss: CellLoss,
        precision: float,
        position: bool,
    ) -> "PairLoss":
        """Loss over the cells between `ends`; the prior is on utilities, not on the position term."""
        first, second = ends
        cells, width = len(first), 3 if position else 2
        columns, values = np.empty((cells, width), dtype=np.int32), np.ones((cells, width))
        columns[:, 0], columns[:, 1], values[:, 1] = first, second, -1.0
        if position:
            columns[:, 2] = n_tasks
        starts = np.arange(0, width * cells + 1, width)
        design = csr_matrix((values.ravel(), columns.ravel(), starts), shape=(cells, n_tasks + position))
        priors = np.full(n_tasks + position, precision)
        if position:
            priors[-1] = 0.0
        return cls(design, target, cell_loss, priors, n_tasks)

    def minimise(
        self, weights: Float[np.ndarray, "cells fits"], start: Float[np.ndarray, " parameters"], tolerance: float = 1e-11
    ) -> tuple[Float[np.ndarray, "parameters fits"], list[Convergence]]:
        """Minimise the loss under every column of weights, from one common start.

        Parameters
        ----------
        tolerance
            Of the largest entry of the gradient, in units of the largest weight that a task has.
        """
        parameters = np.repeat(start[:, None], weights.shape[1], axis=1)
        value, slope, curvature = self._weighted(parameters, weights)
        gradient = self._gradient(parameters, slope)
        limit = tolerance * np.maximum(1.0, (self._magnitudes[: self.n_tasks] @ weights).max(axis=0))
        first_norm = np.linalg.norm(gradient, axis=0)
        factor = self._factor(curvature) if weights.shape[1] > 1 and len(start) <= _DENSE else None
        steps = np.zeros(weights.shape[1], dtype=int)
        for _ in range(_MAX_STEPS):
            active = np.abs(gradient).max(axis=0) > limit
            if not active.any():
                break
            # Inexact Newton: a direction is solved no further than the step is worth, and than rounding lets it be.
            forcing = np.clip(np.linalg.norm(gradient, axis=0) / np.maximum(first_norm, 1e-300), 1e-4, 0.1)
            direction = self.solve(curvature, -gradient, forcing, factor)
            before, length = (parameters, value), np.where(active, 1.0, 0.0)
            for _ in range(_MAX_HALVINGS):
                parameters = before[0] + length * direction
                value, slope, curvature = self._weighted(parameters, weights)
                worse = (value > before[1] + _ROUNDING * np.abs(before[1])) & active
                if not worse.any():
                    break
                length = np.where(worse, length / 2, length)
            # The cells do not see the origin of a component, and the prior wants it at zero: exactly, not by small steps.
            parameters = self._at_origin(parameters)
            gradient = self._gradient(parameters, slope)
            steps += active
        largest = np.abs(gradient).max(axis=0)
        ends = zip(largest, steps, limit, strict=True)
        return parameters, [Convergence(bool(g <= most), int(count), float(g), float(most)) for g, count, most in ends]

    def solve(
        self,
        curvature: Float[np.ndarray, "cells fits"],
        right: Float[np.ndarray, "parameters fits"],
        tolerance: Float[np.ndarray, " fits"] | float,
        factor: Any = None,
    ) -> Float[np.ndarray, "parameters fits"]:
        """Solve Hessian x = right, each fit with its own curvature, up to `tolerance` of the norm of `right`.

        Without a prior the Hessian is singular along each component's origin, where the solution stays at zero.

        Parameters
        ----------
        factor
            Cholesky factor of a similar Hessian, as preconditioner; by default the diagonal of this one.
        """
        prior = self.precision[:, None]
        diagonal = _times(self._magnitudes, curvature) + prior if factor is None else None
        return _conjugate_gradients(
            lambda x: _times(self._transposed, curvature * _times(self.design, x)) + prior * x,
            _by_diagonal(diagonal) if diagonal is not None else _by_factor(factor),
            right,
            tolerance,
        )

    def solve_at(
        self, curvature: Float[np.ndarray, " cells"], right: Float[np.ndarray, "parameters columns"], tolerance: float = 1e-9
    ) -> Float[np.ndarray, "parameters columns"]:
        """Solve Hessian x = right for many columns with one curvature: the Hessian is built once, sparse."""
        weighted = self.design.multiply(curvature[:, None]).tocsr()
        hessian = csr_matrix(self._transposed @ weighted + diags_array(self.precision))
        return _conjugate_gradients(
            lambda x: _times(hessian, x), _by_diagonal(hessian.diagonal()[:, None]), right, np.full(right.shape[1], tolerance)
        )

    def dense_hessian(self, curvature: Float[np.ndarray, " cells"]) -> Float[np.ndarray, "parameters parameters"]:
        """Second derivative of the loss, as a dense matrix."""
        weighted = self.design.multiply(curvature[:, None]).tocsr()
        return np.asarray((self._transposed @ weighted).todense()) + np.diag(self.precision)

    def value(self, parameters: Float[np.ndarray, " parameters"], weights: Float[np.ndarray, " cells"]) -> float:
        """The loss, in nats."""
        return float(self._weighted(parameters[:, None], weights[:, None])[0][0])

    def curvature(
        self, parameters: Float[np.ndarray, " parameters"], weights: Float[np.ndarray, " cells"]
    ) -> Float[np.ndarray, " cells"]:
        """Weighted second derivative of every cell's loss by its eta."""
        return self._weighted(parameters[:, None], weights[:, None])[2][:, 0]

    @cached_property
    def _transposed(self) -> csr_matrix:
        return csr_matrix(self.design.T)

    @cached_property
    def _magnitudes(self) -> csr_matrix:
        return abs(self._transposed)

    @cached_property
    def _component(self) -> Int[np.ndarray, " tasks"]:
        ends = self.design.indices.reshape(len(self.target), -1)
        graph = coo_matrix((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(self.n_tasks, self.n_tasks))
        return connected_components(graph, directed=False)[1]

    def _at_origin(self, parameters: Float[np.ndarray, "parameters fits"]) -> Float[np.ndarray, "parameters fits"]:
        """Utilities with mean zero in every component."""
        size = np.bincount(self._component)
        if len(size) == 1:
            parameters[: self.n_tasks] -= parameters[: self.n_tasks].mean(axis=0)
            return parameters
        for fit in range(parameters.shape[1]):
            mean = np.bincount(self._component, parameters[: self.n_tasks, fit]) / size
            parameters[: self.n_tasks, fit] -= mean[self._component]
        return parameters

    def _weighted(self, parameters: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        eta = _times(self.design, parameters)
        total, slope, curvature = self.precision @ parameters**2 / 2, np.empty_like(eta), np.empty_like(eta)
        rows = max(1, _BLOCK_ELEMENTS // eta.shape[1])
        for begin in range(0, len(eta), rows):  # in blocks that stay in the cache
            block = slice(begin, begin + rows)
            value, slope[block], curvature[block] = self.cell_loss(eta[block], self.target[block, None])
            total = total + np.einsum("cf,cf->f", weights[block], value)
        slope *= weights
        curvature *= weights
        return total, slope, curvature

    def _gradient(self, parameters: np.ndarray, slope: np.ndarray) -> np.ndarray:
        return _times(self._transposed, slope) + self.precision[:, None] * parameters

    def _factor(self, curvature: Float[np.ndarray, "cells fits"]) -> Any:
        """Cholesky factor of the mean Hessian of all fits; a little is added, since without a prior it is singular."""
        hessian = self.dense_hessian(curvature.mean(axis=1))
        hessian[np.diag_indices(len(hessian))] += 1e-6 * np.trace(hessian) / len(hessian)
        return linalg.cho_factor(hessian, check_finite=False)


def _by_diagonal(diagonal: Float[np.ndarray, "parameters fits"]) -> Callable[[np.ndarray], np.ndarray]:
    inverse = 1 / np.where(diagonal > 0, diagonal, 1.0)
    return lambda residual: inverse * residual


def _by_factor(factor: Any) -> Callable[[np.ndarray], np.ndarray]:
    return lambda residual: linalg.cho_solve(factor, residual, check_finite=False)


def _conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray],
    precondition: Callable[[np.ndarray], np.ndarray],
    right: Float[np.ndarray, "parameters fits"],
    tolerance: Float[np.ndarray, " fits"] | float,
) -> Float[np.ndarray, "parameters fits"]:
    """Preconditioned conjugate gradients, every column on its own (Hestenes & Stiefel 1952)."""
    solution, residual = np.zeros_like(right), right.copy()
    search = preconditioned = precondition(residual)
    product = (residual * preconditioned).sum(axis=0)
    enough = tolerance * np.linalg.norm(right, axis=0)
    for _ in range(2 * len(right) + 50):
        open_ = np.linalg.norm(residual, axis=0) > enough
        if not open_.any():
            break
        applied = apply(search)
        along = (search * applied).sum(axis=0)
        step = np.where(open_ & (along > 0), product / np.where(along > 0, along, 1.0), 0.0)
        solution += step * search
        residual -= step * applied
        preconditioned = precondition(residual)
        previous, product = product, (residual * preconditioned).sum(axis=0)
        search = preconditioned + np.where(previous > 0, product / np.where(previous > 0, previous, 1.0), 0.0) * search
    return solution


def _times(matrix: csr_matrix, columns: Float[np.ndarray, "n fits"]) -> Float[np.ndarray, "m fits"]:
    """Matrix product; scipy's is several times faster on a vector than on a matrix of one column."""
    return (matrix @ columns[:, 0])[:, None] if columns.shape[1] == 1 else matrix @ columns


def resampled(
    loss: PairLoss,
    weights: Float[np.ndarray, " cells"],
    pair: Int[np.ndarray, " cells"],
    start: Float[np.ndarray, " parameters"],
    *,
    resamples: int,
    seed: int,
    n_jobs: int,
) -> tuple[Float[np.ndarray, "resamples parameters"], int]:
    """Fit bootstrap resamples of whole pairs, warm-started, in chunks over all cores.

    Every resample has its own random numbers and chunks do not depend on the number of workers, so neither does the result.

    Returns
    -------
    The parameters of every resample, and how many did not converge.
    """
    n_pairs = int(pair.max()) + 1
    size = max(1, min(_CHUNK_FITS, _CHUNK_ELEMENTS // len(pair)))
    chunks = [range(begin, min(begin + size, resamples)) for begin in range(0, resamples, size)]

    def fit(chunk: range) -> tuple[np.ndarray, int]:
        counts = np.stack([bootstrap_counts(n_pairs, seed, number)[pair] for number in chunk], axis=1)
        parameters, ends = loss.minimise(weights[:, None] * counts, start, _RESAMPLE_TOLERANCE)
        return parameters.T, sum(not end.converged for end in ends)

    with threadpool_limits(1):  # the chunks are what runs side by side
        found: list[Any] = list(Parallel(n_jobs=n_jobs, prefer="threads")(delayed(fit)(chunk) for chunk in chunks))
    return np.concatenate([each[0] for each in found]), sum(each[1] for each in found)


def bootstrap_counts(n_pairs: int, seed: int, number: int) -> Float[np.ndarray, " pairs"]:
    """How often each pair is in one resample of pairs: multinomial weights."""
    drawn = np.random.default_rng([seed, number]).integers(n_pairs, size=n_pairs)
    return np.bincount(drawn, minlength=n_pairs).astype(float)
