"""Runs side by side: the same is the same, a planted difference is found where it is, and nothing is found where nothing is."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments import compare
from experiments.cli import main
from experiments.side_by_side import (
    LEVEL,
    agree,
    natural_scale,
    on_one_scale,
    origin_differences,
    same_choices,
    smallest_origin_difference,
    task_differences,
)
from store import write_labels
from store.estimates import POWER_FACTOR

ORIGINS = {
    f"{origin}_{number:02d}": origin for origin in ("art", "code", "law", "math", "news", "play") for number in range(12)
}
TASKS = list(ORIGINS)


def labels_of(values, se=0.1, *, target="utility", method="least squares", tasks=TASKS):
    values = np.asarray(values, dtype=float)
    margin = 1.959964 * np.broadcast_to(se, values.shape)
    return pd.DataFrame(
        {"task_id": tasks, "target": target, "value": values, "se": se, "low": values - margin, "high": values + margin}
        | {"n": 8, "method": method}
    )


def folder(path, labels, comparisons=None):
    (path / "tables").mkdir(parents=True)
    write_labels(labels, path / "tables" / "labels.parquet")
    if comparisons is not None:
        comparisons.to_parquet(path / "tables" / "comparisons.parquet")
    return path


@pytest.fixture
def utilities():
    return np.random.default_rng(1).normal(size=len(TASKS))


@pytest.fixture
def compared(tmp_path):
    """Compare labels by name, and return the result and its tables."""

    def run(labels, **more):
        runs = tuple(folder(tmp_path / name, table) for name, table in labels.items())
        result = compare.run(compare.SETTINGS(runs=runs, out=tmp_path / "out", resamples=200, **more))
        tables = {path.stem: pd.read_parquet(path) for path in (tmp_path / "out" / "tables").glob("*.parquet")}
        return result, tables

    return run


# ---- statistics


def test_a_run_agrees_with_itself_whatever_its_zero(utilities):
    one, other = labels_of(utilities), labels_of(utilities + 3)
    pair = agree(one, other, ("a", "b"), resamples=200)
    assert pair.agreement.pearson.value == pytest.approx(1) and pair.spread.value == pytest.approx(1)
    scaled = on_one_scale({"a": one, "b": other}, "centred", "logits")
    np.testing.assert_allclose(task_differences(scaled)["difference"], 0, atol=1e-12)
    np.testing.assert_allclose(origin_differences(scaled, ORIGINS)["difference"], 0, atol=1e-12)


def test_attenuation_is_undone_by_the_reliabilities(utilities):
    random = np.random.default_rng(2)
    truth = np.repeat(utilities, 20)
    tasks = [f"t{number}" for number in range(len(truth))]
    one, other = (labels_of(truth + random.normal(scale=0.8, size=len(truth)), 0.8, tasks=tasks) for _ in range(2))
    pair = agree(one, other, ("a", "b"), resamples=200)
    assert pair.agreement.pearson.value < 0.75 and pair.corrected is not None
    assert pair.corrected.low < 1 < pair.corrected.high and pair.corrected.value == pytest.approx(1, abs=0.06)
    shares = [1 - 0.64 / table["value"].var() for table in (one, other)]
    assert pair.corrected.value == pytest.approx(pair.agreement.pearson.value / np.sqrt(np.prod(shares)))


def test_without_errors_nothing_is_corrected_and_no_task_is_tested(utilities):
    one, other = labels_of(utilities, np.nan), labels_of(utilities + np.arange(72) / 10)
    assert agree(one, other, ("a", "b"), resamples=100).corrected is None
    table = task_differences(on_one_scale({"a": one, "b": other}, "centred", "logits"))
    assert table[["p", "p_corrected", "low"]].isna().all(axis=None)


def test_scales_follow_from_how_labels_were_obtained():
    assert natural_scale({"a": "least squares", "b": "bradley-terry"}) == ("centred", "logits")
    assert natural_scale({"a": "thurstone", "b": "thurstone"})[0] == "centred"
    assert natural_scale({"a": "rating", "b": "rating"})[0] == "as_is"
    for methods in ({"a": "least squares", "b": "thurstone"}, {"a": "imported", "b": "imported"}, {"a": "rating", "b": "x"}):
        assert natural_scale(methods)[0] == "standardised"


def test_each_scale_does_what_its_name_says(utilities):
    labels = {"a": labels_of(utilities + 1), "b": labels_of(3 * utilities)}
    centred, standardised, as_is = (on_one_scale(labels, scale, "") for scale in ("centred", "standardised", "as_is"))
    np.testing.assert_allclose(centred.values.mean(), 0, atol=1e-12)
    np.testing.assert_allclose(centred.values["b"], 3 * centred.values["a"])
    np.testing.assert_allclose(standardised.values["a"], standardised.values["b"])
    np.testing.assert_allclose(standardised.errors["a"], 3 * standardised.errors["b"])
    np.testing.assert_allclose(as_is.values["a"], utilities + 1)


def test_a_planted_difference_is_found_in_its_origin_and_hardly_ever_elsewhere(utilities):
    """The others come to lie a sixth of it below the mean of all, which is little beside the error of an origin, 0.08."""
    random, n, elsewhere = np.random.default_rng(3), 12, 0
    planted = np.array([origin == "law" for origin in ORIGINS.values()]) * 0.4
    for _ in range(n):
        one = labels_of(utilities + random.normal(scale=0.2, size=72), 0.2)
        other = labels_of(utilities + planted + random.normal(scale=0.2, size=72), 0.2)
        scaled = on_one_scale({"a": one, "b": other}, "centred", "logits")
        table = origin_differences(scaled, ORIGINS, resamples=200).set_index("origin")
        assert table.loc["law", "p_corrected"] <= LEVEL
        elsewhere += int((table["p_corrected"] <= LEVEL).sum()) - 1
        backwards = origin_differences(on_one_scale({"b": other, "a": one}, "centred", "logits"), ORIGINS, resamples=100)
        np.testing.assert_allclose(backwards["difference"], -table["difference"], atol=1e-12)
    assert elsewhere <= 0.1 * 5 * n


def test_where_nothing_differs_nothing_is_found_more_often_than_it_may(utilities):
    random, n, found = np.random.default_rng(4), 100, {"tasks": 0, "origins": 0}
    for _ in range(n):
        labels = {name: labels_of(utilities + random.normal(scale=0.3, size=72), 0.3) for name in "ab"}
        scaled = on_one_scale(labels, "centred", "logits")
        found["tasks"] += (task_differences(scaled)["p_corrected"] <= LEVEL).any()
        found["origins"] += (origin_differences(scaled, ORIGINS, resamples=100)["p_corrected"] <= LEVEL).any()
    most = LEVEL * n + 2 * np.sqrt(LEVEL * (1 - LEVEL) * n)
    assert max(found.values()) <= most, found


def test_intervals_of_origins_contain_the_truth_as_often_as_they_say():
    random, covered = np.random.default_rng(5), []
    truth = dict(zip(("art", "code", "law", "math", "news", "play"), (0.5, -0.5, 0.2, -0.2, 0.0, 0.0), strict=True))
    shift = np.array([truth[origin] for origin in ORIGINS.values()])
    for _ in range(50):
        labels = {"a": labels_of(random.normal(size=72)), "b": labels_of(np.zeros(72))}
        labels["b"] = labels_of(labels["a"]["value"] + shift + random.normal(scale=0.4, size=72))
        table = origin_differences(on_one_scale(labels, "centred", ""), ORIGINS, resamples=100).set_index("origin")
        covered.append((table["low"] <= pd.Series(truth)) & (pd.Series(truth) <= table["high"]))
    assert 0.91 <= float(np.mean(covered)) <= 0.99


@pytest.mark.parametrize(("n", "tests"), [(4, 4), (6, 12), (40, 1)])
def test_the_smallest_difference_of_one_origin_is_found_four_times_in_five_after_correction(n, tests):
    se = 0.3
    table = pd.DataFrame({"n": [n] * tests, "se": se, "p": 0.5})
    smallest = smallest_origin_difference(table)
    drawn = np.random.default_rng(0).normal(smallest, se * np.sqrt(n), size=(20_000, n))
    p = stats.ttest_1samp(drawn, 0.0, axis=1).pvalue
    assert (p <= LEVEL / tests).mean() == pytest.approx(0.8, abs=0.015)
    assert smallest > POWER_FACTOR * se


def test_corrected_p_values_are_those_of_benjamini_and_hochberg(utilities):
    random = np.random.default_rng(6)
    labels = {name: labels_of(utilities + random.normal(scale=0.3, size=72), 0.2) for name in "abc"}
    table = task_differences(on_one_scale(labels, "centred", "logits"))
    assert len(table) == 3 * 72
    p = np.sort(table["p"])
    by_hand = np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    np.testing.assert_allclose(np.sort(table["p_corrected"]), np.minimum(by_hand, 1))


def test_choices_are_counted_over_pairs_and_orders_alike():
    def answers(p):
        return pd.DataFrame(
            [("a", "b", p), ("b", "a", 1 - p), ("a", "c", 0.9), ("c", "a", 0.6), ("b", "c", 0.2), ("c", "b", 0.7)],
            columns=["first", "second", "p_first"],
        ).assign(outcome="chose")

    same, other = same_choices(answers(0.8), answers(0.7)), same_choices(answers(0.8), answers(0.1))
    assert same is not None and same.value == 1 and same.n == 3
    assert other is not None and other.value == pytest.approx(2 / 3)
    assert same_choices(answers(0.8), answers(0.8).head(2)) is None


# ---- the experiment


def test_two_runs_side_by_side(utilities, compared):
    random = np.random.default_rng(3)
    planted = np.array([origin == "law" for origin in ORIGINS.values()])
    labels = {
        "plain": labels_of(utilities + random.normal(scale=0.1, size=72)),
        "other": labels_of(utilities + planted + random.normal(scale=0.1, size=72)),
    }
    result, tables = compared(labels)
    assert set(tables) == {"side_by_side", "agreement", "tasks_apart", "origins_apart"}
    assert set(tables["side_by_side"].columns) == {"task_id", "origin", "plain", "other"}
    said = {finding.name: finding.sentence for finding in result.findings}
    assert "over 72 tasks" in said["Agreement"] and "without errors of measurement" in said["Agreement"]
    assert "law +0.8" in said["Origins apart"] and "from plain to other" in said["Origins apart"]
    assert (result.path / "figures" / "agreement.png").exists() and (result.path / "figures" / "origins_apart.png").exists()
    assert "No model is asked anything" in (result.path / "report.html").read_text()


def test_runs_that_share_nothing_but_their_tasks_are_said_to_share_nothing(compared):
    random = np.random.default_rng(8)
    names = {f"task{chr(97 + n // 26)}{chr(97 + n % 26)}": n for n in range(60)}
    one, other = random.normal(size=(2, 60))
    one -= one.mean()
    other -= one * (one @ other) / (one @ one)  # what is left has nothing to do with it
    labels = {name: labels_of(values, 1.0, tasks=list(names)) for name, values in (("a", one), ("b", other))}
    result, _ = compared(labels)
    said = {finding.name: finding.sentence for finding in result.findings}
    assert "no agreement is claimed" in said["Agreement"] and "n=60" in said["Agreement"]
    assert "no difference of a single task is claimed; one of about" in said["Tasks apart"]
    assert "Origins apart" not in said and "origins_apart" not in {path.stem for path in result.path.glob("figures/*")}


@pytest.mark.parametrize("n", [3, 6])
def test_several_runs_have_a_panel_or_a_cell_for_every_two(n, utilities, compared):
    random = np.random.default_rng(9)
    labels = {f"run{number}": labels_of(utilities + random.normal(scale=0.3, size=72), 0.3) for number in range(n)}
    result, tables = compared(labels)
    assert len(tables["agreement"]) == n * (n - 1) // 2
    assert f"the closest of {n * (n - 1) // 2} pairs of runs" in result.findings[0].sentence


def test_ratings_are_compared_as_they_are_and_targets_may_differ(utilities, compared):
    labels = {
        "a": labels_of(3 + utilities, np.nan, target="likert_5", method="rating"),
        "b": labels_of(4 + utilities, np.nan, target="likert_5", method="rating"),
    }
    result, tables = compared(labels, targets=("likert_5",))
    np.testing.assert_allclose(tables["tasks_apart"]["difference"], 1)
    assert result.summary["scale"] == "as_is"
    assert "no difference of a single task is tested" in " ".join(finding.sentence for finding in result.findings)


def test_the_choices_of_two_runs_are_held_against_each_other(utilities, tmp_path):
    random = np.random.default_rng(10)
    ends = random.permuted(np.tile(np.arange(72), (40, 1)), axis=1)[:, :2]
    table = pd.DataFrame({"first": np.array(TASKS)[ends[:, 0]], "second": np.array(TASKS)[ends[:, 1]], "outcome": "chose"})
    table["p_first"] = np.where(utilities[ends[:, 0]] > utilities[ends[:, 1]], 0.9, 0.1)
    runs = tuple(folder(tmp_path / name, labels_of(utilities), table) for name in ("a", "b"))
    result = compare.run(compare.SETTINGS(runs=runs, out=tmp_path / "out", resamples=100))
    said = {finding.name: finding.sentence for finding in result.findings}
    assert "both prefer the same task in 100 % [100, 100]" in said["Choices"]


def test_the_command_names_what_runs_lack(utilities, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "a", labels_of(utilities))
    folder(tmp_path / "others", labels_of(utilities, tasks=[f"x{task}" for task in TASKS]))
    folder(tmp_path / "flat", labels_of(np.zeros(72)))
    folder(tmp_path / "rated", labels_of(utilities, target="likert_5"))
    (tmp_path / "asked" / "tables").mkdir(parents=True)
    pd.DataFrame({"first": ["a"]}).to_parquet("asked/tables/comparisons.parquet")
    (tmp_path / "nothing").mkdir()
    cases = {
        ("a",): "1 run directory was given; expected two or more",
        ("a", "absent"): "There is no run directory absent",
        ("a", "nothing"): "nothing has no tables/labels.parquet: runs that fit utilities",
        ("a", "asked"): "penchant fit asked --out runs/fitted makes them of its comparisons",
        ("a", "rated"): "rated has no labels of 'utility'; it has likert_5. Say which with --targets",
        ("a", "flat"): "All 72 tasks have one value in flat",
        ("a", "a"): "The runs are called a, a; expected a name for each",
        ("a", "others"): "0 tasks are in all runs, and at least 4 are needed (a has 72, others has 72)",
        ("a", "rated", "--names", "x"): "1 name was given for 2 runs",
    }
    for arguments, message in cases.items():
        assert main(["compare", "--out", "out", "--runs", *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error, arguments
    assert not (tmp_path / "out").exists()
    assert main(["compare", "--out", "out", "--runs", "a", "rated", "--targets", "utility", "likert_5", "--quick"]) == 0
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["results"]["common_tasks"] == 72
