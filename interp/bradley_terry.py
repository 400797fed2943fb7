"""Bradley-Terry probe: what is read off two activations says which of the two is chosen, fitted straight on the choices."""

import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted

from interp.alphas import AlphaErrors, check_alphas
from interp.folds import grouped_folds
from interp.readout import PenalisedClassifier, validate

_TOLERANCE, _MAX_STEPS = 1e-8, 2000


def differences(
    items: Float[np.ndarray, "items d"], pairs: Int[np.ndarray, "comparisons 2"]
) -> Float[np.ndarray, "comparisons d"]:
    """Features of the first item less those of the second, one row a comparison: what `BradleyTerryProbe` is fitted to.

    Raises
    ------
    ValueError
        Pairs are not two places of items each.
    """
    pairs = np.asarray(pairs)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.min(initial=0) < 0 or pairs.max(initial=0) >= len(items):
        raise ValueError(
            f"Pairs have the shape {pairs.shape} and entries from {pairs.min(initial=0)} to {pairs.max(initial=0)}; expected "
            f"two columns of places from 0 to {len(items) - 1}."
        )
    return items[pairs[:, 0]] - items[pairs[:, 1]]


class BradleyTerryProbe(PenalisedClassifier):
    """P(first is chosen) = sigmoid(w' (x_first - x_second)), without intercept (Bradley & Terry 1952).

    Minimises the weighted sum of log losses plus alpha / 2 times the squared weights, on features scaled by their root mean
    square. Swapping the two items of a comparison changes nothing. The order in which they were shown does not enter either, so
    average it out, or have every pair in both orders.

    Parameters
    ----------
    alphas
        Penalties to choose from, by log loss on held-out pairs: all comparisons of a pair, in either order, are held out
        at once.
    one_standard_error
        The largest alpha within a standard error (over folds) of the best, instead of the best.
    n_folds, seed
        Of the pairs.

    Attributes
    ----------
    classes_
        0 and 1, or the two labels given.
    coef_, intercept_
        In raw feature space, `(1, d)` and 0: `items @ coef_[0]` is each item's utility, in logits.
    alpha_, errors_
        As of `RidgeProbe`, in nats.
    """

    method = "bradley_terry_probe"

    def fit(
        self,
        X: Float[np.ndarray, "comparisons d"],
        y: np.ndarray,
        sample_weight: Float[np.ndarray, " comparisons"] | None = None,
        groups: Sequence[Any] | None = None,
    ) -> Self:
        """Choose alpha and fit.

        Parameters
        ----------
        X
            See `differences`.
        y
            Probability that the first is chosen, 1 and 0 included; or one of two labels, the greater where the first is.
        sample_weight
            Of the comparisons, such as their number of answers.
        groups
            What is held out at once; default: rows that are equal up to their sign.

        Raises
        ------
        ValueError
            Numbers are not finite, `y` is neither probabilities nor of two classes, no comparison has weight, alphas are not
            positive, or there are fewer pairs than folds.
        """
        X, y = validate(self, X, y, dtype=np.float64, ensure_min_samples=2)
        chosen = self._probabilities(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        names = _pairs(X) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        used = weight > 0
        X, chosen, weight, names = X[used], chosen[used], weight[used], names[used]
        folds = grouped_folds(names, self.n_folds, self.seed, sizes=weight)
        alphas = np.sort(check_alphas(self.alphas))
        losses = []
        for fold in range(self.n_folds):
            train, test = folds != fold, folds == fold
            path = _path(X[train], chosen[train], weight[train], alphas)
            losses.append([_log_loss(X[test] @ each, chosen[test], weight[test]) / weight[test].sum() for each in path])
        self.errors_ = AlphaErrors.of_folds(alphas, np.array(losses)[:, :, None])
        self.alpha_ = float(self.errors_.choose(one_standard_error=self.one_standard_error)[0])
        self.coef_ = _path(X, chosen, weight, np.array([self.alpha_]))
        self.intercept_ = np.zeros(1)
        return self

    def score(self, X: Float[np.ndarray, "comparisons d"], y: np.ndarray, sample_weight: np.ndarray | None = None) -> float:
        """Share of choices that are predicted; of a probability, as much as it gives to the side predicted."""
        check_is_fitted(self)
        sides = self.decision_function(X) > 0
        chosen = self._probabilities(np.asarray(y))
        return float(np.average(np.where(sides, chosen, 1 - chosen), weights=sample_weight))

    def _probabilities(self, y: np.ndarray) -> Float[np.ndarray, " comparisons"]:
        """Probabilities that the first is chosen; also what the classes are called."""
        if y.dtype.kind in "biuf" and y.min() >= 0 and y.max() <= 1:
            self.classes_ = np.array([0, 1])
            return y.astype(float)
        classes = np.unique(y)
        if len(classes) != 2:
            raise ValueError(
                f"Only binary classification is supported. The type of the target is {type_of_target(y)}, with {len(classes)} "
                f"values from {classes[0]!r} to {classes[-1]!r}; expected probabilities from 0 to 1 that the first is chosen, "
                "or the labels of two classes. (Unknown label type.)"
            )
        self.classes_ = classes
        return (y == classes[1]).astype(float)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def _pairs(X: Float[np.ndarray, "comparisons d"]) -> Int[np.ndarray, " comparisons"]:
    """Number of the pair that each difference is of: the same for rows that are equal up to their sign."""
    leading = X[np.arange(len(X)), (X != 0).argmax(axis=1)]
    rows = np.ascontiguousarray(X * np.where(leading < 0, -1.0, 1.0)[:, None] + 0.0)  # + 0.0: there is one zero
    return np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel(), return_inverse=True)[1]


def _path(
    X: Float[np.ndarray, "n d"],
    chosen: Float[np.ndarray, " n"],
    weight: Float[np.ndarray, " n"],
    alphas: Float[np.ndarray, " a"],
) -> Float[np.ndarray, "a d"]:
    """Weights in raw feature space at every alpha, largest first and each starting from the last."""
    scale = np.sqrt(weight @ X**2 / weight.sum())
    scale[scale == 0] = 1
    rows, total, found = X / scale, weight.sum(), np.zeros(X.shape[1])
    path = np.empty((len(alphas), X.shape[1]))
    options = {"gtol": _TOLERANCE, "ftol": 0.0, "maxiter": _MAX_STEPS}

    def loss(weights: np.ndarray, alpha: float) -> tuple[float, np.ndarray]:
        eta = rows @ weights
        slope = weight * (special.expit(eta) - chosen)
        value = _log_loss(eta, chosen, weight) + alpha / 2 * weights @ weights
        return value / total, (slope @ rows + alpha * weights) / total

    for number in np.argsort(-alphas):
        fit = optimize.minimize(loss, found, (alphas[number],), jac=True, method="L-BFGS-B", options=options)
        if fit.nit >= _MAX_STEPS:
            warnings.warn(
                f"At alpha {alphas[number]:g} the gradient is {np.abs(fit.jac).max():.1e} after {fit.nit} steps; expected "
                f"{_TOLERANCE:.0e}. Leave out such small alphas.",
                ConvergenceWarning,
                stacklevel=3,
            )
        found = fit.x
        path[number] = found / scale
    return path


def _log_loss(eta: Float[np.ndarray, " n"], chosen: Float[np.ndarray, " n"], weight: Float[np.ndarray, " n"]) -> float:
    """Weighted sum of -log likelihoods, in nats."""
    return float(weight @ (np.logaddexp(0, eta) - chosen * eta))
