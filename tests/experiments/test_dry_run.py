"""Dry runs: what is counted is what a run asks, nothing is asked, and what a log knows is no work."""

import numpy as np
import pytest

from experiments import demo, position_bias, self_vs_cross
from experiments.cli import EXPERIMENTS, main
from experiments.demo import DemoSettings
from experiments.dry_run import dry_run
from experiments.measuring import ElicitSettings
from experiments.position_bias import PositionBiasSettings
from experiments.self_vs_cross import SelfVsCrossSettings
from experiments.steering import SteerSettings
from interp.rehearsal import RehearsedModel, Tally
from store import MeasurementLog
from tests.experiments.test_command import STUDIES


def test_the_plan_is_what_the_run_then_asks(counted, tmp_path):
    settings = PositionBiasSettings(out=tmp_path / "p", per_origin=1, degree=2, templates=("would_rather", "pick_one"))
    plan = dry_run(position_bias, settings)
    assert not (tmp_path / "p").exists()
    row = plan.table.set_index("kind").loc["choice"]
    # Every question, and the example of the report, which is known by then.
    assert (row["questions"], row["known"], row["to_ask"]) == (2 * 2 * 6 + 1, 1, 24)
    assert row["tokens"] > 24 * 50 and 0 < row["minutes"] < 5 and "24 questions to ask" in plan.screen
    position_bias.run(settings)
    with MeasurementLog(tmp_path / "p/measurements.sqlite") as log:
        assert len(log) == row["to_ask"]
        before = log.to_frame()
    again = dry_run(position_bias, settings).table.set_index("kind").loc["choice"]
    assert again["to_ask"] == 0 and again["known"] == row["questions"] and again["minutes"] == 0
    with MeasurementLog(tmp_path / "p/measurements.sqlite") as log:
        assert log.to_frame().equals(before)  # made-up answers are never kept


@pytest.mark.slow
def test_the_whole_loop_and_runs_of_several_models_can_be_planned(counted, tmp_path):
    settings = DemoSettings(
        out=tmp_path / "d",
        per_origin=3,
        elicit=ElicitSettings(degree=4, scales=("yes_somewhat_no",), resamples=50),
        layers=(0.5,),
        permutations=20,
        steer=SteerSettings(doses=(-0.2, 0.2), n_random=2, resamples=50),
    )
    plan = dry_run(demo, settings).table.set_index("kind")
    assert plan.loc["activations", "to_ask"] > 18 and plan.loc["rating", "to_ask"] == 18
    crossed = SelfVsCrossSettings(out=tmp_path / "c", per_origin=2, doses=(0.1,), scales=("yes_somewhat_no",), max_new_tokens=9)
    plan = dry_run(self_vs_cross, crossed)
    rows = plan.table.set_index("kind")
    assert rows.loc["completion", ["to_ask", "new_tokens"]].tolist() == [24, 24 * 9] and rows.loc["rating", "to_ask"] == 48
    assert not plan.unfinished and not list(tmp_path.iterdir())


def test_a_rehearsal_has_the_fingerprints_of_what_it_stands_for(embedded, pair_questions):
    tally = Tally()
    rehearsed = RehearsedModel(embedded, tally)
    assert rehearsed.fingerprint == embedded.fingerprint
    answers = rehearsed.score(pair_questions)
    assert len(answers) == len(pair_questions) and all(answer.outcome == "chose" for answer in answers)
    assert tally.counts["other"].tokens == sum(len(embedded.render(question).token_ids) for question in pair_questions)
    assert np.isfinite(tally.seconds()["other"])


def test_wrong_settings_are_errors_of_a_dry_run_too(tmp_path, capsys):
    assert main(["opt_out", "--dry-run", "--wordings", "nope", "--out", str(tmp_path / "o")]) == 1
    assert "no phrasing 'nope'" in capsys.readouterr().err and not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in STUDIES])
def test_every_experiment_can_be_planned(name, tmp_path, counted, capsys):
    assert main([name, "--dry-run", "--out", str(tmp_path / "x")]) == 0
    screen = capsys.readouterr().out
    assert "questions to ask" in screen and "Not everything is counted" not in screen
