"""Directions, steering vectors, probes, labels and digests: kept as they were, and read with suspicion."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from store import Direction, Estimate, Probe, read_labels, write_labels
from store.directions import load, save
from store.provenance import ModelIdentity, digest

MODEL = ModelIdentity("made up", "none", "fingerprint")


def test_directions_steering_vectors_and_probes_come_back(tmp_path):
    direction = Direction.from_vector(np.arange(1.0, 7.0), 3, MODEL, method="made", above=["a", "b"])
    vector = direction.scaled(12.5, positions=["task_a"], n_tokens=7)
    probe = Probe(np.arange(6, dtype=np.float32), 0.5, 3, "task_mean", MODEL, {"target": "utility"})
    for value in (direction, vector, probe):
        save(value, tmp_path / "value.safetensors")
        again = load(tmp_path / "value.safetensors")
        assert type(again) is type(value)
        if isinstance(value, Probe):
            np.testing.assert_array_equal(again.weight, value.weight)
            assert (again.intercept, again.layer, again.position, again.model) == (0.5, 3, "task_mean", MODEL)
        else:
            assert again.fingerprint == value.fingerprint
    assert vector.norm == 12.5 and vector.calibration == {"positions": ["task_a"], "n_tokens": 7}
    assert direction.provenance["above"] == ["a", "b"]
    assert np.linalg.norm(direction.vector) == pytest.approx(1)


def test_a_file_from_elsewhere_is_refused(tmp_path):
    save_file({"vector": np.ones(3)}, tmp_path / "other.safetensors")
    (tmp_path / "no.safetensors").write_bytes(b"nothing of the kind")
    for name in ("other", "no"):
        with pytest.raises(ValueError, match="not a direction or probe written by penchant"):
            load(tmp_path / f"{name}.safetensors")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_a_reference_norm_is_positive(norm):
    with pytest.raises(ValueError, match="reference norm"):
        Direction.from_vector(np.ones(3), 1, MODEL).scaled(norm)


def labels(**changes) -> pd.DataFrame:
    values = {"task_id": ["a", "b"], "target": "u", "value": [1.0, 2.0], "se": 0.1, "low": 0.0, "high": 3.0, "n": 4}
    return pd.DataFrame(values | {"method": "m"} | changes)


def test_labels_come_back_and_wrong_ones_are_named(tmp_path):
    write_labels(labels(extra=1), tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet").equals(labels())
    for bad, match in (
        (labels(task_id=["a", "a"]), "'a' has more than one value for target 'u'"),
        (labels(value=[1.0, np.nan]), "1 label values are not finite, the first for task 'b'"),
        (labels().drop(columns="se"), r"lack the columns \['se'\]"),
    ):
        with pytest.raises(ValueError, match=match):
            write_labels(bad, tmp_path / "bad.parquet")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values, json_values)
def test_different_values_have_different_digests(first, second):
    assert (digest(first) == digest(second)) == (repr_of(first) == repr_of(second))


def repr_of(value) -> str:
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{repr_of(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(repr_of, value)) + "]"
    return repr(value)


def test_digests_see_dtype_shape_and_nesting():
    values = [np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.float32), [0.0] * 4, [[0.0] * 4], b"0", "0", 0, False, None]
    assert len({digest(value) for value in values}) == len(values)
    with pytest.raises(TypeError, match="Cannot digest a object"):
        digest(object())


def test_an_estimate_says_what_it_could_have_seen():
    draws = np.random.default_rng(0).normal(0.1, 0.2, 20_000)
    estimate = Estimate.from_draws(0.1, draws, n=50)
    assert not estimate.differs_from(0)
    assert estimate.differs_from(1)
    assert estimate.smallest_effect == pytest.approx(0.2 * 2.8016, rel=0.03)
    assert np.isnan(Estimate.from_draws(0.1, [np.nan, np.nan], 1).low)
    assert not Estimate.from_draws(0.1, [np.nan], 1).differs_from(0)
