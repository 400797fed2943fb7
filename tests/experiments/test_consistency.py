"""template_sensitivity, seed_sensitivity, sysprompt_variation: simulated answers give back what was put in."""

import numpy as np
import pandas as pd
import pytest

from elicit import LeastSquares
from elicit.consistency import contents, correlations, mean_agreement, needed, of_mean, reliability
from experiments import seed_sensitivity, sysprompt_variation, template_sensitivity
from experiments.seed_sensitivity import SeedSensitivitySettings, between_seeds, draws_table, shares_of_pairs
from experiments.sysprompt_variation import SyspromptVariationSettings, origin_shifts
from experiments.system_prompts import read_system_prompts
from experiments.template_sensitivity import TemplateSensitivitySettings, _axes_table

PAIRS = [(f"a{n}", f"b{n}") for n in range(300)]


def comparisons(content: np.ndarray, bias: float = 0.4, on_format: float = 1.0) -> pd.DataFrame:
    """Both orders of every pair, with a position bias; the last pairs are off format."""
    rows = []
    for number, ((first, second), value) in enumerate(zip(PAIRS, content, strict=True)):
        usable = number < on_format * len(PAIRS)
        for a, b, sign in ((first, second, 1), (second, first, -1)):
            logit = sign * value + bias if usable else np.nan
            rows.append((a, b, "t", 0, "chose" if usable else "off_format", 1.0, None, logit, 1 / (1 + np.exp(-logit))))
    columns = ["first", "second", "template", "draw", "outcome", "mass", "refusal", "logit", "p_first"]
    return pd.DataFrame(rows, columns=columns)


def test_agreement_and_reliability_are_those_of_the_shared_part():
    random = np.random.default_rng(0)
    shared = random.normal(size=300)
    found = contents({str(n): comparisons(shared + random.normal(size=300), bias=n) for n in range(6)})
    agreement, single = mean_agreement(found), reliability(found)
    assert agreement.low < 0.5 < agreement.high and single.low < 0.5 < single.high
    assert agreement.value == pytest.approx(single.value, abs=0.03)
    assert of_mean(0.5, 6) == pytest.approx(6 / 7) and needed(0.5, 0.8) == pytest.approx(4)
    assert of_mean(0.5, needed(0.5, 0.93)) == pytest.approx(0.93) and needed(-0.1) == np.inf
    twice = contents({"one": comparisons(shared), "two": comparisons(2 * shared)})
    assert correlations(twice.to_numpy())[0, 1] == pytest.approx(1)
    assert reliability(twice).value == pytest.approx(2 / 2.5)  # another scale counts against it: 2 ab / (a2 + b2)


def test_conditions_off_format_are_left_out_and_the_pairs_of_the_others_kept():
    shared = np.linspace(-1, 1, 300)
    found = contents(
        {"good": comparisons(shared), "fair": comparisons(shared, on_format=0.9), "bad": comparisons(shared, on_format=0.5)}
    )
    assert list(found) == ["good", "fair"] and len(found) == 270
    assert contents({"bad": comparisons(shared, on_format=0.5)}).empty


def test_the_axis_that_matters_is_found_and_the_others_are_not():
    random = np.random.default_rng(1)
    by_label = {"AB": random.normal(size=300), "12": random.normal(size=300)}
    names = [f"{phrasing}{labels}" for phrasing in ("would_rather", "enjoy_more", "pick_one") for labels in ("", ",labels=12")]
    parts = {name: comparisons(by_label["12" if "12" in name else "AB"] + 0.3 * random.normal(size=300)) for name in names}
    axes = _axes_table(contents(parts), ["phrasing", "labels"]).set_index("axis")
    assert axes.loc["labels", "low"] > 0.5 and axes.loc["labels", "different_level"] == pytest.approx(0, abs=0.1)
    assert axes.loc["phrasing", "cost"] < 0  # templates of one phrasing here differ in labels


def test_draws_of_known_probabilities_agree_as_they_should():
    random = np.random.default_rng(2)
    content = random.normal(0, 1.5, 300)
    exact = comparisons(content, bias=0)

    def drawn() -> pd.DataFrame:
        return exact.assign(p_first=(random.random(len(exact)) < exact["p_first"]).astype(float))

    shares = shares_of_pairs({"exact": exact} | {f"seed {n}": drawn() for n in range(6)})
    p = 1 / (1 + np.exp(-content))
    signal, noise = ((p - 0.5) ** 2).mean(), (p * (1 - p)).mean() / 2
    agreement, draws = between_seeds(shares), draws_table(shares)
    assert agreement.low < signal / (signal + noise) < agreement.high
    expected = np.sqrt(signal / (signal + noise / draws["draws"]))
    assert draws["with_exact"].to_numpy() == pytest.approx(expected.to_numpy(), abs=0.06)


def test_a_missing_draw_costs_its_seed_and_not_the_pair():
    exact = comparisons(np.linspace(-2, 2, 300))
    holed = exact.assign(p_first=exact["p_first"].where(exact.index > 1))
    shares = shares_of_pairs({"exact": exact, "seed 0": exact, "seed 1": holed, "seed 2": exact})
    assert len(shares) == 300 and shares["seed 1"].isna().sum() == 1
    assert between_seeds(shares).value == pytest.approx(1)


def test_a_shift_of_one_origin_is_found():
    random = np.random.default_rng(3)
    content = random.normal(0, 0.2, 300)
    origins = {task: "a" if task.startswith("a") else "b" for pair in PAIRS for task in pair}
    fits = {
        "none": LeastSquares(resamples=50).fit(comparisons(content)),
        "keen": LeastSquares(resamples=50).fit(comparisons(content + 0.6)),
    }
    shifts = origin_shifts(fits, origins).set_index("origin")
    assert shifts.loc["a", "shift"] == pytest.approx(0.3) and shifts.loc["b", "shift"] == pytest.approx(-0.3)


def test_system_prompts_are_read_and_bad_files_named(tmp_path):
    shipped = read_system_prompts()
    assert len(shipped) == 12 and len({prompt.category for prompt in shipped}) == 6
    for content, message in (
        ("keen: glad", r"keen is 'glad'; expected categories"),
        ("keen: {a: ''}", r"keen\.a is ''; expected the text"),
        ("keen: {a: x}\nweary: {a: y}", r"the names \['a'\] twice"),
        ("keen: {none: x}", "are taken"),
    ):
        (tmp_path / "p.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            read_system_prompts(tmp_path / "p.yaml")
    with pytest.raises(ValueError, match="no file of system prompts"):
        read_system_prompts(tmp_path / "q.yaml")


def test_template_sensitivity_runs_on_the_real_model_and_repeats_for_nothing(counted, tmp_path):
    settings = TemplateSensitivitySettings(
        out=tmp_path / "t", per_origin=1, degree=2, n_templates=4, axes=("phrasing", "language", "place")
    )
    result = template_sensitivity.run(settings)
    assert "language fr" in result.screen and "reliability" in result.screen
    levels = pd.read_parquet(tmp_path / "t/tables/levels.parquet")
    assert set(levels.loc[~levels["kept"], "level"]) == {"fr", "es"}  # this model answers in English only
    assert (tmp_path / "t/figures/template_agreement.png").stat().st_size > 5000
    counted.clear()
    assert template_sensitivity.run(settings).summary == result.summary and not counted


@pytest.mark.slow
def test_seed_sensitivity_runs_on_the_real_model_and_repeats_for_nothing(counted, tmp_path):
    settings = SeedSensitivitySettings(out=tmp_path / "s", per_origin=2, degree=3, n_seeds=3, n_designs=2)
    result = seed_sensitivity.run(settings)
    assert [finding.name for finding in result.findings] == ["Sampling seeds", "Draws", "Exact and sampled", "Design seeds"]
    gap = result.summary["calibration_gap"]
    assert abs(gap.value) < 4 * gap.se  # the sampler and the exact reading are of one distribution
    counted.clear()
    seed_sensitivity.run(settings)
    assert not counted


@pytest.mark.slow
def test_sysprompt_variation_runs_on_the_real_model_and_repeats_for_nothing(counted, tmp_path):
    (tmp_path / "p.yaml").write_text("plain: {bot: You are a bot.}\nkeen: {glad: You love numbers., merry: You love sums.}")
    settings = SyspromptVariationSettings(out=tmp_path / "v", per_origin=1, degree=2, prompts=tmp_path / "p.yaml")
    result = sysprompt_variation.run(settings)
    assert "Under bot, which say nothing of preferences" in " ".join(result.screen.split())
    table = pd.read_parquet(tmp_path / "v/tables/prompts.parquet").set_index("prompt")
    assert list(table.index) == ["default", "none", "bot", "glad", "merry"] and np.isnan(table.loc["none", "agreement"])
    counted.clear()
    sysprompt_variation.run(settings)
    assert not counted
    with pytest.raises(ValueError, match="control category 'plain'; expected one of"):
        (tmp_path / "q.yaml").write_text("keen: {glad: You love numbers.}")
        sysprompt_variation.run(settings.model_copy(update={"prompts": tmp_path / "q.yaml"}))
