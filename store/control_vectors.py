"""Directions and steering vectors for other tools: GGUF control vectors, as llama.cpp and repeng read them, and plain npz.

A vector is written as what coefficient 1.0 adds to the residual stream: a direction as a unit vector, a steering vector
times its norm. Both tools number layers as penchant does, and add `direction.N` to the residual stream after block N.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from store.directions import Direction, SteeringVector
from store.layout import layer_name
from store.provenance import ModelIdentity, digest

Kept = Direction | SteeringVector
"""What is exported: all of one file are of one kind, since one coefficient scales them all."""

ARCHITECTURE = "controlvector"
PROVENANCE = "penchant.provenance"
"""Key of the JSON that says where the vectors come from; other tools pass over it."""

_TENSOR_NAME = re.compile(r"direction\.([1-9][0-9]{0,5})")
_LENGTH_TOLERANCE = 1e-4


def export_gguf(
    path: str | Path, vectors: Kept | Sequence[Kept] | Mapping[int, Kept], *, model_hint: str | None = None
) -> Path:
    """Write a GGUF control vector: for llama.cpp's `--control-vector-scaled`, or repeng's `ControlVector.import_gguf`.

    llama.cpp pushes every token of prompt and answer, the first one included; an Intervention leaves special tokens out.

    Parameters
    ----------
    vectors
        Directions (coefficient 1.0 adds a unit vector) or steering vectors (it adds one residual norm), one a layer.
    model_hint
        What the file calls the model's architecture; default: the family of the model, which is what repeng writes.

    Raises
    ------
    ValueError
        There are no vectors, two are at one layer, or one at layer 0 or embed; they are of several models, or of both kinds;
        or the name does not end in .gguf.
    """
    import gguf

    listed, path = _checked(vectors), _named(path, ".gguf")
    layers = [_direction(each).layer for each in listed]
    if below := [layer for layer in layers if layer < 1]:
        raise ValueError(
            f"A GGUF control vector has no place for {layer_name(below[0])}: llama.cpp refuses direction.0, and steers the "
            "outputs of blocks 1 and up only. Leave it out, or take a direction at a deeper layer."
        )
    if twice := [layer for layer in layers if layers.count(layer) > 1]:
        raise ValueError(
            f"Several vectors are at {layer_name(twice[0])}; a GGUF control vector has one a layer. Write several files, or "
            "add them up first: (one + other).direction()."
        )
    with _scratch(path) as scratch:
        writer = gguf.GGUFWriter(scratch, ARCHITECTURE)
        writer.add_string(f"{ARCHITECTURE}.model_hint", model_hint or _direction(listed[0]).model.family)
        writer.add_uint32(f"{ARCHITECTURE}.layer_count", len(listed))
        writer.add_string(PROVENANCE, json.dumps(_described(listed)))
        for layer, each in zip(layers, listed, strict=True):
            writer.add_tensor(f"direction.{layer}", _pushed(each))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
    return path


def export_numpy(path: str | Path, vectors: Kept | Sequence[Kept] | Mapping[int, Kept]) -> Path:
    """Write an npz of plain arrays: `layers` (-1 is embed), `vectors` (float32, a row each) and `provenance` (JSON).

    Several vectors may be at one layer. `numpy.load(path, allow_pickle=False)` reads it.

    Raises
    ------
    ValueError
        There are no vectors; they are of several models, or of both kinds; or the name does not end in .npz.
    """
    listed, path = _checked(vectors), _named(path, ".npz")
    with _scratch(path) as scratch, open(scratch, "wb") as file:
        np.savez(
            file,
            layers=np.array([_direction(each).layer for each in listed], dtype=np.int64),
            vectors=np.stack([_pushed(each) for each in listed]),
            provenance=np.array(json.dumps(_described(listed))),
        )
    return path


def import_gguf(path: str | Path, model: ModelIdentity | None = None) -> list[Kept]:
    """Read a GGUF control vector, penchant's own or another tool's, in the order of layers. The file is not trusted.

    Parameters
    ----------
    model
        Whose residual stream the vectors are for; default: what penchant wrote in the file, or an unknown model.

    Returns
    -------
    What was exported, if penchant wrote the file. Otherwise directions whose provenance keeps the `length` that the vector had
    there: no residual norm is known to go with it (`model.calibrate` measures one). Layers whose vector is all zeros are left
    out.

    Raises
    ------
    ValueError
        The file is not a GGUF control vector, its vectors are not finite numbers of one width, or `model` is of another family
        than the file says.
    """
    fields, tensors = _read(path)
    hint = fields.get(f"{ARCHITECTURE}.model_hint", "unknown")
    if not isinstance(hint, str):
        raise ValueError(f"controlvector.model_hint in {path} is {hint!r}; expected a text.")
    own = _own(fields[PROVENANCE], path) if PROVENANCE in fields else {}
    known = own.get("model")
    if model and known and model.family != known.family:
        raise ValueError(
            f"{path} was made for {known.name} ({known.family}) and does not fit {model.name} ({model.family}). Make "
            "directions from activations of this model."
        )
    identity = model or known or ModelIdentity("unknown", hint, digest("imported", hint))
    described = own.get("vectors", {})
    if own and set(described) != set(tensors):
        raise ValueError(
            f"{PROVENANCE} in {path} is of layers {sorted(described)}, and there are vectors for {sorted(tensors)}; expected "
            "the same. Leave the key out if another tool changed the file."
        )
    found = [
        _restored(vector, layer, identity, described[layer], path)
        if own
        else _foreign(vector, layer, identity, Path(path).name, hint)
        for layer, vector in sorted(tensors.items())
        if own or vector.any()
    ]
    if not found:
        raise ValueError(
            f"Every vector in {path} is zero or there is none; expected tensors called direction.1, direction.2, ..."
        )
    return found


def _checked(vectors: Kept | Sequence[Kept] | Mapping[int, Kept]) -> list[Kept]:
    """Vectors as a list: one or more, of one kind and one residual stream."""
    if isinstance(vectors, Mapping):
        if other := [(layer, each) for layer, each in vectors.items() if _direction(each).layer != layer]:
            layer, each = other[0]
            raise ValueError(
                f"The direction given for {layer_name(layer)} is at {layer_name(_direction(each).layer)}; expected it under "
                "its own layer. dataclasses.replace(direction, layer=...) moves one."
            )
        vectors = list(vectors.values())
    listed = [vectors] if isinstance(vectors, Direction | SteeringVector) else list(vectors)
    if not listed:
        raise ValueError("There are no directions to export; expected at least one.")
    if strange := [each for each in listed if not isinstance(each, Direction | SteeringVector)]:
        raise ValueError(
            f"Cannot export a {type(strange[0]).__name__}; expected a Direction or a SteeringVector. Call .direction() on a "
            "combination or a probe."
        )
    if len({type(each) for each in listed}) > 1:
        raise ValueError(
            "There are unit directions and norm-scaled steering vectors among these, and one coefficient would scale both. "
            "Calibrate all of them, or none."
        )
    first = _direction(listed[0])
    for each in map(_direction, listed):
        if (each.model.fingerprint, each.vector.shape) != (first.model.fingerprint, first.vector.shape):
            raise ValueError(
                f"One direction is of {first.model.name} (width {first.vector.shape[-1]}) and another of {each.model.name} "
                f"(width {each.vector.shape[-1]}); expected directions of one model."
            )
        if not np.isfinite(each.vector).all():
            raise ValueError(f"The direction at {layer_name(each.layer)} has values that are not finite.")
    return listed


def _named(path: str | Path, suffix: str) -> Path:
    if Path(path).suffix != suffix:
        raise ValueError(f"Cannot export to {str(path)!r}; expected a name that ends in {suffix}.")
    return Path(path)


@contextmanager
def _scratch(path: Path) -> Iterator[Path]:
    """A file beside `path` that takes its place once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    try:
        yield scratch
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _direction(kept: Kept) -> Direction:
    return kept.direction if isinstance(kept, SteeringVector) else kept


def _pushed(kept: Kept) -> Float[np.ndarray, " d_model"]:
    """What coefficient 1.0 adds."""
    norm = kept.norm if isinstance(kept, SteeringVector) else 1.0
    return (_direction(kept).vector.astype(np.float64) * norm).astype(np.float32)


def _described(listed: Sequence[Kept]) -> dict[str, Any]:
    rows = []
    for each in listed:
        direction = _direction(each)
        row = {"layer": direction.layer, "fingerprint": direction.fingerprint, "provenance": dict(direction.provenance)}
        if isinstance(each, SteeringVector):
            row |= {"norm": each.norm, "calibration": dict(each.calibration)}
        rows.append(row)
    return {"model": asdict(_direction(listed[0]).model), "vectors": rows}


def _read(path: str | Path) -> tuple[dict[str, Any], dict[int, Float[np.ndarray, " d_model"]]]:
    """Fields and vectors of a control vector, checked one by one."""
    import gguf

    class Reader(gguf.GGUFReader):
        def _get(self, offset: Any, dtype: Any, count: Any = 1, override_order: Any = None) -> Any:
            # Past the end of a file the package reads nothing, and an array that claims to be long would keep it at that.
            found = super()._get(offset, dtype, count, override_order)
            if len(found) < int(count):
                raise ValueError("it ends before what it says it holds")
            return found

    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    try:
        reader = Reader(path)
        fields = {name: field.contents() for name, field in reader.fields.items()}
    except OSError:
        raise
    except Exception as error:  # a file from elsewhere fails in any way
        raise ValueError(f"{path} cannot be read as GGUF: {error}") from error
    if fields.get("general.architecture") != ARCHITECTURE:
        raise ValueError(
            f"The architecture of {path} is {fields.get('general.architecture')!r}; expected {ARCHITECTURE!r}, a control "
            "vector (a GGUF model is no such thing)."
        )
    tensors: dict[int, np.ndarray] = {}
    for tensor in reader.tensors:
        match = _TENSOR_NAME.fullmatch(tensor.name)
        if match is None:
            raise ValueError(
                f"{path} has a tensor {tensor.name!r}; expected direction.N, with N the number of a block from 1 up."
            )
        if tensor.tensor_type != gguf.GGMLQuantizationType.F32 or tensor.data.ndim != 1:
            raise ValueError(
                f"{tensor.name} in {path} is {tensor.tensor_type.name} of shape {tensor.data.shape}; expected a vector of F32."
            )
        vector = np.array(tensor.data, dtype=np.float32)
        if not np.isfinite(vector).all():
            raise ValueError(
                f"{tensor.name} in {path} has {int((~np.isfinite(vector)).sum())} values that are not finite; expected numbers."
            )
        tensors[int(match[1])] = vector
    if len(widths := {layer: len(vector) for layer, vector in tensors.items()}) and len(set(widths.values())) > 1:
        raise ValueError(f"Vectors in {path} have the widths {widths} by layer; expected those of one residual stream.")
    return fields, tensors


def _own(text: Any, path: str | Path) -> dict[str, Any]:
    """What penchant wrote of its vectors: the model, and by layer everything else."""
    try:
        found = json.loads(text)
        model = ModelIdentity(*(str(found["model"][name]) for name in ("name", "family", "fingerprint")))
        vectors = {int(row["layer"]): dict(row) for row in found["vectors"]}
        for row in vectors.values():
            row["provenance"], row["calibration"] = dict(row["provenance"]), dict(row.get("calibration", {}))
            if "norm" in row:
                row["norm"] = float(row["norm"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{PROVENANCE} in {path} is not what penchant writes: {error!r}.") from error
    return {"model": model, "vectors": vectors}


def _restored(
    vector: Float[np.ndarray, " d_model"], layer: int, model: ModelIdentity, row: Mapping[str, Any], path: str | Path
) -> Kept:
    norm, length = row.get("norm", 1.0), float(np.linalg.norm(vector.astype(np.float64)))
    if not abs(length - norm) <= _LENGTH_TOLERANCE * length:
        raise ValueError(
            f"direction.{layer} in {path} has length {length:g}, and {PROVENANCE} says {norm:g}; expected the same. Leave the "
            "key out if another tool scaled the vectors."
        )
    if "norm" not in row:
        return Direction(vector, layer, model, row["provenance"])
    unit = (vector.astype(np.float64) / length).astype(np.float32)
    return SteeringVector(Direction(unit, layer, model, row["provenance"]), norm, row["calibration"])


def _foreign(vector: Float[np.ndarray, " d_model"], layer: int, model: ModelIdentity, file: str, hint: str) -> Direction:
    return Direction.from_vector(vector, layer, model, method="imported", file=file, model_hint=hint)
