"""Ridge: scikit-learn's numbers, on every shape and in both precisions, with nothing seen that was to be predicted."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from interp.alphas import AlphaErrors
from interp.folds import FoldTable, Standardised
from interp.ridge import Ridge, cross_predict, cross_predict_path, grouped_folds, held_out_errors
from interp.shifted import Place

ALPHAS = (0.1, 1.0, 10.0, 100.0, 1000.0)
SHAPES = [(40, 90), (90, 40), (50, 40), (60, 1)]  # (50, 40): training parts as wide as they are tall
PLACES = ["numpy", "cpu"]  # the second is torch on a CPU: what runs on a GPU


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


def table(n: int, d: int, targets: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of unequal scale and means far from zero, correlated, and targets that depend on them."""
    random = np.random.default_rng([seed, n, d])
    latent = random.normal(size=(n, d)) @ random.normal(size=(d, d)) / np.sqrt(d)
    features = latent * random.uniform(0.1, 5, d) + random.normal(size=d) * 20
    return features, latent[:, :1] * [2.0, 1.0, 0.0][:targets] + random.normal(size=(n, targets))


def pipelines(features, targets, folds, alphas):
    """What scikit-learn predicts, standardising and fitting anew for every fold and alpha."""
    path = np.empty((len(alphas), *targets.shape))
    for fold in np.unique(folds):
        for number, alpha in enumerate(alphas):
            fitted = make_pipeline(StandardScaler(), SklearnRidge(alpha)).fit(features[folds != fold], targets[folds != fold])
            path[number, folds == fold] = fitted.predict(features[folds == fold]).reshape(-1, targets.shape[1])
    return path


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_predictions_equal_scikit_learns_pipeline_for_every_fold_and_alpha(n, d, device):
    features, targets = table(n, d)
    folds = grouped_folds(range(n), 5, 0)
    expected = pipelines(features, targets, folds, ALPHAS)
    np.testing.assert_allclose(cross_predict_path(features, targets, folds, ALPHAS, device=device), expected, atol=1e-8)
    for number, alpha in enumerate(ALPHAS):
        predicted, chosen = cross_predict(features, targets, folds, [alpha], device=device)
        np.testing.assert_allclose(predicted, expected[number], atol=1e-8)
        assert (chosen == alpha).all()


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_leave_one_out_equals_ridge_cv(n, d, device):
    features, targets = table(n, d)
    scaled = StandardScaler().fit_transform(features)
    sklearn = RidgeCV(ALPHAS, alpha_per_target=True, store_cv_results=True).fit(scaled, targets)
    errors = Ridge.decompose(features, device=device).leave_one_out_errors(targets, ALPHAS)
    squared = np.moveaxis(sklearn.cv_results_, -1, 0)
    np.testing.assert_allclose(errors.mean, squared.mean(axis=1), rtol=1e-8)
    np.testing.assert_allclose(errors.standard_error, squared.std(axis=1, ddof=1) / np.sqrt(n), rtol=1e-8)
    np.testing.assert_array_equal(errors.choose(), sklearn.alpha_)


@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_alphas_chosen_in_each_training_part_are_those_of_ridge_cv_there(n, d):
    features, targets = table(n, d)
    folds = grouped_folds(range(n), 5, 0)
    predicted, chosen = cross_predict(features, targets, folds, ALPHAS)
    for fold in range(5):
        train, test = folds != fold, folds == fold
        sklearn = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True)).fit(features[train], targets[train])
        np.testing.assert_array_equal(chosen[fold], sklearn[1].alpha_)
        np.testing.assert_allclose(predicted[test], sklearn.predict(features[test]), atol=1e-8)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("n", "d"), SHAPES)
def test_float32_is_as_good_as_its_digits(n, d, device):
    features, targets = table(n, d)
    folds = grouped_folds(range(n), 5, 0)
    expected = pipelines(features, targets, folds, ALPHAS[1:])
    for given in (features, features.astype(np.float32)):
        found = cross_predict_path(given, targets, folds, ALPHAS[1:], dtype="float32", device=device)
        np.testing.assert_allclose(found, expected, atol=2e-3)
        assert np.abs(found - expected).max() > 1e-9
    errors = Ridge.decompose(features, dtype="float32", device=device).leave_one_out_errors(targets, ALPHAS[1:]).mean
    np.testing.assert_allclose(errors, Ridge.decompose(features).leave_one_out_errors(targets, ALPHAS[1:]).mean, rtol=2e-3)


def test_float32_survives_features_whose_mean_dwarfs_their_spread():
    features, targets = table(80, 30)
    far = (features + 3000).astype(np.float32)
    folds = grouped_folds(range(80), 4, 0)
    exact = pipelines(far.astype(float), targets, folds, ALPHAS[2:])
    np.testing.assert_allclose(cross_predict_path(far, targets, folds, ALPHAS[2:], dtype="float32"), exact, atol=1e-3)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 40)])
def test_an_alpha_below_rounding_is_raised_to_it(n, d, device):
    features, targets = table(n, d)
    ridge = Ridge.decompose(np.repeat(features, 2, axis=1), dtype="float32", device=device)  # singular
    low = ridge.predict_path(np.repeat(features, 2, axis=1), targets, [1e-30, 1e-20, ridge.shifted.floor])
    np.testing.assert_allclose(low[0], low[2], atol=1e-4)


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 40)])
def test_odd_features_are_treated_as_scikit_learn_treats_them(n, d, device):
    features, targets = table(n, d)
    folds = grouped_folds(range(n), 5, 0)
    features[:, 0] = 0.1  # constant
    features[:, 1] = np.where(folds == 2, features[:, 1], 0.3)  # constant but for one fold
    features[:, 2] = 0
    features[np.flatnonzero(folds == 1)[0], 2] = 1e4  # one massive activation
    expected = pipelines(features, targets, folds, ALPHAS)
    np.testing.assert_allclose(cross_predict_path(features, targets, folds, ALPHAS, device=device), expected, atol=1e-7)


@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 40)])
def test_training_sets_derived_from_the_whole_table_are_standardised_on_themselves(n, d):
    features, _ = table(n, d)
    place = Place.of(device="numpy")
    folds = grouped_folds(range(n), 4, 0)
    cut = FoldTable.of(features, folds, place)
    for left_out in [(0,), (3,), (0, 2)]:
        derived, direct = cut.without(*left_out), Standardised.of(features[~np.isin(folds, left_out)], place)
        np.testing.assert_allclose(derived.mean, direct.mean)
        np.testing.assert_allclose(derived.scale, direct.scale)
        np.testing.assert_allclose(derived.rows, direct.rows, atol=1e-10)
        assert (derived.gram is None) == (len(direct.rows) <= d)
        if derived.gram is not None:
            np.testing.assert_allclose(derived.gram, direct.rows.T @ direct.rows, atol=1e-9)


@pytest.mark.parametrize(("n", "d"), [(40, 90), (90, 40)])
@pytest.mark.parametrize("one_standard_error", [False, True])
def test_inner_folds_choose_what_a_plain_nested_loop_chooses(n, d, one_standard_error):
    features, targets = table(n, d)
    folds = grouped_folds(range(n), 4, 0)
    rule = {"one_standard_error": one_standard_error}
    predicted, chosen = cross_predict(features, targets, folds, ALPHAS, choice="folds", **rule)
    for fold in range(4):
        train, test = folds != fold, folds == fold
        inner = pipelines(features[train], targets[train], folds[train], ALPHAS)
        losses = np.stack([((inner - targets[train])[:, folds[train] == each] ** 2).mean(axis=1) for each in set(folds[train])])
        error, spread = losses.mean(axis=0), losses.std(axis=0, ddof=1) / np.sqrt(3)
        for target in range(3):
            best = error[:, target].argmin()
            limit = error[best, target] + (spread[best, target] if one_standard_error else 0)
            assert chosen[fold, target] == max(np.array(ALPHAS)[error[:, target] <= limit])
            fitted = make_pipeline(StandardScaler(), SklearnRidge(chosen[fold, target]))
            fitted.fit(features[train], targets[train, target])
            np.testing.assert_allclose(predicted[test, target], fitted.predict(features[test]), atol=1e-8)
        np.testing.assert_allclose(held_out_errors(features[train], targets[train], folds[train], ALPHAS).mean, error)


def test_one_standard_error_takes_the_largest_alpha_that_is_as_good_within_error():
    mean = np.array([[3.0, 1.0], [1.0, 1.3], [1.1, 1.2], [1.25, 2.0]])
    errors = AlphaErrors(np.array([1.0, 10.0, 100.0, 1000.0]), mean, np.full((4, 2), 0.2))
    np.testing.assert_array_equal(errors.choose(), [10.0, 1.0])
    np.testing.assert_array_equal(errors.choose(one_standard_error=True), [100.0, 100.0])  # 1.3 between them does not matter
    features, targets = table(60, 20)
    ridge = Ridge.decompose(features)
    assert (ridge.choose_alphas(targets, ALPHAS, one_standard_error=True) >= ridge.choose_alphas(targets, ALPHAS)).all()


@pytest.mark.parametrize("choice", ["leave_one_out", "folds"])
def test_what_is_predicted_was_not_seen(choice):
    features, targets = table(40, 12)
    folds = grouped_folds(range(40), 4, 0)
    before, chosen = cross_predict(features, targets, folds, ALPHAS, choice=choice)
    test = folds == 0
    changed, moved = targets.copy(), features.copy()
    changed[test] += np.random.default_rng(0).normal(size=changed[test].shape) * 100
    moved[test] *= 7
    after, rechosen = cross_predict(features, changed, folds, ALPHAS, choice=choice)
    np.testing.assert_allclose(after[test], before[test])
    np.testing.assert_array_equal(rechosen[0], chosen[0])
    assert not np.allclose(after[~test], before[~test])
    elsewhere, rechosen = cross_predict(moved, targets, folds, ALPHAS, choice=choice)  # features of the fold neither
    one = np.flatnonzero(test)[0]
    moved[test] = features[test]
    np.testing.assert_array_equal(rechosen[0], chosen[0])
    assert not np.allclose(elsewhere[one], before[one])


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("n", "d"), [(30, 60), (60, 30)])
def test_columns_do_not_depend_on_each_other(n, d, device):
    features, _ = table(n, d)
    targets = np.random.default_rng(1).normal(size=(n, 300))  # more than one block
    folds = grouped_folds(range(n), 3, 0)
    predicted, chosen = cross_predict(features, targets, folds, ALPHAS, device=device)
    for column in (0, 150, 299):
        alone, alpha = cross_predict(features, targets[:, [column]], folds, ALPHAS, device=device)
        np.testing.assert_allclose(alone[:, 0], predicted[:, column], atol=1e-10)
        np.testing.assert_array_equal(alpha[:, 0], chosen[:, column])


@pytest.mark.parametrize("device", PLACES)
@pytest.mark.parametrize(("n", "d"), [(30, 60), (60, 30)])
def test_raw_weights_predict_as_the_fit_does(n, d, device):
    features, targets = table(n, d)
    ridge = Ridge.decompose(features, device=device)
    alphas = np.array([0.1, 100.0, 0.1])
    weights, intercepts = ridge.weights(targets, alphas)
    predicted = ridge.predict(features, targets, alphas)
    np.testing.assert_allclose(features @ weights + intercepts, predicted, atol=1e-9)
    np.testing.assert_allclose(
        ridge.predict_path(features, targets, [0.1, 100.0])[[0, 1, 0], :, [0, 1, 2]].T, predicted, atol=1e-9
    )


def test_sizes_even_out_folds():
    folds = grouped_folds(list("aabbccdd"), 2, 0, sizes=np.array([1, 1, 9, 9, 5, 5, 5, 5.0]))
    assert folds[2] != folds[4] == folds[6]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (np.where(x == x[3, 2], np.nan, x), y, ALPHAS), r"Feature 2 of row 3 is nan; expected finite"),
        (lambda x, y: (np.where(x == x[0, 5], np.inf, x), y, ALPHAS), r"Feature 5 of row 0 is inf"),
        (lambda x, y: (x, np.where(y == y[4, 1], np.nan, y), ALPHAS), r"Targets have .* 1 values that are not finite"),
        (lambda x, y: (x, y * [1, 0, 1], ALPHAS), r"Target 1 is 0.0 in every row"),
        (lambda x, y: (x, y[:, 0], ALPHAS), r"expected one column a target, such as values\[:, None\]"),
        (lambda x, y: (x, y, [1.0, 0.0]), r"alphas are \[1.0, 0.0\]; expected one or more positive numbers"),
        (lambda x, y: (x, y, []), r"alphas are \[\]"),
        (lambda x, y: (x[:, 0], y, ALPHAS), r"Features have the shape \(30,\)"),
    ],
)
def test_what_cannot_be_fitted_is_named(change, message):
    features, targets = table(30, 8)
    features, targets, alphas = change(features, targets)
    with pytest.raises(ValueError, match=message):
        cross_predict(features, targets, grouped_folds(range(30), 3, 0), alphas)


def test_folds_that_cannot_be_are_named():
    features, targets = table(30, 8)
    with pytest.raises(ValueError, match=r"5 folds for 3 groups; .* Ask for fewer folds"):
        grouped_folds(list("abc") * 10, 5, 0)
    with pytest.raises(ValueError, match=r"name 1 folds; expected one entry a row and at least two folds"):
        cross_predict(features, targets, np.zeros(30, dtype=int), ALPHAS)
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        Ridge.decompose(features, dtype="float16")
