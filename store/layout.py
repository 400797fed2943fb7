"""The layout of an activation store on disk: what its header says, how a file is created, and how one is opened.

A file is contiguous datasets whose every byte is allocated at creation. From there on rows move through a memory map at
the datasets' file offsets, so no HDF5 metadata can change while a store is written, and any HDF5 reader can open it.
"""

import errno
import glob
import math
import mmap
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Int

from store.provenance import ModelIdentity, stamp

FORMAT_VERSION = 2
LAYER_CONVENTION = "block index from 0, residual stream after the block; 'embed' (-1) is the stream before block 0"
EMBED = -1
"""Layer number of the stream before block 0."""
OPEN, COMMITTED, SKIPPED = 0, 1, 2
"""Values of the `done` byte of a slot."""

_DATASET_ALIGNMENT = 4096
_LAYER = re.compile("L?([0-9]+)")
STORED_AS = {"float32": np.dtype("<f4"), "bfloat16": np.dtype("<u2")}


class StoreMismatch(ValueError):
    """A store was opened for other content than it holds; the message names the field that differs."""


class DamagedStore(ValueError):
    """A store's bytes are not what they should be; the message says where."""


class UnwritableStore(ValueError):
    """A store cannot be written: another process is at it, or the file is read-only."""


def layer_name(layer: int) -> str:
    """Name of a layer in files and tables: `L15`, or `embed` for the stream before block 0."""
    return "embed" if layer == EMBED else f"L{layer}"


def layer_number(layer: int | str) -> int:
    """Layer that a number or a name stands for, as `layer_name` writes it: 15 of 15, `15` and `L15`; -1 of `embed`.

    Raises
    ------
    ValueError
        It is neither.
    """
    if isinstance(layer, int | np.integer) and not isinstance(layer, bool):
        return int(layer)
    if layer in ("embed", str(EMBED)):
        return EMBED
    match = _LAYER.fullmatch(layer) if isinstance(layer, str) else None
    if match is None:
        raise ValueError(
            f"{layer!r} is not a layer of a store; expected the number of a block, or a name such as L15 or embed. (Fractions "
            "are for a capture: a store does not know how deep its model is.)"
        )
    return int(match[1])


def dataset_name(layer: int, position: str) -> str:
    """Name of the dataset that holds a layer and position."""
    return f"residuals/{layer_name(layer)}/{position}"


@dataclass(frozen=True)
class StoreHeader:
    """What a store's rows are of. Two stores with equal headers and slots hold the same numbers.

    Attributes
    ----------
    model
        Name, family and fingerprint (digest of weights, dtype and intervention).
    tokenizer_hash, template_hash
        Digests of the tokenizer and the chat template.
    attention
        Backend, attention implementation and batch layout that computed the rows.
    dtype
        `float32`, or `bfloat16` kept as its 16 bits in uint16.
    layers, positions, d_model
        The grid of datasets, and their width.
    """

    model: ModelIdentity
    tokenizer_hash: str
    template_hash: str
    attention: str
    dtype: str
    d_model: int
    layers: tuple[int, ...]
    positions: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.dtype not in STORED_AS:
            raise ValueError(
                f"Store dtype {self.dtype!r}; expected one of {sorted(STORED_AS)}. "
                "(float16 overflows on residual streams and is not offered.)"
            )
        for name in ("layers", "positions"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ValueError(f"Store {name} are {values}; expected at least one, none repeated.")
        if any("/" in position or not position for position in self.positions):
            raise ValueError(f"Store positions are {self.positions}; a position's name is not empty and has no slash.")

    @property
    def keys(self) -> list[tuple[int, str]]:
        """Every (layer, position) of the grid, in storage order."""
        return [(layer, position) for layer in self.layers for position in self.positions]


@dataclass(frozen=True)
class Slots:
    """What a store has room for: one slot a task.

    Attributes
    ----------
    task_ids
        Ids, none twice.
    prompts
        For each task, a digest of the tokens that the model reads and of those that the positions select.
    rows
        For each position with several rows a task, how many each task has. Other positions have one.
    answers
        For each task whose completion came from a measurement log, its key there; else an empty string.
    """

    task_ids: Sequence[str]
    prompts: Sequence[str]
    rows: Mapping[str, Int[np.ndarray, " tasks"]] = field(default_factory=dict)
    answers: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.task_ids:
            raise ValueError("A store needs at least one task; the task list is empty.")
        if len(set(self.task_ids)) != len(self.task_ids):
            seen: set[str] = set()
            twice = next(task_id for task_id in self.task_ids if task_id in seen or seen.add(task_id))
            raise ValueError(f"Task id {twice!r} appears more than once; a store has one slot a task.")
        if with_nul := [task_id for task_id in self.task_ids if "\0" in task_id]:
            raise ValueError(f"Task id {with_nul[0]!r} has a NUL character, which HDF5 would not give back.")
        counts = {f"row counts of {position}": rows for position, rows in self.rows.items()}
        for name, values in {"prompts": self.prompts, "answers": self.answers, **counts}.items():
            if len(values) != len(self.task_ids) and (name != "answers" or len(values)):
                raise ValueError(f"{len(values)} {name} for {len(self.task_ids)} tasks; expected one each.")
            if name in counts and (np.asarray(values).dtype.kind not in "iu" or np.min(values) < 0):
                raise ValueError(f"The {name} are {values}; expected numbers of rows.")


def create_store(path: str | Path, header: StoreHeader, slots: Slots) -> None:
    """Lay out a store with every byte allocated and no row committed.

    The file appears under its name only when it is complete, and never over another. A disk too small for it is met
    here, not in mid-run.

    Raises
    ------
    FileExistsError
        There is a file of this name.
    OSError
        The file cannot be written, or the disk is too small.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"There is a file at {path} already; a store is made under a new name.")
    if unknown := sorted(set(slots.rows) - set(header.positions)):
        raise ValueError(f"There are row counts of the positions {unknown}; the store has {list(header.positions)}.")
    n = len(slots.task_ids)
    written = {"task_id": slots.task_ids, "prompt_digest": slots.prompts}
    if len(slots.answers):
        written["answer_key"] = slots.answers
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "n_tokens": ((n,), "<i4"),
        "token_index": ((n, len(header.positions)), "<i4"),
        "row_norm": ((n, len(header.layers), len(header.positions)), "<f4"),
        "row_crc": ((n,), "<u4"),
        "done": ((n,), "u1"),
    }
    for position in header.positions:
        n_rows = int(np.sum(slots.rows[position])) if position in slots.rows else n
        if position in slots.rows:
            shapes[f"row_token/{position}"] = ((n_rows,), "<i4")
        for layer in header.layers:
            shapes[dataset_name(layer, position)] = ((n_rows, header.d_model), STORED_AS[header.dtype].str)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with h5py.File(scratch, "w", alignment_threshold=_DATASET_ALIGNMENT, alignment_interval=_DATASET_ALIGNMENT) as file:
            for name, value in _attributes(header).items():
                file.attrs[name] = value
            for name, texts in written.items():
                file.create_dataset(name, data=_encoded(texts))
            for position, counts in slots.rows.items():
                file.create_dataset(f"offsets/{position}", data=np.concatenate([[0], np.cumsum(counts)]).astype("<i8"))
            for name, (shape, dtype) in shapes.items():
                _create_contiguous(file, name, shape, np.dtype(dtype))
        with open(scratch, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            os.fsync(file.fileno())
        _put_in_place(scratch, path)
    except FileExistsError:
        raise
    except OSError as error:
        size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
        message = f"No store of {size / 1e6:,.1f} MB can be made at {path}: "
        if not error.errno:
            raise OSError(f"{message}{error}") from error
        raise OSError(error.errno, message + os.strerror(error.errno)) from error
    finally:
        scratch.unlink(missing_ok=True)


def _put_in_place(scratch: Path, path: Path) -> None:
    try:
        os.link(scratch, path)  # unlike a rename, this never takes the place of a file that another process made
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        if path.exists():  # a file system without hard links; two processes that begin at once are not kept apart there
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from error
        os.rename(scratch, path)


def _attributes(header: StoreHeader) -> dict[str, Any]:
    described = asdict(header)
    texts = {f"model.{name}": value for name, value in described.pop("model").items()}
    texts |= {f"version.{package}": version for package, version in stamp().items()}
    texts |= {"layer_convention": LAYER_CONVENTION, "positions": described.pop("positions")}
    texts |= {name: described.pop(name) for name in ("tokenizer_hash", "template_hash", "attention", "dtype")}
    return described | {name: _encoded(value) for name, value in texts.items()} | {"format_version": FORMAT_VERSION}


def _encoded(texts: str | Sequence[str]) -> np.ndarray:
    """One text or several as UTF-8 of one length. HDF5 crashes where the heap that holds other texts is damaged."""
    encoded = [text.encode() for text in ([texts] if isinstance(texts, str) else texts)]
    kept = np.array(encoded, dtype=h5py.string_dtype(length=max(map(len, encoded)) or 1))
    return kept.reshape(()) if isinstance(texts, str) else kept


def _decoded(attributes: Any, name: str) -> Any:
    """Undo `_encoded` for an attribute; a text of another kind is not even looked at."""
    if attributes.get_id(name).dtype.kind != "S":
        raise TypeError(f"the attribute {name} is not a text of fixed length")
    return np.char.decode(attributes[name], "utf-8").tolist()


def _create_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple(shape)
    h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(dtype), space, dcpl=properties, lcpl=links)


class StoreFile:
    """One HDF5 file of a store, its datasets mapped into memory.

    Attributes
    ----------
    header, task_ids, prompts, answers
        What the rows are of.
    arrays
        Datasets by name, as views of the map. Nothing in them is trusted further than its place and shape.
    offsets
        For each position with several rows a task, the first row of each task, and the end.

    Raises
    ------
    FileNotFoundError, DamagedStore, UnwritableStore
        No such file; not a penchant store, or shorter than its datasets; read-only where it is to be written.
    """

    def __init__(self, path: str | Path, *, writable: bool = False) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(f"No activation store at {self.path}; {_way_out(self.path)}.")
        try:
            with h5py.File(self.path, "r", locking=False) as file:
                layout = self._read(file)
        except DamagedStore:
            raise
        except Exception as error:  # a file from elsewhere, or with damaged metadata, fails in any way
            raise DamagedStore(f"{self.path} does not open as a penchant activation store: {error}") from error
        needed = max(offset + math.prod(shape) * dtype.itemsize for offset, shape, dtype in layout.values())
        size = self.path.stat().st_size
        if size < needed:
            # A memory map past the end of a file kills the process that touches it.
            raise DamagedStore(
                f"{self.path} is {size} bytes long but its datasets need {needed}: the file was truncated. "
                "Delete it and capture again."
            )
        try:
            with open(self.path, "r+b" if writable else "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ)
        except OSError as error:
            raise UnwritableStore(
                f"{self.path} cannot be {'written' if writable else 'read'} ({error.strerror}). Change its permissions, or "
                "capture into another file."
            ) from error
        self.arrays = {
            name: np.ndarray(shape, dtype, buffer=self._map, offset=offset) for name, (offset, shape, dtype) in layout.items()
        }

    def __len__(self) -> int:
        return len(self.task_ids)

    def _read(self, file: h5py.File) -> dict[str, tuple[int, tuple[int, ...], np.dtype]]:
        """Read header and slots, and return where each dataset lies; a file from elsewhere may say anything."""
        version = file.attrs.get("format_version")
        if version != FORMAT_VERSION:
            raise DamagedStore(
                f"{self.path} has store format {version}; this penchant reads format {FORMAT_VERSION}. Capture it again."
            )
        self.header = header = _read_header(file)
        self.task_ids = _texts(file, "task_id")
        self.prompts = _texts(file, "prompt_digest")
        self.answers = _texts(file, "answer_key") if "answer_key" in file else [""] * len(self.task_ids)
        n, grid = len(self.task_ids), (len(header.layers), len(header.positions))
        if len(set(self.task_ids)) != n or len(self.prompts) != n or len(self.answers) != n:
            raise DamagedStore(f"{self.path} has {n} task ids that repeat or do not match its prompts.")
        self.offsets: dict[str, np.ndarray] = {}
        for position in header.positions:
            if f"offsets/{position}" in file:
                offsets = np.asarray(_dataset(file, f"offsets/{position}")[:], dtype=np.int64)
                if len(offsets) != n + 1 or offsets[0] != 0 or (np.diff(offsets) < 0).any():
                    raise DamagedStore(f"{self.path}: offsets/{position} do not divide rows among {n} tasks.")
                self.offsets[position] = offsets
        expected: dict[str, tuple[tuple[int, ...], str]] = {
            "n_tokens": ((n,), "<i4"),
            "token_index": ((n, grid[1]), "<i4"),
            "row_norm": ((n, *grid), "<f4"),
            "row_crc": ((n,), "<u4"),
            "done": ((n,), "u1"),
        }
        for position in header.positions:
            n_rows = int(self.offsets[position][-1]) if position in self.offsets else n
            if position in self.offsets:
                expected[f"row_token/{position}"] = ((n_rows,), "<i4")
            for layer in header.layers:
                expected[dataset_name(layer, position)] = ((n_rows, header.d_model), STORED_AS[header.dtype].str)
        return {name: _locate(_dataset(file, name), shape, np.dtype(dtype)) for name, (shape, dtype) in expected.items()}

    def row_numbers(self, position: str, slots: Int[np.ndarray, " slots"]) -> Int[np.ndarray, " rows"]:
        """Rows of a position that belong to slots, in the order of the slots."""
        if position not in self.offsets:
            return slots
        return ranges(self.offsets[position][slots], self.row_counts(position, slots))

    def row_counts(self, position: str, slots: Int[np.ndarray, " slots"]) -> Int[np.ndarray, " slots"]:
        """How many rows of a position each slot has."""
        if position not in self.offsets:
            return np.ones(len(slots), dtype=np.int64)
        return self.offsets[position][slots + 1] - self.offsets[position][slots]

    def flush(self) -> None:
        """Write changed pages of the map to disk."""
        self._map.flush()

    def checksum(self, slot: int) -> int:
        """CRC-32 of everything that was written for a slot, its task id included."""
        task = np.array([slot])
        crc = zlib.crc32(self.task_ids[slot].encode())
        parts = [self.arrays["n_tokens"][slot], self.arrays["token_index"][slot], self.arrays["row_norm"][slot]]
        for position in self.header.positions:
            rows = self.row_numbers(position, task)
            place = slice(int(rows[0]), int(rows[-1]) + 1) if len(rows) else slice(0, 0)
            if position in self.offsets:
                parts.append(self.arrays[f"row_token/{position}"][place])
            parts += [self.arrays[dataset_name(layer, position)][place] for layer in self.header.layers]
        for part in parts:
            crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
        return crc

    def is_whole(self, slot: int) -> bool:
        """Whether a slot that is no longer open is as it was left: skipped, or committed with the bytes of its checksum."""
        state = self.arrays["done"][slot]
        return state == SKIPPED or (state == COMMITTED and self.checksum(slot) == self.arrays["row_crc"][slot])


def ranges(first: Int[np.ndarray, " n"], counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, " total"]:
    """`first[0], first[0] + 1, ...` for `counts[0]` numbers, then the same of `first[1]`, and so on."""
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(first, counts) + within


def _way_out(path: Path) -> str:
    """What to do about a store that is not there."""
    if glob.escape(str(path)) == str(path):
        return "capture activations into it first"
    return (
        f"a pattern is not expanded here, and this one matches {len(glob.glob(str(path)))} files. Give the files, for instance "
        f"ActivationStore(sorted(glob.glob({str(path)!r})))"
    )


def _texts(file: h5py.File, name: str) -> list[str]:
    return [raw.decode() for raw in _dataset(file, name)[:].tolist()]


def _dataset(file: h5py.File, name: str) -> h5py.Dataset:
    found = file[name]
    if not isinstance(found, h5py.Dataset):
        raise DamagedStore(f"{name} is a {type(found).__name__} in {file.filename}; expected a dataset.")
    if found.file.filename != file.filename or (found.size and found.id.get_offset() is None):
        raise DamagedStore(f"Dataset {name} is not contiguous in {file.filename}; penchant's stores are.")
    return found


def _locate(dataset: h5py.Dataset, shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, tuple[int, ...], np.dtype]:
    if dataset.shape != shape or dataset.dtype != dtype:
        raise DamagedStore(
            f"{dataset.name} in {dataset.file.filename} is {dataset.dtype} {dataset.shape}; the header says {dtype} {shape}."
        )
    return dataset.id.get_offset() or 0, shape, dtype  # one without rows has no place


def _read_header(file: h5py.File) -> StoreHeader:
    attributes: Any = file.attrs
    values: dict[str, Any] = {
        "model": ModelIdentity(**{each.name: _decoded(attributes, f"model.{each.name}") for each in fields(ModelIdentity)}),
        "d_model": int(attributes["d_model"]),
        "layers": tuple(int(layer) for layer in attributes["layers"]),
        "positions": tuple(_decoded(attributes, "positions")),
    }
    values |= {each.name: _decoded(attributes, each.name) for each in fields(StoreHeader) if each.name not in values}
    return StoreHeader(**values)
