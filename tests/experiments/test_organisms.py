"""Organisms: rules say what is planted, shipped adapters do it, and what holds a measurement against the truth is right."""

import numpy as np
import pandas as pd
import pytest
from scipy import special

from elicit import Task, all_pairs, builtin_tasks, choice
from experiments import planted_preference
from experiments.cli import main
from experiments.dry_run import dry_run
from experiments.frozen import FrozenTable
from experiments.organisms import Organism, OrganismSettings, Rule, choices_to_plant, split_topics, train
from experiments.planted import chance_of_a_claim, planting_table, recovery, slope_gaps
from experiments.planted_preference import PlantedPreferenceSettings, run
from experiments.shipped import SHIPPED, shipped
from interp import LocalModel


def answers(utilities: pd.Series, position: float = 0.0) -> pd.DataFrame:
    """All pairs, both orders, answered by utilities and a position bias."""
    rows = []
    for one, other in all_pairs(list(utilities.index)):
        for first, second in ((one, other), (other, one)):
            logit = utilities[first] - utilities[second] + position
            rows.append({"first": first, "second": second, "logit": logit, "p_first": special.expit(logit), "outcome": "chose"})
    return pd.DataFrame(rows)


def test_whole_topics_are_left_out_of_training_and_all_tasks_are_somewhere():
    tasks = builtin_tasks()
    seen, unseen = split_topics(tasks, 1 / 3, 0)
    assert not {(task.origin, task.topic) for task in seen} & {(task.origin, task.topic) for task in unseen}
    assert len(seen) + len(unseen) == len(tasks) and {task.origin for task in unseen} == {task.origin for task in tasks}
    with pytest.raises(ValueError, match=r"Origin 'own' has the topics \['x'\]; expected two or more"):
        split_topics([Task("a", "b", topic="x")], 1 / 3, 0)


def test_exclusive_or_is_no_sum_of_its_two_features():
    tasks = [Task(f"{origin}{mark}", f"Do it{mark}", origin=origin) for origin in ("math", "chat") for mark in ("?", ".")]
    values = np.array([Rule(name="xor").utility(task) for task in tasks])
    features = np.array([[task.origin == "math", "?" in task.text] for task in tasks], dtype=float)
    assert np.abs(np.linalg.lstsq(features - 0.5, values - values.mean())[0]).max() < 1e-12 and np.ptp(values) == 3


def test_planted_choices_are_consistent_over_orders_unless_position_is_planted():
    tasks = [task for task in builtin_tasks() if task.origin in ("math", "harmful")][::4]
    for rule, total in ((Rule(), 0.0), (Rule(name="position", size=2), 4.0)):
        planted = choices_to_plant(OrganismSettings(rule=rule, degree=4), tasks)
        logit = special.logit(planted["p_first"]).to_numpy().reshape(-1, 2)
        np.testing.assert_allclose(logit.sum(axis=1), total, atol=1e-4)
    with pytest.raises(KeyError, match="Origin 'own' of task 'a' has no utility"):
        Rule().utility(Task("a", "b"))


def test_an_organism_that_there_is_not_is_named_with_those_that_there_are():
    with pytest.raises(ValueError, match="There is no organism 'nobody'; expected one of position, topics"):
        Organism.read("nobody")


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_organism_is_small_and_says_how_it_was_made(name):
    organism = Organism.read(name)
    assert sum(path.stat().st_size for path in (SHIPPED / name).iterdir()) < 3_000_000
    known = {task.id for task in builtin_tasks()}
    assert set(organism.seen) | set(organism.unseen) == known and not set(organism.seen) & set(organism.unseen)
    planted = pd.read_csv(SHIPPED / name / "choices.csv")
    assert set(planted["first"]) | set(planted["second"]) <= set(organism.seen)


def test_list_names_the_organisms_and_how_to_use_them(capsys):
    assert main(["organism", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in shipped()) and "--model organism:NAME" in out
    assert main(["organism", "dance"]) == 2


def test_the_shipped_organisms_choose_as_was_planted_in_a_wording_they_never_saw():
    """Tasks of unseen topics; the untouched model is asked the same."""
    organism = Organism.read("topics")
    tasks = [task for task in builtin_tasks() if task.id in organism.unseen][::14]
    asked = choice.questions(tasks, all_pairs([task.id for task in tasks]), wording="enjoy_more")
    models = {"topics": organism.load(), "position": Organism.read("position").load(), "untouched": LocalModel.load()}
    found = {name: choice.comparisons(asked, model.score(asked)) for name, model in models.items()}
    table = planting_table(found, organism.utilities(tasks), organism.unseen).set_index("condition")
    assert table.loc["topics", "pearson"] > table.loc["untouched", "pearson"] and table.loc["topics", "pearson"] > 0.7
    assert table.loc["topics", "swapped"] > 0 > table.loc["untouched", "swapped"]
    assert table.loc["position", "position"] == pytest.approx(2, abs=0.5) and table.loc["position", "content_sd"] < 0.3


def test_planting_and_recovery_of_perfect_answers_are_perfect():
    truth = pd.Series({f"t{number}": float(number % 4) for number in range(16)})
    table = planting_table({"m, w": answers(truth, position=5.0)}, truth, [f"t{number}" for number in range(8)])
    assert (table["pearson"] > 0.999).all() and (table["right"] == 1).all() and (table["swapped"] > 0.999).all()
    np.testing.assert_allclose(table[["slope", "slope_low", "slope_high"]], 1, atol=1e-6)
    np.testing.assert_allclose(table[["position", "position_low", "position_high"]], 5, atol=1e-6)
    frozen = FrozenTable(answers(truth), dict.fromkeys(truth.index, "a"), {"name": "m", "fingerprint": "f", "dtype": "d"})
    found = recovery(frozen, truth, 4, 10, 0)
    assert found.planted is not None and found.planted.value == pytest.approx(1, abs=0.05) and 0.9 < found.ceiling < 1


def test_a_random_direction_among_random_ones_is_claimed_about_one_time_in_twenty():
    random = np.random.default_rng(0)
    claims = []
    for _ in range(200):
        slopes = pd.DataFrame({"slope": random.normal(size=20), "is_random": True})
        claims.append(chance_of_a_claim(slopes, controls=19).value)
    assert np.mean(claims) == pytest.approx(0.05, abs=1e-9)  # of twenty, just one is the most extreme


def test_gaps_are_held_against_those_of_the_same_random_directions():
    names = ["probe", *(f"random_{number}" for number in range(19))]
    base = pd.DataFrame({"direction": names, "layer": 3, "mode": "choice", "slope": 0.0, "slope_se": 0.1, "n": 8})
    base["is_random"] = base["direction"] != "probe"
    organism = base.assign(slope=[1.0, *np.linspace(-0.5, 0.5, 19)])
    (row,) = slope_gaps(organism, base).query("not is_random").to_dict("records")
    assert row["gap"] == 1 and row["p_value"] == pytest.approx(1 / 20) and row["random_high"] == 0.5
    assert row["gap_high"] - 1 == pytest.approx(1.96 * np.hypot(0.1, 0.1))


@pytest.mark.slow
def test_planning_asks_the_organism_nothing(tmp_path):
    quick = PlantedPreferenceSettings.QUICK | {"per_origin": 3, "out": tmp_path / "p", "steered_pairs": 4}
    plan = dry_run(planted_preference, PlantedPreferenceSettings(**quick))
    names = [each.identity.name for each in plan.respondents]
    assert names[0] == "smollm2-135m" and "topics" in names and not (tmp_path / "p").exists()
    assert plan.table.set_index("kind").loc["choice", "questions"] > 3 * 18 * 17


def test_an_organism_is_not_trained_under_an_intervention(tmp_path):
    with pytest.raises(ValueError, match="cannot be trained under the intervention"):
        train(OrganismSettings(out=tmp_path / "o", intervention=tmp_path / "push.safetensors"))


@pytest.mark.slow
def test_the_whole_experiment_runs_and_its_rerun_asks_nothing(tmp_path):
    settings = PlantedPreferenceSettings(
        **PlantedPreferenceSettings.QUICK | {"per_origin": 3, "out": tmp_path, "steered_pairs": 4}
    )
    first, again = run(settings), run(settings)
    assert first.summary["gaps"] == again.summary["gaps"] and (tmp_path / "tables/planting.csv").exists()
    assert "too few for a claim" in " ".join(first.screen.split())


def test_a_share_of_all_pairs_still_has_an_interval():
    truth = pd.Series(np.linspace(-2, 2, 20), index=[f"t{number}" for number in range(20)])
    row = planting_table({"x": answers(truth / 2)}, truth, []).iloc[0]
    # As if 10 pairs that share no task had all come out right.
    assert row["right"] == 1 and row["right_high"] == 1 and row["right_low"] == pytest.approx(0.025 ** (1 / 10))
    assert row["slope"] == pytest.approx(0.5)
