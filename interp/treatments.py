"""Treatments: which interventions every token of a batch gets, and the edits of the residual stream that carry them out."""

from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.backends.protocol import Edit
from interp.operations import Change
from interp.rendering import Rendered
from interp.steering import Intervention


class TreatmentTable:
    """Numbers the ways in which a token can be treated, and makes the edits that do it.

    Treatment 0 is an untouched token. Tokens treated alike share a treatment, so a batch knows which tokens may share a
    packed row, and one edit per layer serves any mixture of interventions, operations and doses.
    """

    def __init__(self) -> None:
        self._numbers: dict[tuple[tuple[str, ...], bytes], int] = {}
        self._changes: list[dict[int, list[Change]]] = []  # of treatment 1, 2, ...: what it does at each layer

    def encode(self, interventions: Sequence[Intervention], rendered: Rendered, length: int) -> Int[np.ndarray, " length"]:
        """Return the treatment of each of the first `length` tokens of a prompt and its answer.

        Parameters
        ----------
        interventions
            Carried out one after the other, at every layer.

        Raises
        ------
        ValueError
            A push acts on no token of the prompt, or directions that are clamped together are linearly dependent.
        """
        codes = np.zeros(length, dtype=np.int64)
        acting = [each for each in interventions if not each.is_identity]
        if not acting:
            return codes
        masks = np.concatenate([each.touched(rendered, length) for each in acting])
        patterns, inverse = np.unique(masks, axis=1, return_inverse=True)
        for column, pattern in enumerate(patterns.T):
            if pattern.any():
                codes[inverse.reshape(-1) == column] = self._number(acting, pattern)
        return codes

    def _number(self, acting: Sequence[Intervention], pattern: Bool[np.ndarray, " pushes"]) -> int:
        key = (tuple(each.fingerprint for each in acting), pattern.tobytes())
        if key not in self._numbers:
            active = np.split(pattern, np.cumsum([len(each.pushes) for each in acting])[:-1])
            found: dict[int, list[Change]] = {}
            for intervention, own in zip(acting, active, strict=True):
                for layer, change in intervention.changes(own).items():
                    found.setdefault(layer, []).append(change)
            self._changes.append(found)
            self._numbers[key] = len(self._changes)
        return self._numbers[key]

    @property
    def layers(self) -> list[int]:
        """Layers at which any treatment does something, ascending."""
        return sorted(set().union(*self._changes))

    def edits(self, treatments: Int[np.ndarray, "lines columns"]) -> dict[int, Edit]:
        """For each layer, the edit that gives every token of a batch its treatment."""
        return {layer: edit for layer in self.layers if (edit := self._edit(layer, treatments.reshape(-1))) is not None}

    def _edit(self, layer: int, treatments: Int[np.ndarray, " rows"]) -> Edit | None:
        used = np.unique(treatments[treatments > 0])
        changes = {int(number): made for number in used if (made := self._changes[number - 1].get(layer))}
        if not changes:
            return None
        rows = np.flatnonzero(np.isin(treatments, list(changes)))
        numbers, where = np.unique(treatments[rows], return_inverse=True)
        made = [changes[int(number)] for number in numbers]
        at, which = torch.from_numpy(rows), torch.from_numpy(where)
        if any(len(change.basis) for each in made for change in each):
            return _changing(at, which, made)
        added = [np.sum([change.shift for change in each], axis=0) for each in made]
        return _adding(at, which, torch.from_numpy(np.stack(added).astype(np.float32)))


def _adding(at: Tensor, which: Tensor, vectors: Tensor) -> Edit:
    """Make an edit that adds to each of the rows `at` one of the vectors."""

    # A server runs this without penchant, so it names nothing of penchant's.
    def edit(residual: Tensor) -> Tensor:
        edited = residual.clone().reshape(-1, residual.shape[-1])
        push = vectors.to(edited.device)[which.to(edited.device)]
        index = at.to(edited.device)
        # Add in float32 and round once, so that a bf16 model is pushed by exactly the dose.
        edited[index] = (edited[index].float() + push).to(edited.dtype)
        return edited.reshape(residual.shape)

    return edit


def _changing(at: Tensor, which: Tensor, made: Sequence[Sequence[Change]]) -> Edit:
    """Make an edit that runs each of the rows `at` through its changes, one after the other."""
    stages = [_stage(changes) for changes in zip_longest(*made)]

    # A server runs this without penchant, so it names nothing of penchant's.
    def edit(residual: Tensor) -> Tensor:
        edited = residual.clone().reshape(-1, residual.shape[-1])
        device = edited.device
        index, row = at.to(device), which.to(device)
        changed = edited[index].float()
        for units, shares, shifts in stages:
            # Sums of products, as a matrix product may be of lower precision on a GPU.
            for unit, share in zip(units.to(device), shares.to(device), strict=True):
                direction = unit[row]
                changed = changed - share[row, None] * (changed * direction).sum(-1, keepdim=True) * direction
            changed = changed + shifts.to(device)[row]
        edited[index] = changed.to(edited.dtype)
        return edited.reshape(residual.shape)

    return edit


def _stage(changes: Sequence[Change | None]) -> tuple[Tensor, Tensor, Tensor]:
    """One change of every treatment as arrays `(rank, treatments, d_model)`, `(rank, treatments)`, `(treatments, d_model)`."""
    d_model = next(len(change.shift) for change in changes if change is not None)
    rank = max(len(change.basis) for change in changes if change is not None)
    units = np.zeros((rank, len(changes), d_model), dtype=np.float32)
    shares = np.zeros((rank, len(changes)), dtype=np.float32)
    shifts = np.zeros((len(changes), d_model), dtype=np.float32)
    for number, change in enumerate(changes):
        if change is not None:
            units[: len(change.basis), number] = change.basis
            shares[:, number] = change.share
            shifts[number] = change.shift
    return torch.from_numpy(units), torch.from_numpy(shares), torch.from_numpy(shifts)
