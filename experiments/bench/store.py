"""Storing: reading activations against memory copies and plain h5py, scattered rows, and writing.

Files lie in a temporary directory and have just been written, so they are read from memory (the page cache), not from disk.
"""

import itertools
import os
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, UInt16

from experiments.bench.timing import interleaved, ratio, result
from store import ActivationStore, ActivationWriter, Slots, StoreHeader
from store.layout import dataset_name
from store.provenance import ModelIdentity

_POSITION = "prompt_last"
_TASKS_PER_COMMIT = 64
_SCATTERED = 500
_OURS, _CHUNKED = "penchant", "h5py, chunks (64, 1, 1, d)"

Bits = UInt16[np.ndarray, "rows layers width"]
Contestants = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Comparison:
    """Contestants that do the same work, and how many times faster than some of them we mean to be."""

    name: str
    contestants: Contestants
    targets: Mapping[str, float]
    equal: bool = True


def main(arguments: Sequence[str]) -> None:
    """Run the benchmark and print its table."""
    import tyro

    def command(
        rows: int = 10_000,
        width: int = 2304,
        layers: int = 8,
        written: int = 2560,
        rounds: int = 25,
        write_rounds: int = 5,
        folder: Path | None = None,
        seed: int = 0,
    ) -> None:
        """Read one layer of an activation store in full, as float32, and row by row; and write one.

        The files are read from memory, where the system keeps what was just written: this measures the format and the
        code, not the disk. Writing does reach the disk.

        Parameters
        ----------
        rows
            Tasks in the store, which has one position, in bfloat16.
        width
            Of the residual stream.
        layers
            In the store, of which one is read.
        written
            Tasks that are written, 64 at a time.
        rounds
            Contestants take turns at reading in each.
        write_rounds
            The same for writing.
        folder
            Where the files go for the time being. Default: the system's temporary directory.
        seed
            Of the random rows.
        """
        run(rows, width, layers, written, (rounds, write_rounds), folder=folder, seed=seed)

    tyro.cli(command, args=list(arguments), prog="python -m experiments.bench store")


def run(
    rows: int, width: int, layers: int, written: int, rounds: tuple[int, int], *, folder: Path | None = None, seed: int = 0
) -> None:
    """Time every comparison: reading in `rounds[0]` rounds, writing in `rounds[1]`."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        files = _Files(Path(name), rows, width, layers, seed)
        reading = [_raw(files), _widened(files), _float32(files), *_scattered(files, seed)]
        works = [*((each, rounds[0]) for each in reading), (_writing(files, written), rounds[1])]
        table, speedup, spread = [], {}, {}
        for work, repeats in works:
            _check(work)
            seconds = interleaved(work.contestants, repeats)
            for contestant, each in seconds.items():
                median, extremes = ratio(each, seconds[_OURS])
                row = {"work": work.name, "contestant": contestant, "ms": 1e3 * np.median(each)}
                row |= {"penchant is faster by": median, "from": extremes[0], "to": extremes[1]}
                table.append(row | {"target": work.targets.get(contestant, np.nan)})
                if contestant != _OURS:
                    speedup[f"{work.name}: {contestant}"], spread[f"{work.name}: {contestant}"] = median, extremes
    print(f"{rows:,} tasks x {layers} layers x {width:,} in bfloat16; read from memory, not from disk")
    print(pd.DataFrame(table).to_string(index=False, float_format="{:.3g}".format, na_rep="-"))
    per_second = {row["contestant"]: written * layers / row["ms"] * 1e3 for row in table if row["work"] == "write"}
    print("rows written per second: " + ", ".join(f"{name} {speed:,.0f}" for name, speed in per_second.items()))
    targets = {f"{work.name}: {name}": target for work, _ in works for name, target in work.targets.items()}
    size = {"rows": rows, "width": width, "layers": layers, "written": written, "scattered": min(_SCATTERED, rows)}
    described = size | {"rounds": rounds, "targets": targets, "rows_written_per_second": per_second, "page_cache": "warm"}
    where = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    print(result("store", speedup, spread, described, where))


class _Files:
    """The same rows in penchant's store, in a float32 store of the first layer, and in chunked files by plain h5py."""

    def __init__(self, folder: Path, rows: int, width: int, layers: int, seed: int) -> None:
        self.folder, self.layer = folder, layers // 2
        self.one_layer = np.random.default_rng(seed).standard_normal((rows, width), dtype=np.float32)
        values = {layer: np.roll(self.one_layer, layer, axis=1) for layer in range(layers)}
        path = folder / "store.h5"
        _fill(path, "bfloat16", {(layer, _POSITION): each for layer, each in values.items()}, 1024)
        self.store = ActivationStore(path)
        self.contiguous: Any = h5py.File(path, "r")[dataset_name(self.layer, _POSITION)]
        _fill(folder / "float32.h5", "float32", {(0, _POSITION): self.one_layer}, 1024)
        self.fine = ActivationStore(folder / "float32.h5")
        self.mapped = self.store.files[0].arrays[dataset_name(self.layer, _POSITION)]
        self.in_memory = self.mapped.copy()
        bits: Bits = np.stack([_to_bits(each) for each in values.values()], axis=1)[:, :, None]
        self.chunked = self._chunked("chunked.h5", bits, (min(64, rows), 1, 1, width))
        self.automatic = self._chunked("automatic.h5", bits, True)

    def _chunked(self, name: str, bits: Bits, chunks: tuple[int, ...] | bool) -> Any:
        with h5py.File(self.folder / name, "w") as file:
            file.create_dataset("residuals", data=bits, chunks=chunks)
        return h5py.File(self.folder / name, "r")["residuals"]


def _raw(files: _Files) -> Comparison:
    layer = files.layer
    return Comparison(
        "one layer, as stored",
        {
            _OURS: lambda: files.mapped.copy(),
            "memory copy": lambda: files.in_memory.copy(),
            "h5py, contiguous": lambda: files.contiguous[:],
            _CHUNKED: lambda: files.chunked[:, layer, 0],
            "h5py, automatic chunks": lambda: files.automatic[:, layer, 0],
        },
        {"memory copy": 0.8},
    )


def _widened(files: _Files) -> Comparison:
    """Torch twice, as numpy's own memory comes in larger pages than torch's, which is faster."""
    coarse = torch.from_numpy(files.in_memory.view(np.int16)).view(torch.bfloat16)
    return Comparison(
        "one layer, as float32",
        {
            _OURS: lambda: files.store.load(files.layer, _POSITION),
            "torch": lambda: coarse.float(),
            "torch, into numpy's memory": lambda: torch.from_numpy(np.empty(coarse.shape, np.float32)).copy_(coarse),
        },
        {"torch": 1.0},
    )


def _float32(files: _Files) -> Comparison:
    return Comparison(
        "one layer of a float32 store",
        {_OURS: lambda: files.fine.load(0, _POSITION), "memory copy": lambda: files.one_layer.copy()},
        {"memory copy": 0.8},
    )


def _scattered(files: _Files, seed: int) -> list[Comparison]:
    """Some rows in order of their number, as h5py requires: as stored, and as float32."""
    n, layer = len(files.store), files.layer
    numbers = np.sort(np.random.default_rng(seed).choice(n, min(_SCATTERED, n), replace=False))
    task_ids = [files.store.task_ids[number] for number in numbers]
    table = files.store.rows(layer, _POSITION)
    peers: Contestants = {
        "h5py, contiguous": lambda: files.contiguous[numbers],
        _CHUNKED: lambda: files.chunked[numbers, layer, 0],
        "h5py, automatic chunks": lambda: files.automatic[numbers, layer, 0],
    }
    ours = {_OURS: lambda: table[numbers], "penchant, by task id": lambda: files.store.load(layer, _POSITION, task_ids)}
    widening = {name: lambda read=read: _from_bits(read()) for name, read in peers.items()}
    name, target = f"{len(numbers)} scattered rows", {_CHUNKED: 50.0}
    return [
        Comparison(f"{name}, as stored", {_OURS: lambda: files.mapped[numbers], **peers}, target),
        Comparison(f"{name}, as float32", {**ours, **widening}, target),
    ]


def _writing(files: _Files, n: int) -> Comparison:
    """Rows of every layer, committed 64 tasks at a time; h5py's own flush does not wait for the disk, penchant's does."""
    layers = range(len(files.store.header.layers))
    block = dict.fromkeys([(layer, _POSITION) for layer in layers], files.one_layer[np.arange(n) % len(files.one_layer)])
    numbers = itertools.count()

    def appended(*, sync: bool) -> None:
        path = files.folder / f"appended-{next(numbers)}.h5"
        shape = (0, len(layers), 1, files.one_layer.shape[1])
        with h5py.File(path, "w") as file:
            rows = file.create_dataset("residuals", shape, "<u2", maxshape=(None, *shape[1:]), chunks=(64, 1, 1, shape[3]))
            for start in range(0, n, _TASKS_PER_COMMIT):
                stop = min(start + _TASKS_PER_COMMIT, n)
                rows.resize(stop, axis=0)
                for layer, position in block:
                    rows[start:stop, layer, 0] = _to_bits(block[layer, position][start:stop])
                file.flush()
                if sync:
                    os.fsync(file.id.get_vfd_handle())
        path.unlink()

    def ours() -> None:
        path = files.folder / f"written-{next(numbers)}.h5"
        _fill(path, "bfloat16", block, _TASKS_PER_COMMIT)
        path.unlink()

    return Comparison(
        "write",
        {
            _OURS: ours,
            "h5py, append and flush": lambda: appended(sync=False),
            "h5py, append, flush and fsync": lambda: appended(sync=True),
        },
        {},
        equal=False,
    )


def _fill(
    path: Path, dtype: str, rows: Mapping[tuple[int, str], Float[np.ndarray, "rows width"]], tasks_per_commit: int
) -> None:
    """Write a store as a capture does."""
    n, width = next(iter(rows.values())).shape
    header = StoreHeader(
        model=ModelIdentity("random", "none", "0" * 64),
        tokenizer_hash="",
        template_hash="",
        attention="none",
        dtype=dtype,
        d_model=width,
        layers=tuple(layer for layer, _ in rows),
        positions=(_POSITION,),
    )
    slots = Slots([f"task_{number:07d}" for number in range(n)], [f"{number:032x}" for number in range(n)])
    with ActivationWriter.resume(path, header, slots) as writer:
        for start in range(0, n, tasks_per_commit):
            part = np.arange(start, min(start + tasks_per_commit, n))
            grid = {key: each[part[0] : part[-1] + 1] for key, each in rows.items()}
            writer.write(part, grid, np.full(len(part), 1), {_POSITION: np.zeros(len(part), dtype=np.int64)})


def _to_bits(rows: Float[np.ndarray, "rows width"]) -> UInt16[np.ndarray, "rows width"]:
    """As a peer would round to bfloat16: with torch."""
    return torch.from_numpy(rows).bfloat16().view(torch.int16).numpy().view(np.uint16)


def _from_bits(bits: UInt16[np.ndarray, "rows width"]) -> Float[np.ndarray, "rows width"]:
    return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16).float().numpy()


def _check(work: Comparison) -> None:
    """See that contestants give the same numbers; this is also everybody's warm-up.

    Raises
    ------
    ValueError
        Somebody reads other numbers.
    """
    found = {name: contestant() for name, contestant in work.contestants.items()}
    if work.equal and (wrong := [name for name, each in found.items() if not np.array_equal(each, found[_OURS])]):
        raise ValueError(f"{work.name}: {wrong} read other numbers than penchant.")
