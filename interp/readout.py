"""What fitted probes have in common: linear read-outs of raw activations, and the directions to push along."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float
from scipy import special
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import validation

from interp.alphas import CLASSIFIER_ALPHAS
from store.directions import Direction
from store.provenance import ModelIdentity

validate: Any = validation.validate_data
"""scikit-learn's check of features and labels, whose annotations are of its defaults alone."""


class Readout(BaseEstimator):
    """A fitted linear read-out, `coef_` and `intercept_` in raw feature space."""

    method: ClassVar[str]
    """What its directions say of where they come from."""

    coef_: Float[np.ndarray, "..."]
    intercept_: Any

    def direction(self, *, layer: int, model: ModelIdentity, output: int | None = None, **provenance: Any) -> Direction:
        """Direction in raw activation space along which what is read rises fastest.

        Parameters
        ----------
        layer, model
            Whose residual stream the features were.
        output
            Row of `coef_`, where there are several targets or more than two classes. Of a class it is the logit less the mean
            logit of all.
        provenance
            What else is known of where it comes from, such as position, store and tasks. The length of the vector, which is
            the slope of the read-out, is added.

        Raises
        ------
        ValueError
            There are several outputs and none is named, or the read-out is flat.
        """
        validation.check_is_fitted(self)
        rows = np.atleast_2d(self.coef_)
        if len(rows) > 1 and output is None:
            classes = getattr(self, "classes_", None)
            named = "" if classes is None else f", the classes {classes.tolist()}"
            raise ValueError(f"This probe reads {len(rows)} outputs{named}; say which with output=0 to {len(rows) - 1}.")
        if len(rows) > 1 and hasattr(self, "classes_"):
            rows = rows - rows.mean(axis=0)
        alpha = np.atleast_1d(getattr(self, "alpha_", []))
        known: dict[str, Any] = {"method": self.method}
        if len(alpha):
            known["alpha"] = float(alpha[(output or 0) % len(alpha)])
        return Direction.from_vector(rows[output or 0], layer, model, **{**known, **provenance})


class LinearClassifier(ClassifierMixin, Readout):
    """Classes from linear logits: of the second of two classes, or of each of several."""

    classes_: np.ndarray

    def decision_function(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "..."]:
        """Logits, `(n,)` for two classes and `(n, classes)` for more."""
        validation.check_is_fitted(self)
        rows = validate(self, X, reset=False, dtype=[np.float64, np.float32])
        logits = rows @ self.coef_.T + self.intercept_
        return logits[:, 0] if len(self.coef_) == 1 else logits

    def predict_proba(self, X: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """Probability of every class."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return np.stack([special.expit(-logits), special.expit(logits)], axis=1)
        return special.softmax(logits, axis=1)

    def predict(self, X: Float[np.ndarray, "n d"]) -> np.ndarray:
        """The likeliest class."""
        logits = self.decision_function(X)
        return self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(axis=1)]


class PenalisedClassifier(LinearClassifier):
    """Classes from logits whose weights are held back by a penalty that held-out log loss chooses."""

    def __init__(
        self,
        alphas: Sequence[float] = CLASSIFIER_ALPHAS,
        *,
        one_standard_error: bool = False,
        n_folds: int = 5,
        seed: int = 0,
    ) -> None:
        self.alphas = alphas
        self.one_standard_error = one_standard_error
        self.n_folds = n_folds
        self.seed = seed


def check_classes(y: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes, and the number of each row's.

    Raises
    ------
    ValueError
        There is one class only.
    """
    classes, numbers = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"All {len(numbers)} labels are of one class, {classes[0]!r}; a probe needs two or more classes.")
    return classes, numbers
