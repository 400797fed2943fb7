"""The activation store: residual streams in HDF5, written so that a kill at any instant loses no committed row.

`create_store` lets h5py lay out contiguous datasets and then allocates every byte. From there on rows move through a
memory map at the datasets' file offsets, so no HDF5 metadata can change: a writer puts rows, flushes, marks them
`done` and flushes again. Any HDF5 reader can open the file; penchant reads it through the same map.
"""

import fcntl
import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Float, Int, UInt16

from store.provenance import ModelIdentity, stamp

FORMAT_VERSION = 1
LAYER_CONVENTION = "block index from 0, residual stream after the block; 'embed' (-1) is the stream before block 0"
EMBED = -1
"""Layer number of the stream before block 0."""

_DATASET_ALIGNMENT = 4096
_STORED_AS = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}


class StoreMismatch(ValueError):
    """A store was opened for other content than it holds; the message names the field that differs."""


class DamagedStore(ValueError):
    """A store's bytes are not what they should be; the message says where."""


def layer_name(layer: int) -> str:
    """Name of a layer in files and tables: `L15`, or `embed` for the stream before block 0."""
    return "embed" if layer == EMBED else f"L{layer}"


@dataclass(frozen=True)
class StoreHeader:
    """What a store's rows are of. Two stores with equal headers and tasks hold the same numbers.

    Attributes
    ----------
    model
        Name, family and fingerprint (digest of weights, dtype and intervention).
    tokenizer_hash, template_hash, prompts_digest
        Digests of the tokenizer, the chat template, and the rendered tokens of all prompts in task order.
    attention
        Attention implementation and batch layout that computed the rows.
    dtype
        `float32`, or `bfloat16` kept as its 16 bits in uint16.
    layers, positions, d_model
        The grid of datasets, and their width.
    """

    model: ModelIdentity
    tokenizer_hash: str
    template_hash: str
    prompts_digest: str
    attention: str
    dtype: str
    d_model: int
    layers: tuple[int, ...]
    positions: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in _STORED_AS:
            raise ValueError(
                f"Store dtype {self.dtype!r}; expected one of {sorted(_STORED_AS)}. "
                "(float16 overflows on residual streams and is not offered.)"
            )
        for name in ("layers", "positions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"Store {name} are {values}; expected at least one, none repeated.")

    @property
    def keys(self) -> list[tuple[int, str]]:
        """Every (layer, position) of the grid, in storage order."""
        return [(layer, position) for layer in self.layers for position in self.positions]


def to_bfloat16_bits(values: Float[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Round float32 to bfloat16 (nearest, ties to even) and return its 16 bits."""
    bits = np.ascontiguousarray(values, dtype="<f4").view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bfloat16_bits(bits: UInt16[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Undo `to_bfloat16_bits` (exact: every bfloat16 is a float32)."""
    return (bits.astype("<u4") << 16).view("<f4")


def create_store(path: str | Path, header: StoreHeader, task_ids: Sequence[str]) -> None:
    """Lay out a store for `task_ids` with every byte allocated and no row committed.

    The file appears under its name only when it is complete. A disk too small for it is met here, not in mid-run.

    Raises
    ------
    ValueError
        No tasks, or a task id twice.
    OSError
        The file cannot be written, or the disk is too small.
    """
    path = Path(path)
    if not task_ids:
        raise ValueError("A store needs at least one task; the task list is empty.")
    encoded = [task_id.encode() for task_id in task_ids]
    if len(set(encoded)) != len(encoded):
        twice = next(task_id for task_id in task_ids if list(task_ids).count(task_id) > 1)
        raise ValueError(f"Task id {twice!r} appears more than once; a store has one row per task.")
    n = len(encoded)
    shapes: dict[str, tuple[tuple[int, ...], np.dtype]] = {
        f"residuals/{layer_name(layer)}/{position}": ((n, header.d_model), _STORED_AS[header.dtype])
        for layer, position in header.keys
    }
    shapes |= {
        "n_tokens": ((n,), np.dtype("<i4")),
        "token_index": ((n, len(header.positions)), np.dtype("<i4")),
        "row_crc": ((n,), np.dtype("<u4")),
        "norms": ((len(header.layers), len(header.positions), 2), np.dtype("<f8")),
        "done": ((n,), np.dtype("u1")),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(scratch, "w", alignment_threshold=_DATASET_ALIGNMENT, alignment_interval=_DATASET_ALIGNMENT) as file:
            described = asdict(header)
            model = {f"model.{name}": value for name, value in described.pop("model").items()}
            attributes: dict[str, Any] = (
                described
                | model
                | {
                    "format_version": FORMAT_VERSION,
                    "layer_convention": LAYER_CONVENTION,
                    **{f"version.{package}": version for package, version in stamp().items()},
                }
            )
            for name, value in attributes.items():
                file.attrs[name] = list(value) if isinstance(value, tuple) else value
            file.create_dataset("task_id", data=np.array(encoded))
            for name, (shape, dtype) in shapes.items():
                _create_contiguous(file, name, shape, dtype)
        with open(scratch, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _create_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=properties, lcpl=links)


class ActivationStore:
    """A store opened for reading.

    Parameters
    ----------
    path
        HDF5 file written by penchant. Rows committed by a writer elsewhere become visible as they are committed.

    Raises
    ------
    FileNotFoundError, DamagedStore
        No such file; not a penchant store, or shorter than its datasets.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._map_file(writable=False)

    def _map_file(self, writable: bool) -> None:
        if not self.path.exists():
            raise FileNotFoundError(f"No activation store at {self.path}; capture activations into it first.")
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                version = file.attrs.get("format_version")
                if version != FORMAT_VERSION:
                    raise DamagedStore(
                        f"{self.path} has store format {version!r}; this penchant reads format {FORMAT_VERSION}."
                    )
                self.header = _read_header(file)
                self.task_ids: list[str] = [raw.decode() for raw in _dataset(file, "task_id")[:]]
                layout = {name: _locate(_dataset(file, name)) for name in self._dataset_names()}
        except (OSError, KeyError) as error:
            raise DamagedStore(f"{self.path} does not open as a penchant activation store: {error}") from error
        needed = max(offset + int(np.prod(shape)) * dtype.itemsize for offset, shape, dtype in layout.values())
        size = self.path.stat().st_size
        if size < needed:
            raise DamagedStore(
                f"{self.path} is {size} bytes long but its datasets need {needed}: the file was truncated. "
                "Delete it and capture again."
            )
        with open(self.path, "r+b" if writable else "rb") as file:
            access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
            self._map = mmap.mmap(file.fileno(), 0, access=access)
        self._datasets = {
            name: np.ndarray(shape, dtype, buffer=self._map, offset=offset) for name, (offset, shape, dtype) in layout.items()
        }
        self._slot = {task_id: slot for slot, task_id in enumerate(self.task_ids)}

    def _dataset_names(self) -> list[str]:
        grid = [f"residuals/{layer_name(layer)}/{position}" for layer, position in self.header.keys]
        return [*grid, "n_tokens", "token_index", "row_crc", "norms", "done"]

    def __len__(self) -> int:
        return len(self.task_ids)

    def __repr__(self) -> str:
        header = self.header
        return (
            f"ActivationStore({self.path.name}: {int(self.done.sum())} of {len(self)} tasks, {header.model.name}, "
            f"layers {[layer_name(layer) for layer in header.layers]}, positions {list(header.positions)}, {header.dtype})"
        )

    @property
    def done(self) -> np.ndarray:
        """Which slots are committed (boolean, one per task)."""
        return self._datasets["done"].astype(bool)

    def load(self, layer: int, position: str, tasks: Sequence[str] | None = None) -> Float[np.ndarray, "tasks d_model"]:
        """Read one layer and position as float32, in the order of `tasks` (default: all tasks of the store).

        Raises
        ------
        KeyError
            The layer, position or a task is not in the store, or a task's row is not committed yet.
        """
        if (layer, position) not in self.header.keys:
            raise KeyError(
                f"{self.path.name} has no {layer_name(layer)}/{position}; it holds layers "
                f"{[layer_name(each) for each in self.header.layers]} at positions {list(self.header.positions)}."
            )
        slots = self.slots(self.task_ids if tasks is None else tasks)
        stored = self._datasets[f"residuals/{layer_name(layer)}/{position}"]
        rows = stored[slots]
        return from_bfloat16_bits(rows) if self.header.dtype == "bfloat16" else rows

    def slots(self, tasks: Sequence[str]) -> Int[np.ndarray, " tasks"]:
        """Return the committed rows of `tasks`, in their order; name the tasks that have none."""
        unknown = [task for task in tasks if task not in self._slot]
        if unknown:
            raise KeyError(f"{self.path.name} has no rows for {_some(unknown)}.")
        slots = np.array([self._slot[task] for task in tasks], dtype=np.int64)
        open_slots = slots[~self.done[slots]]
        if len(open_slots):
            raise KeyError(
                f"{self.path.name} is unfinished: no committed rows for {_some([self.task_ids[s] for s in open_slots])}. "
                "Run the capture again; it completes the file."
            )
        return slots

    def frame(self) -> pd.DataFrame:
        """Return the metadata, one row per task: done, token count, and the token index of each position (-1 for means)."""
        indices = {
            f"token_index.{position}": self._datasets["token_index"][:, column]
            for column, position in enumerate(self.header.positions)
        }
        return pd.DataFrame(
            {"task_id": self.task_ids, "done": self.done, "n_tokens": np.array(self._datasets["n_tokens"]), **indices}
        )

    def norms(self) -> pd.DataFrame:
        """Mean and median Euclidean norm of the rows, per layer and position (written when a capture finishes)."""
        rows = [
            {"layer": layer, "position": position, "mean_norm": mean, "median_norm": median}
            for layer, by_position in zip(self.header.layers, self._datasets["norms"], strict=True)
            for position, (mean, median) in zip(self.header.positions, by_position, strict=True)
        ]
        return pd.DataFrame(rows)

    def verify(self) -> list[str]:
        """Recompute the checksum of every committed row; return the ids of tasks whose bytes have changed."""
        slots = np.flatnonzero(self.done)
        expected = self._datasets["row_crc"][slots]
        found = np.array([zlib.crc32(self._row_bytes(slot)) for slot in slots.tolist()], dtype=np.uint32)
        return [self.task_ids[slot] for slot in slots[found != expected]]

    def _row_bytes(self, slot: int) -> bytes:
        grid = (self._datasets[f"residuals/{layer_name(layer)}/{position}"] for layer, position in self.header.keys)
        return b"".join(dataset[slot].tobytes() for dataset in grid)


class ActivationWriter(ActivationStore):
    """The one writer of a store. Use as a context manager.

    Parameters
    ----------
    path
        Store made by `create_store`; partly filled stores are continued.

    Raises
    ------
    StoreMismatch
        Another process is writing this store.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock = open(self.path, "rb")  # noqa: SIM115 (held, with its lock, until close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StoreMismatch(
                f"Another process is writing {self.path}. Wait for it, or capture into another file."
            ) from error
        try:
            self._map_file(writable=True)
        except BaseException:
            self._lock.close()
            raise

    @classmethod
    def resume(cls, path: str | Path, header: StoreHeader, task_ids: Sequence[str]) -> Self:
        """Open the store at `path` to go on where it stopped, creating it if absent.

        Raises
        ------
        StoreMismatch
            The file holds something else; the message names each field that differs.
        """
        if not Path(path).exists():
            create_store(path, header, task_ids)
        writer = cls(path)
        theirs, ours = _comparable(writer.header), _comparable(header)
        differences = [
            f"{name}: the store has {_short(theirs[name])}, this capture {_short(ours[name])}"
            for name in ours
            if theirs[name] != ours[name]
        ]
        if writer.task_ids != list(task_ids):
            differences.insert(0, f"tasks: the store has {len(writer)}, this capture {len(task_ids)} or another order")
        if differences:
            writer.close()
            raise StoreMismatch(
                f"{path} holds other activations than these. {'; '.join(differences)}. Capture into another file."
            )
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Flush, and let another writer in."""
        if not self._lock.closed:
            self._map.flush()
            self._lock.close()

    def open_slots(self) -> Int[np.ndarray, " open"]:
        """Return the slots that are not committed yet."""
        return np.flatnonzero(~self.done)

    def write(
        self,
        slots: Int[np.ndarray, " rows"],
        residuals: Float[np.ndarray, "rows grid d_model"],
        n_tokens: Int[np.ndarray, " rows"],
        token_index: Int[np.ndarray, "rows positions"],
    ) -> None:
        """Commit rows: after this returns they survive a kill of the process and a loss of power.

        Parameters
        ----------
        slots
            Which tasks the rows belong to, in any order.
        residuals
            float32 rows; the middle axis follows `header.keys`.
        n_tokens, token_index
            Prompt length, and the token index of each position (-1 where it is a mean).

        Raises
        ------
        ValueError
            A value is not finite, before or after rounding to the stored dtype; nothing is written.
        """
        expected = (len(slots), len(self.header.keys), self.header.d_model)
        if residuals.shape != expected:
            raise ValueError(f"Rows have shape {residuals.shape}; expected {expected} (slots, layers x positions, width).")
        if self.header.dtype == "bfloat16":
            stored = to_bfloat16_bits(residuals)
            finite = np.isfinite(from_bfloat16_bits(stored))
        else:
            stored = np.ascontiguousarray(residuals, dtype="<f4")
            finite = np.isfinite(stored)
        if not finite.all():
            row, column, _ = np.argwhere(~finite)[0]
            layer, position = self.header.keys[column]
            raise ValueError(
                f"The residual of task {self.task_ids[slots[row]]!r} at {layer_name(layer)}/{position} is not finite; "
                f"nothing was written. Load the model with dtype='float32' (or 'bfloat16', never float16)."
            )
        for column, (layer, position) in enumerate(self.header.keys):
            self._datasets[f"residuals/{layer_name(layer)}/{position}"][slots] = stored[:, column]
        self._datasets["n_tokens"][slots] = n_tokens
        self._datasets["token_index"][slots] = token_index
        self._datasets["row_crc"][slots] = [zlib.crc32(row.tobytes()) for row in stored]
        self._map.flush()
        self._datasets["done"][slots] = 1
        self._map.flush()

    def write_norms(self) -> None:
        """Record the mean and median row norm of each layer and position, once all rows are committed."""
        for row, layer in enumerate(self.header.layers):
            for column, position in enumerate(self.header.positions):
                norms = np.linalg.norm(self.load(layer, position), axis=1)
                self._datasets["norms"][row, column] = norms.mean(), np.median(norms)
        self._map.flush()


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise DamagedStore(f"{name} is a {type(found).__name__} in this file; expected a data set.")
    return found


def _locate(dataset: h5py.Dataset) -> tuple[int, tuple[int, ...], np.dtype]:
    offset = dataset.id.get_offset()
    if offset is None:
        raise DamagedStore(f"Dataset {dataset.name} is not contiguous on disk; penchant's stores are.")
    return offset, dataset.shape, dataset.dtype


def _read_header(file: h5py.File) -> StoreHeader:
    values: dict[str, Any] = {
        "model": ModelIdentity(**{field.name: str(file.attrs[f"model.{field.name}"]) for field in fields(ModelIdentity)})
    }
    for name in (field.name for field in fields(StoreHeader) if field.name != "model"):
        value = file.attrs[name]
        values[name] = tuple(value.tolist()) if isinstance(value, np.ndarray) else value
    values["d_model"] = int(values["d_model"])
    return StoreHeader(**values)


def _comparable(header: StoreHeader) -> dict[str, Any]:
    """Everything that must be equal; a model may be known by several names."""
    values = asdict(header)
    return values | {"model": values["model"]["fingerprint"]}


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _some(task_ids: Sequence[str], shown: int = 5) -> str:
    rest = f" and {len(task_ids) - shown} more" if len(task_ids) > shown else ""
    return f"{', '.join(repr(task_id) for task_id in task_ids[:shown])}{rest}"
