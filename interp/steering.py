"""Steering: what an Intervention is, and which tokens of a prompt each of its directions acts on.

`interp.operations` says what becomes of a residual there; `interp.treatments` does it to the tokens of a batch.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
from jaxtyping import Bool, Int

from interp.operations import NEED_A_NORM, OPERATIONS, Change, Operation, added, clamped, projected_out
from interp.positions import Positions
from interp.rendering import Rendered
from store.directions import Direction, SteeringVector
from store.layout import layer_name
from store.provenance import ModelIdentity, digest

Phase = Literal["prompt", "generation", "both"]
MAX_DOSE = 20.0
"""Doses beyond this are taken for mistakes of units."""
_SHOWN = 3
_UNIT = 1e-3
"""A direction has length 1 up to this."""

Vectors = Direction | SteeringVector | Sequence[Direction | SteeringVector]


@dataclass(frozen=True)
class Push:
    """One direction on some tokens.

    Attributes
    ----------
    vector
        A direction and the residual norm that makes one unit of dose; a Direction alone where no norm is needed, which is to
        ablate or project out.
    positions
        Which tokens it acts on: a position such as `task_a`, `prompt`, `all`, `prompt_last`.
    weight
        Factor on the dose; -1 pushes the other way.
    """

    vector: SteeringVector | Direction
    positions: str = "all"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if Positions.parse(self.positions).reduction == "mean":
            raise ValueError(f"Cannot push at {self.positions!r}: a mean is not a token. Name the tokens, e.g. 'task_a'.")
        if not math.isfinite(self.weight):
            raise ValueError(f"The weight of a push is {self.weight}; expected a finite number.")
        length = float(np.linalg.norm(np.asarray(self.direction.vector, dtype=np.float64)))
        if not abs(length - 1) < _UNIT:  # true of NaN too
            raise ValueError(
                f"The direction at {layer_name(self.direction.layer)} has length {length:g}; expected 1. "
                "Direction.from_vector makes one of any vector that is not zero."
            )

    @property
    def direction(self) -> Direction:
        """The direction, without its norm."""
        return self.vector.direction if isinstance(self.vector, SteeringVector) else self.vector

    @property
    def norm(self) -> float | None:
        """What one unit of dose is; None where no norm was measured."""
        return self.vector.norm if isinstance(self.vector, SteeringVector) else None

    def __str__(self) -> str:
        weight = "" if self.weight == 1 else f"{self.weight:+g} x "
        method = self.direction.provenance.get("method", "a direction")
        return f"{weight}{method} at {layer_name(self.direction.layer)} on {self.positions}"


@dataclass(frozen=True)
class Intervention:
    """What is done to the residual stream while a model is asked.

    Attributes
    ----------
    pushes
        Directions and the tokens that they act on; each in units of its own calibrated norm.
    dose
        How hard. `add`: 1.0 adds one mean residual norm, any sign. `clamp`: the component along a direction becomes this many
        mean residual norms. `project_out`: the share of the component that is taken out, 2 for its mirror image. `ablate`:
        always 1.
    phase
        `prompt`: tokens before the decision token. `generation`: the decision token and everything after it. `both`.
    operation
        `add`, `ablate`, `project_out` or `clamp`. What several directions span at a token is taken out or set as a whole.
    """

    pushes: tuple[Push, ...]
    dose: float
    phase: Phase = "both"
    operation: Operation = "add"

    def __post_init__(self) -> None:
        if self.operation not in OPERATIONS:
            raise ValueError(f"There is no operation {self.operation!r}; expected one of {', '.join(OPERATIONS)}.")
        if not (math.isfinite(self.dose) and abs(self.dose) <= MAX_DOSE):
            unit = "residual norms" if self.operation in NEED_A_NORM else "times the component that is there"
            raise ValueError(
                f"The dose is {self.dose}; expected a finite number of {unit}, at most {MAX_DOSE:g} either way "
                "(most models stop making sense well below 1)."
            )
        if self.phase not in get_args(Phase):
            raise ValueError(f"The phase is {self.phase!r}; expected 'prompt', 'generation' or 'both'.")
        if not self.pushes:
            raise ValueError("An intervention needs at least one push.")
        self._check_one_model()
        if self.operation in NEED_A_NORM:
            self._check_norms()
        else:
            self._check_no_amounts()
        if self.operation == "clamp":
            # Directions at other positions may meet at a token too; that is seen with the prompt.
            for positions in {push.positions for push in self.pushes}:
                self.changes(np.array([push.positions == positions for push in self.pushes]))

    def _check_one_model(self) -> None:
        kinds = {(push.direction.model.family, len(push.direction.vector)): push.direction for push in self.pushes}
        if len(kinds) > 1:
            named = [f"{each.model.name} ({family}, {width})" for (family, width), each in kinds.items()]
            raise ValueError(f"The directions come from {' and '.join(named)}; expected those of one family and width.")

    def _check_norms(self) -> None:
        for push in self.pushes:
            if push.norm is None:
                raise ValueError(
                    f"To {self.operation} needs the norm that makes one unit of dose, and {push} has none: "
                    "model.calibrate(direction, questions, positions) measures it."
                )

    def _check_no_amounts(self) -> None:
        if self.operation == "ablate" and self.dose != 1:
            raise ValueError(
                f"The dose is {self.dose:g}, but ablate takes the whole component out; expected 1. For a share of it there is "
                "project_out."
            )
        for push in self.pushes:
            if push.weight != 1:
                raise ValueError(f"To {self.operation} {push} has a weight of {push.weight:g}; expected 1: it has no sign.")

    @classmethod
    def everywhere(cls, vector: SteeringVector, dose: float, phase: Phase = "both") -> Self:
        """Push every token that is not special."""
        return cls((Push(vector, "all"),), dose, phase)

    @classmethod
    def apart(cls, vector: SteeringVector, dose: float, toward: str = "task_a", away_from: str = "task_b") -> Self:
        """Push along the vector on one span and against it on another."""
        return cls((Push(vector, toward, 1.0), Push(vector, away_from, -1.0)), dose)

    @classmethod
    def layers(cls, vectors: Sequence[SteeringVector], dose: float, positions: str = "all", phase: Phase = "both") -> Self:
        """Push at several layers, each along its own vector and by its own norm.

        Raises
        ------
        ValueError
            Two of the vectors are of one layer.
        """
        found = [vector.direction.layer for vector in vectors]
        if twice := sorted({layer for layer in found if found.count(layer) > 1}):
            raise ValueError(f"Several vectors are at {', '.join(map(layer_name, twice))}; expected one a layer.")
        return cls(tuple(Push(vector, positions) for vector in vectors), dose, phase)

    @classmethod
    def ablate(
        cls,
        directions: Vectors,
        positions: str = "all",
        phase: Phase = "both",
        *,
        layers: Iterable[int] | None = None,
    ) -> Self:
        """Take the component along directions out, `r - (r.v) v`; of several at one layer, all that they span.

        Parameters
        ----------
        layers
            Blocks after which every direction is taken out, instead of its own alone: `range(model.n_layers)` keeps the
            residual stream between blocks free of it.

        References
        ----------
        Arditi et al. 2024, "Refusal in language models is mediated by a single direction", arXiv:2406.11717, section 2.4. (They
        also take it out between the attention and the MLP of a block, and from special tokens.)
        """
        bare = _bare(directions)
        if layers is not None:
            bare = [replace(direction, layer=int(layer)) for layer in layers for direction in bare]
        return cls(tuple(Push(direction, positions) for direction in bare), 1.0, phase, "ablate")

    @classmethod
    def project_out(cls, directions: Vectors, dose: float, positions: str = "all", phase: Phase = "both") -> Self:
        """Take a share of the component out: 0 nothing, 1 all of it (`ablate`), 2 turns it round."""
        return cls(tuple(Push(direction, positions) for direction in _bare(directions)), dose, phase, "project_out")

    @classmethod
    def clamp(
        cls, vectors: SteeringVector | Sequence[SteeringVector], dose: float, positions: str = "all", phase: Phase = "both"
    ) -> Self:
        """Set the component along vectors to `dose` mean residual norms, whatever it was; the rest stays.

        Raises
        ------
        ValueError
            Vectors of one layer are linearly dependent.
        """
        several = [vectors] if isinstance(vectors, SteeringVector) else vectors
        return cls(tuple(Push(vector, positions) for vector in several), dose, phase, "clamp")

    def at(self, dose: float) -> Self:
        """Return the same intervention at another dose."""
        return replace(self, dose=dose)

    @property
    def is_identity(self) -> bool:
        """Whether it leaves every residual as it is."""
        match self.operation:
            case "add":
                return all(self.dose * push.weight == 0 for push in self.pushes)
            case "project_out":
                return self.dose == 0
            case _:
                return False

    @cached_property
    def fingerprint(self) -> str:
        """Digest of everything that changes the residual stream; all that change nothing are alike."""
        if self.is_identity:
            return digest("no intervention")
        needs_a_norm = self.operation in NEED_A_NORM
        pushes = [
            ((push.vector if needs_a_norm else push.direction).fingerprint, push.positions, push.weight) for push in self.pushes
        ]
        return digest(self.operation, pushes, self.dose, self.phase)

    def describe(self) -> dict[str, Any]:
        """Return plain values for logs and reports: what is done where, how hard, and where the norm was measured."""
        return {
            "operation": self.operation,
            "dose": self.dose,
            "phase": self.phase,
            "pushes": [
                {
                    "layer": push.direction.layer,
                    "direction": push.direction.fingerprint[:12],
                    "method": push.direction.provenance.get("method"),
                    "positions": push.positions,
                    "weight": push.weight,
                    "norm": push.norm,
                    "calibration": dict(push.vector.calibration) if isinstance(push.vector, SteeringVector) else {},
                }
                for push in self.pushes
            ],
        }

    def __str__(self) -> str:
        shown = [str(push) for push in self.pushes[:_SHOWN]]
        if more := len(self.pushes) - len(shown):
            shown.append(f"{more} more")
        dose = "" if self.operation == "ablate" else f" by {self.dose:g}"
        phase = "" if self.phase == "both" else f", {self.phase} only"
        return f"{self.operation.replace('_', ' ')}{dose}: {' and '.join(shown)}{phase}"

    def touched(self, rendered: Rendered, length: int) -> Bool[np.ndarray, "pushes length"]:
        """Which of the first `length` tokens each push acts on; tokens past the prompt are answers.

        Raises
        ------
        ValueError
            A push acts on no token of this prompt.
        """
        masks = {text: self._mask(text, rendered, length) for text in dict.fromkeys(push.positions for push in self.pushes)}
        return np.stack([masks[push.positions] for push in self.pushes])

    def _mask(self, text: str, rendered: Rendered, length: int) -> Bool[np.ndarray, " length"]:
        positions, mask = Positions.parse(text), np.zeros(length, dtype=bool)
        mask[positions.tokens(rendered)] = True
        if positions.selection == "all":
            mask[rendered.decision :] = True
        if self.phase == "prompt":
            mask[rendered.decision :] = False
        elif self.phase == "generation":
            mask[: rendered.decision] = False
        if not mask.any():
            side = "before" if self.phase == "prompt" else "from"
            raise ValueError(
                f"The intervention acts on {text!r} in phase {self.phase!r}, and no token of {text!r} comes {side} the "
                f"decision token ({rendered.decision} of {len(rendered.token_ids)}). Choose another phase or other positions."
            )
        return mask

    def changes(self, active: Bool[np.ndarray, " pushes"]) -> dict[int, Change]:
        """What happens, at each layer, to a token that some of the pushes act on.

        Raises
        ------
        ValueError
            Directions that are clamped together are linearly dependent.
        """
        members: dict[int, list[Push]] = {}
        for push, acts in zip(self.pushes, active, strict=True):
            if acts:
                members.setdefault(push.direction.layer, []).append(push)
        return {layer: self._change(pushes) for layer, pushes in members.items()}

    def _change(self, members: Sequence[Push]) -> Change:
        directions = np.stack([push.direction.vector.astype(np.float64) for push in members])
        if self.operation not in NEED_A_NORM:
            return projected_out(directions, self.dose)
        amounts = np.array([self.dose * push.weight * (push.norm or 0.0) for push in members])
        if self.operation == "add":
            return added(directions, amounts)
        try:
            return clamped(directions, amounts)
        except ValueError as error:
            raise ValueError(f"Cannot clamp {' and '.join(map(str, members))}. {error}") from error


def _bare(directions: Vectors) -> list[Direction]:
    several = [directions] if isinstance(directions, Direction | SteeringVector) else directions
    return [each.direction if isinstance(each, SteeringVector) else each for each in several]


def check_fits(intervention: Intervention, model: ModelIdentity, d_model: int, n_layers: int) -> None:
    """Refuse an intervention whose directions come from another kind of model.

    Raises
    ------
    ValueError
        A direction has another width or family, or a layer that this model lacks.
    """
    for push in intervention.pushes:
        direction = push.direction
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
