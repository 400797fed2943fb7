"""A small store of made-up rows, known to the last bit. It needs the store alone, so that bare processes can use it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from store import ActivationStore, ActivationWriter, Slots, StoreHeader
from store.provenance import ModelIdentity

LAYERS = (-1, 3, 7)
POSITIONS = ("prompt_last", "all", "task_mean")
BY_TOKEN = "all"


def header(dtype: str = "bfloat16", **changes: Any) -> StoreHeader:
    values = {
        "model": ModelIdentity("made up", "none", "fingerprint"),
        "tokenizer_hash": "tokenizer",
        "template_hash": "template",
        "attention": "sdpa, packed",
        "dtype": dtype,
        "d_model": 6,
        "layers": LAYERS,
        "positions": POSITIONS,
    }
    return StoreHeader(**values | changes)


@dataclass(frozen=True)
class Sample:
    """Some tasks, and every number that a store of them should give back."""

    header: StoreHeader
    slots: Slots
    n_tokens: np.ndarray
    rows: dict[tuple[int, str], np.ndarray]
    token_index: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.slots.task_ids)

    def counts(self, position: str) -> np.ndarray:
        return np.asarray(self.slots.rows.get(position, np.ones(len(self), dtype=int)))

    def by_task(self, table: np.ndarray, position: str) -> list[np.ndarray]:
        """A table of a position, cut up task by task."""
        return np.split(table, np.cumsum(self.counts(position))[:-1])

    def of(self, tasks: Sequence[int] | np.ndarray) -> tuple[Any, ...]:
        """What `ActivationWriter.write` takes for these tasks."""

        def chosen(table: np.ndarray, position: str) -> np.ndarray:
            parts = self.by_task(table, position)
            return np.concatenate([parts[task] for task in tasks])

        return (
            np.asarray(tasks),
            {(layer, position): chosen(table, position) for (layer, position), table in self.rows.items()},
            self.n_tokens[np.asarray(tasks)],
            {position: chosen(index, position) for position, index in self.token_index.items()},
        )

    def write(self, writer: ActivationWriter, tasks: Sequence[int] | np.ndarray) -> None:
        writer.write(*self.of(tasks))

    def fill(self, path: Path, *, parts: int = 3, seed: int = 1) -> ActivationStore:
        """Write what a store lacks of this sample, in random order."""
        with ActivationWriter.resume(path, self.header, self.slots) as writer:
            for part in np.array_split(np.random.default_rng(seed).permutation(writer.open_slots()), parts):
                if len(part):
                    self.write(writer, part)
        return ActivationStore(path)


def sample(dtype: str = "bfloat16", n: int = 12, *, prefix: str = "task", seed: int = 0, **changes: Any) -> Sample:
    """`n` tasks of ids `task-0é`, ...; with bfloat16, rows that need no rounding."""
    random = np.random.default_rng(seed)
    head = header(dtype, **changes)
    ids = [f"{prefix}-{number}é" for number in range(n)]
    counts = {BY_TOKEN: random.integers(1, 9, n)} if BY_TOKEN in head.positions else {}
    n_rows = {position: int(counts[position].sum()) if position in counts else n for position in head.positions}
    rows = {key: random.normal(0, 100, (n_rows[key[1]], head.d_model)).astype(np.float32) for key in head.keys}
    if dtype == "bfloat16":
        rows = {key: (table.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for key, table in rows.items()}
    index = {position: random.integers(-1, 99, n_rows[position]) for position in head.positions}
    prompts = [f"{prefix}-prompt-{number}" for number in range(n)]
    return Sample(head, Slots(ids, prompts, counts), random.integers(1, 99, n), rows, index)


def assert_holds(store: ActivationStore, expected: Sample, tasks: Sequence[int] | np.ndarray | None = None) -> None:
    """Everything that the store says of some tasks is bit for bit what was written."""
    tasks = np.arange(len(expected)) if tasks is None else np.asarray(tasks)
    ids = [expected.slots.task_ids[task] for task in tasks]
    if not ids:
        return
    _, rows, n_tokens, index = expected.of(tasks)
    for (layer, position), table in rows.items():
        found = store.load(layer, position, ids)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found.view(np.uint32), table.view(np.uint32), err_msg=f"{layer} {position}")
    for position in expected.header.positions:
        np.testing.assert_array_equal(store.token_index(position, ids), index[position])
        np.testing.assert_array_equal(store.row_counts(position, ids), expected.counts(position)[tasks])
    np.testing.assert_array_equal(store.frame().set_index("task_id").loc[ids, "n_tokens"], n_tokens)


def datasets(path: Path) -> dict[str, tuple[int, int]]:
    """Where each dataset of a file begins, and how many bytes it has."""
    found: dict[str, tuple[int, int]] = {}

    def note(name: str, each: h5py.Dataset | h5py.Group) -> None:
        if isinstance(each, h5py.Dataset):
            found[name] = each.id.get_offset(), each.id.get_storage_size()

    with h5py.File(path) as file:
        file.visititems(note)
    return found
