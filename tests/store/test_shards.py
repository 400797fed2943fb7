"""Several files read as one store, and files that do not belong together."""

import numpy as np
import pytest

from store import ActivationStore, ActivationWriter
from store.layout import StoreMismatch
from store.provenance import ModelIdentity
from tests.store.sample import BY_TOKEN, POSITIONS, Sample, sample

SIZES = (4, 1, 7)


@pytest.fixture(params=["float32", "bfloat16"])
def shards(tmp_path, request) -> tuple[list[Sample], ActivationStore]:
    made = [sample(request.param, n, prefix=f"shard{number}", seed=number) for number, n in enumerate(SIZES)]
    for number, each in enumerate(made):
        each.fill(tmp_path / f"{number}.h5")
    return made, ActivationStore([tmp_path / f"{number}.h5" for number in range(3)])


def test_several_files_are_read_as_one(shards):
    made, store = shards
    assert store.task_ids == [task_id for each in made for task_id in each.slots.task_ids]
    assert (len(store), store.name) == (12, "0.h5 and 2 more")
    for layer, position in store.header.keys:
        whole = np.concatenate([each.rows[layer, position] for each in made])
        np.testing.assert_array_equal(store.load(layer, position), whole)
        np.testing.assert_array_equal(np.asarray(store.rows(layer, position)), whole)
    for position in POSITIONS:
        np.testing.assert_array_equal(store.row_counts(position), np.concatenate([each.counts(position) for each in made]))
        np.testing.assert_array_equal(
            store.token_index(position), np.concatenate([each.token_index[position] for each in made])
        )


def test_tasks_of_several_files_come_in_the_order_asked_for(shards):
    made, store = shards
    order = [(2, 6), (0, 1), (1, 0), (2, 0), (0, 3), (0, 0)]
    ids = [made[shard].slots.task_ids[task] for shard, task in order]
    for layer, position in store.header.keys:
        parts = [each.by_task(each.rows[layer, position], position) for each in made]
        np.testing.assert_array_equal(
            store.load(layer, position, ids), np.concatenate([parts[shard][task] for shard, task in order])
        )
        batches = [rows for _, rows in store.batches(layer, position, ids, size=4)]
        np.testing.assert_array_equal(np.concatenate(batches), store.load(layer, position, ids))
    for position in POSITIONS:
        index = [each.by_task(each.token_index[position], position) for each in made]
        np.testing.assert_array_equal(
            store.token_index(position, ids), np.concatenate([index[shard][task] for shard, task in order])
        )


def test_the_frame_says_which_file_a_task_is_in(shards):
    made, store = shards
    frame = store.frame()
    assert frame["file"].tolist() == [str(store.files[number].path) for number, n in enumerate(SIZES) for _ in range(n)]
    np.testing.assert_array_equal(frame["n_tokens"], np.concatenate([each.n_tokens for each in made]))
    np.testing.assert_array_equal(frame[f"rows.{BY_TOKEN}"], np.concatenate([each.counts(BY_TOKEN) for each in made]))


def test_norms_and_damage_are_those_of_all_files(shards):
    made, store = shards
    norms = store.norms().set_index(["layer", "position"])["mean_norm"]
    expected = np.linalg.norm(np.concatenate([each.rows[3, "task_mean"] for each in made]).astype(float), axis=1).mean()
    assert norms[3, "task_mean"] == pytest.approx(expected, rel=1e-6)
    assert store.verify() == []
    with ActivationWriter(store.files[2].path) as writer:
        writer.file.arrays["n_tokens"][5] += 1
    assert store.verify() == ["shard2-5é"]


def test_a_task_that_is_in_two_files_is_named_with_both(tmp_path):
    first, second = sample(n=4, prefix="a"), sample(n=2, prefix="b")
    second.slots.task_ids[1] = first.slots.task_ids[2]
    first.fill(tmp_path / "first.h5")
    second.fill(tmp_path / "second.h5")
    with pytest.raises(StoreMismatch, match=r"Task 'a-2é' is in .*first\.h5 and in .*second\.h5; leave one of them out"):
        ActivationStore([tmp_path / "first.h5", tmp_path / "second.h5"])
    with pytest.raises(StoreMismatch, match=r"Task 'a-0é' is in .*first\.h5 and in .*first\.h5"):
        ActivationStore([tmp_path / "first.h5", tmp_path / "first.h5"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": ModelIdentity("made up", "none", "another")}, "model: the store has 'fingerprint', the other 'another'"),
        ({"tokenizer_hash": "x"}, "tokenizer_hash: the store has 'tokenizer', the other 'x'"),
        ({"template_hash": "x"}, "template_hash: the store has 'template'"),
        ({"attention": "eager"}, "attention: the store has 'sdpa, packed'"),
        ({"dtype": "float32"}, "dtype: the store has 'bfloat16', the other 'float32'"),
        ({"layers": (3, 7)}, r"layers: the store has \(-1, 3, 7\), the other \(3, 7\)"),
        ({"positions": ("all", "prompt_last", "task_mean")}, "positions: the store has"),
        ({"d_model": 7}, "d_model: the store has 6, the other 7"),
    ],
)
def test_files_of_different_content_are_refused_naming_the_field(tmp_path, changes, message):
    sample().fill(tmp_path / "a.h5")
    sample(prefix="other", **changes).fill(tmp_path / "b.h5")
    with pytest.raises(StoreMismatch, match=rf"b\.h5 does not belong with .*a\.h5\. {message}"):
        ActivationStore([tmp_path / "a.h5", tmp_path / "b.h5"])


def test_one_model_may_be_known_by_two_names(tmp_path):
    sample(prefix="a").fill(tmp_path / "a.h5")
    sample(prefix="b", model=ModelIdentity("renamed", "other", "fingerprint")).fill(tmp_path / "b.h5")
    assert len(ActivationStore([tmp_path / "a.h5", tmp_path / "b.h5"])) == 24


def test_files_with_other_positions_by_token_are_refused(tmp_path):
    sample(prefix="a").fill(tmp_path / "a.h5")
    other = sample(prefix="b")
    other.slots.rows["task_mean"] = other.counts("task_mean")
    other.fill(tmp_path / "b.h5")
    with pytest.raises(StoreMismatch, match=r"b\.h5 keeps other positions by token than .*a\.h5"):
        ActivationStore([tmp_path / "a.h5", tmp_path / "b.h5"])
