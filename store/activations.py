"""The activation store, read: residual streams by layer, position and task, from one HDF5 file or several shards.

Rows are read through a memory map at the speed of a memory copy; nothing is loaded before it is asked for.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from store.layout import (
    COMMITTED,
    OPEN,
    SKIPPED,
    StoreFile,
    StoreHeader,
    StoreMismatch,
    dataset_name,
    layer_name,
    layer_number,
    ranges,
)
from store.rows import Rows

if TYPE_CHECKING:
    import torch


class ActivationStore:
    """A store opened for reading.

    Parameters
    ----------
    paths
        HDF5 file written by penchant, or several that hold different tasks. Rows committed by a writer elsewhere become
        visible as they are committed.

    Raises
    ------
    FileNotFoundError, DamagedStore
        No such file; not a penchant store, or shorter than its datasets.
    StoreMismatch
        Several files that differ in more than their tasks, or share a task.
    """

    def __init__(self, paths: str | Path | Sequence[str | Path]) -> None:
        listed = [paths] if isinstance(paths, str | Path) else list(paths)
        if not listed:
            raise ValueError("No file was given; expected at least one activation store.")
        self.files = [StoreFile(path) for path in listed]
        self.header: StoreHeader = self.files[0].header
        self.task_ids: list[str] = [task_id for file in self.files for task_id in file.task_ids]
        self._first_slot = np.cumsum([0, *map(len, self.files)])
        self._slot = {task_id: slot for slot, task_id in enumerate(self.task_ids)}
        self._check_shards()

    def _check_shards(self) -> None:
        for file in self.files[1:]:
            if differences := header_differences(self.header, file.header):
                raise StoreMismatch(
                    f"{file.path} does not belong with {self.files[0].path}. {'; '.join(differences)}. Open them apart."
                )
            if set(file.offsets) != set(self.files[0].offsets):
                raise StoreMismatch(f"{file.path} keeps other positions by token than {self.files[0].path}. Open them apart.")
        if len(self._slot) != len(self.task_ids):
            number = next(number for number, task_id in enumerate(self.task_ids) if self._slot[task_id] != number)
            paths = [str(self._file_of(each).path) for each in (number, self._slot[self.task_ids[number]])]
            raise StoreMismatch(f"Task {self.task_ids[number]!r} is in {paths[0]} and in {paths[1]}; leave one of them out.")

    def _file_of(self, slot: int) -> StoreFile:
        return self.files[int(np.searchsorted(self._first_slot, slot, side="right")) - 1]

    def __len__(self) -> int:
        return len(self.task_ids)

    def __repr__(self) -> str:
        header, skipped = self.header, len(self.skipped)
        return (
            f"ActivationStore({self.name}: {int(self.done.sum())} of {len(self)} tasks"
            f"{f', {skipped} skipped' if skipped else ''}, {header.model.name}, "
            f"layers {[layer_name(layer) for layer in header.layers]}, positions {list(header.positions)}, {header.dtype})"
        )

    @property
    def name(self) -> str:
        """File name of the store, or of the first shard and how many there are."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0].path.name}{more}"

    @property
    def done(self) -> Bool[np.ndarray, " tasks"]:
        """Which slots are committed."""
        return self._column("done") == COMMITTED

    @property
    def skipped(self) -> list[str]:
        """Tasks that were left out on request: longer than the model's context, or with an empty completion."""
        return [self.task_ids[slot] for slot in np.flatnonzero(self._column("done") == SKIPPED)]

    def _column(self, name: str) -> np.ndarray:
        return np.concatenate([file.arrays[name] for file in self.files])

    @property
    def by_token(self) -> tuple[str, ...]:
        """Positions that have a row for every token."""
        return tuple(self.files[0].offsets)

    # ---- rows

    def load(self, layer: int | str, position: str, tasks: Sequence[str] | None = None) -> Float[np.ndarray, "rows d_model"]:
        """Read one layer and position as float32.

        Parameters
        ----------
        layer
            Number of a block, or a name: `L15`, `embed`.
        tasks
            Whose rows, in this order; None is every task that was not skipped, in the order of the store. A position with
            a row for every token gives the rows of the first task, then of the second, ...: see `row_counts`.

        Raises
        ------
        ValueError
            The layer is not a number or name of one.
        KeyError
            The layer, position or a task is not in the store, or a task's row is not committed yet.
        """
        return self.rows(layer, position).take(self._row_numbers(position, self.slots(tasks)))

    def load_torch(self, layer: int | str, position: str, tasks: Sequence[str] | None = None) -> "torch.Tensor":
        """Do what `load` does, for a float32 tensor on the CPU."""
        import torch

        return torch.from_numpy(self.load(layer, position, tasks))

    def rows(self, layer: int | str, position: str) -> Rows:
        """Every row of a layer and position, in slot order, read only as it is indexed; open slots hold no meaning.

        Raises
        ------
        KeyError
            The layer or position is not in the store.
        """
        layer = layer_number(layer)
        if (layer, position) not in self.header.keys:
            raise KeyError(
                f"{self.name} has no {layer_name(layer)}/{position}; it holds layers "
                f"{[layer_name(each) for each in self.header.layers]} at positions {list(self.header.positions)}."
            )
        return Rows([file.arrays[dataset_name(layer, position)] for file in self.files])

    def batches(
        self, layer: int | str, position: str, tasks: Sequence[str] | None = None, *, size: int = 1024
    ) -> Iterator[tuple[list[str], Float[np.ndarray, "rows d_model"]]]:
        """Read `size` tasks at a time: their ids, and their rows as `load` gives them."""
        if size < 1:
            raise ValueError(f"The batch size is {size}; expected at least 1.")
        rows, slots = self.rows(layer, position), self.slots(tasks)
        for start in range(0, len(slots), size):
            part = slots[start : start + size]
            yield [self.task_ids[slot] for slot in part], rows.take(self._row_numbers(position, part))

    def row_counts(self, position: str, tasks: Sequence[str] | None = None) -> Int[np.ndarray, " tasks"]:
        """How many rows each task has at a position: 1, or one for each of its tokens.

        `numpy.split(store.load(layer, position), store.row_counts(position).cumsum()[:-1])` gives them task by task.
        """
        self._check_position(position)
        slots = self.slots(tasks)
        if position not in self.files[0].offsets:
            return np.ones(len(slots), dtype=np.int64)
        return np.concatenate([np.diff(file.offsets[position]) for file in self.files])[slots]

    def token_index(self, position: str, tasks: Sequence[str] | None = None) -> Int[np.ndarray, " rows"]:
        """Which token of its prompt each row of `load` is (-1 for a mean)."""
        self._check_position(position)
        slots = self.slots(tasks)
        if position in self.files[0].offsets:
            return self._column(f"row_token/{position}")[self._row_numbers(position, slots)]
        return self._column("token_index")[slots, self.header.positions.index(position)]

    def _check_position(self, position: str) -> None:
        if position not in self.header.positions:
            raise KeyError(f"{self.name} has no position {position!r}; it has {list(self.header.positions)}.")

    def _row_numbers(self, position: str, slots: Int[np.ndarray, " slots"]) -> Int[np.ndarray, " rows"]:
        """Rows of slots, counted over all files."""
        if position not in self.files[0].offsets:
            return slots
        counts = np.concatenate([np.diff(file.offsets[position]) for file in self.files])
        return ranges((np.cumsum(counts) - counts)[slots], counts[slots])

    def slots(self, tasks: Sequence[str] | None = None) -> Int[np.ndarray, " tasks"]:
        """Return the committed slots of `tasks`, in their order; name the tasks that have none.

        Raises
        ------
        KeyError
            A task is unknown, skipped, or not committed yet.
        """
        state = self._column("done")
        if tasks is None:
            slots = np.flatnonzero(state != SKIPPED)
        else:
            if unknown := [task for task in tasks if task not in self._slot]:
                raise KeyError(f"{self.name} has no rows for {some(unknown)}.")
            slots = np.array([self._slot[task] for task in tasks], dtype=np.int64)
        if len(left_out := slots[state[slots] == SKIPPED]):
            raise KeyError(
                f"{self.name} skipped {some([self.task_ids[slot] for slot in left_out])}: longer than the model's context, or "
                "an empty completion."
            )
        if len(unfinished := slots[state[slots] != COMMITTED]):
            raise KeyError(
                f"{self.name} is unfinished: no committed rows for {some([self.task_ids[slot] for slot in unfinished])}. "
                "Run the capture again; it completes the file."
            )
        return slots

    # ---- what is known about them

    def frame(self) -> pd.DataFrame:
        """Return the metadata, one row a task.

        Columns: `task_id`, `done`, `skipped`, `n_tokens`, `prompt_digest`, `answer_key` (in the measurement log, where the
        completion came from one), and for each position `token_index.P` (-1 for means, the first token where there are
        several) and, where there are several, `rows.P`; `file` where there are several shards.
        """
        state = self._column("done")
        columns: dict[str, Any] = {
            "task_id": self.task_ids,
            "done": state == COMMITTED,
            "skipped": state == SKIPPED,
            "n_tokens": self._column("n_tokens"),
            "prompt_digest": [prompt for file in self.files for prompt in file.prompts],
        }
        if any(any(file.answers) for file in self.files):
            columns["answer_key"] = [answer or None for file in self.files for answer in file.answers]
        index = self._column("token_index")
        for place, position in enumerate(self.header.positions):
            columns[f"token_index.{position}"] = index[:, place]
            if position in self.files[0].offsets:
                columns[f"rows.{position}"] = np.concatenate([np.diff(file.offsets[position]) for file in self.files])
        if len(self.files) > 1:
            columns["file"] = [str(file.path) for file in self.files for _ in range(len(file))]
        return pd.DataFrame(columns)

    def norms(self) -> pd.DataFrame:
        """Mean and median Euclidean norm over committed tasks, per layer and position (by token: of each task's mean norm).

        Columns: `layer`, `layer_name`, `position`, `mean_norm`, `median_norm`; -1 is the layer called `embed`.
        """
        norms = self._column("row_norm")[self.done].astype(np.float64)
        rows = [
            {
                "layer": layer,
                "layer_name": layer_name(layer),
                "position": position,
                "mean_norm": norms[:, row, column].mean() if len(norms) else np.nan,
                "median_norm": np.median(norms[:, row, column]) if len(norms) else np.nan,
            }
            for row, layer in enumerate(self.header.layers)
            for column, position in enumerate(self.header.positions)
        ]
        return pd.DataFrame(rows)

    def verify(self) -> list[str]:
        """Recompute the checksum of every committed task; return the ids of those whose bytes have changed."""
        return [
            file.task_ids[slot]
            for file in self.files
            for slot in np.flatnonzero(file.arrays["done"] != OPEN).tolist()
            if not file.is_whole(slot)
        ]


def header_differences(theirs: StoreHeader, ours: StoreHeader) -> list[str]:
    """Fields in which two headers differ, in words; a model may be known by several names."""
    first, second = (asdict(header) | {"model": header.model.fingerprint} for header in (theirs, ours))
    return [
        f"{name}: the store has {_short(first[name])}, the other {_short(second[name])}"
        for name in first
        if first[name] != second[name]
    ]


def some(task_ids: Sequence[str], shown: int = 5) -> str:
    """Name the first few tasks, and say how many more there are."""
    rest = f" and {len(task_ids) - shown} more" if len(task_ids) > shown else ""
    return f"{', '.join(repr(task_id) for task_id in task_ids[:shown])}{rest}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
