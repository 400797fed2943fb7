"""Kinds of probe in a sweep: planted signals are found, predictions equal those of single probes, and noise stays noise."""

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from interp import probe_sweep
from interp.estimators import MassMeanProbe
from interp.folds import TRAIN_ONLY, FoldTable, grouped_folds
from interp.kinds import Columns, Fitting
from interp.probe_block import _shuffles, choices_between
from interp.shifted import Place
from interp.splits import Split
from tests.interp.test_probe import make_labels, make_store

KINDS = ("ridge", "logistic", "mass_mean", "bradley_terry")


@pytest.fixture
def random():
    return np.random.default_rng(3)


def choices_of(values: np.ndarray, random: np.random.Generator, noise: float = 0.0) -> pd.DataFrame:
    """Both orders of pairs of tasks, chosen by their values."""
    rows = []
    for first in range(len(values)):
        for second in random.choice(np.delete(np.arange(len(values)), first), 4, replace=False):
            logit = values[first] - values[second] + noise * random.normal()
            for ends, sign in (((first, second), 1), ((second, first), -1)):
                rows.append((f"task{ends[0]}", f"task{ends[1]}", special.expit(sign * logit)))
    return pd.DataFrame(rows, columns=["first", "second", "p_first"])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_finds_a_planted_signal_and_puts_it_on_the_scale_of_its_labels(kind, tmp_path, random):
    features = random.normal(size=(120, 25))
    values = 2 * features[:, 0] + 0.3 * random.normal(size=120)
    store = make_store(tmp_path / "a.h5", features, np.full(120, 9))
    sweep = probe_sweep(store, make_labels(values), kind=kind, choices=choices_of(values, random), permutations=39)
    best = sweep.best("utility")
    assert best["r2"] > 0.35 and best["pairwise_accuracy"] > 0.8
    assert best["p_best"] == pytest.approx(1 / 40) and best["gain_low"] > 0
    if kind == "bradley_terry":
        assert best["choice_accuracy_low"] < best["choice_accuracy"] < best["choice_accuracy_high"]
        assert best["choice_accuracy"] > 0.75


def test_a_pair_answered_in_one_order_only_says_nothing_and_orders_count_the_same():
    made = [("task0", "task1", 0.9), ("task0", "task1", 0.9), ("task1", "task0", 0.6), ("task0", "task2", 1.0)]
    table = pd.DataFrame(made, columns=["first", "second", "p_first"]).assign(outcome="chose")
    refused = pd.DataFrame([("task2", "task0", 0.5)], columns=["first", "second", "p_first"]).assign(outcome="refused")
    found = choices_between(pd.concat([table, refused]), ["task0", "task1", "task2"], np.arange(3)[:, None])
    assert found.pairs.tolist() == [[0, 1]] and found.weight.tolist() == [3]
    assert found.share == pytest.approx([(0.9 + 0.4) / 2])


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_leaves_noise_alone(kind, tmp_path, random):
    features, values = random.normal(size=(60, 30)), random.normal(size=60)
    store = make_store(tmp_path / "a.h5", features, np.full(60, 9))
    best = probe_sweep(
        store, make_labels(values), kind=kind, choices=choices_of(values, random), permutations=19, resamples=100
    ).best("utility")
    assert best["r2"] < 0.15 and best["p_value"] > 0.05


def test_a_logistic_probe_in_a_sweep_is_that_of_scikit_learn_with_its_penalty_chosen_by_inner_folds(random):
    features = random.normal(size=(60, 20))
    classes = (features[:, 0] + 0.5 * random.normal(size=60) > 0).astype(float)
    folds, alphas = grouped_folds(range(60), 3, 0), (1.0, 30.0, 1000.0)
    columns = Columns(classes[:, None], None, np.arange(60))
    predicted, chosen = Fitting("logistic", alphas).predict(FoldTable.of(features, folds, Place.of()), columns)
    for fold in range(3):
        losses = np.zeros(3)
        for inner in set(range(3)) - {fold}:
            train = (folds != fold) & (folds != inner)
            for number, alpha in enumerate(alphas):
                guess = _sklearn(features[train], classes[train], alpha, features[folds == inner])
                losses[number] += log_loss(classes[folds == inner], guess, normalize=False)
        best = alphas[losses.argmin()]
        assert chosen[fold, 0] == best
        expected = _sklearn(features[folds != fold], classes[folds != fold], best, features[folds == fold])
        np.testing.assert_allclose(predicted[folds == fold, 0], expected, atol=1e-3)


def _sklearn(features: np.ndarray, classes: np.ndarray, alpha: float, new: np.ndarray) -> np.ndarray:
    scaler = StandardScaler().fit(features)
    fit = LogisticRegression(C=1 / alpha, tol=1e-10, max_iter=10_000).fit(scaler.transform(features), classes)
    return fit.predict_proba(scaler.transform(new))[:, 1]


def test_a_mass_mean_probe_in_a_sweep_orders_tasks_as_the_single_probe_does(random):
    features = random.normal(size=(50, 12))
    classes = (features[:, 0] > 0.3).astype(float)
    folds = grouped_folds(range(50), 4, 0)
    columns = Columns(classes[:, None], None, np.arange(50))
    predicted, _ = Fitting("mass_mean").predict(FoldTable.of(features, folds, Place.of()), columns)
    for fold in range(4):
        test = folds == fold
        single = MassMeanProbe().fit(features[~test], classes[~test]).decision_function(features[test])
        assert stats.pearsonr(single, predicted[test, 0])[0] == pytest.approx(1)


def test_pairwise_accuracy_of_classes_is_the_area_under_the_curve(tmp_path, random):
    features = random.normal(size=(60, 10))
    values = (features[:, 0] + random.normal(size=60) > 0).astype(float)
    store = make_store(tmp_path / "a.h5", features, np.full(60, 9))
    sweep = probe_sweep(store, make_labels(values), kind="logistic", permutations=0, resamples=50)
    area = roc_auc_score(sweep.predictions["value"], sweep.predictions["predicted"])
    assert sweep.best("utility")["pairwise_accuracy"] == pytest.approx(area)


@pytest.mark.parametrize("kind", KINDS)
def test_one_held_out_run_is_predicted_by_every_kind_and_by_inner_folds(kind, tmp_path, random):
    features = random.normal(size=(60, 10))
    values = features[:, 0] + 0.2 * random.normal(size=60)
    store = make_store(tmp_path / "a.h5", features, np.full(60, 9))
    tested = [f"task{number}" for number in range(40, 60)]
    sweep = probe_sweep(
        store,
        make_labels(values),
        kind=kind,
        choices=choices_of(values, random),
        choice="folds",
        split=lambda ids: Split.held_out(ids, tested),
        permutations=19,
    )
    assert sorted(sweep.predictions["task_id"]) == sorted(tested)
    assert sweep.best("utility")["pairwise_accuracy"] > 0.7


@pytest.mark.parametrize("n_folds", [2, 4])
def test_what_is_held_out_changes_no_prediction_of_itself(n_folds, random):
    features, values = random.normal(size=(40, 8)), random.normal(size=(40, 2))
    folds = grouped_folds(range(40), n_folds, 0)
    folds[-5:] = TRAIN_ONLY
    for kind in ("ridge", "logistic", "mass_mean"):
        fitting = Fitting(kind, choice="folds")
        given = (values > 0).astype(float) if fitting.tells_classes_apart else values
        changed = given.copy()
        changed[folds == 0] = given[folds == 0][::-1]
        table = FoldTable.of(features, folds, Place.of())
        before, after = (fitting.predict(table, Columns(each, None, np.arange(40)))[0] for each in (given, changed))
        np.testing.assert_allclose(before[folds == 0], after[folds == 0])
        assert np.isnan(before[folds == TRAIN_ONLY]).all() and not np.isnan(before[folds != TRAIN_ONLY]).any()


def test_permutations_keep_clusters_together():
    clusters = np.repeat(np.arange(6), 4)
    shuffles = _shuffles(clusters, 30, seed=0)
    assert (shuffles[:, 0] == np.arange(24)).all()
    assert (np.sort(shuffles, axis=0) == np.arange(24)[:, None]).all()
    from_cluster = clusters[shuffles].reshape(6, 4, 31)
    assert (from_cluster == from_cluster[:, :1]).all()
    assert len(np.unique(shuffles, axis=1).T) == 31
    uneven = _shuffles(np.array([0, 0, 0, 1, 2, 2]), 5, seed=0)
    assert (np.sort(uneven, axis=0) == np.arange(6)[:, None]).all()


def test_p_values_of_noise_that_groups_share_are_right_where_free_permutations_claim_too_much(random):
    clusters = np.repeat(np.arange(12), 6)
    folds = grouped_folds(clusters, 5, 0)

    def p_value(features: np.ndarray, values: np.ndarray, shuffles: np.ndarray) -> float:
        columns = values[shuffles]
        predicted, _ = Fitting().predict(FoldTable.of(features, folds, Place.of()), Columns(columns, None, clusters))
        middle = np.stack([columns[folds != fold].mean(axis=0) for fold in range(5)])[folds]
        r2 = 1 - ((columns - predicted) ** 2).sum(axis=0) / ((columns - middle) ** 2).sum(axis=0)
        return (1 + (r2[1:] >= r2[0]).sum()) / r2.size

    together, free = [], []
    for number in range(200):
        features = np.repeat(random.normal(size=(12, 20)), 6, axis=0) + 0.3 * random.normal(size=(72, 20))
        values = np.repeat(random.normal(size=12), 6) + 0.3 * random.normal(size=72)
        together.append(p_value(features, values, _shuffles(clusters, 39, number)))
        free.append(p_value(features, values, _shuffles(np.arange(72), 39, number)))
    assert np.mean(np.array(together) <= 0.05) < 0.1 < np.mean(np.array(free) <= 0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "lasso"}, r"kind is 'lasso'; expected one of ridge, logistic, mass_mean, bradley_terry"),
        ({"choice": "bic"}, r"choice is 'bic'; expected one of leave_one_out, folds"),
        ({"kind": "bradley_terry"}, r"fitted to choices, and none are given"),
        ({"kind": "bradley_terry", "choices": pd.DataFrame({"a": [1]})}, r"these have the columns \['a'\]"),
        (
            {"kind": "bradley_terry", "choices": pd.DataFrame({"first": ["x"], "second": ["y"], "p_first": [1.0]})},
            r"None of 1 choices is of a pair of the 20 labelled tasks that was answered in both orders",
        ),
        ({"kind": "logistic", "demean": {f"task{number}": "ab"[number % 2] for number in range(20)}}, "cannot be taken off"),
        ({"targets": ["joy"]}, r"no labels of \['joy'\]; expected some of \['utility'\]"),
        ({"alphas": [0.0]}, "expected one or more positive numbers"),
        ({"n_folds": 50}, "50 folds for 20 groups"),
    ],
)
def test_what_cannot_be_probed_so_is_said(given, message, tmp_path, random):
    store = make_store(tmp_path / "a.h5", random.normal(size=(20, 5)), np.full(20, 7))
    with pytest.raises((ValueError, KeyError), match=message):
        probe_sweep(store, make_labels(np.arange(20.0)), **given)


def test_classes_that_a_training_part_lacks_are_named(tmp_path, random):
    store = make_store(tmp_path / "a.h5", random.normal(size=(20, 5)), np.full(20, 7))
    origins = {f"task{number}": "ab"[number >= 10] for number in range(20)}
    values = (np.arange(20) >= 10).astype(float)
    with pytest.raises(ValueError, match=r"Without a, 10 of 10 tasks are in the upper class of 'utility'"):
        probe_sweep(store, make_labels(values), kind="logistic", split=lambda ids: Split.leave_one_out(ids, origins))
