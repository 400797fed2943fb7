"""Probes: ridge against scikit-learn, splits that keep groups whole, and scores that find planted signals and only those."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from sklearn.metrics import r2_score
from sklearn.preprocessing import StandardScaler

from interp import difference_of_means, fit_probe, preference_direction, probe_sweep, random_directions
from interp.ridge import Ridge, cross_predict, grouped_folds
from store import ActivationStore, ActivationWriter, Direction, Slots, StoreHeader
from store.provenance import ModelIdentity

MODEL = ModelIdentity("made up", "none", "fingerprint")
ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def make_store(path, features: np.ndarray, lengths: np.ndarray) -> ActivationStore:
    """A store with one layer at one position."""
    header = StoreHeader(MODEL, "t", "c", "none", "float32", features.shape[1], (5,), ("task_mean",))
    ids = [f"task{number}" for number in range(len(features))]
    with ActivationWriter.resume(path, header, Slots(ids, ids)) as writer:
        rows = {(5, "task_mean"): features.astype(np.float32)}
        writer.write(np.arange(len(ids)), rows, lengths, {"task_mean": np.full(len(ids), -1)})
    return ActivationStore(path)


def make_labels(values: np.ndarray, target: str = "utility", se: float = 0.0) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "task_id": [f"task{number}" for number in range(len(values))],
            "target": target,
            "value": values,
            "se": se,
            "low": values,
            "high": values,
            "n": 1,
            "method": "made",
        }
    )


@pytest.mark.parametrize(("n", "d"), [(30, 80), (80, 30), (40, 40)])
def test_ridge_equals_scikit_learn_on_standardised_features(n, d, random):
    features = random.normal(size=(n, d)) * random.uniform(0.1, 5, d) + 3
    targets = random.normal(size=(n, 3)) + features[:, :3]
    new = random.normal(size=(7, d))
    scaler = StandardScaler().fit(features)
    ridge = Ridge.decompose(features)
    for alpha in ALPHAS:
        sklearn = SklearnRidge(alpha).fit(scaler.transform(features), targets)
        found = ridge.predict(new, targets, np.full(3, alpha))
        np.testing.assert_allclose(found, sklearn.predict(scaler.transform(new)), atol=1e-6)
    chosen = ridge.choose_alphas(targets, ALPHAS)
    sklearn = RidgeCV(ALPHAS, alpha_per_target=True).fit(scaler.transform(features), targets)
    np.testing.assert_allclose(chosen, sklearn.alpha_)
    weights, intercepts = ridge.weights(targets, chosen)
    np.testing.assert_allclose(new @ weights + intercepts, sklearn.predict(scaler.transform(new)), atol=1e-6)


def test_leave_one_out_in_closed_form_equals_leaving_one_out(random):
    features, targets = random.normal(size=(12, 20)), random.normal(size=(12, 1))
    # The closed form keeps the standardisation of the whole training set, so compare on features that have none to do.
    scaled = StandardScaler().fit_transform(features)
    found = Ridge.decompose(scaled).leave_one_out_errors(targets, [3.0]).mean[0, 0]
    errors = []
    for left in range(12):
        rest = np.arange(12) != left
        fitted = SklearnRidge(3.0).fit(scaled[rest], targets[rest])
        errors.append((targets[left] - fitted.predict(scaled[[left]]))[0] ** 2)
    assert found == pytest.approx(np.mean(errors), rel=1e-8)


def test_a_constant_feature_does_no_harm(random):
    features = np.concatenate([random.normal(size=(20, 5)), np.ones((20, 1))], axis=1)
    predicted, _ = cross_predict(features, features[:, :1], grouped_folds(range(20), 4, 0))
    assert np.isfinite(predicted).all()


def test_folds_keep_groups_whole_and_are_even(random):
    groups = [f"g{number}" for number in random.integers(0, 15, 100)]
    folds = grouped_folds(groups, 5, seed=0)
    assert all(len(set(folds[np.array(groups) == group])) == 1 for group in groups)
    assert np.bincount(folds).max() - np.bincount(folds).min() <= max(np.unique(groups, return_counts=True)[1])
    with pytest.raises(ValueError, match="5 folds for 3 groups"):
        grouped_folds(["a", "b", "c"], 5, 0)


def test_held_out_predictions_never_saw_their_fold(random):
    features, targets = random.normal(size=(30, 10)), random.normal(size=(30, 1))
    folds = grouped_folds(range(30), 3, 0)
    before, _ = cross_predict(features, targets, folds, ALPHAS)
    changed = targets.copy()
    changed[folds == 0] += 100
    after, _ = cross_predict(features, changed, folds, ALPHAS)
    np.testing.assert_allclose(after[folds == 0], before[folds == 0])
    assert not np.allclose(after[folds != 0], before[folds != 0])


def test_a_planted_signal_is_found_and_beats_every_baseline(tmp_path, random):
    features = random.normal(size=(120, 40))
    values = features[:, 0] * 2 + 0.5 * random.normal(size=120)
    store = make_store(tmp_path / "a.h5", features, random.integers(5, 50, 120))
    origins = {f"task{number}": "abc"[number % 3] for number in range(120)}
    sweep = probe_sweep(store, make_labels(values, se=0.2), origins=origins, permutations=50)
    best = sweep.best("utility")
    assert best["r2"] > 0.7
    assert best["gain_low"] > 0 and best["p_best"] == pytest.approx(1 / 51)
    assert best["r2_low"] < best["r2"] < best["r2_high"]
    predictions = sweep.predictions
    assert best["r2"] == pytest.approx(r2_score(predictions["value"], predictions["predicted"]), abs=0.03)
    assert best["pearson"] == pytest.approx(np.corrcoef(predictions["value"], predictions["predicted"])[0, 1])
    baselines = {"random activations", "prompt length", "origin means", "length and origins"}
    assert set(sweep.table["features"]) == baselines | {"residual"}
    assert best["ceiling"] == pytest.approx(1 - 0.04 / values.var(ddof=1))


def test_labels_that_follow_prompt_length_are_no_finding_about_activations(tmp_path, random):
    lengths = random.integers(5, 60, 100)
    store = make_store(tmp_path / "a.h5", random.normal(size=(100, 30)), lengths)
    sweep = probe_sweep(store, make_labels(lengths + random.normal(size=100)), permutations=30)
    best = sweep.best("utility")
    assert best["strongest_baseline"] == "prompt length"
    assert best["gain_high"] < 0


def test_p_values_of_pure_noise_are_uniform_enough(tmp_path, random):
    store = make_store(tmp_path / "a.h5", random.normal(size=(40, 15)), random.integers(5, 50, 40))
    labels = [make_labels(random.normal(size=40), target=f"t{number}") for number in range(60)]
    sweep = probe_sweep(store, pd.concat(labels), permutations=39, resamples=50)
    p_values = sweep.table.loc[sweep.table["features"] == "residual", "p_value"]
    assert 0 <= (p_values <= 0.05).mean() <= 0.15
    assert 0.35 <= (p_values <= 0.5).mean() <= 0.65


def test_labels_that_cannot_be_probed_are_named(tmp_path, random):
    store = make_store(tmp_path / "a.h5", random.normal(size=(20, 5)), np.full(20, 7))
    with pytest.raises(ValueError, match=r"'utility' has 20 tasks and values from 1 to 1"):
        probe_sweep(store, make_labels(np.ones(20)))
    with pytest.raises(KeyError, match="no rows for 2 of 22 tasks with labels: 'task20', 'task21'"):
        probe_sweep(store, make_labels(np.arange(22.0)))
    with pytest.raises(ValueError, match="more than one value"):
        probe_sweep(store, pd.concat([make_labels(np.arange(20.0))] * 2))
    with pytest.raises(ValueError, match="not finite"):
        probe_sweep(store, make_labels(np.append(np.arange(19.0), np.nan)))
    with pytest.raises(ValueError, match="5 folds for 4 groups"):
        probe_sweep(store, make_labels(np.arange(4.0)))


def test_a_probes_direction_is_its_weight_and_predicts_in_raw_space(tmp_path, random):
    features = random.normal(size=(60, 10)) * 5 + 2
    values = features @ np.arange(10.0)
    store = make_store(tmp_path / "a.h5", features, np.full(60, 7))
    probe = fit_probe(store, make_labels(values), 5, "task_mean")
    np.testing.assert_allclose(probe.predict(features), values, atol=0.02 * np.abs(values).max())
    direction = probe.direction()
    np.testing.assert_allclose(direction.vector * direction.provenance["length"], probe.weight, rtol=1e-5)
    assert direction.layer == 5 and direction.provenance["target"] == "utility"


def test_difference_of_means_is_the_difference_of_means(tmp_path, random):
    features = random.normal(size=(20, 8)).astype(np.float32)
    store = make_store(tmp_path / "a.h5", features, np.full(20, 7))
    above, below = ["task3", "task5"], ["task0", "task9", "task2"]
    direction = difference_of_means(store, 5, "task_mean", above, below)
    expected = features[[3, 5]].mean(0) - features[[0, 9, 2]].mean(0)
    np.testing.assert_allclose(direction.vector * direction.provenance["length"], expected, rtol=1e-4, atol=1e-6)
    ranked = preference_direction(store, make_labels(np.arange(20.0)), 5, "task_mean", share=0.25)
    assert ranked.provenance["above"] == [f"task{number}" for number in range(15, 20)]
    with pytest.raises(ValueError, match=r"'task3'\] are in both groups"):
        difference_of_means(store, 5, "task_mean", ["task3"], ["task3"])
    with pytest.raises(ValueError, match="length 0"):
        Direction.from_vector(np.zeros(8), 5, MODEL)


def test_random_directions_are_reproducible_unit_and_nearly_orthogonal():
    first, again = random_directions(MODEL, 500, 3, 5, seed=1), random_directions(MODEL, 500, 3, 3, seed=1)
    for a, b in zip(first, again, strict=False):
        np.testing.assert_array_equal(a.vector, b.vector)
    matrix = np.stack([direction.vector for direction in first])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(5), atol=0.2)
