"""The command and its settings: help that teaches, errors that name the value and the way out, no traceback."""

import runpy
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from experiments.cli import EXPERIMENTS, main, parse_settings
from experiments.demo import DemoSettings
from experiments.run_directory import RunDirectory
from experiments.settings import ConfigError
from experiments.steering import SteerSettings


def test_every_experiment_is_listed_with_one_line(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[0] for line in lines] == list(EXPERIMENTS)
    assert main([]) == 0
    assert "penchant EXPERIMENT --config F" in capsys.readouterr().out


STUDIES = {"calibration": "--table", "compare": "--runs", "explore": "--runs", "ranking_methods": "--table"}
"""Experiments that ask no model anything, and where each takes its answers from."""


@pytest.mark.parametrize("name", [*EXPERIMENTS, "preflight"])
def test_help_names_every_setting_and_says_what_it_does(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([name, "--help"])
    assert stopped.value.code == 0
    out = "".join(character for character in capsys.readouterr().out if character not in "│ \n")  # however it is wrapped
    if name in STUDIES:
        assert STUDIES[name] in out and "--configFILE" in out and "--quick" in out
        return
    assert "--device" in out and "orHuggingFacehubid" in out
    if name != "preflight":
        settings = import_module(f"experiments.{name}").SETTINGS
        look = f"(--quick:{settings.QUICK['per_origin']}tasksofeveryorigin)" if "per_origin" in settings.QUICK else "(--quick)"
        assert "--configFILE" in out and "--per-origin" in out and (look in out) == bool(settings.QUICK)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dmeo"], "no experiment or command 'dmeo'; did you mean 'demo'?"),
        (["position_bias", "--qick"], "no flag --qick; did you mean --quick?"),
        (["position_bias", "--dryrun"], "no flag --dryrun; did you mean --dry-run?"),
        (["demo", "--quick"], "demo has no quick form; leave out --quick."),
        (
            ["position_bias", "--templates", "x"],
            "--templates is ['x']; expected 2 or more. Name them, or leave templates out for",
        ),
        (["template_sensitivity", "--tasks"], "--tasks is []; expected 1 or more."),
        (["demo", "--elicit.scales"], "--elicit.scales is []; expected 1 or more."),
        (["position_bias", "--per-origin", "0"], "--per-origin is 0: Input should be greater than or equal to 1."),
        (["position_bias", "--dose", "1"], "--dose is 1.0: a dose of no intervention; expected --intervention FILE with it."),
        (["position_bias", "--respondent.model", "m"], "penchant: base_url and model belong together; expected --respondent"),
        (["demo", "--config"], "--config needs a YAML file"),
        (["demo", "--config", "absent.yaml"], "Cannot read the configuration absent.yaml: No such file"),
    ],
)
def test_errors_are_one_line_without_a_traceback(arguments, message, capsys):
    assert main(arguments) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("per_orgin: 3", "Unknown key 'per_orgin' in .*: did you mean 'per_origin'?"),
        ("elicit: {degre: 3}", "Unknown key 'elicit.degre' in .*: did you mean 'elicit.degree'?"),
        ("steer: {doses: [0.1, 0.2]}", "steer.doses in .* expected each dose with its opposite"),
        ("per_origin: 0", "per_origin in .* is 0: Input should be greater than or equal to 1"),
        ("elicit: {degree: many}", "elicit.degree in .* is 'many'"),
        ("elicit: {scales: []}", r"elicit.scales in .* is \[\]; expected 1 or more. Name them, or leave elicit.scales out"),
        ("- a\n- b", "holds a list; expected keys and values"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_wrong_configuration_is_named_with_the_nearest_valid_key(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        DemoSettings.read(tmp_path / "c.yaml")


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("per_origin: 5\nseed: 7\nsteer: {n_random: 3, doses: [-0.1, 0.1]}\n")
    settings = parse_settings(
        "demo",
        DemoSettings,
        ["--config", str(tmp_path / "c.yaml"), "--per-origin", "6", "--steer.layers", "0.3", "12"],
        "Demo.",
    )
    assert (settings.per_origin, settings.seed, settings.steer.n_random) == (6, 7, 3)
    assert settings.steer.layers == (0.3, 12) and settings.steer.doses == (-0.1, 0.0, 0.1)
    assert settings.elicit.degree == DemoSettings().elicit.degree


def test_a_quick_run_of_tasks_of_ones_own_says_how_many_it_samples(tmp_path, capsys):
    quick = import_module("experiments.position_bias").SETTINGS
    parse_settings("position_bias", quick, ["--quick", "--tasks", "mine.csv"], "")
    assert capsys.readouterr().err == "--quick samples 4 tasks of every origin of mine.csv; --per-origin says how many.\n"
    parse_settings("position_bias", quick, ["--quick"], "")
    parse_settings("position_bias", quick, ["--tasks", "mine.csv"], "")
    assert capsys.readouterr().err == ""


def test_a_file_where_the_run_directory_should_be_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=r"run cannot be made, as .*file is a file; give another --out"):
        RunDirectory(DemoSettings(out=tmp_path / "file" / "run"))
    (tmp_path / "c.csv").write_text("first,second,outcome\na,b,first\n")
    assert main(["import", "comparisons", str(tmp_path / "c.csv"), "--out", str(tmp_path / "file")]) == 1
    assert "file is a file; give another --out" in capsys.readouterr().err


def test_other_settings_in_the_same_run_directory_are_named_and_the_same_ones_are_not(tmp_path):
    settings = DemoSettings(out=tmp_path / "r", layers=(0.5,))
    RunDirectory(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        RunDirectory(settings)
    changed = settings.model_copy(update={"per_origin": 3, "steer": SteerSettings(doses=(-0.1, 0.1))})
    with pytest.warns(
        UserWarning, match=r"r holds a run .*\(per_origin was 12, is 3; steer.doses was .*0.4.* is \[-0.1, 0.0, 0.1\]\)"
    ):
        RunDirectory(changed)
    for unreadable in ("{no settings", ""):
        (tmp_path / "r/config.yaml").write_text(unreadable)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            RunDirectory(changed)


def test_resolved_settings_survive_yaml(tmp_path):
    settings = DemoSettings(steer=SteerSettings(layers=(0.25, 3, "L7")))
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(yaml.safe_load(settings.model_dump_json())))
    assert DemoSettings.read(tmp_path / "c.yaml") == settings


def test_shipped_configurations_are_valid_and_say_the_defaults():
    from importlib import resources

    for name in EXPERIMENTS:
        module = import_module(f"experiments.{name}")
        with resources.as_file(resources.files("experiments") / "configs" / f"{name}.yaml") as path:
            assert module.SETTINGS.read(path) == module.SETTINGS()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_also_runs_as_a_module(name, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, "--nonsense"])
    monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module(f"experiments.{name}", run_name="__main__")
    assert stopped.value.code == 2
    assert f"penchant {name}" in capsys.readouterr().err


def test_importing_the_rooms_loads_none_of_the_heavy_packages():
    script = "import sys, interp, elicit, store; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    heavy = {
        "transformers",
        "nnsight",
        "transformer_lens",
        "wandb",
        "matplotlib",
        "tyro",
        "gguf",
        "platformdirs",
        "experiments",
    }
    assert heavy.isdisjoint(loaded)


def test_an_unknown_model_is_an_error_and_not_a_traceback(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["preflight", "./nothing"]) == 1
    assert "Cannot load the model './nothing'" in capsys.readouterr().err


def test_an_empty_task_file_is_an_error_and_not_a_traceback(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks.jsonl").write_text("")
    assert main(["demo", "--tasks", "tasks.jsonl"]) == 1
    assert "tasks.jsonl has no tasks" in capsys.readouterr().err


def test_whoever_stops_reading_what_is_printed_gets_no_error():
    command = f"{sys.executable} -m experiments.cli --help | head -1"
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stdout.startswith("penchant:") and done.stderr == "" and done.returncode == 0


def test_a_model_that_is_not_there_leaves_no_run_directory(tmp_path, capsys):
    assert main(["position_bias", "--model", "smolm2-135m", "--out", str(tmp_path / "run")]) == 1
    assert "did you mean 'smollm2-135m'" in capsys.readouterr().err and not (tmp_path / "run").exists()
