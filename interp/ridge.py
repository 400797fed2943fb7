"""Ridge regression for probes: one decomposition of a training set serves every alpha, target and permutation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Self

import numpy as np
from jaxtyping import Float, Int

from interp.alphas import DEFAULT_ALPHAS, AlphaErrors, check_alphas
from interp.folds import FoldTable, Standardised, TrainingSet, grouped_folds
from interp.shifted import Array, Place, Precision, Shifted

__all__ = [
    "DEFAULT_ALPHAS",
    "AlphaErrors",
    "Ridge",
    "cross_predict",
    "cross_predict_path",
    "grouped_folds",
    "held_out_errors",
    "predict_folds",
]

Choice = Literal["leave_one_out", "folds"]
"""How alpha is chosen inside a training set."""

_BLOCK = 512
"""Columns (alphas times targets) worked on at once: enough for a matrix product, few enough for memory."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """A training set, standardised and decomposed; the intercept is not penalised (Hoerl & Kennard 1970).

    With standardised rows S, the smaller of K = S S' and S' S is decomposed once, and (K + alpha I)^-1 costs next to nothing
    for every alpha. Of the columns of `targets` none costs more than its share of a matrix product.

    Attributes
    ----------
    train
        The standardised training set.
    place
        Where and how precisely it is computed with.
    rows
        The standardised features there.
    shifted
        The decomposition.
    """

    train: Standardised
    place: Place
    rows: Array
    shifted: Shifted

    @classmethod
    def decompose(cls, features: Float[np.ndarray, "n d"], *, dtype: Precision = "float64", device: str = "auto") -> Self:
        """Standardise and decompose.

        Parameters
        ----------
        dtype
            What is computed with. Means, scales and errors are accumulated in float64 either way.
        device
            `auto`: a GPU where there is one, and numpy otherwise; or `numpy`, or a torch device.

        Raises
        ------
        ValueError
            Features are not a table of two or more rows of finite numbers.
        """
        place = Place.of(dtype, device)
        return cls.of(Standardised.of(features, place), place)

    @classmethod
    def of(cls, train: Standardised, place: Place) -> Self:
        """Decompose a training set that is standardised already."""
        rows = place.put(train.rows)
        n, d = train.rows.shape
        gram = rows @ rows.T if n <= d else rows.T @ rows if train.gram is None else train.gram
        return cls(train, place, rows, place.decompose(gram))

    def leave_one_out_errors(self, targets: Float[np.ndarray, "n targets"], alphas: Sequence[float]) -> AlphaErrors:
        """Squared errors of leave-one-out prediction in closed form (Allen's PRESS), with their standard error over rows.

        A row's residual is divided by 1 - h, with h its leverage (Allen 1974); means and scales are those of all rows.
        """
        tried = check_alphas(alphas)
        levels, centred = self._levels(tried), self._centred(targets)
        basis, rotated = self._basis, self._rotate(centred)
        inflation = (1 / self._unlevered(levels)).T[:, :, None]
        if self._wide:
            inflation = inflation * levels[:, None]
        mean, fourth = np.empty((2, len(tried), targets.shape[1]))
        for columns in _blocks(targets.shape[1], len(tried)):
            error = (basis @ self.shifted.solve(rotated[:, columns], levels)).reshape(len(targets), len(tried), -1)
            if not self._wide:
                error -= centred[:, None, columns]
            error *= inflation
            error *= error
            mean[:, columns] = self.place.mean(error)
            error *= error
            fourth[:, columns] = self.place.mean(error)
        n = len(targets)
        return AlphaErrors(tried, mean, np.sqrt(np.maximum(fourth - mean**2, 0) / (n - 1)))

    def choose_alphas(
        self, targets: Float[np.ndarray, "n targets"], alphas: Sequence[float], *, one_standard_error: bool = False
    ) -> Float[np.ndarray, " targets"]:
        """Alpha with the least leave-one-out error, for each target; see `AlphaErrors.choose` for the other rule."""
        return self.leave_one_out_errors(targets, alphas).choose(one_standard_error=one_standard_error)

    def predict(
        self,
        features: Float[np.ndarray, "m d"],
        targets: Float[np.ndarray, "n targets"],
        alphas: Float[np.ndarray, " targets"],
    ) -> Float[np.ndarray, "m targets"]:
        """Predictions at new features of the fits to `targets`, each at its own alpha."""
        return self.place.get(self._standardise(features) @ self._weights(targets, alphas)) + targets.mean(axis=0)

    def predict_path(
        self, features: Float[np.ndarray, "m d"], targets: Float[np.ndarray, "n targets"], alphas: Sequence[float]
    ) -> Float[np.ndarray, "alphas m targets"]:
        """Predictions at new features of the fits to `targets`, at every alpha."""
        levels, new = self._levels(check_alphas(alphas)), self._standardise(features)
        rotated = self._rotate(self._centred(targets))
        path = np.empty((len(levels), len(features), targets.shape[1]))
        for columns in _blocks(targets.shape[1], len(levels)):
            found = self.place.get(new @ self._expand(self.shifted.solve(rotated[:, columns], levels)))
            path[:, :, columns] = found.reshape(len(features), len(levels), -1).swapaxes(0, 1)
        return path + targets.mean(axis=0)

    def weights(
        self, targets: Float[np.ndarray, "n targets"], alphas: Float[np.ndarray, " targets"]
    ) -> tuple[Float[np.ndarray, "d targets"], Float[np.ndarray, " targets"]]:
        """Weights and intercepts in raw feature space, the standardisation folded back."""
        weights = self.place.get(self._weights(targets, alphas)) / self.train.scale[:, None]
        return weights, targets.mean(axis=0) - self.train.mean @ weights

    @property
    def _wide(self) -> bool:
        return self.rows.shape[0] <= self.rows.shape[1]

    @cached_property
    def _basis(self) -> Array:
        """Takes solutions, in the axes of the decomposition, to fitted values (or, if wide, to these over alpha's residual)."""
        return self.shifted.vectors if self._wide else self.rows @ self.shifted.vectors

    def _levels(self, alphas: Float[np.ndarray, " alphas"]) -> Array:
        return self.place.put(np.maximum(alphas, self.shifted.floor))

    def _centred(self, targets: Float[np.ndarray, "n targets"]) -> Array:
        if targets.ndim != 2 or len(targets) != len(self.rows) or not np.isfinite(targets).all():
            raise ValueError(
                f"Targets have the shape {targets.shape} and {np.sum(~np.isfinite(targets))} values that are not finite; "
                f"expected finite numbers in {len(self.rows)} rows, one column a target. Leave rows without a value out."
            )
        return self.place.put(targets - targets.mean(axis=0))

    def _standardise(self, features: Float[np.ndarray, "m d"]) -> Array:
        return self.place.put((features - self.train.mean) / self.train.scale)

    def _rotate(self, centred: Array) -> Array:
        return self.shifted.rotate(centred if self._wide else self.rows.T @ centred)

    def _expand(self, solved: Array) -> Array:
        """Weights on standardised features, from solutions in the axes of the decomposition."""
        back = self.shifted.back(solved)
        return self.rows.T @ back if self._wide else back

    def _unlevered(self, levels: Array) -> Float[Array, "alphas n"]:
        """1 - h of every row, with 1/n of h for the intercept; of a wide training set it is alpha (K + alpha I)^-1 - 1/n."""
        n = len(self.rows)
        quadratic = self.shifted.quadratic(self._basis.T, levels)
        return (levels[:, None] * quadratic if self._wide else 1 - quadratic) - 1 / n

    def _weights(self, targets: Float[np.ndarray, "n targets"], alphas: Float[np.ndarray, " targets"]) -> Array:
        rotated = self._rotate(self._centred(targets))
        solved = rotated.copy() if isinstance(rotated, np.ndarray) else rotated.clone()
        for alpha in np.unique(alphas):
            columns = np.flatnonzero(np.asarray(alphas) == alpha)
            solved[:, columns] = self.shifted.solve(rotated[:, columns], self._levels(np.array([alpha])))
        return self._expand(solved)


def held_out_errors(
    features: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n targets"],
    folds: Int[np.ndarray, " n"],
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    dtype: Precision = "float64",
    device: str = "auto",
) -> AlphaErrors:
    """Squared error of predicting every fold from the others, at every alpha; the standard error is over folds."""
    table = FoldTable.of(features, folds, Place.of(dtype, device))
    errors = [_path_error(table, part, targets, alphas)[0][1] for part in table.training_sets()]
    return AlphaErrors.of_folds(check_alphas(alphas), np.stack(errors))


def cross_predict_path(
    features: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n targets"],
    folds: Int[np.ndarray, " n"],
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    dtype: Precision = "float64",
    device: str = "auto",
) -> Float[np.ndarray, "alphas n targets"]:
    """Prediction of every row by the fit that left its fold out, at every alpha: for curves, not for choosing one."""
    table = FoldTable.of(features, folds, Place.of(dtype, device))
    path = np.full((len(alphas), *targets.shape), np.nan)
    for part in table.training_sets():
        ((_, test),) = part.held
        path[:, test] = Ridge.of(part.features, table.place).predict_path(features[test], targets[part.rows], alphas)
    return path


def cross_predict(
    features: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n targets"],
    folds: Int[np.ndarray, " n"],
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    choice: Choice = "leave_one_out",
    one_standard_error: bool = False,
    dtype: Precision = "float64",
    device: str = "auto",
) -> tuple[Float[np.ndarray, "n targets"], Float[np.ndarray, "folds targets"]]:
    """Held-out predictions of every row, alpha chosen inside each training part; one decomposition a fold.

    Parameters
    ----------
    folds
        See `grouped_folds`; rows of the fold `TRAIN_ONLY` are trained on and have no prediction.
    choice
        `leave_one_out`, or `folds`: each other fold is predicted from the rest, which keeps groups whole inside the training
        part too, at the price of a decomposition for every two folds.
    one_standard_error
        The largest alpha within a standard error of the best, instead of the best; see `AlphaErrors.choose`.
    dtype, device
        As in `Ridge.decompose`.

    Returns
    -------
    Predictions, and the alpha chosen in each fold.

    Raises
    ------
    ValueError
        A target is constant, there are too few folds, alphas are not positive, or numbers are not finite.
    """
    table = FoldTable.of(features, folds, Place.of(dtype, device))
    return predict_folds(table, targets, alphas, choice=choice, one_standard_error=one_standard_error)


def predict_folds(
    table: FoldTable,
    targets: Float[np.ndarray, "n targets"],
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    *,
    choice: Choice = "leave_one_out",
    one_standard_error: bool = False,
    groups: Int[np.ndarray, " n"] | None = None,
    seed: int = 0,
) -> tuple[Float[np.ndarray, "n targets"], Float[np.ndarray, "folds targets"]]:
    """As `cross_predict`, of a table that is cut already; predictions are less the group means that it takes off.

    Parameters
    ----------
    groups, seed
        For `choice="folds"`, where fewer than three folds are tested: see `FoldTable.inner_training_sets`.
    """
    _check_targets(targets)
    inner = _inner_errors(table, targets, alphas, groups, seed) if choice == "folds" else {}
    predictions = np.full(targets.shape, np.nan)
    chosen = []
    for part in table.training_sets():
        ((fold, test),) = part.held
        ridge, values = Ridge.of(part.features, table.place), table.centred(targets, part.rows, part.rows)
        errors = inner[fold] if inner else ridge.leave_one_out_errors(values, alphas)
        chosen.append(errors.choose(one_standard_error=one_standard_error))
        predictions[test] = ridge.predict(table.centred(table.features, test, part.rows), values, chosen[-1])
    return predictions, np.stack(chosen)


def _inner_errors(
    table: FoldTable,
    targets: Float[np.ndarray, "n targets"],
    alphas: Sequence[float],
    groups: Int[np.ndarray, " n"] | None,
    seed: int,
) -> dict[int, AlphaErrors]:
    """For every fold, errors of predicting the folds of its training part from one another."""
    errors: dict[int, list[np.ndarray]] = {fold: [] for fold in table.names}
    for part in table.inner_training_sets(groups, seed):
        for fold, error in _path_error(table, part, targets, alphas):
            errors[fold].append(error)
    return {fold: AlphaErrors.of_folds(check_alphas(alphas), np.stack(found)) for fold, found in errors.items()}


def _path_error(
    table: FoldTable, part: TrainingSet, targets: Float[np.ndarray, "n targets"], alphas: Sequence[float]
) -> list[tuple[int, Float[np.ndarray, "alphas targets"]]]:
    """Mean squared error on what is held out of a training set, and the fold for whose sake it is."""
    ridge, values = Ridge.of(part.features, table.place), table.centred(targets, part.rows, part.rows)
    errors = []
    for fold, held in part.held:
        path = ridge.predict_path(table.centred(table.features, held, part.rows), values, alphas)
        errors.append((fold, np.mean((path - table.centred(targets, held, part.rows)) ** 2, axis=1)))
    return errors


def _check_targets(targets: Float[np.ndarray, "n targets"]) -> None:
    if targets.ndim != 2:
        raise ValueError(f"Targets have the shape {targets.shape}; expected one column a target, such as values[:, None].")
    constant = np.flatnonzero(np.ptp(targets, axis=0) == 0)
    if len(constant):
        value = targets[0, constant[0]]
        raise ValueError(f"Target {constant[0]} is {value} in every row; a probe needs values that differ. Leave it out.")


def _blocks(targets: int, alphas: int) -> Iterator[slice]:
    """Columns of the targets, so many at once that all their alphas make one block."""
    width = max(1, _BLOCK // alphas)
    for start in range(0, targets, width):
        yield slice(start, min(start + width, targets))
