"""Directions and probes: what was found in the residual stream, kept as safetensors with a JSON header."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from store.arithmetic import Linear
from store.layout import layer_name
from store.provenance import ModelIdentity, digest


@dataclass(frozen=True, eq=False)
class Direction(Linear):
    """A unit vector in the residual stream of one layer; `happy - 0.5 * sad` and the like are Combinations of such.

    Attributes
    ----------
    vector
        Unit vector, float32, of shape `(d_model,)`.
    layer
        Block index (residual stream after the block).
    model
        The model whose residual stream it lives in.
    provenance
        Where it came from: method, store, tasks, position, metrics. Plain JSON values.
    """

    vector: Float[np.ndarray, " d_model"]
    layer: int
    model: ModelIdentity
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_vector(cls, vector: Float[np.ndarray, " d_model"], layer: int, model: ModelIdentity, **provenance: Any) -> Self:
        """Scale `vector` to length 1; its length before that is kept in the provenance as `length`.

        Raises
        ------
        ValueError
            The vector has zero length or values that are not finite.
        """
        length = float(np.linalg.norm(np.asarray(vector, dtype=np.float64)))
        if not np.isfinite(length) or length == 0:
            raise ValueError(
                f"Cannot make a direction at {layer_name(layer)} from a vector of length {length}; "
                "the two groups it separates may be identical."
            )
        unit = (np.asarray(vector, dtype=np.float64) / length).astype(np.float32)
        return cls(unit, layer, model, {"length": length, **provenance})

    @property
    def _terms(self) -> "tuple[tuple[float, Direction], ...]":
        return ((1.0, self),)

    @property
    def fingerprint(self) -> str:
        """Digest of the vector and its layer."""
        return digest("direction", self.vector, self.layer)

    def scaled(self, norm: float, **calibration: Any) -> "SteeringVector":
        """Norm-scaled steering vector: coefficient 1.0 adds `norm` along this direction.

        Parameters
        ----------
        norm
            Mean residual norm at this layer over the tokens that will be steered.
        calibration
            Where the norm was measured: positions, number of tokens, template.
        """
        return SteeringVector(self, norm, calibration)


@dataclass(frozen=True, eq=False)
class SteeringVector:
    """A Direction with the residual norm that makes one unit of dose."""

    direction: Direction
    norm: float
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (np.isfinite(self.norm) and self.norm > 0):
            raise ValueError(f"The reference norm is {self.norm}; expected a positive number (a mean residual norm).")

    @property
    def fingerprint(self) -> str:
        """Digest of the direction and its norm."""
        return digest("steering vector", self.direction.fingerprint, self.norm)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear read-out of one layer and position: `residual @ weight + intercept`, in raw activation space."""

    weight: Float[np.ndarray, " d_model"]
    intercept: float
    layer: int
    position: str
    model: ModelIdentity
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, residuals: Float[np.ndarray, "tasks d_model"]) -> Float[np.ndarray, " tasks"]:
        """Predicted target of each residual, in the target's own units."""
        return residuals @ self.weight + self.intercept

    def direction(self) -> Direction:
        """Return the unit vector along which the prediction rises fastest."""
        provenance = {"method": "ridge_probe", **self.provenance, "position": self.position}
        return Direction.from_vector(self.weight, self.layer, self.model, **provenance)


def save(value: Direction | SteeringVector | Probe, path: str | Path) -> None:
    """Write a direction, steering vector or probe to a safetensors file."""
    metadata: dict[str, Any]
    match value:
        case SteeringVector(direction=direction):
            tensors = {"vector": direction.vector}
            metadata = _describe(direction) | {"norm": value.norm, "calibration": dict(value.calibration)}
        case Direction():
            tensors = {"vector": value.vector}
            metadata = _describe(value)
        case Probe():
            tensors = {"weight": np.asarray(value.weight, dtype=np.float32)}
            metadata = _describe(value) | {"intercept": value.intercept, "position": value.position}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(path).with_suffix(".partial")
    scratch.write_bytes(serialise(tensors, {"penchant": json.dumps({"kind": type(value).__name__, **metadata})}))
    scratch.replace(path)


def load(path: str | Path) -> Direction | SteeringVector | Probe:
    """Read what `save` wrote.

    Raises
    ------
    ValueError
        The file is not safetensors, or was not written by penchant.
    """
    try:
        with safe_open(str(path), "np") as file:
            metadata = json.loads((file.metadata() or {})["penchant"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is not a direction or probe written by penchant: {error!r}") from error
    shared = {
        "layer": metadata["layer"],
        "model": ModelIdentity(**metadata["model"]),
        "provenance": metadata["provenance"],
    }
    if metadata["kind"] == "Probe":
        return Probe(tensors["weight"], intercept=metadata["intercept"], position=metadata["position"], **shared)
    direction = Direction(tensors["vector"], **shared)
    if metadata["kind"] == "SteeringVector":
        return SteeringVector(direction, metadata["norm"], metadata["calibration"])
    return direction


def _describe(value: Direction | Probe) -> dict[str, Any]:
    return {"layer": value.layer, "model": asdict(value.model), "provenance": dict(value.provenance)}
