"""Intervention files: what is done to a model, kept as safetensors with a JSON header. Nothing is pickled.

A file may come from anywhere, so everything in it is checked before it is used.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as serialise

from interp.steering import Intervention, Push
from store import directions
from store.directions import Direction, Probe, SteeringVector
from store.layout import EMBED, layer_name
from store.provenance import ModelIdentity

_KIND = "Intervention"
_HEADER = "penchant"
"""Name of the header among a file's metadata, as for directions."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Model(_Strict):
    name: str
    family: str
    fingerprint: str


class _Direction(_Strict):
    layer: int = Field(ge=EMBED)
    model: _Model
    provenance: dict[str, Any]


class _Push(_Direction):
    positions: str
    weight: float
    norm: float | None
    calibration: dict[str, Any]


class _Header(_Strict):
    kind: Literal["Intervention"]
    version: Literal[1]
    operation: str
    dose: float
    phase: str
    pushes: list[_Push] = Field(min_length=1)


def save_intervention(intervention: Intervention, path: str | Path) -> None:
    """Write an intervention to a safetensors file, with every norm and where it was measured."""
    header = {
        "kind": _KIND,
        "version": 1,
        "operation": intervention.operation,
        "dose": float(intervention.dose),
        "phase": intervention.phase,
        "pushes": [_describe(push) for push in intervention.pushes],
    }
    tensors = {_tensor(place): push.direction.vector for place, push in enumerate(intervention.pushes)}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(path).with_suffix(".partial")
    scratch.write_bytes(serialise(tensors, {_HEADER: json.dumps(header)}))
    scratch.replace(path)


def load_intervention(path: str | Path, dose: float | None = None) -> Intervention:
    """Read what `save_intervention` wrote, or make an intervention from a steering vector's file.

    Parameters
    ----------
    path
        A file of `save_intervention`; or one of `store.directions.save` with a steering vector, which is then added at every
        token that is not special.
    dose
        Instead of that of the file. A steering vector's file has none, so there it is needed.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        It was not written by penchant, is damaged, holds a direction without a norm, or the dose is missing or refused.
    """
    header = _read_header(path)
    if header.get("kind") != _KIND:
        return _of_direction(path, dose)
    try:
        checked = _Header.model_validate(header)
        made = Intervention(
            tuple(
                _push(each, vector) for each, vector in zip(checked.pushes, _vectors(path, len(checked.pushes)), strict=True)
            ),
            checked.dose,
            checked.phase,  # pyright: ignore[reportArgumentType] (the intervention refuses other words)
            checked.operation,  # pyright: ignore[reportArgumentType]
        )
    except ValidationError as error:
        raise ValueError(_damage(path, _first(error))) from error
    except (ValueError, KeyError) as error:
        raise ValueError(_damage(path, error)) from error
    return made if dose is None else made.at(dose)


def _read_header(path: str | Path) -> dict[str, Any]:
    try:
        with safe_open(str(path), "np") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not a file of penchant, or is damaged: {error!r}") from error
    if not isinstance(header, dict):
        raise ValueError(_damage(path, f"its header is a {type(header).__name__}"))
    return header


def _vectors(path: str | Path, n: int) -> list[np.ndarray]:
    with safe_open(str(path), "np") as file:
        expected = [_tensor(place) for place in range(n)]
        if sorted(file.keys()) != sorted(expected):
            raise ValueError(f"it holds the arrays {sorted(file.keys())[:3]}; expected {n}, from {expected[0]} on")
        found = [file.get_tensor(name) for name in expected]
    for name, vector in zip(expected, found, strict=True):
        _check_vector(name, vector)
    return found


def _check_vector(name: str, vector: np.ndarray) -> None:
    if vector.ndim != 1 or vector.dtype != np.float32:
        raise ValueError(f"the array {name} is {vector.dtype} of shape {vector.shape}; expected float32 of one axis")


def _push(header: _Push, vector: np.ndarray) -> Push:
    made = Direction(vector, header.layer, ModelIdentity(**header.model.model_dump()), header.provenance)
    scaled = made if header.norm is None else SteeringVector(made, header.norm, header.calibration)
    return Push(scaled, header.positions, header.weight)


def _describe(push: Push) -> dict[str, Any]:
    direction, calibration = push.direction, {}
    if isinstance(push.vector, SteeringVector):
        calibration = dict(push.vector.calibration)
    return {
        "layer": direction.layer,
        "model": asdict(direction.model),
        "provenance": dict(direction.provenance),
        "positions": push.positions,
        "weight": float(push.weight),
        "norm": None if push.norm is None else float(push.norm),
        "calibration": calibration,
    }


def _of_direction(path: str | Path, dose: float | None) -> Intervention:
    try:
        value = directions.load(path)
        direction = value.direction if isinstance(value, SteeringVector) else value
        _Direction.model_validate(
            {"layer": direction.layer, "model": asdict(direction.model), "provenance": dict(direction.provenance)}
        )
        _check_vector("weight" if isinstance(direction, Probe) else "vector", _array(direction))
    except ValidationError as error:
        raise ValueError(_damage(path, _first(error))) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(_damage(path, error)) from error
    if not isinstance(value, SteeringVector):
        taken = "probe.direction()" if isinstance(value, Probe) else "the direction"
        raise ValueError(
            f"{path} holds a {type(value).__name__} at {layer_name(direction.layer)}, and the norm that makes one unit of dose "
            f"was not measured. model.calibrate does it for {taken}, on prompts of the template to be steered: "
            "vector = model.calibrate(direction, questions, ['all']); save_intervention(Intervention.everywhere(vector, 0.2), "
            "path). To ablate it needs no norm: save_intervention(Intervention.ablate(direction), path)."
        )
    if dose is None:
        raise ValueError(f"{path} holds a steering vector, which has no dose of its own; expected one, e.g. 0.2 (--dose 0.2).")
    return Intervention.everywhere(value, dose)


def _array(value: Direction | Probe) -> np.ndarray:
    return value.weight if isinstance(value, Probe) else value.vector


def _tensor(place: int) -> str:
    return f"vector_{place}"


def _first(error: ValidationError) -> str:
    problem: Mapping[str, Any] = error.errors()[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"


def _damage(path: str | Path, reason: object) -> str:
    return f"{path} is damaged, or no intervention or direction of penchant: {reason}"
