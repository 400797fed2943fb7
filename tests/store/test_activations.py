"""The activation store: bits that come back, files that survive, and errors that name what is wrong."""

import os
import stat
import subprocess
import sys
import textwrap

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from store import ActivationStore, ActivationWriter, StoreHeader
from store.activations import DamagedStore, StoreMismatch, create_store, from_bfloat16_bits, to_bfloat16_bits
from store.provenance import ModelIdentity

MODEL = ModelIdentity("made up", "none", "fingerprint")
IDS = [f"task-{number}é" for number in range(12)]


def header(dtype: str = "bfloat16", **changes) -> StoreHeader:
    values = {
        "model": MODEL,
        "tokenizer_hash": "t",
        "template_hash": "c",
        "prompts_digest": "p",
        "attention": "sdpa, packed",
        "dtype": dtype,
        "d_model": 6,
        "layers": (-1, 3, 7),
        "positions": ("prompt_last", "task_mean"),
    }
    return StoreHeader(**values | changes)


def filled(path, dtype: str = "bfloat16") -> np.ndarray:
    rows = np.random.default_rng(0).normal(size=(len(IDS), 6, 6)).astype(np.float32) * 100
    with ActivationWriter.resume(path, header(dtype), IDS) as writer:
        order = np.random.default_rng(1).permutation(len(IDS))
        for part in np.array_split(order, 3):
            writer.write(part, rows[part], part + 10, np.stack([part, -np.ones_like(part)], axis=1))
        writer.write_norms()
    return rows


@given(hnp.arrays(np.uint32, st.integers(1, 50)))
def test_bfloat16_bits_are_those_of_torch(bits32):
    values = bits32.view(np.float32)
    values = values[np.isfinite(values)]
    expected = torch.from_numpy(values).to(torch.bfloat16)
    bits = to_bfloat16_bits(values)
    np.testing.assert_array_equal(bits, expected.view(torch.int16).numpy().view(np.uint16))
    np.testing.assert_array_equal(from_bfloat16_bits(bits), expected.float().numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_rows_written_in_any_order_come_back_bit_for_bit(tmp_path, dtype):
    rows = filled(tmp_path / "a.h5", dtype)
    store = ActivationStore(tmp_path / "a.h5")
    expected = from_bfloat16_bits(to_bfloat16_bits(rows)) if dtype == "bfloat16" else rows
    for column, (layer, position) in enumerate(store.header.keys):
        np.testing.assert_array_equal(store.load(layer, position), expected[:, column])
        np.testing.assert_array_equal(store.load(layer, position, [IDS[5], IDS[0]]), expected[[5, 0], column])
    assert store.task_ids == IDS
    assert store.header == header(dtype)
    assert store.verify() == []
    frame = store.frame()
    assert frame["n_tokens"].tolist() == [number + 10 for number in range(len(IDS))]
    assert frame["token_index.prompt_last"].tolist() == list(range(len(IDS)))
    norms = store.norms().set_index(["layer", "position"])
    assert norms.loc[(3, "task_mean"), "mean_norm"] == pytest.approx(np.linalg.norm(expected[:, 3], axis=1).mean())


def test_plain_h5py_reads_it(tmp_path):
    rows = filled(tmp_path / "a.h5", "float32")
    with h5py.File(tmp_path / "a.h5") as file:
        dataset = file["residuals/L3/task_mean"]
        assert dataset.chunks is None
        np.testing.assert_array_equal(dataset[:], rows[:, 3])
        assert file["residuals/embed/prompt_last"].shape == (len(IDS), 6)
        assert file["done"][:].all()
        assert file.attrs["model.name"] == "made up" and file.attrs["format_version"] == 1


def test_every_byte_is_allocated_at_creation_and_writing_moves_none(tmp_path):
    path = tmp_path / "a.h5"
    create_store(path, header(), IDS)
    before = path.stat()
    assert before.st_blocks * 512 >= before.st_size
    metadata = path.read_bytes()[:2048]
    filled(path)
    assert path.stat().st_size == before.st_size
    assert path.read_bytes()[:2048] == metadata


def test_a_store_is_readable_by_others_as_the_umask_says(tmp_path):
    create_store(tmp_path / "a.h5", header(), IDS)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a.h5").stat().st_mode) == 0o666 & ~mask


def test_uncommitted_rows_are_not_read(tmp_path):
    with ActivationWriter.resume(tmp_path / "a.h5", header(), IDS) as writer:
        writer.write(np.array([2]), np.ones((1, 6, 6), np.float32), np.array([3]), np.array([[0, -1]]))
        reader = ActivationStore(tmp_path / "a.h5")
        assert reader.done.tolist() == [number == 2 for number in range(len(IDS))]
        with pytest.raises(KeyError, match="unfinished: no committed rows for 'task-0é'"):
            reader.load(3, "task_mean")
        assert reader.load(3, "task_mean", [IDS[2]]).tolist() == [[1.0] * 6]
        writer.write(np.array([3]), np.ones((1, 6, 6), np.float32), np.array([3]), np.array([[0, -1]]))
        assert reader.done.sum() == 2
    assert ActivationWriter(tmp_path / "a.h5").open_slots().tolist() == [0, 1, *range(4, 12)]


def test_a_second_writer_is_refused_while_the_first_is_at_work(tmp_path):
    with ActivationWriter.resume(tmp_path / "a.h5", header(), IDS):
        with pytest.raises(StoreMismatch, match="Another process is writing"):
            ActivationWriter(tmp_path / "a.h5")
        ActivationStore(tmp_path / "a.h5")
    ActivationWriter(tmp_path / "a.h5").close()


@pytest.mark.parametrize(
    "change",
    [
        {"model": ModelIdentity("made up", "none", "another")},
        {"tokenizer_hash": "x"},
        {"template_hash": "x"},
        {"prompts_digest": "x"},
        {"attention": "eager"},
        {"dtype": "float32"},
        {"layers": (3, 7)},
        {"positions": ("task_mean", "prompt_last")},
        {"d_model": 7},
    ],
)
def test_a_store_of_anything_else_is_refused_naming_the_field(tmp_path, change):
    create_store(tmp_path / "a.h5", header(), IDS)
    with pytest.raises(StoreMismatch, match=f"{next(iter(change))}: the store has"):
        ActivationWriter.resume(tmp_path / "a.h5", header(**change), IDS)
    with pytest.raises(StoreMismatch, match="tasks: the store has 12, this capture 11"):
        ActivationWriter.resume(tmp_path / "a.h5", header(), IDS[:-1])
    ActivationWriter.resume(tmp_path / "a.h5", header(model=ModelIdentity("renamed", "none", "fingerprint")), IDS).close()


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3.4e38])
def test_values_that_are_not_finite_once_stored_are_refused_and_nothing_is_written(tmp_path, bad):
    rows = np.zeros((2, 6, 6), np.float32)
    rows[1, 3, 0] = bad
    with ActivationWriter.resume(tmp_path / "a.h5", header(), IDS) as writer:
        with pytest.raises(ValueError, match=r"task 'task-5é' at L3/task_mean is not finite"):
            writer.write(np.array([4, 5]), rows, np.array([1, 1]), np.zeros((2, 2), int))
        assert not writer.done.any()


def test_a_flipped_byte_is_found_and_its_task_named(tmp_path):
    filled(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        offset = file["residuals/L7/task_mean"].id.get_offset()
    with open(tmp_path / "a.h5", "r+b") as file:
        file.seek(offset + 4 * 6 * 2 + 3)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    assert ActivationStore(tmp_path / "a.h5").verify() == ["task-4é"]


def test_a_truncated_file_is_an_error_and_not_a_bus_error(tmp_path):
    filled(tmp_path / "a.h5")
    os.truncate(tmp_path / "a.h5", (tmp_path / "a.h5").stat().st_size - 100)
    with pytest.raises(DamagedStore):
        ActivationStore(tmp_path / "a.h5")


def test_a_file_that_is_no_store_is_named(tmp_path):
    (tmp_path / "a.h5").write_bytes(b"not HDF5")
    with pytest.raises(DamagedStore, match="does not open"):
        ActivationStore(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"] = [1]
    with pytest.raises(DamagedStore, match="format None"):
        ActivationStore(tmp_path / "b.h5")
    with pytest.raises(FileNotFoundError, match="capture activations into it first"):
        ActivationStore(tmp_path / "c.h5")


def test_layers_and_tasks_that_are_not_there_are_named(tmp_path):
    filled(tmp_path / "a.h5")
    store = ActivationStore(tmp_path / "a.h5")
    with pytest.raises(KeyError, match=r"no L4/task_mean; it holds layers \['embed', 'L3', 'L7'\]"):
        store.load(4, "task_mean")
    with pytest.raises(KeyError, match="no rows for 'nobody'"):
        store.load(3, "task_mean", ["nobody"])


def test_stores_that_cannot_be_made_are_refused(tmp_path):
    with pytest.raises(ValueError, match="task list is empty"):
        create_store(tmp_path / "a.h5", header(), [])
    with pytest.raises(ValueError, match="'b' appears more than once"):
        create_store(tmp_path / "a.h5", header(), ["a", "b", "b"])
    with pytest.raises(ValueError, match="float16"):
        header(dtype="float16")
    with pytest.raises(ValueError, match="layers are"):
        header(layers=())
    assert list(tmp_path.iterdir()) == []


def test_a_disk_too_small_is_met_at_creation_and_leaves_nothing_behind(tmp_path):
    script = textwrap.dedent(
        """
        import resource, signal, sys
        from tests.store.test_activations import IDS, header
        from store.activations import create_store
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            create_store(sys.argv[1], header(d_model=4096), IDS)
        except OSError as error:
            print("refused:", error)
        """
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a.h5")], capture_output=True, text=True)
    assert "refused:" in result.stdout, result.stderr
    assert list(tmp_path.iterdir()) == []
