"""Estimators: algebraic identities, parity with scikit-learn, statsmodels and scipy, planted truths, and honest reports."""

import re
import time
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from elicit.comparisons import ComparisonError, Comparisons
from elicit.designs import all_pairs, balanced_orders, hold_out, regular_pairs
from elicit.estimators import BradleyTerry, LeastSquares, Thurstone, ThurstoneSigmas
from elicit.extended import Davidson, Lapse, Sigmas
from elicit.newton import Convergence, logistic, probit, squared
from elicit.pairs import order_averages
from elicit.reliability import hold_out_accuracy

PLAIN = {
    "least squares": LeastSquares(errors="none"),
    "bradley-terry": BradleyTerry(errors="none"),
    "thurstone": Thurstone(errors="none"),
    "davidson": BradleyTerry(ties="davidson", errors="none"),
    "lapse": BradleyTerry(lapse=True, errors="none"),
    "sigmas": ThurstoneSigmas(errors="none"),
}
"""Every model, without errors; L-BFGS-B ends some 1e-5 from the optimum, Newton's method much nearer."""
NOISY = {
    "least squares": LeastSquares(resamples=30),
    "least squares, bootstrap": LeastSquares(errors="bootstrap", resamples=30),
    "bradley-terry": BradleyTerry(resamples=30),
    "thurstone": Thurstone(resamples=30),
    "davidson": BradleyTerry(ties="davidson", resamples=4),
    "lapse": BradleyTerry(lapse=True, resamples=4),
    "sigmas": ThurstoneSigmas(resamples=4),
}
each_model = pytest.mark.parametrize("estimator", PLAIN.values(), ids=PLAIN.keys())
each_model_of_choices = pytest.mark.parametrize("name", [name for name in PLAIN if name != "least squares"])
each_source_of_errors = pytest.mark.parametrize("estimator", NOISY.values(), ids=NOISY.keys())


def ids(n):
    return [f"t{number:03}" for number in range(n)]


def truth(n, sd=1.0, seed=0):
    values = sd * np.random.default_rng(seed).normal(size=n)
    return pd.Series(values - values.mean(), ids(n))


def exact(utilities, pairs, *, position=0.0, own=0.0, seed=0):
    """Exact answers to both orders of every pair; `own` is the spread of what a pair owes to itself alone."""
    random = np.random.default_rng(seed)
    rows = []
    for one, other in pairs:
        itself = own * random.normal()
        for first, second, sign in ((one, other, 1), (other, one, -1)):
            logit = utilities[first] - utilities[second] + position + sign * itself
            rows.append((first, second, "w", "chose", logit, special.expit(logit)))
    return pd.DataFrame(rows, columns=["first", "second", "template", "outcome", "logit", "p_first"])


def sampled(utilities, pairs, *, position=0.0, link=special.expit, seed=0):
    """One choice for each ordered pair."""
    random = np.random.default_rng(seed)
    first, second = (list(each) for each in zip(*pairs, strict=True))
    p = link(utilities[first].to_numpy() - utilities[second].to_numpy() + position)
    chosen = (random.random(len(p)) < p).astype(float)
    return pd.DataFrame({"first": first, "second": second, "outcome": "chose", "p_first": chosen})


def mixed(n=9, seed=0):
    """Answers that every model can fit: probabilities with a share of ties, weights, and log-odds, in both orders."""
    random = np.random.default_rng(seed)
    table = exact(truth(n, seed=seed), regular_pairs(ids(n), 6 if n > 6 else 4, seed), position=0.4, own=0.5, seed=seed)
    tie = random.uniform(0.05, 0.3, len(table))
    table["p_first"] *= 1 - tie
    return table.assign(p_tie=tie, weight=random.integers(1, 4, len(table)))


def design_of(table, tasks, *, position=True):
    """+1 for the task shown first, -1 for the second, and, last, 1 for the position term."""
    matrix = np.zeros((len(table), len(tasks) + position))
    rows, place = np.arange(len(table)), pd.Index(tasks)
    matrix[rows, place.get_indexer(pd.Index(table["first"]))] = 1
    matrix[rows, place.get_indexer(pd.Index(table["second"]))] = -1
    if position:
        matrix[:, -1] = 1
    return matrix


def identified(n, position=True):
    """From parameters whose last utility is left out to those with mean zero."""
    mapping = np.zeros((n + position, n - 1 + position))
    mapping[:n, : n - 1] = (np.eye(n) - 1 / n)[:, : n - 1]
    if position:
        mapping[-1, -1] = 1
    return mapping


def same(one, other, tolerance=1e-4):
    """Whether two fits agree."""
    assert one.task_ids == other.task_ids
    np.testing.assert_allclose(one.values, other.values, atol=tolerance)
    np.testing.assert_allclose(one.position.value, other.position.value, atol=tolerance)
    if one.sigmas is not None:
        np.testing.assert_allclose(one.sigmas, other.sigmas, atol=tolerance)


# ---- parity with statsmodels and scikit-learn


def without_one_utility(table, tasks):
    return np.delete(design_of(table, tasks), len(tasks) - 1, axis=1)


def test_maximum_likelihood_of_soft_weighted_answers_equals_a_binomial_glm():
    table = mixed()
    fitted = BradleyTerry(prior_sd=None, errors="none").fit(table)
    won, tasks = table["p_first"] + table["p_tie"] / 2, list(fitted.task_ids)
    family, design = sm.families.Binomial(), without_one_utility(table, tasks)
    glm = sm.GLM(won, design, family=family, freq_weights=table["weight"]).fit(tol=1e-12)
    expected = identified(len(tasks)) @ glm.params.to_numpy()
    np.testing.assert_allclose([*fitted.values, fitted.position.value], expected, atol=1e-7)
    assert fitted.report.log_loss == pytest.approx(cross_entropy(won, glm.fittedvalues, table["weight"]))


def cross_entropy(won, p, weight):
    return float(np.average(-special.xlogy(won, p) - special.xlogy(1 - won, 1 - p), weights=weight))


@pytest.mark.parametrize("prior_sd", [0.5, 2.0])
def test_maximum_a_posteriori_of_soft_weighted_answers_equals_ridge_logistic_regression(prior_sd):
    table = mixed(seed=1)
    fitted = BradleyTerry(prior_sd=prior_sd, errors="none").fit(table)
    won = (table["p_first"] + table["p_tie"] / 2).to_numpy()
    weight = table["weight"].to_numpy()
    design = design_of(table, fitted.task_ids, position=False)
    solver = LogisticRegression(C=prior_sd**2, tol=1e-12, max_iter=100_000, solver="newton-cholesky")
    solver.fit(
        np.concatenate([design, design]), np.repeat([1, 0], len(table)), np.concatenate([weight * won, weight * (1 - won)])
    )
    np.testing.assert_allclose(fitted.values, solver.coef_[0], atol=1e-6)
    assert fitted.position.value == pytest.approx(solver.intercept_[0], abs=1e-6)


def test_maximum_likelihood_gives_every_task_the_wins_that_it_had():
    """The score equations of Bradley-Terry: expected equals observed, for every task and for being first."""
    table = sampled(truth(12), [pair for seed in range(6) for pair in regular_pairs(ids(12), 6, seed)], position=0.5)
    fitted = BradleyTerry(prior_sd=None, errors="none").fit(table)
    won = table["p_first"].to_numpy()
    expected = special.expit(fitted.eta(table["first"], table["second"], with_position=True))
    surplus = design_of(table, fitted.task_ids).T @ (won - expected)
    np.testing.assert_allclose(surplus, 0, atol=1e-5)
    convergence = fitted.report.convergence
    assert convergence.converged and convergence.gradient <= convergence.tolerance
    assert np.abs(surplus).max() == pytest.approx(convergence.gradient, abs=1e-12)
    assert 1 < convergence.steps < 20 and f"converged in {convergence.steps} steps" in str(fitted.report)


def test_hessian_errors_equal_those_of_a_binomial_glm():
    table = sampled(truth(8), [pair for seed in range(20) for pair in regular_pairs(ids(8), 4, seed)], position=0.3)
    fitted = BradleyTerry(prior_sd=None, errors="hessian", resamples=4000).fit(table)
    glm = sm.GLM(table["p_first"], without_one_utility(table, fitted.task_ids), family=sm.families.Binomial()).fit(tol=1e-12)
    covariance = identified(8) @ glm.cov_params().to_numpy() @ identified(8).T
    se = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose([*fitted.labels()["se"], fitted.position.se], se, rtol=1e-6)
    np.testing.assert_allclose(fitted.draws.std(axis=0), se[:8], rtol=0.06)
    spread = fitted.difference("t000", "t001").se
    contrast = np.eye(9)[0] - np.eye(9)[1]
    assert spread == pytest.approx(np.sqrt(contrast @ covariance @ contrast), rel=0.06)


def test_thurstone_equals_a_probit_regression_with_its_errors():
    pairs = [pair for seed in range(20) for pair in regular_pairs(ids(8), 4, seed)]
    table = sampled(truth(8), pairs, position=0.3, link=stats.norm.cdf)
    fitted = Thurstone(prior_sd=None, errors="hessian", resamples=2).fit(table)
    regression = sm.Probit(table["p_first"], without_one_utility(table, fitted.task_ids)).fit(disp=0, tol=1e-12)
    np.testing.assert_allclose([*fitted.values, fitted.position.value], identified(8) @ regression.params.to_numpy(), atol=1e-6)
    covariance = identified(8) @ regression.cov_params().to_numpy() @ identified(8).T
    np.testing.assert_allclose([*fitted.labels()["se"], fitted.position.se], np.sqrt(np.diag(covariance)), rtol=1e-5)


def test_thurstone_of_soft_weighted_answers_equals_a_probit_glm():
    table = mixed(seed=2)
    fitted = Thurstone(prior_sd=None, errors="none").fit(table)
    family = sm.families.Binomial(sm.families.links.Probit())
    won, design = table["p_first"] + table["p_tie"] / 2, without_one_utility(table, fitted.task_ids)
    glm = sm.GLM(won, design, family=family, freq_weights=table["weight"]).fit(tol=1e-14, maxiter=1000)
    expected = identified(len(fitted.task_ids)) @ glm.params.to_numpy()
    np.testing.assert_allclose([*fitted.values, fitted.position.value], expected, atol=1e-6)


def test_the_position_test_is_a_likelihood_ratio_against_the_fit_without_the_term():
    table = sampled(truth(10), [pair for seed in range(8) for pair in regular_pairs(ids(10), 4, seed)], position=0.4)
    found = BradleyTerry(prior_sd=None, errors="none").fit(table).report.position_test
    design = without_one_utility(table, ids(10))
    logits = [sm.Logit(table["p_first"], columns).fit(disp=0, tol=1e-12) for columns in (design, design[:, :-1])]
    statistic = 2 * (logits[0].llf - logits[1].llf)
    assert found.statistic == pytest.approx(statistic, abs=1e-6)
    assert found.p == pytest.approx(stats.chi2.sf(statistic, 1))


def test_least_squares_errors_and_intervals_equal_those_of_ordinary_least_squares():
    table = exact(truth(10), regular_pairs(ids(10), 4), position=0.3, own=0.7)
    fitted = LeastSquares(resamples=4000).fit(table)
    pairs = order_averages(table).rename(columns={"task_1": "first", "task_2": "second"})
    ols = sm.OLS(pairs["content"], design_of(pairs, ids(10), position=False)[:, :-1]).fit()
    centred = identified(10, position=False)
    expected = ols.t_test(centred)
    labels = fitted.labels()
    np.testing.assert_allclose(labels["value"], expected.effect, atol=1e-9)
    np.testing.assert_allclose(labels["se"], expected.sd, rtol=1e-9)
    np.testing.assert_allclose(labels[["low", "high"]], expected.conf_int(), atol=1e-7)
    assert fitted.report.residual_sd == pytest.approx(np.sqrt(ols.scale))
    assert fitted.position.value == pytest.approx(table["logit"].mean())
    # Draws are of Student's t: their quantiles say what the standard error and its degrees of freedom do.
    difference = fitted.difference("t000", "t005")
    contrast = ols.t_test(centred[0] - centred[5])
    np.testing.assert_allclose([difference.low, difference.high], contrast.conf_int()[0], atol=0.1 * contrast.sd.item())


@pytest.mark.parametrize("seed", range(12))
def test_errors_of_least_squares_do_not_depend_on_how_an_origin_is_rounded(seed):
    """With numpy's own tolerance the null eigenvalue of seed 1 counted as information, and all errors were nan."""
    fitted = LeastSquares(resamples=2).fit(exact(truth(20), regular_pairs(ids(20), 2, seed), own=0.5, seed=seed))
    pairs = pd.DataFrame(regular_pairs(ids(20), 2, seed), columns=["first", "second"])
    design = design_of(pairs, ids(20), position=False)
    variances = np.diag(np.linalg.inv(design.T @ design + 1 / 20)) - 1 / 20
    np.testing.assert_allclose(fitted.labels()["se"], fitted.report.residual_sd * np.sqrt(variances), rtol=1e-6)


# ---- the losses of every model


@pytest.mark.parametrize(("cell_loss", "targets"), [(logistic, (0, 1)), (probit, (0, 1)), (squared, (-3, 3))])
def test_slopes_and_curvatures_of_a_cell_are_the_derivatives_of_its_loss(cell_loss, targets):
    random = np.random.default_rng(0)
    eta, target = random.normal(size=(50, 1)) * 3, random.uniform(*targets, size=(50, 1))
    step = 1e-5
    value, slope, curvature = cell_loss(eta, target)
    above, below = cell_loss(eta + step, target), cell_loss(eta - step, target)
    np.testing.assert_allclose(slope, (above[0] - below[0]) / (2 * step), atol=1e-8)
    np.testing.assert_allclose(curvature, (above[1] - below[1]) / (2 * step), atol=1e-8)
    assert (curvature > 0).all() and value.shape == eta.shape


@pytest.mark.parametrize("cell_loss", [logistic, probit])
def test_losses_of_answers_that_no_float_can_hold_stay_finite(cell_loss):
    eta = np.array([[-1000.0], [-40.0], [40.0], [1000.0]])
    for won in (0.0, 0.3, 1.0):
        value, slope, curvature = cell_loss(eta, np.full_like(eta, won))
        assert np.isfinite(value).all() and np.isfinite(slope).all() and np.isfinite(curvature).all()


@pytest.mark.parametrize("model", [Davidson, Lapse, Sigmas])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_extended_models_are_the_derivatives_of_their_losses(model, seed):
    cells = Comparisons.of(mixed(6, seed))
    loss, random = model(cells, 0.25, True), np.random.default_rng(seed)
    eta = 2 * random.normal(size=len(cells.first))
    further = {Davidson: np.array([0.3]), Lapse: np.array([0.1]), Sigmas: random.normal(size=6) / 2}[model]

    def by_eta(part):
        return lambda each: loss.cell_loss(each, further, cells.weight)[part]

    def by_further(part):
        return lambda each: loss.cell_loss(eta, each, cells.weight)[part]

    assert optimize.check_grad(by_eta(0), by_eta(1), eta, epsilon=1e-6) < 1e-4 * np.linalg.norm(by_eta(1)(eta))
    assert optimize.check_grad(by_further(0), by_further(2), further, epsilon=1e-6) < 1e-3


def minimised(objective, start):
    """Minimum by a method that knows nothing but values."""
    return optimize.minimize(objective, start, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000}).x


def test_davidson_is_the_maximum_of_his_likelihood():
    """In strengths (Davidson 1970): first, tie and second as pi_1 : nu sqrt(pi_1 pi_2) : pi_2, being first worth a factor."""
    table, prior_sd = mixed(5, seed=3), 1.5
    fitted = BradleyTerry(prior_sd=prior_sd, ties="davidson", errors="none").fit(table)
    first, second = (pd.Index(ids(5)).get_indexer(pd.Index(table[end])) for end in ("first", "second"))
    p_first, p_tie, weight = (table[name].to_numpy() for name in ("p_first", "p_tie", "weight"))

    def objective(parameters):
        strength, order, nu = np.exp(parameters[:5]), np.exp(parameters[5]), np.exp(parameters[6])
        one, other = strength[first] * order, strength[second]
        tie = nu * np.sqrt(one * other)
        total = one + tie + other
        found = p_first * np.log(one / total) + p_tie * np.log(tie / total) + (1 - p_first - p_tie) * np.log(other / total)
        return -weight @ found - stats.norm.logpdf(parameters[:5], scale=prior_sd).sum()

    expected = minimised(objective, np.zeros(7))
    np.testing.assert_allclose(fitted.values, expected[:5] - expected[:5].mean(), atol=1e-4)
    assert fitted.position.value == pytest.approx(expected[5], abs=1e-4)
    assert fitted.report.parameters["log nu of ties"].value == pytest.approx(expected[6], abs=1e-4)


def test_davidson_finds_planted_ties():
    utilities, nu = truth(12), 1.4
    pairs = all_pairs(ids(12))
    eta = np.array([utilities[one] - utilities[other] + 0.3 for one, other in pairs])
    scores = np.stack([eta / 2, np.full_like(eta, np.log(nu)), -eta / 2])
    p_first, p_tie, _ = special.softmax(scores, axis=0)
    table = pd.DataFrame(pairs, columns=["first", "second"]).assign(p_first=p_first, p_tie=p_tie, weight=1000)
    fitted = BradleyTerry(prior_sd=50, ties="davidson", errors="none").fit(table)
    np.testing.assert_allclose(fitted.values, utilities, atol=1e-3)
    assert fitted.position.value == pytest.approx(0.3, abs=1e-3)
    assert np.exp(fitted.report.parameters["log nu of ties"].value) == pytest.approx(nu, abs=1e-3)


def test_davidson_without_ties_is_bradley_terry():
    table = mixed(seed=4).drop(columns="p_tie")
    one, other = (BradleyTerry(ties=ties, errors="none").fit(table) for ties in ("davidson", "half"))
    same(one, other)
    assert np.exp(one.report.parameters["log nu of ties"].value) < 1e-4


def test_lapses_are_found_where_they_are_planted_and_nowhere_else():
    utilities, lapse = truth(15, sd=2.0), 0.12
    table = exact(utilities, all_pairs(ids(15)), position=0.5).assign(weight=100)
    without = BradleyTerry(prior_sd=50, lapse=True, errors="none").fit(table)
    assert without.report.parameters["lapse rate"].value == pytest.approx(0, abs=1e-4)
    same(without, BradleyTerry(prior_sd=50, errors="none").fit(table), tolerance=0.01)
    lapsed = table.assign(p_first=lapse / 2 + (1 - lapse) * table["p_first"])
    found = BradleyTerry(prior_sd=50, lapse=True, errors="none").fit(lapsed)
    assert found.report.parameters["lapse rate"].value == pytest.approx(lapse, abs=0.002)
    np.testing.assert_allclose(found.values, utilities, atol=0.03)
    assert found.position.value == pytest.approx(0.5, abs=0.01)
    assert found.report.log_loss < BradleyTerry(prior_sd=50, errors="none").fit(lapsed).report.log_loss - 0.001


def test_a_planted_lapse_rate_is_in_its_interval():
    table = sampled(truth(12, sd=3.0), all_pairs(ids(12)) * 100)
    coin = np.random.default_rng(1)
    table["p_first"] = np.where(coin.random(len(table)) < 0.15, coin.integers(2, size=len(table)), table["p_first"])
    rate = BradleyTerry(prior_sd=5, lapse=True, resamples=40).fit(table).report.parameters["lapse rate"]
    assert rate.low < 0.15 < rate.high and rate.high - rate.low < 0.1


def test_the_lapse_model_is_the_maximum_of_its_likelihood():
    table = sampled(truth(5, sd=2.0), [pair for seed in range(40) for pair in regular_pairs(ids(5), 4, seed)], position=0.4)
    table["p_first"] = np.where(np.arange(len(table)) % 9 == 0, 1 - table["p_first"], table["p_first"])
    fitted = BradleyTerry(prior_sd=2.0, lapse=True, errors="none").fit(table)
    design, won = design_of(table, ids(5)), table["p_first"].to_numpy()

    def objective(parameters):
        lapse = special.expit(parameters[6])
        p = lapse / 2 + (1 - lapse) * special.expit(design @ parameters[:6])
        return -np.log(np.where(won == 1, p, 1 - p)).sum() + (parameters[:5] ** 2).sum() / (2 * 2.0**2)

    expected = minimised(objective, np.array([0, 0, 0, 0, 0, 0, -2.0]))
    lapse = special.expit(expected[6])
    assert 0.01 < lapse < 0.5
    np.testing.assert_allclose(fitted.values, expected[:5] - expected[:5].mean(), atol=1e-3)
    assert fitted.report.parameters["lapse rate"].value == pytest.approx(lapse, abs=1e-3)


def test_equal_spreads_are_thurstones_case_five_in_its_other_unit():
    table = mixed(seed=5)
    equal = ThurstoneSigmas(penalty=1e6, errors="none").fit(table)
    np.testing.assert_allclose(equal.sigmas, 1, atol=1e-4)
    case_five = Thurstone(prior_sd=None, errors="none").fit(table)
    np.testing.assert_allclose(equal.values, np.sqrt(2) * case_five.values, atol=1e-3)
    assert equal.report.log_loss == pytest.approx(case_five.report.log_loss, abs=1e-6)


def test_spreads_are_found_where_they_are_planted():
    random = np.random.default_rng(0)
    mu, sigma = random.normal(size=10), np.exp(random.uniform(-0.7, 0.7, 10))
    pairs = all_pairs(ids(10))
    first, second = np.array([(ids(10).index(one), ids(10).index(other)) for one, other in pairs]).T
    p = stats.norm.cdf((mu[first] - mu[second]) / np.hypot(sigma[first], sigma[second]))
    table = pd.DataFrame(pairs, columns=["first", "second"]).assign(p_first=p, weight=10_000)
    fitted = ThurstoneSigmas(penalty=1e-3, position=False, errors="none").fit(table)
    scale = np.exp(np.mean(np.log(fitted.sigmas / sigma)))
    np.testing.assert_allclose(fitted.values / scale, mu - mu.mean(), atol=0.02)
    np.testing.assert_allclose(fitted.sigmas / scale, sigma, rtol=0.03)
    predicted = [fitted.predict(one, other).value for one, other in pairs]
    np.testing.assert_allclose(predicted, p, atol=2e-3)


# ---- what must not change a fit, and what must


@each_model
def test_calling_the_other_task_first_turns_nothing_but_the_sign_of_the_position_term(estimator):
    table = mixed(seed=6)
    turned = table.assign(
        first=table["second"],
        second=table["first"],
        p_first=1 - table["p_first"] - table["p_tie"],
        logit=-table["logit"],
    )
    one, other = estimator.fit(table), estimator.fit(turned)
    np.testing.assert_allclose(one.values, other.values, atol=2e-4)
    assert abs(one.position.value) > 0.1
    assert one.position.value == pytest.approx(-other.position.value, abs=2e-4)
    assert one.report.log_loss == pytest.approx(other.report.log_loss, abs=1e-6)


@each_model_of_choices
def test_a_weight_is_that_many_rows(name):
    table = mixed(seed=7)
    repeated = table.loc[table.index.repeat(table["weight"])].drop(columns="weight")
    one, other = PLAIN[name].fit(table), PLAIN[name].fit(repeated)
    same(one, other, tolerance=1e-6)
    assert one.report.per_task == pytest.approx(other.report.per_task)
    assert (one.report.answers, other.report.answers) == (len(table), len(repeated))


@pytest.mark.parametrize("name", PLAIN)
def test_a_row_of_weight_zero_is_no_row(name):
    table = mixed(seed=7)
    extra = table.head(5).assign(weight=0, p_first=0.0, logit=-9.0)
    same(PLAIN[name].fit(table), PLAIN[name].fit(pd.concat([table, extra])), tolerance=1e-9)


@each_model
def test_the_order_of_the_rows_does_not_matter(estimator):
    table = mixed(seed=8)
    same(estimator.fit(table), estimator.fit(table.sample(frac=1, random_state=0)))


@pytest.mark.parametrize("estimator", [BradleyTerry(errors="none"), Thurstone(errors="none"), ThurstoneSigmas(errors="none")])
def test_a_tie_is_half_a_win_to_each(estimator):
    table = mixed(seed=9)
    halved = table.assign(p_first=table["p_first"] + table["p_tie"] / 2).drop(columns="p_tie")
    same(estimator.fit(table), estimator.fit(halved), tolerance=1e-6)
    sides = pd.concat([table.assign(p_first=table["p_first"] + table["p_tie"]), table]).drop(columns="p_tie")
    same(estimator.fit(table), estimator.fit(sides.assign(weight=sides["weight"] / 2)), tolerance=1e-6)


@each_model
@pytest.mark.parametrize("outcome", ["refused", "off_format"])
def test_answers_that_are_no_choice_never_change_a_fit(estimator, outcome):
    table = mixed(seed=10)
    nothing = {"outcome": outcome, "p_first": np.nan, "logit": np.nan, "p_tie": np.nan, "weight": np.nan}
    with_refusals = pd.concat([table, table.head(7).assign(**nothing)], ignore_index=True)
    one, other = estimator.fit(table), estimator.fit(with_refusals)
    same(one, other, tolerance=0)
    assert other.report.outcomes == {"chose": len(table), outcome: 7}
    assert other.report.answers == one.report.answers + 7
    assert f"left out: 7 {outcome}" in str(other.report)


@pytest.mark.parametrize("name", PLAIN)
def test_numbers_beside_a_refusal_never_change_a_fit(name):
    table = mixed(seed=10)
    refusals = table.head(7).assign(outcome="refused", p_first=0.0, logit=-9.0)
    one, other = PLAIN[name].fit(table), PLAIN[name].fit(pd.concat([table, refusals], ignore_index=True))
    same(one, other, tolerance=0)


# ---- draws


@each_source_of_errors
def test_equal_seeds_give_equal_draws_however_many_workers_there_are(estimator):
    table = mixed(8, seed=11)
    alone, two, again = (clone(estimator).set_params(n_jobs=n_jobs).fit(table) for n_jobs in (1, 2, 1))
    for other in (two, again):
        assert (alone.values == other.values).all() and (alone.draws == other.draws).all()
        assert alone.position == other.position
    elsewhere = clone(estimator).set_params(n_jobs=1, seed=1).fit(table)
    assert (alone.values == elsewhere.values).all() and not (alone.draws == elsewhere.draws).any()
    assert alone.position.se != elsewhere.position.se
    assert alone.draws.shape == (estimator.resamples, 8)
    np.testing.assert_allclose(alone.draws.mean(axis=1), 0, atol=1e-9)


def test_a_bootstrap_does_not_depend_on_how_rows_are_written_down():
    table = mixed(seed=7)
    repeated = table.loc[table.index.repeat(table["weight"])].drop(columns="weight")
    one, other = (BradleyTerry(resamples=20).fit(each) for each in (table, repeated))
    np.testing.assert_allclose(one.draws, other.draws, atol=1e-6)


@pytest.mark.parametrize("estimator", [BradleyTerry(prior_sd=2.0), Thurstone(prior_sd=2.0)])
def test_bootstrap_and_hessian_errors_agree_on_many_independent_answers(estimator):
    link = special.expit if isinstance(estimator, BradleyTerry) else stats.norm.cdf
    table = sampled(truth(50, sd=0.5), balanced_orders(all_pairs(ids(50))), position=0.3, link=link)
    bootstrap, hessian = (clone(estimator).set_params(errors=errors).fit(table) for errors in ("bootstrap", "hessian"))
    ratio = bootstrap.labels()["se"] / hessian.labels()["se"]
    assert ratio.mean() == pytest.approx(1, abs=0.08) and ratio.between(0.75, 1.3).all()
    assert bootstrap.position.se == pytest.approx(hessian.position.se, rel=0.2)
    assert bootstrap.report.unconverged_resamples == 0


def test_resamples_without_a_finite_maximum_are_reported():
    """36 pairs of 10 tasks: there is a maximum, but not for every resample, and the draws are whatever steps were taken."""
    table = sampled(truth(10), [pair for seed in range(3) for pair in regular_pairs(ids(10), 4, seed)])
    fitted = BradleyTerry(prior_sd=None).fit(table)
    assert np.abs(fitted.draws).max() < 15 or fitted.report.unconverged_resamples > 0


def test_bootstrap_and_residual_errors_of_least_squares_agree_on_many_pairs():
    table = exact(truth(50), all_pairs(ids(50)), position=0.3, own=0.6)
    bootstrap, residual = (LeastSquares(errors=errors, resamples=300).fit(table) for errors in ("bootstrap", "residual"))
    ratio = bootstrap.labels()["se"] / residual.labels()["se"]
    assert ratio.mean() == pytest.approx(1, abs=0.05) and ratio.between(0.75, 1.3).all()
    drawn = residual.draws.std(axis=0, ddof=1) / residual.labels()["se"]
    assert drawn.mean() == pytest.approx(1, abs=0.05)


def test_without_errors_there_are_no_intervals():
    fitted = BradleyTerry(errors="none").fit(mixed())
    assert fitted.draws.shape == (0, 9) and fitted.labels()[["se", "low", "high"]].isna().all(axis=None)
    assert np.isnan(fitted.predict("t000", "t001").low) and np.isfinite(fitted.predict("t000", "t001").value)


# ---- predictions and labels


@each_source_of_errors
def test_predictions_are_probabilities_that_add_up_to_one_over_both_directions(estimator):
    fitted = estimator.fit(mixed())
    for one, other in all_pairs(fitted.task_ids):
        there, back = fitted.predict(one, other), fitted.predict(other, one)
        assert 0 < there.low <= there.high < 1 and 0 < there.value < 1
        assert there.value + back.value == pytest.approx(1)
        assert (there.low, there.high) == pytest.approx((1 - back.high, 1 - back.low))
    assert fitted.predict("t003", "t003").value == pytest.approx(0.5)


@each_model
def test_predictions_follow_the_utilities_and_the_link(estimator):
    fitted = estimator.fit(mixed())
    difference = fitted.difference("t002", "t006").value
    spread = 1.0 if fitted.sigmas is None else np.hypot(fitted.sigmas[2], fitted.sigmas[6])
    expected = special.expit(difference) if fitted.link == "logistic" else stats.norm.cdf(difference / spread)
    assert fitted.predict("t002", "t006").value == pytest.approx(expected)
    shifted = (difference + fitted.position.value) / spread
    assert fitted.eta(["t002"], ["t006"], with_position=True)[0] == pytest.approx(shifted)


def test_a_task_without_a_utility_is_a_key_error_and_another_component_a_value_error():
    table = exact(truth(6), [("t000", "t001"), ("t001", "t002"), ("t003", "t004"), ("t004", "t005")], own=0.3)
    fitted = BradleyTerry(resamples=5).fit(table)
    with pytest.raises(KeyError, match=r"'t009' has no utility; expected one of the 6 fitted tasks"):
        fitted.predict("t000", "t009")
    with pytest.raises(ValueError, match=r"No chain of comparisons joins 't000' and 't003'.* 2 components"):
        fitted.predict("t000", "t003")
    eta = fitted.eta(["t000", "t000", "t009"], ["t002", "t003", "t000"])
    assert np.isfinite(eta).tolist() == [True, False, False]


def test_labels_have_a_row_for_every_task_with_what_is_behind_it():
    table = mixed()
    fitted = BradleyTerry(resamples=50).fit(table)
    labels = fitted.labels("liking").set_index("task_id")
    assert labels.index.tolist() == ids(9) and (labels["target"] == "liking").all()
    assert (labels["low"] <= labels["high"]).all() and (labels["se"] > 0).all()
    assert labels["value"].sum() == pytest.approx(0, abs=1e-12)
    weight = [table.loc[(table["first"] == task) | (table["second"] == task), "weight"].sum() for task in ids(9)]
    assert labels["n"].tolist() == weight


# ---- reports


def test_a_report_names_components_extremes_and_what_is_unanswered():
    wins = [("b", "a", 0.0), ("a", "c", 1.0), ("c", "b", 0.0), ("b", "c", 1.0)]
    further = [("x", "y", 1.0), ("y", "x", 1.0)]
    table = pd.DataFrame(wins + further, columns=["first", "second", "p_first"]).assign(outcome="chose")
    refused = pd.DataFrame({"first": ["a"], "second": ["q"], "p_first": [np.nan], "outcome": ["refused"]})
    fitted = BradleyTerry(resamples=20).fit(pd.concat([table, refused], ignore_index=True), [*"abcqxyz"])
    report = fitted.report
    assert report.components == 2 and len(set(fitted.component[:3])) == 1 and len(set(fitted.component)) == 2
    assert (report.always_win, report.always_lose) == (("a",), ("c",))
    assert report.unanswered == ("q", "z") and fitted.task_ids == ("a", "b", "c", "x", "y")
    assert report.per_task == {"a": 2, "b": 3, "c": 3, "x": 2, "y": 2} and report.pairs == 4
    assert report.warnings() == [
        "The comparisons fall into 2 components; utilities compare within one only.",
        "2 tasks (q, z) without a usable answer, so without a utility.",
        "1 task (a) won every comparison: the answers do not say by how much.",
        "1 task (c) lost every comparison: the answers do not say by how much.",
    ]
    assert report.to_dict()["warnings"] == report.warnings()
    assert all(line in str(report) for line in report.warnings())


def test_a_fit_that_did_not_converge_says_so_with_its_numbers():
    report = BradleyTerry(errors="none").fit(mixed()).report
    assert report.warnings() == []
    failed = replace(report, convergence=Convergence(False, 100, 0.5, 1e-9), unconverged_resamples=3)
    assert failed.warnings() == [
        "The fit DID NOT CONVERGE in 100 steps (largest gradient 5.0e-01, tolerance 1.0e-09).",
        "3 bootstrap resamples did not converge.",
    ]


def test_a_tree_of_pairs_leaves_no_residual_and_its_report_prints_none():
    fitted = LeastSquares().fit(exact(truth(3), [("t000", "t001"), ("t001", "t002")]))
    assert np.isnan(fitted.report.residual_sd) and fitted.labels()["se"].isna().all()
    assert "nan" not in str(fitted.report)


@each_model
def test_every_model_reports_how_it_ended(estimator):
    convergence = estimator.fit(mixed(seed=12)).report.convergence
    assert convergence.converged and convergence.steps > 0
    assert 0 <= convergence.gradient <= 100 * convergence.tolerance < 1e-3


def test_the_log_loss_of_a_report_is_that_of_its_predictions_with_position():
    table = mixed(seed=13)
    won = table["p_first"] + table["p_tie"] / 2
    for estimator in (BradleyTerry(errors="none"), Thurstone(errors="none"), ThurstoneSigmas(errors="none")):
        fitted = estimator.fit(table)
        p = fitted.probability(fitted.eta(table["first"], table["second"], with_position=True))
        assert fitted.report.log_loss == pytest.approx(cross_entropy(won, p, table["weight"]))


def test_the_position_is_tested_only_where_answers_are_sampled_and_there_is_a_term():
    pairs = balanced_orders(all_pairs(ids(8)))
    chosen, probable = sampled(truth(8), pairs), exact(truth(8), pairs, own=0.3)
    plain = BradleyTerry(errors="none")
    assert plain.fit(chosen).report.position_test is not None
    assert plain.fit(probable).report.position_test is None
    without = BradleyTerry(errors="none", position=False).fit(chosen)
    assert without.report.position_test is None and without.position.value == 0 and np.isnan(without.position.se)
    with_ties = chosen.assign(p_first=chosen["p_first"].where(chosen.index % 5 > 0, 0.5))
    assert plain.fit(with_ties).report.position_test is not None


def test_a_million_tasks_of_which_three_have_answers_are_reported_at_once():
    table = pd.DataFrame([("t000005", "t000007", 1.0), ("t000007", "t000009", 0.3)], columns=["first", "second", "p_first"])
    tasks = [f"t{number:06}" for number in range(1_000_000)]
    start = time.monotonic()
    report = BradleyTerry().fit(table, tasks).report
    text = str(report)
    assert time.monotonic() - start < 30
    assert len(report.unanswered) == 999_997 and len(report.per_task) == 3
    assert "999997 tasks (t000000, t000001, t000002, t000003, t000004, ...) without a usable answer" in text
    assert len(text) < 1000


@pytest.mark.parametrize("tasks", [None, [1, 2, 3, 4]])
def test_ids_that_are_numbers_become_text_everywhere(tasks):
    table = pd.DataFrame([(1, 2, 0.4), (2, 3, 0.7)], columns=["first", "second", "p_first"])
    report = BradleyTerry(errors="none").fit(table, tasks).report
    assert report.unanswered == (() if tasks is None else ("4",))


# ---- the contract of scikit-learn


@each_source_of_errors
def test_estimators_are_cloned_set_and_printed_as_scikit_learns_are(estimator):
    parameters = estimator.get_params()
    assert clone(estimator).get_params() == parameters == type(estimator)(**parameters).get_params()
    changed = clone(estimator).set_params(seed=7, resamples=11)
    assert changed.get_params() == parameters | {"seed": 7, "resamples": 11}
    assert estimator.get_params() == parameters and "seed=7" in repr(changed)
    with pytest.raises(ValueError, match="Invalid parameter 'sead'"):
        clone(estimator).set_params(sead=1)


# ---- bad input


BASE = pd.DataFrame(
    [("a", "b", 0.9), ("b", "a", 0.3), ("b", "c", 0.6), ("c", "a", 0.2)], columns=["first", "second", "p_first"]
).assign(logit=[2.0, -0.8, 0.4, -1.4], template="w")

BAD_ROWS = {
    "p_first is nan": (
        {"p_first": np.nan},
        r"Row 2 \('b' against 'c'\): p_first is nan; .* from 0 to 1 \(1 such rows\).*outcome",
    ),
    "p_first is inf": ({"p_first": np.inf}, r"Row 2 .*p_first is inf"),
    "p_first over one": ({"p_first": 1.01}, r"Row 2 .*p_first is 1\.01; expected a finite number from 0 to 1"),
    "p_first below zero": ({"p_first": -0.2}, r"Row 2 .*p_first is -0\.2"),
    "p_first is text": ({"p_first": "high"}, r"Column p_first is not numbers: .*'high'"),
    "a task against itself": ({"second": "b"}, r"Row 2 \('b' against 'b'\): a task cannot be compared with itself"),
    "no task": ({"second": None}, r"Row 2 .*a task id is missing"),
    "an unknown task": ({"second": "z"}, r"Row 2 .*'z' is not among the 3 tasks given"),
    "a negative weight": ({"weight": -1.0}, r"Row 2 .*weight is -1\.0; expected a finite number of at least 0"),
    "a weight that is no number": ({"weight": np.nan}, r"Row 2 .*weight is nan"),
    "an infinite weight": ({"weight": np.inf}, r"Row 2 .*weight is inf"),
    "too much of ties": ({"p_tie": 0.5}, r"Row 2 .*p_first and p_tie add up to more than one"),
    "a tie of nan": ({"p_tie": np.nan}, r"Row 2 .*p_tie is nan"),
}


@each_model
@pytest.mark.parametrize(("change", "message"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_named_with_what_was_expected(estimator, change, message):
    table = BASE.assign(weight=1.0, p_tie=0.0).astype({name: object for name in change})
    for name, value in change.items():
        table.loc[2, name] = value
    with pytest.raises(ComparisonError, match=message):
        estimator.fit(table, [*"abc"])


BAD_TABLES = {
    "duplicate tasks": (BASE, [*"abca"], "The task id 'a' is given twice"),
    "no weight at all": (BASE.assign(weight=0), None, "All comparisons have weight 0"),
    "no rows": (BASE.head(0), None, "None of 0 answers is a choice"),
    "one task alone": (pd.DataFrame(columns=BASE.columns), ["a"], "None of 0 answers is a choice"),
    "no choices": (BASE.assign(outcome="refused"), None, r"None of 4 answers is a choice \(\{'refused': 4\}\).*preflight"),
    "no column of seconds": (BASE.drop(columns="second"), None, r"lack the columns \['second'\]"),
    "no columns at all": (pd.DataFrame(), None, r"lack the columns \['first', 'second', 'p_first'\]"),
}


@each_model
@pytest.mark.parametrize(("table", "tasks", "message"), BAD_TABLES.values(), ids=BAD_TABLES.keys())
def test_a_table_that_cannot_be_fitted_is_refused_with_the_reason(estimator, table, tasks, message):
    with pytest.raises(ComparisonError, match=message):
        estimator.fit(table, tasks)


def test_least_squares_needs_finite_log_odds_in_both_orders():
    with pytest.raises(ComparisonError, match=r"no column logit.*Use BradleyTerry"):
        LeastSquares().fit(BASE.drop(columns="logit"))
    with pytest.raises(ComparisonError, match=r"log-odds of the pair \('a', 'b'\) are inf; expected a finite number"):
        LeastSquares().fit(BASE.assign(logit=[np.inf, -0.8, 0.4, -1.4]))
    with pytest.raises(ComparisonError, match="No pair has an answer on format in both orders"):
        LeastSquares().fit(BASE.tail(2))


def test_answers_without_a_template_are_all_of_one():
    same(LeastSquares().fit(BASE), LeastSquares().fit(BASE.drop(columns="template")), tolerance=0)


@pytest.mark.parametrize("prior_sd", [0, -1, np.nan, np.inf])
@pytest.mark.parametrize("estimator", [BradleyTerry, Thurstone])
def test_a_prior_that_is_none_is_refused(estimator, prior_sd):
    with pytest.raises(ValueError, match=re.escape(f"prior_sd is {prior_sd}; expected a positive number")):
        estimator(prior_sd=prior_sd).fit(BASE)


@pytest.mark.parametrize("estimator", [BradleyTerry(prior_sd=None), Thurstone(prior_sd=None)])
def test_a_likelihood_without_a_finite_maximum_is_refused_and_the_way_out_named(estimator):
    table = pd.DataFrame([("a", "b", 1.0), ("b", "a", 0.0), ("b", "c", 0.4)], columns=["first", "second", "p_first"])
    with pytest.raises(ComparisonError, match=r"Some tasks won, or lost, all .* \(a\).*Set prior_sd"):
        estimator.fit(table)
    groups = [("a", "b", 0.5), ("c", "d", 0.5), ("a", "c", 1.0), ("d", "b", 0.0)]
    with pytest.raises(ComparisonError, match="so without a prior the utilities have no finite maximum"):
        estimator.fit(pd.DataFrame(groups, columns=["first", "second", "p_first"]))


@given(st.data())
@settings(max_examples=60)
def test_a_finite_maximum_exists_just_where_newtons_method_finds_one(data):
    """Ford (1957), against what the loss itself does without a position term: it converges, or runs away."""
    n = data.draw(st.integers(2, 5))
    pairs = data.draw(st.lists(st.sampled_from(all_pairs(ids(n))), min_size=1, max_size=12))
    won = data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(pairs), max_size=len(pairs)))
    cells = Comparisons.of(pd.DataFrame(pairs, columns=["first", "second"]).assign(p_first=won))
    design = design_of(
        pd.DataFrame({end: np.array(cells.task_ids)[getattr(cells, end)] for end in ("first", "second")}),
        cells.task_ids,
        position=False,
    )
    # A direction that lowers no cell's likelihood and raises one: then there is no maximum (Albert & Anderson 1984).
    signs = np.concatenate([design[cells.won > 0], -design[cells.won < 1]])
    found = optimize.linprog(-signs.sum(axis=0), A_ub=-signs, b_ub=np.zeros(len(signs)), bounds=(-1, 1))
    assert cells.has_maximum() == (found.fun > -1e-9)


ALWAYS_THE_FIRST = pd.DataFrame(
    [(one, other, 1.0) for pair in all_pairs([*"abcd"]) for one, other in (pair, pair[::-1])],
    columns=["first", "second", "p_first"],
)


@pytest.mark.parametrize("prior_sd", [None, 2.0])
def test_a_position_term_without_a_finite_maximum_is_refused_or_reported(prior_sd):
    try:
        fitted = BradleyTerry(prior_sd=prior_sd, errors="none").fit(ALWAYS_THE_FIRST)
    except ComparisonError as error:
        assert "position" in str(error)
        return
    assert any("position" in line for line in fitted.report.warnings())


def test_hessian_errors_are_refused_where_they_would_be_wrong():
    with pytest.raises(ComparisonError, match=r"Hessian errors are for independent sampled answers; .*errors='bootstrap'"):
        BradleyTerry(errors="hessian").fit(BASE)
    choices = BASE.assign(p_first=[1.0, 0.0, 1.0, 0.0])
    for extended in (BradleyTerry(errors="hessian", ties="davidson"), BradleyTerry(errors="hessian", lapse=True)):
        with pytest.raises(ValueError, match="Hessian errors are for the plain model alone"):
            extended.fit(choices)


@pytest.mark.parametrize(
    ("estimator", "message"),
    [
        (BradleyTerry(resamples=1), "resamples is 1; expected at least 2"),
        (LeastSquares(resamples=1), "resamples is 1; expected at least 2"),
        (LeastSquares(errors="hessian"), "errors is 'hessian'; expected one of"),
        (BradleyTerry(errors="residual"), "errors is 'residual'; expected one of"),
        (ThurstoneSigmas(errors="hessian"), "errors is 'hessian'; expected one of"),
        (BradleyTerry(ties="none"), "ties is 'none'; expected 'half' or 'davidson'"),
        (BradleyTerry(ties="davidson", lapse=True), "cannot be fitted together"),
        (ThurstoneSigmas(penalty=-1), "penalty is -1; expected a number of at least 0"),
        (ThurstoneSigmas(penalty=np.nan), "penalty is nan"),
    ],
    ids=repr,
)
def test_a_parameter_that_cannot_be_is_refused_with_what_can(estimator, message):
    with pytest.raises(ValueError, match=message):
        estimator.fit(BASE)


# ---- hold-out


def as_if_true(fitted, utilities):
    """The fit with the planted utilities in place of the fitted ones."""
    return replace(fitted, values=utilities[list(fitted.task_ids)].to_numpy())


def test_perfect_predictions_are_always_right_and_lose_no_more_than_the_floor():
    utilities = truth(20)
    fitted_pairs, held = hold_out(all_pairs(ids(20)), 0.3)
    fitted = LeastSquares().fit(exact(utilities, fitted_pairs, position=0.6))
    score = hold_out_accuracy(fitted, exact(utilities, held, position=0.6))
    assert score.accuracy.value == score.accuracy.high == 1
    assert score.accuracy.low == pytest.approx(len(held) / (len(held) + 1.96**2), abs=1e-4), "Wilson's"
    assert score.accuracy_ceiling == pytest.approx(1, abs=1e-4)
    assert score.log_loss.value == pytest.approx(score.floor_log_loss, abs=1e-9)
    assert score.correlation.value == pytest.approx(1) and score.accuracy.n == len(held)
    content = np.array([utilities[one] - utilities[other] for one, other in held])
    entropy = special.entr(special.expit(content)) + special.entr(special.expit(-content))
    assert score.floor_log_loss == pytest.approx(entropy.mean())


@pytest.mark.parametrize("own", [0.5, 1.5, 4.0])
def test_the_ceiling_of_exact_answers_is_the_accuracy_of_the_true_utilities(own):
    utilities = truth(80, seed=2)
    fitted_pairs, held = hold_out(all_pairs(ids(80)), 0.5)
    fitted = LeastSquares(errors="none").fit(exact(utilities, fitted_pairs, own=own, seed=1))
    answers = exact(utilities, held, own=own, seed=2)
    score, best = (hold_out_accuracy(each, answers) for each in (fitted, as_if_true(fitted, utilities)))
    assert score.accuracy_ceiling == pytest.approx(best.accuracy.value, abs=0.035)
    assert 0.5 < score.accuracy.value <= best.accuracy.value + 0.02
    assert score.log_loss.value > score.floor_log_loss


def test_the_ceiling_and_the_floor_of_sampled_answers_are_those_of_the_true_utilities():
    utilities = truth(30)
    answers = sampled(utilities, all_pairs(ids(30)) * 40, position=0.5, seed=1)
    fitted = BradleyTerry(errors="none").fit(sampled(utilities, all_pairs(ids(30)) * 40, position=0.5, seed=2))
    score = hold_out_accuracy(fitted, answers)
    best = hold_out_accuracy(as_if_true(fitted, utilities), answers)
    assert score.accuracy_ceiling == pytest.approx(best.accuracy.value, abs=0.015)
    assert score.floor_log_loss == pytest.approx(best.log_loss.value, abs=0.015)
    assert score.accuracy.value <= best.accuracy.value + 0.005
    assert best.log_loss.value <= score.log_loss.value + 0.001


def test_without_signal_a_fit_is_no_better_than_a_coin():
    flat = truth(30) * 0
    fitted_pairs, held = hold_out(all_pairs(ids(30)), 0.3)
    fitted = LeastSquares().fit(exact(flat, fitted_pairs, own=1, seed=1))
    score = hold_out_accuracy(fitted, exact(flat, held, own=1, seed=2))
    assert score.accuracy.low < 0.5 < score.accuracy.high
    assert score.accuracy_ceiling < 0.65 and score.log_loss.value > score.coin_log_loss == pytest.approx(np.log(2))


def test_the_accuracy_of_exact_answers_counts_pairs_with_orders_averaged():
    """By hand: three pairs, of which the fit gets two right, whatever the position term does to single orders."""
    fitted = as_if_true(LeastSquares(errors="none").fit(BASE_BOTH), pd.Series({"a": 1.0, "b": 0.0, "c": -1.0}))
    held = exact(pd.Series({"a": 1.0, "b": 0.0, "c": 0.5}), [("a", "b"), ("b", "c"), ("c", "a")], position=5.0)
    score = hold_out_accuracy(fitted, held)
    assert score.accuracy.value == pytest.approx(2 / 3) and score.accuracy.n == 3
    predicted, measured = np.array([1.0, 2.0, 1.0]), np.array([1.0, 0.5, -0.5])
    expected = predicted @ measured / np.sqrt(predicted @ predicted * (measured @ measured))
    assert score.correlation.value == pytest.approx(expected)
    loss = np.logaddexp(0, -predicted) + (1 - special.expit(measured)) * predicted
    assert score.log_loss.value == pytest.approx(loss.mean())


BASE_BOTH = exact(pd.Series({"a": 0.0, "b": 0.0, "c": 0.0}), all_pairs([*"abc"]))


def test_a_position_term_helps_with_sampled_answers_and_its_absence_shows():
    utilities = truth(20)
    train, held = (sampled(utilities, all_pairs(ids(20)) * 10, position=1.5, seed=seed) for seed in (1, 2))
    with_term = hold_out_accuracy(BradleyTerry(errors="none").fit(train), held)
    assert with_term.log_loss_without_position.value > with_term.log_loss.value + 0.05
    without = hold_out_accuracy(BradleyTerry(errors="none", position=False).fit(train), held)
    assert without.log_loss_without_position.value == without.log_loss.value > with_term.log_loss.value
    assert without.accuracy.value < with_term.accuracy.value
    fitted = BradleyTerry(errors="none").fit(train)
    p = fitted.probability(fitted.eta(held["first"], held["second"], with_position=True))
    assert with_term.accuracy.value == pytest.approx(np.mean((p > 0.5) == held["p_first"]))
    assert with_term.log_loss.value == pytest.approx(cross_entropy(held["p_first"], p, np.ones(len(p))))
    assert {"accuracy", "log_loss", "log_loss_without_position"} == set(with_term.table["statistic"])


def test_calibration_puts_predictions_in_tenths_beside_what_was_measured():
    utilities = truth(24)
    fitted_pairs, held = hold_out(all_pairs(ids(24)), 0.4)
    score = hold_out_accuracy(LeastSquares().fit(exact(utilities, fitted_pairs)), exact(utilities, held))
    table = score.calibration()
    ordered = np.sort(score.pairs["p_predicted"])
    edges = np.ceil(np.arange(11) * len(ordered) / 10).astype(int)
    tenths = [ordered[low:high] for low, high in pairwise(edges)]
    np.testing.assert_allclose(table["p_predicted"], [tenth.mean() for tenth in tenths])
    np.testing.assert_allclose(table["p_measured"], table["p_predicted"], atol=1e-6)
    assert table["n"].tolist() == [len(tenth) for tenth in tenths] and table["n"].sum() == len(held)
    np.testing.assert_allclose(table["se"], [tenth.std(ddof=1) / np.sqrt(len(tenth)) for tenth in tenths], rtol=1e-4)


def test_calibration_of_sampled_answers_is_within_their_errors():
    utilities = truth(20)
    train, held = (sampled(utilities, all_pairs(ids(20)) * 100, position=0.5, seed=seed) for seed in (1, 2))
    table = hold_out_accuracy(BradleyTerry(errors="none").fit(train), held).calibration()
    assert table["n"].sum() == len(held) and table["p_predicted"].is_monotonic_increasing
    assert (np.abs(table["p_measured"] - table["p_predicted"]) < 0.04).all()


def test_hold_out_of_pairs_that_cannot_be_predicted_is_refused():
    fitted = LeastSquares().fit(BASE_BOTH)
    held = exact(pd.Series({"x": 0.0, "y": 1.0}), [("x", "y")])
    with pytest.raises(ValueError, match="No held-out pair joins two tasks that have utilities"):
        hold_out_accuracy(fitted, held)
