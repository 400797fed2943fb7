"""What models say of tasks, do and refuse: experiments give back effects that were put in, and repeat for nothing."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from elicit.reliability import agreement
from experiments import opt_out, refusal_correlation, scale_discrimination, self_vs_cross, sysprompt_grid
from experiments.crossed import Crossed
from experiments.opt_out import OptOutSettings
from experiments.refusal_correlation import RefusalCorrelationSettings, _kappa_of, _relation_finding
from experiments.scale_discrimination import ScaleDiscriminationSettings, consistency, divergence
from experiments.self_vs_cross import SelfVsCrossSettings, self_effects
from experiments.sysprompt_grid import SyspromptGridSettings, effects_of


def repeats(module, settings, counted) -> dict:
    """Run twice: the second run asks nothing and says the same."""
    first = module.run(settings)
    counted.clear()
    second = module.run(settings)
    assert not counted and second.findings == first.findings
    assert (settings.out / "report.html").exists()
    return json.loads((settings.out / "summary.json").read_text())["results"]


# ---- scales


def test_divergence_is_the_mutual_information_of_task_and_answer():
    apart = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert divergence(apart) == pytest.approx(np.log(2)) and divergence(np.full((5, 3), 1 / 3)) == 0
    random = np.random.default_rng(0).dirichlet(np.ones(4), size=10)
    joint = random / 10
    expected = (joint * np.log(joint / (joint.sum(0) * joint.sum(1, keepdims=True)))).sum()
    assert divergence(random) == pytest.approx(expected)


def test_icc_is_that_of_the_published_example():
    # Shrout & Fleiss (1979), table 2: six targets, four judges; ICC(3,1) = .71, the same statistic as ICC(C,1).
    ratings = np.array([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]], dtype=float)
    assert consistency(ratings) == pytest.approx(0.71, abs=0.005)
    assert consistency(ratings + np.array([0, 5, -3, 1])) == pytest.approx(float(consistency(ratings)))
    assert np.isnan(consistency(0.3 + 1e-12 * ratings)), "rounding was taken for differences between tasks"


def test_scale_discrimination_runs_on_the_real_model(counted, tmp_path):
    scales = ("yes_somewhat_no", "likert_5", "adjectives")
    settings = ScaleDiscriminationSettings(out=tmp_path / "s", per_origin=2, scales=scales, n_variants=2, variants=("typos",))
    found = repeats(scale_discrimination, settings, counted)
    assert {row["scale"] for row in found["scales"]} == set(scales)
    assert "adjectives" in (tmp_path / "s/report.html").read_text()


# ---- crossed ratings


def ratings(values: np.ndarray, names: list[str]) -> pd.DataFrame:
    """As from `rating.ratings`, on likert_5 from 1 to 5; a value is a share of its length."""
    rows = [
        (f"t{task}", "likert_5", 0, 1 + 4 * values[task, i, j], row, column)
        for task in range(len(values))
        for i, row in enumerate(names)
        for j, column in enumerate(names)
    ]
    return pd.DataFrame(rows, columns=["task_id", "scale", "draw", "mean", "rows", "columns"])


def test_complete_cases_are_crossed_and_scales_off_format_left_out():
    names = ["one", "two"]
    values = np.random.default_rng(0).uniform(0.2, 0.8, size=(10, 2, 2))
    table = ratings(values, names)
    holed = table.assign(mean=table["mean"].where(table["task_id"] != "t3"))
    off = table.assign(scale="stated_10", mean=table["mean"].where(table["columns"] == "one"))
    crossed = Crossed.of(pd.concat([holed, off]), ("rows", "columns"), names)
    assert crossed.values == pytest.approx(np.delete(values, 3, axis=0)) and crossed.dropped == ["stated_10"]
    assert crossed.cells().set_index(["rows", "columns"]).loc[("one", "two"), "rating"] == pytest.approx(
        np.delete(values, 3, axis=0)[:, 0, 1].mean()
    )
    with pytest.raises(ValueError, match=r"0 of 10 tasks are rated on format .* expected 6 \(by scale: stated_10 0\)"):
        Crossed.of(off, ("rows", "columns"), names)


def test_effects_of_doing_and_rating_are_told_apart():
    settings = SyspromptGridSettings(prompts={"plain": "x", "keen": "y"})
    random = np.random.default_rng(1)
    values = 0.5 + 0.01 * random.normal(size=(40, 2, 2)) + random.normal(size=(40, 1, 1))
    values[:, 1, :] += 0.05
    values[:, :, 1] += 0.10
    values[:, 1, 1] += 0.03
    effects = effects_of(values, settings)
    for name, expected in (("done keen", 0.065), ("rated keen", 0.115), ("same keen", 0.03)):
        assert effects[name].low < expected < effects[name].high
        assert effects[name].high - effects[name].low < 0.02  # tasks differ by far more; that is taken out


def test_generous_raters_and_good_writers_are_no_self_preference():
    random = np.random.default_rng(2)
    values = 0.5 + 0.01 * random.normal(size=(50, 3, 3)) + np.array([0.0, 0.2, 0.3])[:, None] + np.array([0.1, 0.4, 0.0])
    names = ["a", "b", "c"]
    assert not self_effects(values, names)["all"].differs_from(0)
    values[:, [0, 1, 2], [0, 1, 2]] += 0.05
    effects = self_effects(values, names)
    assert all(effects[name].low < 0.05 < effects[name].high for name in [*names, "all"])


def test_sysprompt_grid_runs_on_the_real_model(counted, tmp_path):
    settings = SyspromptGridSettings(
        out=tmp_path / "g",
        per_origin=2,
        scales=("yes_somewhat_no",),
        max_new_tokens=12,
        prompts={"plain": "Be.", "keen": "Be glad."},
    )
    found = repeats(sysprompt_grid, settings, counted)
    assert {(row["done_under"], row["rated_under"]) for row in found["cells"]} == {
        (done, rated) for done in settings.prompts for rated in settings.prompts
    }
    with pytest.raises(ValueError, match="two system prompts or more"):
        SyspromptGridSettings(prompts={"one": "x"})


@pytest.mark.slow
def test_self_vs_cross_runs_on_steered_views_of_the_real_model(counted, tmp_path):
    settings = SelfVsCrossSettings(
        out=tmp_path / "c", per_origin=2, doses=(0.1,), degree=3, scales=("yes_somewhat_no",), max_new_tokens=12
    )
    found = repeats(self_vs_cross, settings, counted)
    assert set(found["own_work"]) == {"base", "dose +0.1", "all"}
    completions = pd.read_parquet(tmp_path / "c/tables/completions.parquet")
    assert completions["writer"].nunique() == 2
    with pytest.raises(ValueError, match="one respondent; expected two or more"):
        self_vs_cross.run(settings.model_copy(update={"doses": ()}))


# ---- opting out and refusing


@pytest.mark.slow
def test_opt_out_runs_on_the_real_model_beside_controls(counted, tmp_path):
    settings = OptOutSettings(out=tmp_path / "o", per_origin=1, wordings=("would_rather",))
    found = repeats(opt_out, settings, counted)
    assert [row["origin"] for row in found["origins"]][:1] == ["all but controls"] and found["origins"][-1][
        "origin"
    ] == "calibration"
    assert len(found["nulls"]) == 5


def test_kappa_is_that_of_scikit_learn():
    random = np.random.default_rng(0)
    first, second = random.random(60) < 0.3, random.random(60) < 0.4
    sums = np.array([(first & second).sum(), first.sum(), second.sum(), 60], dtype=float)
    assert _kappa_of(sums) == pytest.approx(cohen_kappa_score(first, second))


def test_refusal_correlation_runs_on_the_real_model(counted, tmp_path):
    settings = RefusalCorrelationSettings(out=tmp_path / "r", per_origin=1, degree=2, n_draws=1, max_new_tokens=12)
    found = repeats(refusal_correlation, settings, counted)
    assert set(found["correlations"]) == {
        f"{detector} / {measure}" for detector in ("phrases", "judge") for measure in ("utility", "yes_somewhat_no")
    }
    rates = pd.read_parquet(tmp_path / "r/tables/rates.parquet")
    assert {"all but controls", "calibration", "harmful"} <= set(rates["origin"])


def test_next_to_no_refusals_are_related_to_nothing_and_several_relations_are_corrected_for():
    ids = [f"t{number}" for number in range(24)]
    liked = pd.DataFrame({"task_id": ids, "value": np.linspace(-1, 1, 24)})

    def sentence(refused, n_relations=4, detector="phrases"):
        return _relation_finding(
            detector, "utility", agreement(liked.assign(value=refused), liked, resamples=200), n_relations
        ).sentence

    rare = np.zeros(24)
    rare[[3, 9]] = 0.5
    assert "differ in 2 of 24 tasks alone, so nothing is said" in sentence(rare)
    assert "are all alike" in sentence(np.zeros(24))
    strong = -np.linspace(-1, 1, 24) + 0.3 * np.random.default_rng(0).normal(size=24)
    assert "p = 0.00." in sentence(strong) and "mean probability" not in sentence(strong)
    weak = liked["value"].to_numpy() + np.random.default_rng(3).normal(size=24)
    alone, one_of_many = sentence(weak, 1, "judge"), sentence(weak, 40, "judge")
    assert alone.startswith("The mean probability of refusal by the judge")
    assert "none is claimed" in one_of_many and "none is claimed" not in alone
