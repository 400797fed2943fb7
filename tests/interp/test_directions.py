"""Makers of directions: against planted ones and independent arithmetic, and controls that are made as they are."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.decomposition import PCA

from interp import (
    anisotropic_directions,
    difference_of_means,
    fit_probe,
    paired_difference,
    preference_direction,
    principal_directions,
    probe_direction,
    random_directions,
    shuffled_directions,
)
from store import ActivationStore, ActivationWriter, Slots, StoreHeader
from store.directions import load, save
from store.provenance import ModelIdentity
from tests.interp.test_probe import MODEL, make_labels

AT = (5, "task_mean")


@pytest.fixture
def random():
    return np.random.default_rng(0)


def make_store(path, features: np.ndarray, ids=None, *, prompts: str = "", model: ModelIdentity = MODEL) -> ActivationStore:
    """A store with one layer and one position, and a prompt for every task that differs from condition to condition."""
    ids = [f"task{number}" for number in range(len(features))] if ids is None else ids
    header = StoreHeader(model, "t", "c", "none", "float32", features.shape[1], AT[:1], AT[1:])
    with ActivationWriter.resume(path, header, Slots(ids, [f"{prompts}{task_id}" for task_id in ids])) as writer:
        rows = {AT: features.astype(np.float32)}
        writer.write(np.arange(len(ids)), rows, np.full(len(ids), 7), {AT[1]: np.full(len(ids), -1)})
    return ActivationStore(path)


def test_a_paired_difference_finds_what_two_conditions_differ_in_under_far_greater_differences_of_tasks(tmp_path, random):
    planted = np.eye(8)[2]
    tasks, noise = 100 * random.normal(size=(30, 8)), random.normal(size=(2, 30, 8))
    ids = [f"task{number}" for number in range(30)]
    order = random.permutation(30)
    below = make_store(tmp_path / "b.h5", tasks + noise[0], prompts="plain ")
    above = make_store(
        tmp_path / "a.h5", (tasks + noise[1] + 3 * planted)[order], [ids[task] for task in order], prompts="kind "
    )
    found = paired_difference(above, below, *AT)
    assert found.vector @ planted > 0.95
    differences = above.load(*AT, ids).astype(float) - below.load(*AT, ids)
    np.testing.assert_allclose(found.vector * found.provenance["length"], differences.mean(axis=0), rtol=1e-4, atol=1e-6)
    assert found.provenance["se"] == pytest.approx(stats.sem(differences @ found.vector), rel=1e-6)
    assert found.provenance["n"] == 30 and found.provenance["tasks"] == above.task_ids
    conditions = found.provenance["above"], found.provenance["below"]
    assert [each["store"] for each in conditions] == ["a.h5", "b.h5"]
    assert conditions[0]["prompts"] != conditions[1]["prompts"]
    assert paired_difference(below, above, *AT).cosine(found) == pytest.approx(-1, abs=1e-6)
    save(found, tmp_path / "found.safetensors")
    assert load(tmp_path / "found.safetensors").provenance == found.provenance


def test_a_paired_difference_takes_the_tasks_that_both_stores_hold(tmp_path, random):
    above = make_store(tmp_path / "a.h5", random.normal(size=(4, 5)), ["a", "b", "c", "d"])
    below = make_store(tmp_path / "b.h5", random.normal(size=(3, 5)), ["e", "c", "a"])
    assert paired_difference(above, below, *AT).provenance["tasks"] == ["a", "c"]
    alone = paired_difference(above, below, *AT, tasks=["c"])
    assert alone.provenance["n"] == 1 and alone.provenance["se"] is None
    with pytest.raises(KeyError, match="no rows for 'd'"):
        paired_difference(above, below, *AT, tasks=["c", "d"])
    with pytest.raises(ValueError, match=r"a\.h5 and c\.h5 have no task in common"):
        paired_difference(above, make_store(tmp_path / "c.h5", random.normal(size=(2, 5)), ["x", "y"]), *AT)
    other = make_store(tmp_path / "d.h5", random.normal(size=(2, 5)), ["a", "c"], model=ModelIdentity("b", "none", "other"))
    with pytest.raises(ValueError, match=r"a\.h5 \(made up, fingerprint\) and d\.h5 \(b, other\) are of different models"):
        paired_difference(above, other, *AT)
    with pytest.raises(ValueError, match="length 0"):
        paired_difference(above, above, *AT)


def test_a_difference_of_means_may_be_named_for_its_groups(tmp_path, random):
    store = make_store(tmp_path / "a.h5", random.normal(size=(6, 5)))
    named = difference_of_means(store, *AT, ["task1"], ["task2", "task3"], method="refused_less_complied")
    assert named.provenance["method"] == "refused_less_complied"
    plain = difference_of_means(store, *AT, ["task1"], ["task2", "task3"])
    assert plain.provenance["method"] == "difference_of_means" and plain.fingerprint == named.fingerprint


def pairs(values: np.ndarray, random) -> pd.DataFrame:
    """Choices between all tasks, in both orders, by their values."""
    first, second = np.hstack([np.triu_indices(len(values), 1), np.triu_indices(len(values), 1)[::-1]])
    won = random.random(len(first)) < 1 / (1 + np.exp(values[second] - values[first]))
    names = np.array([f"task{number}" for number in range(len(values))])
    return pd.DataFrame({"first": names[first], "second": names[second], "p_first": won.astype(float)})


@pytest.mark.parametrize("kind", ["ridge", "logistic", "mass_mean", "bradley_terry"])
def test_every_kind_of_probe_has_a_direction(tmp_path, random, kind):
    features = random.normal(size=(60, 8))
    labels = make_labels(2 * features[:, 3])
    choices = pairs(labels["value"].to_numpy(), random) if kind == "bradley_terry" else None
    store = make_store(tmp_path / "a.h5", features)
    found = probe_direction(store, labels, *AT, kind=kind, choices=choices)
    assert found.provenance["method"] == f"{kind}_probe" and found.provenance["position"] == "task_mean"
    assert found.fingerprint == fit_probe(store, labels, *AT, kind=kind, choices=choices).direction().fingerprint
    assert found.vector[3] > 0.8


@pytest.mark.parametrize(("n", "d"), [(40, 12), (12, 40)])
def test_principal_directions_are_scikit_learns_components(tmp_path, random, n, d):
    features = (random.normal(size=(n, d)) * np.linspace(1, 5, d) + 50).astype(np.float32)
    found = principal_directions(make_store(tmp_path / "a.h5", features), *AT, n=5)
    expected = PCA(5, svd_solver="full").fit(features.astype(float))
    for direction, component, share, variance in zip(
        found, expected.components_, expected.explained_variance_ratio_, expected.explained_variance_, strict=True
    ):
        assert abs(direction.vector @ component) == pytest.approx(1, abs=1e-5)
        assert direction.provenance["variance_share"] == pytest.approx(share, rel=1e-6)
        assert direction.provenance["length"] ** 2 == pytest.approx(variance, rel=1e-6)
        assert direction.vector[np.abs(direction.vector).argmax()] > 0
    matrix = np.stack([direction.vector for direction in found])
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(5), atol=1e-6)


def test_the_sign_of_a_principal_direction_does_not_depend_on_that_of_the_rows(tmp_path, random):
    features = random.normal(size=(9, 6))
    stores = [make_store(tmp_path / f"{sign}.h5", sign * features) for sign in (1, -1)]
    for first, second in zip(*(principal_directions(store, *AT, n=3) for store in stores), strict=True):
        np.testing.assert_allclose(first.vector, second.vector, atol=1e-6)


def test_there_are_no_more_principal_directions_than_dimensions_in_which_rows_vary(tmp_path, random):
    flat = random.normal(size=(20, 2)) @ random.integers(-4, 5, size=(2, 7))
    store = make_store(tmp_path / "a.h5", np.round(flat * 8) / 8)
    few = make_store(tmp_path / "b.h5", random.normal(size=(3, 7)))
    assert len(principal_directions(few, *AT, n=2)) == 2
    assert len(principal_directions(store, *AT, n=1, tasks=["task1", "task5"])) == 1
    for each, n, match in (
        (few, 3, "vary in 2 only"),
        (few, 9, "vary in 2 only"),
        (few, 0, "n=0 principal directions; expected at least 1"),
        (make_store(tmp_path / "c.h5", np.ones((4, 3))), 1, "vary in 0 only"),
    ):
        with pytest.raises(ValueError, match=match):
            principal_directions(each, *AT, n=n)
    with pytest.raises(ValueError, match=r"1 tasks of a\.h5; how rows vary takes at least two"):
        principal_directions(store, *AT, tasks=["task1"])


def as_one_of_ones_own(maker):
    """The same maker, but not recognised as one with a short cut."""
    return lambda store, labels, layer, position: maker(store, labels, layer, position)


@pytest.mark.parametrize(
    "maker",
    [preference_direction, partial(preference_direction, share=0.2), probe_direction, partial(probe_direction, kind="ridge")],
)
@pytest.mark.parametrize("d", [10, 60])
def test_shuffled_directions_made_together_are_those_made_one_by_one(tmp_path, random, maker, d):
    features = random.normal(size=(30, d)) * random.uniform(0.5, 3, d) + 2
    store, labels = make_store(tmp_path / "a.h5", features), make_labels(np.round(features[:, 0]))  # with ties
    together = shuffled_directions(store, labels, *AT, 4, make=maker, seed=3)
    apart = shuffled_directions(store, labels, *AT, 4, make=as_one_of_ones_own(maker), seed=3)
    assert len(together) == 4
    for first, second in zip(together, apart, strict=True):
        np.testing.assert_allclose(first.vector, second.vector, atol=1e-6)
        for key in ("method", "seed", "number", "position", "above", "below", "target", "n_tasks", "alpha"):
            assert first.provenance.get(key) == second.provenance.get(key)
        assert first.provenance["length"] == pytest.approx(second.provenance["length"], rel=1e-5)
    assert together[0].provenance["method"].startswith("shuffled ")
    assert shuffled_directions(store, labels, *AT, 0, make=maker) == []


@pytest.mark.parametrize("maker", [preference_direction, probe_direction])
def test_a_shuffled_direction_depends_on_the_seed_and_its_number_alone(tmp_path, random, maker):
    features = random.normal(size=(24, 6))
    store, labels = make_store(tmp_path / "a.h5", features), make_labels(random.normal(size=24))
    first, more, other = (
        shuffled_directions(store, labels, *AT, n, make=maker, seed=seed) for n, seed in ((2, 1), (5, 1), (2, 2))
    )
    for a, b, c in zip(first, more[:2], other, strict=True):
        np.testing.assert_allclose(a.vector, b.vector, atol=1e-6)
        assert abs(a.cosine(c)) < 0.999
    assert abs(more[2].cosine(more[3])) < 0.999


def test_shuffled_labels_give_directions_that_do_not_lie_along_what_was_planted(tmp_path, random):
    features = random.normal(size=(200, 20))
    store, labels = make_store(tmp_path / "a.h5", features), make_labels(features[:, 0])
    controls = shuffled_directions(store, labels, *AT, 50)
    assert preference_direction(store, labels, *AT).vector[0] > 0.9
    projections = np.array([control.vector[0] for control in controls])
    assert np.abs(projections).max() < 0.8 and abs(projections.mean()) < 4 * projections.std() / np.sqrt(50)


def test_choices_are_dealt_out_with_the_labels(tmp_path, random):
    features = random.normal(size=(40, 6))
    labels = make_labels(3 * features[:, 1])
    choices = pairs(labels["value"].to_numpy(), random)
    elsewhere = pd.DataFrame({"first": ["task1"], "second": ["not labelled"], "p_first": [1.0]})
    maker = partial(probe_direction, kind="bradley_terry", choices=pd.concat([choices, elsewhere]))
    store = make_store(tmp_path / "a.h5", features)
    real, controls = maker(store, labels, *AT), shuffled_directions(store, labels, *AT, 6, make=maker)
    assert real.vector[1] > 0.9
    assert {control.provenance["method"] for control in controls} == {"shuffled bradley_terry_probe"}
    assert max(abs(control.cosine(real)) for control in controls) < 0.95
    order = np.random.default_rng([0, 2]).permutation(40)
    moved = make_store(tmp_path / "moved.h5", features[order])  # labels dealt to other rows, or rows to other labels
    np.testing.assert_allclose(controls[2].vector, maker(moved, labels, *AT).vector, atol=1e-3)


def test_makers_refuse_shuffled_labels_as_they_refuse_others(tmp_path, random):
    store, labels = make_store(tmp_path / "a.h5", random.normal(size=(8, 3))), make_labels(np.arange(8.0))
    two = pd.concat([labels, make_labels(np.arange(8.0), target="other")])
    for maker in (preference_direction, probe_direction, as_one_of_ones_own(preference_direction)):
        with pytest.raises(ValueError, match=r"targets \['other', 'utility'\]; expected those of one target"):
            shuffled_directions(store, two, *AT, 2, make=maker)
    with pytest.raises(ValueError, match="values from 1 to 1"):
        shuffled_directions(store, make_labels(np.ones(8)), *AT, 2, make=probe_direction)
    with pytest.raises(ValueError, match=r"share=0\.7 of 8 tasks"):
        shuffled_directions(store, labels, *AT, 2, make=partial(preference_direction, share=0.7))


def test_anisotropic_directions_have_the_covariance_of_the_rows(tmp_path, random):
    features = random.normal(size=(25, 4)) @ random.normal(size=(4, 4)) + 9
    store = make_store(tmp_path / "a.h5", features)
    drawn = anisotropic_directions(store, *AT, n=4000)
    before = np.stack([each.vector * each.provenance["length"] for each in drawn])
    expected = np.cov(features.T)
    np.testing.assert_allclose(before.T @ before / 4000, expected, atol=0.1 * np.trace(expected))
    assert np.abs(before.mean(axis=0)).max() < 5 * np.sqrt(np.trace(expected) / 4000)


def test_anisotropic_directions_lie_where_activations_vary_and_random_ones_do_not(tmp_path, random):
    features = random.normal(size=(12, 100)) * np.where(np.arange(100) < 3, 30, 1)
    store = make_store(tmp_path / "a.h5", features)
    share = [
        np.median([np.square(each.vector[:3]).sum() for each in drawn])
        for drawn in (anisotropic_directions(store, *AT, n=50), random_directions(MODEL, 100, 5, 50))
    ]
    assert share[0] > 0.9 and share[1] < 0.1
    first, more = anisotropic_directions(store, *AT, n=1, seed=4)[0], anisotropic_directions(store, *AT, n=3, seed=4)
    assert first.fingerprint == more[0].fingerprint != more[1].fingerprint
    assert (first.provenance["method"], first.provenance["n_tasks"]) == ("anisotropic", 12)
    few = anisotropic_directions(store, *AT, n=1, tasks=["task0", "task1"])[0]
    assert abs(few.vector @ (features[0] - features[1])) == pytest.approx(np.linalg.norm(features[0] - features[1]), rel=1e-5)
    with pytest.raises(ValueError, match="at least two"):
        anisotropic_directions(store, *AT, n=1, tasks=["task0"])


def test_random_directions_exist_before_the_first_block():
    first, second = random_directions(MODEL, 30, -1, 2)
    assert first.layer == -1 and abs(first.cosine(second)) < 0.9
