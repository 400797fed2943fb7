"""Directions from elsewhere: GGUF control vectors of repeng and llama.cpp, and plain `.npy` vectors, which say least."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.imports.tables import ForeignFileError, file_digest
from store import EMBED, Direction, SteeringVector, import_gguf, layer_name
from store.directions import save
from store.layout import layer_number
from store.provenance import ModelIdentity

_WIDEST = 1_000_000


def import_directions(
    source: Path,
    out: Path,
    *,
    layer: str | None = None,
    model: ModelIdentity | None = None,
    shape: tuple[int, int] | None = None,
) -> list[tuple[Path, Direction | SteeringVector]]:
    """Read directions, and write each as safetensors.

    Parameters
    ----------
    out
        A `.safetensors` file, for one; or a folder, which gets `L15.safetensors` for each layer.
    layer
        Of a `.npy`, where it is; of a GGUF file with several, which is wanted.
    model
        Whose residual stream the vectors are for. A `.npy` does not say; a GGUF file says at most a family.
    shape
        That model's number of blocks and width of the residual stream, if they are known: what does not fit is an error.

    Returns
    -------
    What was written where.

    Raises
    ------
    ForeignFileError
        The file is of another kind, cannot be read, has several vectors for one file, or does not fit the model; or a `.npy`
        comes without layer or model.
    ValueError
        See `store.import_gguf`.
    """
    if not source.is_file():
        raise ForeignFileError(f"There is no file {source}.")
    match source.suffix.lower():
        case ".gguf":
            found = import_gguf(source, model)
        case ".npy":
            found = [_of_npy(source, layer, model)]
        case other:
            raise ForeignFileError(f"{source} is a {other or 'nameless'} file; expected .gguf or .npy.")
    if layer is not None:
        found = _at_layer(found, layer_number(layer), source)
    if shape is not None and model is not None:
        for each in found:
            _check_fits(each, source, model, shape)
    if out.suffix != ".safetensors":
        paths = [out / f"{layer_name(_layer(each))}.safetensors" for each in found]
    elif len(found) == 1:
        paths = [out]
    else:
        raise ForeignFileError(
            f"{source} has vectors at {', '.join(layer_name(_layer(each)) for each in found)}, and {out} is one file; name one "
            "with --layer, or give --out a folder."
        )
    for path, each in zip(paths, found, strict=True):
        save(each, path)
    return list(zip(paths, found, strict=True))


def _of_npy(source: Path, layer: str | None, model: ModelIdentity | None) -> Direction:
    if layer is None or model is None:
        missing = " and ".join(
            name for name, value in (("--layer", layer), ("--model or --fingerprint", model)) if value is None
        )
        raise ForeignFileError(f"{source} says nothing of where its vector is from; give {missing} with it.")
    try:
        mapped = np.load(source, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a file from elsewhere fails in any way
        raise ForeignFileError(f"{source} cannot be read as a plain .npy: {error}") from error
    if not isinstance(mapped, np.ndarray) or mapped.dtype.kind != "f" or mapped.squeeze().ndim != 1 or mapped.size > _WIDEST:
        shape = f"{mapped.dtype} of shape {mapped.shape}" if isinstance(mapped, np.ndarray) else "no array"
        raise ForeignFileError(
            f"{source} holds {shape}; expected the floats of one vector. Of a table with a row a layer, save one: "
            'numpy.save("L15.npy", table[15]).'
        )
    vector = np.array(mapped.squeeze(), dtype=np.float32)
    if not np.isfinite(vector).all():
        raise ForeignFileError(
            f"{source} has {int((~np.isfinite(vector)).sum())} values that are not finite; expected numbers."
        )
    return Direction.from_vector(
        vector, layer_number(layer), model, method="imported", file=source.name, sha256=file_digest(source)
    )


def _at_layer(found: Sequence[Direction | SteeringVector], layer: int, source: Path) -> list[Direction | SteeringVector]:
    kept = [each for each in found if _layer(each) == layer]
    if not kept:
        raise ForeignFileError(
            f"{source} has no vector at {layer_name(layer)}; it has {', '.join(layer_name(_layer(each)) for each in found)}."
        )
    return kept


def _check_fits(value: Direction | SteeringVector, source: Path, model: ModelIdentity, shape: tuple[int, int]) -> None:
    n_layers, d_model = shape
    direction = value.direction if isinstance(value, SteeringVector) else value
    if direction.vector.shape != (d_model,):
        raise ForeignFileError(
            f"{source} has {len(direction.vector)} numbers; the residual stream of {model.name} has {d_model}. Give the "
            "--model that the vector was made with."
        )
    if not EMBED <= direction.layer < n_layers:
        raise ForeignFileError(
            f"{source} is at layer {direction.layer}; {model.name} has embed and layers 0 to {n_layers - 1}. Give the --layer "
            "that it was made at, or the --model that it was made with."
        )


def _layer(value: Direction | SteeringVector) -> int:
    return value.direction.layer if isinstance(value, SteeringVector) else value.layer
