"""Probes as estimators: scikit-learn's contract, scikit-learn's numbers, and directions that do what they say."""

import numpy as np
import pandas as pd
import pytest
from scipy import special
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from elicit import BradleyTerry
from interp.estimators import BradleyTerryProbe, LogisticProbe, MassMeanProbe, RidgeProbe, differences
from store.directions import load, save
from store.provenance import ModelIdentity

MODEL = ModelIdentity("made up", "none", "fingerprint")
ALPHAS = (0.1, 1.0, 10.0, 100.0)


@pytest.fixture(autouse=True)
def one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    return random.normal(size=(90, 12)) * random.uniform(0.1, 5, 12) + random.normal(size=12) * 10


def standard(features: np.ndarray) -> np.ndarray:
    return StandardScaler().fit_transform(features)


def labels(features: np.ndarray, classes: int) -> np.ndarray:
    """Names of classes that follow two of the features, with noise."""
    score = standard(features)[:, :2].sum(axis=1) + np.random.default_rng(1).normal(size=len(features))
    return np.array(["a", "b", "c", "d"])[np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))]


def compared(items: np.ndarray, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pairs of items, the probability that the first is chosen, and one choice of each."""
    random = np.random.default_rng(seed)
    first = random.integers(len(items), size=n)
    pairs = np.stack([first, (first + random.integers(1, len(items), size=n)) % len(items)], axis=1)
    p = special.expit(differences(items, pairs)[:, :3].sum(axis=1))
    return pairs, p, (random.random(n) < p).astype(int)


@parametrize_with_checks(
    [
        RidgeProbe(),
        RidgeProbe(choice="folds", one_standard_error=True, dtype="float32"),
        LogisticProbe((1.0, 10.0), n_folds=2),
        MassMeanProbe(),
        MassMeanProbe("covariance"),
        MassMeanProbe("shrunk"),
        BradleyTerryProbe((1.0, 10.0), n_folds=2),
    ]
)
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_contract_is_kept(estimator, check):
    check(estimator)


def test_ridge_probe_is_ridge_cv_on_standardised_features(features):
    targets = features[:, :3] @ np.ones((3, 2)) + np.random.default_rng(0).normal(size=(90, 2)) * [1, 30]
    sklearn = make_pipeline(StandardScaler(), RidgeCV(ALPHAS, alpha_per_target=True)).fit(features, targets)
    probe = RidgeProbe(ALPHAS).fit(features, targets)
    np.testing.assert_array_equal(probe.alpha_, sklearn[1].alpha_)
    np.testing.assert_allclose(probe.predict(features), sklearn.predict(features), atol=1e-8)
    alone = RidgeProbe(ALPHAS).fit(features, targets[:, 1])
    np.testing.assert_allclose(alone.predict(features), probe.predict(features)[:, 1], atol=1e-8)
    np.testing.assert_allclose(features @ alone.coef_ + alone.intercept_, alone.predict(features))


@pytest.mark.parametrize("classes", [2, 4])
def test_logistic_probe_is_logistic_regression_on_standardised_features(features, classes):
    names = labels(features, classes)
    probe = LogisticProbe((10.0,), n_folds=2).fit(features, names)
    sklearn = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-8, max_iter=1000)).fit(features, names)
    np.testing.assert_allclose(probe.predict_proba(features), sklearn.predict_proba(features), atol=1e-5)
    logits = features @ probe.coef_.T + probe.intercept_
    np.testing.assert_allclose(logits.squeeze(), sklearn.decision_function(features), atol=1e-4)
    np.testing.assert_array_equal(probe.predict(features), sklearn.predict(features))


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_probe_chooses_the_alpha_with_the_least_held_out_log_loss(features, classes):
    names = labels(features, classes)
    probe = LogisticProbe(ALPHAS, n_folds=3).fit(features, names)
    losses = np.empty((3, len(ALPHAS)))
    for fold, (train, test) in enumerate(probe._splits(np.unique(names, return_inverse=True)[1], None)):
        for number, alpha in enumerate(ALPHAS):
            fitted = make_pipeline(StandardScaler(), LogisticRegression(C=1 / alpha, tol=1e-8, max_iter=1000))
            fitted.fit(features[train], names[train])
            losses[fold, number] = log_loss(names[test], fitted.predict_proba(features[test]))
    np.testing.assert_allclose(probe.errors_.mean[:, 0], losses.mean(axis=0), rtol=1e-4)
    assert probe.alpha_ == ALPHAS[losses.mean(axis=0).argmin()]


def test_groups_are_whole_in_the_folds_of_a_logistic_probe(features):
    groups = np.repeat(np.arange(30), 3)
    probe = LogisticProbe(n_folds=3)
    probe.classes_, numbers = np.unique(labels(features, 2), return_inverse=True)
    for train, test in probe._splits(numbers, groups):
        assert not set(groups[train]) & set(groups[test])


def test_a_mass_mean_probe_is_the_difference_of_means(features):
    names = labels(features, 2)
    means = [features[names == each].mean(axis=0) for each in "ab"]
    apart, middle = means[1] - means[0], (means[1] + means[0]) / 2
    plain = MassMeanProbe().fit(features, names)
    np.testing.assert_allclose(plain.coef_[0], apart)
    np.testing.assert_allclose(plain.decision_function(features), (features - middle) @ apart, atol=1e-9)
    within = features - np.stack(means)[(names == "b").astype(int)]
    tilted = MassMeanProbe("covariance").fit(features, names)
    expected = np.linalg.solve(within.T @ within / 90, apart)
    np.testing.assert_allclose(tilted.decision_function(features), (features - middle) @ expected, atol=1e-9)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_tilted_mass_mean_probe_is_linear_discriminant_analysis_with_equal_priors(features, classes):
    names = labels(features, classes)
    tilted = MassMeanProbe("covariance").fit(features, names)
    peer = LinearDiscriminantAnalysis(priors=np.full(classes, 1 / classes)).fit(features, names)
    expected = peer.decision_function(features).reshape(90, -1)
    found = tilted.decision_function(features).reshape(90, -1)
    if classes > 2:
        expected, found = (each - each.mean(axis=1, keepdims=True) for each in (expected, found))
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_a_shrunk_covariance_helps_where_rows_are_few():
    random = np.random.default_rng(0)
    truth = np.repeat([0, 1], 300)
    rows = random.normal(size=(600, 50)) + truth[:, None] * 0.3
    rows[:, :3] *= 10  # what varies most has nothing to do with the labels
    train, test = np.arange(600) % 10 == 0, np.arange(600) % 10 != 0

    def score(tilt):
        return MassMeanProbe(tilt).fit(rows[train], truth[train]).score(rows[test], truth[test])

    assert score("shrunk") > max(score("covariance"), score(None)) + 0.05


def test_on_indicators_a_bradley_terry_probe_is_the_bradley_terry_model():
    # Every task in as many comparisons, so that scaling the indicators scales all of them alike.
    n, alpha = 9, 3.0
    pairs = np.array([(i, j) for i in range(n) for j in range(n) if i != j])
    p = special.expit(np.random.default_rng(0).normal(size=len(pairs)) * 2)
    X = differences(np.eye(n), pairs)
    probe = BradleyTerryProbe((alpha,)).fit(X, p)
    names = np.array([f"t{i}" for i in range(n)])
    table = pd.DataFrame({"first": names[pairs[:, 0]], "second": names[pairs[:, 1]], "p_first": p})
    prior_sd = 1 / np.sqrt(alpha * np.mean(X[:, 0] ** 2))
    expected = BradleyTerry(prior_sd=prior_sd, position=False, errors="none").fit(table).values
    np.testing.assert_allclose(probe.coef_[0], expected, atol=1e-6)


def test_soft_choices_are_many_hard_ones_and_order_does_not_matter():
    items = np.random.default_rng(2).normal(size=(40, 6)) * 3 + 50
    pairs, p, _ = compared(items / 3, 60)
    p = np.round(p * 4) / 4
    X = differences(items, pairs)
    soft = BradleyTerryProbe(ALPHAS).fit(X, p, sample_weight=np.full(60, 4))
    hard = BradleyTerryProbe(ALPHAS).fit(
        np.repeat(X, 4, axis=0), (np.tile([0.1, 0.3, 0.6, 0.8], 60) < np.repeat(p, 4)).astype(int)
    )
    np.testing.assert_allclose(soft.coef_, hard.coef_, atol=1e-6)
    assert soft.alpha_ == hard.alpha_
    flipped = np.random.default_rng(0).random(60) < 0.5
    turned = BradleyTerryProbe(ALPHAS).fit(np.where(flipped[:, None], -X, X), np.where(flipped, 1 - p, p))
    np.testing.assert_allclose(turned.coef_, BradleyTerryProbe(ALPHAS).fit(X, p).coef_, atol=1e-6)
    np.testing.assert_allclose(soft.predict_proba(X)[:, 1], special.expit((items @ soft.coef_[0])[pairs] @ [1, -1]), atol=1e-9)


def test_no_pair_is_on_both_sides_of_a_split():
    """With both orders of every pair, features of noise predict nothing held out, though they fit what they have seen."""
    random = np.random.default_rng(3)
    X = random.normal(size=(60, 200))
    won = random.integers(2, size=60)
    both, y = np.concatenate([X, -X]), np.concatenate([won, 1 - won])
    whole = BradleyTerryProbe(ALPHAS).fit(both, y)
    assert whole.errors_.mean.min() > np.log(2) - 0.05 and whole.score(both, y) == 1
    split = BradleyTerryProbe(ALPHAS).fit(both, y, groups=np.arange(120))
    assert split.errors_.mean.min() < 0.4


def test_a_bradley_terry_probe_finds_what_the_choices_follow():
    items = np.random.default_rng(4).normal(size=(150, 20)) * 2 - 7
    pairs, _, won = compared(items + 7, 900)
    probe = BradleyTerryProbe(ALPHAS).fit(differences(items, pairs), won)
    assert np.corrcoef(items @ probe.coef_[0], items[:, :3].sum(axis=1))[0, 1] > 0.95
    assert probe.intercept_ == 0
    assert probe.score(differences(items, pairs), won) == np.mean(probe.predict(differences(items, pairs)) == won)
    named = BradleyTerryProbe(ALPHAS).fit(differences(items, pairs), np.array(["second", "first"])[won])
    np.testing.assert_allclose(named.coef_, -probe.coef_)  # "second" comes after "first", so it is what is predicted


@pytest.mark.parametrize(
    ("probe", "classes"),
    [(RidgeProbe(ALPHAS), 0), (LogisticProbe(ALPHAS), 2), (MassMeanProbe(), 2), (MassMeanProbe("shrunk"), 2)],
)
def test_no_other_step_moves_the_prediction_as_far_as_one_along_the_direction(probe, classes, features, tmp_path):
    y = labels(features, classes) if classes else features[:, 0] * 2 + features[:, 4]
    read = (probe := probe.fit(features, y)).decision_function if classes else probe.fit(features, y).predict
    direction = probe.direction(layer=5, model=MODEL, position="task_mean", tasks=["x"])
    moved = read(features + 0.5 * direction.vector) - read(features)
    np.testing.assert_allclose(moved, 0.5 * direction.provenance["length"], rtol=1e-5)
    others = np.random.default_rng(0).normal(size=(200, 12))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert all((read(features[:1] + 0.5 * each) - read(features[:1])).item() < moved[0] for each in others)
    np.testing.assert_allclose(direction.vector * direction.provenance["length"], np.ravel(probe.coef_), rtol=1e-5)
    assert direction.provenance["method"] == probe.method and direction.provenance["position"] == "task_mean"
    assert direction.provenance.get("alpha") == getattr(probe, "alpha_", None)
    save(direction, tmp_path / "direction.safetensors")
    assert load(tmp_path / "direction.safetensors").fingerprint == direction.fingerprint


def test_one_of_several_outputs_has_a_direction(features):
    names = labels(features, 3)
    probe = LogisticProbe(ALPHAS).fit(features, names)
    with pytest.raises(ValueError, match=r"reads 3 outputs, the classes \['a', 'b', 'c'\]; say which with output=0 to 2"):
        probe.direction(layer=5, model=MODEL)
    direction = probe.direction(layer=5, model=MODEL, output=2)
    logits = probe.decision_function(np.stack([features[0], features[0] + direction.vector]))
    above = logits[:, 2] - logits.mean(axis=1)
    assert above[1] - above[0] == pytest.approx(direction.provenance["length"], rel=1e-5)
    targets = features[:, :2] * [1.0, -1.0]
    ridge = RidgeProbe(ALPHAS).fit(features, targets)
    np.testing.assert_allclose(
        ridge.direction(layer=5, model=MODEL, output=1).vector, RidgeProbe(ALPHAS).fit(features, targets[:, 1]).coef_
        / np.linalg.norm(ridge.coef_[1]), rtol=1e-4, atol=1e-6)  # fmt: skip


@pytest.mark.parametrize(
    ("probe", "y", "message"),
    [
        (RidgeProbe(), np.full(90, 2.5), r"y is 2.5 in every row of target 0"),
        (RidgeProbe([-1.0]), np.arange(90), r"alphas are \[-1.0\]; expected one or more positive numbers"),
        (RidgeProbe(choice="best"), np.arange(90), r"choice is 'best'; expected 'leave_one_out' or 'folds'"),
        (RidgeProbe(choice="folds", n_folds=91), np.arange(90), r"91 folds for 90 groups"),
        (RidgeProbe(), np.where(np.arange(90) == 3, np.nan, 1.0), r"Input y contains NaN"),
        (LogisticProbe(), np.full(90, "yes"), r"All 90 labels are of one class, .*'yes'"),
        (LogisticProbe(), np.arange(90) == 4, r"class .*True.* in 1 of them; .* leave rare classes out"),
        (LogisticProbe(n_folds=91), np.arange(90) % 2, r"90 groups for 91 folds"),
        (MassMeanProbe(), np.zeros(90), r"All 90 labels are of one class"),
        (MassMeanProbe("yes"), np.arange(90) % 2, r"tilt is 'yes'; expected None, 'covariance' or 'shrunk'"),
        (BradleyTerryProbe(), np.linspace(-1, 1, 90), r"values from .*-1.0.* to .*1.0.*; expected probabilities from 0 to 1"),
        (BradleyTerryProbe(n_folds=91), np.arange(90) % 2, r"91 folds for 90 groups"),
    ],
)
def test_what_cannot_be_fitted_is_named(probe, y, message, features):
    with pytest.raises(ValueError, match=message):
        probe.fit(features, y)


def test_what_does_not_go_together_is_named(features):
    with pytest.raises(ValueError, match=r"splits groups; use choice='folds'"):
        RidgeProbe().fit(features, features[:, 0], groups=np.arange(90) // 2)
    with pytest.raises(ValueError, match=r"two columns of places from 0 to 89"):
        differences(features, np.array([[0, 90]]))
    with pytest.raises(ValueError, match="length 0"):
        MassMeanProbe().fit(np.zeros((4, 2)), [0, 0, 1, 1]).direction(layer=0, model=MODEL)
