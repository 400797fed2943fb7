"""Files whose writer was killed, that were cut short, changed or made elsewhere: no crash, and nothing wrong is read."""

import os
import re
import struct
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import ActivationStore, ActivationWriter
from store.layout import DamagedStore, StoreFile, create_store
from tests.store.alone import N_DAMAGED, N_KILLS, alone, killed_sample
from tests.store.sample import Sample, assert_holds, sample


def survived(run: dict, made: Sample) -> int | None:
    """Check what a killed writer left, finish it, and return how many tasks it had committed; None where there is no file."""
    path = Path(run["path"])
    left = None
    if path.exists():
        store = ActivationStore(path)
        assert store.done[run["reported"]].all(), "a row that was reported as committed is lost"
        assert_holds(store, made, np.flatnonzero(store.done))
        assert store.verify() == []
        left = int(store.done.sum())
    else:
        assert run["reported"] == []
    finished = made.fill(path, parts=2)
    assert finished.done.all() and finished.verify() == []
    assert_holds(finished, made)
    return left


def test_a_writer_killed_at_random_instants_loses_no_committed_row(tmp_path, monkeypatch):
    runs = alone("killed", tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # to finish them, the disk need not be waited for
    assert len(runs) == N_KILLS
    left = [survived(run, killed_sample()) for run in runs]
    assert left.count(None) >= 3 and len(set(left)) >= 8, "kills struck at creation and after most of the nine writes"


def states(path: Path, made: Sample) -> list[tuple[bytes | None, tuple[int, ...]]]:
    """What is on disk before each instruction of the code that creates a store and writes to it, and what was reported by then.

    A kill at that instruction would leave just this.
    """
    seen: dict[tuple[bytes | None, tuple[int, ...]], None] = {}
    reported: list[int] = []
    watched = (create_store.__code__, ActivationWriter.write.__code__)

    def trace(frame: FrameType, *_: object) -> Callable | None:
        if frame.f_code not in watched:
            return None
        frame.f_trace_opcodes = True
        seen[path.read_bytes() if path.exists() else None, tuple(reported)] = None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with ActivationWriter.resume(path, made.header, made.slots) as writer:
            for part in ([2, 0], [3, 1]):
                made.write(writer, part)
                reported += part
    finally:
        sys.settrace(before)
    seen[path.read_bytes(), tuple(reported)] = None
    return list(seen)


def test_a_kill_at_any_instruction_loses_no_committed_row(tmp_path):
    made, counts = sample(n=4, layers=(3, 7)), []
    for number, (content, reported) in enumerate(states(tmp_path / "a.h5", made)):
        left = tmp_path / f"{number}.h5"
        if content is not None:
            left.write_bytes(content)
        counts.append(survived({"path": str(left), "reported": list(reported)}, made))
    assert counts[0] is None and counts.count(None) == 1
    assert counts[1:] == sorted(counts[1:]) and set(counts[1:]) == {0, 2, 4}
    assert counts.count(0) > 10 and counts.count(2) > 10  # the states in which rows were half written


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, Sample]:
    """A store of twelve tasks, of which two are skipped."""
    made, path = sample("bfloat16"), tmp_path_factory.mktemp("whole") / "a.h5"
    with ActivationWriter.resume(path, made.header, made.slots) as writer:
        writer.skip(np.array([3, 8]), np.array([5, 5]))
    made.fill(path)
    return path, made


@given(share=st.floats(0, 1, exclude_max=True))
@settings(deadline=None, max_examples=60)
def test_a_file_cut_short_is_damaged_and_no_bus_error(whole, share):
    raw = whole[0].read_bytes()
    cut = whole[0].with_name("cut.h5")
    cut.write_bytes(raw[: int(share * len(raw))])
    for read in (ActivationStore, ActivationWriter):
        with pytest.raises(DamagedStore, match=r"cut\.h5"):
            read(cut)


@pytest.mark.parametrize("missing", [1, 7, 4096])
def test_a_file_whose_end_alone_is_missing_is_damaged(whole, missing):
    cut = whole[0].with_name("cut.h5")
    cut.write_bytes(whole[0].read_bytes()[:-missing])
    with pytest.raises(DamagedStore):
        ActivationStore(cut)


def test_a_file_that_is_cut_short_after_hdf5_has_read_it_is_damaged(whole, monkeypatch):
    cut = whole[0].with_name("cut.h5")
    cut.write_bytes(whole[0].read_bytes())

    class CutWhenClosed(h5py.File):
        def __exit__(self, *error):
            last = self["residuals/L7/task_mean"].id
            os.truncate(cut, last.get_offset() + last.get_storage_size() - 1)
            super().__exit__(*error)

    monkeypatch.setattr(h5py, "File", CutWhenClosed)
    with pytest.raises(DamagedStore, match=r"\d+ bytes long but its datasets need \d+: the file was truncated"):
        ActivationStore(cut)


def per_task(made: Sample, name: str) -> np.ndarray:
    """How many items of a dataset belong to each task."""
    return made.counts(name.split("/")[-1]) if "/" in name else np.ones(len(made), dtype=int)


@pytest.mark.parametrize(
    "name",
    ["residuals/embed/prompt_last", "residuals/L7/all", "row_token/all", "n_tokens", "token_index", "row_norm", "row_crc"],
)
@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_one_changed_bit_is_found_and_its_task_named(whole, name, data):
    path, made = whole
    with h5py.File(path) as file:
        offset, size = file[name].id.get_offset(), file[name].id.get_storage_size()
    changed = path.with_name("changed.h5")
    raw = bytearray(path.read_bytes())
    place, bit = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, 7))
    raw[offset + place] ^= 1 << bit
    changed.write_bytes(raw)
    counts = per_task(made, name)
    owner = int(np.searchsorted(np.cumsum(counts), place // (size // counts.sum()), side="right"))
    expected = [] if owner in (3, 8) else [made.slots.task_ids[owner]]  # what a skipped task has means nothing
    assert ActivationStore(changed).verify() == expected


def test_changed_bits_of_several_tasks_are_all_found(whole):
    path, made = whole
    changed = path.with_name("changed.h5")
    changed.write_bytes(path.read_bytes())
    with ActivationWriter(changed) as writer:
        for task in (11, 0, 6):
            writer.file.arrays["residuals/L3/task_mean"][task, 2] ^= 1
    assert ActivationStore(changed).verify() == [made.slots.task_ids[task] for task in (0, 6, 11)]


def test_tasks_that_change_places_with_all_their_rows_are_found(tmp_path):
    made = sample(positions=("prompt_last", "task_mean"))
    made.fill(tmp_path / "a.h5")
    with ActivationWriter(tmp_path / "a.h5") as writer:
        for array in writer.file.arrays.values():
            array[[1, 2]] = array[[2, 1]]
    assert ActivationStore(tmp_path / "a.h5").verify() == [made.slots.task_ids[1], made.slots.task_ids[2]]


@pytest.mark.parametrize(("task", "state", "named"), [(5, 7, True), (5, 0, False), (3, 1, True), (3, 255, True)])
def test_a_changed_mark_of_what_is_done_is_never_taken_for_rows(whole, task, state, named):
    path, made = whole
    changed = path.with_name("changed.h5")
    changed.write_bytes(path.read_bytes())
    with ActivationWriter(changed) as writer:
        writer.file.arrays["done"][task] = state
    store, task_id = ActivationStore(changed), made.slots.task_ids[task]
    assert store.verify() == [task_id] * named
    if state != 1:
        with pytest.raises(KeyError, match=f"no committed rows for '{task_id}'"):
            store.load(3, "task_mean", [task_id])


# ---- files from elsewhere


def replaced(name: str, make: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        make(file)

    return change


def external(file: h5py.File, name: str) -> None:
    file[name] = h5py.ExternalLink("other.h5", name)


def chunked(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    file.create_dataset(name, shape, dtype, chunks=shape)


def plain(file: h5py.File, name: str, values: object) -> None:
    file.create_dataset(name, data=values)


def raw_bytes_of(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    secret = Path(file.filename).with_name("secret")
    secret.write_bytes(b"s3cret" * 1000)
    file.create_dataset(name, shape, dtype, external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def virtual(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> None:
    layout = h5py.VirtualLayout(shape, dtype)
    layout[...] = h5py.VirtualSource("other.h5", name, shape)
    file.create_virtual_dataset(name, layout)


def attribute(name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


MEAN, ALL = "residuals/L3/task_mean", "residuals/L3/all"
N_ALL = int(sample().counts("all").sum())
IDS = "task_id"
FOREIGN: dict[str, tuple[Callable[[h5py.File], object], str]] = {
    "a table linked from another file": (
        replaced(MEAN, partial(external, name=MEAN)),
        f"{MEAN} is not contiguous in ",
    ),
    "a group linked from another file": (replaced("residuals", partial(external, name="residuals")), "not contiguous in "),
    "ids linked from another file": (replaced(IDS, partial(external, name=IDS)), "task_id is not contiguous in "),
    "a link to no file": (
        replaced(MEAN, lambda file: file.__setitem__(MEAN, h5py.ExternalLink("no.h5", "x"))),
        "no.h5|not open",
    ),
    "a link to nothing": (replaced(MEAN, lambda file: file.__setitem__(MEAN, h5py.SoftLink("/nowhere"))), "does not open"),
    "the bytes of another file as a table": (
        replaced(MEAN, partial(raw_bytes_of, name=MEAN, shape=(12, 6), dtype="<u2")),
        f"{MEAN} is not contiguous",
    ),
    "the bytes of another file as ids": (
        replaced(IDS, partial(raw_bytes_of, name=IDS, shape=(12,), dtype="S8")),
        "task_id is not contiguous",
    ),
    "a virtual table": (replaced(MEAN, partial(virtual, name=MEAN, shape=(12, 6), dtype="<u2")), "not contiguous"),
    "a chunked table": (replaced(MEAN, partial(chunked, name=MEAN, shape=(12, 6), dtype="<u2")), f"{MEAN} is not contiguous"),
    "a table of another type": (
        replaced(MEAN, partial(plain, name=MEAN, values=np.zeros((12, 6), "<f4"))),
        r"is float32 \(12, 6\); the header says uint16 \(12, 6\)",
    ),
    "a table of the other byte order": (
        replaced(MEAN, partial(plain, name=MEAN, values=np.zeros((12, 6), ">u2"))),
        r"is >u2 \(12, 6\); the header says uint16",
    ),
    "a table that is too short": (
        replaced(MEAN, partial(plain, name=MEAN, values=np.zeros((11, 6), "<u2"))),
        r"is uint16 \(11, 6\); the header says uint16 \(12, 6\)",
    ),
    "a table that is too narrow": (
        replaced(MEAN, partial(plain, name=MEAN, values=np.zeros((12, 5), "<u2"))),
        r"uint16 \(12, 5\); the header says",
    ),
    "a group for a table": (replaced(MEAN, lambda file: file.create_group(MEAN)), f"{MEAN} is a Group"),
    "no table": (replaced(MEAN, lambda _: None), "does not open"),
    "no ids": (replaced(IDS, lambda _: None), "does not open"),
    "no checksums": (replaced("row_crc", lambda _: None), "does not open"),
    "ids that are numbers": (replaced(IDS, partial(plain, name=IDS, values=np.arange(12))), "does not open"),
    "ids in a table": (replaced(IDS, partial(plain, name=IDS, values=np.full((12, 2), b"a"))), "does not open"),
    "ids that are not UTF-8": (replaced(IDS, partial(plain, name=IDS, values=np.full(12, b"\xff\xfe"))), "does not open"),
    "an id twice": (replaced(IDS, partial(plain, name=IDS, values=np.full(12, b"a"))), "12 task ids that repeat"),
    "no id at all": (replaced(IDS, partial(plain, name=IDS, values=h5py.Empty("S8"))), "does not open|not contiguous"),
    "too few prompts": (
        replaced("prompt_digest", partial(plain, name="prompt_digest", values=np.full(11, b"a"))),
        "do not match its prompts",
    ),
    "offsets that go back": (lambda file: file["offsets/all"].__setitem__(3, 0), "offsets/all do not divide rows among 12"),
    "offsets that begin late": (lambda file: file["offsets/all"].__setitem__(0, 1), "offsets/all do not divide rows"),
    "offsets beyond the rows": (lambda file: file["offsets/all"].__setitem__(12, N_ALL + 1), rf"{N_ALL}.*the header says"),
    "offsets beyond everything": (lambda file: file["offsets/all"].__setitem__(12, 2**62), "the header says"),
    "offsets that are too few": (
        replaced("offsets/all", partial(plain, name="offsets/all", values=np.array([0, N_ALL]))),
        "do not divide rows",
    ),
    "offsets that are text": (replaced("offsets/all", partial(plain, name="offsets/all", values=b"x" * 13)), "does not open"),
    "no format": (lambda file: file.attrs.__delitem__("format_version"), "has store format None; this penchant reads format 2"),
    "an older format": (attribute("format_version", 1), "has store format 1; .*Capture it again"),
    "a format of many": (attribute("format_version", [2, 2]), "does not open"),
    "an infinite width": (attribute("d_model", np.inf), "does not open"),
    "another width": (attribute("d_model", 7), r"uint16 \(12, 6\); the header says uint16 \(12, 7\)"),
    "a negative width": (attribute("d_model", -6), r"the header says uint16 \(12, -6\)"),
    "one layer and no list": (attribute("layers", 3), "does not open"),
    "layers that are text": (attribute("layers", ["x"]), "does not open"),
    "layers that are not there": (attribute("layers", [-1, 3, 8]), "does not open"),
    "a position elsewhere": (attribute("positions", np.array([b"../../done"])), "no slash"),
    "no positions": (attribute("positions", np.array([], dtype="S1")), "does not open"),
    "text of variable length": (attribute("attention", "sdpa"), "attribute attention is not a text of fixed length"),
    "text that is not UTF-8": (attribute("attention", np.bytes_(b"\xff")), "does not open"),
    "a type that overflows": (attribute("dtype", np.bytes_("float16")), "Store dtype 'float16'"),
    "the other type": (attribute("dtype", np.bytes_("float32")), "the header says float32"),
}


def foreign(folder: Path, change: Callable[[h5py.File], object]) -> Path:
    """A whole store that was changed with plain h5py; beside it lies another, of the same content."""
    sample().fill(folder / "other.h5")
    made = sample().fill(folder / "a.h5")
    path = made.files[0].path
    del made
    with h5py.File(path, "r+") as file:
        change(file)
    return path


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_from_elsewhere_is_refused(tmp_path, kind):
    change, message = FOREIGN[kind]
    path = foreign(tmp_path, change)
    before = path.read_bytes()
    for read in (ActivationStore, ActivationWriter):
        with pytest.raises(DamagedStore, match=message) as refused:
            read(path)
        assert str(path) in str(refused.value)
    assert path.read_bytes() == before


ATTRIBUTES = ["model.name", "model.fingerprint", "tokenizer_hash", "template_hash", "attention", "dtype", "d_model", "layers"]


@pytest.mark.parametrize("name", [*ATTRIBUTES, "positions"])
def test_a_file_without_an_attribute_is_refused(tmp_path, name):
    path = foreign(tmp_path, lambda file: file.attrs.__delitem__(name))
    with pytest.raises(DamagedStore, match=rf"a\.h5 does not open as a penchant activation store: .*{re.escape(name)}"):
        ActivationStore(path)


def test_a_table_that_is_said_to_lie_beyond_the_file_is_refused(whole):
    path, _ = whole
    with h5py.File(path) as file:
        offset, size = file[MEAN].id.get_offset(), file[MEAN].id.get_storage_size()
    raw, entry = path.read_bytes(), struct.pack("<QQ", offset, size)
    assert raw.count(entry) == 1
    for beyond in (len(raw), len(raw) - size + 1, 2**40, 2**63, 2**64 - size):
        moved = path.with_name("moved.h5")
        moved.write_bytes(raw.replace(entry, struct.pack("<QQ", beyond, size)))
        with pytest.raises(DamagedStore, match=r"moved\.h5"):
            ActivationStore(moved)


@pytest.mark.parametrize("signature", [b"\x89HDF", b"TREE", b"HEAP", b"SNOD"])
def test_a_file_whose_structure_is_damaged_is_refused(whole, signature):
    path, _ = whole
    raw, broken = path.read_bytes(), path.with_name("broken.h5")
    assert signature in raw
    broken.write_bytes(raw.replace(signature, b"\0" * 4))
    with pytest.raises(DamagedStore, match=r"broken\.h5 does not open as a penchant activation store"):
        ActivationStore(broken)


def test_hdf5_never_crashes_on_a_store_whose_structure_is_damaged_at_random(whole):
    """Variable-length text is the part of HDF5 that did; it takes one file in a hundred and fifty to see it."""
    assert alone("damaged", whole[0].parent, whole[0].name) == N_DAMAGED


@pytest.mark.parametrize("content", [b"", b"not HDF5", b"\x89HDF\r\n\x1a\n" + bytes(500)])
def test_a_file_that_is_no_hdf5_is_refused(tmp_path, content):
    (tmp_path / "a.h5").write_bytes(content)
    with pytest.raises(DamagedStore, match=r"a\.h5 does not open as a penchant activation store"):
        ActivationStore(tmp_path / "a.h5")


def test_a_table_in_the_same_file_under_another_name_is_read(tmp_path):
    """A link within a file is no harm."""
    path = foreign(tmp_path, lambda file: (file.move(MEAN, "elsewhere"), file.__setitem__(MEAN, h5py.SoftLink("/elsewhere"))))
    assert_holds(ActivationStore(path), sample())
    assert StoreFile(path).task_ids == sample().slots.task_ids
