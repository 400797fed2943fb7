"""Studies on the frozen table and on simulated judges, and active learning on the embedded model."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from elicit import LeastSquares, all_pairs, choice, regular_pairs, sample_tasks
from elicit.tasks import builtin_tasks
from experiments import active_learning, calibration, ranking_methods
from experiments.active_learning import ActiveLearningSettings
from experiments.calibration import CalibrationSettings, coverage_table, design_table, drawn
from experiments.dry_run import dry_run
from experiments.frozen import FreezeSettings, FrozenTable, freeze
from experiments.ranking import FAVOURITE, METHODS, Judge, Path, Simulation, follow
from experiments.ranking_methods import RankingMethodsSettings, favourite_table, frozen_judge

STUDIES = {calibration: CalibrationSettings, ranking_methods: RankingMethodsSettings}


@pytest.fixture(scope="module")
def frozen() -> FrozenTable:
    return FrozenTable.read()


# ---- the frozen table


def test_the_shipped_table_holds_every_pair_of_its_tasks_in_both_orders(frozen):
    ids = [task.id for task in sample_tasks(builtin_tasks(), FreezeSettings().per_origin, FreezeSettings().seed)]
    assert sorted(ids) == frozen.task_ids and len(ids) == 60
    asked = set(zip(frozen.comparisons["first"], frozen.comparisons["second"], strict=True))
    assert asked == {order for one, other in all_pairs(ids) for order in ((one, other), (other, one))}
    assert frozen.provenance["command"] == "penchant freeze" and frozen.provenance["name"] == "smollm2-135m"


def test_the_shipped_table_is_what_the_embedded_model_still_answers(frozen, embedded):
    tasks = sample_tasks(builtin_tasks(), FreezeSettings().per_origin, FreezeSettings().seed)
    pairs = [(tasks[0].id, tasks[1].id), (tasks[7].id, tasks[30].id)]
    asked = choice.questions(tasks, pairs, wording=frozen.provenance["wording"])
    answers = choice.comparisons(asked, embedded.score(asked))
    assert embedded.fingerprint == frozen.provenance["fingerprint"]
    np.testing.assert_allclose(answers["logit"], frozen.answers(pairs)["logit"], atol=2e-3)


def test_freezing_writes_a_table_that_reads_back_with_the_command_that_makes_it_again(tmp_path, counted):
    settings = FreezeSettings(per_origin=1, origins=("math", "chat", "harmful"), out=tmp_path, table=tmp_path / "t.parquet")
    made = freeze(settings)
    read = FrozenTable.read(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(read.comparisons, made.comparisons[read.comparisons.columns], check_dtype=False)
    assert read.provenance["command"] == "penchant freeze --origins math chat harmful --per-origin 1"
    asked = len(counted)
    freeze(settings)
    assert len(counted) == asked, "a second time every answer is in the log"


def test_files_that_are_no_frozen_table_are_refused_with_the_way_out(tmp_path, frozen):
    with pytest.raises(ValueError, match=r"no frozen table .*penchant freeze --table"):
        FrozenTable.read(tmp_path / "none.parquet")
    (tmp_path / "text.parquet").write_text("no parquet at all")
    with pytest.raises(ValueError, match="not a Parquet file"):
        FrozenTable.read(tmp_path / "text.parquet")
    frozen.comparisons.to_parquet(tmp_path / "plain.parquet")
    with pytest.raises(ValueError, match="not a frozen table"):
        FrozenTable.read(tmp_path / "plain.parquet")
    FrozenTable(frozen.comparisons[:-1], frozen.origins, frozen.provenance).write(tmp_path / "short.parquet")
    with pytest.raises(ValueError, match="3539 answers about 60 tasks; expected all pairs"):
        FrozenTable.read(tmp_path / "short.parquet")


def test_a_frozen_table_is_plain_parquet(tmp_path, frozen):
    frozen.write(tmp_path / "t.parquet")
    stored = pq.read_table(tmp_path / "t.parquet")
    assert isinstance(stored, pa.Table) and json.loads(stored.schema.metadata[b"penchant_frozen_table"])["origins"]


# ---- calibration


def test_default_intervals_cover_the_whole_tables_fit_and_probabilities_do_not_get_hessian_errors(frozen):
    table = coverage_table(frozen, CalibrationSettings(degrees=(12,), n_resamples=16, n_jobs=1))
    coverage = table.set_index("way")["coverage"]
    defaults = coverage[[way for way in coverage.index if "default" in way]]
    assert len(defaults) == 2 and defaults.between(0.88, 0.99).all()


def test_drawn_choices_have_the_exact_probabilities_as_their_mean(frozen):
    random = np.random.default_rng(0)
    draws = np.mean([drawn(frozen.comparisons, random)["p_first"] for _ in range(60)], axis=0)
    off = (draws - frozen.comparisons["p_first"]) / np.sqrt(
        frozen.comparisons["p_first"] * (1 - frozen.comparisons["p_first"]) / 60
    )
    assert abs(float(off.mean())) < 0.1 and 0.9 < float(off.std()) < 1.1


def test_designs_get_nearer_the_whole_table_with_every_batch(frozen):
    table = design_table(frozen, CalibrationSettings(n_seeds=3, n_jobs=1))
    for _, part in table.groupby("design"):
        assert part["tau"].iloc[-1] > 0.9 > part["tau"].iloc[0]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.__name__)
def test_studies_ask_no_model_so_there_is_nothing_to_plan(study, tmp_path):
    with pytest.raises(ValueError, match="asks no model anything"):
        dry_run(study, STUDIES[study](out=tmp_path))


@pytest.mark.slow
def test_a_study_writes_its_tables_figures_and_summary(tmp_path):
    settings = CalibrationSettings(degrees=(6,), n_resamples=10, n_nulls=50, n_seeds=3, n_jobs=1, out=tmp_path)
    result = calibration.run(settings)
    assert [finding.name for finding in result.findings] == ["Coverage", "False positives", "Designs"]
    rates = pd.read_parquet(tmp_path / "tables" / "false_positives.parquet")
    assert (rates["rate"] < 0.25).all() and len(rates) == 7
    assert "What was asked" not in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["model"]["name"] == "smollm2-135m"


# ---- ranking methods


def without_noise(n: int = 24) -> Judge:
    truth = np.random.default_rng(0).normal(size=n)
    return Judge("sure", truth, 1000 * (truth[:, None] - truth[None, :]))


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_the_order_of_a_judge_without_noise(method, exact):
    path = follow(METHODS[method](without_noise(), exact, np.random.default_rng(1)), 40, enough=0.999)
    least = 0.85 if method in ("Elo", "OpenSkill") else 0.99
    assert max(path.tau) > least


def test_comparisons_are_counted_as_prompts():
    for exact, cost in ((False, 1), (True, 2)):
        method = METHODS["random"](without_noise(), exact, np.random.default_rng(0))
        method.step()
        assert method.spent == 12 * cost


def test_one_order_alone_shows_every_task_first_as_often_as_second_within_one_in_a_batch():
    method = METHODS["random"](without_noise(), False, np.random.default_rng(0))
    for _ in range(8):
        method.step()
    ahead = np.array(list(method._ahead.values()))
    assert ahead.sum() == 0 and np.abs(ahead).max() <= 2


def test_a_bias_of_its_own_for_every_pair_is_symmetric_and_content_is_not():
    judge = Simulation("x", sd=1, bias=0.5, bias_sd=2, own_sd=0.5).judge(30, np.random.default_rng(0))
    pairs = np.argwhere(np.triu(np.ones((30, 30)), 1))
    content = judge.content(pairs)
    np.testing.assert_allclose(content, -judge.content(pairs[:, ::-1]))
    left = content - (judge.truth[pairs[:, 0]] - judge.truth[pairs[:, 1]])
    position = (judge.logits + judge.logits.T)[pairs[:, 0], pairs[:, 1]] / 2
    assert left.std() == pytest.approx(0.5, rel=0.1) and position.std() == pytest.approx(2, rel=0.1)


def test_a_path_is_read_between_its_batches():
    path = Path([1.0, 2.0, 4.0], [0.2, 0.6, 0.9])
    assert path.reaches(0.75) == pytest.approx(3.0) and np.isnan(path.reaches(0.95)) and path.at(1.5) == pytest.approx(0.4)


def test_the_favourite_is_compared_with_the_best_other_paired_by_seed():
    random = np.random.default_rng(0)
    rows = [
        {"answers": "a", "judge": "j", "method": method, "seed": seed, "per_task": 2, "tau": level + 0.01 * random.normal()}
        for method, level in ((FAVOURITE, 0.8), ("random", 0.5), ("brackets", 0.7))
        for seed in range(10)
    ]
    (row,) = favourite_table(pd.DataFrame(rows)).to_dict("records")
    assert row["best_other"] == "brackets" and row["low"] < 0.1 < row["high"] and row["low"] > 0.05


def test_the_frozen_judge_answers_as_the_table_does(frozen):
    judge = frozen_judge(frozen)
    pairs = [(1, 4), (7, 2)]
    answers = frozen.answers([(frozen.task_ids[one], frozen.task_ids[other]) for one, other in pairs])
    np.testing.assert_allclose(judge.logits[[1, 4, 7, 2], [4, 1, 2, 7]], answers["logit"])
    np.testing.assert_allclose(judge.truth, LeastSquares(errors="none").fit(frozen.comparisons).values)


@pytest.mark.slow
def test_ranking_methods_give_the_same_numbers_on_any_number_of_processes(tmp_path):
    small = {"n_tasks": 12, "n_seeds": 3, "per_task": 3.0, "sizes": (10, 14), "size_seeds": 3, "size_budget": 4.0}
    tables = []
    for jobs in (1, 2):
        ranking_methods.run(RankingMethodsSettings(**small, n_jobs=jobs, out=tmp_path / str(jobs)))
        tables.append(pd.read_parquet(tmp_path / str(jobs) / "tables" / "convergence.parquet"))
    pd.testing.assert_frame_equal(*tables)


# ---- active learning


def test_active_learning_asks_nothing_twice_and_goes_on_where_it_stopped(tmp_path, counted):
    small = {"per_origin": 3, "origins": ("math", "chat", "creative"), "rank_correlation": None, "out": tmp_path}
    first = active_learning.run(ActiveLearningSettings(**small, budget=18))
    asked = len(counted)
    assert "the budget of 18 pairs is spent" in first.findings[0].sentence
    active_learning.run(ActiveLearningSettings(**small, budget=18))
    assert len(counted) == asked
    longer = active_learning.run(ActiveLearningSettings(**small, budget=28))
    assert len(counted) > asked
    before, after = (pd.DataFrame(each.summary["history"]) for each in (first, longer))
    pd.testing.assert_frame_equal(after.head(len(before)), before)
    top, bottom = (pd.read_parquet(tmp_path / "tables" / f"{name}.parquet") for name in ("top", "bottom"))
    assert top["value"].is_monotonic_decreasing and bottom["value"].is_monotonic_increasing and top["text"].str.len().min() > 10
    held = pd.read_parquet(tmp_path / "tables" / "held_out.parquet")
    fitted = pd.read_parquet(tmp_path / "tables" / "comparisons.parquet")
    apart = [{frozenset(pair) for pair in zip(each["first"], each["second"], strict=True)} for each in (held, fitted)]
    assert apart[0] and not apart[0] & apart[1]


def test_too_few_tasks_for_active_learning_are_an_error_before_the_model_is_loaded(tmp_path):
    settings = ActiveLearningSettings(per_origin=1, origins=("math", "chat"), out=tmp_path, model="no/such-model")
    with pytest.raises(ValueError, match="2 tasks"):
        active_learning.run(settings)


def test_regular_designs_of_the_study_need_a_possible_degree(tmp_path):
    with pytest.raises(ValueError, match="Degree 60 for 60 tasks"):
        calibration.run(CalibrationSettings(degrees=(60,), out=tmp_path))
    assert len(regular_pairs(FrozenTable.read().task_ids, 4)) == 120
