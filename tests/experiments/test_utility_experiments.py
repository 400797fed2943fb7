"""transitivity, thurstone_regularisation, task_consistency: planted truths are found, and what was asked is not asked again."""

import itertools
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import special

from elicit import LeastSquares, Thurstone, ThurstoneSigmas, all_pairs, ask, choice, position_bias, rating
from elicit.templates import TemplateError
from experiments import task_consistency, thurstone_regularisation, transitivity
from experiments.active_learning import _extremes_finding
from experiments.dry_run import dry_run
from experiments.settings import ConfigError
from experiments.task_consistency import TaskConsistencySettings, extremeness
from experiments.thurstone_fits import AS_SHOWN, AVERAGED, among, fit_all, held_out_pairs, scores, split
from experiments.thurstone_regularisation import ThurstoneRegularisationSettings
from experiments.thurstone_tables import best_penalty, cross_chosen, mean_over_pairs
from experiments.transitivity import TransitivitySettings, explained_share, fitted_pairs, parts_of_answers
from store import MeasurementLog

TASKS = {"per_origin": 3, "origins": ("math", "chat", "creative")}
SCALES = ("likert_5", "stated_10")
LOG = "measurements.sqlite"


@pytest.fixture(scope="module")
def asked_once(tmp_path_factory, embedded):
    """A log with all pairs of nine tasks, and ratings of them, for all tests here."""
    path = tmp_path_factory.mktemp("asked") / LOG
    tasks = TransitivitySettings(**TASKS).load_tasks()
    asked = choice.questions(tasks, all_pairs([task.id for task in tasks]))
    with MeasurementLog(path) as log:
        ask([*asked, *(question for scale in SCALES for question in rating.questions(tasks, scale=scale))], embedded, log)
    return path


@pytest.fixture
def out(asked_once, tmp_path, counted):
    """A run directory that knows all answers, so that any forward pass is one too many."""
    (tmp_path / "run").mkdir()
    shutil.copy(asked_once, tmp_path / "run" / LOG)
    counted.clear()
    return tmp_path / "run"


def answers(content, position=0.0) -> pd.DataFrame:
    """Exact answers to pairs in both orders."""
    rows = []
    for pair, worth in content.items():
        bias = position[pair] if isinstance(position, dict) else position
        for (first, second), sign in ((pair, 1), (pair[::-1], -1)):
            logit = sign * worth + bias
            rows.append((first, second, "w", 0, "chose", 1.0, logit, special.expit(logit)))
    return pd.DataFrame(rows, columns=["first", "second", "template", "draw", "outcome", "mass", "logit", "p_first"])


def planted(n: int, spread: float, seed: int, bias: float = 0.0) -> tuple[pd.DataFrame, list[str]]:
    random = np.random.default_rng(seed)
    ids = [f"t{number:02}" for number in range(n)]
    worth = dict(zip(ids, random.normal(size=n), strict=True))
    pairs = list(itertools.combinations(ids, 2))
    content = {(a, b): worth[a] - worth[b] + spread * random.normal() for a, b in pairs}
    return answers(content, {pair: bias * random.normal() for pair in pairs}), ids


# ---- transitivity


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_the_share_that_utilities_explain_is_what_was_planted(spread):
    inside = 0
    for seed in range(8):
        table, ids = planted(24, spread, seed)
        fit = LeastSquares(errors="none").fit(table)
        share = explained_share(fitted_pairs(fit, table), fit)
        worth = np.random.default_rng(seed).normal(size=len(ids))
        differences = 2 * worth.var(ddof=1)  # mean square difference of two of these tasks
        true = differences / (differences + spread**2)
        inside += share.low <= true <= share.high or (spread == 0 and share.value == pytest.approx(1))
    assert inside >= 7


def test_the_parts_of_an_answer_add_up_to_its_mean_square():
    table, _ = planted(20, 0.7, 1, bias=0.9)
    fit = LeastSquares(errors="none").fit(table)
    pairs = fitted_pairs(fit, table)
    parts = parts_of_answers(pairs, explained_share(pairs, fit), position_bias(table))
    assert parts["mean_square"].sum() == pytest.approx((table["logit"] ** 2).mean())
    assert parts["share"].sum() == pytest.approx(1)
    position = pairs["position"]
    assert parts.set_index("part").loc["order, by pair", "mean_square"] == pytest.approx(position.var(), rel=0.01)


def test_transitivity_runs_on_what_the_real_model_answered(counted, out):
    settings = TransitivitySettings(out=out, **TASKS, simulations=20, resamples=50)
    plan = dry_run(transitivity, settings)
    assert plan.table["to_ask"].sum() == 0 and not plan.unfinished
    result = transitivity.run(settings)
    assert not counted
    for words in ("of 84 triads are hard cycles", "fair coins 25.0 %", "One utility a task explains", "With one order alone"):
        assert words in " ".join(result.screen.split())
    pairs = pd.read_parquet(out / "tables/pairs.parquet")
    assert len(pairs) == 36 and (pairs["content"] - pairs["fitted"]).equals(pairs["residual"])
    for name in ("transitivity", "transitivity_fit"):
        assert (out / f"figures/{name}.png").stat().st_size > 5000


def test_too_few_tasks_and_a_wrong_template_are_errors_before_anything_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="There are 2 tasks; triads need at least 4"):
        transitivity.run(TransitivitySettings(out=tmp_path / "t", per_origin=2, origins=("math",)))
    for module, settings in (
        (transitivity, TransitivitySettings(out=tmp_path / "t", wording="nope")),
        (thurstone_regularisation, ThurstoneRegularisationSettings(out=tmp_path / "t", wording="nope")),
        (task_consistency, TaskConsistencySettings(out=tmp_path / "t", templates=("nope", "pick_one"))),
    ):
        with pytest.raises(TemplateError, match="no phrasing 'nope'"):
            module.run(settings)
    assert not (tmp_path / "t").exists()


# ---- thurstone_regularisation


def test_designs_are_nested_and_share_no_pair_with_what_is_held_out():
    ids = [f"t{number:02}" for number in range(20)]
    designs, held = split(ids, 4, 0.3, seed=1)
    dense, sparse, out = ({frozenset(pair) for pair in pairs} for pairs in (designs["dense"], designs["sparse"], held))
    assert sparse < dense and not dense & out and len(dense | out) == 190
    assert len(sparse) == 40 and len(out) == round(0.3 * 150)
    with pytest.raises(ValueError, match=r"a share of 0\.1 of them is fewer than 20 to hold out"):
        split(ids, 4, 0.1, seed=1)


def test_the_largest_penalty_is_case_v_without_a_prior():
    table, ids = planted(12, 0.3, 2, bias=0.3)
    designs, held = split(ids, 4, 0.6, seed=0)
    test = held_out_pairs(table, held)
    fitted = among(table, designs["dense"])
    alike = ThurstoneSigmas(penalty=1e7, errors="none").fit(fitted)
    plain = Thurstone(prior_sd=None, errors="none").fit(fitted)
    for name, losses in scores(plain, test).items():
        assert scores(alike, test)[name] == pytest.approx(losses, abs=1e-5), name


def test_scores_are_cross_entropies_with_the_exact_probabilities():
    table, ids = planted(10, 0.0, 3, bias=0.5)
    _, held = split(ids, 2, 0.9, seed=0)
    test = held_out_pairs(table, held)
    shown = table.set_index(["first", "second"])["p_first"]
    as_named, swapped = (pd.MultiIndex.from_frame(test[ends]) for ends in (["task_1", "task_2"], ["task_2", "task_1"]))
    assert test["shown_first"].to_numpy() == pytest.approx(shown.loc[as_named].to_numpy())
    assert 1 - test["shown_second"].to_numpy() == pytest.approx(shown.loc[swapped].to_numpy())
    # Without a residual, utilities are exact: with orders averaged the loss is the entropy of what is measured.
    fit = LeastSquares(errors="none").fit(table)
    entropy = special.entr(test["averaged"]) + special.entr(1 - test["averaged"])
    assert scores(fit, test)[AVERAGED] == pytest.approx(entropy.to_numpy(), abs=1e-6)


def test_sigmas_that_are_planted_are_worth_a_small_penalty_and_none_are_worth_a_large_one():
    random, ids = np.random.default_rng(4), [f"t{number:02}" for number in range(16)]
    worth = dict(zip(ids, random.normal(0, 2, 16), strict=True))
    gains = {}
    for name, spread in (("planted", 1.0), ("none", 0.0)):
        sigma = dict(zip(ids, np.exp(spread * random.choice([-1, 1], size=16)), strict=True))
        p = {
            pair: special.ndtr((worth[pair[0]] - worth[pair[1]]) / np.hypot(sigma[pair[0]], sigma[pair[1]]))
            for pair in itertools.combinations(ids, 2)
        }
        table = answers({pair: special.logit(np.clip(each, 1e-6, 1 - 1e-6)) for pair, each in p.items()})
        designs, held = split(ids, 4, 0.5, seed=0)
        settings = ThurstoneRegularisationSettings(penalties=(0.01, 1.0, 1000.0), answers=("exact",))
        test = held_out_pairs(table, held)
        fits = [fit for fit in fit_all(table, designs, test, settings) if fit.condition == ("dense", "exact", False)]
        losses = np.stack([fit.losses[AS_SHOWN] for fit in fits if fit.model == "thurstone sigmas"])
        gains[name] = mean_over_pairs(losses[2] - losses[0], test)
        if name == "planted":
            assert best_penalty(settings.penalties, losses, 0)[0] == 0.01
    assert gains["planted"].low > 0.005 and abs(gains["none"].value) < 0.001


def test_a_penalty_chosen_on_other_pairs_does_not_profit_from_chance():
    random = np.random.default_rng(5)
    chosen, least = [], []
    for seed in range(300):
        losses = random.normal(size=(10, 60))  # all penalties are alike: any saving is chance
        chosen.append(cross_chosen(losses, seed).mean())
        least.append(losses.mean(axis=1).min())
    assert np.mean(chosen) == pytest.approx(0, abs=0.03) and np.mean(least) < -0.15


@pytest.mark.slow
def test_thurstone_regularisation_runs_on_what_the_real_model_answered(counted, out):
    settings = ThurstoneRegularisationSettings(out=out, **TASKS, penalties=(1.0, 100.0), degree=2, hold_out=0.75, repeats=1)
    assert not dry_run(thurstone_regularisation, settings).unfinished
    result = thurstone_regularisation.run(settings)
    assert not counted
    for words in ("Fitted to sampled", "Fitted to exact", "Largest sigma", "Position term", "is best"):
        assert words in result.screen
    curve = pd.read_parquet(out / "tables/curve.parquet")
    assert len(curve) == 2 * 2 * 2 * 2 * (2 + 2)  # designs, answers, position, scores; models
    assert (curve["log_loss_low"] <= curve["log_loss"]).all() and curve["largest_sigma"].max() < 7.4
    again = thurstone_regularisation.run(settings)
    assert [each.sentence for each in again.findings] == [each.sentence for each in result.findings]


def test_penalties_are_sorted_and_those_that_cannot_be_are_named():
    assert ThurstoneRegularisationSettings(penalties=(3.0, 1.0)).penalties == (1.0, 3.0)
    with pytest.raises(ConfigError, match="expected different numbers above 0"):
        ThurstoneRegularisationSettings.of({"penalties": [0.0, 1.0]})


# ---- task_consistency


def consistency_settings(out, **changes) -> TaskConsistencySettings:
    return TaskConsistencySettings(
        **{"out": out, "templates": ("would_rather",), "scales": SCALES, "degree": 4, "n_seeds": 6} | TASKS | changes
    )


def test_task_consistency_runs_on_what_the_real_model_answered(counted, out):
    settings = consistency_settings(out)
    plan = dry_run(task_consistency, settings)
    assert plan.table["to_ask"].sum() == 0 and not plan.unfinished
    result = task_consistency.run(settings)
    assert not counted
    for words in ("Consistency", "by chance", "Same tasks?", "two scales", "a template and a scale", "Extreme tasks"):
        assert words in " ".join(result.screen.split())
    tasks = pd.read_parquet(out / "tables/tasks.parquet")
    assert len(tasks) == 3 * 9 and tasks["consistency"].between(0, 1).all()
    assert task_consistency.run(settings).summary == result.summary


def test_the_mean_over_many_seeds_comes_near_the_exact_value(counted, out):
    task_consistency.run(consistency_settings(out, n_seeds=200))
    tasks = pd.read_parquet(out / "tables/tasks.parquet").set_index("condition")
    ratings, utilities = tasks.loc["likert_5"], tasks.loc["would_rather"]
    assert ratings["mean"].to_numpy() == pytest.approx(ratings["exact"].to_numpy(), abs=5 * ratings["sd"].max() / 200**0.5)
    assert np.corrcoef(utilities["mean"], utilities["exact"])[0, 1] > 0.8


def test_one_condition_is_an_error_that_names_the_way_out(tmp_path):
    with pytest.raises(ValueError, match="one condition; expected two or more: give several --templates, --scales or --models"):
        task_consistency.run(TaskConsistencySettings(out=tmp_path / "c", templates=("would_rather",), scales=()))


def test_models_are_conditions_of_their_own(counted, out):
    result = task_consistency.run(consistency_settings(out, models=("smollm2-135m", "again"), templates=()))
    assert "two models, asked alike" in " ".join(result.screen.split())
    conditions = pd.read_parquet(out / "tables/conditions.parquet")["condition"].tolist()
    assert conditions == [f"{model}: {scale}" for model in ("smollm2-135m", "again") for scale in SCALES]


def test_extremeness_is_the_distance_from_the_mean_in_standard_deviations():
    assert extremeness(pd.Series([-3.0, 0.0, 3.0])) == pytest.approx([1, 0, 1])


def test_a_text_that_is_cut_says_so_and_one_without_blanks_is_shown_too():
    texts = ["short", "x" * 51, "俳句" * 30]
    ends = pd.DataFrame({"task_id": list("abc"), "text": texts, "value": [2.0, 1.0, 0.0], "low": -1.0, "high": 3.0})
    rows = _extremes_finding(ends, ends).rows
    assert rows[0].endswith(" short") and rows[1].endswith(" " + "x" * 47 + "...") and "俳句" in rows[2] and "..." in rows[2]
