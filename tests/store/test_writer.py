"""The one writer: rows in any order come back bit for bit, unfinished files are continued, and what does not fit is refused."""

import os
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from store import ActivationStore, ActivationWriter
from store.layout import StoreMismatch, UnwritableStore
from store.provenance import ModelIdentity
from tests.store.alone import N_RACERS, N_RACES, alone
from tests.store.sample import BY_TOKEN, POSITIONS, assert_holds, header, sample

MADE = sample()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("parts", [1, 5, 12])
def test_rows_written_in_any_order_come_back_bit_for_bit(tmp_path, dtype, seed, parts):
    made = sample(dtype, seed=seed)
    store = made.fill(tmp_path / "a.h5", parts=parts, seed=seed)
    assert_holds(store, made)
    assert_holds(store, made, np.random.default_rng(seed).permutation(12)[:7])
    assert store.done.all() and store.verify() == []
    for key, table in made.rows.items():
        np.testing.assert_array_equal(store.load(*key), table)


def test_float32_is_rounded_to_bfloat16_as_torch_does(tmp_path):
    made = sample("float32")
    with ActivationWriter.resume(tmp_path / "a.h5", header("bfloat16"), made.slots) as writer:
        made.write(writer, np.arange(12))
    store = ActivationStore(tmp_path / "a.h5")
    for key, table in made.rows.items():
        np.testing.assert_array_equal(store.load(*key), torch.from_numpy(table).bfloat16().float().numpy())
        assert (store.load(*key) != table).any()


def test_signed_zeros_and_the_smallest_and_largest_numbers_keep_their_bits(tmp_path):
    made = sample("float32", n=1, positions=("p",), layers=(3,))
    values = np.array([[0.0, -0.0, 1e-45, -1e-45, 3.4028235e38, -3.4028235e38]], np.float32)
    made.rows[3, "p"] = values
    with np.errstate(over="ignore"):
        store = made.fill(tmp_path / "a.h5")
    np.testing.assert_array_equal(store.load(3, "p").view(np.uint32), values.view(np.uint32))


def test_rows_of_any_strides_are_written(tmp_path):
    made = sample("float32")
    tasks, rows, n_tokens, index = made.of([4, 2, 9])
    strided = {key: np.stack([table, -table], axis=1)[:, 0] for key, table in rows.items()}
    assert not strided[3, "all"].flags.c_contiguous
    with ActivationWriter.resume(tmp_path / "a.h5", made.header, made.slots) as writer:
        writer.write(tasks, strided, n_tokens, index)
    assert_holds(ActivationStore(tmp_path / "a.h5"), made, [4, 2, 9])


def test_a_task_without_rows_is_skipped_and_not_written(tmp_path):
    slots = replace(MADE.slots, rows={BY_TOKEN: np.array([0, *MADE.counts(BY_TOKEN)[1:]])})
    with ActivationWriter.resume(tmp_path / "a.h5", MADE.header, slots) as writer:
        tasks, rows, n_tokens, index = MADE.of([0, 1])
        rows |= {(layer, BY_TOKEN): rows[layer, BY_TOKEN][MADE.counts(BY_TOKEN)[0] :] for layer in MADE.header.layers}
        index |= {BY_TOKEN: index[BY_TOKEN][MADE.counts(BY_TOKEN)[0] :]}
        with pytest.raises(ValueError, match="Task 'task-0é' has no rows at all; skip it"):
            writer.write(tasks, rows, n_tokens, index)
        writer.skip(np.array([0]), np.array([0]))
        assert writer.open_slots().tolist() == list(range(1, 12))


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [
        ("float32", np.nan),
        ("float32", np.inf),
        ("bfloat16", np.nan),
        ("bfloat16", -np.inf),
        ("bfloat16", 3.4e38),  # finite, but infinite once rounded
        ("bfloat16", np.uint32(0x7FFFFFFF).view(np.float32)),  # the NaN of a GPU
        ("bfloat16", np.uint32(0xFFFFFFFF).view(np.float32)),
    ],
)
@pytest.mark.parametrize("position", POSITIONS)
def test_rows_that_are_not_finite_once_stored_are_refused_and_nothing_is_written(tmp_path, dtype, bad, position):
    made, path = sample(dtype), tmp_path / "a.h5"
    with ActivationWriter.resume(path, made.header, made.slots) as writer:
        made.write(writer, [0])
        before = path.read_bytes()
        made.by_task(made.rows[7, position], position)[5][-1, 4] = bad
        with pytest.raises(ValueError, match=rf"task 'task-5é' at L7/{position} is not finite; nothing was written"):
            made.write(writer, [8, 5, 2])
        assert path.read_bytes() == before
        made.write(writer, [8, 2])
        assert 5 in writer.open_slots()
    assert ActivationStore(path).verify() == []


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path):
    path = tmp_path / "a.h5"
    tasks, rows, n_tokens, index = MADE.of([3, 4])
    with ActivationWriter.resume(path, MADE.header, MADE.slots) as writer:
        before = path.read_bytes()
        for wrong_rows, wrong_index, message in (
            (rows | {(3, "all"): rows[3, "all"][1:]}, index, r"Rows of L3/all have shape \(.*, 6\); expected \(.*, 6\)"),
            (rows | {(3, "task_mean"): np.zeros((2, 7), "f4")}, index, r"L3/task_mean have shape \(2, 7\); expected \(2, 6\)"),
            (rows, index | {"task_mean": np.zeros(3, int)}, r"token index of task_mean has shape \(3,\); expected \(2,\)"),
            (rows, index | {"all": index["all"][:-1]}, r"token index of all has shape"),
        ):
            with pytest.raises(ValueError, match=message):
                writer.write(tasks, wrong_rows, n_tokens, wrong_index)
        assert path.read_bytes() == before


def test_a_committed_task_is_never_written_again(tmp_path):
    path = tmp_path / "a.h5"
    with ActivationWriter.resume(path, MADE.header, MADE.slots) as writer:
        MADE.write(writer, [3, 4])
        writer.skip(np.array([6]), np.array([1]))
        before = path.read_bytes()
        for again in (
            lambda: MADE.write(writer, [5, 3]),
            lambda: MADE.write(writer, [6]),
            lambda: writer.skip(np.array([4]), np.array([1])),
        ):
            with pytest.raises(ValueError, match=r"a\.h5 has 'task-[346]é' already; see open_slots"):
                again()
        assert path.read_bytes() == before


def test_rows_are_on_disk_before_they_are_called_done(tmp_path, monkeypatch):
    """At the first flush of a write every row is there and none is done; the second flush is of `done`, and of nothing else."""
    path, flushed = tmp_path / "a.h5", []
    with ActivationWriter.resume(path, MADE.header, MADE.slots) as writer:
        real, here = os.fsync, writer._handle.fileno()

        def fsync(handle: int) -> None:
            assert handle == here
            real(handle)
            flushed.append(path.read_bytes())

        monkeypatch.setattr(os, "fsync", fsync)
        MADE.write(writer, [7, 2])
        monkeypatch.undo()
    assert len(flushed) == 2
    first, second = (np.frombuffer(each, np.uint8) for each in flushed)
    changed = np.flatnonzero(first != second)
    assert len(changed) == 2 and (first[changed] == 0).all() and (second[changed] == 1).all()
    assert path.read_bytes() == flushed[1]
    (tmp_path / "b.h5").write_bytes(flushed[0])
    assert not ActivationStore(tmp_path / "b.h5").done.any()
    with ActivationWriter(tmp_path / "b.h5") as writer:
        writer.file.arrays["done"][[7, 2]] = 1
    assert_holds(ActivationStore(tmp_path / "b.h5"), MADE, [7, 2])


def test_an_unfinished_store_is_continued(tmp_path):
    path = tmp_path / "a.h5"
    with ActivationWriter.resume(path, MADE.header, MADE.slots) as writer:
        MADE.write(writer, [11, 0])
        writer.skip(np.array([4]), np.array([99]))
    with ActivationWriter.resume(path, MADE.header, MADE.slots) as writer:
        assert writer.open_slots().tolist() == [1, 2, 3, 5, 6, 7, 8, 9, 10]
        MADE.write(writer, [10, 5])
    store = MADE.fill(path)
    assert store.done.sum() == 11 and store.skipped == ["task-4é"] and store.verify() == []
    assert_holds(store, MADE, np.flatnonzero(store.done))


SAME = MADE.slots
RENAMED = [f"other-{number}" for number in range(12)]


@pytest.mark.parametrize(
    ("changes", "slots", "message"),
    [
        ({"model": ModelIdentity("made up", "none", "another")}, {}, "model: the store has 'fingerprint', the other 'another'"),
        ({"tokenizer_hash": "x"}, {}, "tokenizer_hash: the store has 'tokenizer', the other 'x'"),
        ({"template_hash": "x"}, {}, "template_hash: the store has 'template', the other 'x'"),
        ({"attention": "eager"}, {}, "attention: the store has 'sdpa, packed', the other 'eager'"),
        ({"dtype": "float32"}, {}, "dtype: the store has 'bfloat16', the other 'float32'"),
        ({"layers": (3, 7)}, {}, r"layers: the store has \(-1, 3, 7\), the other \(3, 7\)"),
        ({"layers": (3, -1, 7)}, {}, "layers: the store has"),
        ({"positions": ("prompt_last", "all")}, {}, "positions: the store has"),
        ({"positions": ("task_mean", "all", "prompt_last")}, {}, "positions: the store has"),
        ({"d_model": 7}, {}, "d_model: the store has 6, the other 7"),
        ({}, {"prompts": [*SAME.prompts[:3], "x", *SAME.prompts[4:]]}, "prompts: those of 'task-3é' are not the store's"),
        ({}, {"answers": ["", "key", *[""] * 10]}, "answers: those of 'task-1é' are not the store's"),
        ({}, {"task_ids": SAME.task_ids[::-1]}, "tasks: the store has 12, this capture 12 or another order"),
        ({}, {"task_ids": RENAMED}, "tasks: the store has 12"),
        ({}, {"rows": {"all": MADE.counts("all") + np.arange(12) // 11}}, "rows: those of 'task-11é' at all are not as many"),
        ({}, {"rows": {}}, "rows: those of 'task-0é', .* at all are not as many"),
        (
            {},
            {"rows": SAME.rows | {"task_mean": np.ones(12, int)}},
            "rows: those of 'task-0é', .* at task_mean are not as many",
        ),
    ],
)
def test_a_store_of_anything_else_is_refused_naming_what_differs(tmp_path, changes, slots, message):
    path = tmp_path / "a.h5"
    with ActivationWriter.resume(path, MADE.header, SAME) as writer:
        MADE.write(writer, [3])
    before = path.read_bytes()
    with pytest.raises(
        StoreMismatch, match=rf"a\.h5 holds other activations than these\. {message}.*Capture into another file"
    ):
        ActivationWriter.resume(path, header(**changes), replace(SAME, **slots))
    assert path.read_bytes() == before
    ActivationWriter.resume(path, MADE.header, SAME).close()


def test_a_list_of_fewer_tasks_is_refused(tmp_path):
    ActivationWriter.resume(tmp_path / "a.h5", MADE.header, SAME).close()
    fewer = sample(n=11)
    with pytest.raises(StoreMismatch, match="tasks: the store has 12, this capture 11"):
        ActivationWriter.resume(tmp_path / "a.h5", MADE.header, fewer.slots)


def test_every_field_that_differs_is_named(tmp_path):
    ActivationWriter.resume(tmp_path / "a.h5", MADE.header, SAME).close()
    with pytest.raises(StoreMismatch, match=r"prompts: .*tokenizer_hash: .*attention: "):
        ActivationWriter.resume(tmp_path / "a.h5", header(tokenizer_hash="x", attention="y"), replace(SAME, prompts=["x"] * 12))


def test_a_model_of_another_name_but_the_same_weights_is_the_same(tmp_path):
    path = tmp_path / "a.h5"
    ActivationWriter.resume(path, MADE.header, SAME).close()
    ActivationWriter.resume(path, header(model=ModelIdentity("renamed", "none", "fingerprint")), SAME).close()


def test_no_answers_are_the_same_as_empty_ones(tmp_path):
    ActivationWriter.resume(tmp_path / "a.h5", MADE.header, SAME).close()
    with ActivationWriter.resume(tmp_path / "a.h5", MADE.header, replace(SAME, answers=[""] * 12)) as writer:
        assert len(writer) == 12


def test_a_second_writer_is_refused_while_the_first_is_at_work(tmp_path):
    with ActivationWriter.resume(tmp_path / "a.h5", MADE.header, SAME) as first:
        with pytest.raises(UnwritableStore, match=r"Another process is writing .*a\.h5\. Wait for it, or capture into another"):
            ActivationWriter(tmp_path / "a.h5")
        MADE.write(first, [0])
    ActivationWriter(tmp_path / "a.h5").close()


def test_a_writer_that_is_refused_leaves_the_file_to_others(tmp_path):
    ActivationWriter.resume(tmp_path / "a.h5", MADE.header, SAME).close()
    with pytest.raises(StoreMismatch) as refused:
        ActivationWriter.resume(tmp_path / "a.h5", header(d_model=7), SAME)
    ActivationWriter(tmp_path / "a.h5").close()  # though the traceback keeps the one that was refused alive
    assert refused.value is not None


def test_of_processes_that_begin_a_store_at_once_one_writes_and_loses_no_row(tmp_path):
    made = sample()
    rounds = alone("raced", tmp_path)
    assert len(rounds) == N_RACES
    for each in rounds:
        refused = [outcome for outcome in each["outcomes"] if outcome != "wrote"]
        assert len(each["outcomes"]) == N_RACERS and len(refused) == N_RACERS - 1
        assert all("Another process is writing" in outcome for outcome in refused)
        store = ActivationStore(each["path"])
        assert np.flatnonzero(store.done).tolist() == [each["outcomes"].index("wrote")]
        assert_holds(store, made, np.flatnonzero(store.done))
        assert_holds(made.fill(store.files[0].path), made)
    assert len(os.listdir(tmp_path)) == len(rounds)


def test_a_file_without_permission_to_write_is_read_but_not_written(tmp_path):
    MADE.fill(tmp_path / "a.h5")
    (tmp_path / "a.h5").chmod(0o444)
    tmp_path.chmod(0o555)
    found = alone("without_rights", tmp_path)
    assert found.pop("rows") == MADE.rows[3, "task_mean"].tolist()
    message = "a.h5 cannot be written (Permission denied). Change its permissions, or capture into another file."
    assert found.pop("open") == found.pop("resume") == ["UnwritableStore", message]
    kind, message = found.pop("create")
    assert kind == "PermissionError" and "store of 0.0 MB can be made at b.h5: Permission denied" in message


def test_there_is_nothing_to_write_where_there_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        ActivationWriter(tmp_path / "a.h5")
    with pytest.raises(UnwritableStore, match=r"cannot be written \(Is a directory\)"):
        ActivationWriter(tmp_path)


def assert_met_at_creation(found: dict, reason: str) -> None:
    assert reason in found["error"] and "No store of 1.8 MB can be made at" in found["error"]
    assert found["left behind"] == []
    assert found["written"] == 12


def test_a_limit_on_the_size_of_files_is_met_at_creation_and_leaves_nothing_behind(tmp_path):
    assert_met_at_creation(alone("disk_too_small", tmp_path, "--limit"), "File too large")


def test_a_disk_too_small_is_met_at_creation_and_one_that_fills_up_later_does_no_harm(tmp_path):
    mounted = ["unshare", "-m", "sh", "-c", f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$0" "$@"']
    if shutil.which("unshare") is None or subprocess.run([*mounted, "true"], capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root alone, where mounting is allowed")
    found = alone("disk_too_small", tmp_path, within=mounted)
    assert found["filled to the last byte"]
    assert_met_at_creation(found, "No space left on device")
