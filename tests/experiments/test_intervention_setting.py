"""Any experiment under an intervention: asked, read, calibrated and steered again on top of it, and the results say so."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import demo, transitivity
from experiments.cli import EXPERIMENTS, main, parse_settings
from experiments.demo import DemoSettings
from experiments.dry_run import dry_run
from experiments.measuring import ElicitSettings
from experiments.settings import ConfigError, Settings
from experiments.steering import SteerSettings
from interp import Intervention, random_directions, save_intervention
from store import ActivationStore, MeasurementLog
from store.directions import load, save
from store.provenance import ModelIdentity
from tests.conftest import pair_question


@pytest.fixture(scope="module")
def vector(embedded):
    direction = random_directions(embedded.identity, embedded.d_model, 10, 1)[0]
    return embedded.calibrate(direction, [pair_question("Sing a song.", "Dance.")], ["all"])


@pytest.fixture
def file(tmp_path, vector):
    save_intervention(Intervention.everywhere(vector, 0.1), tmp_path / "push.safetensors")
    return tmp_path / "push.safetensors"


@pytest.mark.slow
def test_the_whole_loop_runs_under_an_intervention_and_steers_on_top_of_it(counted, embedded, vector, file, tmp_path):
    settings = DemoSettings(
        out=tmp_path / "demo",
        intervention=file,
        dose=0.05,
        per_origin=3,
        elicit=ElicitSettings(degree=4, hold_out=0.3, scales=("yes_somewhat_no", "likert_5"), resamples=50),
        layers=(0.5,),
        permutations=19,
        steer=SteerSettings(doses=(-0.2, 0.2), n_random=2, train_share=0.67, resamples=50),
    )
    result = demo.run(settings)
    view = embedded.steered(Intervention.everywhere(vector, 0.05))
    summary = json.loads((tmp_path / "demo/summary.json").read_text())
    assert summary["model"]["fingerprint"] == view.fingerprint != embedded.fingerprint
    assert summary["model"]["interventions"] == [view.interventions[0].describe()]
    assert summary["settings"]["intervention"] == str(file) and summary["settings"]["dose"] == 0.05
    said = "under [add by 0.05: random at L10 on all]"
    assert said in " ".join(result.screen.split()) and said in (tmp_path / "demo/report.html").read_text()
    # What was read is the steered stream, and what was pushed further is that same view.
    store = ActivationStore(next((tmp_path / "demo/activations").glob("*.h5")))
    assert store.header.model.fingerprint == view.fingerprint
    steered = load(tmp_path / "demo/directions/difference_of_means_L15_choice.safetensors")
    assert steered.direction.model.fingerprint == view.fingerprint
    on_top = view.steered(Intervention.apart(steered, 0.2))
    with MeasurementLog(tmp_path / "demo/measurements.sqlite") as log:
        respondents = set(log.to_frame()["respondent"])
    assert {view.fingerprint, on_top.fingerprint} <= respondents
    assert not {embedded.fingerprint, embedded.steered(Intervention.apart(steered, 0.2)).fingerprint} & respondents
    units = pd.read_parquet(tmp_path / "demo/tables/steering_units.parquet")
    assert (units.loc[units["dose"] == 0, "shift"].abs() < 1e-9).all() and units["shift"].abs().max() > 1e-3
    counted.clear()
    assert demo.run(settings).findings == result.findings
    assert not counted


@pytest.fixture
def few(tmp_path):
    """Four short tasks."""
    texts = ("Sing a song.", "Add 3 and 4.", "Name a bird.", "Tell a joke.")
    lines = [json.dumps({"id": f"t{number}", "text": text}) for number, text in enumerate(texts)]
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "tasks.jsonl")


def test_a_dose_of_zero_is_the_untouched_model_and_another_dose_is_asked_anew(counted, file, few, tmp_path):
    base = {"out": tmp_path / "t", "tasks": few, "per_origin": 4}
    transitivity.run(transitivity.SETTINGS(**base))
    counted.clear()
    transitivity.run(transitivity.SETTINGS(**base, intervention=file, dose=0.0))
    assert not counted
    transitivity.run(transitivity.SETTINGS(**base, intervention=file))
    assert counted


def test_a_dry_run_counts_what_the_intervention_leaves_to_be_asked(counted, file, few, tmp_path):
    settings = transitivity.SETTINGS(out=tmp_path / "t", tasks=few, per_origin=4, intervention=file)
    before = dry_run(transitivity, settings)
    assert before.table["to_ask"].sum() > 0 and "steered" in before.screen
    transitivity.run(settings)
    assert dry_run(transitivity, settings).table["to_ask"].sum() == 0


def test_every_experiment_that_asks_a_model_takes_an_intervention(file):
    from importlib import import_module

    taking = [name for name in EXPERIMENTS if issubclass(import_module(f"experiments.{name}").SETTINGS, Settings)]
    assert len(taking) >= 15
    for name in taking:
        flags = ["--intervention", str(file), "--dose", "-0.2"]
        settings = parse_settings(name, import_module(f"experiments.{name}").SETTINGS, flags, EXPERIMENTS[name])
        assert (settings.intervention, settings.dose) == (file, -0.2)


@pytest.mark.parametrize(
    ("contents", "flags", "message"),
    [
        ("other model", [], "comes from tiny-llama (llama, residual stream of 32) and does not fit smollm2-135m"),
        ("steering vector", [], "has no dose of its own"),
        ("direction", ["--dose", "0.1"], "model.calibrate"),
        ("span", [], "no span 'task'; it has ['task_a', 'task_b']"),
        ("ablation", ["--dose", "0.1"], "ablate takes the whole component out"),
        ("noise", [], "is not a file of penchant, or is damaged"),
        ("nothing", [], "No such file"),
    ],
)
def test_an_intervention_that_cannot_be_used_is_one_line(contents, flags, message, counted, vector, few, tmp_path, capsys):
    path = tmp_path / "i.safetensors"
    match contents:
        case "other model":
            other = ModelIdentity("tiny-llama", "llama", "x")
            save_intervention(Intervention.ablate(random_directions(other, 32, 1, 1)), path)
        case "steering vector":
            save(vector, path)
        case "direction":
            save(vector.direction, path)
        case "span":
            save_intervention(Intervention.ablate(vector, "task"), path)
        case "ablation":
            save_intervention(Intervention.ablate(vector), path)
        case "noise":
            path.write_bytes(np.random.default_rng(0).bytes(200))
    run = [
        "transitivity",
        "--out",
        str(tmp_path / "t"),
        "--tasks",
        few,
        "--per-origin",
        "4",
        "--intervention",
        str(path),
        *flags,
    ]
    assert main(run) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and len(counted) == 0


def test_a_dose_without_an_intervention_is_refused_by_name(tmp_path):
    (tmp_path / "c.yaml").write_text("dose: 0.2\n")
    with pytest.raises(ConfigError, match=r"^dose in .*a dose of no intervention; expected --intervention FILE"):
        DemoSettings.read(tmp_path / "c.yaml")
