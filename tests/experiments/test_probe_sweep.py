"""The probe sweep on the real model: its tables agree, its probes are on disk, and W&B gets one run a configuration."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments.probe_sweep import ProbeSweepSettings, run
from experiments.settings import ConfigError
from store.directions import load
from tests.experiments.wandb_offline import read_run

SMALL: dict[str, Any] = {
    "per_origin": 3,
    "layers": ("embed", 0.5),
    "positions": ("task_mean",),
    "targets": ("utility",),
    "permutations": 19,
    "elicit": {"degree": 5, "scales": ("yes_somewhat_no",), "resamples": 50},
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A run directory in which the questions of `SMALL` are answered and its activations cached."""
    out = tmp_path_factory.mktemp("sweep") / "r"
    run(ProbeSweepSettings(out=out, wandb="offline", **SMALL))
    return out


def offline_runs(out) -> list[str]:
    """Ids of the runs that W&B has written."""
    return [path.name.rsplit("-", 1)[1] for path in (out / "wandb").glob("offline-run-*")]


def test_it_leaves_tables_probes_and_one_wandb_run_a_configuration_and_none_more_when_repeated(directory):
    table = pd.read_csv(directory / "tables/probes.csv")
    probes = table[table["features"] == "residual"]
    assert set(probes["layer_name"]) == {"embed", "L15"}
    assert {"words (TF-IDF)", "embed/task_mean", "length and origins"} <= set(table["features"])
    best = probes[~probes["is_baseline"]].iloc[0]
    assert best["layer_name"] == "L15"
    assert load(directory / "directions/probe-utility-L15-task_mean.safetensors").layer == 15
    logged = json.loads((directory / "wandb/logged.json").read_text())
    assert len(logged) == 2 and len(offline_runs(directory)) == 2
    again = run(ProbeSweepSettings(out=directory, wandb="offline", **SMALL))
    assert len(offline_runs(directory)) == 2
    assert again.summary["probes"]["utility"]["r2"] == pytest.approx(best["r2"])
    assert f"R² of {best['r2']:+.2f}" in again.screen.replace("\n", " ").replace("                    ", " ")
    assert "The best of 1 ridge probes (L15, task_mean)" in " ".join(again.screen.split())


@pytest.mark.parametrize("kind", ["logistic", "mass_mean", "bradley_terry"])
def test_other_kinds_are_swept_and_said(kind, directory):
    changed = SMALL | {"kind": kind, "only_layers": (0.5,)}
    result = run(ProbeSweepSettings(out=directory, wandb="disabled", **changed))
    assert result.path == directory / f"{kind}-utility-L15-task_mean"
    probe = load(result.path / "directions/probe-utility-L15-task_mean.safetensors")
    assert probe.provenance["method"] == f"{kind}_probe"
    assert f"{kind.replace('_', '-')} probes" in " ".join(result.screen.split()).replace("Bradley-Terry", "bradley-terry")
    assert not result.summary["probes"]["utility"]["beats_baselines"]  # 18 tasks cannot show it


def test_held_out_tasks_and_groups_are_split_as_asked(directory, tmp_path):
    ids = pd.read_csv(directory / "tables/probe_predictions.csv")["task_id"].unique()
    (tmp_path / "ids.txt").write_text("\n".join(ids[:5]))
    changed = SMALL | {"only_layers": (0.5,), "split": "held_out", "tested": tmp_path / "ids.txt", "choice": "folds"}
    out = run(ProbeSweepSettings(out=directory, wandb="disabled", **changed)).path
    assert set(pd.read_csv(out / "tables/probe_predictions.csv")["task_id"]) == set(ids[:5])
    changed = SMALL | {"only_layers": (0.5,), "split": "leave_one_origin_out", "one_standard_error": True}
    out = run(ProbeSweepSettings(out=directory, wandb="disabled", **changed)).path
    assert pd.read_csv(out / "tables/probe_predictions.csv")["fold"].nunique() == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"split": "held_out"}, "a file of tested tasks go together"),
        ({"kind": "logistic", "demean": "origin"}, "group means are taken off for ridge alone"),
        ({"kind": "lasso"}, "kind .* is 'lasso'"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_before_anything_is_loaded(given, message):
    with pytest.raises(ConfigError, match=message):
        ProbeSweepSettings.of(given)


def test_a_target_or_a_layer_that_there_is_not_is_named(directory):
    with pytest.raises(ValueError, match=r"only_layers names \[3\], which layers does not cache: \[-1, 15\]"):
        run(ProbeSweepSettings(out=directory, wandb="disabled", **SMALL | {"only_layers": (3,)}))
    with pytest.raises(ValueError, match=r"no labels of \['joy'\]; these settings measure \['self_report', 'utility'"):
        run(ProbeSweepSettings(out=directory, wandb="disabled", **SMALL | {"targets": ("joy",)}))


def test_what_the_tasks_or_the_installation_lack_is_said_before_a_model_is_loaded(tmp_path, monkeypatch):
    tasks = tmp_path / "tasks.jsonl"
    tasks.write_text("\n".join(json.dumps({"id": f"t{number}", "text": f"Count to {number}."}) for number in range(12)))
    given: dict[str, Any] = {"out": tmp_path / "r", "tasks": (str(tasks),), "wandb": "disabled"}
    with pytest.raises(ValueError, match=r"12 tasks have no topic, such as 't\d+'; give the file of tasks a column 'topic'"):
        run(ProbeSweepSettings(**given, split="leave_one_topic_out"))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'penchant\[embeddings\]'"):
        run(ProbeSweepSettings(**given, embeddings="some/model"))
    assert not (tmp_path / "r").exists()


@pytest.mark.slow
def test_the_command_line_that_wandb_agent_makes_of_the_sweep_file_runs_one_configuration(directory, tmp_path, monkeypatch):
    from wandb.wandb_agent import Agent

    out, path = shutil.copytree(directory, tmp_path / "run"), tmp_path / "sweep.yaml"
    settings = ProbeSweepSettings(out=out, wandb="offline", emit_wandb_sweep=path, **SMALL)
    assert f"wandb sweep {path}" in run(settings).screen
    sweep = yaml.safe_load(path.read_text())
    values = {name: each["values"] for name, each in sweep["parameters"].items()}
    assert values == {"only_layers": ["embed", 0.5], "only_positions": ["task_mean"], "targets": ["utility"]}
    monkeypatch.chdir(tmp_path)
    # An agent starts what is on the path; here that is this interpreter's.
    monkeypatch.setenv("PATH", f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("WANDB_SWEEP_ID", "s1")
    for variable in ("WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH"):  # set by the agent
        monkeypatch.setenv(variable, "")
    agent: Any = SimpleNamespace(
        _in_jupyter=False,
        _function=None,
        _forward_signals=False,
        _sweep_command=sweep["command"],
        _run_processes={},
    )
    chosen = {"only_layers": 0.5, "only_positions": "task_mean", "targets": "utility"}
    command = {
        "run_id": "agent1",
        "program": sweep["program"],
        "args": {name: {"value": each} for name, each in chosen.items()},
    }
    Agent._command_run(agent, command)
    assert agent._run_processes["agent1"].wait(timeout=240) == 0
    (found,) = (out / "wandb").glob("offline-run-*-agent1")
    logged = read_run(found)
    assert logged.config["layer"] == 15 and logged.config["target"] == "utility"
    table = pd.read_csv(out / "ridge-utility-L15-task_mean/tables/probes.csv")
    r2 = table.loc[table["features"] == "residual", "r2"].item()
    assert logged.summary["r2"] == pytest.approx(r2)


@pytest.mark.slow
def test_a_sweep_that_is_killed_resumes_without_a_second_run_of_anything(directory, tmp_path):
    changed = SMALL | {"layers": ("embed", 0.25, 0.5, 0.75), "targets": ("utility", "self_report"), "permutations": 20}
    settings = ProbeSweepSettings(out=directory, wandb="offline", **changed)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    logged = directory / "wandb/logged.json"
    before = len(json.loads(logged.read_text()))
    command = [sys.executable, "-m", "experiments.probe_sweep", "--config", str(config)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    deadline = time.monotonic() + 240
    while len(json.loads(logged.read_text())) < before + 2:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(json.loads(logged.read_text())) < before + 8
    run(settings)
    found = offline_runs(directory)
    assert len(found) == len(set(found)) == len(json.loads(logged.read_text())) == before + 8
