"""Probes as scikit-learn estimators: `fit`, `predict`, and a direction to push along.

Features are raw activations, one row a task; each probe standardises them on what it is fitted to, and folds that back.
"""

import warnings
from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg
from sklearn.base import MultiOutputMixin, RegressorMixin
from sklearn.covariance import ledoit_wolf
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted

from interp.alphas import DEFAULT_ALPHAS, AlphaErrors, check_alphas
from interp.bradley_terry import BradleyTerryProbe, differences
from interp.folds import grouped_folds
from interp.readout import LinearClassifier, PenalisedClassifier, Readout, check_classes, validate
from interp.ridge import Choice, Ridge, held_out_errors
from interp.shifted import Precision

__all__ = ["BradleyTerryProbe", "LogisticProbe", "MassMeanProbe", "RidgeProbe", "differences"]

_LEAST_PROBABILITY = 1e-15
_TOLERANCE, _MAX_STEPS = 1e-6, 2000


class RidgeProbe(MultiOutputMixin, RegressorMixin, Readout):
    """Ridge regression onto one target or several, each with its own alpha.

    Parameters
    ----------
    alphas
        Penalties to choose from, on standardised features.
    choice
        By the error of leaving one row out, or of leaving out `folds`.
    one_standard_error
        The largest alpha within a standard error of the best, instead of the best.
    n_folds, seed
        For `folds`.
    dtype
        What is computed with.

    Attributes
    ----------
    coef_, intercept_
        In raw feature space; `(d,)` and a number, or `(targets, d)` and `(targets,)`.
    alpha_
        Chosen, for every target.
    errors_
        Held-out errors that it was chosen by: an `AlphaErrors`.
    """

    method = "ridge_probe"

    def __init__(
        self,
        alphas: Sequence[float] = DEFAULT_ALPHAS,
        *,
        choice: Choice = "leave_one_out",
        one_standard_error: bool = False,
        n_folds: int = 5,
        seed: int = 0,
        dtype: Precision = "float64",
    ) -> None:
        self.alphas = alphas
        self.choice = choice
        self.one_standard_error = one_standard_error
        self.n_folds = n_folds
        self.seed = seed
        self.dtype: Precision = dtype

    def fit(self, X: Float[np.ndarray, "n d"], y: Float[np.ndarray, "n ..."], groups: Sequence[Any] | None = None) -> Self:
        """Choose alphas and fit.

        Parameters
        ----------
        groups
            Rows of one group stay in one fold; for `choice="folds"`.

        Raises
        ------
        ValueError
            Numbers are not finite, a target is constant, alphas are not positive, there are fewer groups than folds, or groups
            are given to leave-one-out, which splits them.
        """
        if self.choice not in ("leave_one_out", "folds"):
            raise ValueError(f"choice is {self.choice!r}; expected 'leave_one_out' or 'folds'.")
        if groups is not None and self.choice == "leave_one_out":
            raise ValueError("Leaving one row out splits groups; use choice='folds' to keep them whole.")
        X, y = validate(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True, ensure_min_samples=2)
        targets = np.asarray(y, dtype=np.float64).reshape(len(X), -1)
        if np.any(constant := np.ptp(targets, axis=0) == 0):
            value = targets[0, constant.argmax()]
            raise ValueError(f"y is {value:g} in every row of target {constant.argmax()}; a probe needs values that differ.")
        ridge = Ridge.decompose(X, dtype=self.dtype)
        if self.choice == "folds":
            folds = grouped_folds(np.arange(len(X)) if groups is None else groups, self.n_folds, self.seed)
            self.errors_ = held_out_errors(X, targets, folds, self.alphas, dtype=self.dtype)
        else:
            self.errors_ = ridge.leave_one_out_errors(targets, self.alphas)
        chosen = self.errors_.choose(one_standard_error=self.one_standard_error)
        weights, intercepts = ridge.weights(targets, chosen)
        single = y.ndim == 1
        self.coef_ = weights[:, 0] if single else weights.T
        self.intercept_ = float(intercepts[0]) if single else intercepts
        self.alpha_ = float(chosen[0]) if single else chosen
        return self

    def predict(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n ..."]:
        """Predicted targets, in their own units."""
        check_is_fitted(self)
        return validate(self, X, reset=False, dtype=[np.float64, np.float32]) @ self.coef_.T + self.intercept_


class LogisticProbe(PenalisedClassifier):
    """Logistic regression onto labels, of two classes or more.

    Minimises the sum of log losses plus alpha / 2 times the squared weights, on standardised features; the intercept is free.

    Parameters
    ----------
    alphas
        Penalties to choose from, by held-out log loss.
    one_standard_error
        The largest alpha within a standard error (over folds) of the best, instead of the best.
    n_folds, seed
        Folds, as even in classes as groups allow.

    Attributes
    ----------
    classes_
        The labels, sorted.
    coef_, intercept_
        In raw feature space, `(1, d)` for two classes and `(classes, d)` for more.
    alpha_, errors_
        As of `RidgeProbe`, in nats.
    """

    method = "logistic_probe"

    def fit(self, X: Float[np.ndarray, "n d"], y: np.ndarray, groups: Sequence[Any] | None = None) -> Self:
        """Choose alpha and fit.

        Raises
        ------
        ValueError
            Numbers are not finite, there is one class only, alphas are not positive, or there are fewer groups than folds.
        """
        X, y = validate(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, numbers = check_classes(y)
        alphas = np.sort(check_alphas(self.alphas))
        losses = []
        for train, test in self._splits(numbers, groups):
            scaler, path = _logistic_path(X[train], numbers[train], alphas)
            held = np.asarray(scaler.transform(X[test]))
            losses.append([_log_loss(fit, held, numbers[test]) for fit in path])
        self.errors_ = AlphaErrors.of_folds(alphas, np.array(losses)[:, :, None])
        self.alpha_ = float(self.errors_.choose(one_standard_error=self.one_standard_error)[0])
        scaler, (fit,) = _logistic_path(X, numbers, np.array([self.alpha_]))
        self.coef_ = fit.coef_ / scaler.scale_
        self.intercept_ = fit.intercept_ - self.coef_ @ scaler.mean_
        return self

    def _splits(self, numbers: Int[np.ndarray, " n"], groups: Sequence[Any] | None) -> list[tuple[np.ndarray, np.ndarray]]:
        names = np.arange(len(numbers)) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
        in_groups = [len(np.unique(names[numbers == number])) for number in range(len(self.classes_))]
        if min(in_groups) < 2 or names.max() + 1 < self.n_folds:
            rarest = self.classes_[int(np.argmin(in_groups))]
            raise ValueError(
                f"{names.max() + 1} groups for {self.n_folds} folds, and class {rarest!r} in {min(in_groups)} of them; "
                "expected no fewer groups than folds, and every class in two or more. Ask for fewer folds, or leave rare "
                "classes out."
            )
        folds = StratifiedGroupKFold(self.n_folds, shuffle=True, random_state=self.seed)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class")  # in two groups or more, and that is enough
            return list(folds.split(names, numbers, names))


def _logistic_path(
    X: Float[np.ndarray, "n d"], numbers: Int[np.ndarray, " n"], alphas: Float[np.ndarray, " a"]
) -> tuple[StandardScaler, list[LogisticRegression]]:
    """Fits on standardised features at every alpha, each starting from the last."""
    scaler = StandardScaler().fit(X)
    rows, fits, last = scaler.transform(X), [], None
    for alpha in alphas[::-1]:
        fit = LogisticRegression(C=1 / alpha, tol=_TOLERANCE, max_iter=_MAX_STEPS, warm_start=True)
        if last is not None:
            fit.coef_, fit.intercept_, fit.classes_ = last.coef_, last.intercept_, last.classes_
        fits.append(last := fit.fit(rows, numbers))
    return scaler, fits[::-1]


def _log_loss(fit: LogisticRegression, rows: Float[np.ndarray, "m d"], numbers: Int[np.ndarray, " m"]) -> float:
    """Mean log loss in nats; a class that the training set lacks has the least probability there is."""
    place = np.searchsorted(fit.classes_, numbers).clip(max=len(fit.classes_) - 1)
    known = fit.classes_[place] == numbers
    probability = np.where(known, fit.predict_proba(rows)[np.arange(len(numbers)), place], 0)
    return float(-np.log(np.maximum(probability, _LEAST_PROBABILITY)).mean())


class MassMeanProbe(LinearClassifier):
    """Mass-mean probe: the direction between the means of the classes (Marks & Tegmark 2023, arXiv:2310.06824, section 5).

    Of two classes with means m_0 and m_1 the logit is (m_1 - m_0)' P (x - (m_0 + m_1) / 2). Of several, with c the mean of the
    means, it is (m_k - c)' P (x - (m_k + c) / 2). P is the identity, or the inverse of the covariance within classes.

    Parameters
    ----------
    tilt
        `None` for the identity; `covariance` for the pseudo-inverse of that of the rows about their class means (the paper's
        variant for data from one distribution; linear discriminant analysis with equal priors); or `shrunk`, the same after
        Ledoit & Wolf (2004), for when there are not many more rows than features.

    Attributes
    ----------
    classes_, coef_, intercept_
        As of `LogisticProbe`. Without a tilt the logits have the unit of a squared activation and are no calibrated log-odds.
    """

    method = "mass_mean_probe"

    def __init__(self, tilt: Literal["covariance", "shrunk"] | None = None) -> None:
        self.tilt = tilt

    def fit(self, X: Float[np.ndarray, "n d"], y: np.ndarray) -> Self:
        """Take the means.

        Raises
        ------
        ValueError
            Numbers are not finite, there is one class only, or the tilt is unknown.
        """
        if self.tilt not in (None, "covariance", "shrunk"):
            raise ValueError(f"tilt is {self.tilt!r}; expected None, 'covariance' or 'shrunk'.")
        X, y = validate(self, X, y, dtype=np.float64)
        check_classification_targets(y)
        self.classes_, numbers = check_classes(y)
        means = np.stack([X[numbers == number].mean(axis=0) for number in range(len(self.classes_))])
        middle = means.mean(axis=0)
        apart = means - middle
        tilted = apart if self.tilt is None else apart @ self._precision(X - means[numbers])
        logit_at_middle = -(tilted * apart).sum(axis=1) / 2
        if len(self.classes_) == 2:
            tilted, logit_at_middle = tilted[1:] - tilted[:1], logit_at_middle[1:] - logit_at_middle[:1]
        self.coef_ = tilted
        self.intercept_ = logit_at_middle - tilted @ middle
        return self

    def _precision(self, within: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "d d"]:
        if self.tilt == "shrunk":
            return np.asarray(linalg.pinvh(ledoit_wolf(within, assume_centered=True)[0]))
        return np.asarray(linalg.pinvh(within.T @ within / len(within)))
