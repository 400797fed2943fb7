"""A store's file: what is laid out at creation, what never changes after it, and what cannot be laid out."""

import errno
import itertools
import math
import os
import stat

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import ActivationStore, ActivationWriter, Slots, StoreHeader, layer_name
from store.layout import StoreFile, create_store, layer_number
from tests.store.sample import BY_TOKEN, datasets, header, sample


def metadata(path) -> bytes:
    """Every byte of a file that belongs to no dataset."""
    raw = bytearray(path.read_bytes())
    for offset, size in datasets(path).values():
        raw[offset : offset + size] = bytes(size)
    return bytes(raw)


@given(st.integers(-1, 10_000))
def test_a_layer_is_read_as_it_is_written(layer):
    assert layer_number(layer_name(layer)) == layer_number(str(layer)) == layer_number(layer) == layer


@given(st.text(max_size=6) | st.floats() | st.booleans() | st.none())
def test_what_names_no_layer_is_refused(value):
    try:
        found = layer_number(value)
    except ValueError as error:
        assert repr(value) in str(error)
    else:
        assert isinstance(value, str) and (
            value in (layer_name(found), str(found)) or value.lstrip("L0") == str(found).lstrip("0")
        )


def test_every_dataset_is_contiguous_and_none_lies_over_another(tmp_path):
    made = sample()
    create_store(tmp_path / "a.h5", made.header, made.slots)
    found = datasets(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert all(file[name].id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS for name in found)
    spans = sorted((offset, offset + size) for offset, size in found.values())
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    tables = [f"residuals/{layer}/{position}" for layer in ("embed", "L3", "L7") for position in made.header.positions]
    assert set(tables) < set(found)
    for name in tables:
        assert found[name][1] == made.counts(name.split("/")[2]).sum() * 6 * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_byte_is_allocated_at_creation_and_writing_changes_no_metadata(tmp_path, dtype):
    made, path = sample(dtype, n=200, d_model=64), tmp_path / "a.h5"
    create_store(path, made.header, made.slots)
    before, described = path.stat(), metadata(path)
    assert before.st_blocks * 512 >= before.st_size > sum(table.nbytes for table in made.rows.values()) // 2
    made.fill(path)
    with ActivationWriter.resume(path, made.header, made.slots):
        pass
    assert path.stat().st_size == before.st_size
    assert metadata(path) == described


def test_plain_h5py_reads_it(tmp_path):
    made = sample("float32")
    made.fill(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        for layer, name in ((-1, "embed"), (3, "L3"), (7, "L7")):
            for position in made.header.positions:
                np.testing.assert_array_equal(file[f"residuals/{name}/{position}"][:], made.rows[layer, position])
        first, last = file[f"offsets/{BY_TOKEN}"][4:6]
        tokens = made.by_task(made.token_index[BY_TOKEN], BY_TOKEN)[4]
        np.testing.assert_array_equal(file[f"row_token/{BY_TOKEN}"][first:last], tokens)
        assert file["task_id"].asstr()[:].tolist() == made.slots.task_ids
        assert file["done"][:].tolist() == [1] * 12
        assert file.attrs["model.name"].decode() == "made up"
        assert file.attrs["positions"].tolist() == [b"prompt_last", b"all", b"task_mean"]
        assert file.attrs["layers"].tolist() == [-1, 3, 7]
        assert file.attrs["format_version"] == 2
        assert "after the block" in file.attrs["layer_convention"].decode()


def test_plain_h5py_reads_bfloat16_as_the_upper_half_of_a_float(tmp_path):
    made = sample("bfloat16")
    made.fill(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        bits = file["residuals/L3/task_mean"][:]
        assert bits.dtype == np.uint16 and file.attrs["dtype"] == b"bfloat16"
    np.testing.assert_array_equal((bits.astype(np.uint32) << 16).view(np.float32), made.rows[3, "task_mean"])


def test_what_was_laid_out_is_what_is_opened(tmp_path):
    made = sample()
    answers = [f"key-{number}" if number % 2 else "" for number in range(12)]
    create_store(tmp_path / "a.h5", made.header, Slots(made.slots.task_ids, made.slots.prompts, made.slots.rows, answers))
    file = StoreFile(tmp_path / "a.h5")
    assert file.header == made.header
    assert (file.task_ids, file.prompts, file.answers) == (made.slots.task_ids, made.slots.prompts, answers)
    np.testing.assert_array_equal(np.diff(file.offsets[BY_TOKEN]), made.counts(BY_TOKEN))
    assert len(file) == 12


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1, max_size=6, unique=True))
@settings(deadline=None, max_examples=30)
def test_any_task_ids_come_back(tmp_path_factory, ids):
    path = tmp_path_factory.mktemp("ids") / "a.h5"
    create_store(path, header(positions=("p",)), Slots(ids, ids))
    assert ActivationStore(path).task_ids == ids
    assert StoreFile(path).prompts == ids


@pytest.mark.parametrize("position", ["turn_boundary:-1..-5", "token 3", "été", "a.b", "L3", "residuals"])
def test_positions_may_be_called_almost_anything(tmp_path, position):
    made = sample(positions=(position,))
    store = made.fill(tmp_path / "a.h5")
    np.testing.assert_array_equal(store.load(3, position), made.rows[3, position])


def test_no_row_is_committed_at_creation_however_large_the_grid(tmp_path):
    made = sample(n=50, layers=tuple(range(-1, 40)))
    create_store(tmp_path / "a.h5", made.header, made.slots)
    arrays = StoreFile(tmp_path / "a.h5").arrays
    assert not any(array.any() for array in arrays.values())
    assert len(arrays) == 41 * 3 + 6


def test_a_position_at_which_no_task_has_a_row_is_laid_out_and_opened(tmp_path):
    create_store(tmp_path / "a.h5", header(), Slots(["a", "b"], ["", ""], {BY_TOKEN: np.array([0, 0])}))
    with ActivationWriter(tmp_path / "a.h5") as writer:
        writer.skip(np.array([0, 1]), np.array([9, 9]))
    store = ActivationStore(tmp_path / "a.h5")
    assert store.skipped == ["a", "b"] and store.load(3, BY_TOKEN).shape == (0, 6)


def test_a_store_is_readable_by_others_as_the_umask_says(tmp_path):
    made = sample()
    create_store(tmp_path / "a.h5", made.header, made.slots)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.h5").stat().st_mode) == 0o666 & ~mask


def test_folders_are_made_and_no_scratch_file_is_left(tmp_path):
    made = sample()
    create_store(tmp_path / "deep" / "er" / "a.h5", made.header, made.slots)
    assert os.listdir(tmp_path / "deep" / "er") == ["a.h5"]


def test_a_file_system_without_hard_links_will_do(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    made = sample()
    create_store(tmp_path / "a.h5", made.header, made.slots)
    assert ActivationStore(tmp_path / "a.h5").task_ids == list(made.slots.task_ids)
    with pytest.raises(FileExistsError):
        create_store(tmp_path / "a.h5", made.header, made.slots)
    assert [path.name for path in tmp_path.iterdir()] == ["a.h5"]


def test_a_file_is_never_made_over_another(tmp_path, monkeypatch):
    made, path = sample(), tmp_path / "a.h5"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match=r"There is a file at .*a\.h5 already"):
        create_store(path, made.header, made.slots)
    monkeypatch.setattr("pathlib.Path.exists", lambda _: False)  # as if it had appeared since
    with pytest.raises(FileExistsError):
        create_store(path, made.header, made.slots)
    assert path.read_text() == "precious" and os.listdir(tmp_path) == ["a.h5"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "float16"}, r"'float16'; expected one of \['bfloat16', 'float32'\].*float16 overflows"),
        ({"layers": ()}, r"layers are \(\); expected at least one"),
        ({"layers": (3, 3)}, r"layers are \(3, 3\); .*none repeated"),
        ({"positions": ()}, r"positions are \(\)"),
        ({"positions": ("a", "a")}, "none repeated"),
        ({"positions": ("a/b",)}, r"positions are \('a/b',\); .*no slash"),
        ({"positions": ("a", "")}, "is not empty"),
    ],
)
def test_a_header_that_no_store_can_have_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        header(**changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "the task list is empty"),
        ((["a", "b", "b"], ["", "", ""]), "Task id 'b' appears more than once"),
        ((["a", "b\0"], ["", ""]), r"Task id 'b\\x00' has a NUL"),
        ((["a", "b"], [""]), "1 prompts for 2 tasks"),
        ((["a", "b"], ["", ""], {}, ["k"]), "1 answers for 2 tasks"),
        ((["a", "b"], ["", ""], {"all": np.array([1])}), "1 row counts of all for 2 tasks"),
        ((["a", "b"], ["", ""], {"all": np.array([1, -1])}), "row counts of all are .* expected numbers of rows"),
        ((["a", "b"], ["", ""], {"all": np.array([1, 0.5])}), "row counts of all are .* expected numbers of rows"),
    ],
)
def test_slots_that_no_store_can_have_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Slots(*arguments)


def test_row_counts_of_a_position_that_the_store_lacks_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"row counts of the positions \['al'\]; the store has \['prompt_last', 'all'"):
        create_store(tmp_path / "a.h5", header(), Slots(["a"], [""], {"al": np.array([2])}))
    assert os.listdir(tmp_path) == []


def test_layers_and_positions_are_a_grid_in_storage_order():
    grid: StoreHeader = header(layers=(7, -1), positions=("b", "a"))
    assert grid.keys == [(7, "b"), (7, "a"), (-1, "b"), (-1, "a")]
    assert len(grid.keys) == math.prod((2, 2))
