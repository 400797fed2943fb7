"""The one writer of an activation store: rows, flush, `done`, flush, so that a kill at any instant loses no committed row."""

import fcntl
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Int

from store.activations import header_differences, some
from store.bfloat16 import is_finite_bits, to_bfloat16_bits
from store.layout import (
    COMMITTED,
    OPEN,
    SKIPPED,
    Slots,
    StoreFile,
    StoreHeader,
    StoreMismatch,
    UnwritableStore,
    create_store,
    dataset_name,
    layer_name,
)
from store.rows import widened

Grid = Mapping[tuple[int, str], Float[np.ndarray, "rows d_model"]]
"""Rows by layer and position. A position with several rows a task has those of the first slot, then of the second, ..."""


class ActivationWriter:
    """The one writer of a store file; partly filled ones are continued. Use as a context manager.

    Parameters
    ----------
    path
        Store made by `create_store`.

    Raises
    ------
    UnwritableStore
        Another process is writing this store, or the file is read-only.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._handle = open(self.path, "r+b")  # noqa: SIM115 (held, with its lock, until close)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise UnwritableStore(
                f"{self.path} cannot be written ({error.strerror}). Change its permissions, or capture into another file."
            ) from error
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.file = StoreFile(self.path, writable=True)
        except BlockingIOError as error:
            self._handle.close()
            raise UnwritableStore(
                f"Another process is writing {self.path}. Wait for it, or capture into another file (many files open as one "
                "store)."
            ) from error
        except BaseException:
            self._handle.close()
            raise

    @classmethod
    def resume(cls, path: str | Path, header: StoreHeader, slots: Slots) -> Self:
        """Open the store at `path` to go on where it stopped, creating it if absent.

        Raises
        ------
        StoreMismatch
            The file holds something else; the message names each field that differs.
        """
        if not Path(path).exists():
            with suppress(FileExistsError):  # another process was first; the lock says whose it is
                create_store(path, header, slots)
        writer = cls(path)
        differences = header_differences(writer.file.header, header)
        if writer.file.header.positions == header.positions or writer.file.task_ids != list(slots.task_ids):
            # Digests of prompts hold what the positions select: where those differ, they would accuse the prompts too.
            differences = _slot_differences(writer.file, slots) + differences
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

    def __len__(self) -> int:
        return len(self.file)

    def close(self) -> None:
        """Let another writer in. What was written is on disk already."""
        self._handle.close()

    def open_slots(self) -> Int[np.ndarray, " open"]:
        """Return the slots that are neither committed nor skipped."""
        return np.flatnonzero(self.file.arrays["done"] == OPEN)

    def write(
        self,
        slots: Int[np.ndarray, " slots"],
        rows: Grid,
        n_tokens: Int[np.ndarray, " slots"],
        token_index: Mapping[str, Int[np.ndarray, " rows"]],
    ) -> None:
        """Commit slots: after this returns they survive a kill of the process and a loss of power.

        Parameters
        ----------
        slots
            Which tasks the rows belong to, in any order.
        rows
            float32 rows of every layer and position of the header.
        n_tokens
            Tokens of each prompt.
        token_index
            For each position, the token that each of its rows is (-1 for a mean).

        Raises
        ------
        ValueError
            A value is not finite, before or after rounding to the stored dtype, rows have the wrong shape, or a slot is
            committed already; nothing is written.
        """
        file, header = self.file, self.file.header
        self._check_open(slots)
        counts = {position: file.row_counts(position, slots) for position in header.positions}
        for position, count in counts.items():
            shape, expected = np.shape(token_index[position]), (int(count.sum()),)
            if not count.all():
                raise ValueError(f"Task {file.task_ids[slots[np.argmin(count)]]!r} has no rows at {position}; skip it.")
            if shape != expected:
                raise ValueError(f"The token index of {position} has shape {shape}; expected {expected}.")
        stored = {
            (layer, position): self._rounded(layer, position, rows[layer, position], slots, counts[position])
            for layer, position in header.keys
        }
        for column, position in enumerate(header.positions):
            numbers, count = file.row_numbers(position, slots), counts[position]
            file.arrays["token_index"][slots, column] = token_index[position][np.cumsum(count) - count]
            if position in file.offsets:
                file.arrays[f"row_token/{position}"][numbers] = token_index[position]
            for row, layer in enumerate(header.layers):
                file.arrays[dataset_name(layer, position)][numbers] = stored[layer, position]
                norms = np.linalg.norm(widened(stored[layer, position]), axis=1)
                file.arrays["row_norm"][slots, row, column] = np.add.reduceat(norms, np.cumsum(count) - count) / count
        file.arrays["n_tokens"][slots] = n_tokens
        file.arrays["row_crc"][slots] = [file.checksum(slot) for slot in slots.tolist()]
        self._flush()
        file.arrays["done"][slots] = COMMITTED
        self._flush()

    def copy(self, slots: Int[np.ndarray, " slots"], source: StoreFile, source_slots: Int[np.ndarray, " slots"]) -> None:
        """Commit slots with the bytes that another file of equal header has for `source_slots`."""
        for name in ("n_tokens", "token_index", "row_norm", "row_crc"):
            self.file.arrays[name][slots] = source.arrays[name][source_slots]
        for position in self.file.header.positions:
            here, there = self.file.row_numbers(position, slots), source.row_numbers(position, source_slots)
            of_rows = [dataset_name(layer, position) for layer in self.file.header.layers]
            for name in [*of_rows, *([f"row_token/{position}"] if position in source.offsets else [])]:
                self.file.arrays[name][here] = source.arrays[name][there]
        self._flush()
        self.file.arrays["done"][slots] = source.arrays["done"][source_slots]
        self._flush()

    def skip(self, slots: Int[np.ndarray, " slots"], n_tokens: Int[np.ndarray, " slots"]) -> None:
        """Record that these tasks will have no rows."""
        self._check_open(slots)
        self.file.arrays["n_tokens"][slots] = n_tokens
        self.file.arrays["done"][slots] = SKIPPED
        self._flush()

    def _check_open(self, slots: np.ndarray) -> None:
        """Refuse slots that are committed or skipped: a kill while they are written again would lose them."""
        if len(taken := slots[self.file.arrays["done"][slots] != OPEN]):
            raise ValueError(f"{self.path} has {some([self.file.task_ids[slot] for slot in taken])} already; see open_slots().")

    def _rounded(self, layer: int, position: str, rows: np.ndarray, slots: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """Rows in the stored dtype, their shape and every value checked."""
        name, expected = f"{layer_name(layer)}/{position}", (int(counts.sum()), self.file.header.d_model)
        if rows.shape != expected:
            raise ValueError(f"Rows of {name} have shape {rows.shape}; expected {expected} (rows, width).")
        if self.file.header.dtype == "bfloat16":
            stored = to_bfloat16_bits(rows)
            finite = is_finite_bits(stored)
        else:
            stored = np.ascontiguousarray(rows, dtype="<f4")
            finite = np.isfinite(stored)
        if not finite.all():
            owner = np.repeat(slots, counts)[np.argwhere(~finite)[0, 0]]
            raise ValueError(
                f"The residual of task {self.file.task_ids[owner]!r} at {name} is not finite; nothing was written. Load the "
                "model with dtype='float32' (or 'bfloat16', never float16)."
            )
        return stored

    def _flush(self) -> None:
        if sys.platform != "linux":
            self.file.flush()
        # On Linux this reaches pages that were changed through the map, and lets other threads run meanwhile, which a flush
        # of the map does not.
        os.fsync(self._handle.fileno())


def _slot_differences(file: StoreFile, slots: Slots) -> list[str]:
    if file.task_ids != list(slots.task_ids):
        return [f"tasks: the store has {len(file)}, this capture {len(slots.task_ids)} or another order"]
    differences = []
    for name, theirs, ours in (
        ("prompts", file.prompts, slots.prompts),
        ("answers", file.answers, slots.answers or [""] * len(file)),
    ):
        if changed := [task for task, a, b in zip(file.task_ids, theirs, ours, strict=True) if a != b]:
            differences.append(f"{name}: those of {some(changed)} are not the store's")
    for position in file.header.positions:
        theirs, ours = file.row_counts(position, np.arange(len(file))), slots.rows.get(position, np.ones(len(file)))
        changed = np.flatnonzero((theirs != ours) | ((position in file.offsets) != (position in slots.rows)))
        if len(changed):
            differences.append(
                f"rows: those of {some([file.task_ids[slot] for slot in changed])} at {position} are not as many"
            )
    return differences
