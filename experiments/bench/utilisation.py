"""Utilisation: which share of a processor's arithmetic a capture reaches, on a random-weight Llama built on the device.

The yardstick is the best that plain square matrix products reach in the same run, in the same dtype; only arithmetic
that the rows need is counted, with every prefix that prompts share once.
"""

import itertools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments.bench.readers import Work, stored, unstored
from experiments.bench.timing import interleaved, machine, result
from interp import LocalModel, embedded

SHAPES: dict[str, dict[str, Any]] = {
    "8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128_256,
    },
    "tiny": {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 49_152,
    },
}
_TARGET = 0.5
_PRODUCT = {"cuda": (8192, 20), "cpu": (1024, 4)}
"""Side of the matrices, and how many products are timed together."""
_NOMINAL = {"H100 PCIe": 756, "H100 NVL": 835, "H200 NVL": 835, "H100": 989, "H200": 989, "A100": 312}
"""TFLOP/s in bfloat16 without sparsity, by what a GPU's name contains, the longer names first (NVIDIA's data sheets)."""


def run(
    shape: str, files: Sequence[Path], prompts: int, rounds: int, *, device: str = "auto", tokens_per_batch: int | None = None
) -> None:
    """Time captures and matrix products in turns, and relate them."""
    has_gpu = torch.cuda.is_available()
    where = ("cuda" if has_gpu else "cpu") if device == "auto" else device
    if shape == "8b" and not where.startswith("cuda"):
        found = "one is here, but --device says otherwise" if has_gpu else "there is none here"
        raise SystemExit(f"--shape 8b needs a GPU, and {found}. --shape tiny runs anywhere.")
    model = random_llama(shape, where, tokens_per_batch)
    work = Work.of(model, files, prompts)
    flops = needed_flops(model, work)
    multiplying, product_flops = _products(model)
    numbers = itertools.count()
    with tempfile.TemporaryDirectory() as folder:
        contestants: dict[str, Callable[[], Any]] = {
            "penchant": lambda: stored(model, work, Path(folder) / f"{next(numbers)}.h5"),
            "penchant, nothing stored": lambda: unstored(model, work),
            "matrix products": multiplying,
        }
        for contestant in contestants.values():
            contestant()  # the warm-up
        seconds = interleaved(contestants, rounds)
    peak = product_flops / min(seconds["matrix products"])
    reached = {name: flops / np.array(seconds[name]) for name in contestants if name != "matrix products"}
    rows = [
        {
            "": name,
            "seconds": np.median(seconds[name]),
            "tokens_per_second": work.tokens / np.median(seconds[name]),
            "TFLOP/s": np.median(each) / 1e12,
            "utilisation": np.median(each) / peak,
            "from": each.min() / peak,
            "to": each.max() / peak,
        }
        for name, each in reached.items()
    ]
    name, nominal = _device(model)
    print(
        f"A Llama of shape {shape} with random weights, {model.dtype} on {name}: {len(work.prompts)} prompts, {work.tokens:,} "
        f"tokens ({len(work.reach):,} with every shared prefix once), {model.engine.layout} batches of "
        f"{model.engine.token_budget:,}; blocks 0 to {max(work.layers)} of {model.n_layers}: {flops / 1e12:,.4g} TFLOP"
    )
    print(pd.DataFrame(rows).to_string(index=False, float_format="{:.3g}".format))
    beside = f"; nominal peak {nominal:,} TFLOP/s" if nominal else ""
    print(f"Matrix products reach {peak / 1e12:.4g} TFLOP/s{beside}. Target of utilisation: {_TARGET:.0%}.")
    described = work.described() | {
        "shape": shape,
        "rounds": rounds,
        "layout": model.engine.layout,
        "tokens_per_batch": model.engine.token_budget,
        "flops": flops,
        "utilisation": {row[""]: {"median": row["utilisation"], "from": row["from"], "to": row["to"]} for row in rows},
        "tflops": {row[""]: row["TFLOP/s"] for row in rows} | {"matrix products": peak / 1e12, "nominal": nominal},
        "target": _TARGET,
    }
    ratios = {"matrix products": float(np.median(reached["penchant"]) / peak)}
    spread = {"matrix products": (float(rows[0]["from"]), float(rows[0]["to"]))}
    print(result("capture", ratios, spread, described, f"{machine(model)}, {name}"))


def random_llama(shape: str, device: str, tokens_per_batch: int | None = None) -> LocalModel:
    """Make a bfloat16 Llama of some shape on the device, with the embedded model's tokenizer."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=8192, dtype=torch.bfloat16)
    previous = torch.get_default_dtype()
    torch.manual_seed(0)
    try:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(previous)
    tokenizer = AutoTokenizer.from_pretrained(embedded.embedded_model() or embedded.HUB_ID)
    return LocalModel(model, tokenizer, name=f"random Llama {shape}", tokens_per_batch=tokens_per_batch)


def needed_flops(model: LocalModel, work: Work) -> float:
    """Arithmetic that the rows need: two operations a weight and token, and causal attention, up to the deepest layer."""
    backend: Any = model.backend
    config, blocks = backend.config, backend.blocks[: max(work.layers) + 1]
    weights = sum(parameter.numel() for block in blocks for parameter in block.parameters() if parameter.ndim == 2)
    width = config.num_attention_heads * config.head_dim  # scores and averages: two operations each for every pair of tokens
    return float(2 * weights * len(work.reach) + 4 * width * len(blocks) * int(work.reach.sum()))


def _products(model: LocalModel) -> tuple[Callable[[], float], float]:
    """Matrix products in the model's dtype on its device, and how many operations they are."""
    side, times = _PRODUCT.get(model.device.type, _PRODUCT["cpu"])
    one, other, into = (torch.randn(side, side, device=model.device, dtype=model.backend.dtype) for _ in range(3))

    def multiply() -> float:
        for _ in range(times):
            torch.mm(one, other, out=into)
        return into[0, 0].item()  # waits for the device

    return multiply, 2.0 * side**3 * times


def _device(model: LocalModel) -> tuple[str, int | None]:
    """Name of the processor, and its nominal peak where that is known."""
    if model.device.type != "cuda":
        return str(model.device), None
    name = torch.cuda.get_device_name(model.device)
    return name, next((peak for known, peak in _NOMINAL.items() if known in name), None)
