"""Shards merged into one file, and rows taken to other tools and back."""

import json
import os
import pickle
import zipfile
from dataclasses import asdict

import h5py
import numpy as np
import pytest
from safetensors import safe_open

from store import ActivationStore, ActivationWriter, export, import_npz, merge
from store.layout import DamagedStore, StoreFile, StoreMismatch
from store.provenance import ModelIdentity
from tests.store.sample import BY_TOKEN, LAYERS, POSITIONS, Sample, assert_holds, sample


def shards(folder, dtype: str = "bfloat16", sizes: tuple[int, ...] = (4, 1, 7)) -> tuple[list[Sample], list]:
    made = [sample(dtype, n, prefix=f"shard{number}", seed=number) for number, n in enumerate(sizes)]
    paths = [folder / f"{number}.h5" for number in range(len(sizes))]
    for each, path in zip(made, paths, strict=True):
        each.fill(path)
    return made, paths


# ---- merge


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("step", [1, 3, 256])
def test_shards_are_merged_bit_for_bit(tmp_path, monkeypatch, dtype, step):
    monkeypatch.setattr("store.exchange._TASKS_PER_STEP", step)
    made, paths = shards(tmp_path, dtype)
    store = merge(paths, tmp_path / "out.h5")
    files = [StoreFile(path) for path in paths]
    assert store.header == files[0].header and len(store.files) == 1
    assert store.files[0].prompts == [prompt for file in files for prompt in file.prompts]
    for name, array in store.files[0].arrays.items():
        np.testing.assert_array_equal(
            array.view(np.uint8), np.concatenate([file.arrays[name] for file in files]).view(np.uint8)
        )
    for each in made:
        assert_holds(store, each)
    assert store.done.all() and store.verify() == []


def test_unfinished_tasks_are_left_out_of_a_merge_and_skipped_ones_are_not(tmp_path):
    first, second = sample(prefix="a"), sample(prefix="b")
    with ActivationWriter.resume(tmp_path / "a.h5", first.header, first.slots) as writer:
        first.write(writer, [9, 2])
        writer.skip(np.array([5]), np.array([77]))
    second.fill(tmp_path / "b.h5")
    store = merge([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out.h5")
    assert store.task_ids == ["a-2é", "a-5é", "a-9é", *second.slots.task_ids]
    assert store.skipped == ["a-5é"] and store.frame()["n_tokens"][1] == 77
    assert_holds(store, first, [2, 9])
    assert_holds(store, second)


def test_shards_of_skipped_tasks_alone_are_merged(tmp_path):
    made = sample(n=2)
    with ActivationWriter.resume(tmp_path / "a.h5", made.header, made.slots) as writer:
        writer.skip(np.array([0, 1]), np.array([7, 7]))
    assert merge([tmp_path / "a.h5"], tmp_path / "out.h5").skipped == made.slots.task_ids


def test_answers_of_merged_shards_are_kept(tmp_path):
    made = sample(n=2)
    slots = type(made.slots)(made.slots.task_ids, made.slots.prompts, made.slots.rows, ["key", ""])
    with ActivationWriter.resume(tmp_path / "a.h5", made.header, slots) as writer:
        made.write(writer, [1, 0])
    assert merge([tmp_path / "a.h5"], tmp_path / "out.h5").files[0].answers == ["key", ""]


@pytest.mark.parametrize("name", ["residuals/L3/all", "row_token/all", "n_tokens", "row_norm", "row_crc"])
def test_a_damaged_shard_is_refused_naming_the_task_and_no_file_is_left(tmp_path, name):
    _, paths = shards(tmp_path)
    with ActivationWriter(paths[2]) as writer:
        writer.file.arrays[name][-1:].view(np.uint8)[...] ^= 1
    with pytest.raises(
        DamagedStore, match=r"task 'shard2-6é' in .*2\.h5 have changed since they were written\. Capture that shard"
    ):
        merge(paths, tmp_path / "out.h5")
    assert sorted(os.listdir(tmp_path)) == ["0.h5", "1.h5", "2.h5"]


def test_shards_that_do_not_belong_together_are_not_merged(tmp_path):
    _, paths = shards(tmp_path)
    sample("float32", prefix="other").fill(tmp_path / "other.h5")
    with pytest.raises(StoreMismatch, match="dtype: the store has 'bfloat16', the other 'float32'"):
        merge([*paths, tmp_path / "other.h5"], tmp_path / "out.h5")
    with pytest.raises(StoreMismatch, match="Task 'shard0-0é' is in"):
        merge([*paths, paths[0]], tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


def test_a_merge_never_takes_the_place_of_a_file(tmp_path):
    made, paths = shards(tmp_path)
    with pytest.raises(FileExistsError, match=r"There is a file at .*0\.h5 already"):
        merge(paths, paths[0])
    assert_holds(ActivationStore(paths[0]), made[0])


def test_a_merge_of_nothing_finished_is_refused(tmp_path):
    made = sample()
    ActivationWriter.resume(tmp_path / "a.h5", made.header, made.slots).close()
    with pytest.raises(ValueError, match="the task list is empty"):
        merge([tmp_path / "a.h5"], tmp_path / "out.h5")
    assert os.listdir(tmp_path) == ["a.h5"]


# ---- export


def read_export(path) -> tuple[dict[str, np.ndarray], list[str], dict]:
    """Arrays, task ids and header of an export, read with the format's own reader."""
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
        return arrays, arrays.pop("task_id").tolist(), json.loads(str(arrays.pop("header")))
    with safe_open(path, "numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    return arrays, json.loads(metadata["task_id"]), json.loads(metadata["header"])


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_holds_every_number_of_the_store(tmp_path, suffix, dtype):
    made = sample(dtype)
    store = made.fill(tmp_path / "a.h5")
    out = export(store, tmp_path / "deep" / f"out.{suffix}")
    arrays, ids, header = read_export(out)
    assert ids == store.task_ids
    assert header == json.loads(json.dumps(asdict(store.header)))
    for layer, name in zip(LAYERS, ("embed", "L3", "L7"), strict=True):
        for position in POSITIONS:
            found = arrays.pop(f"{name}/{position}")
            assert found.dtype == np.float32
            np.testing.assert_array_equal(found, made.rows[layer, position])
    for position in POSITIONS:
        np.testing.assert_array_equal(arrays.pop(f"token_index/{position}"), made.token_index[position])
    np.testing.assert_array_equal(arrays.pop(f"row_counts/{BY_TOKEN}"), made.counts(BY_TOKEN))
    assert arrays == {} and os.listdir(out.parent) == [out.name]


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_an_export_may_be_of_some_layers_positions_and_tasks(tmp_path, suffix):
    store = sample().fill(tmp_path / "a.h5")
    tasks = [store.task_ids[7], store.task_ids[2]]
    arrays, ids, header = read_export(export(store, tmp_path / f"out.{suffix}", layers=[7, -1], positions=["all"], tasks=tasks))
    assert ids == tasks and header["layers"] == [7, -1] and header["positions"] == ["all"]
    assert set(arrays) == {"L7/all", "embed/all", "token_index/all", "row_counts/all"}
    for name, layer in (("L7", 7), ("embed", -1)):
        np.testing.assert_array_equal(arrays[f"{name}/all"], store.load(layer, "all", tasks))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_skipped_tasks_are_not_exported(tmp_path, suffix):
    made = sample()
    with ActivationWriter.resume(tmp_path / "a.h5", made.header, made.slots) as writer:
        writer.skip(np.array([0]), np.array([1]))
    arrays, ids, _ = read_export(export(made.fill(tmp_path / "a.h5"), tmp_path / f"out.{suffix}"))
    assert ids == made.slots.task_ids[1:] and len(arrays["L3/task_mean"]) == 11


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_what_cannot_be_exported_leaves_no_file(tmp_path, suffix):
    made = sample()
    store = made.fill(tmp_path / "a.h5")
    for changes, message in (
        ({"layers": [3, 4]}, "no L4/prompt_last"),
        ({"positions": ["task_mean", "nowhere"]}, "no position 'nowhere'"),
        ({"tasks": ["nobody"]}, "no rows for 'nobody'"),
    ):
        with pytest.raises(KeyError, match=message):
            export(store, tmp_path / f"out.{suffix}", **changes)
    assert os.listdir(tmp_path) == ["a.h5"]


def test_an_unfinished_store_is_not_exported(tmp_path):
    made = sample()
    with ActivationWriter.resume(tmp_path / "a.h5", made.header, made.slots) as writer:
        made.write(writer, [0])
    with pytest.raises(KeyError, match="unfinished"):
        export(ActivationStore(tmp_path / "a.h5"), tmp_path / "out.npz")
    arrays, *_ = read_export(export(ActivationStore(tmp_path / "a.h5"), tmp_path / "out.npz", tasks=["task-0é"]))
    np.testing.assert_array_equal(arrays["L3/task_mean"], made.rows[3, "task_mean"][:1])


def test_only_known_formats_are_exported(tmp_path):
    store = sample().fill(tmp_path / "a.h5")
    with pytest.raises(ValueError, match=r"Cannot export to 'out\.pt'; expected a name that ends in \.npz or \.safetensors"):
        export(store, tmp_path / "out.pt")


# ---- import


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_export_comes_back_as_it_was(tmp_path, dtype):
    made = sample(dtype)
    store = made.fill(tmp_path / "a.h5")
    export(store, tmp_path / "out.npz")
    again = import_npz(tmp_path / "out.npz", tmp_path / "b.h5", dtype=dtype)
    assert again.header == store.header and again.task_ids == store.task_ids and again.verify() == []
    for name, array in again.files[0].arrays.items():
        if name not in ("n_tokens", "row_crc"):  # an export does not say how long prompts were
            np.testing.assert_array_equal(array, store.files[0].arrays[name], err_msg=name)


def test_an_import_is_float32_of_the_model_that_one_says(tmp_path):
    store = sample("bfloat16").fill(tmp_path / "a.h5")
    export(store, tmp_path / "out.npz", layers=[7], positions=["task_mean"])
    model = ModelIdentity("mine", "own", "print")
    again = import_npz(tmp_path / "out.npz", tmp_path / "b.h5", model=model)
    assert again.header.model == model and again.header.dtype == "float32" and again.header.keys == [(7, "task_mean")]
    np.testing.assert_array_equal(again.load(7, "task_mean"), store.load(7, "task_mean"))


def foreign(path, **arrays):
    """An npz as another tool might have written it."""
    values = {"task_id": np.array(["a", "b", "c"]), "L3/task_mean": np.arange(12, dtype=np.float64).reshape(3, 4)} | arrays
    np.savez_compressed(path, **{name: array for name, array in values.items() if array is not None})
    return path


def test_arrays_of_another_tool_are_imported(tmp_path):
    embed = np.ones((3, 4), np.float16)
    source = foreign(tmp_path / "in.npz", **{"residuals/embed/task_mean": embed, "unrelated": np.array([1])})
    store = import_npz(source, tmp_path / "a.h5")
    assert store.task_ids == ["a", "b", "c"] and store.header.layers == (-1, 3)
    np.testing.assert_array_equal(store.load(3, "task_mean", ["c", "a"]), [[8, 9, 10, 11], [0, 1, 2, 3]])
    np.testing.assert_array_equal(store.load(-1, "task_mean"), embed)
    assert store.header.model == ModelIdentity("unknown", "unknown", store.header.model.fingerprint)
    assert store.token_index("task_mean").tolist() == [-1, -1, -1] and store.verify() == []


def test_arrays_of_other_names_are_imported_by_name(tmp_path):
    first, second = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    source = foreign(tmp_path / "in.npz", acts_l15=first, acts_in=second, **{"L3/task_mean": None})
    with pytest.raises(
        ValueError, match=r"has no array called like L15/task_mean.*it has \['acts_in', 'acts_l15', 'task_id'\]"
    ):
        import_npz(source, tmp_path / "a.h5")
    names = {"acts_l15": (15, "prompt_last"), "acts_in": (-1, "prompt_last")}
    store = import_npz(source, tmp_path / "a.h5", names=names)
    np.testing.assert_array_equal(store.load(15, "prompt_last"), first)
    np.testing.assert_array_equal(store.load(-1, "prompt_last"), second)
    with pytest.raises(ValueError, match=r"no arrays called \['acts_l16'\]; it has"):
        import_npz(source, tmp_path / "b.h5", names=names | {"acts_l16": (16, "prompt_last")})


@pytest.mark.parametrize(
    ("ids", "expected"), [(np.array([b"a", b"b", b"c"]), ["a", "b", "c"]), (np.arange(3), ["0", "1", "2"])]
)
def test_ids_may_be_bytes_or_numbers(tmp_path, ids, expected):
    assert import_npz(foreign(tmp_path / "in.npz", task_id=ids), tmp_path / "a.h5").task_ids == expected


def test_imported_rows_may_be_many_a_task(tmp_path):
    rows, counts = np.arange(20, dtype=np.float32).reshape(5, 4), np.array([2, 1, 2], dtype=np.uint8)
    arrays = {"L3/all": rows, "row_counts/all": counts, "token_index/all": np.array([4, 5, 0, 7, 9])}
    store = import_npz(foreign(tmp_path / "in.npz", **arrays), tmp_path / "a.h5")
    assert store.by_token == ("all",) and store.row_counts("all").tolist() == [2, 1, 2]
    np.testing.assert_array_equal(store.load(3, "all", ["c", "a"]), rows[[3, 4, 0, 1]])
    assert store.token_index("all", ["c"]).tolist() == [7, 9]


def own_header(**changes) -> np.ndarray:
    head = asdict(sample().header) | changes
    return np.array(json.dumps({name: value for name, value in head.items() if value is not None}))


MEAN = "L3/task_mean"
WRONG: dict[str, tuple[dict, str]] = {
    "no ids": ({"task_id": None}, r"no array 'task_id'; expected the id of every row\. It has \['L3/task_mean'\]"),
    "empty ids": ({"task_id": np.array([], dtype=str)}, "no array 'task_id'"),
    "ids in a table": ({"task_id": np.array([["a", "b", "c"]])}, r"task_id in .* is <U1 of shape \(1, 3\); expected text"),
    "ids that are floats": ({"task_id": np.zeros(3)}, r"task_id in .* is float64 of shape \(3,\); expected text"),
    "an id twice": ({"task_id": np.array(["a", "b", "a"])}, "Task id 'a' appears more than once"),
    "ids that are objects": ({"task_id": np.array(["a", "b", None], dtype=object)}, "cannot be read as an npz of plain arrays"),
    "rows that are objects": ({MEAN: np.array([[1], [2], [3]], dtype=object)}, "cannot be read as an npz of plain arrays"),
    "rows that are whole numbers": (
        {MEAN: np.ones((3, 4), int)},
        r"L3/task_mean in .* is int64 of shape \(3, 4\); expected floats",
    ),
    "rows in one line": ({MEAN: np.ones(12)}, r"float64 of shape \(12,\); expected floats \(tasks, width\)"),
    "too few rows": ({MEAN: np.ones((2, 4))}, r"L3/task_mean in .* is \(2, 4\); expected shape \(3, 4\)"),
    "another width": ({"L4/task_mean": np.ones((3, 5))}, r"L4/task_mean in .* is \(3, 5\); expected shape \(3, 4\)"),
    "a hole in the grid": ({"L4/prompt_last": np.ones((3, 4))}, r"L3/prompt_last in .* is missing; expected shape \(3, 4\)"),
    "row counts that do not add up": ({"row_counts/task_mean": np.array([1, 1, 2])}, r"is \(3, 4\); expected shape \(4, 4\)"),
    "too few row counts": ({"row_counts/task_mean": np.array([1, 2])}, "2 row counts of task_mean for 3 tasks"),
    "row counts below none": ({"row_counts/task_mean": np.array([4, -2, 1])}, "row counts of task_mean are"),
    "row counts in halves": ({"row_counts/task_mean": np.array([1.5, 0.5, 1.0])}, "row counts of task_mean are"),
    "a task without rows": ({"row_counts/task_mean": np.array([2, 0, 1])}, "Task 'b' has no rows at task_mean"),
    "too few tokens": (
        {"token_index/task_mean": np.array([1, 2])},
        r"token index of task_mean has shape \(2,\); expected \(3,\)",
    ),
    "rows that are not finite": ({MEAN: np.full((3, 4), np.nan)}, "residual of task 'a' at L3/task_mean is not finite"),
    "a header that is no JSON": (
        {"header": np.array("{")},
        "The header in .* is not one that penchant writes: JSONDecodeError",
    ),
    "a header of another kind": ({"header": np.array("[1]")}, "is not one that penchant writes: TypeError"),
    "a header without a model": ({"header": own_header(model=None)}, "is not one that penchant writes: KeyError.'model'"),
    "a header without a template": ({"header": own_header(template_hash=None)}, "penchant writes: KeyError.'template_hash'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_arrays_that_make_no_store_are_refused_and_leave_no_file(tmp_path, kind):
    arrays, message = WRONG[kind]
    source = foreign(tmp_path / "in.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        import_npz(source, tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["in.npz"]


def test_float64_that_float32_cannot_hold_is_refused(tmp_path):
    source = foreign(tmp_path / "in.npz", **{MEAN: np.full((3, 4), 1e300)})
    with pytest.raises(ValueError, match="residual of task 'a' at L3/task_mean is not finite"), np.errstate(over="ignore"):
        import_npz(source, tmp_path / "a.h5")
    assert os.listdir(tmp_path) == ["in.npz"]


def test_pickles_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    (tmp_path / "plain.npz").write_bytes(pickle.dumps(Trap()))
    np.savez(tmp_path / "inside.npz", **{MEAN: np.array([Trap()], dtype=object), "task_id": np.array(["a"])})
    np.save(tmp_path / "alone.npy", np.array([Trap()], dtype=object))
    for name in ("plain.npz", "inside.npz", "alone.npy"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an npz of plain arrays"):
            import_npz(tmp_path / name, tmp_path / "a.h5")
    assert sorted(os.listdir(tmp_path)) == ["alone.npy", "inside.npz", "plain.npz"]


def test_a_file_that_is_no_npz_is_refused(tmp_path):
    (tmp_path / "text.npz").write_text("nothing of the kind")
    np.save(tmp_path / "one.npy", np.ones((3, 4)))
    whole = foreign(tmp_path / "in.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    changed = bytearray(whole)
    changed[whole.index(b"PK\x03\x04", 10) - 20] ^= 0xFF
    (tmp_path / "changed.npz").write_bytes(changed)
    for name in ("text.npz", "one.npy", "cut.npz", "changed.npz", "absent.npz"):
        with pytest.raises(ValueError, match=rf"{name} cannot be read as an npz of plain arrays"):
            import_npz(tmp_path / name, tmp_path / "a.h5")


def test_members_that_are_no_arrays_are_no_rows(tmp_path):
    source = foreign(tmp_path / "in.npz", **{MEAN: None})
    with zipfile.ZipFile(source, "a") as archive:
        archive.writestr(MEAN, b"not an array")
    with pytest.raises(ValueError, match="no array called like"):
        import_npz(source, tmp_path / "a.h5")


def test_an_import_never_takes_the_place_of_a_file(tmp_path):
    made = sample()
    made.fill(tmp_path / "a.h5")
    with pytest.raises(FileExistsError, match=r"There is a file at .*a\.h5 already"):
        import_npz(foreign(tmp_path / "in.npz"), tmp_path / "a.h5")
    assert_holds(ActivationStore(tmp_path / "a.h5"), made)


def test_an_import_is_a_store_that_plain_h5py_reads(tmp_path):
    import_npz(foreign(tmp_path / "in.npz"), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(file["residuals/L3/task_mean"][:], np.arange(12).reshape(3, 4))
