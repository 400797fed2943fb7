"""Control vectors: what other readers find in our files, what we make of theirs, and files that are not what they say."""

import json
import struct

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store import Direction, SteeringVector, export_gguf, export_numpy, import_gguf
from store.provenance import ModelIdentity

MODEL = ModelIdentity("made up", "llama", "fingerprint")


def direction(layer: int, seed: int = 0, width: int = 6, model: ModelIdentity = MODEL) -> Direction:
    vector = np.random.default_rng([seed, layer + 1]).normal(size=width)
    return Direction.from_vector(vector, layer, model, method="made", position="task_mean", above=["ä", "b"])


def by_hand(data: bytes) -> tuple[dict[str, object], dict[str, np.ndarray]]:
    """A reading of GGUF 3 from its specification, for texts, 32-bit numbers and float32 tensors."""
    place = 0

    def take(form: str):
        nonlocal place
        values = struct.unpack_from(f"<{form}", data, place)
        place += struct.calcsize(f"<{form}")
        return values[0] if len(values) == 1 else values

    def text() -> str:
        return take(f"{take('Q')}s").decode()

    assert take("4s") == b"GGUF" and take("I") == 3
    n_tensors, n_fields = take("QQ")
    fields: dict[str, object] = {}
    for _ in range(n_fields):
        name = text()
        fields[name] = {4: lambda: take("I"), 8: text}[take("I")]()
    infos = []
    for _ in range(n_tensors):
        name = text()
        (n_dims,) = (take("I"),)
        infos.append((name, [take("Q") for _ in range(n_dims)], take("I"), take("Q")))
    start = -(-place // 32) * 32
    assert all(kind == 0 and len(dims) == 1 for _, dims, kind, _ in infos)
    return fields, {name: np.frombuffer(data, "<f4", dims[0], start + at) for name, dims, _, at in infos}


def test_a_reader_written_from_the_specification_finds_what_llama_cpp_and_repeng_look_for(tmp_path):
    vectors = [direction(layer).scaled(10.0 * layer, positions=["task_a"]) for layer in (15, 3)]
    path = export_gguf(tmp_path / "v.gguf", vectors)
    fields, tensors = by_hand(path.read_bytes())
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama" and fields["controlvector.layer_count"] == 2
    assert set(tensors) == {"direction.15", "direction.3"}
    for vector in vectors:
        layer = vector.direction.layer
        np.testing.assert_allclose(tensors[f"direction.{layer}"], vector.direction.vector * vector.norm, rtol=1e-6)
        assert np.linalg.norm(tensors[f"direction.{layer}"]) == pytest.approx(10 * layer, rel=1e-6)
    known = json.loads(str(fields["penchant.provenance"]))
    assert known["vectors"][0]["provenance"]["above"] == ["ä", "b"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["v.gguf"]


def test_ggufs_own_reader_finds_the_same(tmp_path):
    export_gguf(tmp_path / "v.gguf", {3: direction(3), 4: direction(4)}, model_hint="qwen3")
    reader = gguf.GGUFReader(tmp_path / "v.gguf")
    assert [tensor.name for tensor in reader.tensors] == ["direction.3", "direction.4"]
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32 and tensor.data.dtype == np.float32
        np.testing.assert_array_equal(tensor.data, direction(int(tensor.name[10:])).vector)
    hint = reader.get_field("controlvector.model_hint")
    assert hint is not None and str(bytes(hint.parts[-1]), "utf-8") == "qwen3"


def test_what_was_exported_comes_back(tmp_path):
    directions = [direction(3), direction(9)]
    found = import_gguf(export_gguf(tmp_path / "d.gguf", directions))
    assert [type(each) for each in found] == [Direction, Direction]
    for before, after in zip(directions, found, strict=True):
        assert isinstance(after, Direction) and after.fingerprint == before.fingerprint and after.model == MODEL
        assert after.provenance == before.provenance
    vector = direction(3).scaled(123.456, positions=["task_a"], n_tokens=7)
    (found,) = import_gguf(export_gguf(tmp_path / "v.gguf", vector))
    assert isinstance(found, SteeringVector) and found.norm == 123.456 and found.calibration == vector.calibration
    np.testing.assert_allclose(found.direction.vector, vector.direction.vector, rtol=1e-6)
    other = ModelIdentity("the same in bfloat16", "llama", "other")
    (found,) = import_gguf(tmp_path / "v.gguf", other)
    assert isinstance(found, SteeringVector) and found.direction.model == other


def test_a_control_vector_of_another_tool_becomes_directions(tmp_path):
    tensors = {"direction.2": np.arange(4.0), "direction.1": np.ones(4), "direction.7": np.zeros(4)}
    path = write(tmp_path / "theirs.gguf", tensors)
    first, second = import_gguf(path)
    assert isinstance(first, Direction) and isinstance(second, Direction) and (first.layer, second.layer) == (1, 2)
    np.testing.assert_allclose(second.vector * second.provenance["length"], np.arange(4), rtol=1e-6)
    assert (first.model.name, first.model.family) == ("unknown", "llama")
    assert first.provenance["file"] == "theirs.gguf"
    (first, _) = import_gguf(path, MODEL)
    assert isinstance(first, Direction) and first.model == MODEL


def test_llama_cpp_has_no_place_for_the_first_block(tmp_path):
    for layer, name in ((0, "L0"), (-1, "embed")):
        with pytest.raises(ValueError, match=rf"no place for {name}: llama.cpp refuses direction\.0"):
            export_gguf(tmp_path / "v.gguf", direction(layer))
        assert export_numpy(tmp_path / "v.npz", direction(layer)).exists()
    assert not (tmp_path / "v.gguf").exists()


@pytest.mark.parametrize(
    ("vectors", "match"),
    [
        ([], "no directions to export"),
        ([direction(3), direction(3, seed=1)], r"Several vectors are at L3; .* one a layer"),
        ([direction(3), direction(4).scaled(2.0)], "unit directions and norm-scaled steering vectors"),
        ([direction(3), direction(4, width=7)], r"made up \(width 6\) and another of made up \(width 7\)"),
        ([direction(3), direction(4, model=ModelIdentity("b", "llama", "x"))], r"made up \(width 6\) and another of b"),
        ({4: direction(3)}, "given for L4 is at L3"),
        ([direction(3) * 2], r"Cannot export a Combination; .*\.direction\(\)"),
        ([Direction(np.array([np.nan, 1]), 3, MODEL)], "not finite"),
    ],
)
def test_what_cannot_be_one_control_vector_is_refused(vectors, match, tmp_path):
    with pytest.raises(ValueError, match=match):
        export_gguf(tmp_path / "v.gguf", vectors)
    assert list(tmp_path.iterdir()) == []


def test_names_say_what_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.gguf"):
        export_gguf(tmp_path / "v.bin", direction(3))
    with pytest.raises(ValueError, match=r"expected a name that ends in \.npz"):
        export_numpy(tmp_path / "v.gguf", direction(3))


def test_an_npz_is_plain_arrays(tmp_path):
    vectors = [direction(0).scaled(2.0), direction(5).scaled(3.0), direction(5, seed=1).scaled(4.0)]
    with np.load(export_numpy(tmp_path / "v.npz", vectors), allow_pickle=False) as arrays:
        assert sorted(arrays) == ["layers", "provenance", "vectors"]
        np.testing.assert_array_equal(arrays["layers"], [0, 5, 5])
        np.testing.assert_allclose(np.linalg.norm(arrays["vectors"], axis=1), [2, 3, 4], rtol=1e-6)
        known = json.loads(arrays["provenance"].item())
    assert known["model"]["fingerprint"] == "fingerprint" and [row["norm"] for row in known["vectors"]] == [2, 3, 4]


def write(path, tensors, architecture="controlvector", **fields):
    """A GGUF file by its own package, as another tool would."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in ({"controlvector.model_hint": "llama"} | fields).items():
        (writer.add_string if isinstance(value, str) else writer.add_uint32)(name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, np.asarray(tensor, dtype=getattr(tensor, "dtype", np.float64)).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


OWN = {"model": {"name": "n", "family": "llama", "fingerprint": "f"}, "vectors": [{"layer": 1, "provenance": {}, "norm": 2.0}]}


@pytest.mark.parametrize(
    ("file", "match"),
    [
        ({"tensors": {"direction.1": np.ones(3)}, "architecture": "llama"}, "is 'llama'; expected 'controlvector'"),
        ({"tensors": {"direction.0": np.ones(3)}}, r"a tensor 'direction\.0'; expected direction\.N"),
        ({"tensors": {"output.weight": np.ones(3)}}, r"a tensor 'output\.weight'"),
        ({"tensors": {"direction.1": np.ones((2, 3))}}, r"of shape \(2, 3\); expected a vector of F32"),
        ({"tensors": {"direction.1": [1, np.inf, np.nan]}}, r"direction\.1 in .* has 2 values that are not finite"),
        ({"tensors": {"direction.1": np.ones(3), "direction.2": np.ones(4)}}, r"widths \{1: 3, 2: 4\}"),
        ({"tensors": {"direction.1": np.zeros(3)}}, "Every vector in .* is zero"),
        ({"tensors": {}}, "or there is none"),
        ({"tensors": {"direction.1": np.ones(3)}, "controlvector.model_hint": 3}, "model_hint in .* is 3; expected a text"),
        ({"tensors": {"direction.1": np.ones(3)}, "penchant.provenance": "{"}, "not what penchant writes"),
        ({"tensors": {"direction.1": np.ones(3)}, "penchant.provenance": "[" * 9999}, "not what penchant writes"),
        ({"tensors": {"direction.1": np.ones(3)}, "penchant.provenance": 7}, "not what penchant writes"),
        ({"tensors": {"direction.1": np.ones(4)}, "penchant.provenance": json.dumps(OWN)}, None),
        ({"tensors": {"direction.1": np.ones(3)}, "penchant.provenance": json.dumps(OWN)}, "length 1.73205, and .* says 2"),
        ({"tensors": {"direction.2": np.ones(4)}, "penchant.provenance": json.dumps(OWN)}, r"layers \[1\], .* for \[2\]"),
    ],
)
def test_a_file_that_is_no_control_vector_is_named_and_says_what_is_wrong(file, match, tmp_path):
    path = write(tmp_path / "theirs.gguf", **file)
    if match is None:
        assert import_gguf(path)
        return
    with pytest.raises(ValueError, match=match) as error:
        import_gguf(path)
    assert "theirs.gguf" in str(error.value)


def test_half_precision_is_refused_as_llama_cpp_does(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "half.gguf", "controlvector")
    writer.add_tensor("direction.1", np.ones(4, np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ValueError, match="is F16 of shape"):
        import_gguf(tmp_path / "half.gguf")


def test_a_model_of_another_family_is_refused(tmp_path):
    path = export_gguf(tmp_path / "v.gguf", direction(3))
    with pytest.raises(ValueError, match=r"made for made up \(llama\) and does not fit other \(gemma2\)"):
        import_gguf(path, ModelIdentity("other", "gemma2", "x"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[bytes, object]:
    folder = tmp_path_factory.mktemp("gguf")
    return export_gguf(folder / "v.gguf", [direction(3), direction(4)]).read_bytes(), folder / "other.gguf"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_damaged_file_gives_vectors_or_an_error_that_names_it(whole, data):
    contents, path = whole
    damaged = bytearray(contents[: data.draw(st.integers(0, len(contents)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(damaged)
    try:
        assert all(isinstance(each, Direction) and np.isfinite(each.vector).all() for each in import_gguf(path))
    except ValueError as error:
        assert "other.gguf" in str(error)


def test_an_array_that_claims_to_be_long_ends_with_the_file(tmp_path):
    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    endless = text("general.tags") + struct.pack("<IIQ", 9, 4, 2**60)
    (tmp_path / "long.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + endless)
    with pytest.raises(ValueError, match=r"long\.gguf cannot be read as GGUF: it ends before"):
        import_gguf(tmp_path / "long.gguf")


def test_an_absent_file_is_said_to_be_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.gguf"):
        import_gguf(tmp_path / "absent.gguf")
