"""Splits, and sweeps over them: what is held out is never trained on, whatever the split."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.preprocessing import StandardScaler

from interp.probe import probe_sweep
from interp.splits import TRAIN_ONLY, Split
from tests.interp.test_probe import make_labels, make_store

IDS = [f"task{number}" for number in range(60)]
TOPIC = {task_id: "abcd"[number % 4] for number, task_id in enumerate(IDS)}


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_folds_hold_every_task_once_and_keep_groups_whole():
    pairs = {task_id: f"g{number // 3}" for number, task_id in enumerate(IDS)}
    split = Split.k_fold(IDS, 5, pairs, seed=1)
    assert sorted(split.tested) == list(range(60)) and set(split.folds) == set(range(5))
    for group in set(pairs.values()):
        members = [number for number, task_id in enumerate(IDS) if pairs[task_id] == group]
        assert len({split.folds[number] for number in members}) == len({split.clusters[number] for number in members}) == 1


def test_leaving_out_a_group_tests_it_by_all_the_others():
    split = Split.leave_one_out(IDS, TOPIC)
    assert split.names == ("a", "b", "c", "d")
    assert [split.names[fold] for fold in split.folds] == [TOPIC[task_id] for task_id in IDS]


def test_a_held_out_run_is_tested_once():
    split = Split.held_out(IDS, IDS[:10])
    assert split.tested.tolist() == list(range(10)) and (split.folds[10:] == TRAIN_ONLY).all()


def test_splits_that_cannot_be_made_say_why():
    with pytest.raises(ValueError, match="5 folds for 4 groups"):
        Split.k_fold(IDS, 5, TOPIC)
    with pytest.raises(ValueError, match="All 60 tasks are of the group 'x'"):
        Split.leave_one_out(IDS, dict.fromkeys(IDS, "x"))
    with pytest.raises(ValueError, match="0 of 60 tasks are held out"):
        Split.held_out(IDS, ["another"])
    with pytest.raises(KeyError, match="No group is known for 59 tasks, such as 'task1'"):
        Split.leave_one_out(IDS, {"task0": "a"})


def test_a_held_out_run_is_predicted_by_a_probe_of_the_other_tasks_alone(tmp_path, random):
    features = random.normal(size=(60, 8))
    values = features[:, 0] + 0.3 * random.normal(size=60)
    store = make_store(tmp_path / "a.h5", features, np.full(60, 7))
    sweep = probe_sweep(
        store, make_labels(values), split=lambda ids: Split.held_out(ids, IDS[:20]), alphas=[3.0], permutations=0
    )
    scaler = StandardScaler().fit(features[20:].astype(np.float32))
    fitted = SklearnRidge(3.0).fit(scaler.transform(features[20:].astype(np.float32)), values[20:])
    expected = fitted.predict(scaler.transform(features[:20].astype(np.float32)))
    assert sweep.predictions["task_id"].tolist() == IDS[:20]
    np.testing.assert_allclose(sweep.predictions["predicted"], expected, atol=1e-6)
    r2 = 1 - ((values[:20] - expected) ** 2).sum() / ((values[:20] - values[20:].mean()) ** 2).sum()
    assert sweep.best("utility")["r2"] == pytest.approx(r2, abs=1e-6) and sweep.best("utility")["n"] == 20


def test_what_is_only_the_topic_does_not_carry_over_to_another_topic_nor_survive_demeaning(tmp_path, random):
    topics = np.eye(4)[[number % 4 for number in range(60)]]
    features = np.concatenate([topics * 3, random.normal(size=(60, 4))], axis=1)
    values = topics @ np.array([1.0, 2.0, 4.0, 8.0]) + 0.1 * random.normal(size=60)
    store, labels = make_store(tmp_path / "a.h5", features, np.full(60, 7)), make_labels(values)
    scores = {
        "within": probe_sweep(store, labels, permutations=0),
        "across": probe_sweep(store, labels, split=lambda ids: Split.leave_one_out(ids, TOPIC), permutations=0),
        "demeaned": probe_sweep(store, labels, demean=TOPIC, permutations=0),
    }
    found = {name: sweep.best("utility")["r2"] for name, sweep in scores.items()}
    assert found["within"] > 0.95 and found["across"] < 0.2 and found["demeaned"] < 0.2
    with pytest.raises(ValueError, match="held out whole"):
        probe_sweep(store, labels, split=lambda ids: Split.leave_one_out(ids, TOPIC), demean=TOPIC, permutations=0)


def test_what_is_left_within_topics_is_found_when_demeaned(tmp_path, random):
    features = random.normal(size=(60, 6))
    offsets = np.array([50.0, -20.0, 0.0, 30.0])[[number % 4 for number in range(60)]]
    store = make_store(tmp_path / "a.h5", features, np.full(60, 7))
    sweep = probe_sweep(store, make_labels(features[:, 2] + offsets), demean=TOPIC, permutations=0)
    assert sweep.best("utility")["r2"] > 0.8


def test_several_targets_share_a_pass_and_get_what_each_gets_alone(tmp_path, random):
    features = random.normal(size=(60, 10))
    store = make_store(tmp_path / "a.h5", features, np.full(60, 7))
    labels = [make_labels(features[:, k] + random.normal(size=60), target=f"t{k}") for k in range(3)]
    fewer = labels[1].iloc[:40].assign(target="fewer")
    together = probe_sweep(store, pd.concat([*labels, fewer]), permutations=20)
    for part in [*labels, fewer]:
        target = part["target"].iloc[0]
        alone = probe_sweep(store, part, permutations=20)
        for column in ("r2", "r2_low", "pearson", "p_value", "gain_high", "alpha", "n"):
            assert together.best(target)[column] == pytest.approx(alone.best(target)[column], abs=1e-9), (target, column)


def test_another_models_activations_stand_beside_the_probe(tmp_path, random):
    features = random.normal(size=(60, 10))
    values = features[:, 0] + 0.2 * random.normal(size=60)
    store = make_store(tmp_path / "a.h5", features, np.full(60, 7))
    noise = make_store(tmp_path / "b.h5", random.normal(size=(60, 10)), np.full(60, 7))
    labels = make_labels(values)
    against_noise = probe_sweep(store, labels, others={"untouched": noise}, permutations=0).best("utility")
    assert against_noise["gain over untouched_low"] > 0.3
    same = probe_sweep(store, labels, others={"untouched": store}, permutations=0)
    assert same.best("utility")["gain over untouched"] == 0
    assert set(same.table["features"]) >= {"residual", "untouched", "random activations"}


def test_words_alone_can_be_the_strongest_baseline(tmp_path, random):
    store = make_store(tmp_path / "a.h5", random.normal(size=(60, 10)), np.full(60, 7))
    liked = random.integers(0, 2, 60)
    texts = {
        task_id: ("sing a song " if like else "add a sum ") + f"{number}"
        for number, (task_id, like) in enumerate(zip(IDS, liked, strict=True))
    }
    labels = make_labels(liked + 0.1 * random.normal(size=60))
    best = probe_sweep(
        store, labels, texts=texts, embeddings={"mine": {task_id: np.ones(3) for task_id in IDS}}, permutations=0
    ).best("utility")
    assert best["strongest_baseline"] == "words (TF-IDF)" and best["gain_high"] < 0
    with pytest.raises(KeyError, match="No text is given for 60 tasks, such as 'task0'"):
        probe_sweep(store, labels, texts={}, permutations=0)
