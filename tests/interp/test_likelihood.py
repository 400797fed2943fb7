"""Logistic and Bradley-Terry probes of many columns at once: against scikit-learn and Newton's method."""

import numpy as np
import pytest
from scipy import special
from sklearn.linear_model import LogisticRegression

from interp.bradley_terry import differences
from interp.likelihood import Basis, ChoiceLoss, Choices, ClassLoss

ALPHAS = (0.3, 10.0, 1000.0)


def standardised(n: int, d: int, seed: int = 0) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(n, d))
    return (rows - rows.mean(axis=0)) / rows.std(axis=0)


@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 40)])
def test_logistic_fits_of_all_columns_equal_those_of_scikit_learn(n, d):
    random = np.random.default_rng(1)
    rows = standardised(n, d)
    classes = (rows[:, :4] + random.normal(size=(n, 4)) + 0.5 > 0).astype(float)
    weights, intercepts = Basis.of(rows).fit(ClassLoss(classes), np.repeat(np.array(ALPHAS)[:, None], 4, axis=1))
    for number, alpha in enumerate(ALPHAS):
        for column in range(4):
            fit = LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10_000).fit(rows, classes[:, column])
            found = rows @ weights[number, :, column] + intercepts[number, column]
            np.testing.assert_allclose(found, fit.decision_function(rows), rtol=2e-3, atol=2e-3)


def test_penalties_may_differ_between_columns():
    rows = standardised(50, 20)
    classes = (rows[:, :2] > 0.2).astype(float)
    both, _ = Basis.of(rows).fit(ClassLoss(classes), np.array([[1.0, 50.0]]))
    for column, alpha in enumerate((1.0, 50.0)):
        alone, _ = Basis.of(rows).fit(ClassLoss(classes[:, [column]]), np.array([[alpha]]))
        np.testing.assert_allclose(both[0, :, column], alone[0, :, 0], atol=1e-4)


@pytest.mark.parametrize(("n", "d"), [(30, 80), (60, 12)])
def test_fits_to_choices_equal_newtons_method_in_every_permutation(n, d):
    random = np.random.default_rng(2)
    rows = standardised(n, d)
    pairs = np.unique(np.sort(random.integers(0, n, (4 * n, 2)), axis=1), axis=0)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    share = special.expit(random.normal(size=len(pairs)))
    weight = random.integers(1, 4, len(pairs)).astype(float)
    shuffles = np.stack([np.arange(n), random.permutation(n)], axis=1)  # the task of every row, in each column
    train = np.arange(n) % 5 != 0
    choices = Choices(pairs, share, weight, np.argsort(shuffles, axis=0))
    weights, intercepts = Basis.of(rows[train] - rows[train].mean(axis=0)).fit(
        ChoiceLoss(choices, train), np.repeat(np.array(ALPHAS)[:, None], 2, axis=1)
    )
    assert not intercepts.any()
    for column in range(2):
        row = choices.row_of[:, column]
        among = train[row][pairs].all(axis=1)
        design = differences(rows[row], pairs[among])
        for number, alpha in enumerate(ALPHAS):
            expected = _by_newton(design, share[among], weight[among], alpha)
            np.testing.assert_allclose(design @ weights[number, :, column], design @ expected, rtol=2e-3, atol=2e-3)


def _by_newton(design: np.ndarray, share: np.ndarray, weight: np.ndarray, alpha: float) -> np.ndarray:
    """Newton's method, written out."""
    found = np.zeros(design.shape[1])
    for _ in range(50):
        chance = special.expit(design @ found)
        slope = design.T @ (weight * (chance - share)) + alpha * found
        curve = design.T @ (design * (weight * chance * (1 - chance))[:, None]) + alpha * np.eye(len(found))
        found -= np.linalg.solve(curve, slope)
    return found


def test_held_out_log_loss_counts_choices_between_the_rows_named():
    choices = Choices(np.array([[0, 1], [1, 2]]), np.array([0.8, 0.5]), np.array([2.0, 1.0]), np.arange(3)[:, None])
    utilities = np.array([[1.0], [0.0], [5.0]])
    expected = -(0.8 * np.log(special.expit(1)) + 0.2 * np.log(special.expit(-1)))
    np.testing.assert_allclose(choices.log_loss(utilities, np.array([True, True, False])), expected)
