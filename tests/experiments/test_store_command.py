"""penchant store: what a store holds, whether it is whole, and the ways in and out, from the command line."""

import re

import numpy as np
import pytest

from experiments.cli import main
from store import ActivationStore, ActivationWriter, Slots
from tests.store.sample import assert_holds, sample


@pytest.fixture
def shards(tmp_path) -> list[str]:
    """Two files; of the first one task is skipped and one is still to come."""
    first, second = sample(prefix="a"), sample(prefix="b", n=4, seed=1)
    with ActivationWriter.resume(tmp_path / "a.h5", first.header, first.slots) as writer:
        writer.skip(np.array([3]), np.array([4096]))
        first.write(writer, np.setdiff1d(np.arange(11), [3]))
    second.fill(tmp_path / "b.h5")
    return [str(tmp_path / "a.h5"), str(tmp_path / "b.h5")]


def facts(text: str) -> dict[str, str]:
    return dict(re.split(r" {2,}", line, maxsplit=1) for line in text.split("\n\n")[0].splitlines())


def test_info_says_what_a_store_holds(shards, capsys):
    assert main(["store", "info", shards[0]]) == 0
    out = capsys.readouterr().out
    made = sample(prefix="a")
    tokens = made.n_tokens[np.setdiff1d(np.arange(11), [3])]
    assert facts(out) == {
        "files": shards[0],
        "size": "0.0 MB",
        "model": "made up (none), fingerprint fingerprint",
        "computed by": "sdpa, packed",
        "tasks": "10 committed, 1 skipped as longer than the context or empty, 1 still to come",
        "prompts": f"{tokens.min()} to {tokens.max()} tokens, median {np.median(tokens):,.0f}",
        "layers": "embed, L3, L7",
        "positions": "prompt_last, all (by token), task_mean",
        "rows": "bfloat16, 6 wide",
    }
    table = [line.split() for line in out.split("\n\n")[1].splitlines()]
    assert table[0] == ["layer", "position", "mean_norm", "median_norm"] and len(table) == 10
    rows = made.rows[3, "task_mean"][np.setdiff1d(np.arange(11), [3])]
    norms = np.linalg.norm(rows, axis=1)
    assert ["L3", "task_mean", f"{norms.mean():.1f}", f"{np.median(norms):.1f}"] in table


def test_info_reads_several_files_as_one_store(shards, capsys):
    assert main(["store", "info", *shards]) == 0
    said = facts(capsys.readouterr().out)
    assert said["files"] == ", ".join(shards) and said["tasks"].startswith("14 committed, 1 skipped")


def test_info_counts_completions_of_a_measurement_log(tmp_path, capsys):
    made = sample(n=3)
    slots = Slots(made.slots.task_ids, made.slots.prompts, made.slots.rows, ["key", "", "another"])
    ActivationWriter.resume(tmp_path / "a.h5", made.header, slots).close()
    assert main(["store", "info", str(tmp_path / "a.h5")]) == 0
    out = capsys.readouterr().out
    assert facts(out)["completions"] == "2 from a measurement log"
    assert facts(out)["prompts"] == "none" and "mean_norm" not in out  # of nothing committed there are no norms


def test_verify_names_what_has_changed_and_ends_with_status_one(shards, capsys):
    assert main(["store", "verify", *shards]) == 0
    assert capsys.readouterr().out == "14 of 14 committed tasks are as they were written.\n"
    with ActivationWriter(shards[1]) as writer:
        writer.file.arrays["residuals/L3/all"][0, 0] ^= 1
        writer.file.arrays["n_tokens"][2] += 1
    assert main(["store", "verify", *shards]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "12 of 14 committed tasks are as they were written.",
        "changed: b-0é",
        "changed: b-2é",
    ]


def test_merge_makes_one_file_of_several(shards, tmp_path, capsys):
    assert main(["store", "merge", *shards, str(tmp_path / "all.h5")]) == 0
    assert "ActivationStore(all.h5: 14 of 15 tasks, 1 skipped" in capsys.readouterr().out
    store = ActivationStore(tmp_path / "all.h5")
    assert_holds(store, sample(prefix="b", n=4, seed=1))
    assert store.task_ids == ActivationStore(shards[0]).task_ids[:11] + ActivationStore(shards[1]).task_ids
    assert main(["store", "merge", *shards, str(tmp_path / "all.h5")]) == 1
    assert f"penchant: There is a file at {tmp_path / 'all.h5'} already" in capsys.readouterr().err


@pytest.mark.parametrize(("embed", "deep"), [("-1", "7"), ("embed", "L7")])
@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_export_writes_some_layers_and_positions(shards, tmp_path, capsys, suffix, embed, deep):
    out = tmp_path / f"out.{suffix}"
    assert main(["store", "export", shards[1], str(out), "--layers", embed, deep, "--positions", "task_mean", "all"]) == 0
    assert capsys.readouterr().out == f"0.0 MB written to {out}\n"
    if suffix == "npz":
        store = ActivationStore(shards[1])
        with np.load(out, allow_pickle=False) as arrays:
            tables = {name for name in arrays.files if name.startswith(("L", "embed"))}
            assert tables == {"embed/task_mean", "L7/task_mean", "embed/all", "L7/all"}
            np.testing.assert_array_equal(arrays["embed/all"], store.load(-1, "all"))


def test_what_was_exported_is_imported(shards, tmp_path, capsys):
    assert main(["store", "export", shards[1], str(tmp_path / "out.npz")]) == 0
    assert main(["store", "import", str(tmp_path / "out.npz"), str(tmp_path / "back.h5")]) == 0
    assert "ActivationStore(back.h5: 4 of 4 tasks, made up" in capsys.readouterr().out
    assert_holds_rows(ActivationStore(tmp_path / "back.h5"), ActivationStore(shards[1]))


def assert_holds_rows(store: ActivationStore, expected: ActivationStore) -> None:
    assert store.header.keys == expected.header.keys and store.task_ids == expected.task_ids
    for key in store.header.keys:
        np.testing.assert_array_equal(store.load(*key), expected.load(*key))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["info"], "penchant store info takes at least 1 path; got 0"),
        (["verify"], "penchant store verify takes at least 1 path; got 0"),
        (["merge", "a.h5"], "penchant store merge takes at least 2 paths; got 1"),
        (["export", "a.h5"], "penchant store export takes at least 2 paths; got 1"),
        (["import", "in.npz"], "penchant store import takes 2 paths; got 1"),
        (["import", "in.npz", "out.h5", "more"], "penchant store import takes 2 paths; got 3"),
        (["info", "a.h5", "--layers", "3"], "--layers and --positions are for export; penchant store info takes neither"),
        (["merge", "a.h5", "b.h5", "--positions", "all"], "penchant store merge takes neither"),
        (["info", "absent.h5"], "No activation store at absent.h5; capture activations into it first"),
        (["import", "absent.npz", "out.h5"], "absent.npz cannot be read as an npz of plain arrays"),
    ],
)
def test_what_cannot_be_done_is_one_line_without_a_traceback(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["store", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("penchant: ") and message in err and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_what_the_store_lacks_is_one_line_without_a_traceback(shards, tmp_path, capsys):
    for arguments, message in (
        ([shards[1], "out.npz", "--layers", "4"], "b.h5 has no L4/prompt_last; it holds layers ['embed', 'L3', 'L7']"),
        ([shards[1], "out.npz", "--layers", "middle"], "'middle' is not a layer of a store; expected the number of a block"),
        ([shards[1], "out.npz", "--positions", "nowhere"], "b.h5 has no position 'nowhere'"),
        ([shards[0], "out.npz"], "a.h5 is unfinished: no committed rows for 'a-11é'"),
        ([shards[1], "out.pt"], "Cannot export to 'out.pt'"),
    ):
        assert main(["store", "export", arguments[0], str(tmp_path / arguments[1]), *arguments[2:]]) == 1
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.h5", "b.h5"]


def test_an_action_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["store", "inspect", "a.h5"])
    assert stopped.value.code == 2
    assert "verify" in capsys.readouterr().err


def test_help_says_what_every_action_does(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["store", "--help"])
    assert stopped.value.code == 0
    out = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for said in (
        "recompute every checksum",
        "merge STORE ... OUT",
        "OUT.npz or OUT.safetensors",
        "by number or name, such as embed 7 L15",
    ):
        assert said in out


def test_shards_of_a_capture_are_together_what_one_job_captures(tmp_path, monkeypatch, embedded, capsys):
    from interp import LocalModel

    monkeypatch.setattr(LocalModel, "load", classmethod(lambda *_, **__: embedded))
    where = ["--layers", "3", "--positions", "task_mean", "--per-origin", "1"]
    assert main(["capture", "--out", str(tmp_path / "whole.h5"), *where]) == 0
    for number in range(4):
        assert main(["capture", "--out", str(tmp_path / "part.h5"), "--shard", f"{number}/4", *where]) == 0
    files = [str(tmp_path / f"part.{number}-of-4.h5") for number in range(4)]
    assert main(["store", "merge", *files, str(tmp_path / "merged.h5")]) == 0
    whole, merged = ActivationStore(tmp_path / "whole.h5"), ActivationStore(tmp_path / "merged.h5")
    assert list(merged.task_ids) == list(whole.task_ids) and [len(ActivationStore(file)) for file in files] == [1, 2, 1, 2]
    np.testing.assert_allclose(merged.load(3, "task_mean"), whole.load(3, "task_mean"), atol=1e-4)
    capsys.readouterr()
    for wrong, message in (("4/4", "i from 0 to n - 1"), ("1", "such as 0/8"), ("0/7", "6 tasks do not make 7 parts")):
        assert main(["capture", "--out", str(tmp_path / "x.h5"), "--shard", wrong, *where]) == 1
        assert message in capsys.readouterr().err


def test_a_capture_goes_to_the_device_that_is_asked_for(tmp_path, capsys):
    assert main(["capture", "--out", str(tmp_path / "a.h5"), "--device", "nowhere"]) == 1
    assert "The device is 'nowhere'; expected auto, cpu, cuda or cuda:N" in capsys.readouterr().err
