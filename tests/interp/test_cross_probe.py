"""Cross-probing: identities of transfer and cosine, parity with scikit-learn, planted directions, noise, and the errors."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import RidgeCV
from sklearn.preprocessing import StandardScaler

from elicit import builtin_tasks, task_question
from interp import Split, View, capture, cross_probe, fit_probe, probe_sweep
from interp.ridge import DEFAULT_ALPHAS
from store import ActivationStore, ActivationWriter, Slots, StoreHeader
from store.provenance import ModelIdentity
from tests.conftest import tiny

MODEL = ModelIdentity("made up", "none", "fingerprint")
IDS = [f"task{number:02d}" for number in range(60)]
FAST = {"permutations": 39, "halves": 10, "resamples": 100}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def make_store(path, by_key: dict[tuple[int, str], np.ndarray], *, model=MODEL, ids=IDS) -> ActivationStore:
    """A store with the rows given for every layer and position."""
    layers, positions = (tuple(dict.fromkeys(key[place] for key in by_key)) for place in (0, 1))
    width = next(iter(by_key.values())).shape[1]
    header = StoreHeader(model, "t", "c", "none", "float32", width, layers, positions)
    with ActivationWriter.resume(path, header, Slots(ids, ids)) as writer:
        rows = {key: values.astype(np.float32) for key, values in by_key.items()}
        tokens = {position: np.full(len(ids), -1) for position in positions}
        writer.write(np.arange(len(ids)), rows, np.full(len(ids), 9), tokens)
    return ActivationStore(path)


def make_labels(values: np.ndarray, target: str = "utility", ids=IDS) -> pd.DataFrame:
    made = {"se": 0.1, "low": values, "high": values, "n": 1, "method": "made"}
    return pd.DataFrame({"task_id": ids, "target": target, "value": values} | made)


@pytest.fixture
def features(random):
    return random.normal(size=(60, 30)) * random.uniform(0.2, 3, 30) + 2


@pytest.fixture
def store(tmp_path, features, random):
    other = features @ np.linalg.qr(random.normal(size=(30, 30)))[0] + 0.3 * random.normal(size=(60, 30))
    return make_store(tmp_path / "a.h5", {(5, "task_mean"): features, (9, "task_mean"): other})


@pytest.fixture
def values(features, random):
    return features[:, 0] / features[:, 0].std() + random.normal(size=60)


def cells(table: pd.DataFrame, *keys: str) -> pd.DataFrame:
    return table.set_index(list(keys))


def test_a_view_read_by_its_own_probe_has_the_scores_of_a_probe_sweep(store, values, random):
    labels = make_labels(40 + 7 * values)
    other = make_labels(random.normal(size=60), "other")
    groups = {task_id: "abcd"[number % 4] for number, task_id in enumerate(IDS)}

    def split(task_ids):
        return Split.leave_one_out(task_ids, groups)

    for each in (None, split):
        found = cross_probe(
            [View("a", store, labels, 5, "task_mean"), View("b", store, other, 9, "task_mean")], split=each, seed=3, **FAST
        )
        sweep = probe_sweep(store, labels, layers=[5], split=each, permutations=5, resamples=100, seed=3)
        expected = sweep.table[sweep.table["features"] == "residual"].iloc[0]
        row = cells(found.transfer, "trained_on", "tested_on").loc[("a", "a")]
        for score in ("pearson", "spearman", "r2", "pairwise_accuracy"):
            for end in ("", "_low", "_high"):
                assert row[score + end] == pytest.approx(expected[score + end], abs=1e-6), score + end
        assert row["alpha"] == expected["alpha"]


def test_an_off_diagonal_cell_is_what_scikit_learn_reads_on_the_held_out_folds(store, values, random):
    labels, other = make_labels(values), make_labels(3 * values + random.normal(size=60), "other")
    views = [View("a", store, labels, 5, "task_mean"), View("b", store, other, 9, "task_mean")]
    found = cross_probe(views, **FAST)
    a, b = (store.load(layer, "task_mean", IDS).astype(float) for layer in (5, 9))
    in_a, in_b = ((each["value"] - each["value"].mean()).to_numpy() / each["value"].std(ddof=0) for each in (labels, other))
    folds = Split.k_fold(IDS, 5).folds
    predicted, middle = np.empty((2, 60))
    for fold in range(5):
        train, test = folds != fold, folds == fold
        scaler = StandardScaler().fit(a[train])
        fitted = RidgeCV(DEFAULT_ALPHAS).fit(scaler.transform(a[train]), in_a[train])
        about = b[test] - b[train].mean(axis=0) + a[train].mean(axis=0)  # the direction is read about the mean there
        predicted[test], middle[test] = fitted.predict(scaler.transform(about)), in_b[train].mean()
    row = cells(found.transfer, "trained_on", "tested_on").loc[("a", "b")]
    assert row["pearson"] == pytest.approx(np.corrcoef(in_b, predicted)[0, 1], abs=1e-6)
    assert row["r2"] == pytest.approx(1 - ((in_b - predicted) ** 2).sum() / ((in_b - middle) ** 2).sum(), abs=1e-6)
    one, two = (fit_probe(store, view.labels, view.layer, view.position).direction().vector for view in views)
    assert cells(found.cosine, "a", "b").loc[("a", "b"), "cosine"] == pytest.approx(float(one @ two), abs=1e-5)


def test_views_of_the_same_labels_and_activations_are_one(tmp_path, store, values, features):
    again = make_store(tmp_path / "b.h5", {(5, "task_mean"): features})
    labels = make_labels(values)
    views = [View("a", store, labels, 5, "task_mean"), View("b", again, labels.sample(frac=1, random_state=1), 5, "task_mean")]
    found = cross_probe(views, **FAST)
    numbers = found.transfer.drop(columns=["trained_on", "tested_on"])
    np.testing.assert_allclose(numbers.to_numpy(), np.tile(numbers.iloc[0], (4, 1)), atol=1e-9)
    row = cells(found.cosine, "a", "b").loc[("a", "b")]
    assert row["cosine"] == pytest.approx(1) and row["corrected"] == pytest.approx(1) and row["labels"] == pytest.approx(1)
    assert row["split_half"] < 0.99 and row["p_value"] == pytest.approx(1 / 40) and row["chance"] < 0.9


def test_opposite_labels_have_the_opposite_direction_and_are_read_backwards(store, values):
    views = [
        View("liked", store, make_labels(values), 5, "task_mean"),
        View("disliked", store, make_labels(5 - 2 * values), 5, "task_mean"),
    ]
    found = cross_probe(views, **FAST)
    transfer, cosine = cells(found.transfer, "trained_on", "tested_on"), cells(found.cosine, "a", "b")
    there, own = transfer.loc[("liked", "disliked")], transfer.loc[("liked", "liked")]
    assert there["pearson"] == pytest.approx(-own["pearson"]) and own["pearson"] > 0.3
    assert there["pearson_low"] == pytest.approx(-own["pearson_high"])
    assert there["p_value"] == own["p_value"] == pytest.approx(2 / 40)  # two-sided: to be read backwards is to be read
    assert there["r2"] < 0 and there["pairwise_accuracy"] == pytest.approx(1 - own["pairwise_accuracy"])
    row = cosine.loc[("liked", "disliked")]
    assert row["cosine"] == pytest.approx(-1) and row["corrected"] == pytest.approx(-1) and row["p_value"] <= 0.05


def test_nothing_that_is_scored_was_trained_on_in_either_view(store, values, random):
    task, other = IDS[7], make_labels(random.normal(size=60), "other")
    fold = Split.k_fold(IDS, 5).folds
    held = fold == fold[7]
    changed = values.copy()
    changed[held] = changed[held][::-1].copy()  # mean and spread stay
    assert (changed != values).any() and task in np.array(IDS)[held]
    rows = [
        cells(
            cross_probe(
                [View("a", store, make_labels(each), 5, "task_mean"), View("b", store, other, 9, "task_mean")],
                split=lambda ids: Split.held_out(ids, np.array(IDS)[held].tolist()),
                **FAST,
            ).transfer,
            "trained_on",
            "tested_on",
        ).loc[("a", "b")]
        for each in (values, changed)
    ]
    assert rows[0]["pearson"] == pytest.approx(rows[1]["pearson"]) and rows[0]["r2"] == pytest.approx(rows[1]["r2"])


@pytest.mark.parametrize("truth", [1.0, 0.5, 0.0])
def test_the_corrected_cosine_is_that_of_the_planted_directions(tmp_path, truth):
    found = []
    for seed in range(12):
        random = np.random.default_rng(seed)
        features = random.normal(size=(60, 12))
        one, other = np.linalg.qr(random.normal(size=(12, 2)))[0].T
        directions = one, truth * one + np.sqrt(1 - truth**2) * other
        store = make_store(tmp_path / f"{seed}.h5", {(5, "task_mean"): features})
        views = [
            View(name, store, make_labels(features @ direction + random.normal(size=60)), 5, "task_mean")
            for name, direction in zip("ab", directions, strict=True)
        ]
        found.append(cells(cross_probe(views, **FAST).cosine, "a", "b").loc[("a", "b")])
    rows = pd.DataFrame(found)
    assert rows["corrected"].mean() == pytest.approx(truth, abs=0.12)
    assert abs(rows["split_half"].mean()) <= truth * 0.85 + 0.1  # what noise makes of it


def test_an_offset_of_all_tasks_is_reported_and_does_no_harm(tmp_path, store, values, features):
    one = View("a", store, make_labels(values), 5, "task_mean")
    moved = make_store(tmp_path / "b.h5", {(5, "task_mean"): features + 7})
    found = cells(cross_probe([one, View("b", moved, one.labels, 5, "task_mean")], **FAST).transfer, "trained_on", "tested_on")
    assert found["pearson"].to_numpy() == pytest.approx(found["pearson"].iloc[0], abs=1e-4)
    assert found["r2"].to_numpy() == pytest.approx(found["r2"].iloc[0], abs=1e-4)
    assert found.loc[("a", "b"), "offset"] == pytest.approx(-found.loc[("b", "a"), "offset"], abs=1e-3)
    assert found.loc[("a", "a"), "offset"] == 0 and abs(found.loc[("a", "b"), "offset"]) > 0.5


def test_labels_that_are_noise_have_no_small_p_values_and_no_corrected_cosine(tmp_path):
    p_values, corrected = {"own": [], "other": [], "cosine": []}, []
    for seed in range(25):
        random = np.random.default_rng(seed)
        store = make_store(tmp_path / f"{seed}.h5", {(5, "task_mean"): random.normal(size=(60, 20))})
        views = [View(name, store, make_labels(random.normal(size=60)), 5, "task_mean") for name in "abc"]
        found = cross_probe(views, **FAST)
        apart, own = found.cosine["a"] != found.cosine["b"], found.transfer["trained_on"] == found.transfer["tested_on"]
        p_values["own"] += list(found.transfer.loc[own, "p_value"])
        p_values["other"] += list(found.transfer.loc[~own, "p_value"])
        p_values["cosine"] += list(found.cosine.loc[apart, "p_value"])
        corrected += list(found.cosine.loc[apart, "corrected"])
    for kind, found in p_values.items():
        assert np.mean(np.array(found) <= 0.05) < 0.12 and 0.35 < np.mean(found) < 0.65, kind
    assert np.isnan(corrected).mean() > 0.8


def test_matrices_have_every_view_on_both_sides_in_order(store, values, random):
    views = [
        View(name, store, make_labels(values + random.normal(size=60)), layer, "task_mean")
        for name, layer in (("z", 5), ("a", 9), ("m", 5))
    ]
    found = cross_probe(views, **FAST)
    for column in ("pearson", "cosine", "corrected"):
        assert list(found.matrix(column).index) == list(found.matrix(column).columns) == ["z", "a", "m"]
    cosine = found.matrix("cosine").to_numpy()
    np.testing.assert_allclose(cosine, cosine.T)
    np.testing.assert_allclose(np.diag(cosine), 1)
    cell = found.transfer.query("trained_on == 'a' and tested_on == 'm'")["pearson"].item()
    assert found.matrix("pearson").loc["a", "m"] == cell


def test_only_tasks_that_every_view_labels_and_holds_are_used(tmp_path, store, values, features):
    fewer = make_store(tmp_path / "b.h5", {(5, "task_mean"): features[:50]}, ids=IDS[:50])
    labels = make_labels(values)
    found = cross_probe([View("a", store, labels[10:], 5, "task_mean"), View("b", fewer, labels, 5, "task_mean")], **FAST)
    assert (found.n, found.left_out) == (40, 20)
    with pytest.raises(
        ValueError, match=r"12 tasks are labelled and held by every view \(a 12, b 50; 48 left out\); expected 15"
    ):
        cross_probe([View("a", store, labels[:12], 5, "task_mean"), View("b", fewer, labels, 5, "task_mean")])


def test_views_that_cannot_be_crossed_are_named_with_the_way_out(tmp_path, store, values, features):
    labels = make_labels(values)
    one = View("a", store, labels, 5, "task_mean")
    with pytest.raises(ValueError, match=r"1 views \(\['a'\]\) cannot be crossed; .*probe_sweep"):
        cross_probe([one])
    with pytest.raises(ValueError, match=r"but \['a'\] return. Rename"):
        cross_probe([one, one])
    both = pd.concat([labels, make_labels(values, "other")])
    with pytest.raises(ValueError, match=r"view 'b' have 2 targets \['other', 'utility'\]; expected one"):
        cross_probe([one, View("b", store, both, 5, "task_mean")])
    with pytest.raises(ValueError, match=r"All 60 labels of view 'b' are 2;"):
        cross_probe([one, View("b", store, make_labels(np.full(60, 2.0)), 5, "task_mean")])
    narrow = make_store(tmp_path / "n.h5", {(5, "task_mean"): features[:, :7]})
    with pytest.raises(ValueError, match=r"'a' is of made up \(width 30, .*'b' of made up \(width 7, .*expected one model"):
        cross_probe([one, View("b", narrow, labels, 5, "task_mean")])
    elsewhere = make_store(tmp_path / "e.h5", {(5, "task_mean"): features}, model=ModelIdentity("another", "none", "f"))
    with pytest.raises(ValueError, match=r"'a' is of made up .*'b' of another"):
        cross_probe([one, View("b", elsewhere, labels, 5, "task_mean")])
    with pytest.raises(KeyError, match="has no L7/task_mean"):
        cross_probe([one, View("b", store, labels, 7, "task_mean")])


def test_a_position_with_a_row_for_every_token_is_refused(tmp_path):
    tasks = sorted(builtin_tasks(), key=lambda task: len(task.text))[:15]
    ids = [task.id for task in tasks]
    questions = [task_question(task) for task in tasks]
    store = capture(tiny("llama"), questions, ids, tmp_path / "a.h5", layers=[1], positions=["task", "task_mean"])
    labels = make_labels(np.arange(15.0), ids=ids)
    with pytest.raises(ValueError, match="'task' has a row for every token"):
        cross_probe([View("a", store, labels, 1, "task_mean"), View("b", store, labels, 1, "task")])
