"""Other people's runs: taken over as they are, or refused with the row, the value and the way out."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from elicit import BradleyTerry, choice
from experiments.cli import main
from experiments.imports import ForeignFileError, import_comparisons, import_labels, origins_of, read_record
from experiments.imports.comparisons import comparisons_of
from experiments.imports.tables import mapping_of, read_foreign_table, texts
from store import ActivationStore, Direction, export_gguf, read_labels
from store.directions import load
from store.provenance import ModelIdentity
from tests.reference.conftest import reference  # noqa: F401

ROWS = [("a1", "b1", "A"), ("b1", "c1", "B"), ("c1", "a1", "no answer"), ("a1", "c1", "same")]
OUTCOMES = {"A": "first", "B": "second", "same": "tie", "no answer": "refused"}
COLUMNS = {"first": "left", "second": "right", "outcome": "said"}
MODEL = ModelIdentity("tiny", "llama", "f" * 64)


@pytest.fixture
def frame():
    return pd.DataFrame(ROWS, columns=["left", "right", "said"])


def written(frame, path):
    """The same table in the format that the path's name says."""
    rows = frame.to_dict("records")
    match path.suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".tsv":
            frame.to_csv(path, index=False, sep="\t")
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        case ".yaml":
            path.write_text(yaml.safe_dump(rows))
        case ".parquet":
            frame.to_parquet(path)
    return path


def refused(arguments, capsys):
    assert main([str(each) for each in arguments]) == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


# ---- comparisons


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl", ".yaml", ".parquet"])
def test_comparisons_of_every_format_come_out_the_same(frame, tmp_path, suffix):
    source = written(frame, tmp_path / f"c{suffix}")
    found = import_comparisons(source, tmp_path / "run", columns=COLUMNS, outcomes=OUTCOMES).table
    assert list(found.columns) == list(choice.COMPARISON_COLUMNS)
    assert found["outcome"].tolist() == ["chose", "chose", "refused", "chose"]
    np.testing.assert_array_equal(found["p_first"], [1, 0, np.nan, 0.5])
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "run" / "tables" / "comparisons.parquet"), found)


def test_the_record_says_what_was_read_how_and_nothing_of_this_machine(frame, tmp_path):
    source = written(frame, tmp_path / "c.csv")
    import_comparisons(source, tmp_path / "run", columns=COLUMNS, outcomes=OUTCOMES)
    record = read_record(tmp_path / "run")["comparisons"]
    assert (record["file"], record["rows"], record["columns"], record["outcomes"]) == ("c.csv", 4, COLUMNS, OUTCOMES)
    assert record["counts"] == {"chose": 3, "refused": 1} and len(record["sha256"]) == 64
    assert str(tmp_path) not in (tmp_path / "run" / "import.yaml").read_text()


def test_penchants_own_table_goes_out_and_in_unchanged(tmp_path):
    logit = np.array([0.3, -1.2, np.nan])
    own = pd.DataFrame(
        {"first": ["a", "b", "a"], "second": ["b", "a", "c"], "template": "t", "draw": 0}
        | {"outcome": ["chose", "chose", "off_format"], "mass": [0.9, 0.8, 0.1], "refusal": 0.0}
        | {"logit": logit, "p_first": special.expit(logit)}
    )
    own.to_parquet(tmp_path / "own.parquet")
    found = import_comparisons(tmp_path / "own.parquet", tmp_path / "run").table
    pd.testing.assert_frame_equal(found, own, check_dtype=False)


@settings(max_examples=15)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
def test_probabilities_and_log_odds_say_the_same(logits):
    names = [f"t{number}" for number in range(len(logits))]
    table = pd.DataFrame({"first": "z", "second": names, "logit": logits}, index=pd.RangeIndex(1, len(logits) + 1))
    by_logit = comparisons_of(table, "f.csv", {}, {}).table
    as_shares = table.drop(columns="logit").assign(p_first=special.expit(logits))
    by_share = comparisons_of(as_shares, "f.csv", {}, {}).table
    np.testing.assert_allclose(by_logit["p_first"], by_share["p_first"], atol=1e-12)
    if (by_share["p_first"] < 1).all():
        np.testing.assert_allclose(by_share["logit"], by_logit["logit"], rtol=1e-3, atol=1e-9)


def test_certain_probabilities_have_no_log_odds_and_that_is_said(tmp_path):
    pd.DataFrame({"first": ["a", "a"], "second": ["b", "c"], "p_first": [1, 0.4]}).to_csv(tmp_path / "p.csv")
    found = import_comparisons(tmp_path / "p.csv", tmp_path / "run")
    assert found.table["logit"].isna().all() and "1 probabilities are 0 or 1" in found.notes[0]


def test_counts_are_shares_with_weights_and_equal_as_many_single_answers(tmp_path):
    counts = pd.DataFrame({"first": ["a", "b", "c"], "second": ["b", "c", "a"], "x": [3, 2, 0], "y": [1, 2, 0]})
    columns = {"wins_first": "x", "wins_second": "y"}
    found = import_comparisons(written(counts, tmp_path / "n.csv"), tmp_path / "n", columns=columns).table
    assert found["outcome"].tolist() == ["chose", "chose", "off_format"]
    single = pd.DataFrame([("a", "b", "first")] * 3 + [("a", "b", "second")] + [("b", "c", "first"), ("b", "c", "second")] * 2)
    single.columns = ["first", "second", "outcome"]
    drawn = import_comparisons(written(single, tmp_path / "s.csv"), tmp_path / "s").table
    assert drawn["draw"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    fit = BradleyTerry(errors="none").fit
    np.testing.assert_allclose(fit(found).values, fit(drawn).values, atol=1e-7)


def test_winners_and_losers_have_no_order_and_get_no_position_term(tmp_path, capsys):
    pairs = pd.DataFrame({"winner": ["b", "a", "c", "a"], "loser": ["a", "c", "b", "b"]})
    assert main(["import", "comparisons", str(written(pairs, tmp_path / "w.csv")), "--out", str(tmp_path / "run")]) == 0
    assert "do not say which was shown first" in capsys.readouterr().out
    table = pd.read_parquet(tmp_path / "run" / "tables" / "comparisons.parquet")
    assert table[["first", "second", "p_first"]].values.tolist()[:2] == [["a", "b", 0.0], ["a", "c", 1.0]]
    assert main(["fit", str(tmp_path / "run"), "--resamples", "20"]) == 0
    assert "nothing can be said of position bias" in " ".join(capsys.readouterr().out.split())


def test_a_winner_may_be_named_by_its_id(tmp_path):
    table = pd.DataFrame({"first": ["a", "a"], "second": ["b", "b"], "winner": ["b", "neither"]})
    found = import_comparisons(written(table, tmp_path / "w.csv"), tmp_path / "run", outcomes={"neither": "tie"}).table
    assert found["p_first"].tolist() == [0.0, 0.5]


BAD_COMPARISONS = {
    "missing column": ("left,right\na,b\n", (), "has no column first, second, outcome; it has left, right"),
    "nearest column": ("first,second,outcom\na,b,x\n", (), "--columns outcome=outcom"),
    "wrong separator": ("first;second;outcome\na;b;first\n", (), "separated by something else than a comma"),
    "unknown name": ("first,second,outcome\na,b,first\n", ("--columns", "frist=first"), "did you mean 'first'?"),
    "absent column": ("first,second,outcome\na,b,first\n", ("--columns", "outcome=outcme"), "did you mean 'outcome'?"),
    "no equals sign": ("first,second,outcome\na,b,first\n", ("--columns", "first"), "has no '='"),
    "unmapped value": (
        "first,second,choice\na,b,x\nb,c,x\nc,a,first\n",
        ("--columns", "outcome=choice"),
        "The column choice of c.csv has values that are no outcome: 'x' (2 rows). Say what each is: --outcomes x=...",
    ),
    "meaningless map": ("first,second,outcome\na,b,x\n", ("--outcomes", "x=frist"), "'frist' is no outcome; expected first"),
    "empty outcome": ("first,second,outcome\na,b,\n", (), "'' (1 rows)"),
    "itself": ("first,second,outcome\na,b,first\nb,b,first\n", (), "Row 2 of c.csv: 'b' is compared with itself"),
    "empty id": ("first,second,outcome\na,,first\n", (), "Row 1 of c.csv: second is empty"),
    "not finite": ("first,second,logit\na,b,inf\n", (), "Row 1 of c.csv: logit is 'inf'; expected a finite number"),
    "out of range": ("first,second,p_first\na,b,.2\na,b,1.5\n", (), "Row 2 of c.csv: p_first is '1.5'"),
    "no number": ("first,second,logit\na,b,much\n", (), "logit is 'much'"),
    "missing number": ("first,second,logit\na,b,\n", (), "logit is empty; expected a number for every choice"),
    "empty file": ("", (), "c.csv is empty"),
    "no rows": ("first,second,outcome\n", (), "has no rows, only the columns"),
    "ragged": ('first,second,outcome\na,b,"first\n', (), "Line 2 of c.csv opens a text with a quotation mark"),
}


@pytest.mark.parametrize(("text", "more", "message"), BAD_COMPARISONS.values(), ids=list(BAD_COMPARISONS))
def test_bad_comparisons_are_named_and_nothing_is_written(text, more, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.csv").write_text(text)
    assert message in refused(["import", "comparisons", "c.csv", "--out", "run", *more], capsys)
    assert not (tmp_path / "run").exists()


BAD_FILES = {
    "y.yaml": ("just words", "holds the str 'just words'; expected a table"),
    "n.yaml": ("a: {b: 1}\nc: 2", "holds a mapping with the keys ['a', 'c']"),
    "o.yaml": ("!!python/object/apply:os.system ['true']", "cannot be read as YAML"),
    "l.json": ("[1, 2]", "Row 1 of l.json is the int '1'"),
    "d.json": ('{"first": ["a"], "second": []}', "have the lengths {'first': 1, 'second': 0}"),
    "b.json": ("{", "cannot be read as JSON"),
    "deep.json": ("[" * 100_000, "cannot be read as JSON"),
    "x.jsonl": ('{"first": "a"}\nnot json', "Line 2 of x.jsonl is not JSON"),
    "p.parquet": ("PAR1", "cannot be read as PARQUET"),
    "t.txt": ("a", "is a .txt file; expected one of .csv"),
    "u.csv": ("caf\udce9,b", "u.csv is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_table_is_refused_by_name(name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, message = BAD_FILES[name]
    (tmp_path / name).write_text(text, encoding="utf-8", errors="surrogateescape")
    assert message in refused(["import", "comparisons", name, "--out", "run"], capsys)


def test_a_file_too_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "large.yaml", "wb") as file:
        file.truncate(2**26 + 1)
    with pytest.raises(ForeignFileError, match="has 67 MB; expected at most 67 of YAML"):
        read_foreign_table(tmp_path / "large.yaml")


def test_ids_stay_the_texts_they_are(tmp_path):
    (tmp_path / "i.csv").write_text("first,second,outcome\n007,NA,first\n1e3,null,second\n")
    found = import_comparisons(tmp_path / "i.csv", tmp_path / "run").table
    assert found["first"].tolist() == ["007", "1e3"] and found["second"].tolist() == ["NA", "null"]
    assert texts(pd.Series([1.0, 2.5, None, " a "])).tolist() == ["1", "2.5", "", "a"]


def test_an_equals_sign_may_be_part_of_a_value():
    assert mapping_of(["a=b=first"], "--outcomes", last=True) == {"a=b": "first"}
    assert mapping_of(["first=a=b"], "--columns") == {"first": "a=b"}


def test_ids_that_are_not_among_the_tasks_are_counted_with_examples(frame, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written(frame, tmp_path / "c.csv")
    columns = ["--columns", *(f"{ours}={theirs}" for ours, theirs in COLUMNS.items())]
    flags = [*columns, "--outcomes", *(f"{theirs}={ours}" for theirs, ours in OUTCOMES.items()), "--tasks", "t.jsonl"]
    tasks = [{"id": "a1", "text": "Sing.", "origin": "song"}, {"id": "b1", "text": "Add.", "origin": "sum"}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    message = refused(["import", "comparisons", "c.csv", "--out", "run", *flags], capsys)
    assert "1 of 3 ids in c.csv are not among the 2 tasks of t.jsonl, for instance c1; the tasks are called like a1" in message
    assert not (tmp_path / "run").exists()
    tasks.append({"id": "c1", "text": "Bake.", "origin": "food"})
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, tasks)))
    assert main(["import", "comparisons", "c.csv", "--out", "run", *flags]) == 0
    assert origins_of(["a1", "b1", "c1"], [tmp_path / "run"])[0] == {"a1": "song", "b1": "sum", "c1": "food"}


def test_an_import_never_replaces_what_is_there(frame, tmp_path):
    source = written(frame, tmp_path / "c.csv")
    other = written(frame.head(2), tmp_path / "d.csv")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "config.yaml").write_text("seed: 0")
    with pytest.raises(ForeignFileError, match="is not empty, and nothing was imported there"):
        import_comparisons(source, tmp_path / "theirs", columns=COLUMNS, outcomes=OUTCOMES)
    run = tmp_path / "run"
    import_comparisons(source, run, columns=COLUMNS, outcomes=OUTCOMES)
    assert main(["fit", str(run), "--resamples", "20"]) == 0
    import_comparisons(source, run, columns=COLUMNS, outcomes=OUTCOMES)  # the same again
    with pytest.raises(ForeignFileError, match=r"holds comparisons of c.csv, read another way, and labels that depend"):
        import_comparisons(other, run, columns=COLUMNS, outcomes=OUTCOMES)
    values = written(pd.DataFrame({"task_id": ["a1"], "value": [1]}), tmp_path / "v.csv")
    with pytest.raises(ForeignFileError, match="were fitted to its comparisons"):
        import_labels(values, run)


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["alpaca_1014", "alpaca_9", "competition_math_28", "competition_math_1"], {"alpaca", "competition_math"}),
        (["stresstest_7_78_neutral", "stresstest_8_1_value", "wildchat_509", "wildchat_1"], {"stresstest", "wildchat"}),
        (["a1", "b2", "c3"], {"all"}),
        (["math_001", "chat_002"], {"math", "chat"}),
        (["x-haiku", "x-sum"], {"all"}),
    ],
)
def test_origins_are_read_from_ids_only_where_they_make_groups(ids, expected):
    assert set(origins_of(ids)[0].values()) == expected


# ---- utilities


@pytest.mark.parametrize("suffix", [".csv", ".json", ".parquet"])
def test_utilities_become_labels_with_intervals(tmp_path, suffix):
    table = pd.DataFrame({"id": ["a", "b"], "mu": [0.5, -0.5], "sigma": [0.1, 0.2]})
    source = written(table, tmp_path / f"u{suffix}")
    flags = ["--columns", "task_id=id", "value=mu", "se=sigma"]
    assert main(["import", "utilities", str(source), "--out", str(tmp_path / "run"), *flags]) == 0
    labels = read_labels(tmp_path / "run" / "tables" / "labels.parquet")
    assert labels["value"].tolist() == [0.5, -0.5] and set(labels["target"]) == {"utility"}
    np.testing.assert_allclose(labels["high"] - labels["low"], 2 * 1.959964 * table["sigma"], rtol=1e-6)
    again = import_labels(source, tmp_path / "run", target="rating", columns={"task_id": "id", "value": "sigma"})
    both = read_labels(tmp_path / "run" / "tables" / "labels.parquet")
    assert len(both) == 4 and again["se"].isna().all()
    assert "utilities: rating" in read_record(tmp_path / "run")


def test_values_by_id_are_a_table_too(tmp_path):
    (tmp_path / "v.yaml").write_text("alpaca_1: 0.25\nalpaca_2: -1\n")
    assert import_labels(tmp_path / "v.yaml", tmp_path / "a")["value"].tolist() == [0.25, -1]
    (tmp_path / "v.json").write_text('{"a": {"mu": 1.5}, "b": {"mu": 2}}')
    labels = import_labels(tmp_path / "v.json", tmp_path / "b", columns={"value": "mu"})
    assert dict(zip(labels["task_id"], labels["value"], strict=True)) == {"a": 1.5, "b": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task_id,value\na,1\na,2\n", "Row 2 of u.csv: the task 'a' was given before"),
        ("task_id,value\na,1\nb,nan\nc,inf\n", "Row 2 (and 1 more) of u.csv: value is 'nan'"),
        ("task_id,value\na,\n", "Row 1 of u.csv: value is empty"),
        ("task_id,value,se\na,1,-1\n", "se is '-1'; expected a finite number from 0 up"),
        ("id,mu\na,1\n", "has no column task_id, value; it has id, mu"),
    ],
)
def test_bad_utilities_are_named(text, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "u.csv").write_text(text)
    assert message in refused(["import", "utilities", "u.csv", "--out", "run"], capsys)


# ---- activations


@pytest.fixture
def rows():
    return np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)


def test_activations_of_npz_safetensors_parquet_and_data_sets_are_the_same(rows, tmp_path, capsys):
    import datasets
    from safetensors.numpy import save_file

    ids = ["a", "b", "c"]
    (tmp_path / "ids.txt").write_text("\n".join(ids))
    np.savez(tmp_path / "with.npz", task_id=np.array(ids), acts=rows)
    np.savez(tmp_path / "without.npz", acts=rows)
    save_file({"acts": rows}, tmp_path / "st.safetensors")
    table = {"task_id": ids, "acts": rows.tolist(), "topic": ["x"] * 3}
    kept = datasets.Dataset.from_dict(table)
    kept.save_to_disk(tmp_path / "set")
    kept.to_parquet(tmp_path / "set.parquet")
    datasets.DatasetDict({"train": kept, "test": kept}).save_to_disk(tmp_path / "splits")
    sources = {
        "with.npz": [],
        "without.npz": ["--task-ids", tmp_path / "ids.txt"],
        "st.safetensors": ["--task-ids", tmp_path / "ids.txt"],
        "set": [],
        "set.parquet": [],
        "splits": ["--split", "test"],
    }
    for number, (name, more) in enumerate(sources.items()):
        out = tmp_path / f"{number}.h5"
        flags = ["--arrays", "acts=L3/task_mean", "--fingerprint", "f" * 64, "--model", "tiny", "--family", "llama", *more]
        assert main([str(each) for each in ["import", "activations", tmp_path / name, "--out", out, *flags]]) == 0, name
        store = ActivationStore(out)
        assert store.task_ids == ids and store.header.model == MODEL
        np.testing.assert_allclose(store.load(3, "task_mean"), rows, rtol=1e-6)
    message = refused(["import", "activations", tmp_path / "splits", "--out", tmp_path / "s.h5"], capsys)
    assert "has the splits train, test; say which with --split" in message


def test_penchants_own_safetensors_come_back_with_their_model(rows, tmp_path):
    from store import export

    np.savez(tmp_path / "a.npz", **{"task_id": np.array(["a", "b", "c"]), "L3/task_mean": rows})
    flags = ["--fingerprint", MODEL.fingerprint, "--model", "tiny", "--family", "llama"]
    assert main(["import", "activations", str(tmp_path / "a.npz"), "--out", str(tmp_path / "a.h5"), *flags]) == 0
    export(ActivationStore(tmp_path / "a.h5"), tmp_path / "a.safetensors")
    assert main(["import", "activations", str(tmp_path / "a.safetensors"), "--out", str(tmp_path / "b.h5")]) == 0
    again = ActivationStore(tmp_path / "b.h5")
    assert again.header.model == MODEL
    np.testing.assert_array_equal(again.load(3, "task_mean"), rows)


def test_bad_activations_are_named(rows, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", acts=rows)
    np.save("pickled.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez("pickled.npz", task_id=np.array(["a"]), acts=np.array([{}], dtype=object))
    (tmp_path / "ids.txt").write_text("a\nb\nc\n")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 40)
    (tmp_path / "folder").mkdir()
    pd.DataFrame({"id": ["a"], "x": [1]}).to_parquet("p.parquet")
    pd.DataFrame({"task_id": ["a", "b"], "x": [[1.0], [1.0, 2.0]]}).to_parquet("ragged.parquet")
    cases = {
        ("a.npz",): "has no array 'task_id'",
        ("a.npz", "--task-ids", "ids.txt"): "a.npz has no array called like L15/task_mean",
        ("a.npz", "--task-ids", "ids.txt", "--arrays", "acts=L3"): "expected a layer and a position, such as L15/prompt_last",
        ("a.npz", "--task-ids", "ids.txt", "--arrays", "act=L3/x"): "has no arrays called ['act']",
        ("pickled.npz",): "cannot be read as an npz of plain arrays",
        ("pickled.npz", "--task-ids", "ids.txt"): "cannot be read as an npz of plain arrays",
        ("broken.safetensors",): "cannot be read as safetensors",
        ("folder",): "is no data set that save_to_disk wrote",
        ("p.parquet",): "has no column 'task_id'; it has id, x",
        ("p.parquet", "--id-column", "id", "--arrays", "x=L3/x"): "The column x of p.parquet holds int64",
        ("ragged.parquet",): "Rows of x in ragged.parquet have the lengths [1, 2]",
        ("absent.npz",): "There is no file absent.npz",
    }
    for arguments, message in cases.items():
        assert message in refused(["import", "activations", *arguments, "--out", "o.h5"], capsys), arguments
    assert not (tmp_path / "o.h5").exists()


def test_a_data_set_without_the_package_names_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "set").mkdir()
    message = refused(["import", "activations", tmp_path / "set", "--out", tmp_path / "o.h5"], capsys)
    assert "pip install datasets" in message


def test_an_npz_that_unpacks_to_more_than_the_memory_is_refused(rows, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "a.npz", task_id=np.array(["a", "b", "c"]), acts=rows)
    monkeypatch.setattr("os.sysconf", lambda name: 8)
    assert "more than half of this machine's memory" in refused(
        ["import", "activations", tmp_path / "a.npz", "--out", tmp_path / "o.h5"], capsys
    )


# ---- directions


def test_a_vector_of_numpy_needs_a_layer_and_a_model(rows, tmp_path, capsys):
    np.save(tmp_path / "v.npy", 2 * rows[0])
    flags = ["--layer", "15", "--fingerprint", "f" * 64, "--model", "tiny", "--family", "llama"]
    arguments = ["import", "directions", tmp_path / "v.npy", "--out", tmp_path / "v.safetensors"]
    assert main([str(each) for each in [*arguments, *flags]]) == 0
    found = load(tmp_path / "v.safetensors")
    assert isinstance(found, Direction) and (found.layer, found.model) == (15, MODEL)
    np.testing.assert_allclose(found.vector * found.provenance["length"], 2 * rows[0], rtol=1e-6)
    assert found.provenance["file"] == "v.npy"
    assert "give --layer and --model or --fingerprint with it" in refused(arguments, capsys)
    np.save(tmp_path / "v.npy", rows)
    assert "holds float32 of shape (3, 4); expected the floats of one vector" in refused([*arguments, *flags], capsys)
    np.save(tmp_path / "v.npy", np.array([1, np.nan]))
    assert "has 1 values that are not finite" in refused([*arguments, *flags], capsys)
    np.save(tmp_path / "v.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "cannot be read as a plain .npy" in refused([*arguments, *flags], capsys)


def test_a_vector_that_does_not_fit_the_model_that_is_loaded_is_refused(tmp_path, capsys):
    np.save(tmp_path / "v.npy", np.ones(32, dtype=np.float32))
    arguments = ["import", "directions", tmp_path / "v.npy", "--out", tmp_path / "v.safetensors", "--model", "smollm2-135m"]
    assert "v.npy has 32 numbers; the residual stream of smollm2-135m has 576. Give the --model" in refused(
        [*arguments, "--layer", "15"], capsys
    )
    np.save(tmp_path / "v.npy", np.ones(576, dtype=np.float32))
    assert "v.npy is at layer 30; smollm2-135m has embed and layers 0 to 29. Give the --layer" in refused(
        [*arguments, "--layer", "30"], capsys
    )
    assert not (tmp_path / "v.safetensors").exists()
    assert main([str(each) for each in [*arguments, "--layer", "29"]]) == 0


def test_a_column_is_offered_only_if_it_is_called_much_alike(tmp_path, capsys):
    (tmp_path / "c.csv").write_text("Left item,firsts,picked,rater\na,b,left,m\n")
    said = refused(["import", "comparisons", tmp_path / "c.csv", "--out", tmp_path / "run"], capsys)
    assert "--columns first=firsts second=COLUMN outcome=COLUMN." in said


def test_control_vectors_come_back_a_file_a_layer(rows, tmp_path, capsys):
    directions = [Direction.from_vector(row, layer, MODEL) for layer, row in enumerate(rows, start=7)]
    export_gguf(tmp_path / "v.gguf", directions)
    out = ["import", "directions", tmp_path / "v.gguf", "--out"]
    assert main([str(each) for each in [*out, tmp_path / "d"]]) == 0
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == [f"L{n}.safetensors" for n in (7, 8, 9)]
    assert main([str(each) for each in [*out, tmp_path / "one.safetensors", "--layer", "L8"]]) == 0
    np.testing.assert_allclose(load(tmp_path / "one.safetensors").vector, directions[1].vector, rtol=1e-6)
    assert "name one with --layer, or give --out a folder" in refused([*out, tmp_path / "one.safetensors"], capsys)
    assert "no vector at L4; it has L7, L8, L9" in refused([*out, tmp_path / "d", "--layer", "4"], capsys)


# ---- fit


def made_up(n_tasks=8, draws=6, *, seed=0, both=True, bias=0.5):
    """Sampled answers of a Bradley-Terry model with a position bias, every pair in both orders or in one."""
    random = np.random.default_rng(seed)
    utility = np.linspace(-2, 2, n_tasks)
    rows = []
    for i in range(n_tasks):
        for j in range(i):
            for first, second in [(i, j), (j, i)] if both else [(i, j) if random.random() < 0.5 else (j, i)]:
                p = special.expit(utility[first] - utility[second] + bias)
                rows += [(f"t{first}", f"t{second}", "first" if random.random() < p else "second") for _ in range(draws)]
    return pd.DataFrame(rows, columns=["first", "second", "outcome"]), utility


@pytest.mark.parametrize("estimator", ["bradley_terry", "thurstone"])
def test_a_fit_of_sampled_answers_finds_the_utilities_and_the_bias(estimator, tmp_path, capsys):
    table, utility = made_up(draws=12)
    import_comparisons(written(table, tmp_path / "c.csv"), tmp_path / "run")
    assert main(["fit", str(tmp_path / "run"), "--estimator", estimator, "--resamples", "40"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "28 of 28 pairs were asked in both orders" in screen and "triads go round in a circle" in screen
    labels = read_labels(tmp_path / "run" / "tables" / "labels.parquet").set_index("task_id")
    unit = 1.0 if estimator == "bradley_terry" else 0.6
    assert np.abs(labels.loc[[f"t{n}" for n in range(8)], "value"] - unit * utility).max() < 0.6
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert results["position_term"]["low"] > 0.1 and results["hold_out"]["accuracy"]["value"] > 0.7
    assert (tmp_path / "run" / "report.html").exists()
    assert main(["fit", "--config", str(tmp_path / "run" / "config.yaml")]) == 0  # what the report says runs it again


def test_one_order_alone_is_said_to_be_one_order_alone(tmp_path, capsys):
    table, _ = made_up(both=False)
    import_comparisons(written(table, tmp_path / "c.csv"), tmp_path / "run")
    assert main(["fit", str(tmp_path / "run"), "--resamples", "20"]) == 0
    assert "Every one of 28 pairs was asked in one order only" in " ".join(capsys.readouterr().out.split())


def test_exact_answers_can_be_fitted_by_least_squares(tmp_path, capsys):
    table, utility = made_up(draws=1)
    place = {f"t{number}": value for number, value in enumerate(utility)}
    logit = table["first"].map(place) - table["second"].map(place) + 0.5
    import_comparisons(written(table[["first", "second"]].assign(logit=logit), tmp_path / "c.csv"), tmp_path / "run")
    assert main(["fit", str(tmp_path / "run"), "--estimator", "least_squares", "--resamples", "20"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "Being shown first is worth +0.50 [+0.50, +0.50] logits" in screen
    labels = read_labels(tmp_path / "run" / "tables" / "labels.parquet").set_index("task_id")["value"]
    np.testing.assert_allclose(labels.loc[list(place)], utility - utility.mean(), atol=1e-8)


def test_templates_that_are_pooled_are_said_to_be_and_each_has_its_own_position_bias(tmp_path, capsys):
    table, utility = made_up(draws=1)
    place = {f"t{number}": value for number, value in enumerate(utility)}
    content = table["first"].map(place) - table["second"].map(place)
    both = [table[["first", "second"]].assign(template=name, logit=content + bias) for name, bias in (("a", 0.5), ("b", -0.3))]
    (tmp_path / "run" / "tables").mkdir(parents=True)
    pooled = pd.concat(both, ignore_index=True)
    pooled.assign(outcome="chose", p_first=special.expit(pooled["logit"])).to_parquet(
        tmp_path / "run/tables/comparisons.parquet"
    )
    out = tmp_path / "fitted"
    assert main(["fit", str(tmp_path / "run"), "--out", str(out), "--resamples", "20"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "of 2 templates together, and it is not one thing in all: from -0.30 (b) to +0.50 (a)" in screen
    found = pd.read_parquet(out / "tables/position_by_template.parquet").set_index("template")["mean"]
    np.testing.assert_allclose(found, [-0.3, 0.5], atol=1e-9)


def test_a_fit_leaves_the_results_of_other_runs_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "theirs" / "tables").mkdir(parents=True)
    assert "needs a run directory" in refused(["fit"], capsys)
    assert "it has no tables" in refused(["fit", "theirs"], capsys)
    assert "There is no directory none" in refused(["fit", "none"], capsys)
    table, _ = made_up()
    chosen = table.assign(p_first=(table["outcome"] == "first").astype(float), outcome="chose")
    chosen.to_parquet("theirs/tables/comparisons.parquet")
    assert main(["fit", "theirs", "--resamples", "20"]) == 0
    assert (tmp_path / "runs" / "fit" / "tables" / "labels.parquet").exists()
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["tables"]
    assert "has results of its own, which these would replace" in refused(["fit", "theirs", "--out", "theirs"], capsys)


# ---- the trial: import, fit, report


@pytest.mark.filterwarnings("ignore")
def test_choices_of_a_persona_are_imported_and_fitted_as_published(reference, tmp_path, capsys):  # noqa: F811
    run = str(tmp_path / "villain")
    choices = str(reference / "villain_choices.csv")
    assert "'refusal' (219 rows)" in refused(
        ["import", "comparisons", choices, "--out", run, "--columns", "outcome=choice"], capsys
    )
    flags = ["--columns", "outcome=choice", "--outcomes", "refusal=refused"]
    assert main(["import", "comparisons", choices, "--out", run, *flags]) == 0
    assert "32,330 answers about 7,496 pairs of 1,000 tasks (32,111 chose, 219 refused)" in capsys.readouterr().out
    assert main(["fit", run, "--resamples", "20", "--prior-sd", "4"]) == 0
    screen = " ".join(capsys.readouterr().out.split())
    assert "Every one of 7,471 pairs was asked in one order only" in screen
    labels = read_labels(f"{run}/tables/labels.parquet").set_index("task_id")["value"]
    published = import_labels(
        reference / "villain_published_fit.csv", tmp_path / "published", columns={"task_id": "task", "value": "mu"}
    ).set_index("task_id")["value"]
    assert labels.corr(published.loc[labels.index]) > 0.95
    assert set(origins_of(labels.index.tolist())[0].values()) == {
        "alpaca", "bailbench", "competition_math", "stresstest", "wildchat"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "a.csv",
            b"task_id,value,note\na,1,x\n\nb,2,one, two\n",
            "Line 4 of .*a.csv has 4 fields; expected 3 .task_id, value, note.: put quotes around a text with commas:",
        ),
        ("a.csv", b"task_id,value\na,1,x\nb,2,y\n", "Line 2 of .* has 3 fields; expected 2"),
        (
            "a.csv",
            b'task_id,value,note\na,1,"x\ny"\nb,2\n',
            "Line 4 of .* has 2 fields; expected 3 .*: a cell that is empty needs",
        ),
        ("a.tsv", b"task_id\tvalue\na\t1\nb\n", "Line 3 of .* has 1 field; expected 2 .* needs its tab too"),
        ("a.csv", b'task_id,value\na,1\nb,"2\nc,3\n', "Line 3 of .* opens a text with a quotation mark that is never closed"),
        ("a.csv", "task_id,value\ncafé,1\n".encode("latin-1"), "a.csv is not UTF-8 .it has the byte 0xe9.; save it as UTF-8"),
        ("a.jsonl", '{"task_id": "café"}\n'.encode("latin-1"), "a.jsonl is not UTF-8 .* save it as UTF-8"),
    ],
)
def test_broken_rows_are_named_by_their_line_with_the_way_out(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(ForeignFileError, match=message):
        read_foreign_table(tmp_path / name)


def test_cells_that_are_empty_and_texts_of_several_lines_are_no_broken_rows(tmp_path):
    (tmp_path / "a.csv").write_bytes(b'task_id,value,note\r\na,1,\r\nb,2,"x, ""y""\r\nz"\r\n\r\n')
    table = read_foreign_table(tmp_path / "a.csv")
    assert table["task_id"].tolist() == ["a", "b"] and table["note"].isna().tolist() == [True, False]
