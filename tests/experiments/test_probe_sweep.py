"""The probe sweep on the real model: its tables agree, its probes are on disk, and W&B gets one run a configuration."""

import json

import pandas as pd
import pytest
import yaml

from experiments.probe_sweep import ProbeSweepSettings, run
from store.directions import load

SMALL = {
    "per_origin": 3,
    "layers": ("embed", 0.5),
    "positions": ("task_mean",),
    "targets": ("utility",),
    "permutations": 19,
    "elicit": {"degree": 5, "scales": ("yes_somewhat_no",), "resamples": 50},
}


def test_it_leaves_tables_probes_and_one_wandb_run_a_configuration_and_none_more_when_repeated(tmp_path):
    settings = ProbeSweepSettings(out=tmp_path / "r", wandb="offline", **SMALL)
    result = run(settings)
    table = pd.read_csv(tmp_path / "r/tables/probes.csv")
    probes = table[table["features"] == "residual"]
    assert set(probes["layer_name"]) == {"embed", "L15"}
    assert {"words (TF-IDF)", "embed/task_mean", "length and origins"} <= set(table["features"])
    best = probes.loc[probes["r2"].idxmax()]
    assert result.summary["probes"]["utility"]["r2"] == pytest.approx(best["r2"])
    assert f"R² of {best['r2']:+.2f}" in result.screen.replace("\n", " ").replace("                    ", " ")
    assert load(tmp_path / "r/directions/probe-utility-L15-task_mean.safetensors").layer == 15
    logged = json.loads((tmp_path / "r/wandb/logged.json").read_text())
    assert len(logged) == 2 and len(list((tmp_path / "r/wandb").glob("offline-run-*"))) == 2
    again = run(settings)
    assert len(list((tmp_path / "r/wandb").glob("offline-run-*"))) == 2
    assert again.summary["probes"]["utility"]["r2"] == pytest.approx(best["r2"])


def test_a_target_that_is_not_measured_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no labels of \['joy'\]; these settings measure \['self_report', 'utility'"):
        run(ProbeSweepSettings(out=tmp_path / "r", wandb="disabled", **SMALL | {"targets": ("joy",)}))


def test_a_wandb_sweep_file_runs_one_layer_and_position_at_a_time(tmp_path):
    path = tmp_path / "sweep.yaml"
    result = run(ProbeSweepSettings(out=tmp_path / "r", emit_wandb_sweep=path, **SMALL))
    sweep = yaml.safe_load(path.read_text())
    assert sweep["program"] == "penchant" and sweep["command"][-1] == "${args}"
    assert sweep["parameters"]["layers"]["values"] == ["embed", 0.5]
    assert f"wandb sweep {path}" in result.screen and not (tmp_path / "r").exists()
