"""Ridge regression for probes: one decomposition of a training set serves every alpha, target and permutation."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Float, Int

DEFAULT_ALPHAS = tuple(10.0 ** np.arange(-1, 8.5, 0.5))
"""Ridge penalties tried by default, on standardised features."""


@dataclass(frozen=True, eq=False)
class Ridge:
    """A training set, standardised and rotated to its principal axes.

    In the rotated features Z the Gram matrix is diagonal, so a fit at another alpha is a division and a prediction a
    product (Hoerl & Kennard 1970). The intercept is not penalised.

    Attributes
    ----------
    mean, scale
        Of the raw features on the training set.
    rotation
        `(d, r)`, from standardised features to Z.
    scores
        Z of the training set, `(n, r)`.
    variances
        Diagonal of the Gram matrix of Z.
    """

    mean: Float[np.ndarray, " d"]
    scale: Float[np.ndarray, " d"]
    rotation: Float[np.ndarray, "d r"]
    scores: Float[np.ndarray, "n r"]
    variances: Float[np.ndarray, " r"]

    @classmethod
    def decompose(cls, features: Float[np.ndarray, "n d"]) -> Self:
        """Standardise and rotate; the smaller of the two Gram matrices is decomposed."""
        features = np.asarray(features, dtype=np.float64)
        mean, scale = features.mean(axis=0), features.std(axis=0)
        scale = np.where(scale > 0, scale, 1.0)
        standard = (features - mean) / scale
        n, d = standard.shape
        if n <= d:
            variances, left = np.linalg.eigh(standard @ standard.T)
            kept = variances > variances.max(initial=0) * n * np.finfo(float).eps
            variances, left = variances[kept], left[:, kept]
            rotation = standard.T @ (left / np.sqrt(variances))
            scores = left * np.sqrt(variances)
        else:
            variances, rotation = np.linalg.eigh(standard.T @ standard)
            kept = variances > variances.max(initial=0) * d * np.finfo(float).eps
            variances, rotation = variances[kept], rotation[:, kept]
            scores = standard @ rotation
        return cls(mean, scale, rotation, scores, variances)

    def leave_one_out(
        self, targets: Float[np.ndarray, "n targets"], alphas: Sequence[float]
    ) -> Float[np.ndarray, "alphas targets"]:
        """Mean squared error of leave-one-out prediction, in closed form (Allen's PRESS)."""
        centred = targets - targets.mean(axis=0)
        projected = self.scores.T @ centred
        errors = np.empty((len(alphas), targets.shape[1]))
        for number, alpha in enumerate(alphas):
            shrunk = self.scores / (self.variances + alpha)
            leverage = 1 / len(targets) + np.einsum("nr,nr->n", shrunk, self.scores)
            residual = (centred - shrunk @ projected) / np.maximum(1 - leverage, 1e-12)[:, None]
            errors[number] = np.mean(residual**2, axis=0)
        return errors

    def choose_alphas(self, targets: Float[np.ndarray, "n targets"], alphas: Sequence[float]) -> Float[np.ndarray, " targets"]:
        """Alpha with the least leave-one-out error, for each target."""
        return np.asarray(alphas)[self.leave_one_out(targets, alphas).argmin(axis=0)]

    def predict(
        self,
        features: Float[np.ndarray, "m d"],
        targets: Float[np.ndarray, "n targets"],
        alphas: Float[np.ndarray, " targets"],
    ) -> Float[np.ndarray, "m targets"]:
        """Predictions at new features of the fits to `targets`, each at its own alpha."""
        rotated = ((np.asarray(features, dtype=np.float64) - self.mean) / self.scale) @ self.rotation
        centre = targets.mean(axis=0)
        return rotated @ self._coefficients(targets - centre, alphas) + centre

    def weights(
        self, targets: Float[np.ndarray, "n targets"], alphas: Float[np.ndarray, " targets"]
    ) -> tuple[Float[np.ndarray, "d targets"], Float[np.ndarray, " targets"]]:
        """Weights and intercepts in raw feature space, the standardisation folded back."""
        centre = targets.mean(axis=0)
        weights = (self.rotation @ self._coefficients(targets - centre, alphas)) / self.scale[:, None]
        return weights, centre - self.mean @ weights

    def _coefficients(
        self, centred: Float[np.ndarray, "n targets"], alphas: Float[np.ndarray, " targets"]
    ) -> Float[np.ndarray, "r targets"]:
        return (self.scores.T @ centred) / (self.variances[:, None] + np.asarray(alphas)[None, :])


def grouped_folds(groups: Sequence[str], n_folds: int, seed: int) -> Int[np.ndarray, " n"]:
    """Assign every row to a fold, whole groups at a time and folds as even as the groups allow.

    Raises
    ------
    ValueError
        There are fewer groups than folds, or fewer than two folds.
    """
    names, members, sizes = np.unique(np.asarray(groups), return_inverse=True, return_counts=True)
    if not 2 <= n_folds <= len(names):
        raise ValueError(f"{n_folds} folds for {len(names)} groups; expected at least 2 folds and no more than groups.")
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]  # largest groups first, ties in random order
    fold_of_group = np.empty(len(names), dtype=np.int64)
    filled = np.zeros(n_folds)
    for group in order:
        fold_of_group[group] = filled.argmin()
        filled[fold_of_group[group]] += sizes[group]
    return fold_of_group[members]


def cross_predict(
    features: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, "n targets"],
    folds: Int[np.ndarray, " n"],
    alphas: Sequence[float] = DEFAULT_ALPHAS,
) -> tuple[Float[np.ndarray, "n targets"], Float[np.ndarray, "folds targets"]]:
    """Held-out predictions of every row, alpha chosen inside each training part; one decomposition a fold.

    Returns
    -------
    Predictions, and the alpha chosen in each fold.
    """
    predictions = np.empty(targets.shape)
    chosen = []
    for fold in np.unique(folds):
        train, test = folds != fold, folds == fold
        ridge = Ridge.decompose(features[train])
        chosen.append(ridge.choose_alphas(targets[train], alphas))
        predictions[test] = ridge.predict(features[test], targets[train], chosen[-1])
    return predictions, np.stack(chosen)
