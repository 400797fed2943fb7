"""Designs, utilities and reliability: identities, parity with independent implementations, and planted truths."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats
from sklearn.linear_model import LogisticRegression

from elicit import (
    BradleyTerry,
    LeastSquares,
    agreement,
    all_pairs,
    disjoint_pairs,
    hold_out,
    hold_out_accuracy,
    order_averages,
    position_bias,
    regular_pairs,
)
from elicit.reliability import scale_agreement


def ids(n: int) -> list[str]:
    return [f"t{number:03}" for number in range(n)]


def simulate(utilities, pairs, *, position=0.0, spread=0.0, noise=0.0, seed=0) -> pd.DataFrame:
    """Exact answers of a model with given utilities, both orders of every pair."""
    random = np.random.default_rng(seed)
    rows = []
    for a, b in pairs:
        bias, error = position + spread * random.normal(), noise * random.normal()
        for first, second, sign in ((a, b, 1), (b, a, -1)):
            logit = utilities[first] - utilities[second] + bias + sign * error
            rows.append((first, second, "w", 0, "chose", 1.0, logit, special.expit(logit)))
    columns = ["first", "second", "template", "draw", "outcome", "mass", "logit", "p_first"]
    return pd.DataFrame(rows, columns=columns)


def truth(n: int, seed: int = 0) -> dict[str, float]:
    values = np.random.default_rng(seed).normal(size=n)
    return dict(zip(ids(n), values - values.mean(), strict=True))


# ---- designs


@given(st.integers(4, 40), st.integers(2, 9), st.integers(0, 3))
def test_regular_designs_give_every_task_its_degree_once_with_each_partner(n, degree, seed):
    if degree > n - 1 or (degree % 2 and n % 2):
        with pytest.raises(ValueError, match=f"Degree {degree} for {n} tasks"):
            regular_pairs(ids(n), degree, seed)
        return
    pairs = regular_pairs(ids(n), degree, seed)
    assert Counter(task for pair in pairs for task in pair) == dict.fromkeys(ids(n), degree)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == n * degree // 2
    assert LeastSquares(resamples=50).fit(simulate(truth(n), pairs)).report.components == 1


def test_regular_designs_depend_on_the_seed_alone():
    assert regular_pairs(ids(20), 4, 1) == regular_pairs(ids(20), 4, 1) != regular_pairs(ids(20), 4, 2)


def test_disjoint_pairs_share_no_task_and_all_pairs_are_all():
    pairs = disjoint_pairs(ids(11), 0)
    assert len(pairs) == 5 and len({task for pair in pairs for task in pair}) == 10
    assert len(all_pairs(ids(7))) == 21
    with pytest.raises(ValueError, match="occurs twice"):
        all_pairs(["a", "a"])
    with pytest.raises(ValueError, match="this design 2; got 1"):
        disjoint_pairs(["a"])


def test_hold_out_splits_unordered_pairs():
    pairs = all_pairs(ids(10))
    fitted, held = hold_out(pairs, 0.2, 0)
    assert len(held) == 9 and sorted(fitted + held) == sorted(pairs)
    with pytest.raises(ValueError, match="A pair occurs twice"):
        hold_out([("a", "b"), ("b", "a")], 0.5)
    with pytest.raises(ValueError, match="hold-out share is 1"):
        hold_out(pairs, 1)


# ---- utilities


def test_order_averages_take_a_constant_and_a_pair_specific_bias_away():
    utilities = truth(8)
    pairs = order_averages(simulate(utilities, all_pairs(ids(8)), position=0.7, spread=2.0))
    expected = [utilities[a] - utilities[b] for a, b in zip(pairs["task_1"], pairs["task_2"], strict=True)]
    np.testing.assert_allclose(pairs["content"], expected, atol=1e-12)


def test_pairs_with_one_usable_order_are_left_out():
    table = simulate(truth(3), all_pairs(ids(3)))
    table.loc[0, "logit"] = np.nan
    assert len(order_averages(table)) == 2
    table["logit"] = np.nan
    with pytest.raises(ValueError, match="nothing to fit"):
        LeastSquares().fit(table)


def test_least_squares_equals_a_dense_solution_and_recovers_the_truth():
    utilities = truth(12)
    pairs = regular_pairs(ids(12), 6)
    fitted = LeastSquares(resamples=50).fit(simulate(utilities, pairs, position=-0.4, spread=1.0))
    np.testing.assert_allclose(fitted.values, list(utilities.values()), atol=1e-6)
    noisy = simulate(utilities, pairs, noise=0.5)
    averaged = order_averages(noisy)
    design = np.zeros((len(averaged), 12))
    design[np.arange(len(averaged)), averaged["task_1"].map(ids(12).index)] = 1
    design[np.arange(len(averaged)), averaged["task_2"].map(ids(12).index)] = -1
    solution = np.linalg.lstsq(design, averaged["content"], rcond=None)[0]
    np.testing.assert_allclose(LeastSquares(resamples=50).fit(noisy).values, solution - solution.mean(), atol=1e-6)


def test_least_squares_intervals_cover_the_truth():
    utilities, covered, biases = truth(20), [], []
    for seed in range(40):
        table = simulate(utilities, regular_pairs(ids(20), 8, seed), position=0.5, spread=1.0, noise=0.5, seed=seed)
        fitted = LeastSquares(resamples=200, seed=seed).fit(table)
        labels = fitted.labels()
        covered.append(labels["task_id"].map(utilities).between(labels["low"], labels["high"]).mean())
        biases.append(fitted.position.low <= 0.5 <= fitted.position.high)
    assert 0.86 <= np.mean(covered) <= 0.98
    assert np.mean(biases) >= 0.85


def test_bradley_terry_equals_logistic_regression():
    utilities = truth(10)
    table = simulate(utilities, all_pairs(ids(10)), position=0.6)
    random = np.random.default_rng(0)
    table["p_first"] = (random.random(len(table)) < table["p_first"]).astype(float)
    fitted = BradleyTerry(prior_sd=1.5, resamples=20).fit(table)
    design = np.zeros((len(table), 10))
    design[np.arange(len(table)), table["first"].map(ids(10).index)] = 1
    design[np.arange(len(table)), table["second"].map(ids(10).index)] = -1
    sklearn = LogisticRegression(C=1.5**2, tol=1e-10, max_iter=10_000).fit(design, table["p_first"])
    np.testing.assert_allclose(fitted.values, sklearn.coef_[0] - sklearn.coef_[0].mean(), atol=2e-4)
    assert fitted.position.value == pytest.approx(sklearn.intercept_[0], abs=2e-4)


def test_bradley_terry_accepts_probabilities_and_agrees_with_many_draws():
    utilities = truth(6)
    table = simulate(utilities, all_pairs(ids(6)), position=0.3)
    soft = BradleyTerry(prior_sd=50, resamples=20).fit(table)
    np.testing.assert_allclose(soft.values, list(utilities.values()), atol=0.02)
    assert soft.position.value == pytest.approx(0.3, abs=0.01)


def test_a_task_that_always_wins_stays_finite_and_refusals_are_not_votes():
    table = simulate(truth(4), all_pairs(ids(4)))
    table["p_first"] = (table["first"] < table["second"]).astype(float)
    fitted = BradleyTerry(resamples=20).fit(table)
    assert np.isfinite(fitted.values).all() and fitted.values[0] == max(fitted.values)
    refused = table.copy()
    refused.loc[refused["first"] == "t003", ["logit", "p_first"]] = np.nan
    refused.loc[refused["first"] == "t003", "outcome"] = "refused"
    report = BradleyTerry(resamples=20).fit(refused).report
    assert report.outcomes == {"chose": 9, "refused": 3} and report.per_task["t003"] == 3
    table["outcome"] = "refused"
    with pytest.raises(ValueError, match="None of 12 answers is a choice"):
        BradleyTerry().fit(table)


def test_disconnected_graphs_are_reported():
    table = simulate(truth(6), [("t000", "t001"), ("t001", "t002"), ("t003", "t004"), ("t004", "t005")])
    fitted = LeastSquares(resamples=50).fit(table)
    assert fitted.report.components == 2
    assert np.isfinite(fitted.values).all()


def test_utilities_are_labels_and_predict_any_pair():
    utilities = truth(10)
    fitted = LeastSquares(resamples=200).fit(simulate(utilities, regular_pairs(ids(10), 6), noise=0.2))
    labels = fitted.labels()
    assert (labels["low"] <= labels["value"]).all() and (labels["n"] == 6).all()
    difference = fitted.difference("t000", "t009")
    assert difference.low < utilities["t000"] - utilities["t009"] < difference.high
    assert fitted.difference("t009", "t000").value == pytest.approx(-difference.value)


# ---- reliability


def test_position_bias_finds_what_was_put_in():
    bias = position_bias(simulate(truth(40), regular_pairs(ids(40), 10), position=0.8, spread=0.5))
    assert bias.mean.low < 0.8 < bias.mean.high and bias.mean.differs_from(0)
    assert bias.spread.low < 0.5 < bias.spread.high
    assert bias.content.value == pytest.approx(np.sqrt(2), rel=0.25)
    orderless = position_bias(simulate(truth(40), regular_pairs(ids(40), 4)))
    assert orderless.order_correlation.value == pytest.approx(1) and orderless.flips.value == 0
    order_alone = position_bias(simulate(dict.fromkeys(ids(40), 0.0), regular_pairs(ids(40), 4), position=1, spread=0.1))
    assert order_alone.order_correlation.value == pytest.approx(-1) and order_alone.flips.value == 1
    with pytest.raises(ValueError, match="1 pairs have answers"):
        position_bias(simulate(truth(2), [("t000", "t001")]))


def test_position_bias_does_not_depend_on_which_task_of_a_pair_is_called_first():
    table = simulate(truth(12), regular_pairs(ids(12), 6), position=0.4, spread=0.7)
    renamed = table.replace({name: f"z{99 - int(name[1:]):02}" for name in ids(12)})
    one, other = position_bias(table), position_bias(renamed)
    for name in ("mean", "spread", "content", "order_correlation", "flips"):
        assert getattr(one, name).value == pytest.approx(getattr(other, name).value)


def test_hold_out_is_perfect_without_noise_and_chance_without_signal():
    pairs = regular_pairs(ids(30), 10)
    fitted_pairs, held = hold_out(pairs, 0.3)
    good = truth(30)
    perfect = hold_out_accuracy(LeastSquares(resamples=50).fit(simulate(good, fitted_pairs)), simulate(good, held))
    assert perfect.accuracy.value == 1 and perfect.correlation.value == pytest.approx(1)
    assert perfect.log_loss.value == pytest.approx(perfect.floor_log_loss, abs=1e-6)
    assert perfect.floor_log_loss < perfect.coin_log_loss
    flat = dict.fromkeys(ids(30), 0.0)
    noise = hold_out_accuracy(
        LeastSquares(resamples=50).fit(simulate(flat, fitted_pairs, noise=1, seed=1)), simulate(flat, held, noise=1, seed=2)
    )
    assert not noise.accuracy.differs_from(0.5)


def label_frame(values, target="a") -> pd.DataFrame:
    return pd.DataFrame({"task_id": ids(len(values)), "target": target, "value": values})


def test_agreement_is_scipys_correlation_with_an_interval_that_covers():
    covered = []
    for seed in range(60):
        x, y = np.random.default_rng(seed).multivariate_normal([0, 0], [[1, 0.5], [0.5, 1]], 60).T
        found = agreement(label_frame(x), label_frame(y), resamples=300)
        assert found.pearson.value == pytest.approx(stats.pearsonr(x, y).statistic)
        assert found.spearman.value == pytest.approx(stats.spearmanr(x, y).statistic)
        covered.append(found.pearson.low <= 0.5 <= found.pearson.high)
    assert np.mean(covered) >= 0.85
    with pytest.raises(ValueError, match="3 tasks have both labels"):
        agreement(label_frame([1, 2, 3]), label_frame([1, 2, 3]))


def test_scale_agreement_is_the_mean_correlation_between_scales():
    values = np.random.default_rng(0).normal(size=(3, 30))
    values[1] += values[0]
    labels = pd.concat([label_frame(row, target=str(number)) for number, row in enumerate(values)])
    expected = np.mean([np.corrcoef(values)[0, 1], np.corrcoef(values)[0, 2], np.corrcoef(values)[1, 2]])
    assert scale_agreement(labels).value == pytest.approx(expected)
    with pytest.raises(ValueError, match="1 scales"):
        scale_agreement(label_frame(values[0]))


def test_the_interval_of_position_bias_covers_it_where_position_is_a_matter_of_the_task():
    covered = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        own = dict(zip(ids(40), random.normal(-0.24, 0.5, 40), strict=True))
        rows = []
        for a, b in regular_pairs(ids(40), 4, seed):
            bias = (own[a] + own[b]) / 2 + 0.2 * random.normal()
            rows += [(a, b, "w", 0, "chose", 1.0, bias, 0.5), (b, a, "w", 0, "chose", 1.0, bias, 0.5)]
        columns = ["first", "second", "template", "draw", "outcome", "mass", "logit", "p_first"]
        bias = position_bias(pd.DataFrame(rows, columns=columns))
        covered += bias.mean.low < -0.24 < bias.mean.high
    assert covered >= 35  # a bootstrap over pairs covers 33
