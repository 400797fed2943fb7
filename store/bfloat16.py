"""bfloat16 without a bfloat16 type: the upper 16 bits of a float32, kept in uint16, rounded to nearest even."""

import numpy as np
from jaxtyping import Bool, Float, UInt16

ROWS_PER_BLOCK = 64
"""Rows are converted so many at a time, so that both passes over a block stay in the processor's cache."""


def to_bfloat16_bits(values: Float[np.ndarray, "..."]) -> UInt16[np.ndarray, "..."]:
    """Round float32 to bfloat16 (nearest, ties to even) and return its 16 bits; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype="<f4")
    bits = values.view("<u4")
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    rounded[np.isnan(values)] = 0x7FC0  # the NaN of a GPU is 0x7FFFFFFF, which rounding up carries over to -0.0
    return rounded


def from_bfloat16_bits(bits: UInt16[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Undo `to_bfloat16_bits` (exact: every bfloat16 is a float32)."""
    values = np.empty(bits.shape, dtype="<f4")
    for start in range(0, len(bits) if bits.ndim > 1 else 0, ROWS_PER_BLOCK):
        widen(bits[start : start + ROWS_PER_BLOCK], values[start : start + ROWS_PER_BLOCK])
    if bits.ndim < 2:
        widen(bits, values)
    return values


def widen(bits: UInt16[np.ndarray, "..."], into: Float[np.ndarray, "..."]) -> None:
    """Put bfloat16 bits into a float32 array of the same shape."""
    words = into.view("<u4")
    np.copyto(words, bits)
    np.left_shift(words, 16, out=words)


def is_finite_bits(bits: UInt16[np.ndarray, "..."]) -> Bool[np.ndarray, "..."]:
    """Which of these bfloat16 are neither infinite nor NaN."""
    return (bits & 0x7F80) != 0x7F80
