"""Rows of one layer and position, on disk until they are indexed: how analyses read stores larger than memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from store.bfloat16 import ROWS_PER_BLOCK, from_bfloat16_bits, widen


class Rows:
    """A table of shape `(rows, d_model)` that reads what it is asked for, as float32.

    `rows[5]`, `rows[10:20]`, `rows[[3, 1, 2]]` and `numpy.asarray(rows)` work as on an array.

    Parameters
    ----------
    parts
        Mapped tables that follow one another, of float32 or of bfloat16 bits.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self.shape = (int(self._starts[-1]), self._parts[0].shape[1])
        self.dtype = np.dtype("<f4")

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"Rows({self.shape[0]} x {self.shape[1]}, stored as {self._parts[0].dtype})"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("Rows are read from disk into a new array; copy=False cannot be had.")
        return self[:] if dtype is None else self[:].astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> Float[np.ndarray, "*shape"]:
        if isinstance(index, slice):
            first, last, step = index.indices(len(self))
            return self._span(first, max(first, last)) if step == 1 else self.take(np.arange(first, last, step))
        if isinstance(index, int | np.integer):
            return self.take(np.array([index]))[0]
        numbers = np.asarray(index if not isinstance(index, tuple) else ())
        if numbers.dtype == bool and numbers.shape == (len(self),):
            return self.take(np.flatnonzero(numbers))
        if isinstance(index, tuple) or numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
            raise IndexError(
                f"Rows are indexed by a number, a slice, a list of numbers or a mask of {len(self)}; got {index!r}. Take rows "
                "first, and columns of what comes back."
            )
        return self.take(numbers.astype(np.int64))

    def take(self, numbers: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows d_model"]:
        """Read rows by number, in the order given.

        Raises
        ------
        IndexError
            There is no such row.
        """
        if len(numbers) and not (-len(self) <= numbers.min() and numbers.max() < len(self)):
            raise IndexError(f"Rows {numbers.min()} to {numbers.max()} were asked for; there are {len(self)}.")
        numbers = np.where(numbers < 0, numbers + len(self), numbers)
        if len(numbers) > 1 and numbers[-1] - numbers[0] == len(numbers) - 1 and (np.diff(numbers) == 1).all():
            return self._span(int(numbers[0]), int(numbers[-1]) + 1)
        found = np.empty((len(numbers), self.shape[1]), dtype="<f4")
        which = np.searchsorted(self._starts, numbers, side="right") - 1
        for part, (table, start) in enumerate(zip(self._parts, self._starts[:-1], strict=True)):
            places = np.flatnonzero(which == part)
            for begin in range(0, len(places), ROWS_PER_BLOCK):
                block = places[begin : begin + ROWS_PER_BLOCK]
                rows = table[numbers[block] - start]
                if len(self._parts) == 1 and rows.dtype == np.uint16:  # they lie side by side in what is returned
                    widen(rows, found[begin : begin + len(block)])
                else:
                    found[block] = widened(rows)
        return found

    def _span(self, first: int, last: int) -> np.ndarray:
        pieces = [
            table[max(first - start, 0) : last - start]
            for table, start in zip(self._parts, self._starts[:-1].tolist(), strict=True)
            if first < start + len(table) and last > start
        ]
        found = [widened(piece) for piece in pieces]
        return found[0] if len(found) == 1 else np.concatenate([np.empty((0, self.shape[1]), "<f4"), *found])


def widened(stored: np.ndarray) -> Float[np.ndarray, "rows d_model"]:
    """Return a float32 copy in memory."""
    return from_bfloat16_bits(stored) if stored.dtype == np.uint16 else np.array(stored)
