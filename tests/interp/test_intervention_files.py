"""Intervention files: what was saved comes back to the bit, directions are taken too, and nothing damaged gets through."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save as serialise

from interp import Intervention, Push, load_intervention, random_directions, save_intervention
from store import Direction, Probe
from store.directions import save
from store.provenance import ModelIdentity

MODEL = ModelIdentity("tiny", "llama", "abc")


def vector(layer=1, number=0, norm=2.5):
    calibration = {"positions": ["task_a"], "n_tokens": 12, "prompts": "digest"}
    return random_directions(MODEL, 16, layer, number + 1)[number].scaled(norm, **calibration)


INTERVENTIONS = {
    "apart": Intervention.apart(vector(), 0.1 + 0.2),
    "several layers": Intervention.layers([vector(), vector(2)], -0.3, "prompt", "prompt"),
    "ablate": Intervention.ablate([vector(), vector(number=1)], phase="generation"),
    "project_out": Intervention.project_out(vector(), 2.0),
    "clamp": Intervention((Push(vector(), "task_a"), Push(vector(), "task_b", -1 / 3)), 0.4, operation="clamp"),
}


@pytest.mark.parametrize("name", INTERVENTIONS)
def test_an_intervention_comes_back_as_it_was(name, tmp_path):
    saved = INTERVENTIONS[name]
    save_intervention(saved, tmp_path / "a" / "i.safetensors")
    found = load_intervention(tmp_path / "a" / "i.safetensors")
    assert found.fingerprint == saved.fingerprint and found.describe() == saved.describe()
    assert [each.name for each in (tmp_path / "a").iterdir()] == ["i.safetensors"]
    for push, before in zip(found.pushes, saved.pushes, strict=True):
        np.testing.assert_array_equal(push.direction.vector, before.direction.vector)
        assert push.direction.model == MODEL and push.direction.provenance == before.direction.provenance


@given(dose=st.floats(-20, 20), weight=st.floats(-3, 3), norm=st.floats(1e-6, 1e6))
@settings(max_examples=30, deadline=None)
def test_every_dose_weight_and_norm_survives(tmp_path_factory, dose, weight, norm):
    path = tmp_path_factory.mktemp("i") / "i.safetensors"
    saved = Intervention((Push(vector(norm=norm), "task_a", weight),), dose)
    save_intervention(saved, path)
    assert load_intervention(path).fingerprint == saved.fingerprint


def test_a_dose_overrides_that_of_the_file_where_the_operation_takes_one(tmp_path):
    save_intervention(INTERVENTIONS["apart"], tmp_path / "i.safetensors")
    assert load_intervention(tmp_path / "i.safetensors", 0.5).dose == 0.5
    save_intervention(INTERVENTIONS["ablate"], tmp_path / "a.safetensors")
    assert load_intervention(tmp_path / "a.safetensors", 1.0).dose == 1
    with pytest.raises(ValueError, match="ablate takes the whole component out"):
        load_intervention(tmp_path / "a.safetensors", 0.5)
    with pytest.raises(ValueError, match="dose is nan"):
        load_intervention(tmp_path / "i.safetensors", float("nan"))


def test_a_steering_vector_is_added_everywhere_at_the_dose_given(tmp_path):
    save(vector(), tmp_path / "v.safetensors")
    expected = Intervention.everywhere(vector(), 0.2)
    assert load_intervention(tmp_path / "v.safetensors", 0.2).fingerprint == expected.fingerprint
    with pytest.raises(ValueError, match=r"has no dose of its own.*--dose 0\.2"):
        load_intervention(tmp_path / "v.safetensors")


def test_a_direction_or_probe_without_a_norm_is_refused_with_how_to_measure_it(tmp_path):
    save(vector().direction, tmp_path / "d.safetensors")
    save(Probe(np.ones(16, dtype=np.float32), 0.0, 3, "task_mean", MODEL), tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=r"holds a Direction at L1, and the norm .*model\.calibrate.*save_intervention"):
        load_intervention(tmp_path / "d.safetensors", 0.2)
    with pytest.raises(ValueError, match=r"holds a Probe at L3.*probe\.direction"):
        load_intervention(tmp_path / "p.safetensors", 0.2)


def header(**changes):
    push = {
        "layer": 1,
        "model": {"name": "tiny", "family": "llama", "fingerprint": "abc"},
        "provenance": {},
        "positions": "all",
        "weight": 1.0,
        "norm": 2.0,
        "calibration": {},
    }
    top = {"kind": "Intervention", "version": 1, "operation": "add", "dose": 0.5, "phase": "both"}
    pushes = [push | {name.removeprefix("push_"): value for name, value in changes.items() if name.startswith("push_")}]
    return top | {"pushes": pushes} | {name: value for name, value in changes.items() if not name.startswith("push_")}


def write(path, header, **arrays):
    unit = np.zeros(16, dtype=np.float32)
    unit[0] = 1
    path.write_bytes(serialise(arrays or {"vector_0": unit}, {"penchant": json.dumps(header)}))
    return path


def test_the_header_written_here_is_one_that_is_read(tmp_path):
    assert load_intervention(write(tmp_path / "i.safetensors", header())).dose == 0.5


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"operation": "exec"}, "no operation 'exec'"),
        ({"phase": "never"}, "phase is 'never'"),
        ({"dose": float("nan")}, "dose is nan"),
        ({"dose": "0.5"}, "dose: Input should be a valid number"),
        ({"version": 2}, "version: Input should be 1"),
        ({"surprise": 1}, "surprise: Extra inputs"),
        ({"pushes": []}, "pushes: List should have at least 1"),
        ({"pushes": {}}, "pushes: Input should be a valid list"),
        ({"push_positions": "__import__"}, "is not a position"),
        ({"push_positions": "task_mean"}, "a mean is not a token"),
        ({"push_weight": float("inf")}, "weight of a push is inf"),
        ({"push_norm": 0.0}, "reference norm is 0"),
        ({"push_norm": None}, "needs the norm"),
        ({"push_layer": "1"}, "pushes.0.layer"),
        ({"push_layer": -7}, "pushes.0.layer"),
        ({"push_model": {"name": "tiny"}}, "pushes.0.model.family: Field required"),
        ({"push_provenance": [1]}, "pushes.0.provenance"),
    ],
)
def test_a_header_that_says_something_else_is_refused(tmp_path, changes, match):
    path = write(tmp_path / "i.safetensors", header(**changes))
    with pytest.raises(ValueError, match=rf"i\.safetensors is damaged.*{match}"):
        load_intervention(path)


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"vector_0": np.zeros(16, np.float32)}, "length 0; expected 1"),
        ({"vector_0": np.full(16, np.nan, np.float32)}, "length nan"),
        ({"vector_0": np.full(16, 0.25, np.float64)}, "float64 of shape"),
        ({"vector_0": np.full((4, 4), 0.25, np.float32)}, "expected float32 of one axis"),
        ({"vector_1": np.full(16, 0.25, np.float32)}, "holds the arrays"),
        ({"vector_0": np.full(16, 0.25, np.float32), "more": np.zeros(1, np.float32)}, "holds the arrays"),
    ],
)
def test_arrays_that_are_no_directions_are_refused(tmp_path, arrays, match):
    path = write(tmp_path / "i.safetensors", header(), **arrays)
    with pytest.raises(ValueError, match=match):
        load_intervention(path)


def test_a_damaged_file_is_refused_whatever_is_left_of_it(tmp_path):
    path = tmp_path / "i.safetensors"
    save_intervention(INTERVENTIONS["apart"], path)
    whole = path.read_bytes()
    for content in (
        b"",
        whole[:7],
        whole[: len(whole) // 2],
        whole[:-5],
        b"\x80\x04.",
        whole.replace(b"penchant", b"penchamt"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"i\.safetensors is not a file of penchant, or is damaged"):
            load_intervention(path)
    for text in ("[1]", "3", '"text"', "[" * 100_000):
        path.write_bytes(serialise({"a": np.ones(1)}, {"penchant": text}))
        with pytest.raises(ValueError, match=r"i\.safetensors is"):
            load_intervention(path, 0.1)
    save(Direction(np.zeros(16, np.float32), 1, MODEL).scaled(1.0), path)
    with pytest.raises(ValueError, match="length 0"):
        load_intervention(path, 0.1)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_intervention(tmp_path / "absent.safetensors")
