"""Activation stores to and from other files: shards merged into one, and rows as npz or safetensors for other tools."""

import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from store.activations import ActivationStore
from store.layout import EMBED, DamagedStore, Slots, StoreFile, StoreHeader, create_store, layer_name
from store.provenance import ModelIdentity, digest
from store.writer import ActivationWriter

_TASKS_PER_STEP = 256
_RESIDUAL_NAME = re.compile(r"(?:residuals/)?(embed|L\d+)/([^/]+)")


def merge(paths: Sequence[str | Path], out: str | Path) -> ActivationStore:
    """Copy the finished tasks of several shards into one new store, bit for bit; every checksum is checked on the way.

    Raises
    ------
    StoreMismatch
        The shards differ in more than their tasks, or share one.
    DamagedStore
        A task's bytes have changed since they were written.
    FileExistsError
        There is a file at `out`.
    """
    shards = ActivationStore(paths)
    chosen = [(file, np.flatnonzero(file.arrays["done"])) for file in shards.files]
    slots = Slots(
        task_ids=[file.task_ids[slot] for file, kept in chosen for slot in kept],
        prompts=[file.prompts[slot] for file, kept in chosen for slot in kept],
        rows={p: np.concatenate([file.row_counts(p, kept) for file, kept in chosen]) for p in shards.by_token},
        answers=[file.answers[slot] for file, kept in chosen for slot in kept],
    )
    with (
        _new_store(out, shards.header, slots) as writer,
        tqdm(total=len(slots.task_ids), desc="merge", unit="task", disable=None) as progress,
    ):
        first = 0
        for file, kept in chosen:
            for start in range(0, len(kept), _TASKS_PER_STEP):
                part = kept[start : start + _TASKS_PER_STEP]
                _check(file, part)
                writer.copy(first + np.arange(len(part)), file, part)
                first += len(part)
                progress.update(len(part))
    return ActivationStore(out)


@contextmanager
def _new_store(path: str | Path, header: StoreHeader, slots: Slots) -> Iterator[ActivationWriter]:
    """The writer of a store that is made here, and deleted if anything goes wrong."""
    create_store(path, header, slots)
    try:
        with ActivationWriter(path) as writer:
            yield writer
    except BaseException:
        Path(path).unlink()
        raise


def _check(file: StoreFile, slots: np.ndarray) -> None:
    for slot in slots.tolist():
        if not file.is_whole(slot):
            raise DamagedStore(
                f"The bytes of task {file.task_ids[slot]!r} in {file.path} have changed since they were written. Capture that "
                "shard again."
            )


def export(
    store: ActivationStore,
    out: str | Path,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    tasks: Sequence[str] | None = None,
) -> Path:
    """Write rows as float32 to an `.npz` or a `.safetensors` file.

    Arrays are called `L15/task_mean`; beside them are the task ids, where each row's token stands (`token_index/P`), how many
    rows a task has where there are several (`row_counts/P`), and the store's header as JSON. An npz holds the ids and the
    header as arrays of text and is written a table at a time; safetensors keeps them in its metadata, and is put together
    in memory.

    Parameters
    ----------
    layers, positions, tasks
        Which; default all of the store's, skipped tasks left out.

    Raises
    ------
    ValueError
        The name ends in neither.
    KeyError
        The store has no such layer, position or task.
    """
    out = Path(out)
    layers = store.header.layers if layers is None else layers
    positions = store.header.positions if positions is None else positions
    task_ids = [store.task_ids[slot] for slot in store.slots(tasks)]
    header = json.dumps(asdict(store.header) | {"layers": list(layers), "positions": list(positions)})
    if out.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"Cannot export to {out.name!r}; expected a name that ends in .npz or .safetensors.")
    arrays = _tables(store, layers, positions, task_ids)
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = out.with_name(f".{out.name}.partial")
    try:
        if out.suffix == ".npz":
            texts = {"task_id": np.array(task_ids), "header": np.array(header)}
            with zipfile.ZipFile(scratch, "w", allowZip64=True) as archive:
                for name, array in (*texts.items(), *arrays):
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                        np.lib.format.write_array(member, array, allow_pickle=False)
        else:
            from safetensors.numpy import save_file

            save_file(
                {name: np.ascontiguousarray(array) for name, array in arrays},
                scratch,
                metadata={"task_id": json.dumps(task_ids), "header": header},
            )
        scratch.replace(out)
    finally:
        scratch.unlink(missing_ok=True)
    return out


def _tables(
    store: ActivationStore, layers: Sequence[int], positions: Sequence[str], task_ids: list[str]
) -> Iterator[tuple[str, np.ndarray]]:
    for position in positions:
        yield f"token_index/{position}", store.token_index(position, task_ids)
        if position in store.by_token:
            yield f"row_counts/{position}", store.row_counts(position, task_ids)
        for layer in layers:
            yield f"{layer_name(layer)}/{position}", store.load(layer, position, task_ids)


def import_npz(
    source: str | Path,
    out: str | Path,
    *,
    model: ModelIdentity | None = None,
    names: Mapping[str, tuple[int, str]] | None = None,
    dtype: str = "float32",
) -> ActivationStore:
    """Make a store from arrays in an npz file, penchant's own or another tool's. The file is not trusted: no pickles.

    Parameters
    ----------
    source
        Arrays of shape `(tasks, width)` called `L15/task_mean` or `embed/prompt_last`, and `task_id`, an array of text.
    model
        Whose activations these are; default: what the file's header says, or an unknown model.
    names
        For arrays called otherwise, the layer and position that each is of.
    dtype
        `float32`, or `bfloat16` to round.

    Raises
    ------
    ValueError
        The file cannot be read, has no such arrays, or they do not fit together.
    """
    if not zipfile.is_zipfile(source):
        raise ValueError(f"{source} cannot be read as an npz of plain arrays: it is not an npz file, as numpy.savez writes it.")
    try:
        with np.load(source, allow_pickle=False) as archive:
            arrays = {name: array for name in archive.files if isinstance(array := archive[name], np.ndarray)}
    except Exception as error:  # a file from elsewhere fails in any way
        raise ValueError(f"{source} cannot be read as an npz of plain arrays: {error}") from error
    task_ids = _task_ids(arrays, str(source))
    tables = _named_tables(arrays, names or {}, str(source))
    own = _own_header(arrays, str(source))
    layers = tuple(sorted({layer for layer, _ in tables}))
    positions = tuple(dict.fromkeys(position for _, position in tables))
    header = StoreHeader(
        model=model or (ModelIdentity(**own["model"]) if own else ModelIdentity("unknown", "unknown", digest("imported"))),
        tokenizer_hash=own.get("tokenizer_hash", "unknown"),
        template_hash=own.get("template_hash", "unknown"),
        attention=own.get("attention", "unknown"),
        dtype=dtype,
        d_model=next(iter(tables.values())).shape[1],
        layers=layers,
        positions=positions,
    )
    counts = {position: arrays[f"row_counts/{position}"] for position in positions if f"row_counts/{position}" in arrays}
    for layer in layers:
        for position in positions:
            expected = (int(counts[position].sum()) if position in counts else len(task_ids), header.d_model)
            found = tables[layer, position].shape if (layer, position) in tables else None
            if found != expected:
                raise ValueError(
                    f"{layer_name(layer)}/{position} in {source} is {found or 'missing'}; expected shape {expected}."
                )
    index = {p: arrays.get(f"token_index/{p}", np.full(len(tables[layers[0], p]), -1)).astype(np.int32) for p in positions}
    slots = Slots(task_ids, [digest("imported", task_id)[:32] for task_id in task_ids], counts)
    with _new_store(out, header, slots) as writer:
        writer.write(np.arange(len(task_ids)), tables, np.zeros(len(task_ids), dtype=np.int32), index)
    return ActivationStore(out)


def _task_ids(arrays: Mapping[str, np.ndarray], source: str) -> list[str]:
    found = arrays.get("task_id")
    if found is None or not found.size:
        raise ValueError(f"{source} has no array 'task_id'; expected the id of every row. It has {sorted(arrays)}.")
    if found.ndim != 1 or found.dtype.kind not in "USiu":
        raise ValueError(f"task_id in {source} is {found.dtype} of shape {found.shape}; expected text, an id for every row.")
    return [each.decode() if isinstance(each, bytes) else str(each) for each in found.tolist()]


def _named_tables(
    arrays: Mapping[str, np.ndarray], names: Mapping[str, tuple[int, str]], source: str
) -> dict[tuple[int, str], np.ndarray]:
    if absent := sorted(set(names) - set(arrays)):
        raise ValueError(f"{source} has no arrays called {absent}; it has {sorted(arrays)}.")
    tables: dict[tuple[int, str], np.ndarray] = {}
    for name, array in arrays.items():
        match = _RESIDUAL_NAME.fullmatch(name)
        if name in names:
            key = names[name]
        elif match is not None and match[1] == "embed":
            key = (EMBED, match[2])
        elif match is not None:
            key = (int(match[1][1:]), match[2])
        else:
            continue
        if array.ndim != 2 or array.dtype.kind != "f":
            raise ValueError(f"{name} in {source} is {array.dtype} of shape {array.shape}; expected floats (tasks, width).")
        tables[key] = array.astype(np.float32)
    if not tables:
        raise ValueError(
            f"{source} has no array called like L15/task_mean or embed/prompt_last; it has {sorted(arrays)}. Say which layer "
            "and position each is of with names={'array': (15, 'task_mean')}."
        )
    return tables


def _own_header(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, Any]:
    if "header" not in arrays:
        return {}
    try:
        header = json.loads(str(arrays["header"].item()))
        fields = {name: str(header["model"][name]) for name in ("name", "family", "fingerprint")}
        return {"model": fields} | {name: str(header[name]) for name in ("tokenizer_hash", "template_hash", "attention")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"The header in {source} is not one that penchant writes: {error!r}.") from error
