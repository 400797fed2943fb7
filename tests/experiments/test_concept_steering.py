"""Persona x context x dose: what was put into made-up ratings comes out, controls are fair, and a second run asks nothing."""

import json

import numpy as np
import pandas as pd
import pytest

from experiments import concept_steering
from experiments.concept_findings import concept_findings
from experiments.concept_grid import CONCEPT, ConceptGrid
from experiments.concept_steering import ConceptSteeringSettings, in_latin_square
from experiments.settings import ConfigError
from interp import flipped_directions, paired_difference
from store.directions import load
from tests.interp.test_directions import AT, make_store

PROMPTS = ["neutral", "keen", "weary"]
DOSES = (-0.4, -0.2, 0.0, 0.2, 0.4)
LENGTH = 4  # of likert_5


def made_up(slope: float, n_controls: int = 19, *, context: float = 0.1, interaction: float = 0.0, bend: float = 0.0):
    """Ratings of 24 tasks as the experiment has them: the concept in all cells, controls in a Latin square of them."""
    random = np.random.default_rng(0)
    names = [(CONCEPT, "", slope)]
    names += [(f"{kind}_{k}", kind, 0.1 * random.normal()) for kind in ("random", "flipped") for k in range(n_controls)]
    rows = []
    for task in range(24):
        own = 0.05 * random.normal()
        for name, control, strength in names:
            for dose in DOSES if not control else (-0.4, 0.4):
                for i, done in enumerate(PROMPTS):
                    for j, rated in enumerate(PROMPTS):
                        if control and (i + j + task) % 3:
                            continue
                        share = 0.5 + own + (context if rated == "keen" else 0.0) + 0.01 * random.normal()
                        share += dose * (strength + (interaction if rated == "keen" else 0.0)) + bend * dose**3 * (not control)
                        rows.append(
                            (f"t{task:02}", "likert_5", "chose", 0.9, 1 + LENGTH * share, done, rated, name, control, dose)
                        )
    columns = ["task_id", "scale", "outcome", "mass", "mean", "done_under", "rated_under", "direction", "control", "dose"]
    return pd.DataFrame(rows, columns=columns)


def analysed(ratings: pd.DataFrame, **settings) -> ConceptGrid:
    return ConceptGrid.of(ratings, PROMPTS, ("keen", "weary"), 15, **settings)


def said(grid: ConceptGrid) -> dict[str, str]:
    return {each.name: each.sentence for each in concept_findings(grid, grid.worth(200, 0))}


def test_findings_claim_what_controls_and_intervals_allow_and_no_more():
    strong = said(analysed(made_up(1.0)))
    assert "The effect exceeds its controls of both kinds." in strong["Push"]
    assert "19 random directions give" in strong["Push"] and "(p = 0.05)" in strong["Push"]
    weak = said(analysed(made_up(0.0)))
    assert "not shown to exceed its controls" in weak["Push"] and "would have stood out four times in five" in weak["Push"]
    assert "is not defined" in weak["System prompts"]
    below = said(analysed(made_up(-1.0)))  # as rare, and the wrong way
    assert "not shown to exceed" in below["Push"] and "(p = 0.05)" in below["Push"]
    few = said(analysed(made_up(1.0, n_controls=5)))
    assert "With fewer than 19 controls of a kind nothing is claimed" in few["Push"] and "exceeds" not in few["Push"]


def test_what_was_put_in_comes_out_task_by_task():
    grid = analysed(made_up(0.5, context=0.1, interaction=0.3))
    effects = grid.effects()
    truth = {
        "rating, rated under keen less weary": 0.1,
        "rating, done under keen less weary": 0.0,
        "slope, rated under keen less weary": 0.3,
        "slope, done under keen less weary": 0.0,
        "slope, rated under weary less neutral": 0.0,
    }
    for name, expected in truth.items():
        assert effects[name].low < expected < effects[name].high, name
        assert effects[name].high - effects[name].low < 0.1  # tasks differ by more; that is taken out
    assert grid.slope().value == pytest.approx(0.6, abs=0.02) and grid.slope().n == 24
    worth = grid.worth(500, 0)
    assert worth is not None and worth.low < 0.1 / 0.6 < worth.high
    depends = said(grid)["Does it depend"]
    assert depends.count("The interval contains 0") == 1 and "no dependence on persona is claimed" in depends


def test_controls_are_compared_at_the_doses_and_in_the_cells_that_they_have():
    grid = analysed(made_up(0.0, bend=4.0))  # a response that is not linear: 4 d^3
    controls = grid.controls("random")
    assert controls.tested == pytest.approx(4 * 0.4**2, abs=0.02)
    assert grid.slope().value == pytest.approx(4 * (0.4**4 + 0.2**4) / (0.4**2 + 0.2**2), abs=0.02)
    assert grid.slope().value < controls.tested - 0.05
    rank = (1 + (np.abs(controls.slopes) >= abs(controls.tested)).sum()) / 20
    assert len(controls.slopes) == 19 and controls.p_value == pytest.approx(rank)


def test_a_dose_that_is_not_answered_does_not_count_and_leaves_controls_nothing_to_be_compared_with():
    ratings = made_up(1.0)
    off = (ratings["dose"].abs() == 0.4) & (ratings["task_id"] > "t08")
    ratings = ratings.assign(mean=ratings["mean"].mask(off), outcome=ratings["outcome"].mask(off, "off_format"))
    grid = analysed(ratings)
    assert grid.doses == [-0.2, 0.2] and np.isnan(grid.controls("random").tested)
    push = said(grid)["Push"]
    assert "where controls were asked, the model is not coherent. So nothing is claimed" in push and "exceeds" not in push


def test_texts_that_make_no_sense_leave_a_dose_out():
    dose = pd.DataFrame({"direction": CONCEPT, "dose": DOSES, "log_likelihood": -2.0, "repetition": 0.1, "empty": 0.0})
    grid = analysed(made_up(1.0), coherence=dose.assign(makes_sense=dose["dose"] != 0.2))
    assert grid.doses == [-0.4, -0.2]
    assert "coherent from -0.4 to +0" in said(grid)["Coherence"]


def test_flipped_directions_are_those_of_differences_of_which_half_are_flipped(tmp_path):
    random = np.random.default_rng(0)
    shared = 5 * np.eye(40)[3]
    below, noise = random.normal(size=(12, 40)), random.normal(size=(12, 40))
    stores = [make_store(tmp_path / f"{k}.h5", rows) for k, rows in enumerate((below + shared + noise, below))]
    made = flipped_directions(*stores, *AT, 4, seed=7)
    differences = stores[0].load(*AT, stores[0].task_ids).astype(float) - stores[1].load(*AT, stores[0].task_ids)
    for number, each in enumerate(made):
        flips = np.random.default_rng([7, number]).permutation([1, -1] * 6)
        total = sum(sign * difference for sign, difference in zip(flips, differences, strict=True))
        np.testing.assert_allclose(each.vector, total / np.linalg.norm(total), atol=1e-6)
        assert each.provenance["length"] == pytest.approx(np.linalg.norm(total) / 12)
    concept = paired_difference(*stores, *AT)
    assert concept.vector[3] > 0.9 and max(abs(concept.cosine(each)) for each in made) < 0.5  # what is shared cancels
    assert len({each.fingerprint for each in made}) == 4
    assert made[2].fingerprint == flipped_directions(*stores, *AT, 3, seed=7)[2].fingerprint
    assert flipped_directions(*stores, *AT, 0) == []
    with pytest.raises(ValueError, match="of 1 task; expected at least 2"):
        flipped_directions(*stores, *AT, 2, tasks=stores[0].task_ids[:1])


SMALL = {
    "per_origin": 3,
    "train_share": 0.6,
    "prompts": {
        "keen": "You love your work and look forward to whatever you are asked to do next.",
        "weary": "You are tired of your work and of whatever you are asked to do next.",
    },
    "doses": (-0.2, 0.2),
    "max_new_tokens": 8,
    "n_random": 2,
    "n_flipped": 2,
    "texts": 1,
    "text_tokens": 6,
}


@pytest.mark.slow  # the page of docs runs it too
def test_the_grid_runs_on_the_real_model_and_a_second_run_asks_nothing(counted, tmp_path):
    settings = ConceptSteeringSettings(out=tmp_path / "c", **SMALL)
    first = concept_steering.run(settings)
    counted.clear()
    second = concept_steering.run(settings)
    assert not counted and second.findings == first.findings
    assert [each.name for each in first.findings] == ["Push", "System prompts", "Does it depend", "Coherence", "Completions"]
    assert "nothing is claimed about exceeding them" in first.findings[0].sentence
    found = json.loads((tmp_path / "c/summary.json").read_text())["results"]
    assert len(found["slopes"]) == len(found["cells"]) == 4 and set(found["controls"]) == {"random", "flipped"}
    units = pd.read_parquet(tmp_path / "c/tables/units.parquet")
    n = units["task_id"].nunique()
    assert units.groupby(["direction", "dose"]).size().to_dict() == {
        **{(CONCEPT, dose): 4 * n for dose in (-0.2, 0.0, 0.2)},
        **{(f"{kind}_{k}", dose): 2 * n for kind in ("random", "flipped") for k in (1, 2) for dose in (-0.2, 0.2)},
    }
    vector = load(tmp_path / "c/directions/concept_L15.safetensors")
    assert vector.calibration["positions"] == ["all"] and vector.direction.provenance["method"] == "paired_difference"
    assert set(vector.direction.provenance["tasks"]).isdisjoint(units["task_id"])
    for figure in ("concept_slopes", "concept_doses", "concept_effects", "concept_coherence"):
        assert (tmp_path / f"c/figures/{figure}.png").stat().st_size > 5000
    for table in ("completions", "ratings", "cells", "slopes", "effects", "controls", "texts"):
        assert len(pd.read_parquet(tmp_path / f"c/tables/{table}.parquet"))


def test_every_task_has_controls_in_one_cell_a_persona_and_a_context():
    from store import Message, Question

    tasks = [f"t{number}" for number in range(6)]
    asked = [
        concept_steering._Asked(Question((Message("user", "x"),), measures={"task": task}), done, rated)
        for done in PROMPTS
        for rated in PROMPTS
        for task in tasks
    ]
    chosen = in_latin_square(asked, tasks, PROMPTS)
    table = pd.DataFrame([(each.question.measures["task"], each.done_under, each.rated_under) for each in chosen])
    assert (table.groupby([0, 1]).size() == 1).all() and (table.groupby([0, 2]).size() == 1).all()
    assert (table.groupby([1, 2]).size() == 2).all() and len(table) == 18


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"concept": ("keen", "sad")}, r"concept in .* expected two different names of prompts, of neutral, keen, weary"),
        ({"concept": ("keen", "keen")}, "expected two different names"),
        ({"prompts": {"keen": "Be glad."}}, "two system prompts or more"),
        ({"doses": (0.2, 0.4)}, "each dose with its opposite"),
        ({"position": "task"}, "one row a task"),
    ],
)
def test_wrong_settings_are_named(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ConceptSteeringSettings.of(wrong)
