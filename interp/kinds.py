"""Kinds of probe: how held-out predictions are made for all columns, labels and permutations of them, from one cut table.

Every kind chooses its penalty, and its calibration, inside each training part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy import special

from interp.alphas import CLASSIFIER_ALPHAS, DEFAULT_ALPHAS, check_alphas
from interp.folds import FoldTable, TrainingSet
from interp.likelihood import Basis, ChoiceLoss, Choices, ClassLoss
from interp.ridge import Choice, predict_folds

Kind = Literal["ridge", "logistic", "mass_mean", "bradley_terry"]
"""`ridge`: onto labels. `logistic`, `mass_mean`: which class. `bradley_terry`: on choices, then put on the scale of labels."""

KINDS: dict[Kind, str] = {
    "ridge": "ridge",
    "logistic": "logistic",
    "mass_mean": "mass-mean",
    "bradley_terry": "Bradley-Terry",
}
"""What they are called in sentences."""

_NO_ALPHA = (0.0,)


@dataclass(frozen=True, eq=False)
class Columns:
    """What is predicted, in every column.

    Attributes
    ----------
    values
        Labels; 0 and 1 for kinds that tell classes apart.
    choices
        For `bradley_terry`.
    groups
        Rows that inner folds keep together.
    """

    values: Float[np.ndarray, "n columns"]
    choices: Choices | None
    groups: Int[np.ndarray, " n"]


@dataclass(frozen=True)
class Fitting:
    """How probes are fitted.

    Attributes
    ----------
    alphas
        Penalties to choose from; none for the kind's own.
    choice, one_standard_error
        Of ridge: see `cross_predict`. The other kinds choose by inner folds.
    """

    kind: Kind = "ridge"
    alphas: Sequence[float] = ()
    choice: Choice = "leave_one_out"
    one_standard_error: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; expected one of {', '.join(get_args(Kind))}.")
        if self.choice not in get_args(Choice):
            raise ValueError(f"choice is {self.choice!r}; expected one of {', '.join(get_args(Choice))}.")
        if self.kind == "mass_mean":
            levels: Sequence[float] = _NO_ALPHA
        else:
            levels = check_alphas(self.alphas or (DEFAULT_ALPHAS if self.kind == "ridge" else CLASSIFIER_ALPHAS)).tolist()
        object.__setattr__(self, "alphas", tuple(levels))

    @property
    def tells_classes_apart(self) -> bool:
        """Whether labels are made two classes."""
        return self.kind in ("logistic", "mass_mean")

    def predict(
        self, table: FoldTable, columns: Columns
    ) -> tuple[Float[np.ndarray, "n columns"], Float[np.ndarray, "folds columns"]]:
        """Held-out predictions of every row and column, and the alpha chosen in each fold."""
        if self.kind == "ridge":
            rule = {"choice": self.choice, "one_standard_error": self.one_standard_error}
            return predict_folds(table, columns.values, self.alphas, **rule, groups=columns.groups, seed=self.seed)
        if table.demean is not None:
            raise ValueError(f"Group means cannot be taken off for a {self.kind} probe; use ridge, or hold whole groups out.")
        return self._predict(table, columns)

    def _predict(
        self, table: FoldTable, columns: Columns
    ) -> tuple[Float[np.ndarray, "n columns"], Float[np.ndarray, "folds columns"]]:
        alphas = np.repeat(np.asarray(self.alphas)[:, None], columns.values.shape[1], axis=1)
        inner = {fold: np.full((len(alphas), *columns.values.shape), np.nan) for fold in table.names}
        for part in table.inner_training_sets(columns.groups, self.seed):
            logits = self._logits(table, columns, part, alphas)
            for fold, held in part.held:
                inner[fold][:, held] = logits[:, held]
        predicted = np.full(columns.values.shape, np.nan)
        chosen = []
        for part in table.training_sets():
            ((fold, test),) = part.held
            rows = part.rows & ~np.isnan(inner[fold][0, :, 0])  # those that were held out inside
            losses = np.stack([self._loss(each, columns, rows) for each in inner[fold]])
            best = losses.argmin(axis=0)
            chosen.append(np.asarray(self.alphas)[best])
            found = self._logits(table, columns, part, chosen[-1][None])[0, test]
            if self.kind == "logistic":
                predicted[test] = special.expit(found)
            else:
                known = np.take_along_axis(inner[fold], best[None, None], axis=0)[0, rows]
                slope, level = _line(known, columns.values[rows])
                predicted[test] = level + slope * found
        return predicted, np.stack(chosen)

    def _logits(
        self, table: FoldTable, columns: Columns, part: TrainingSet, alphas: Float[np.ndarray, "a columns"]
    ) -> Float[np.ndarray, "a n columns"]:
        """Logits of the rows that a training set leaves out, at penalties for every column."""
        rows = ~part.rows
        logits = np.full((len(alphas), *columns.values.shape), np.nan)
        if self.kind == "mass_mean":
            logits[:, rows] = table.features[rows] @ _apart(table.features[part.rows], columns.values[part.rows])
            return logits
        if self.kind == "logistic":
            loss = ClassLoss(columns.values[part.rows])
        else:
            assert columns.choices is not None
            loss = ChoiceLoss(columns.choices, part.rows)
        weights, intercepts = Basis.of(part.features.rows).fit(loss, alphas)
        logits[:, rows] = (table.features[rows] - part.features.mean) / part.features.scale @ weights + intercepts[:, None]
        return logits

    def _loss(
        self, logits: Float[np.ndarray, "n columns"], columns: Columns, rows: Bool[np.ndarray, " n"]
    ) -> Float[np.ndarray, " columns"]:
        if self.kind == "bradley_terry":
            assert columns.choices is not None
            return columns.choices.log_loss(logits, rows)
        return (np.logaddexp(0, logits[rows]) - columns.values[rows] * logits[rows]).mean(axis=0)


def _apart(features: Float[np.ndarray, "n d"], classes: Float[np.ndarray, "n columns"]) -> Float[np.ndarray, "d columns"]:
    """Mean of class 1 less mean of class 0, for every column."""
    size = np.maximum(classes.sum(axis=0), 1), np.maximum((1 - classes).sum(axis=0), 1)
    return features.T @ (classes / size[0] - (1 - classes) / size[1])


def _line(
    x: Float[np.ndarray, "n columns"], y: Float[np.ndarray, "n columns"]
) -> tuple[Float[np.ndarray, " columns"], Float[np.ndarray, " columns"]]:
    """Slope, not below zero, and intercept of the least-squares line of every column."""
    centred = x - x.mean(axis=0)
    slope = np.maximum((centred * y).sum(axis=0) / np.maximum((centred**2).sum(axis=0), 1e-300), 0)
    return slope, y.mean(axis=0) - slope * x.mean(axis=0)
