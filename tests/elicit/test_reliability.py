"""Reliability: what was put in comes out, other implementations agree, and bad tables are refused by name."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import spatial, special, stats
from statsmodels.stats.power import TTestPower, normal_power
from statsmodels.stats.weightstats import DescrStatsW

from elicit import regular_pairs
from elicit.reliability import (
    agreement,
    consistency_agreement,
    divergence,
    divergence_from_uniform,
    dyadic_estimate,
    higher_than_neutral,
    intraclass_correlation,
    mantel_test,
    needed_for_correlation,
    needed_for_preference,
    needed_for_shift,
    position_bias,
    power_of_correlation,
    power_of_preference,
    power_of_shift,
    power_table,
    refusal_preference,
    scale_use,
    seed_agreement,
    smallest_correlation,
    smallest_preference,
    smallest_shift,
    task_consistency,
    template_agreement,
    template_sensitivity,
)
from elicit.reliability.agreement import correlation

TASKS = [f"t{number:02d}" for number in range(60)]
COLUMNS = ["value", "low", "high", "se", "n", "smallest_effect"]


def labels(values, target="utility", se=0.5) -> pd.DataFrame:
    return pd.DataFrame({"task_id": TASKS[: len(values)], "target": target, "value": values, "se": se})


# ---- position


def both_orders(content: np.ndarray, position: np.ndarray, noise: float = 0.0) -> pd.DataFrame:
    """Comparisons of a regular design with what was put in for every pair."""
    random = np.random.default_rng(9)
    rows = []
    for (first, second), c, p in zip(regular_pairs(TASKS, len(content) // 30, 0), content, position, strict=True):
        for a, b, sign in ((first, second, 1 if first < second else -1), (second, first, 1 if second < first else -1)):
            rows.append((a, b, "t", sign * c + p + noise * random.normal()))
    return pd.DataFrame(rows, columns=["first", "second", "template", "logit"])


@pytest.fixture
def bias():
    random = np.random.default_rng(0)
    return position_bias(both_orders(random.normal(0, 1.5, 300), random.normal(0.6, 1.0, 300)))


def test_shares_split_the_mean_square_of_the_log_odds(bias):
    logits = np.concatenate([bias.pairs["content"] + bias.pairs["position"], bias.pairs["content"] - bias.pairs["position"]])
    squares = (logits**2).mean()
    assert bias.content_share.value * squares == pytest.approx(bias.content.value**2)
    assert bias.constant_share.value * squares == pytest.approx(bias.mean.value**2)
    assert bias.content_share.value + bias.position_share.value == pytest.approx(1)
    for share, put_in in ((bias.content_share, 2.25 / 3.61), (bias.position_share, 1.36 / 3.61), (bias.constant_share, 0.1)):
        assert share.low < put_in < share.high and share.high - share.low < 0.2


def test_reliability_of_orders_follows_from_their_correlation(bias):
    r = bias.order_correlation.value
    assert bias.one_order.value == pytest.approx((1 + r) / 2)
    assert bias.both_orders.value == pytest.approx(2 * r / (1 + r))  # Spearman-Brown
    assert bias.one_order.value * bias.both_orders.value == pytest.approx(r)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_one_order_shrinks_correlations_with_the_truth_as_it_says(noise):
    random = np.random.default_rng(1)
    content, position = random.normal(size=1500), random.normal(0.5, 1.2, 1500)
    bias = position_bias(both_orders(content, position, noise))
    table = bias.pairs
    truth = dict(zip(map(frozenset, regular_pairs(TASKS, 50, 0)), content, strict=True))
    wanted = np.array([truth[frozenset(pair)] for pair in zip(table["task_1"], table["task_2"], strict=True)])
    coin = random.choice([-1, 1], 1500)
    one = table["content"] + coin * (table["position"] - table["position"].mean())
    by_one, by_both = (np.corrcoef(each, wanted)[0, 1] ** 2 for each in (one, table["content"]))
    assert by_one / by_both == pytest.approx(bias.one_order.value, abs=0.05)
    assert bias.both_orders.value <= by_both + 0.05


def test_the_table_of_position_has_every_statistic_of_the_summary(bias):
    assert list(bias.table.columns) == COLUMNS and list(bias.table.index) == list(bias.to_dict())
    assert bias.table.loc["one_order", "value"] == bias.one_order.value


@pytest.mark.filterwarnings("error")
def test_where_nothing_but_order_decides_there_is_no_reliability_to_speak_of():
    found = position_bias(both_orders(np.zeros(300), np.ones(300)))
    assert (found.content_share.value, found.position_share.value, found.constant_share.value) == (0, 1, 1)
    assert np.isnan([found.both_orders.value, found.one_order.value, found.order_correlation.value]).all()


# ---- agreement


def test_weighted_correlation_is_that_of_statsmodels_and_of_repeated_rows():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 30))
    weights = random.integers(1, 5, 30)
    assert correlation(x, y, weights) == pytest.approx(DescrStatsW(np.stack([x, y], 1), weights).corrcoef[0, 1])
    assert correlation(x, y, weights) == pytest.approx(stats.pearsonr(x.repeat(weights), y.repeat(weights)).statistic)
    assert np.isnan(correlation(np.ones(4), np.arange(4.0)))


def test_precision_weights_find_agreement_that_noisy_labels_hide():
    random = np.random.default_rng(1)
    se = np.where(np.arange(60) < 30, 0.1, 4.0)
    truth = random.normal(size=60)
    found = template_agreement(pd.concat([labels(truth + se * random.normal(size=60), f"w{k}", se) for k in range(3)]))
    assert found.weighted is not None
    assert found.weighted.value > 0.9 > found.plain.value + 0.3 and found.weighted.low > found.plain.high
    assert list(found.table.index) == ["plain", "weighted"] and len(found.pairs) == 3


def test_equal_weights_change_nothing_and_intervals_cover_the_truth():
    random = np.random.default_rng(2)
    parts = [labels(each, f"w{k}") for k, each in enumerate(random.normal(size=(4, 60)) + random.normal(size=60))]
    found = template_agreement(pd.concat(parts))
    wide = pd.concat(parts).pivot(index="task_id", columns="target", values="value")
    assert found.weighted is not None and found.weighted.value == pytest.approx(found.plain.value)
    assert found.plain.value == pytest.approx(wide.corr().to_numpy()[np.triu_indices(4, 1)].mean())
    assert found.plain.low < 0.5 < found.plain.high
    assert template_agreement(pd.concat(parts).drop(columns="se")).weighted is None


def test_labels_that_cannot_be_weighted_or_compared_are_named():
    good = pd.concat([labels(np.arange(6.0), "a"), labels(np.arange(6.0) ** 2, "b")], ignore_index=True)
    with pytest.raises(ValueError, match=r"standard error of task 't02' under 'a' is 0.0 \(1 such\).*drop the column `se`"):
        template_agreement(good.assign(se=good["se"].where(good.index != 2, 0.0)))
    with pytest.raises(ValueError, match=r"lacks the columns \['target'\]"):
        template_agreement(good.drop(columns="target"))
    with pytest.raises(ValueError, match="'t00' has two labels of template 'a'"):
        template_agreement(pd.concat([good, good]))
    with pytest.raises(ValueError, match=r"value 1.0 under template 'b'"):
        template_agreement(good.assign(value=good["value"].where(good["target"] == "a", 1.0)))
    with pytest.raises(ValueError, match=r"6 tasks by 1 templates"):
        template_agreement(good[good["target"] == "a"])


def test_agreement_tabulates_what_it_has():
    found = agreement(labels(np.arange(20.0)), labels(np.arange(20.0)[::-1]))
    assert list(found.table.index) == ["pearson", "spearman"] and found.table.loc["pearson", "value"] == pytest.approx(-1)


# ---- seeds


def test_seeds_agree_as_far_as_answers_share_what_they_are_about():
    random = np.random.default_rng(3)
    values = pd.DataFrame(random.normal(size=(400, 1)) + random.normal(size=(400, 4)))
    found = seed_agreement(values, resamples=300)
    assert found.correlation.value == pytest.approx(values.corr().to_numpy()[np.triu_indices(4, 1)].mean())
    assert found.correlation.low < 0.5 < found.correlation.high
    assert found.informative is None and list(found.table.index) == ["correlation"]  # no answer twice, so no mode


def test_informative_correlation_leaves_out_the_tasks_that_are_modal_twice():
    values = pd.DataFrame({"a": [7, 7, 7, 7, 7, 7, 3, 7, 5, 6], "b": [7, 7, 7, 7, 7, 7, 7, 2, 5, 6]}, index=TASKS[:10])
    found = seed_agreement(values)
    assert found.mode == 7 and found.informative is not None and found.informative.n == 4
    assert found.informative.value == pytest.approx(stats.pearsonr([3, 7, 5, 6], [7, 2, 5, 6]).statistic)
    assert found.discrimination is not None and found.discrimination.value == pytest.approx(6 / 20)
    assert found.discriminated_tasks is not None and found.discriminated_tasks.value == pytest.approx(4 / 10)


def test_independent_yes_or_no_answers_are_at_chance_and_chance_is_below_zero():
    random = np.random.default_rng(4)
    found = seed_agreement(pd.DataFrame((random.random((400, 3)) < 0.3).astype(float)), resamples=200)
    assert found.informative is not None and found.informative_chance is not None
    assert found.informative_chance < -0.5
    assert found.informative.low < found.informative_chance < found.informative.high


def test_one_seed_is_refused_with_the_reason_that_exact_answers_have_none():
    with pytest.raises(ValueError, match=r"has 1 columns; .*Exact answers have no seeds"):
        seed_agreement(pd.DataFrame({"exact": np.arange(9.0)}))
    with pytest.raises(ValueError, match=r"task 3 under seed 'b' is nan \(1 such values\)"):
        seed_agreement(pd.DataFrame({"a": range(6), "b": [1, 2, 3, None, 5, 6]}))


# ---- scales


def test_divergence_from_uniform_is_log_k_less_entropy_and_never_more_than_log_k():
    drawn = np.random.default_rng(5).dirichlet(np.ones(7), size=20)
    assert divergence_from_uniform(drawn) == pytest.approx(np.log(7) - special.entr(drawn).sum(axis=1))
    assert divergence_from_uniform(np.eye(5)) == pytest.approx(np.log(5)) and divergence_from_uniform(np.full(4, 0.25)) == 0


def test_what_single_answers_have_beyond_pooled_ones_is_what_they_tell_of_tasks():
    drawn = np.random.default_rng(6).dirichlet(np.ones(5), size=50)
    found = scale_use(pd.DataFrame(drawn))
    assert found.single.value == pytest.approx(found.pooled.value + found.information.value)
    assert found.information.value == pytest.approx(float(divergence(drawn)))
    assert found.maximum == pytest.approx(np.log(5)) and found.single.low < found.single.value < found.single.high


def test_distributions_that_do_not_sum_to_one_are_named():
    with pytest.raises(ValueError, match=r"task 't01' have probabilities \[0.5, 0.4\] that sum to 0.9"):
        scale_use(pd.DataFrame([[0.5, 0.5], [0.5, 0.4]], index=TASKS[:2]))
    with pytest.raises(ValueError, match="1 tasks by 2 answers"):
        scale_use(pd.DataFrame([[0.5, 0.5]]))


def test_icc_is_that_of_shrout_and_fleiss_with_an_unrounded_interval():
    # Table 4 of Shrout & Fleiss (1979): ICC(2,1) = .29, ICC(2,4) = .62; the interval of (2,1) is given as .02 to .76.
    ratings = pd.DataFrame([[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]])
    found = intraclass_correlation(ratings)
    assert found.single.value == pytest.approx(0.2898, abs=1e-4) and found.mean.value == pytest.approx(0.6201, abs=1e-4)
    assert (found.single.low, found.single.high) == pytest.approx((0.0188, 0.7611), abs=1e-4)
    by_hand = two_way(ratings.to_numpy(dtype=float))
    assert found.single.value == pytest.approx(by_hand)
    assert intraclass_correlation(ratings.add([0, 5, 0, 0])).single.value != pytest.approx(by_hand, abs=0.05)


def two_way(y: np.ndarray) -> float:
    """ICC(A,1) from mean squares (McGraw & Wong 1996, table 4)."""
    n, k = y.shape
    rows, columns = y.mean(axis=1, keepdims=True), y.mean(axis=0, keepdims=True)
    msr, msc = k * rows.var(ddof=1), n * columns.var(ddof=1)
    mse = ((y - rows - columns + y.mean()) ** 2).sum() / ((n - 1) * (k - 1))
    return (msr - mse) / (msr + (k - 1) * mse + k * (msc - mse) / n)


def test_readings_that_cannot_have_an_icc_are_refused():
    with pytest.raises(ValueError, match="All readings are equal"):
        intraclass_correlation(pd.DataFrame({"a": range(5), "b": range(5)}))
    with pytest.raises(ValueError, match="All tasks have the mean rating 3"):
        intraclass_correlation(pd.DataFrame({"a": [3] * 5, "b": [3] * 5}))


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("pingouin", lambda: intraclass_correlation(pd.DataFrame({"a": range(5), "b": [1, 0, 3, 2, 4]}))),
        ("skbio.stats.distance", lambda: mantel_test(*two_distances())),
    ],
)
def test_a_missing_package_is_an_error_that_says_how_to_get_it(package, call, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'penchant\[statistics\]'"):
        call()


# ---- consistency of tasks


def noisy(sd, n_seeds=8, seed=7) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(random.normal(size=(60, 1)) + np.asarray(sd)[:, None] * random.normal(size=(60, n_seeds)), index=TASKS)


def test_consistency_is_one_without_noise_and_at_chance_without_tasks():
    exact = task_consistency(noisy(np.zeros(60)))
    assert exact.mean.value == pytest.approx(1) and exact.tasks["consistency"].to_numpy() == pytest.approx(1)
    nothing = task_consistency(pd.DataFrame(np.random.default_rng(8).normal(size=(60, 8))))
    assert nothing.mean.low < nothing.chance < nothing.mean.high and 0 < nothing.chance < 0.2


def test_consistency_does_not_depend_on_the_unit_and_is_as_defined():
    values = noisy(np.linspace(0.1, 1, 60))
    found, other = task_consistency(values), task_consistency(100 + 7 * values)
    pd.testing.assert_series_equal(found.tasks["consistency"], other.tasks["consistency"])
    spread = np.stack([values.loc[task] for task in TASKS]).ravel().std(ddof=1)
    expected = (1 - values.loc["t05"].std() / spread, 1 - values.loc["t58"].std() / spread)
    assert tuple(found.tasks.loc[["t05", "t58"], "consistency"]) == pytest.approx(expected)
    assert found.normaliser == pytest.approx(spread) and found.tasks["consistency"].min() >= 0


def test_two_seeds_give_consistency_without_an_interval():
    found = task_consistency(noisy(np.full(60, 0.3), n_seeds=2))
    assert 0 < found.mean.value < 1 and np.isnan([found.mean.low, found.mean.se]).all()


def test_the_interval_of_consistency_covers_it_and_is_not_idle():
    sd = np.linspace(0.1, 0.9, 60)
    fixed = np.random.default_rng(0).normal(size=(60, 1))
    tables = [fixed + sd[:, None] * np.random.default_rng(1000 + seed).normal(size=(60, 5)) for seed in range(150)]
    found = [task_consistency(pd.DataFrame(table)).mean for table in tables]
    truth = np.mean([each.value for each in found])
    assert 0.88 < np.mean([each.low < truth < each.high for each in found]) < 0.99


def test_models_that_waver_on_the_same_tasks_are_told_from_those_that_do_not():
    sd = np.geomspace(0.05, 1.5, 60)
    other = np.random.default_rng(0).permutation(sd)
    found = consistency_agreement({"one": noisy(sd, seed=1), "two": noisy(sd, seed=2), "three": noisy(other, seed=3)})
    table = found.table
    assert table.loc["one / two", "low"] > 0.5 and abs(table.loc["one / three", "value"]) < 0.4
    pairs = table.drop("mean")["value"]
    assert found.mean.value == pytest.approx(pairs.mean()) and found.mean.n == 60


# ---- template sensitivity


def runs(effects: dict[str, float], n: int = 16, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Utilities of runs with noise of variance 1/4, and for each level of a field a part of its own of the given variance."""
    random = np.random.default_rng(seed)
    centred = random.normal(size=(200, 2 * len(effects)))
    parts = np.linalg.qr(centred - centred.mean(axis=0))[0] * np.sqrt(200)  # of variance 1, and uncorrelated
    names = [f"run{number}" for number in range(n)]
    fields = pd.DataFrame({name: random.permutation(n) % 2 for name in effects}, index=names)
    values = random.normal(size=(200, n)) * 0.5
    for place, (name, effect) in enumerate(effects.items()):
        values += np.sqrt(effect) * parts[:, 2 * place + fields[name].to_numpy()]
    return pd.DataFrame(values, columns=names), fields


def test_the_field_that_matters_is_found_and_the_others_are_not():
    values, fields = runs({"order": 0.6, "typos": 0.0, "place": 0.15})
    found = template_sensitivity(values, fields, permutations=499)
    variance = 0.25 + 0.6 + 0.15  # of every run, so that matching on a field adds its share to the correlation
    assert found.fields.loc["order", "low"] < 0.6 / variance < found.fields.loc["order", "high"]
    assert found.fields.loc["order", "p"] == 1 / 500 and found.fields.loc["typos", "p"] > 0.05
    assert found.fields.loc["place", "value"] == pytest.approx(0.15, abs=0.08)
    assert list(found.table.index) == ["intercept", "order", "typos", "place", "r_squared"] and not found.warnings()


def test_betas_and_r_squared_are_those_of_least_squares_and_their_intervals_those_of_dyads():
    values, fields = runs({"order": 0.5, "typos": 0.0, "place": 0.3}, n=9)
    found = template_sensitivity(values, fields, permutations=19)
    i, j = np.triu_indices(9, 1)
    y = values.corr().to_numpy()[i, j]
    x = np.stack([fields[name].to_numpy()[i] == fields[name].to_numpy()[j] for name in fields], axis=1).astype(float)
    fit = sm.OLS(y, sm.add_constant(x)).fit()
    assert found.fields["value"].to_numpy() == pytest.approx(fit.params[1:]) and found.intercept.value == pytest.approx(
        fit.params[0]
    )
    assert found.r_squared.value == pytest.approx(fit.rsquared)
    first, second = pd.Series(i), pd.Series(j)
    slope = dyadic_estimate(lambda rows: sm.OLS(y[rows], sm.add_constant(x[rows])).fit().params[1], first, second)
    explained = dyadic_estimate(lambda rows: sm.OLS(y[rows], sm.add_constant(x[rows])).fit().rsquared, first, second, (0, 1))
    table = found.table
    for name, expected in (("order", slope), ("r_squared", explained)):
        assert tuple(table.loc[name, ["low", "high", "se"]]) == pytest.approx((expected.low, expected.high, expected.se))


def test_p_of_a_single_field_is_that_of_a_mantel_test():
    values, fields = runs({"order": 0.003}, n=12, seed=1)
    found = template_sensitivity(values, fields, permutations=4999)
    mismatch = pd.DataFrame(
        (fields["order"].to_numpy()[:, None] != fields["order"].to_numpy()).astype(float), *[fields.index] * 2
    )
    apart = 1 - values.corr()
    other = mantel_test(pd.DataFrame(np.where(np.eye(12), 0, apart), *[fields.index] * 2), mismatch, permutations=4999)
    assert other.p > 0.01 and found.fields.loc["order", "p"] == pytest.approx(other.p, abs=0.03)
    assert found.r_squared.value == pytest.approx(other.correlation.value**2)


def test_p_is_as_often_below_a_tenth_as_it_should_be_where_nothing_matters():
    ps = [
        template_sensitivity(*runs({"a": 0.0, "b": 0.0}, n=10, seed=seed), permutations=99).fields["p"].to_numpy()
        for seed in range(60)
    ]
    assert stats.binomtest(int((np.concatenate(ps) <= 0.1).sum()), 120, 0.1).pvalue > 0.01


def test_fields_that_cannot_be_told_apart_are_named_and_do_not_change_the_rest():
    values, fields = runs({"order": 0.5, "place": 0.3})
    alone = template_sensitivity(values, fields, permutations=99)
    twin = fields.assign(twin=fields["order"].map({0: "x", 1: "y"}), model="one", number=range(16))
    found = template_sensitivity(values, twin, permutations=99)
    assert list(found.fields.index) == ["order = twin", "place"] and found.constant == ("model", "number")
    assert found.aliased == {"order": ("twin",), "twin": ("order",)}
    assert found.fields["value"].to_numpy() == pytest.approx(alone.fields["value"].to_numpy())
    assert [line.split()[0] for line in found.warnings()] == ["order", "model,"]


def test_a_field_that_follows_from_several_others_is_named_and_left_out():
    values, _ = runs({"a": 0.2}, n=6)
    fields = pd.DataFrame({"a": list("xxyyzz"), "b": list("xxyyvw"), "c": list("xxuvzz")}, index=values.columns)
    # Pairs that match: a 01, 23, 45; b 01, 23; c 01, 45; so that d, which has 01 alone, is b + c - a.
    fields["d"] = list("xxstuv")
    found = template_sensitivity(values, fields, permutations=9)
    assert list(found.fields.index) == ["a", "b", "c"] and found.aliased == {"d": ("a", "b", "c")}
    assert found.warnings() == ["d follows from a, b, c and is left out: vary it apart from them."]


def test_the_same_seed_gives_the_same_p():
    values, fields = runs({"order": 0.03, "place": 0.02})
    one, two = (template_sensitivity(values, fields, permutations=199, seed=5) for _ in range(2))
    pd.testing.assert_frame_equal(one.table, two.table)


def test_runs_without_fields_and_fields_without_runs_are_refused():
    values, fields = runs({"order": 0.5})
    with pytest.raises(ValueError, match=r"1 are in one only, such as \['run15'\]"):
        template_sensitivity(values, fields.drop(index="run15"))
    with pytest.raises(ValueError, match="Field 'order' of run 'run2' is missing"):
        template_sensitivity(values, fields.astype(object).where(fields.index.to_numpy()[:, None] != "run2"))
    with pytest.raises(ValueError, match=r"In none of the fields \['model'\]"):
        template_sensitivity(values, pd.DataFrame({"model": "one"}, index=fields.index))
    with pytest.raises(ValueError, match="200 tasks by 3 runs"):
        template_sensitivity(values.iloc[:, :3], fields)


# ---- refusals


def refused(effect: float, n: int = 60, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(seed)
    liking = random.normal(size=n)
    return labels(liking), labels((random.random(n) < special.expit(-0.5 - effect * liking)).astype(int))


def test_refusal_statistics_are_those_of_their_definitions():
    preferences, refusals = refused(1.5)
    found = refusal_preference(preferences, refusals)
    x, y = preferences["value"].to_numpy(), refusals["value"].to_numpy()
    assert found.correlation.value == pytest.approx(np.corrcoef(x, y)[0, 1])
    pairs = x[y == 1][:, None] - x[y == 0][None, :]
    assert found.common_language.value == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean())
    assert found.u == pytest.approx(found.common_language.value * pairs.size)
    assert found.correlation.high < 0 and found.common_language.high < 0.5 and found.u_p < 0.01
    assert found.quartiles["n"].sum() == 60 and list(found.quartiles["n"]) == [15] * 4
    assert (found.quartiles["value"] * found.quartiles["n"]).sum() == pytest.approx(y.sum())


def test_refusal_that_has_nothing_to_do_with_preference_is_at_chance():
    found = refusal_preference(*refused(0.0))
    assert not found.correlation.differs_from(0) and not found.common_language.differs_from(0.5) and found.p > 0.05


def test_ties_of_preference_stay_in_one_quartile():
    preferences, refusals = refused(1.0)
    found = refusal_preference(preferences.assign(value=preferences["value"] > 0), refusals)
    assert len(found.quartiles) < 4 and found.quartiles["n"].sum() == 60


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, r: (p, r.assign(value=0.25)), r"refused of task 't00' is 0.25; expected 0 or 1: put a threshold"),
        (lambda p, r: (p.assign(value=np.nan), r), "preference of task 't00' is nan"),
        (lambda p, r: (p, r.assign(value=0)), "60 tasks have both, 0 of them refused"),
        (lambda p, r: (p.head(5), r), "5 tasks have both"),
        (lambda p, r: (p, pd.concat([r, r])), "'t00' is twice in refusals"),
        (lambda p, r: (p.assign(value=1.0), r), "All 60 tasks have the preference 1.0"),
        (lambda p, r: (p.drop(columns="value"), r), r"lacks the columns \['value'\]"),
    ],
)
def test_tables_of_refusals_that_will_not_do_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        refusal_preference(*change(*refused(1.0)))


# ---- contexts


def test_higher_than_neutral_counts_tasks_with_ties_half():
    values = pd.DataFrame({"none": [1, 2, 3, 4, 5, 6], "mood": [2, 3, 3, 4, 4, 7], "same": range(1, 7), "up": range(2, 8)})
    found = higher_than_neutral(values, "none").table
    assert found.loc["mood", ["value", "higher", "lower", "ties"]].tolist() == [4 / 6, 3, 1, 2]
    assert found.loc["mood", "sign_p"] == pytest.approx(stats.binomtest(3, 4).pvalue)
    assert found.loc["same", ["value", "sign_p", "wilcoxon_p"]].tolist() == [0.5, 1, 1]
    assert found.loc["up", "value"] == 1 and 0.5 < found.loc["up", "low"] < 1 and found.loc["up", "smallest_effect"] > 0


def test_a_context_that_lifts_ratings_is_found_at_the_probability_put_in():
    random = np.random.default_rng(11)
    values = pd.DataFrame({"none": random.normal(size=300)})
    values["keen"] = values["none"] + random.normal(0.5, 1, 300)
    values["plain"] = values["none"] + random.normal(0, 1, 300)
    found = higher_than_neutral(values, "none").table
    assert found.loc["keen", "low"] < stats.norm.cdf(0.5) < found.loc["keen", "high"] and found.loc["keen", "low"] > 0.5
    assert found.loc["plain", "low"] < 0.5 < found.loc["plain", "high"]
    assert found.loc["keen", "wilcoxon_p_holm"] == pytest.approx(2 * found.loc["keen", "wilcoxon_p"])
    turned = higher_than_neutral(values, "keen").table
    assert turned.loc["none", "value"] == pytest.approx(1 - found.loc["keen", "value"])


def test_a_neutral_context_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"no context 'neutral'; expected the name of a column, one of \['a', 'b'\]"):
        higher_than_neutral(pd.DataFrame({"a": range(6), "b": range(6)}), "neutral")


# ---- distances


def two_distances(noise: float = 1.0, n: int = 25) -> tuple[pd.DataFrame, pd.DataFrame]:
    random = np.random.default_rng(12)
    places = random.normal(size=(n, 3))
    matrices = (
        spatial.distance.squareform(spatial.distance.pdist(each))
        for each in (places, places + noise * random.normal(size=(n, 3)))
    )
    first, second = (pd.DataFrame(each, TASKS[:n], TASKS[:n]) for each in matrices)
    return first, second


@pytest.mark.parametrize(("method", "by_scipy"), [("pearson", stats.pearsonr), ("spearman", stats.spearmanr)])
def test_mantel_r_is_the_correlation_of_distances_whatever_the_order_of_items(method, by_scipy):
    first, second = two_distances()
    order = np.random.default_rng(0).permutation(TASKS[:25])
    found = mantel_test(first, second.loc[order, order], method=method)
    i, j = np.triu_indices(25, 1)
    assert found.correlation.value == pytest.approx(by_scipy(first.to_numpy()[i, j], second.to_numpy()[i, j]).statistic)
    assert found.p == 1 / 1000 and found.correlation.n == 25 and found.correlation.low > 0
    again = mantel_test(first, second.loc[order, order], method=method)
    pd.testing.assert_frame_equal(found.table, again.table)


def test_the_jackknife_of_mantel_leaves_out_one_item_after_the_other():
    first, second = two_distances()
    left_out = []
    for task in TASKS[:25]:
        i, j = np.triu_indices(24, 1)
        x, y = (each.drop(index=task, columns=task).to_numpy()[i, j] for each in (first, second))
        left_out.append(np.corrcoef(x, y)[0, 1])
    assert mantel_test(first, second, permutations=9).correlation.se == pytest.approx(np.std(left_out) * np.sqrt(24))


def test_unrelated_distances_are_a_null_with_the_smallest_effect_beside_it():
    first, second = two_distances(noise=30.0)
    found = mantel_test(first, second)
    assert found.p > 0.05 and not found.correlation.differs_from(0)
    assert found.table.loc["correlation", "smallest_effect"] == pytest.approx(2.8016 * found.correlation.se, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: 1 - d / 10, "expected 0. A matrix of correlations r is one of similarities: pass 1 - r"),
        (
            lambda d: d.rename(index={"t00": "x"}, columns={"t00": "x"}),
            r"2 items are in one matrix only, such as \['t00', 'x'\]",
        ),
        (lambda d: d + np.triu(np.ones((25, 25)), 1), "second matrix is not symmetric"),
        (lambda d: d.mask(np.outer(d.index == "t03", d.index != "t03")), "second distance of 't03' and 't00' is nan"),
        (lambda d: d.iloc[:, :20], "25 by 20; expected a square one"),
        (lambda d: (d > 0).astype(float), "All items have the second distance 1.0"),
    ],
)
def test_matrices_that_are_no_distances_are_refused_by_name(change, message):
    first, second = two_distances()
    with pytest.raises(ValueError, match=message):
        mantel_test(first, change(second))


# ---- power

LEVELS = {"alpha": st.sampled_from([0.001, 0.01, 0.05, 0.2]), "power": st.sampled_from([0.3, 0.5, 0.8, 0.95, 0.99])}
NUMBERS = st.integers(20, 20_000)


@settings(max_examples=60)
@given(n=NUMBERS, **LEVELS)
def test_the_smallest_effect_of_n_needs_n(n, alpha, power):
    levels = {"alpha": alpha, "power": power}
    for smallest, needed in (
        (smallest_preference, needed_for_preference),
        (smallest_correlation, needed_for_correlation),
        (smallest_shift, needed_for_shift),
    ):
        effect = smallest(n, **levels)
        assert needed(effect * (1 + 1e-9), **levels) <= n < needed(effect * (1 - 1e-9), **levels)


@settings(max_examples=60)
@given(effect=st.floats(0.02, 0.98), **LEVELS)
def test_the_number_needed_shows_the_effect_and_one_less_does_not(effect, alpha, power):
    levels = {"alpha": alpha, "power": power}
    for needed, smallest, of_power, value, least in (
        (needed_for_preference, smallest_preference, power_of_preference, 0.5 + effect / 2, 1),
        (needed_for_correlation, smallest_correlation, power_of_correlation, effect, 4),
        (needed_for_shift, smallest_shift, power_of_shift, effect, 2),
    ):
        n = needed(value, **levels)
        assert of_power(value, n, alpha=alpha) >= power and smallest(n, **levels) <= value + 1e-9
        assert n == least or of_power(value, n - 1, alpha=alpha) < power


def test_power_is_that_of_statsmodels_of_published_tables_and_of_simulation():
    # Cohen (1988): r = .30 at .05 two-sided and power .80 needs 85; a t test of d = .5, 34 (table 2.4.1, one sample).
    assert needed_for_correlation(0.3) in (84, 85) and needed_for_shift(0.5) == 34
    assert power_of_shift(0.3, 50) == pytest.approx(TTestPower().power(0.3, 50, 0.05))
    assert power_of_preference(0.6, 120) == pytest.approx(normal_power(2 * np.arcsin(0.6**0.5) - np.pi / 2, 120, 0.05))
    assert power_of_shift(10.0, 3) == pytest.approx(0.9999996, abs=1e-7)  # where statsmodels gives NaN
    random = np.random.default_rng(0)
    n = needed_for_preference(0.6, power=0.9)
    found = np.array([stats.binomtest(int(k), n).pvalue < 0.05 for k in random.binomial(n, 0.6, 1500)]).mean()
    assert found == pytest.approx(0.9, abs=0.03)


def test_effects_of_either_sign_need_as_many_and_units_do_not_matter():
    assert needed_for_preference(0.3) == needed_for_preference(0.7)
    assert needed_for_correlation(-0.2) == needed_for_correlation(0.2)
    assert needed_for_shift(-3, sd=10) == needed_for_shift(0.3)
    assert smallest_shift(50, sd=10) == pytest.approx(10 * smallest_shift(50))
    table = power_table("shift", [2.0, 5.0], powers=(0.8,), sd=10).table
    assert table[0.8].tolist() == [needed_for_shift(0.2), needed_for_shift(0.5)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: needed_for_preference(0.5), r"probability is 0.5; expected one that differs from .5"),
        (lambda: needed_for_preference(1.2), r"probability is 1.2; expected a preference probability"),
        (lambda: needed_for_correlation(1.0), r"r is 1.0; expected a correlation above -1"),
        (lambda: needed_for_shift(1.0, sd=0), "sd is 0; expected a standard deviation above 0"),
        (lambda: needed_for_shift(1.0, power=0.01), r"alpha, power is \(0.05, 0.01\)"),
        (lambda: smallest_preference(3), "3 units show no effect at all at alpha 0.05 with power 0.8"),
        (lambda: smallest_correlation(3), "n is 3; expected at least 4"),
        (lambda: power_table("mean", [1.0]), "kind is mean; expected one of"),
    ],
)
def test_what_has_no_answer_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- all of them


@pytest.fixture
def every_result(bias):
    values, fields = runs({"order": 0.5, "place": 0.1})
    draws = noisy(np.full(60, 0.4)).round()
    return [
        bias,
        agreement(labels(np.arange(60.0)), labels(np.arange(60.0) ** 2)),
        template_agreement(pd.concat([labels(draws[k], f"w{k}") for k in range(3)])),
        seed_agreement(draws, resamples=50),
        scale_use(pd.DataFrame(np.random.default_rng(0).dirichlet(np.ones(5), size=20)), resamples=50),
        intraclass_correlation(draws),
        task_consistency(draws),
        consistency_agreement({"one": noisy(np.full(60, 0.4)), "two": noisy(np.full(60, 0.8), seed=1)}, resamples=50),
        template_sensitivity(values, fields, permutations=9),
        refusal_preference(*refused(1.0), resamples=50),
        higher_than_neutral(draws, draws.columns[0], resamples=50),
        mantel_test(*two_distances(), permutations=9),
        power_table("correlation", [0.1, 0.3]),
    ]


def test_every_result_has_a_table_and_a_plot_with_named_axes(every_result):
    for result in every_result:
        assert len(result.table) and isinstance(result.table, pd.DataFrame)
        if type(result).__name__ != "PowerTable":
            assert set(COLUMNS) <= set(result.table.columns)
        figure = result.plot()
        figure.canvas.draw()
        assert figure.axes[0].get_title() or figure.axes[0].get_xlabel()
        for axes in figure.axes:
            assert axes.has_data()


def test_asking_for_reliability_does_not_load_what_only_plots_and_tests_need():
    code = "import sys, json, elicit.reliability; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert not {"matplotlib", "pingouin", "skbio", "statsmodels"} & set(loaded)
