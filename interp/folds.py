"""Folds: rows dealt out by whole groups, and a table of features cut along them so that training sets share their sums."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Self

import numpy as np
from jaxtyping import Bool, Float, Int

from interp.shifted import Array, Place

TRAIN_ONLY = -1
"""Fold of a row that is trained on and never tested."""

_INNER_FOLDS = 5
_ORDINARY = 0.1
"""A feature whose variance in a training set is at least this share of that in the whole table loses no digits in its sums."""


def grouped_folds(
    groups: Sequence[Hashable] | np.ndarray, n_folds: int, seed: int, sizes: Float[np.ndarray, " n"] | None = None
) -> Int[np.ndarray, " n"]:
    """Assign every row to a fold, whole groups at a time and folds as even as the groups allow.

    Parameters
    ----------
    sizes
        What every row adds to its fold; default: 1.

    Raises
    ------
    ValueError
        There are fewer groups than folds, or fewer than two folds.
    """
    names, members = np.unique(np.asarray(groups), return_inverse=True)
    if not 2 <= n_folds <= len(names):
        raise ValueError(
            f"{n_folds} folds for {len(names)} groups; expected at least 2 folds and no more than groups. "
            "Ask for fewer folds, or collect more groups."
        )
    weight = np.bincount(members, weights=sizes)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-weight[order], kind="stable")]  # largest groups first, ties in random order
    fold_of_group = np.empty(len(names), dtype=np.int64)
    filled = np.zeros(n_folds)
    for group in order:
        fold_of_group[group] = filled.argmin()
        filled[fold_of_group[group]] += weight[group]
    return fold_of_group[members]


def less_group_means(
    values: Float[np.ndarray, "n columns"],
    groups: Int[np.ndarray, " n"] | None,
    rows: Bool[np.ndarray, " n"],
    train: Bool[np.ndarray, " n"],
) -> Float[np.ndarray, "rows columns"]:
    """Some rows of a table, less the means of their groups over the training rows; without groups, as they are.

    Raises
    ------
    ValueError
        A group has no training row.
    """
    if groups is None:
        return values[rows]
    sizes = np.bincount(groups[train], minlength=groups.max() + 1)
    if not sizes[groups[rows]].all():
        raise ValueError(
            "A group whose mean is to be taken off is held out whole, so its mean is not known; split by task, or do not "
            "demean."
        )
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, groups[train], values[train])
    return values[rows] - (sums / np.maximum(sizes, 1)[:, None])[groups[rows]]


@dataclass(frozen=True, eq=False)
class Standardised:
    """A training set of features: each with mean zero and standard deviation 1 there, or zero where it is constant.

    Attributes
    ----------
    mean, scale
        Of the raw features; the scale of a constant one is 1.
    rows
        The standardised features.
    gram
        Their inner products over rows, where they are known already.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    rows: Float[np.ndarray, "n d"]
    gram: Array | None = None

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"], place: Place) -> Self:
        """Standardise.

        Raises
        ------
        ValueError
            Features are not a table of two or more rows of finite numbers.
        """
        features = np.asarray(features)
        if features.dtype not in (np.float32, np.float64):
            features = features.astype(np.float64)
        if features.ndim != 2 or features.shape[0] < 2 or features.shape[1] < 1:
            raise ValueError(f"Features have the shape {features.shape}; expected two or more rows and one or more columns.")
        mean = features.mean(axis=0, dtype=np.float64)
        if not np.isfinite(mean).all():
            row, column = np.argwhere(~np.isfinite(features))[0]
            raise ValueError(
                f"Feature {column} of row {row} is {features[row, column]}; expected finite numbers. Leave such rows out."
            )
        # Centred twice, so that a mean rounded to float32 does no harm and a table of float32 needs no copy in float64.
        dtype = np.result_type(features.dtype, place.dtype)
        rows = np.subtract(features, mean.astype(dtype), dtype=dtype).astype(place.dtype, copy=False)
        left = rows.mean(axis=0, dtype=np.float64)
        variance = np.mean(np.square(rows), axis=0, dtype=np.float64) - left**2
        constant = variance <= 1e-4 * left**2  # what is left after centring is rounding, and nothing else varies
        scale = np.where(constant, 1.0, np.sqrt(np.maximum(variance, 0)))
        rows -= left.astype(place.dtype)
        rows /= scale.astype(place.dtype)
        rows[:, constant] = 0
        return cls(mean, scale, rows)


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Rows that a probe is fitted to, and those that it then predicts.

    Attributes
    ----------
    rows
        Which rows of the table are trained on.
    features
        Those rows, standardised.
    held
        Which rows are predicted, and the fold for whose sake.
    """

    rows: Bool[np.ndarray, " n"]
    features: Standardised
    held: tuple[tuple[int, Bool[np.ndarray, " n"]], ...]


@dataclass(frozen=True, eq=False)
class FoldTable:
    """A table of features cut into folds, whose training sets are derived from one standardised copy of it.

    A training set has its own mean and scale. Both are applied to sums of the whole table less those of the folds left out,
    which is exact: with rows x standardised on the whole, and mean m and scale s of n training rows in those units, the
    training set's inner products are (sum x x' - n m m') / (s s').

    Attributes
    ----------
    folds
        Fold of each row; `TRAIN_ONLY` for those that no fold tests.
    whole
        All rows, standardised.
    demean
        Group of each row, if the means that groups have in a training set are taken off, there and where it predicts.
    """

    features: Float[np.ndarray, "n d"]
    folds: Int[np.ndarray, " n"]
    place: Place
    whole: Standardised
    demean: Int[np.ndarray, " n"] | None = None

    @classmethod
    def of(
        cls,
        features: Float[np.ndarray, "n d"],
        folds: Int[np.ndarray, " n"],
        place: Place,
        demean: Int[np.ndarray, " n"] | None = None,
    ) -> Self:
        """Cut a table.

        Raises
        ------
        ValueError
            There are not as many folds as rows, or only one fold, or see `Standardised.of`.
        """
        folds = np.asarray(folds)
        if len(folds) != len(features) or len(np.unique(folds)) < 2:
            raise ValueError(
                f"{len(folds)} entries for {len(features)} rows name {len(np.unique(folds))} folds; expected one entry a row "
                "and at least two folds, as from grouped_folds."
            )
        return cls(features, folds, place, Standardised.of(features, place), demean)

    @cached_property
    def names(self) -> list[int]:
        """The folds that are tested."""
        return np.unique(self.folds[self.folds != TRAIN_ONLY]).tolist()

    def training_sets(self) -> Iterator[TrainingSet]:
        """For every fold, all the others."""
        for fold in self.names:
            test = self.folds == fold
            yield TrainingSet(~test, self.without(fold), ((fold, test),))

    def inner_training_sets(self, groups: Int[np.ndarray, " n"] | None = None, seed: int = 0) -> Iterator[TrainingSet]:
        """For every fold, its training set once more in folds: all the rows of that set that are tested are predicted.

        The other folds serve, where there are two or more, and what is fitted without two of them serves both. Otherwise the
        training set is cut into five that keep `groups` whole.
        """
        if len(self.names) > 2:
            for one, other in combinations(self.names, 2):
                first, second = self.folds == one, self.folds == other
                yield TrainingSet(~(first | second), self.without(one, other), ((one, second), (other, first)))
            return
        groups = np.arange(len(self.folds)) if groups is None else groups
        for fold in self.names:
            (train,) = np.nonzero(self.folds != fold)
            inner = np.full(len(self.folds), TRAIN_ONLY)
            inner[train] = grouped_folds(groups[train], min(_INNER_FOLDS, len(np.unique(groups[train]))), seed)
            part = FoldTable.of(
                self.features[train], inner[train], self.place, None if self.demean is None else self.demean[train]
            )
            for number in part.names:
                held = inner == number
                yield TrainingSet((self.folds != fold) & ~held, part.without(number), ((fold, held),))

    def centred(
        self, values: Float[np.ndarray, "n columns"], rows: Bool[np.ndarray, " n"], train: Bool[np.ndarray, " n"]
    ) -> Float[np.ndarray, "rows columns"]:
        """Some rows of any table, less the means of their groups over the training rows, if groups are demeaned."""
        return less_group_means(values, self.demean, rows, train)

    def without(self, *left_out: int) -> Standardised:
        """Training set of all the folds but these, standardised on itself alone."""
        train = ~np.isin(self.folds, left_out)
        if self.demean is not None:
            return Standardised.of(self.centred(self.features, train, train), self.place)
        n, d = int(train.sum()), self.whole.rows.shape[1]
        kept = [fold for fold in self._parts if fold not in left_out]
        sums, squares = (np.sum([each[fold] for fold in kept], axis=0) for each in self._moments)
        mean = sums / n
        variance = np.where(self._constant, 1.0, squares / n - mean**2)
        if variance.min() < _ORDINARY:
            return Standardised.of(self.features[train], self.place)
        scale = np.sqrt(variance)
        rows = self.whole.rows[train]
        rows -= mean.astype(rows.dtype)
        rows /= scale.astype(rows.dtype)
        gram = None
        if n > d:
            gram = sum(self._grams[fold] for fold in kept)
            here, spread = self.place.put(mean), self.place.put(scale)
            gram = (gram - n * here[:, None] * here) / (spread[:, None] * spread)
        return Standardised(self.whole.mean + self.whole.scale * mean, self.whole.scale * scale, rows, gram)

    @cached_property
    def _constant(self) -> Bool[np.ndarray, " d"]:
        return np.asarray(~self.whole.rows.any(axis=0))

    @cached_property
    def _parts(self) -> dict[int, np.ndarray]:
        return {int(fold): self.whole.rows[self.folds == fold] for fold in np.unique(self.folds)}

    @cached_property
    def _moments(self) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
        sums = {fold: part.sum(axis=0, dtype=np.float64) for fold, part in self._parts.items()}
        return sums, {fold: np.square(part).sum(axis=0, dtype=np.float64) for fold, part in self._parts.items()}

    @cached_property
    def _grams(self) -> dict[int, Array]:
        parts = {fold: self.place.put(part) for fold, part in self._parts.items()}
        return {fold: part.T @ part for fold, part in parts.items()}
