"""Activations from elsewhere: npz, safetensors, and Hugging Face data sets on disk, made into an activation store.

All of them end in `store.import_npz`, which believes nothing of what an array says of itself.
"""

import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from elicit import read_ids
from experiments.imports.tables import ForeignFileError
from store import ActivationStore, import_npz
from store.layout import layer_number
from store.provenance import ModelIdentity


def import_activations(
    source: Path,
    out: Path,
    *,
    arrays: Mapping[str, str] | None = None,
    task_ids: Path | None = None,
    id_column: str = "task_id",
    split: str | None = None,
    model: ModelIdentity | None = None,
    dtype: str = "float32",
) -> ActivationStore:
    """Make an activation store of arrays `(tasks, width)`.

    Parameters
    ----------
    source
        An `.npz` or `.safetensors` file, a Parquet file with a list of numbers a row, or the folder of a data set that
        `save_to_disk` of the package datasets made.
    arrays
        For each array, or column, the layer and position that it is of: `{"layer_15": "L15/prompt_last"}`.
    task_ids
        File with the ids of the rows, one a line, for arrays that come without.
    id_column
        Of a data set or Parquet file.
    split
        Of a data set that has several.
    model
        Whose activations these are; default: what penchant wrote in the file, or an unknown model.
    dtype
        `float32`, or `bfloat16` to round.

    Raises
    ------
    ForeignFileError
        The file cannot be read, would not fit in memory, or has no ids.
    ValueError
        See `store.import_npz`.
    ImportError
        The package datasets is needed and not installed.
    """
    if not source.exists():
        raise ForeignFileError(f"There is no file {source}.")
    if out.exists():
        raise FileExistsError(f"There is a file {out} already; give another --out.")
    names = {name: _place(place) for name, place in (arrays or {}).items()}
    given = np.array(read_ids(task_ids)) if task_ids else None
    if source.suffix == ".npz" and given is None:
        _check_npz(source)
        return import_npz(source, out, model=model, names=names, dtype=dtype)
    if source.is_dir():
        found = _of_data_set(source, id_column, split, names)
    elif source.suffix == ".npz":
        found = read_npz(source)
    elif source.suffix == ".safetensors":
        found = _of_safetensors(source)
    elif source.suffix == ".parquet":
        found = _of_parquet(source, id_column, names)
    else:
        raise ForeignFileError(
            f"{source} is a {source.suffix or 'nameless'} file; expected .npz, .safetensors or .parquet, or the folder of a "
            "data set on disk."
        )
    if given is not None:
        found["task_id"] = given
    if "task_id" not in found:
        raise ForeignFileError(
            f"{source} does not say whose rows these are; give --task-ids FILE, one id a line, in their order."
        )
    with _as_npz(found, out) as scratch:
        try:
            return import_npz(scratch, out, model=model, names=names, dtype=dtype)
        except ValueError as error:
            raise ForeignFileError(str(error).replace(str(scratch), str(source))) from error


def _place(text: str) -> tuple[int, str]:
    """`L15/prompt_last` as a layer and a position."""
    layer, slash, position = text.partition("/")
    if not slash or not position:
        raise ForeignFileError(f"--arrays maps to {text!r}; expected a layer and a position, such as L15/prompt_last.")
    return layer_number(layer), position


def _check_fits(size: int, source: Path) -> None:
    """Refuse what would fill the memory, before anything is unpacked."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory / 2:
        raise ForeignFileError(
            f"The arrays in {source} take {size / 1e9:,.1f} GB, more than half of this machine's memory "
            f"({memory / 1e9:,.1f} GB). Write them in parts; the stores of the parts are merged by penchant store merge."
        )


def _check_npz(source: Path) -> None:
    if zipfile.is_zipfile(source):  # what is none, import_npz says
        with zipfile.ZipFile(source) as archive:
            _check_fits(sum(member.file_size for member in archive.infolist()), source)


def read_npz(source: Path) -> dict[str, np.ndarray]:
    """Plain arrays of an npz file; nothing is unpickled.

    Raises
    ------
    ForeignFileError
        The file cannot be read, or would not fit in memory.
    """
    _check_npz(source)
    try:
        with np.load(source, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # a file from elsewhere fails in any way
        raise ForeignFileError(f"{source} cannot be read as an npz of plain arrays: {error}") from error


def _of_safetensors(source: Path) -> dict[str, np.ndarray]:
    """Arrays, and what penchant's own export has in the metadata."""
    import json

    import torch
    from safetensors import SafetensorError, safe_open

    _check_fits(2 * source.stat().st_size, source)  # bfloat16 doubles
    try:
        with safe_open(str(source), "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (the file is no mapping)
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ForeignFileError(f"{source} cannot be read as safetensors: {error}") from error
    found = {name: (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy() for name, tensor in tensors.items()}
    if "task_id" in metadata:
        try:
            found["task_id"] = np.array([str(each) for each in json.loads(metadata["task_id"])])
        except (ValueError, TypeError, RecursionError) as error:
            raise ForeignFileError(f"task_id in the metadata of {source} is no list of ids: {error}.") from error
    if "header" in metadata:
        found["header"] = np.array(metadata["header"])
    return found


def _of_parquet(source: Path, id_column: str, names: Mapping[str, Any]) -> dict[str, np.ndarray]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
        _check_fits(sum(file.metadata.row_group(group).total_byte_size for group in range(file.num_row_groups)), source)
        table = file.read()
    except pa.ArrowException as error:
        raise ForeignFileError(f"{source} cannot be read as Parquet: {error}") from error
    return _of_columns(table, source, id_column, names)


def _of_data_set(source: Path, id_column: str, split: str | None, names: Mapping[str, Any]) -> dict[str, np.ndarray]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"{source} is a folder, and a data set on disk is read by the package datasets: pip install datasets."
        ) from error
    _check_fits(sum(path.stat().st_size for path in source.rglob("*.arrow")), source)
    try:
        found = datasets.load_from_disk(str(source))
    except Exception as error:  # a folder from elsewhere fails in any way
        raise ForeignFileError(f"{source} is no data set that save_to_disk wrote: {error}") from error
    if isinstance(found, datasets.DatasetDict):
        splits = [str(each) for each in found]
        if split not in splits and (split is not None or len(splits) > 1):
            raise ForeignFileError(f"{source} has the splits {', '.join(splits)}; say which with --split.")
        found = found[split or splits[0]]
    return _of_columns(found.with_format("arrow")[:], source, id_column, names)


def _of_columns(table: Any, source: Path, id_column: str, names: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The id column, and columns with a list of numbers a row."""
    import pyarrow as pa

    if id_column not in table.column_names:
        raise ForeignFileError(
            f"{source} has no column {id_column!r}; it has {', '.join(table.column_names)}. Name the ids with --id-column."
        )
    found = {"task_id": np.array([str(each) for each in table[id_column].to_pylist()])}
    for name in table.column_names:
        kind = table.schema.field(name).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if name == id_column or not (is_list and pa.types.is_floating(kind.value_type)):
            if name in names:
                raise ForeignFileError(f"The column {name} of {source} holds {kind}; expected a list of floats a row.")
            continue
        column = table[name].combine_chunks()
        flat, lengths = column.flatten(), {len(row) if row.is_valid else 0 for row in column}
        if len(lengths) != 1 or flat.null_count:
            raise ForeignFileError(
                f"Rows of {name} in {source} have the lengths {sorted(lengths)}; expected one length, no gaps."
            )
        found[name] = flat.to_numpy(zero_copy_only=False).reshape(len(column), lengths.pop())
    return found


@contextmanager
def _as_npz(arrays: Mapping[str, np.ndarray], out: Path) -> Iterator[Path]:
    """A scratch file beside `out`, for the length of an import."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        path = Path(folder) / "arrays.npz"
        with zipfile.ZipFile(path, "w", allowZip64=True) as archive:
            for name, array in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)
        yield path
