"""penchant direction: how one is made, what directions are, how alike, and files for other tools, from the command line."""

import re
import shlex
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import pytest
import tyro

from experiments.cli import main
from experiments.commands import capture as capture_command
from experiments.commands.direction_make import Recipe
from interp import (
    LocalModel,
    difference_of_means,
    paired_difference,
    preference_direction,
    principal_directions,
    probe_direction,
)
from store import ActivationStore, ActivationWriter, Direction, Probe, Slots, StoreHeader, export_gguf
from store.directions import load, save
from store.provenance import ModelIdentity
from tests.interp.test_probe import make_labels

MODEL = ModelIdentity("made up", "llama", "0123456789abcdef")


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A direction, a steering vector and a probe of one layer, and a direction of another."""
    along = Direction.from_vector(np.array([3.0, 4.0]), 3, MODEL, method="made", above=[f"task{n}" for n in range(40)])
    values = {
        "along": along,
        "across": Direction.from_vector(np.array([4.0, -3.0]), 3, MODEL, method="made").scaled(2.5, n_tokens=7),
        "probe": Probe(np.array([-6.0, -8.0], np.float32), 0.25, 3, "task_mean", MODEL, {"method": "ridge_probe"}),
        "deeper": Direction.from_vector(np.array([1.0, 0.0]), 4, MODEL, method="made"),
    }
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in values}
    for name, value in values.items():
        save(value, paths[name])
    return paths


def test_show_says_what_a_direction_is_and_where_it_comes_from(files, capsys):
    assert main(["direction", "show", files["along"]]) == 0
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == [files["along"]]
    assert ["what", "direction, a unit vector"] in shown and ["layer", "L3"] in shown and ["method", "made"] in shown
    assert ["model", "made up (llama), fingerprint 0123456789ab, 2 wide"] in shown and ["length", "5"] in shown
    (above,) = [line[1] for line in shown if line[0] == "above"]
    assert above.startswith('["task0", "task1"') and above.endswith("... (40 in all)") and len(above) < 100


def test_show_names_the_terms_of_a_combination(tmp_path, capsys):
    one, other = (Direction.from_vector(np.eye(2)[number], 3, MODEL, method=f"made {number}") for number in (0, 1))
    save((one - 0.5 * other).direction(), tmp_path / "both.safetensors")
    assert main(["direction", "show", str(tmp_path / "both.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        rf'^  term 2 +{{"coefficient": -0\.5, "method": "made 1", "fingerprint": "{other.fingerprint[:6]}', shown, re.M
    )


def test_show_compares_what_can_be_compared(files, capsys):
    assert main(["direction", "show", *files.values()]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  norm +2\.5, what a dose of 1\.0 adds$", out, re.MULTILINE)
    assert re.search(r"^  norm: n_tokens +7$", out, re.MULTILINE)
    assert "intercept" in out and "ridge_probe" in out
    table = out.split("cosines\n")[1].splitlines()
    assert table[0].split() == ["1", "2", "3", "4"]
    assert [line.split()[:2] for line in table[1:]] == [[str(n + 1), path] for n, path in enumerate(files.values())]
    cells = [line.split()[2:] for line in table[1:]]
    assert [[float(cell) for cell in row] for row in cells] == [[1, 0, -1], [0, 1, 0], [-1, 0, 1], [1]]


def test_export_writes_control_vectors_that_can_be_shown_again(files, tmp_path, capsys):
    out = str(tmp_path / "out" / "v.gguf")
    assert main(["direction", "export", files["probe"], files["deeper"], "--out", out, "--model-hint", "qwen3"]) == 0
    assert capsys.readouterr().out == f"2 vectors written to {out}\n"
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    np.testing.assert_allclose(tensors["direction.3"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(tensors["direction.4"], [1, 0], rtol=1e-6)
    assert main(["direction", "show", out, files["along"]]) == 0
    shown = capsys.readouterr().out
    assert f"{out} L3\n" in shown and f"{out} L4\n" in shown and "-1.000" in shown and "ridge_probe" in shown


def test_export_writes_plain_arrays(files, tmp_path, capsys):
    out = str(tmp_path / "v.npz")
    assert main(["direction", "export", files["across"], "--out", out]) == 0
    assert capsys.readouterr().out == f"1 vector written to {out}\n"
    with np.load(out, allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["vectors"], [[2.0, -1.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["show"], "takes at least one file; got none"),
        (["show", "along", "--out", "v.gguf"], "--out and --model-hint are for export"),
        (["export", "along"], "writes to nothing; expected --out and a name that ends in .gguf or .npz"),
        (["export", "along", "--out", "v.bin"], "writes to v.bin; expected"),
        (["export", "along", "--out", "v.npz", "--model-hint", "x"], "--model-hint is for GGUF files"),
        (["export", "along", "across", "--out", "v.gguf"], "unit directions and norm-scaled steering vectors"),
        (["export", "along", "probe", "--out", "v.gguf"], "Several vectors are at L3"),
        (["show", "absent.gguf"], "no file absent.gguf"),
        (["show", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(files, arguments, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["direction", *(files.get(argument, argument) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert match in error and error.startswith("penchant: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("v.*"))


def test_a_damaged_control_vector_is_an_error_and_not_a_traceback(files, tmp_path, capsys):
    path = export_gguf(tmp_path / "v.gguf", Direction.from_vector(np.ones(2), 1, MODEL))
    path.write_bytes(path.read_bytes()[:-40])
    assert main(["direction", "show", str(path)]) == 1
    assert "v.gguf cannot be read as GGUF: it ends before" in capsys.readouterr().err


# ---- make

IDS = [f"task{number}" for number in range(24)]
AT = (15, "task_mean")


def make_store(path: Path, rows: np.ndarray, layers=(15,), positions=("task_mean",), ids=IDS) -> ActivationStore:
    """A store with the same rows at every layer and position, which has a row for every token at `all`."""
    header = StoreHeader(MODEL, "t", "c", "none", "float32", rows.shape[1], layers, positions)
    counts = {"all": np.ones(len(ids), dtype=int)} if "all" in positions else {}
    with ActivationWriter.resume(path, header, Slots(ids, [f"{path.name} {task}" for task in ids], counts)) as writer:
        index = {position: np.full(len(ids), -1) for position in positions}
        writer.write(np.arange(len(ids)), {key: rows.astype(np.float32) for key in header.keys}, np.full(len(ids), 7), index)
    return ActivationStore(path)


@pytest.fixture
def made(tmp_path, monkeypatch) -> ActivationStore:
    """In an empty folder, a store and labels that its first coordinate follows; of two targets, one by two detectors."""
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    values = np.linspace(-1, 1, 24)
    rows = random.normal(size=(24, 6)) + 1.5 * values[:, None] * np.eye(6)[0]
    utility = make_labels(values)
    refused = make_labels((values > 0.5).astype(float), "refusal").assign(method="phrases")
    suspected = make_labels(np.clip(0.5 + values / 2, 0, 1), "refusal").assign(method="judge")
    control = make_labels(np.zeros(1), "refusal").assign(task_id="calibration_1", method="judge")
    pd.concat([utility, refused, suspected, control]).to_parquet("labels.parquet")
    utility.to_csv("utility.csv", index=False)
    pairs = [(a, b) for a in range(24) for b in range(24) if abs(a - b) in (1, 5)]
    chosen = [1 / (1 + np.exp(-3 * (values[a] - values[b]))) for a, b in pairs]
    choices = {"first": [IDS[a] for a, _ in pairs], "second": [IDS[b] for _, b in pairs], "p_first": chosen}
    pd.DataFrame(choices).to_csv("choices.csv", index=False)
    Path("above.txt").write_text("task20  # the last\ntask21\n\ntask20\n")
    Path("below.txt").write_text("task1\ntask2\ntask3\n")
    return make_store(tmp_path / "acts.h5", rows)


def make(*arguments: str, store: str = "acts.h5") -> int:
    return main(["direction", "make", "--store", store, *arguments, "--out", "out/v.safetensors"])


def the_same(expected: Direction) -> bool:
    found = load("out/v.safetensors")
    assert isinstance(found, Direction)  # it has no norm
    assert found.provenance["position"] == AT[1] and found.layer == AT[0] and found.model == MODEL
    return found.fingerprint == expected.fingerprint and found.provenance["method"] == expected.provenance["method"]


def test_ids_make_a_difference_of_means_and_the_screen_says_what_it_is(made, capsys):
    assert make("--above", "above.txt", "--below", "below.txt") == 0
    expected = difference_of_means(made, *AT, ["task20", "task21"], ["task1", "task2", "task3"])
    assert the_same(expected) and load("out/v.safetensors").provenance["store"] == "acts.h5"
    printed = capsys.readouterr().out
    main(["direction", "show", "out/v.safetensors"])
    assert printed.startswith(capsys.readouterr().out.rstrip("\n"))
    norm = np.linalg.norm(made.load(*AT), axis=1).mean()
    length = expected.provenance["length"]
    sentence = f"2 tasks of above.txt, 3 of below.txt; their means are {length:.3g} apart: {length / norm:.1%} of the mean norm"
    assert sentence in printed and 'model.calibrate(load("out/v.safetensors")' in printed


@pytest.mark.parametrize(
    ("arguments", "maker", "sentence"),
    [
        ([], preference_direction, "8 tasks with the highest utility, 8 with the lowest; their means are"),
        (["--method", "difference_of_means"], preference_direction, "8 tasks with the highest utility"),
        (["--method", "ridge"], lambda *given: probe_direction(*given, kind="ridge"), "24 tasks; held-out squared error 0."),
        (
            ["--method", "logistic"],
            lambda *given: probe_direction(*given, kind="logistic"),
            "24 tasks, 12 in the upper class and 12 in the lower; held-out log loss 0.",
        ),
        (
            ["--method", "mass_mean"],
            lambda *given: probe_direction(*given, kind="mass_mean"),
            "24 tasks, 12 in the upper class",
        ),
        (
            ["--method", "bradley_terry", "--choices", "choices.csv"],
            lambda *given: probe_direction(*given, kind="bradley_terry", choices=pd.read_csv("choices.csv")),
            "24 tasks; held-out log loss of a choice 0.",
        ),
        (["--method", "pca"], lambda store, _, *at: principal_directions(store, *at)[0], "24 tasks; the direction has "),
    ],
)
def test_labels_make_what_the_library_makes_of_them(made, capsys, arguments, maker, sentence):
    assert make("--labels", "labels.parquet", "--target", "utility", *arguments) == 0
    assert the_same(maker(made, make_labels(np.linspace(-1, 1, 24)), *AT))
    assert sentence in capsys.readouterr().out
    assert load("out/v.safetensors").provenance["target"] == "utility"


def test_a_table_is_parquet_or_csv_and_its_only_target_need_not_be_named(made):
    for arguments in (["labels.parquet", "--target", "utility"], ["utility.csv"]):
        assert make("--labels", *arguments) == 0
        assert the_same(preference_direction(made, make_labels(np.linspace(-1, 1, 24)), *AT))


def test_a_held_out_error_stands_beside_that_of_knowing_nothing(made, capsys):
    values = np.linspace(-1, 1, 24)
    assert make("--labels", "utility.csv", "--method", "ridge") == 0
    error, blind = re.findall(r"squared error (\S+), against (\S+) of the mean", capsys.readouterr().out)[0]
    left_out = [np.delete(values, number).mean() - values[number] for number in range(24)]
    assert float(blind) == pytest.approx(np.square(left_out).mean(), rel=0.01) and float(error) < float(blind)
    known = load("out/v.safetensors").provenance
    assert float(error) == pytest.approx(known["errors"][known["alphas"].index(known["alpha"])], rel=0.01)


def test_refused_against_complied_comes_of_the_labels_that_refusal_correlation_writes(made, capsys):
    refused = {"phrases": IDS[18:], "judge": IDS[12:]}
    for detector, above in refused.items():
        assert make("--labels", "labels.parquet", "--target", "refusal", "--labels-by", detector) == 0
        below = [task for task in IDS if task not in above]
        assert the_same(difference_of_means(made, *AT, above, below, method="refused_less_complied"))
        printed = capsys.readouterr().out
        assert f"{len(above)} tasks with refusal at or above 0.5, {len(below)} below" in printed
        known = load("out/v.safetensors").provenance
        assert (known["cut"], known["labels_by"]) == (0.5, [detector])
        assert ("1 tasks with labels are left out, which acts.h5 does not hold" in printed) == (detector == "judge")


def test_a_cut_divides_any_labels_for_any_method_of_two_groups(made):
    values = np.linspace(-1, 1, 24)
    above, below = ([IDS[number] for number in np.flatnonzero(side)] for side in (values >= 0.6, values < 0.6))
    classes = make_labels((values >= 0.6).astype(float))
    for method, expected in (
        ("difference_of_means", difference_of_means(made, *AT, above, below)),
        ("mass_mean", probe_direction(made, classes, *AT, kind="mass_mean")),
    ):
        assert make("--labels", "utility.csv", "--cut", "0.6", "--method", method) == 0
        assert the_same(expected) and load("out/v.safetensors").provenance["cut"] == 0.6


def test_two_conditions_make_a_paired_difference(made, capsys):
    rows = made.load(*AT)
    other = make_store(Path("other.h5"), (rows + 3 * np.eye(6)[2] + 0.1 * rows[::-1])[:20], ids=IDS[:20])
    assert make("--against", "acts.h5", store="other.h5") == 0
    expected = paired_difference(other, made, *AT)
    assert the_same(expected) and expected.vector[2] > 0.8
    length, error = (expected.provenance[name] for name in ("length", "se"))
    assert (
        f"20 tasks under both conditions, which differ by {length:.3g} (se {error:.3g}) on average" in capsys.readouterr().out
    )


def test_variance_alone_needs_no_labels_and_shards_are_one_store(made, capsys):
    assert make("--method", "pca") == 0
    assert the_same(principal_directions(made, *AT)[0])
    shards = []
    for number, ids in enumerate((IDS[:10], IDS[10:])):
        shards.append(str(make_store(Path(f"shard{number}.h5"), made.load(*AT, ids), ids=ids).files[0].path))
    assert main(["direction", "make", "--store", *shards, "--method", "pca", "--out", "out/v.safetensors"]) == 0
    assert the_same(principal_directions(made, *AT)[0]) and "24 tasks; the direction has" in capsys.readouterr().out


@pytest.mark.parametrize("layer", ["15", "L15"])
def test_of_several_layers_and_positions_one_is_named(made, layer, capsys):
    make_store(Path("grid.h5"), made.load(*AT), (-1, 15), ("prompt_last", "task_mean", "all"))
    pca = ["--method", "pca"]
    assert make(*pca, "--layer", layer, "--position", "task_mean", store="grid.h5") == 0
    assert the_same(principal_directions(made, *AT)[0])
    assert make(*pca, "--layer", "embed", "--position", "prompt_last", store="grid.h5") == 0
    assert load("out/v.safetensors").layer == -1
    capsys.readouterr()
    for arguments, match in (
        ([], "grid.h5 has the layers embed, L15; say which with --layer"),
        (["--layer", "7"], "grid.h5 has no layer L7; it has embed, L15"),
        (["--layer", "0.5"], "a store does not know how deep its model is.) grid.h5 has embed, L15"),
        (["--layer", "15"], "grid.h5 has several positions; expected --position, one of prompt_last, task_mean"),
        (["--layer", "15", "--position", "task_men"], "no position 'task_men'; expected --position, one of prompt_last"),
        (["--layer", "15", "--position", "all"], "'all' has a row for every token; a probe or a direction needs one a task"),
    ):
        assert make(*pca, *arguments, store="grid.h5") == 1
        assert match in capsys.readouterr().err
    make_store(Path("tokens.h5"), made.load(*AT), positions=("all",))
    assert make(*pca, store="tokens.h5") == 1
    assert "no position with one row a task; expected --position, one of all with a reduction" in capsys.readouterr().err


IDS_OF_BOTH, UTILITY = ["--above", "above.txt", "--below", "below.txt"], ["--labels", "utility.csv"]
REFUSAL = ["--labels", "labels.parquet", "--target", "refusal"]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ([], "The sources given are none; expected one of --above and --below, --labels, --against, or --method pca alone"),
        ([*IDS_OF_BOTH, *UTILITY], "The sources given are --above and --below and --labels; expected one"),
        ([*UTILITY, "--against", "acts.h5"], "--labels and --against; expected one"),
        ([*IDS_OF_BOTH, "--method", "pca"], "--above and --below and --method pca; expected one"),
        (["--above", "above.txt"], "--below is missing; expected ids of both groups"),
        ([*IDS_OF_BOTH, "--method", "ridge"], "--method ridge goes with --labels, which is not given"),
        ([*IDS_OF_BOTH, "--target", "utility"], "--target goes with --labels, which is not given"),
        (["--against", "acts.h5", "--cut", "0.5"], "--cut goes with --labels, which is not given"),
        ([*UTILITY, "--method", "ridge", "--cut", "0.5"], "--cut goes with --method difference_of_means, logistic, mass_mean"),
        ([*UTILITY, "--choices", "choices.csv"], "--choices goes with --method bradley_terry"),
        ([*UTILITY, "--method", "bradley_terry"], "bradley_terry is fitted to choices; expected --choices"),
        (["--labels", "labels.parquet"], "labels.parquet has labels of utility, refusal; say which with --target"),
        (["--labels", "labels.parquet", "--target", "bail"], "of utility, refusal, and not bail; say which with --target"),
        (REFUSAL, "refusal in labels.parquet was obtained by phrases, judge; say which with --labels-by"),
        ([*REFUSAL, "--labels-by", "nobody"], "was obtained by phrases, judge, and not nobody; say which"),
        (
            [*REFUSAL, "--labels-by", "phrases", "--cut", "1.5"],
            "Of 24 tasks 0 have refusal at or above 1.5 and 24 below; expected",
        ),
        ([*REFUSAL, "--labels-by", "phrases", "--cut", "0"], "Of 24 tasks 24 have refusal at or above 0 and 0 below; expected"),
        (["--labels", "absent.parquet"], "There is no file absent.parquet"),
        (["--labels", "above.txt"], "above.txt is neither Parquet nor CSV by its name"),
        (["--labels", "choices.csv"], "Labels lack the columns"),
        (["--above", "absent.txt", "--below", "below.txt"], "There is no file of task ids absent.txt"),
        (["--above", "above.txt", "--below", "above.txt"], "Tasks ['task20', 'task21'] are in both groups"),
        (["--against", "acts.h5"], "the two groups it separates may be identical"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line_and_writes_nothing(made, capsys, arguments, match):
    assert make(*arguments) == 1
    error = capsys.readouterr().err
    assert match in error and error.startswith("penchant: ") and error.count("\n") == 1
    assert not Path("out").exists()


def test_labels_of_other_tasks_and_a_name_without_its_ending_are_refused(made, capsys):
    make_labels(np.arange(3.0)).assign(task_id=["x", "y", "z"]).to_csv("others.csv", index=False)
    assert make("--labels", "others.csv") == 1
    assert "acts.h5 holds none of the 3 tasks with labels, such as 'x'" in capsys.readouterr().err
    assert main(["direction", "make", "--store", "acts.h5", "--method", "pca", "--out", "v.gguf"]) == 1
    assert "writes to v.gguf; expected a name that ends in .safetensors" in capsys.readouterr().err
    assert main(["direction", "--out", "v.safetensors", "make"]) == 1
    assert "make comes before its settings" in capsys.readouterr().err


def test_ids_of_digits_are_texts_in_a_table_too(made, capsys):
    ids = [f"{number:03d}" for number in range(24)]
    store = make_store(Path("digits.h5"), made.load(*AT), ids=ids)
    labels = make_labels(np.linspace(-1, 1, 24)).assign(task_id=ids)
    labels.to_csv("digits.csv", index=False)
    assert make("--labels", "digits.csv", store="digits.h5") == 0
    assert the_same(preference_direction(store, labels, *AT)) and "left out" not in capsys.readouterr().out


@pytest.mark.parametrize("page", ["interp.md", "store.md"])
def test_what_the_pages_say_of_make_parses(page):
    text = (Path(__file__).parents[2] / "docs" / page).read_text(encoding="utf-8")
    lines = re.findall(r"^penchant direction make .*", text, re.MULTILINE)
    for line in lines:
        recipe = tyro.cli(Recipe, args=shlex.split(line, comments=True)[3:])
        assert recipe.out.suffix == ".safetensors"
    assert lines or page == "store.md"


def test_the_help_shows_a_command_for_every_source(capsys):
    with pytest.raises(SystemExit):
        main(["direction", "make", "--help"])
    shown = capsys.readouterr().out
    for words in ("--above yes.txt --below no.txt", "--method ridge", "--labels-by judge", "--against plain.h5", "--system"):
        assert words in shown
    assert main(["direction", "show"]) == 1


@pytest.mark.parametrize(("arguments", "system"), [([], None), (["--system", ""], ""), (["--system", "Be kind."], "Be kind.")])
@pytest.mark.parametrize("complete", [[], ["--complete", "4"]])
def test_capture_takes_the_three_states_of_a_system_prompt(made, monkeypatch, arguments, system, complete):
    asked = []
    monkeypatch.setattr(LocalModel, "load", lambda *_, **__: None)
    monkeypatch.setattr(capture_command, "capture", lambda _, questions, *__, **___: asked.extend(questions) or made)
    Path("tasks.jsonl").write_text('{"id": "a", "text": "Sing."}\n{"id": "b", "text": "Count."}\n')
    assert main(["capture", "--out", "kind.h5", "--tasks", "tasks.jsonl", *complete, *arguments]) == 0
    assert [question.system for question in asked] == [system, system]
