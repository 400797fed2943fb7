"""Penalties: which are tried, and which is chosen by the errors of predictions that were held out inside a training set."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DEFAULT_ALPHAS = tuple(10.0 ** np.arange(-1, 8.5, 0.5))
"""Ridge penalties tried by default, on standardised features."""

CLASSIFIER_ALPHAS = tuple(10.0 ** np.arange(-1, 6))
"""Penalties tried by default for a sum of log losses, on standardised features."""


@dataclass(frozen=True, eq=False)
class AlphaErrors:
    """Error of held-out predictions at every alpha, for every target.

    Attributes
    ----------
    alphas
        The penalties.
    mean
        Mean error: squared, or log loss in nats.
    standard_error
        Of that mean: over rows for leave-one-out, and over folds otherwise, sd / sqrt(number).
    """

    alphas: Float[np.ndarray, " alphas"]
    mean: Float[np.ndarray, "alphas targets"]
    standard_error: Float[np.ndarray, "alphas targets"]

    @classmethod
    def of_folds(cls, alphas: Float[np.ndarray, " alphas"], errors: Float[np.ndarray, "folds alphas targets"]) -> "AlphaErrors":
        """From the mean error of every fold."""
        return cls(alphas, errors.mean(axis=0), errors.std(axis=0, ddof=1) / np.sqrt(len(errors)))

    def choose(self, *, one_standard_error: bool = False) -> Float[np.ndarray, " targets"]:
        """Choose an alpha for every target.

        Parameters
        ----------
        one_standard_error
            Not the alpha with the least error, but the largest whose error is within one standard error, taken at the least,
            of it (Breiman et al. 1984, section 3.4.3; Hastie, Tibshirani & Friedman 2009, section 7.10).
        """
        best = self.mean.argmin(axis=0)
        if not one_standard_error:
            return self.alphas[best]
        targets = np.arange(self.mean.shape[1])
        within = self.mean <= self.mean[best, targets] + self.standard_error[best, targets]
        return np.where(within, self.alphas[:, None], -np.inf).max(axis=0)


def check_alphas(alphas: Sequence[float]) -> Float[np.ndarray, " alphas"]:
    """Penalties as an array.

    Raises
    ------
    ValueError
        There is none, or one is not a positive number.
    """
    checked = np.asarray(alphas, dtype=np.float64)
    if checked.ndim != 1 or not len(checked) or not np.isfinite(checked).all() or checked.min() <= 0:
        raise ValueError(
            f"alphas are {alphas!r}; expected one or more positive numbers, such as 10.0 ** np.arange(-1, 6). "
            "For hardly any penalty give a small one."
        )
    return checked
