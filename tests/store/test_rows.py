"""Rows on disk are indexed as an array is, and bfloat16 bits are those of torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from store.bfloat16 import from_bfloat16_bits, is_finite_bits, to_bfloat16_bits
from store.rows import Rows

RANDOM = np.random.default_rng(0)
TABLES = {
    "one float32": [RANDOM.normal(size=(17, 3)).astype(np.float32)],
    "float32 shards": [RANDOM.normal(size=(n, 3)).astype(np.float32) for n in (5, 0, 1, 150, 0)],
    "bfloat16 shards": [to_bfloat16_bits(RANDOM.normal(size=(n, 3))) for n in (0, 2, 131, 64)],
}
FULL = {
    name: np.concatenate([from_bfloat16_bits(part) if part.dtype == np.uint16 else part for part in parts])
    for name, parts in TABLES.items()
}
quick = settings(deadline=None, max_examples=150)


def stretches(n: int) -> st.SearchStrategy:
    return st.integers(0, n).flatmap(lambda first: st.integers(first, n).map(lambda last: list(range(first, last))))


def indices(n: int) -> st.SearchStrategy:
    number = st.integers(-n, n - 1)
    return st.one_of(
        number,
        number.map(np.int64),
        st.slices(n),
        st.lists(number, max_size=2 * n),
        st.permutations(range(n)),
        hnp.arrays(st.sampled_from([np.int32, np.int64]), st.integers(0, 30), elements=number),
        hnp.arrays(np.uint16, st.integers(0, 30), elements=st.integers(0, n - 1)),
        hnp.arrays(bool, n),
        st.lists(st.booleans(), min_size=n, max_size=n),
        stretches(n),
        stretches(n).flatmap(lambda rows: st.permutations(rows[1:-1]).map(lambda within: [*rows[:1], *within, *rows[1:][-1:]])),
    )


@pytest.mark.parametrize("name", TABLES)
@given(data=st.data())
@quick
def test_whatever_indexes_an_array_indexes_rows(name, data):
    full, rows = FULL[name], Rows(TABLES[name])
    index = data.draw(indices(len(full)))
    found = rows[index]
    assert found.dtype == np.float32 and found.shape == full[index].shape
    np.testing.assert_array_equal(found, full[index])


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_an_array_where_one_is_wanted(name):
    rows, full = Rows(TABLES[name]), FULL[name]
    np.testing.assert_array_equal(np.asarray(rows), full)
    assert np.asarray(rows, dtype=np.float64).dtype == np.float64
    assert rows.shape == full.shape and len(rows) == len(full) and rows.dtype == full.dtype
    np.testing.assert_array_equal(np.stack(list(rows)), full)
    assert repr(rows) == f"Rows({len(full)} x 3, stored as {TABLES[name][0].dtype})"


def test_rows_cannot_be_an_array_without_a_copy():
    with pytest.raises(ValueError, match="copy=False cannot be had"):
        np.array(Rows(TABLES["one float32"]), copy=False)


def test_what_is_read_is_a_copy():
    table = np.zeros((4, 3), np.float32)
    rows = Rows([table])
    for index in (0, slice(0, 2), [1, 0], np.array([True] * 4)):
        rows[index][:] = 5
    assert not table.any()


@pytest.mark.parametrize("index", [17, -18, [0, 17], np.array([-18])])
def test_a_row_that_is_not_there_is_an_error(index):
    with pytest.raises(IndexError, match="there are 17"):
        Rows(TABLES["one float32"])[index]


@pytest.mark.parametrize("index", [(1, 2), (slice(None), 0), [0.5], 1.0, [[0, 1], [2, 3]], [True] * 16, [True] * 18, "0", None])
def test_what_would_mean_something_else_to_an_array_is_an_error(index):
    with pytest.raises(IndexError, match="a list of numbers or a mask of 17"):
        Rows(TABLES["one float32"])[index]


halves = st.sampled_from([0x0000, 0x0001, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
"""Lower halves of a float32 at which rounding decides, ties among them."""


@given(
    hnp.arrays(
        np.uint32, st.integers(1, 50), elements=st.builds(lambda up, low: up << 16 | low, st.integers(0, 0xFFFF), halves)
    )
)
@quick
def test_bfloat16_bits_are_those_of_torch(bits32):
    values = bits32.view(np.float32)
    values = values[~np.isnan(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    bits = to_bfloat16_bits(values)
    np.testing.assert_array_equal(bits, expected.view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(from_bfloat16_bits(bits), expected.float().numpy())


@given(hnp.arrays(np.uint16, hnp.array_shapes(max_dims=3, max_side=70)))
@quick
def test_every_bfloat16_survives_float32(bits):
    widened = from_bfloat16_bits(bits)
    finite = np.isfinite(widened)
    np.testing.assert_array_equal(is_finite_bits(bits), finite)
    np.testing.assert_array_equal(to_bfloat16_bits(widened)[~np.isnan(widened)], bits[~np.isnan(widened)])


@given(st.integers(1, 0x7FFFFF), st.booleans())
@quick
def test_no_nan_is_rounded_to_a_number(payload, negative):
    nan = np.array([0x7F800000 | payload | negative << 31], dtype=np.uint32).view(np.float32)
    assert np.isnan(nan).all() and np.isnan(from_bfloat16_bits(to_bfloat16_bits(nan))).all()


def test_the_nan_of_a_gpu_is_not_rounded_to_zero():
    nan = np.array([0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    assert not is_finite_bits(to_bfloat16_bits(nan)).any()
