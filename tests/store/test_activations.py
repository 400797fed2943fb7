"""The store, read: rows of the right tasks in the right order, and errors that name what is not there."""

import sys

import numpy as np
import pytest
import torch

from store import ActivationStore, ActivationWriter, Slots
from store.layout import layer_number
from tests.store.alone import alone
from tests.store.sample import BY_TOKEN, LAYERS, POSITIONS, assert_holds, header, sample

MADE = sample("float32")
IDS = MADE.slots.task_ids


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ActivationStore:
    return MADE.fill(tmp_path_factory.mktemp("store") / "a.h5")


@pytest.fixture
def partial(tmp_path) -> ActivationStore:
    """Tasks 2 and 3 are committed, 5 and 6 are skipped, the rest is open."""
    with ActivationWriter.resume(tmp_path / "a.h5", MADE.header, MADE.slots) as writer:
        MADE.write(writer, [3, 2])
        writer.skip(np.array([6, 5]), np.array([600, 500]))
    return ActivationStore(tmp_path / "a.h5")


@pytest.mark.parametrize("order", [[5], [5, 0], [11, 3, 3, 7], list(range(12)), []])
@pytest.mark.parametrize("position", POSITIONS)
def test_rows_of_tasks_come_in_the_order_asked_for(store, order, position):
    ids = [IDS[task] for task in order]
    for layer in LAYERS:
        parts = MADE.by_task(MADE.rows[layer, position], position)
        expected = np.concatenate([np.empty((0, 6), np.float32), *(parts[task] for task in order)])
        found = store.load(layer, position, ids)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        tensor = store.load_torch(layer, position, ids)
        assert tensor.dtype == torch.float32 and tensor.device.type == "cpu"
        assert torch.equal(tensor, torch.from_numpy(expected))


@pytest.mark.parametrize("position", POSITIONS)
def test_row_counts_divide_rows_task_by_task(store, position):
    counts = store.row_counts(position)
    parts = np.split(store.load(3, position), counts.cumsum()[:-1])
    for found, expected in zip(parts, MADE.by_task(MADE.rows[3, position], position), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert store.row_counts(position, [IDS[4], IDS[1]]).tolist() == [counts[4], counts[1]]
    assert (len(set(counts)) > 1) == (position == BY_TOKEN)


@pytest.mark.parametrize("position", POSITIONS)
def test_token_index_says_which_token_each_row_is(store, position):
    np.testing.assert_array_equal(store.token_index(position), MADE.token_index[position])
    parts = MADE.by_task(MADE.token_index[position], position)
    np.testing.assert_array_equal(store.token_index(position, [IDS[7], IDS[2]]), np.concatenate([parts[7], parts[2]]))
    assert len(store.token_index(position)) == len(store.load(3, position))


@pytest.mark.parametrize("position", POSITIONS)
@pytest.mark.parametrize("size", [1, 5, 12, 100])
def test_batches_are_the_rows_of_load_a_few_tasks_at_a_time(store, position, size):
    order = [IDS[task] for task in (4, 1, 9, 0, 11, 3, 2)]
    for tasks, whole in ((None, IDS), (order, order)):
        batches = list(store.batches(7, position, tasks, size=size))
        assert [len(ids) for ids, _ in batches[:-1]] == [size] * (len(batches) - 1)
        assert [task_id for ids, _ in batches for task_id in ids] == whole
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in batches]), store.load(7, position, tasks))
        for ids, rows in batches:
            np.testing.assert_array_equal(rows, store.load(7, position, ids))


def test_a_batch_has_at_least_one_task(store):
    with pytest.raises(ValueError, match="batch size is 0; expected at least 1"):
        next(store.batches(7, "task_mean", size=0))


def test_rows_are_all_slots_in_their_order(store):
    for key, table in MADE.rows.items():
        np.testing.assert_array_equal(np.asarray(store.rows(*key)), table)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_norms_are_those_of_the_rows_that_can_be_read(tmp_path, dtype):
    made = sample("float32", seed=3)  # of more digits than bfloat16 has
    path = tmp_path / "a.h5"
    with ActivationWriter.resume(path, header(dtype), made.slots) as writer:
        made.write(writer, [8, 1, 4])
        writer.skip(np.array([2]), np.array([1]))
        made.write(writer, [0, 11])
    store = ActivationStore(path)
    committed = [made.slots.task_ids[task] for task in (0, 1, 4, 8, 11)]
    norms = store.norms().set_index(["layer", "position"])
    assert list(norms.index) == made.header.keys
    for layer, position in made.header.keys:
        rows = store.load(layer, position, committed).astype(np.float64)
        cut = np.split(np.linalg.norm(rows, axis=1), store.row_counts(position, committed).cumsum()[:-1])
        of_tasks = [each.mean() for each in cut]
        assert norms.loc[(layer, position), "mean_norm"] == pytest.approx(np.mean(of_tasks), rel=1e-6)
        assert norms.loc[(layer, position), "median_norm"] == pytest.approx(np.median(of_tasks), rel=1e-6)


def test_layers_go_by_number_and_by_name(store):
    for names in ((3, "3", "L3", np.int64(3)), (-1, "embed", "-1")):
        expected = store.load(names[0], "task_mean")
        for name in names:
            np.testing.assert_array_equal(store.load(name, "task_mean"), expected)
            np.testing.assert_array_equal(store.load_torch(name, "task_mean").numpy(), expected)
            np.testing.assert_array_equal(next(iter(store.batches(name, "task_mean")))[1], expected)
    with pytest.raises(KeyError, match="has no L4/task_mean; it holds layers"):
        store.load("L4", "task_mean")
    for name in ("mid", 0.5, "0.5", True, "L-1"):
        with pytest.raises(ValueError, match=f"{name!r} is not a layer of a store; expected the number of a block"):
            store.load(name, "task_mean")


def test_norms_have_the_names_of_layers(partial):
    norms = partial.norms()
    assert [layer_number(name) for name in norms["layer_name"]] == norms["layer"].tolist()
    assert norms["layer_name"].drop_duplicates().tolist() == ["embed", "L3", "L7"]


def test_a_pattern_in_place_of_files_says_what_to_do_instead(tmp_path):
    for name in ("a1", "a2"):
        ActivationWriter.resume(tmp_path / f"{name}.h5", MADE.header, MADE.slots).close()
    with pytest.raises(FileNotFoundError, match=r"a\*\.h5; a pattern is not expanded .* matches 2 files.*sorted\(glob\.glob\("):
        ActivationStore(tmp_path / "a*.h5")
    with pytest.raises(FileNotFoundError, match=r"b\.h5; capture activations into it first"):
        ActivationStore(tmp_path / "b.h5")
    (tmp_path / "a1.h5").rename(tmp_path / "[a]*.h5")
    assert len(ActivationStore(tmp_path / "[a]*.h5")) == len(MADE)


def test_norms_of_nothing_are_not_numbers(tmp_path):
    ActivationWriter.resume(tmp_path / "a.h5", MADE.header, MADE.slots).close()
    norms = ActivationStore(tmp_path / "a.h5").norms()
    assert len(norms) == 9 and norms[["mean_norm", "median_norm"]].isna().all(axis=None)


def test_the_frame_has_a_row_for_each_task(partial):
    frame = partial.frame()
    assert frame["task_id"].tolist() == IDS
    assert np.flatnonzero(frame["done"]).tolist() == [2, 3]
    assert np.flatnonzero(frame["skipped"]).tolist() == [5, 6]
    assert frame["prompt_digest"].tolist() == list(MADE.slots.prompts)
    np.testing.assert_array_equal(frame.loc[2:3, "n_tokens"], MADE.n_tokens[2:4])
    assert frame.loc[5:6, "n_tokens"].tolist() == [500, 600]
    np.testing.assert_array_equal(frame[f"rows.{BY_TOKEN}"], MADE.counts(BY_TOKEN))
    for position in POSITIONS:
        first = [each[0] for each in MADE.by_task(MADE.token_index[position], position)]
        assert frame.loc[2:3, f"token_index.{position}"].tolist() == first[2:4]
    assert not {"answer_key", "file", "rows.task_mean"} & set(frame.columns)


def test_the_frame_says_which_answer_of_the_log_was_read(tmp_path):
    slots = Slots(["a", "b"], ["", ""], answers=["key", ""])
    ActivationWriter.resume(tmp_path / "a.h5", header(positions=("p",)), slots).close()
    assert ActivationStore(tmp_path / "a.h5").frame()["answer_key"].dropna().to_dict() == {0: "key"}


def test_skipped_tasks_are_named_and_left_out(tmp_path):
    with ActivationWriter.resume(tmp_path / "a.h5", MADE.header, MADE.slots) as writer:
        writer.skip(np.array([5, 0]), np.array([9, 9]))
        kept = writer.open_slots()
        MADE.write(writer, kept[::-1])
    store = ActivationStore(tmp_path / "a.h5")
    assert store.skipped == [IDS[0], IDS[5]] and "10 of 12 tasks, 2 skipped" in repr(store)
    assert kept.tolist() == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert_holds(store, MADE, kept)
    for position in POSITIONS:
        np.testing.assert_array_equal(store.load(3, position), store.load(3, position, [IDS[task] for task in kept]))
        assert len(store.row_counts(position)) == 10
        assert sum(len(rows) for _, rows in store.batches(3, position)) == len(store.load(3, position))
    with pytest.raises(KeyError, match=rf"a\.h5 skipped '{IDS[5]}': longer than the model's context, or an empty completion"):
        store.load(3, "task_mean", [IDS[1], IDS[5]])


def test_unfinished_tasks_are_named_and_not_left_out(partial):
    for read in (lambda: partial.load(3, "task_mean"), lambda: next(partial.batches(3, "all")), partial.slots):
        with pytest.raises(KeyError, match=rf"unfinished: no committed rows for '{IDS[0]}', '{IDS[1]}', .* and 3 more\. Run"):
            read()
    with pytest.raises(KeyError, match=rf"no committed rows for '{IDS[4]}'\. "):
        partial.load(3, "task_mean", [IDS[2], IDS[4]])
    assert_holds(partial, MADE, [3, 2])


def test_what_is_not_in_the_store_is_named(store):
    with pytest.raises(KeyError, match=r"a\.h5 has no rows for 'nobody', 'nor me'\."):
        store.load(3, "task_mean", [IDS[0], "nobody", "nor me"])
    with pytest.raises(
        KeyError, match=r"no L4/task_mean; it holds layers \['embed', 'L3', 'L7'\] at positions \['prompt_last'"
    ):
        store.load(4, "task_mean")
    for read in (store.row_counts, store.token_index):
        with pytest.raises(KeyError, match=r"no position 'task_men'; it has \['prompt_last', 'all', 'task_mean'\]"):
            read("task_men")
    with pytest.raises(KeyError, match="no L3/task_men"):
        store.rows(3, "task_men")
    with pytest.raises(FileNotFoundError, match="capture activations into it first"):
        ActivationStore("nowhere.h5")
    with pytest.raises(ValueError, match="No file was given"):
        ActivationStore([])


def test_a_store_says_what_it_is(store, partial):
    assert repr(store) == (
        "ActivationStore(a.h5: 12 of 12 tasks, made up, layers ['embed', 'L3', 'L7'], "
        "positions ['prompt_last', 'all', 'task_mean'], float32)"
    )
    assert "2 of 12 tasks, 2 skipped" in repr(partial)
    assert (len(store), store.by_token, store.header) == (12, (BY_TOKEN,), MADE.header)


def test_a_reader_sees_rows_as_a_writer_commits_them(tmp_path):
    with ActivationWriter.resume(tmp_path / "a.h5", MADE.header, MADE.slots) as writer:
        reader = ActivationStore(tmp_path / "a.h5")
        assert not reader.done.any()
        for task in (7, 0, 3):
            MADE.write(writer, [task])
            assert reader.done[task]
        assert_holds(reader, MADE, [3, 0, 7])
        assert np.flatnonzero(reader.done).tolist() == [0, 3, 7]


@pytest.mark.skipif(sys.platform != "linux", reason="a limit on memory that leaves maps alone is Linux's")
def test_a_store_larger_than_memory_is_read_row_by_row(tmp_path):
    found = alone("larger_than_memory", tmp_path)
    assert found.pop("bytes") > 16_384 * 32_768 * 4
    assert found == {
        "one row": 8,
        "scattered rows": [8, 0, 7],
        "a slice": [0, 8],
        "two tasks": [7, 8],
        "all rows": "do not fit",
    }
