"""The whole loop on the embedded model, small: everything is written, and a second run asks the model nothing."""

import json

import pandas as pd
import pytest

from elicit import builtin_tasks, sample_tasks
from experiments import demo, steer_then_measure
from experiments.commands.preflight import preflight
from experiments.demo import DemoSettings
from experiments.loop import cache_activations
from experiments.measuring import ElicitSettings
from experiments.run_directory import RunDirectory
from experiments.steer_findings import steering_findings
from experiments.steering import SteerSettings, split_tasks
from store import MeasurementLog
from tests.conftest import tiny

SMALL = {
    "per_origin": 3,
    "elicit": ElicitSettings(degree=4, hold_out=0.3, scales=("yes_somewhat_no", "likert_5"), resamples=50),
    "layers": (0.1, 0.5),
    "permutations": 19,
    "steer": SteerSettings(doses=(-0.2, 0.2), n_random=2, train_share=0.67, resamples=50),
}


def test_the_demo_goes_round_the_loop_and_repeats_without_asking(counted, tmp_path):
    settings = DemoSettings(out=tmp_path / "demo", **SMALL)
    result = demo.run(settings)
    assert counted
    names = [finding.name for finding in result.findings]
    assert names == ["Position bias", "Hold-out", "Self-report", "Probe: utility", "Probe: self report", "Steering: choice"]
    screen = " ".join(result.screen.split())
    for words in (
        "Position bias",
        "held-out pairs",
        "self-reports correlate",
        "Baselines:",
        "random directions",
        "report.html",
    ):
        assert words in screen
    assert "nothing is claimed about exceeding them" in screen  # two controls are too few
    for finding in result.findings:
        assert finding.sentence.split(".")[0] in (tmp_path / "demo/report.html").read_text().replace("&#39;", "'")
        assert (tmp_path / f"demo/figures/{finding.figure}.png").stat().st_size > 5000
    report = (tmp_path / "demo/report.html").read_text()
    assert "<|im_start|>" not in report and "&lt;|im_start|&gt;user" in report  # the example prompt is escaped
    assert " src=" not in report and "<script" not in report and "<link" not in report  # nothing is fetched
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    assert summary["results"]["position_bias"]["mean"]["n"] == 36
    assert set(summary["results"]["findings"]) == set(names)
    with MeasurementLog(tmp_path / "demo/measurements.sqlite") as log:
        answered = len(log)
    counted.clear()
    again = demo.run(settings)
    assert not counted
    assert [finding.sentence for finding in again.findings] == [finding.sentence for finding in result.findings]
    with MeasurementLog(tmp_path / "demo/measurements.sqlite") as log:
        assert len(log) == answered
    for table in ("labels", "probes", "slopes", "dose_response", "comparisons", "ratings", "steering_units"):
        assert len(pd.read_parquet(tmp_path / f"demo/tables/{table}.parquet"))


def test_steering_is_tested_on_tasks_that_its_directions_never_saw(counted, tmp_path):
    settings = steer_then_measure.SETTINGS(
        out=tmp_path / "s",
        per_origin=3,
        elicit=SMALL["elicit"],
        steer=SteerSettings(modes=("choice", "rating"), doses=(-0.2, 0.2), n_random=2, train_share=0.67, resamples=50),
    )
    result = steer_then_measure.run(settings)
    assert [f.name for f in result.findings][2:] == ["Steering: choice", "Steering: rating"]
    tasks = settings.load_tasks()
    train, test = split_tasks(tasks, 0.67, 0)
    units = pd.read_parquet(tmp_path / "s/tables/steering_units.parquet")
    trained = {task.id for task in train}
    assert {task for unit in units["unit"] for task in unit.split(" / ")} <= {task.id for task in test}
    from store.directions import load

    vector = load(tmp_path / "s/directions/difference_of_means_L15_choice.safetensors")
    assert set(vector.direction.provenance["above"]) | set(vector.direction.provenance["below"]) <= trained
    assert vector.calibration["positions"] == ["task_a", "task_b"] and vector.norm > 0
    zero = units[units["dose"] == 0]
    assert (zero["shift"].abs() < 1e-9).all()
    choice = units[(units["mode"] == "choice") & (units["direction"] == "ridge_probe")].set_index(["unit", "dose"])["shift"]
    assert choice.abs().max() > 1e-3
    assert (tmp_path / "s/figures/dose_L15_rating.svg").exists()


def test_a_run_directory_keeps_the_activations_of_two_models_apart(tmp_path):
    settings = DemoSettings(out=tmp_path / "r", **SMALL)
    run, tasks = RunDirectory(settings), settings.load_tasks()
    stores = [cache_activations(tiny("llama", seed=seed), tasks, [1], ["task_mean"], run) for seed in (0, 1, 0)]
    assert len({store.files[0].path for store in stores}) == 2
    assert stores[0].files[0].path == stores[2].files[0].path


def test_preflight_says_which_templates_a_model_can_answer(embedded):
    good = preflight(embedded, ["choice:would_rather", "rating:likert_5", "ranking:"])
    assert (good.table["verdict"] == "ok").all() and "Every template can be answered." in good.screen
    assert "a turn of its own" in good.screen and "8192 tokens" in good.screen
    bad = preflight(tiny("gemma3"))
    assert "off format" in bad.screen and "opens the first user turn" in bad.screen
    assert "plain 'User:'" in preflight(tiny("gpt2")).screen


def test_splits_keep_the_origins_apart_and_balanced():
    tasks = sample_tasks(builtin_tasks(), 6)
    train, test = split_tasks(tasks, 2 / 3, seed=0)
    assert {task.id for task in train}.isdisjoint(task.id for task in test)
    assert all(sum(task.origin == origin for task in train) == 4 for origin in {task.origin for task in tasks})
    with pytest.raises(ValueError, match="Sample more tasks"):
        split_tasks(tasks[:6], 2 / 3, seed=0)


def test_steering_findings_claim_nothing_that_controls_or_intervals_do_not_allow():
    import numpy as np

    from experiments.dose_response import DoseResponse

    def response(effect: float, n_random: int, noise: float = 0.05) -> DoseResponse:
        random = np.random.default_rng(0)
        rows = [
            {
                "direction": name,
                "is_random": name.startswith("random"),
                "layer": 3,
                "mode": "choice",
                "dose": dose,
                "unit": f"pair {unit}",
                "shift": dose * slope + (noise * random.normal() if dose else 0.0),
                "probability": 0.5,
                "mass": 0.9,
                "on_format": 1.0 if abs(dose) < 0.4 else 0.2,
            }
            for name, slope in [("ridge_probe", effect), *((f"random_{k}", 0.3 * random.normal()) for k in range(n_random))]
            for dose in (-0.4, -0.2, 0.0, 0.2, 0.4)
            for unit in range(10)
        ]
        return DoseResponse.of(pd.DataFrame(rows), resamples=200)

    strong, weak, few = response(3.0, 19), response(0.1, 19), response(3.0, 5)
    assert "the effect exceeds its controls for the ridge probe (p = 0.05)" in steering_findings(strong)[0].sentence
    assert "No direction is shown to exceed its controls" in steering_findings(weak)[0].sentence
    assert "nothing is claimed" in steering_findings(few)[0].sentence
    slope = strong.tested().iloc[0]
    assert slope["slope"] == pytest.approx(3.0, abs=0.2) and slope["slope_low"] < slope["slope"] < slope["slope_high"]
    assert (slope["coherent_from"], slope["coherent_to"]) == (-0.2, 0.2)  # off format beyond
