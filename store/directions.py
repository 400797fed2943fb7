"""Directions and probes: what was found in the residual stream, kept as safetensors with a JSON header."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from store.arithmetic import Linear
from store.layout import EMBED, layer_name
from store.provenance import ModelIdentity, digest

_TENSORS = {"Direction": "vector", "SteeringVector": "vector", "Probe": "weight"}
"""For each kind of file, the name of its array."""

_HEADER = "penchant"
"""Name of the header among a file's metadata."""

_LENGTH_TOLERANCE = 1e-4
"""How far the length of a unit vector in a file may be from 1."""


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

    def __repr__(self) -> str:
        made = self.provenance.get("method", "given")
        return f"Direction({made} at {layer_name(self.layer)} of {self.model.name}, {len(self.vector)} values)"

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
    """A Direction with the residual norm that makes one unit of dose.

    The norm is the unit of dose, not a length of the concept, so steering vectors are neither added nor scaled.
    """

    direction: Direction
    norm: float
    calibration: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"SteeringVector({self.direction!r}, norm {self.norm:.4g})"

    __array_ufunc__: ClassVar[None] = None  # so that a numpy number on the left meets the refusal too

    def __post_init__(self) -> None:
        if not (np.isfinite(self.norm) and self.norm > 0):
            raise ValueError(f"The reference norm is {self.norm}; expected a positive number (a mean residual norm).")
        object.__setattr__(self, "norm", float(self.norm))  # 120 and 120.0 have one fingerprint, on disk and off it

    @property
    def fingerprint(self) -> str:
        """Digest of the direction and its norm."""
        return digest("steering vector", self.direction.fingerprint, self.norm)

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError(
            f"A steering vector is neither added nor scaled: its norm, {self.norm:g}, is what a dose of 1.0 adds at "
            f"{layer_name(self.direction.layer)}, and arithmetic would change that unit unseen. To push harder, or the other "
            "way, change the dose. To combine, add up directions, and give the sum a norm: "
            f"(one.direction - 0.5 * other.direction).direction().scaled({self.norm:g}), or model.calibrate of it."
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __neg__ = _refuse


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear read-out of one layer and position: `residual @ weight + intercept`, in raw activation space."""

    weight: Float[np.ndarray, " d_model"] = field(repr=False)
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
            tensors = {"vector": np.asarray(direction.vector, dtype=np.float32)}
            metadata = _describe(direction) | {"norm": value.norm, "calibration": dict(value.calibration)}
        case Direction():
            tensors = {"vector": np.asarray(value.vector, dtype=np.float32)}
            metadata = _describe(value)
        case Probe():
            tensors = {"weight": np.asarray(value.weight, dtype=np.float32)}
            metadata = _describe(value) | {"intercept": value.intercept, "position": value.position}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(path).with_suffix(".partial")
    scratch.write_bytes(serialise(tensors, {_HEADER: json.dumps({"kind": type(value).__name__, **metadata})}))
    scratch.replace(path)


def load(path: str | Path) -> Direction | SteeringVector | Probe:
    """Read what `save` wrote. The file is not trusted.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is not safetensors, was not written by penchant, or lacks a part or has one of another kind, which is named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        opened = safe_open(str(path), "np")
    except SafetensorError as error:
        raise ValueError(f"{path} is not a direction or probe written by penchant: {error}") from error
    with opened as file:
        header = _Header.of(path, file.metadata() or {})
        kind = header.text("kind")
        if kind not in _TENSORS:
            expected = f"one of {', '.join(_TENSORS)} (an Intervention is read by interp.load_intervention)"
            raise header.refusal("kind", repr(kind), expected)
        vector = header.tensor(file, _TENSORS[kind])
    layer, provenance = header.layer(), header.mapping("provenance")
    model = ModelIdentity(*(header.text(f"model.{name}") for name in ("name", "family", "fingerprint")))
    if kind == "Probe":
        return Probe(vector, header.number("intercept"), layer, header.text("position"), model, provenance)
    length = float(np.linalg.norm(vector.astype(np.float64)))
    if not abs(length - 1) <= _LENGTH_TOLERANCE:
        raise header.refusal("vector", f"of length {length:g}", "length 1, a unit vector")
    direction = Direction(vector, layer, model, provenance)
    if kind == "Direction":
        return direction
    norm = header.number("norm")
    if norm <= 0:
        raise header.refusal("norm", f"{norm:g}", "a positive number, a mean residual norm")
    return SteeringVector(direction, norm, header.mapping("calibration"))


@dataclass(frozen=True)
class _Header:
    """What a file says of its vector, believed part by part; a part of a part is named `model.family`."""

    path: str | Path
    parts: Any

    @classmethod
    def of(cls, path: str | Path, metadata: Mapping[str, str]) -> Self:
        if _HEADER not in metadata:
            found = f"there is no {_HEADER!r} among its metadata {sorted(metadata)[:3]}"
            raise ValueError(f"{path} is not a direction or probe written by penchant: {found}.")
        try:
            return cls(path, json.loads(metadata[_HEADER]))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{path} is not a direction or probe written by penchant: its header is no JSON: {error}."
            ) from error

    def refusal(self, name: str, found: str, expected: str) -> ValueError:
        return ValueError(
            f"{self.path} is not a direction or probe written by penchant, or was damaged: {name} is {found}; expected "
            f"{expected}."
        )

    def text(self, name: str) -> str:
        return self._part(name, str, "a text")

    def mapping(self, name: str) -> dict[str, Any]:
        return self._part(name, dict, "an object")

    def number(self, name: str) -> float:
        found = self._part(name, int | float, "a number")
        if not -sys.float_info.max <= found <= sys.float_info.max:  # which no NaN is, and no integer too great for a float
            raise self.refusal(name, _shortened(found), "a finite number")
        return float(found)

    def layer(self) -> int:
        expected = f"the number of a block, or {EMBED} for {layer_name(EMBED)}"
        found = self._part("layer", int, expected)
        if found < EMBED:
            raise self.refusal("layer", _shortened(found), expected)
        return found

    def tensor(self, file: Any, name: str) -> Float[np.ndarray, " d_model"]:
        if name not in file.keys():  # noqa: SIM118 (not a dict)
            raise self.refusal(name, f"missing among the arrays {sorted(file.keys())[:3]}", "a vector of float32")
        part = file.get_slice(name)  # read before the array: numpy has no name for some of the dtypes there are
        dtype, shape = part.get_dtype(), tuple(part.get_shape())
        if dtype != "F32" or len(shape) != 1 or not shape[0]:
            raise self.refusal(name, f"{dtype} of shape {shape}", "a vector of float32 (F32 of one axis)")
        vector = file.get_tensor(name)
        if bad := int((~np.isfinite(vector)).sum()):
            raise self.refusal(name, f"not finite in {bad} of {len(vector)} values", "numbers")
        return vector

    def _part(self, name: str, kind: Any, expected: str) -> Any:
        found = self.parts
        for key in name.split("."):
            if not isinstance(found, dict) or key not in found:
                raise self.refusal(name, "missing from the header", expected)
            found = found[key]
        if not isinstance(found, kind) or isinstance(found, bool):
            raise self.refusal(name, _shortened(found), expected)
        return found


def _shortened(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _describe(value: Direction | Probe) -> dict[str, Any]:
    return {"layer": value.layer, "model": asdict(value.model), "provenance": dict(value.provenance)}
