"""penchant direction: what directions are, how alike, and files for other tools, from the command line."""

import re

import gguf
import numpy as np
import pytest

from experiments.cli import main
from store import Direction, Probe, export_gguf
from store.directions import save
from store.provenance import ModelIdentity

MODEL = ModelIdentity("made up", "llama", "0123456789abcdef")


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """A direction, a steering vector and a probe of one layer, and a direction of another."""
    along = Direction.from_vector(np.array([3.0, 4.0]), 3, MODEL, method="made", above=[f"task{n}" for n in range(40)])
    values = {
        "along": along,
        "across": Direction.from_vector(np.array([4.0, -3.0]), 3, MODEL, method="made").scaled(2.5, n_tokens=7),
        "probe": Probe(np.array([-6.0, -8.0], np.float32), 0.25, 3, "task_mean", MODEL, {"method": "ridge_probe"}),
        "deeper": Direction.from_vector(np.array([1.0, 0.0]), 4, MODEL, method="made"),
    }
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in values}
    for name, value in values.items():
        save(value, paths[name])
    return paths


def test_show_says_what_a_direction_is_and_where_it_comes_from(files, capsys):
    assert main(["direction", "show", files["along"]]) == 0
    shown = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == [files["along"]]
    assert ["what", "direction, a unit vector"] in shown and ["layer", "L3"] in shown and ["method", "made"] in shown
    assert ["model", "made up (llama), fingerprint 0123456789ab, 2 wide"] in shown and ["length", "5"] in shown
    (above,) = [line[1] for line in shown if line[0] == "above"]
    assert above.startswith('["task0", "task1"') and above.endswith("... (40 in all)") and len(above) < 100


def test_show_names_the_terms_of_a_combination(tmp_path, capsys):
    one, other = (Direction.from_vector(np.eye(2)[number], 3, MODEL, method=f"made {number}") for number in (0, 1))
    save((one - 0.5 * other).direction(), tmp_path / "both.safetensors")
    assert main(["direction", "show", str(tmp_path / "both.safetensors")]) == 0
    shown = capsys.readouterr().out
    assert re.search(
        rf'^  term 2 +{{"coefficient": -0\.5, "method": "made 1", "fingerprint": "{other.fingerprint[:6]}', shown, re.M
    )


def test_show_compares_what_can_be_compared(files, capsys):
    assert main(["direction", "show", *files.values()]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^  norm +2\.5, what a dose of 1\.0 adds$", out, re.MULTILINE)
    assert re.search(r"^  norm: n_tokens +7$", out, re.MULTILINE)
    assert "intercept" in out and "ridge_probe" in out
    table = out.split("cosines\n")[1].splitlines()
    assert table[0].split() == ["1", "2", "3", "4"]
    assert [line.split()[:2] for line in table[1:]] == [[str(n + 1), path] for n, path in enumerate(files.values())]
    cells = [line.split()[2:] for line in table[1:]]
    assert [[float(cell) for cell in row] for row in cells] == [[1, 0, -1], [0, 1, 0], [-1, 0, 1], [1]]


def test_export_writes_control_vectors_that_can_be_shown_again(files, tmp_path, capsys):
    out = str(tmp_path / "out" / "v.gguf")
    assert main(["direction", "export", files["probe"], files["deeper"], "--out", out, "--model-hint", "qwen3"]) == 0
    assert capsys.readouterr().out == f"2 vectors written to {out}\n"
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(out).tensors}
    np.testing.assert_allclose(tensors["direction.3"], [-0.6, -0.8], rtol=1e-6)
    np.testing.assert_allclose(tensors["direction.4"], [1, 0], rtol=1e-6)
    assert main(["direction", "show", out, files["along"]]) == 0
    shown = capsys.readouterr().out
    assert f"{out} L3\n" in shown and f"{out} L4\n" in shown and "-1.000" in shown and "ridge_probe" in shown


def test_export_writes_plain_arrays(files, tmp_path, capsys):
    out = str(tmp_path / "v.npz")
    assert main(["direction", "export", files["across"], "--out", out]) == 0
    assert capsys.readouterr().out == f"1 vector written to {out}\n"
    with np.load(out, allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["vectors"], [[2.0, -1.5]], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["show"], "takes at least one file; got none"),
        (["show", "along", "--out", "v.gguf"], "--out and --model-hint are for export"),
        (["export", "along"], "writes to nothing; expected --out and a name that ends in .gguf or .npz"),
        (["export", "along", "--out", "v.bin"], "writes to v.bin; expected"),
        (["export", "along", "--out", "v.npz", "--model-hint", "x"], "--model-hint is for GGUF files"),
        (["export", "along", "across", "--out", "v.gguf"], "unit directions and norm-scaled steering vectors"),
        (["export", "along", "probe", "--out", "v.gguf"], "Several vectors are at L3"),
        (["show", "absent.gguf"], "no file absent.gguf"),
        (["show", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(files, arguments, match, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["direction", *(files.get(argument, argument) for argument in arguments)]) == 1
    error = capsys.readouterr().err
    assert match in error and error.startswith("penchant: ") and error.count("\n") == 1
    assert not list(tmp_path.glob("v.*"))


def test_a_damaged_control_vector_is_an_error_and_not_a_traceback(files, tmp_path, capsys):
    path = export_gguf(tmp_path / "v.gguf", Direction.from_vector(np.ones(2), 1, MODEL))
    path.write_bytes(path.read_bytes()[:-40])
    assert main(["direction", "show", str(path)]) == 1
    assert "v.gguf cannot be read as GGUF: it ends before" in capsys.readouterr().err
