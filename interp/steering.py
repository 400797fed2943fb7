"""Steering: what an Intervention is, and which push every token of a prompt gets from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.backends.protocol import Edit
from interp.positions import Positions
from interp.rendering import Rendered
from store.directions import SteeringVector
from store.provenance import ModelIdentity, digest

Phase = Literal["prompt", "generation", "both"]
MAX_DOSE = 20.0
"""Doses beyond this many residual norms are taken for mistakes of units."""


@dataclass(frozen=True)
class Push:
    """One steering vector on some tokens.

    Attributes
    ----------
    vector
        The direction, and the residual norm that makes one unit of dose.
    positions
        Which tokens are pushed: a position such as `task_a`, `prompt`, `all`, `prompt_last`.
    weight
        Factor on the dose; -1 pushes the other way.
    """

    vector: SteeringVector
    positions: str = "all"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if Positions.parse(self.positions).reduction == "mean":
            raise ValueError(f"Cannot push at {self.positions!r}: a mean is not a token. Name the tokens, e.g. 'task_a'.")
        if not math.isfinite(self.weight):
            raise ValueError(f"The weight of a push is {self.weight}; expected a finite number.")


@dataclass(frozen=True)
class Intervention:
    """What is added to the residual stream while a model is asked.

    Attributes
    ----------
    pushes
        Vectors and the tokens that they act on; each in units of its own calibrated norm.
    dose
        How hard: 1.0 adds one mean residual norm. Any sign.
    phase
        `prompt`: tokens before the decision token. `generation`: the decision token and everything after it. `both`.
    """

    pushes: tuple[Push, ...]
    dose: float
    phase: Phase = "both"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.dose) and abs(self.dose) <= MAX_DOSE):
            raise ValueError(
                f"The dose is {self.dose}; expected a finite number of residual norms, at most {MAX_DOSE:g} either way "
                "(most models stop making sense well below 1)."
            )
        if self.phase not in ("prompt", "generation", "both"):
            raise ValueError(f"The phase is {self.phase!r}; expected 'prompt', 'generation' or 'both'.")
        if not self.pushes:
            raise ValueError("An intervention needs at least one push.")

    @classmethod
    def everywhere(cls, vector: SteeringVector, dose: float, phase: Phase = "both") -> Self:
        """Push every token that is not special."""
        return cls((Push(vector, "all"),), dose, phase)

    @classmethod
    def apart(cls, vector: SteeringVector, dose: float, toward: str = "task_a", away_from: str = "task_b") -> Self:
        """Push along the vector on one span and against it on another."""
        return cls((Push(vector, toward, 1.0), Push(vector, away_from, -1.0)), dose)

    def at(self, dose: float) -> Self:
        """Return the same intervention at another dose."""
        return replace(self, dose=dose)

    @property
    def fingerprint(self) -> str:
        """Digest of everything that changes the residual stream; all doses of zero are alike."""
        if self.dose == 0:
            return digest("no intervention")
        pushes = [(push.vector.fingerprint, push.positions, push.weight) for push in self.pushes]
        return digest("add", pushes, self.dose, self.phase)

    def describe(self) -> dict:
        """Return plain values for logs and reports: what is pushed where, how hard, and where the norm was measured."""
        return {
            "operation": "add",
            "dose": self.dose,
            "phase": self.phase,
            "pushes": [
                {
                    "layer": push.vector.direction.layer,
                    "direction": push.vector.direction.fingerprint[:12],
                    "method": push.vector.direction.provenance.get("method"),
                    "positions": push.positions,
                    "weight": push.weight,
                    "norm": push.vector.norm,
                    "calibration": dict(push.vector.calibration),
                }
                for push in self.pushes
            ],
        }

    def touched(self, rendered: Rendered, length: int) -> Bool[np.ndarray, "pushes length"]:
        """Which of the first `length` tokens each push acts on; tokens past the prompt are answers."""
        masks = np.zeros((len(self.pushes), length), dtype=bool)
        for mask, push in zip(masks, self.pushes, strict=True):
            positions = Positions.parse(push.positions)
            mask[positions.tokens(rendered)] = True
            if positions.selection == "all":
                mask[rendered.decision :] = True
            if self.phase == "prompt":
                mask[rendered.decision :] = False
            elif self.phase == "generation":
                mask[: rendered.decision] = False
        return masks


class TreatmentTable:
    """Numbers the ways in which a token can be pushed, and makes the edits that push them.

    Treatment 0 is an untouched token. Tokens pushed alike share a treatment, so a batch knows which tokens may share a
    packed row, and one edit per layer serves any mixture of interventions and doses.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, bytes], int] = {}
        self._pushed: list[tuple[Intervention, Bool[np.ndarray, " pushes"]]] = []

    def encode(self, intervention: Intervention | None, rendered: Rendered, length: int) -> Int[np.ndarray, " length"]:
        """Return the treatment of each of the first `length` tokens of a prompt and its answer."""
        codes = np.zeros(length, dtype=np.int64)
        if intervention is None or intervention.dose == 0:
            return codes
        masks = intervention.touched(rendered, length)
        patterns, inverse = np.unique(masks, axis=1, return_inverse=True)
        for column, pattern in enumerate(patterns.T):
            if pattern.any():
                codes[inverse.reshape(-1) == column] = self._number(intervention, pattern)
        return codes

    def _number(self, intervention: Intervention, pattern: Bool[np.ndarray, " pushes"]) -> int:
        key = (intervention.fingerprint, pattern.tobytes())
        if key not in self._numbers:
            self._pushed.append((intervention, pattern))
            self._numbers[key] = len(self._pushed)
        return self._numbers[key]

    @property
    def layers(self) -> list[int]:
        """Layers at which any treatment pushes, ascending."""
        return sorted({push.vector.direction.layer for intervention, _ in self._pushed for push in intervention.pushes})

    def edits(self, treatments: Int[np.ndarray, "lines columns"]) -> dict[int, Edit]:
        """For each layer, the edit that gives every token of a batch its treatment."""
        return {layer: edit for layer in self.layers if (edit := self._edit(layer, treatments.reshape(-1))) is not None}

    def _edit(self, layer: int, treatments: Int[np.ndarray, " rows"]) -> Edit | None:
        used = np.unique(treatments[treatments > 0])
        if not len(used):
            return None
        everything = {int(number): self._added(layer, *self._pushed[number - 1]) for number in used}
        added = {number: vector for number, vector in everything.items() if vector is not None}
        rows = np.flatnonzero(np.isin(treatments, list(added)))
        if not len(rows):
            return None
        numbers, where = np.unique(treatments[rows], return_inverse=True)
        vectors = torch.from_numpy(np.stack([added[int(number)] for number in numbers]))
        at, which = torch.from_numpy(rows), torch.from_numpy(where)

        def edit(residual: Tensor) -> Tensor:
            edited = residual.clone().reshape(-1, residual.shape[-1])
            push = vectors.to(edited.device)[which.to(edited.device)]
            index = at.to(edited.device)
            # Add in float32 and round once, so that a bf16 model is pushed by exactly the dose.
            edited[index] = (edited[index].float() + push).to(edited.dtype)
            return edited.reshape(residual.shape)

        return edit

    def _added(self, layer: int, intervention: Intervention, pattern: Bool[np.ndarray, " pushes"]) -> np.ndarray | None:
        parts = [
            push.vector.direction.vector.astype(np.float64) * push.vector.norm * push.weight * intervention.dose
            for push, active in zip(intervention.pushes, pattern, strict=True)
            if active and push.vector.direction.layer == layer
        ]
        return np.sum(parts, axis=0).astype(np.float32) if parts else None


def check_fits(intervention: Intervention, model: ModelIdentity, d_model: int, n_layers: int) -> None:
    """Refuse an intervention whose directions come from another kind of model.

    Raises
    ------
    ValueError
        A direction has another width or family, or a layer that this model lacks.
    """
    for push in intervention.pushes:
        direction = push.vector.direction
        if direction.vector.shape != (d_model,) or direction.model.family != model.family:
            raise ValueError(
                f"The direction comes from {direction.model.name} ({direction.model.family}, residual stream of "
                f"{direction.vector.shape[0]}) and does not fit {model.name} ({model.family}, {d_model}). "
                "Make one from activations of this model."
            )
        if not 0 <= direction.layer < n_layers:
            raise ValueError(f"The direction is for layer {direction.layer}; {model.name} has layers 0 to {n_layers - 1}.")


def reference_tokens(rendered: Rendered, positions: Sequence[str]) -> Int[np.ndarray, " tokens"]:
    """Tokens over which the norm of a dose is measured: all that any of `positions` selects, special tokens left out."""
    chosen = np.unique(np.concatenate([Positions.parse(each).tokens(rendered) for each in positions]))
    ordinary = chosen[rendered.content[chosen]]
    return ordinary if len(ordinary) else chosen
