"""Logistic and Bradley-Terry probes of many columns at once: every step is a ridge fit, so one decomposition serves them all.

A column is one set of labels or choices, such as a permutation. With logits u of the rows, the loss plus alpha / 2 times the
squared weights is lowered by replacing the loss with a parabola of curvature h above it, where h bounds its second derivative
(Boehning & Lindsay 1988); that leaves a ridge regression onto u - gradient / h with the penalty alpha / h. Steps are
extrapolated, and restarted where that overshoots (Beck & Teboulle 2009; O'Donoghue & Candes 2015).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import sparse, special

_TOLERANCE, _MAX_STEPS, _LOOK = 1e-5, 2000, 10


@dataclass(frozen=True, eq=False)
class ClassLoss:
    """Sum of log losses of the classes 0 and 1, whose second derivative is at most a quarter."""

    classes: Float[np.ndarray, "n columns"]
    has_intercept = True
    curvature = 0.25

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return self.classes.shape[1]

    def gradient(self, logits: Float[np.ndarray, "n k"], columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "n k"]:
        """Probability of class 1, less the class."""
        return special.expit(logits) - self.classes[:, columns]


@dataclass(frozen=True, eq=False)
class Choices:
    """Choices between tasks, and which row has which task in each column.

    Attributes
    ----------
    pairs
        Places of the first and the second task.
    share
        Of the answers for the first.
    weight
        Number of answers.
    row_of
        Row of every task, in each column.
    """

    pairs: Int[np.ndarray, "pairs 2"]
    share: Float[np.ndarray, " pairs"]
    weight: Float[np.ndarray, " pairs"]
    row_of: Int[np.ndarray, "tasks columns"]

    def logits(self, utilities: Float[np.ndarray, "tasks columns"]) -> Float[np.ndarray, "pairs columns"]:
        """Log-odds of the first task, from utilities by row."""
        by_task = np.take_along_axis(utilities, self.row_of, axis=0)
        return by_task[self.pairs[:, 0]] - by_task[self.pairs[:, 1]]

    def among(self, rows: Bool[np.ndarray, " tasks"]) -> Bool[np.ndarray, "pairs columns"]:
        """Which choices are between tasks of these rows, in each column."""
        inside = rows[self.row_of]
        return inside[self.pairs[:, 0]] & inside[self.pairs[:, 1]]

    def log_loss(
        self, utilities: Float[np.ndarray, "tasks columns"], rows: Bool[np.ndarray, " tasks"]
    ) -> Float[np.ndarray, " columns"]:
        """Mean log loss, in nats, of the choices between tasks of these rows."""
        logits, counted = self.logits(np.nan_to_num(utilities)), self.among(rows) * self.weight[:, None]
        return (counted * (np.logaddexp(0, logits) - self.share[:, None] * logits)).sum(axis=0) / counted.sum(axis=0)


@dataclass(frozen=True, eq=False)
class ChoiceLoss:
    """Sum of log losses of the choices among the rows that are trained on (Bradley & Terry 1952)."""

    choices: Choices
    train: Bool[np.ndarray, " tasks"]
    has_intercept = False

    @property
    def columns(self) -> int:
        """How many columns there are."""
        return self.choices.row_of.shape[1]

    @cached_property
    def curvature(self) -> float:
        """Bound of the second derivative: a quarter of the Laplacian's largest eigenvalue, itself bounded by the edges.

        Anderson & Morley (1985): it is at most the largest sum of the degrees of two neighbours.
        """
        ends = self.choices.pairs
        degree = np.bincount(ends.ravel(), weights=np.repeat(self.choices.weight, 2), minlength=len(self.train))
        return float((degree[ends[:, 0]] + degree[ends[:, 1]]).max() / 4)

    @cached_property
    def _incidence(self) -> sparse.csr_array:
        count = len(self.choices.pairs)
        sign, pair = np.repeat([[1.0, -1.0]], count, axis=0).ravel(), np.repeat(np.arange(count), 2)
        return sparse.csr_array((sign, (self.choices.pairs.ravel(), pair)), shape=(len(self.train), count))

    @cached_property
    def _counted(self) -> Float[np.ndarray, "pairs columns"]:
        return self.choices.among(self.train) * self.choices.weight[:, None]

    def gradient(self, logits: Float[np.ndarray, "n k"], columns: Int[np.ndarray, " k"]) -> Float[np.ndarray, "n k"]:
        """Of each row: the choices expected for its task, less those made."""
        row_of = self.choices.row_of[:, columns]
        utilities = np.zeros((len(self.train), len(columns)))
        utilities[self.train] = logits
        by_task = np.take_along_axis(utilities, row_of, axis=0)
        expected = special.expit(by_task[self.choices.pairs[:, 0]] - by_task[self.choices.pairs[:, 1]])
        slope = self._incidence @ (self._counted[:, columns] * (expected - self.choices.share[:, None]))
        by_row = np.empty_like(slope)
        np.put_along_axis(by_row, row_of, slope, axis=0)
        return by_row[self.train]


Loss = ClassLoss | ChoiceLoss
"""A convex loss of the logits of some rows, column by column."""


@dataclass(frozen=True, eq=False)
class Basis:
    """Rows of a standardised training set in orthogonal coordinates: `rows @ weights == scores @ coordinates`."""

    scores: Float[np.ndarray, "n r"]
    squares: Float[np.ndarray, " r"]
    axes: Float[np.ndarray, "d r"]

    @classmethod
    def of(cls, rows: Float[np.ndarray, "n d"]) -> Self:
        """Decompose the smaller of the rows' two Gram matrices."""
        rows = rows.astype(np.float64, copy=False)
        wide = rows.shape[0] <= rows.shape[1]
        squares, vectors = np.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        kept = squares > squares.max(initial=0) * len(squares) * np.finfo(np.float64).eps
        squares, vectors = squares[kept], vectors[:, kept]
        if wide:
            return cls(vectors * np.sqrt(squares), squares, rows.T @ vectors / np.sqrt(squares))
        return cls(rows @ vectors, squares, vectors)

    def fit(
        self, loss: Loss, alphas: Float[np.ndarray, "a columns"]
    ) -> tuple[Float[np.ndarray, "a d columns"], Float[np.ndarray, "a columns"]]:
        """Weights and intercepts that minimise loss + alpha / 2 |weights|^2, at several penalties for every column."""
        coordinates, intercepts = self._minimise(loss, alphas.ravel(), np.tile(np.arange(loss.columns), len(alphas)))
        weights = (self.axes @ coordinates).reshape(len(self.axes), *alphas.shape)
        return weights.swapaxes(0, 1), intercepts.reshape(alphas.shape)

    def _minimise(
        self, loss: Loss, alphas: Float[np.ndarray, " k"], columns: Int[np.ndarray, " k"]
    ) -> tuple[Float[np.ndarray, "r k"], Float[np.ndarray, " k"]]:
        result, intercepts = np.zeros((len(self.squares), len(columns))), np.zeros(len(columns))
        active = np.arange(len(columns))  # those not yet at their minimum
        last, ahead = np.zeros_like(result), np.zeros_like(result)
        last_level, level, momentum = np.zeros(len(columns)), np.zeros(len(columns)), np.ones(len(columns))
        curvature, squares = loss.curvature, self.squares[:, None]
        for step in range(_MAX_STEPS):
            slope = loss.gradient(self.scores @ ahead + level, columns[active])
            found = (squares * ahead - self.scores.T @ slope / curvature) / (squares + alphas[active] / curvature)
            found_level = level - slope.mean(axis=0) / curvature if loss.has_intercept else level
            moved, level_moved = found - ahead, found_level - level
            back = (moved * (found - last)).sum(axis=0) + level_moved * (found_level - last_level) < 0
            following = np.where(back, 1.0, (1 + np.sqrt(1 + 4 * momentum**2)) / 2)
            onward = np.where(back, 0.0, (momentum - 1) / following)
            ahead, level = found + onward * (found - last), found_level + onward * (found_level - last_level)
            last, last_level, momentum = found, found_level, following
            if step % _LOOK == _LOOK - 1 or step == _MAX_STEPS - 1:
                size = np.sqrt((squares * moved**2).sum(axis=0) / len(self.scores) + level_moved**2)  # in logits
                still = size > _TOLERANCE
                result[:, active], intercepts[active] = found, found_level
                if not still.any():
                    break
                active = active[still]
                last, ahead, last_level, level, momentum = (
                    part[..., still] for part in (last, ahead, last_level, level, momentum)
                )
        return result, intercepts
