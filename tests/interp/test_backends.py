"""Three backends, one model: what is read, scored, steered and sampled is the same through each, here and on a server."""

import io
import json
import pickletools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from transformers import PersimmonConfig, PersimmonForCausalLM

from interp import Intervention, LocalModel, MissingModel, random_directions
from interp.backends.choice import backend_maker
from interp.batches import lay_out
from interp.scoring import option_tree
from store import EMBED, END_OF_TURN, Direction, Message, Option, Question, Sampling
from tests.conftest import ALL_FAMILIES, CHATML, pair_question, tiny, tiny_model, tiny_tokenizer

OTHERS = ("nnsight", "transformer_lens")
BACKENDS = ("hf", *OTHERS)
LAYER = 1
NUMBERS = tuple(Option(str(n), (str(n), f" {n}"), (END_OF_TURN, "\n", ".")) for n in (1, 2, 10, 100))

tiny_through = cache(lambda family, backend: tiny(family, backend=backend))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny models gain nothing from a second thread, and lose much where other work shares the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=OTHERS)
def embedded_elsewhere(request) -> LocalModel:
    """The embedded model through another backend; its own copy, as TransformerLens rebuilds what it is given."""
    return LocalModel.load(backend=request.param)


@contextmanager
def laid_out(model: LocalModel, layout: str):
    previous = model.engine.layout
    model.engine.layout = layout if layout != "auto" else previous
    try:
        yield
    finally:
        model.engine.layout = previous


def vector(model: LocalModel, layer: int = LAYER):
    """A steering vector that every backend's copy of a model takes alike."""
    direction = random_directions(model.identity, model.d_model, layer, 1)[0]
    return model.calibrate(direction, [pair_question("Sing a song.", "Dance.")], ["task_a", "task_b"])


def assert_same_rows(found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    """Every row is within 1e-4 of its norm."""
    for rows, reference in zip(found, expected, strict=True):
        distance = np.linalg.norm(rows - reference, axis=-1)
        assert (distance < 1e-4 * np.linalg.norm(reference, axis=-1)).all(), distance.max()


def assert_same_scores(found: list, expected: list) -> None:
    for answer, reference in zip(found, expected, strict=True):
        assert answer.log_probs == pytest.approx(reference.log_probs, abs=1e-4)


def to_generate() -> list[Question]:
    texts = ("Sing.", "Write a long poem about the sea at night.", "Add 3 and 4 and 5 and then stop.")
    samplings = (Sampling(temperature=0, max_new_tokens=10), Sampling(temperature=1, seed=7, max_new_tokens=10))
    return [Question((Message("user", text),), sampling=sampling) for sampling in samplings for text in texts]


def texts(model: LocalModel, questions: list[Question]) -> list[str | None]:
    return [answer.text for answer in model.generate(questions)]


# ---- the same through each


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ALL_FAMILIES)
@pytest.mark.parametrize("layout", ["auto", "left", "right"])
def test_residual_rows_of_all_layers_and_the_embedding_agree(family, backend, layout, pair_questions):
    expected = tiny_through(family, "hf").residuals(pair_questions[:6], ["embed", "all"], "all")
    model = tiny_through(family, backend)
    with laid_out(model, layout):
        assert_same_rows(model.residuals(pair_questions[:6], ["embed", "all"], "all"), expected)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_scores_agree(family, backend, pair_questions):
    questions = [*pair_questions[:6], *(replace(question, options=NUMBERS) for question in pair_questions[:3])]
    assert_same_scores(tiny_through(family, backend).score(questions), tiny_through(family, "hf").score(questions))


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_steering_at_a_block_moves_later_blocks_and_scores_alike(family, backend, pair_questions):
    reference, model = tiny_through(family, "hf"), tiny_through(family, backend)
    intervention = Intervention.apart(vector(reference), 0.7)
    plain = reference.residuals(pair_questions[:4], [LAYER, 3], "decision")
    steered = reference.steered(intervention).residuals(pair_questions[:4], [LAYER, 3], "decision")
    assert all((np.linalg.norm(a - b, axis=-1)[0, 1] > 1e-2) for a, b in zip(plain, steered, strict=True))
    for layer in ("embed", LAYER, 2, 3):
        assert_same_rows(
            model.steered(intervention).residuals(pair_questions[:4], layer, "all"),
            reference.steered(intervention).residuals(pair_questions[:4], layer, "all"),
        )
    doses = (-0.5, 0.0, 0.5, 1.0)
    grids = [
        each.score_together([(each.steered(intervention.at(dose)), q) for dose in doses for q in pair_questions[:4]])
        for each in (model, reference)
    ]
    assert_same_scores(*grids)


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_steered_generation_agrees_token_for_token(family, backend):
    reference, model, questions = tiny_through(family, "hf"), tiny_through(family, backend), to_generate()
    steer, drawn = vector(reference), {}
    for phase in ("prompt", "generation", "both"):
        intervention = Intervention.everywhere(steer, 0.8, phase)
        drawn[phase] = texts(reference.steered(intervention), questions)
        assert texts(model.steered(intervention), questions) == drawn[phase]
    assert texts(model, questions) not in drawn.values() and drawn["prompt"] != drawn["generation"]


def every_operation(model: LocalModel, phase) -> dict[str, Intervention]:
    """One intervention of each kind, at two layers and with two directions at one of them."""
    steer, deeper = vector(model), vector(model, 2)
    tilted = Direction.from_vector(steer.direction.vector + np.eye(model.d_model)[3], LAYER, model.identity)
    vectors = [steer, tilted.scaled(steer.norm), deeper]
    return {
        "add": Intervention.layers([steer, deeper], 0.6, phase=phase),
        "ablate": Intervention.ablate(vectors, phase=phase),
        "project_out": Intervention.project_out(vectors, 1.7, phase=phase),
        "clamp": Intervention.clamp(vectors, 0.6, phase=phase),
    }


@pytest.mark.parametrize("backend", OTHERS)
@pytest.mark.parametrize("operation", ["add", "ablate", "project_out", "clamp"])
def test_every_operation_agrees_in_rows_scores_and_text_token_for_token(operation, backend, pair_questions):
    for family in ("llama", "gemma3", "gpt2"):
        reference, model, questions = tiny_through(family, "hf"), tiny_through(family, backend), to_generate()
        plain, drawn = texts(reference, questions), []
        for phase in ("prompt", "generation", "both"):
            does = every_operation(reference, phase)[operation]
            views = [each.steered(does) for each in (model, reference)]
            assert_same_rows(*(view.residuals(pair_questions[:2], [LAYER, 2, 3], "all") for view in views))
            assert_same_scores(*(view.score(pair_questions[:2]) for view in views))
            drawn.append(texts(views[1], questions))
            assert texts(views[0], questions) == drawn[-1] != plain
        assert drawn[0] != drawn[1]


def test_the_embedded_model_is_read_scored_and_steered_alike(embedded, embedded_elsewhere, pair_questions):
    questions = pair_questions[:3]
    assert embedded_elsewhere.fingerprint == embedded.fingerprint
    layers = ["embed", "all"]
    assert_same_rows(embedded_elsewhere.residuals(questions, layers, "all"), embedded.residuals(questions, layers, "all"))
    intervention = Intervention.apart(vector(embedded, 12), 0.3)
    views = [model.steered(intervention) for model in (embedded_elsewhere, embedded)]
    assert_same_scores(
        *(
            model.score_together([(m, q) for m in (model, view) for q in questions])
            for model, view in zip((embedded_elsewhere, embedded), views, strict=True)
        )
    )
    assert_same_rows(*(view.residuals(questions, [12, 29], "task_b") for view in views))


@pytest.mark.slow
def test_the_embedded_model_writes_alike_when_steered(embedded, embedded_elsewhere):
    intervention = Intervention.everywhere(vector(embedded, 12), 0.2)
    questions = to_generate()
    expected = texts(embedded.steered(intervention), questions)
    assert texts(embedded_elsewhere.steered(intervention), questions) == expected
    ablated = Intervention.ablate(vector(embedded, 12), layers=range(embedded.n_layers))
    expected = texts(embedded.steered(ablated), questions[:2])
    assert texts(embedded_elsewhere.steered(ablated), questions[:2]) == expected


@pytest.mark.parametrize("backend", OTHERS)
def test_models_in_bfloat16_agree_to_its_rounding(backend, pair_questions):
    through = {
        each: LocalModel(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer(CHATML), backend=each)
        for each in ("hf", backend)
    }
    found, expected = (np.concatenate(through[each].residuals(pair_questions[:3], 1, "all")) for each in (backend, "hf"))
    distance = np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert distance.mean() < 0.03
    assert through[backend].dtype == "bfloat16" and through[backend].fingerprint == through["hf"].fingerprint


@pytest.mark.parametrize("backend", OTHERS)
def test_a_backend_edits_the_embedding_too_and_gathers_what_was_edited(backend):
    words = np.random.default_rng(0).integers(4, 500, 30)
    sequences = [words[:7], words[7:20], words[20:]]
    batch = lay_out(sequences, [np.zeros_like(each) for each in sequences], "left")
    kept = np.concatenate(batch.rows)
    edits = {EMBED: lambda residual: residual * 1.5, 2: lambda residual: residual + 0.25}
    runs = [
        tiny_through("gemma3", each).backend.run(
            batch, edits=edits, gathers=dict.fromkeys((EMBED, 1, 2), lambda rows: rows[kept].clone()), logits_at=kept[-1:]
        )
        for each in (backend, "hf")
    ]
    for layer in (EMBED, 1, 2):
        assert_same_rows([runs[0].residuals[layer].numpy()], [runs[1].residuals[layer].numpy()])
    torch.testing.assert_close(runs[0].logits, runs[1].logits, atol=1e-4, rtol=0)


# ---- no more is run than is asked for


@contextmanager
def watched(model: LocalModel, model_parts: torch.nn.Module):
    """Collects the numbers of the blocks that run, and `unembedding`."""
    ran: set[int | str] = set()
    blocks = model.backend.blocks
    handles = [block.register_forward_pre_hook(lambda *_, n=n: ran.add(n)) for n, block in enumerate(blocks)]
    handles.append(model_parts.lm_head.register_forward_pre_hook(lambda *_: ran.add("unembedding")))
    try:
        yield ran
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_capture_runs_neither_later_blocks_nor_the_unembedding(family, backend, pair_questions):
    model = tiny_through(family, backend)
    steered = model.steered(Intervention.everywhere(vector(tiny_through(family, "hf"), layer=3), 1.0))
    for asked, layers, expected in ((model, ["embed", 1], {0, 1}), (model, [3], {0, 1, 2, 3}), (steered, [1], {0, 1})):
        with watched(model, model.backend.model) as ran:
            asked.residuals(pair_questions[:3], layers, "decision")
        assert ran == expected
    with watched(model, model.backend.model) as ran:
        model.score(pair_questions[:1])
    assert ran == {0, 1, 2, 3, "unembedding"}


@pytest.mark.parametrize("backend", ["hf", "nnsight"])
def test_a_resumed_pass_skips_the_blocks_it_is_given_the_result_of(backend):
    backend = tiny_through("llama", backend).backend
    words = np.random.default_rng(0).integers(4, 500, 30)
    sequences = [words[:7], words[:20], words[20:]]
    batch = lay_out(sequences, [np.zeros_like(each) for each in sequences], "packed")
    last = np.array([rows[-1] for rows in batch.rows])
    edits = {1: lambda residual: residual + 0.5}
    whole = backend.run(batch, edits=edits, logits_at=last).logits
    residual = backend.run(batch, gathers={1: lambda rows: rows.clone()}).residuals[1][None]
    ran = set()
    handles = [block.self_attn.register_forward_pre_hook(lambda *_, n=n: ran.add(n)) for n, block in enumerate(backend.blocks)]
    resumed = backend.run(batch, edits=edits, logits_at=last, resume=(1, residual)).logits
    for handle in handles:
        handle.remove()
    assert ran == {2, 3}
    torch.testing.assert_close(resumed, whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_error_inside_a_pass_leaves_the_model_as_it_was(backend, pair_questions, monkeypatch):
    model = tiny_through("llama", backend)
    expected = model.residuals(pair_questions[:4], [1, 2], "decision")
    original, refused = model.backend.run, []

    def run(batch, *, gathers, **settings):
        def refuse(_):
            refused.append(batch)
            raise torch.OutOfMemoryError("not enough")

        return original(batch, gathers={1: refuse, 2: refuse} if len(batch.rows) > 1 else gathers, **settings)

    monkeypatch.setattr(model.backend, "run", run)
    budget = model.engine.token_budget
    found = model.residuals(pair_questions[:4], [1, 2], "decision")
    model.engine.token_budget = budget
    assert refused
    assert_same_rows(found, expected)


# ---- the analyst's door


def test_the_cache_of_transformer_lens_holds_what_is_captured(embedded, pair_questions):
    for family in ("llama", "gemma2", "gpt2"):
        model, question = tiny_through(family, "transformer_lens"), pair_questions[1]
        rendered = model.render(question)
        cache = model.backend.cache(rendered)
        (captured,) = tiny_through(family, "hf").residuals([question], ["embed", "all"], "task_a")
        tokens = slice(*rendered.spans["task_a"])
        names = ["blocks.0.hook_in", *(f"blocks.{layer}.hook_out" for layer in range(4))]
        for place, name in enumerate(names):
            assert cache[name].shape[:2] == (1, len(rendered.token_ids))
            assert_same_rows([cache[name][0, tokens].numpy()], [captured[:, place]])
        torch.testing.assert_close(cache["resid_post", 2], cache["blocks.2.hook_out"])
        pattern = cache["blocks.1.attn.hook_pattern"]
        torch.testing.assert_close(pattern.sum(-1), torch.ones_like(pattern.sum(-1)))
        assert set(model.backend.cache(rendered, "blocks.2.hook_out")) == {"blocks.2.hook_out"}
    assert model.backend.bridge.cfg.n_layers == model.n_layers


def test_an_nnsight_trace_of_ones_own_reads_what_is_captured(pair_questions):
    import nnsight

    model = tiny_through("llama", "nnsight")
    token_ids = torch.from_numpy(model.render(pair_questions[0]).token_ids)[None]
    with model.backend.envoy.trace(input_ids=token_ids):
        residual = nnsight.save(model.backend.envoy.model.layers[2].output)
    (captured,) = tiny_through("llama", "hf").residuals(pair_questions[:1], 2, "token:-1")
    assert_same_rows([residual[0, -1].detach().numpy()], [captured[0, 0]])


# ---- on a server


class Server:
    """Stands in for NDIF: hears a request as nnsight's client sends it, and runs it on a model of its own.

    It rebuilds the request from its bytes alone, on a thread of its own, where nothing of the client's is under way.
    """

    def __init__(self, monkeypatch, model: torch.nn.Module, tokenizer) -> None:
        import httpx
        import nnsight
        import websocket

        self.model = model.eval()
        self.served = nnsight.TransformersModel(self.model, tokenizer=tokenizer)
        self.requests: list[dict] = []
        self.payloads: list[bytes] = []
        self.answers: list[dict] = []
        self._messages: list[str | bytes] = []
        monkeypatch.setattr(websocket, "create_connection", self._connect)
        monkeypatch.setattr(httpx.Client, "post", self._post)

    def _connect(self, url: str, header: dict | None = None):
        assert url == "wss://api.ndif.us/subscribe" and header == {"ndif-api-key": "key"}
        self._messages = [json.dumps({"session_id": "session"})]
        return self

    def recv(self) -> str | bytes:
        return self._messages.pop(0)

    def close(self) -> None:
        assert not self._messages

    def _post(self, url: str, *, data: dict, files: dict, headers: dict):
        import httpx

        assert url == "https://api.ndif.us/request" and headers["ndif-api-key"] == "key"
        with ThreadPoolExecutor(1) as thread:
            thread.submit(self._serve, json.loads(data["data"]), files["blob"][1]).result()
        answer = {"id": "job", "status": "RECEIVED"}
        return httpx.Response(200, json=answer, request=httpx.Request("POST", url))

    def _serve(self, request: dict, payload: bytes) -> None:
        import zstandard
        from nnsight.schema.request import RequestModel
        from nnsight.schema.response import ResponseModel, Status
        from nnsight.tracing.tracer import dec, inc

        assert torch.is_grad_enabled() and request["compress"]
        self.requests.append(request)
        self.payloads.append(zstandard.ZstdDecompressor().decompress(payload))
        known = self.served._remoteable_persistent_objects()
        self.served._remoteable_set_env(request["env"])
        tracer = RequestModel.deserialize(payload, known, compress=True)
        frame = tracer.info.frame
        inc()
        try:
            tracer.execute(tracer.info.code)
        finally:
            dec()
        self.answers.append({name: frame.f_locals[name] for name in ("residuals", "logits") if name in frame.f_locals})
        answer = io.BytesIO()
        torch.save(self.answers[-1], answer)
        compressed = zstandard.ZstdCompressor().compress(answer.getvalue())
        self._messages.append(ResponseModel(id="job", status=Status.COMPLETED, data=compressed).pickle())


@pytest.fixture
def keyed(monkeypatch):
    """A key for NDIF, and no status lines."""
    import nnsight

    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", "key")
    monkeypatch.setattr(nnsight.CONFIG.API, "HOST", "https://api.ndif.us")
    monkeypatch.setattr(nnsight.CONFIG.APP, "REMOTE_LOGGING", False)


@pytest.fixture
def remote(tmp_path, monkeypatch, keyed) -> tuple[LocalModel, Server]:
    """A model of which only the configuration is here, and a server that has the weights."""
    import transformers
    from nnsight.modeling import huggingface

    folder = str(tmp_path / "model")
    tiny_model("llama").config.save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)
    # What the client would ask the hub: the model's canonical name, and what it is for.
    monkeypatch.setitem(huggingface._ID_CACHE, folder, "lab/tiny")
    monkeypatch.setattr(transformers.pipelines, "get_task", lambda *_, **__: "text-generation")
    server = Server(monkeypatch, tiny_model("llama"), tiny_tokenizer(CHATML))
    return LocalModel.load(folder, backend="nnsight", remote=True), server


def test_a_remote_model_reads_and_scores_what_a_local_one_does(remote, pair_questions):
    model, server = remote
    local = tiny_through("llama", "hf")
    assert not server.requests and model.device.type == "meta" and model.engine.layout == "left"
    for position in ("task_a_mean", "all"):
        layers = ["embed", LAYER, 2]
        assert_same_rows(
            model.residuals(pair_questions[:4], layers, position), local.residuals(pair_questions[:4], layers, position)
        )
    assert_same_scores(model.score(pair_questions[:4]), local.score(pair_questions[:4]))
    intervention = Intervention.apart(vector(local), 0.7)
    view, reference = model.steered(intervention), local.steered(intervention)
    assert_same_scores(view.score(pair_questions[:4]), reference.score(pair_questions[:4]))
    assert_same_rows(view.residuals(pair_questions[:4], 3, "all"), reference.residuals(pair_questions[:4], 3, "all"))
    assert len(server.requests) == 5  # one for each call
    for does in every_operation(local, "both").values():
        assert_same_scores(*(each.steered(does).score(pair_questions[:4]) for each in (model, local)))


def test_a_request_names_the_model_and_only_what_was_asked_for_comes_back(remote, pair_questions):
    model, server = remote
    ran = set()
    for number, block in enumerate(server.model.model.layers):
        block.register_forward_pre_hook(lambda *_, number=number: ran.add(number))
    model.residuals(pair_questions[:4], [LAYER], "task_a_mean")
    (request,), (answer,) = server.requests, server.answers
    key = {"repo_id": "lab/tiny", "revision": None, "task": "text-generation"}
    assert request["model_key"] == f"nnsight.modeling.transformers.TransformersModel:{json.dumps(key)}"
    assert ran == {0, 1}
    assert list(answer) == ["residuals"] and {n: rows.shape for n, rows in answer["residuals"].items()} == {LAYER: (4, 32)}
    model.score(pair_questions[:4])
    asked = sum(len(option_tree(each, model.render(each), model.renderer).prefixes) for each in pair_questions[:4])
    assert server.answers[1]["residuals"] == {} and server.answers[1]["logits"].shape == (asked, 500)


def test_a_request_needs_nothing_of_penchant_on_the_server(remote, pair_questions):
    model, server = remote
    steer = vector(tiny_through("llama", "hf"))
    for intervention in (Intervention.apart(steer, 0.7), Intervention.clamp(steer, 0.7)):
        view = model.steered(intervention)
        view.residuals(pair_questions[:2], 3, "task_a_mean")
        view.score(pair_questions[:2])
    ours = ("interp", "store", "elicit", "experiments", "tests")
    for payload in server.payloads:
        words = [argument for _, argument, _ in pickletools.genops(payload) if isinstance(argument, str)]
        assert "nnsight.intervention.tracer" in words
        assert not [word for word in words if word.split(".")[0] in ours]


def test_a_remote_model_has_a_fingerprint_of_its_own(remote):
    model, _ = remote
    again = LocalModel.load(model.backend.envoy.repo_id, backend="nnsight", remote=True)
    assert again.fingerprint == model.fingerprint != tiny_through("llama", "hf").fingerprint
    assert model.dtype == "float32" and model.identity.family == "llama"


def test_what_a_remote_model_cannot_do_is_refused_with_a_way_out(remote, pair_questions):
    model, server = remote
    with pytest.raises(ValueError, match=r"cannot generate text.*remote=False"):
        model.generate(to_generate())
    model.engine.layout = "packed"
    with pytest.raises(ValueError, match=r"cannot run packed batches.*layout='left'"):
        model.score(pair_questions[:1])
    assert not server.requests


def test_a_remote_model_needs_nnsight_a_key_and_no_device(monkeypatch, keyed):
    import nnsight

    with pytest.raises(ValueError, match="use backend='nnsight', not 'hf'"):
        LocalModel.load("lab/model", remote=True)
    with pytest.raises(ValueError, match="device='cuda' cannot be chosen for a remote model"):
        LocalModel.load("lab/model", backend="nnsight", remote=True, device="cuda")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(MissingModel, match=r"remote model 'lab/no-such-model'.*nnsight.status\(\)"):
        LocalModel.load("lab/no-such-model", backend="nnsight", remote=True)
    monkeypatch.setattr(nnsight.CONFIG.API, "APIKEY", None)
    with pytest.raises(ValueError, match=r"needs a key for NDIF.*NDIF_API_KEY, or call nnsight.login\(\)") as error:
        LocalModel.load("lab/model", backend="nnsight", remote=True)
    assert "\n" not in str(error.value)


# ---- choosing


def test_an_unknown_backend_is_refused_with_the_three_there_are():
    expected = "The backend is 'vllm'; expected 'hf', 'nnsight', 'transformer_lens'"
    with pytest.raises(ValueError, match=expected):
        LocalModel.load("no/such-model", backend="vllm")
    with pytest.raises(ValueError, match=expected):
        tiny("llama", backend="vllm")


@pytest.mark.parametrize(
    ("library", "requirement"), [("nnsight", "nnsight>=0.8,<0.9"), ("transformer_lens", "transformer-lens>=4.3,<5")]
)
def test_a_missing_library_is_named_with_how_to_install_it(library, requirement, monkeypatch):
    monkeypatch.delitem(sys.modules, f"interp.backends.{library}", raising=False)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=f"pip install '{requirement}'"):
        LocalModel.load("no/such-model", backend=library)
    with pytest.raises(ImportError, match=f"pip install '{requirement}'"):
        backend_maker(library)


def test_importing_interp_imports_neither_nnsight_nor_transformer_lens():
    script = "import sys, interp; print([name for name in ('nnsight', 'transformer_lens') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.strip() == "[]"


def test_an_architecture_that_transformer_lens_does_not_know_is_refused_with_a_way_out():
    config = PersimmonConfig(vocab_size=500, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    with pytest.raises(ValueError, match="cannot bridge a PersimmonForCausalLM; use backend='hf' or 'nnsight'"):
        LocalModel(PersimmonForCausalLM(config), tiny_tokenizer(None), backend="transformer_lens")


def test_transformer_lens_refuses_packed_batches_with_a_way_out(pair_questions):
    model = tiny("llama", backend="transformer_lens", layout="packed")
    with pytest.raises(ValueError, match=r"cannot run packed batches.*layout='left'"):
        model.score(pair_questions[:1])


def test_a_backend_leaves_the_tokenizer_and_the_fingerprint_as_they_were():
    models = {backend: tiny_through("gpt2", backend) for backend in BACKENDS}
    assert len({model.fingerprint for model in models.values()}) == 1
    assert len({model.renderer.tokens.digest for model in models.values()}) == 1
    tokenizer = tiny_tokenizer(None)
    tokenizer.padding_side, tokenizer.pad_token = "left", None
    LocalModel(tiny_model("llama"), tokenizer, backend="transformer_lens")
    assert tokenizer.padding_side == "left" and tokenizer.pad_token is None
