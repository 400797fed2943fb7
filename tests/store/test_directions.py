"""Directions, steering vectors, probes, labels and digests: kept as they were, and read with suspicion."""

import json
import math
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from store import Combination, Direction, Estimate, Probe, read_labels, write_labels
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
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name in ("other", "no", "empty"):
        with pytest.raises(ValueError, match=rf"{name}\.safetensors is not a direction or probe written by penchant"):
            load(tmp_path / f"{name}.safetensors")
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match="There is no file"):
            load(path)


UNIT = np.array([0.6, 0.8], np.float32)
MISSING = object()


def header_of(kind: str) -> dict:
    """A header that `load` takes, with every part that its kind has."""
    own = {
        "Direction": {},
        "SteeringVector": {"norm": 12.5, "calibration": {"n_tokens": 7}},
        "Probe": {"intercept": 0.5, "position": "task_mean"},
    }
    model = {"name": "made up", "family": "none", "fingerprint": "fingerprint"}
    return {"kind": kind, "layer": 3, "model": model, "provenance": {"method": "made"}} | own[kind]


def parts_of(kind: str) -> list[str]:
    header = header_of(kind)
    return [*header, *(f"model.{name}" for name in header["model"])]


def changed(header: dict, name: str, value: object) -> dict:
    """The header with one part taken out, or of another value; `model.name` is a part of a part."""
    first, _, rest = name.partition(".")
    if rest:
        return header | {first: changed(header[first], rest, value)}
    return {key: each for key, each in (header | {first: value}).items() if each is not MISSING}


def written(path, header: object, arrays: dict[str, np.ndarray]) -> str:
    save_file(arrays, path, {"penchant": header if isinstance(header, str) else json.dumps(header)})
    return str(path)


ARRAYS = {"Direction": "vector", "SteeringVector": "vector", "Probe": "weight"}
EVERY_PART = [(kind, name) for kind in ARRAYS for name in parts_of(kind)]


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_header_with_every_part_is_read(tmp_path, kind):
    value = load(written(tmp_path / "v.safetensors", header_of(kind) | {"of a later version": 1}, {ARRAYS[kind]: UNIT}))
    assert type(value).__name__ == kind


@pytest.mark.parametrize(("kind", "name"), EVERY_PART)
def test_a_missing_part_of_a_header_is_named(tmp_path, kind, name):
    path = written(tmp_path / "v.safetensors", changed(header_of(kind), name, MISSING), {ARRAYS[kind]: UNIT})
    with pytest.raises(ValueError, match=rf"v\.safetensors is not .*: {name}(\.name)? is missing from the header; expected "):
        load(path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(EVERY_PART), json_values)
def test_a_part_of_any_other_kind_is_named_or_it_is_taken_as_it_is(tmp_path_factory, part, value):
    kind, name = part
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    written(path, changed(header_of(kind), name, value), {ARRAYS[kind]: UNIT})
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    is_right = {
        "kind": value in ARRAYS if isinstance(value, str) else False,
        "layer": isinstance(value, int) and number and value >= -1,
        "model": False,
        "provenance": isinstance(value, dict),
        "calibration": isinstance(value, dict),
        "norm": number and value > 0,
        "intercept": number,
    }.get(name, isinstance(value, str))
    if is_right:
        assert type(load(path)).__name__ == kind
    else:
        with pytest.raises(ValueError, match=rf"any\.safetensors is not .*: {name}(\.name)? is .*; expected "):
            load(path)


@given(json_values | st.text(max_size=40))
def test_any_other_header_is_an_error_and_nothing_else(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "header.safetensors"
    for text in (value, json.dumps(value)):
        with pytest.raises(ValueError, match=r"header\.safetensors is not a direction or probe written by penchant"):
            load(written(path, text, {"vector": UNIT}))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"layer": ' + "9" * 5000 + "}", '{"kind": "Intervention"}'])
def test_a_header_that_is_no_json_or_of_another_thing_is_an_error(tmp_path, text):
    with pytest.raises(ValueError, match=r"v\.safetensors is not a direction or probe written by penchant"):
        load(written(tmp_path / "v.safetensors", text, {"vector": UNIT}))


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"other": UNIT}, r"{name} is missing among the arrays \['other'\]; expected a vector of float32"),
        ({"{name}": UNIT.astype(np.float64)}, r"{name} is F64 of shape \(2,\); expected a vector of float32"),
        ({"{name}": UNIT.astype(np.int32)}, r"{name} is I32 of shape \(2,\)"),
        ({"{name}": UNIT[None]}, r"{name} is F32 of shape \(1, 2\)"),
        ({"{name}": np.float32(1)[()].reshape(())}, r"{name} is F32 of shape \(\)"),
        ({"{name}": UNIT[:0]}, r"{name} is F32 of shape \(0,\)"),
        ({"{name}": np.array([1, np.nan, np.inf], np.float32)}, "{name} is not finite in 2 of 3 values"),
    ],
)
@pytest.mark.parametrize("kind", ARRAYS)
def test_an_array_of_another_kind_is_named(tmp_path, kind, arrays, match):
    arrays = {name.format(name=ARRAYS[kind]): np.asarray(array) for name, array in arrays.items()}
    with pytest.raises(ValueError, match=r"v\.safetensors is not .*: " + match.replace("{name}", ARRAYS[kind])):
        load(written(tmp_path / "v.safetensors", header_of(kind), arrays))


def test_a_dtype_that_numpy_has_no_name_for_is_an_error(tmp_path):
    described = {"vector": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    described["__metadata__"] = {"penchant": json.dumps(header_of("Direction"))}
    head = json.dumps(described).encode()
    (tmp_path / "v.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(4))
    with pytest.raises(ValueError, match=r"vector is BF16 of shape \(2,\)"):
        load(tmp_path / "v.safetensors")


@pytest.mark.parametrize("length", [0.0, 0.99, 2.0])
@pytest.mark.parametrize("kind", ["Direction", "SteeringVector"])
def test_a_direction_in_a_file_is_a_unit_vector(tmp_path, kind, length):
    path = written(tmp_path / "v.safetensors", header_of(kind), {"vector": np.float32(length) * UNIT})
    with pytest.raises(ValueError, match=f"vector is of length {length:g}; expected length 1"):
        load(path)


def test_a_file_cut_short_anywhere_is_an_error(tmp_path):
    save(unit(1).scaled(2.0), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    for length in (*range(0, len(whole), 13), len(whole) - 1):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"cut\.safetensors is not a direction or probe written by penchant"):
            load(tmp_path / "cut.safetensors")


def test_a_norm_has_one_fingerprint_however_it_is_written(tmp_path):
    save(unit(1).scaled(12), tmp_path / "v.safetensors")
    assert load(tmp_path / "v.safetensors").fingerprint == unit(1).scaled(12).fingerprint == unit(1).scaled(12.0).fingerprint


@pytest.mark.parametrize("norm", [0.0, -1.0, float("nan")])
def test_a_reference_norm_is_positive(norm):
    with pytest.raises(ValueError, match="reference norm"):
        Direction.from_vector(np.ones(3), 1, MODEL).scaled(norm)


def unit(seed: int, layer: int = 3, model: ModelIdentity = MODEL, **provenance) -> Direction:
    return Direction.from_vector(np.random.default_rng(seed).normal(size=6), layer, model, method=f"made {seed}", **provenance)


A, B, C = unit(1), unit(2), unit(3)
coefficients = st.floats(-5, 5)


def same(first: Combination, second: Combination) -> bool:
    return np.allclose(first.vector, second.vector, rtol=1e-12, atol=1e-12)


@given(coefficients, coefficients)
def test_directions_are_added_and_scaled_as_their_vectors_are(x, y):
    np.testing.assert_allclose((x * A - y * B).vector, x * A.vector.astype(float) - y * B.vector.astype(float), atol=1e-12)
    assert same(A + B, B + A) and same((A + B) + C, A + (B + C))
    assert same(x * (A + B), x * A + x * B) and same((x + y) * A, x * A + y * A) and same(x * A, A * x)
    assert same(x * (y * A), (x * y) * A) and same(-A, -1 * A) and same(A - B, A + -B) and same(A / 2, 0.5 * A)
    assert same(sum([A, B, C]), A + B + C) and same(Combination.mean([A, 2 * B, C]), (A + 2 * B + C) / 3)
    assert same(np.float32(0.5) * A, A / 2) and same(A * np.float64(3), 3 * A) and same(np.int64(2) * A, 2 * A)


def test_a_combination_keeps_its_coefficients_and_becomes_a_unit_vector_only_when_asked():
    happy, sad = unit(1, position="task_mean"), unit(2, position="task_mean")
    combined = happy - 0.5 * sad
    assert [coefficient for coefficient, _ in combined.terms] == [1.0, -0.5]
    assert repr(combined) == "Combination(+1 made 1 -0.5 made 2 at L3)"
    made = combined.direction(purpose="test")
    assert np.linalg.norm(made.vector) == pytest.approx(1) and made.vector.dtype == np.float32
    np.testing.assert_allclose(made.vector * made.provenance["length"], combined.vector, rtol=1e-5, atol=1e-7)
    assert made.provenance["terms"] == [
        {"coefficient": 1.0, "fingerprint": happy.fingerprint, "method": "made 1"},
        {"coefficient": -0.5, "fingerprint": sad.fingerprint, "method": "made 2"},
    ]
    assert made.provenance["method"] == "combination" and made.provenance["position"] == "task_mean"
    assert made.provenance["purpose"] == "test" and (made.layer, made.model) == (3, MODEL)
    assert "position" not in (happy + unit(2)).direction().provenance
    assert (-happy).direction().fingerprint == Direction(-happy.vector, 3, MODEL).fingerprint


def test_a_combination_survives_the_disk(tmp_path):
    made = (A - 0.5 * B).direction()
    save(made, tmp_path / "made.safetensors")
    again = load(tmp_path / "made.safetensors")
    assert isinstance(again, Direction) and again.provenance == made.provenance


def test_a_direction_that_comes_twice_is_one_term():
    assert len((A + B + A).terms) == 2 and (A + B + A).terms[0][0] == 2
    assert (A - A).length == 0 and (0.1 * A + 0.2 * A - 0.3 * A).length == 0


@pytest.mark.parametrize(
    "zero", [A * 0, A - A, 0.1 * A + 0.2 * A - 0.3 * A, 0 * A + 0 * B, A + -1 * Direction(A.vector, 3, MODEL)]
)
def test_length_zero_is_allowed_and_points_nowhere(zero):
    np.testing.assert_array_equal(zero.vector, np.zeros(6))
    assert same(B + zero, 1 * B)
    for ask in (zero.direction, lambda: zero.cosine(B), lambda: B.cosine(zero), lambda: B.orthogonal_to(zero)):
        with pytest.raises(ValueError, match="length zero, so it points nowhere"):
            ask()


@given(coefficients, coefficients, st.sampled_from([1e-6, 1.0, 1e6]))
def test_what_is_left_is_orthogonal_and_with_the_projection_makes_the_whole(x, y, size):
    left = (size * A).orthogonal_to(B, C)
    for other in (1 * B, 1 * C, x * B + y * C):
        # Below 1e-300 products of float64 are rounded to steps that are no smaller.
        assert abs(left.vector @ other.vector) <= 1e-12 * size * sum(abs(share) for share, _ in other.terms) + 1e-300
    assert left.length < size
    rest = size * A - left
    assert {kept.fingerprint for share, kept in rest.terms if share} == {B.fingerprint, C.fingerprint}
    assert left.length**2 + rest.length**2 == pytest.approx(size**2, rel=1e-6)
    assert same(left.orthogonal_to(B, C), left)


def test_directions_that_depend_on_one_another_span_what_they_span():
    both = (B + C).direction()
    np.testing.assert_allclose(A.orthogonal_to(B, C, both, B, -2 * C).vector, A.orthogonal_to(B, C).vector, atol=1e-6)
    assert same(A.orthogonal_to(), 1 * A)
    for within in (A, 3 * A - B, both):
        with pytest.raises(ValueError, match="lies in the span of the 3 others"):
            within.orthogonal_to(A, B, C)


def test_a_cosine_is_that_of_the_vectors():
    expected = A.vector @ B.vector
    assert A.cosine(B) == pytest.approx(expected, abs=1e-6) and B.cosine(A) == A.cosine(B)
    assert A.cosine(A) == pytest.approx(1, abs=1e-12) and A.cosine(-3 * A) == pytest.approx(-1, abs=1e-12)
    assert (5 * A).cosine(B / 7) == pytest.approx(A.cosine(B), abs=1e-12)
    assert A.orthogonal_to(B).cosine(B) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (unit(2, layer=4), "at L3 and the other at L4 of made up"),
        (unit(2, layer=-1), "at L3 and the other at embed"),
        (unit(2, model=ModelIdentity("b", "llama", "other")), r"made up \(none, .* and the other of b \(llama"),
        (Direction.from_vector(np.ones(7), 3, MODEL), r"width 6\) and the other of made up .* width 7\)"),
    ],
)
def test_vectors_of_different_spaces_are_not_combined(other, match):
    for ask in (lambda: A + other, lambda: A - 2 * other, lambda: A.cosine(other), lambda: A.orthogonal_to(B, other)):
        with pytest.raises(ValueError, match=match):
            ask()


def test_only_numbers_scale_and_only_directions_are_added():
    for ask in (lambda: A + 1, lambda: 1 + A, lambda: A * B, lambda: A - "b", lambda: A * np.ones(6), lambda: np.ones(6) * A):
        with pytest.raises(TypeError):
            ask()
    for ask in (lambda: A * float("nan"), lambda: A * float("inf")):
        with pytest.raises(ValueError, match="expected a finite number"):
            ask()
    with pytest.raises(ZeroDivisionError):
        A / 0
    with pytest.raises(ValueError, match="no directions to combine"):
        Combination(())


@pytest.mark.parametrize(
    "ask",
    [
        lambda vector: vector + vector,
        lambda vector: vector - A,
        lambda vector: A + vector,
        lambda vector: (A - B) - vector,
        lambda vector: sum([vector, vector]),
        lambda vector: 0.5 * vector,
        lambda vector: vector * 2,
        lambda vector: np.float32(0.5) * vector,
        lambda vector: np.ones(6) * vector,
        lambda vector: vector / 2,
        lambda vector: -vector,
    ],
)
def test_a_steering_vector_keeps_its_unit_of_dose_and_is_neither_added_nor_scaled(ask):
    with pytest.raises(
        TypeError, match=r"its norm, 12\.5, is what a dose of 1\.0 adds at L3.*\.direction\(\)\.scaled\(12\.5\)"
    ):
        ask(A.scaled(12.5))


def test_the_way_out_that_the_refusal_names_works():
    one, other = A.scaled(12.5), B.scaled(3.0)
    made = (one.direction - 0.5 * other.direction).direction().scaled(12.5)
    assert made.norm == 12.5 and made.direction.cosine(A - 0.5 * B) == pytest.approx(1, abs=1e-6)


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


numbered_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(numbered_values, numbered_values)
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


def test_what_is_printed_of_a_direction_is_one_line():
    model = ModelIdentity("trial", "llama", "f")
    direction = Direction.from_vector(np.arange(1.0, 577.0), 15, model, method="ridge_probe")
    assert repr(direction.scaled(12.5)) == "SteeringVector(Direction(ridge_probe at L15 of trial, 576 values), norm 12.5)"
    assert len(repr(Probe(np.ones(576), 0.5, 15, "task_mean", model))) < 200
