"""Models for the tests: the real embedded one, loaded once, and tiny random ones of several families, built in memory."""

import os

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from elicit import builtin_tasks
from interp import LocalModel
from store import Message, Option, Question, Span

# Side by side, workers share the cores; threads that wait for one another would cost more than they bring.
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))

os.environ["COLUMNS"] = "100"  # a screen's width, whatever the terminal

hypothesis.settings.register_profile("any machine", deadline=None)  # how long an example takes is the machine's affair
hypothesis.settings.load_profile("any machine")

CHATML = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}"
)
# Like Gemma's: a BOS, contents trimmed, and no system role.
GEMMA_LIKE = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{{ '<|start|>' + m['role'] + '\\n' + (m['content'] | trim) + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>model\\n' }}{% endif %}"
)
SHAPE = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
FAMILIES = ("llama", "gemma2", "gemma3", "gpt2")
ALL_FAMILIES = (*FAMILIES, "qwen3", "olmo2")


def tiny_tokenizer(chat_template: str | None) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the built-in tasks."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|bos|>", "<|start|>", "<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator([task.text for task in builtin_tasks()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|start|>"],
        chat_template=chat_template,
    )


def tiny_model(family: str, seed: int = 0) -> torch.nn.Module:
    """A random model of four layers whose logits vary enough to tell right from wrong."""
    torch.manual_seed(seed)
    shared = {"vocab_size": 500, "num_hidden_layers": 4, "max_position_embeddings": 512, "initializer_range": 0.3}
    match family:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**shared, **SHAPE))
        case "gemma2":
            return Gemma2ForCausalLM(Gemma2Config(**shared, **SHAPE, sliding_window=8, query_pre_attn_scalar=8))
        case "gemma3":
            return Gemma3ForCausalLM(Gemma3TextConfig(**shared, **SHAPE, sliding_window=8, query_pre_attn_scalar=8))
        case "qwen3":
            return Qwen3ForCausalLM(Qwen3Config(**shared, **SHAPE))
        case "olmo2":
            return Olmo2ForCausalLM(Olmo2Config(**shared, **{name: SHAPE[name] for name in SHAPE if name != "head_dim"}))
        case "gpt2":
            return GPT2LMHeadModel(
                GPT2Config(vocab_size=500, n_embd=32, n_layer=4, n_head=4, n_positions=512, initializer_range=0.3)
            )
    raise ValueError(family)


def tiny(family: str, *, backend: str = "hf", layout: str = "auto", seed: int = 0) -> LocalModel:
    """A tiny LocalModel; GPT-2 has no chat template, the Gemmas have no system role."""
    template = {"gemma2": GEMMA_LIKE, "gemma3": GEMMA_LIKE, "gpt2": None}.get(family, CHATML)
    model, tokenizer = tiny_model(family, seed), tiny_tokenizer(template)
    return LocalModel(model, tokenizer, name=f"tiny-{family}", backend=backend, layout=layout)


@pytest.fixture(scope="session")
def embedded() -> LocalModel:
    """The real embedded model."""
    return LocalModel.load()


@pytest.fixture(scope="session", params=FAMILIES)
def tiny_lm(request) -> LocalModel:
    """One tiny random model of each family."""
    return tiny(request.param)


def pair_question(first: str, second: str, **changes) -> Question:
    """A small choice between two texts."""
    head, middle = "Which one?\nA: ", "\nB: "
    text = head + first + middle + second
    spans = (
        Span("task_a", 0, len(head), len(head) + len(first)),
        Span("task_b", 0, len(text) - len(second), len(text)),
    )
    options = (Option("A", (" A", "A")), Option("B", (" B", "B")))
    return Question(**{"messages": (Message("user", text),), "spans": spans, "options": options, "prefill": "Task"} | changes)


@pytest.fixture(scope="session")
def pair_questions() -> list[Question]:
    """Eight pairs of built-in tasks, each in both orders."""
    texts = [task.text for task in builtin_tasks()[::15]][:8]
    pairs = [(texts[i], texts[(i + 1) % len(texts)]) for i in range(len(texts))]
    return [pair_question(*order) for first, second in pairs for order in ((first, second), (second, first))]
