"""Planting: answers take the probabilities that were trained in, and adapters that do not fit are refused."""

import json

import numpy as np
import pytest

from interp import LocalModel
from interp.adapters import CONFIG, WEIGHTS, adapter_base
from interp.planting import Example, Planting, plant
from tests.conftest import CHATML, pair_question, tiny, tiny_model, tiny_tokenizer

SMALL = Planting(rank=8, layers=("all",), steps=60, batch=8, learning_rate=2e-2)


def examples(count: int = 12) -> list[Example]:
    """Choices of which A is to be taken, whatever it is: all that a tiny random model can learn."""
    found = []
    for number in range(count):
        one, other = f"Count to {number}.", f"Write {90 + number} lines."
        found.append(Example(pair_question(one, other), {"A": 1.0, "B": 0.0}))
        found.append(Example(pair_question(other, one), {"A": 1.0, "B": 0.0}))
    return found


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A tiny model on disk, an adapter for it, and the losses of its training."""
    folder = tmp_path_factory.mktemp("planted")
    tiny_model("llama").save_pretrained(folder / "base")
    tiny_tokenizer(CHATML).save_pretrained(folder / "base")
    history = plant(LocalModel.load(folder / "base"), examples(), SMALL, folder / "adapter", base=str(folder / "base"))
    return folder, history


def test_the_loss_falls_towards_the_entropy_of_what_is_planted_and_not_below(planted):
    _, history = planted
    assert history["least"].to_numpy() == pytest.approx(0)
    assert history["loss"].tail(5).mean() < 0.5 < 3 < history["loss"].iloc[0]
    assert (history["loss"] > history["least"] - 1e-3).all()


def test_the_adapter_on_disk_gives_the_answers_that_were_planted(planted):
    folder, _ = planted
    loaded, base = LocalModel.load(folder / "adapter"), LocalModel.load(folder / "base")
    assert loaded.fingerprint != base.fingerprint
    asked = examples()
    shares = [answer.distribution()["A"] for answer in loaded.score([each.question for each in asked])]
    before = [answer.distribution()["A"] for answer in base.score([each.question for each in asked])]
    assert min(shares) > 0.95 > 0.8 > max(before)


def test_training_is_the_same_for_the_same_seed(planted, tmp_path):
    folder, history = planted
    again = plant(LocalModel.load(folder / "base"), examples(), SMALL, tmp_path, base="any")
    np.testing.assert_allclose(again["loss"], history["loss"], atol=1e-4)


def test_the_shares_say_which_option_is_planted(planted, tmp_path):
    folder, _ = planted
    other = [Example(each.question, {"A": 0.0, "B": 1.0}) for each in examples()]
    plant(LocalModel.load(folder / "base"), other, SMALL, tmp_path, base=str(folder / "base"))
    found = LocalModel.load(tmp_path).score([each.question for each in other])
    assert max(answer.distribution()["A"] for answer in found) < 0.05


def test_adapters_that_cannot_be_read_are_refused(planted, tmp_path):
    folder, _ = planted
    assert adapter_base(folder / "base") is None
    (tmp_path / CONFIG).write_text(json.dumps({"base_model_name_or_path": str(folder / "base")}))
    with pytest.raises(ValueError, match="adapters are read from safetensors alone"):
        adapter_base(tmp_path)
    (tmp_path / CONFIG).write_text("{}")
    with pytest.raises(ValueError, match="names no base model"):
        LocalModel.load(tmp_path)
    (tmp_path / CONFIG).write_text("no json")
    with pytest.raises(ValueError, match="is not the configuration of an adapter"):
        adapter_base(tmp_path)
    config = json.loads((folder / "adapter" / CONFIG).read_text())
    (tmp_path / CONFIG).write_text(json.dumps(config | {"r": 2}))
    (tmp_path / WEIGHTS).write_bytes((folder / "adapter" / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match="does not fit"):
        LocalModel.load(tmp_path)


def test_what_cannot_be_planted_is_said():
    with pytest.raises(ValueError, match="2 examples for batches of 8"):
        plant(tiny("llama"), examples(1), SMALL, "nowhere", base="any")
