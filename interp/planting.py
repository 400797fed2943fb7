"""Planting: a short LoRA fine-tune after which a model gives answers with probabilities that we choose.

The model then has preferences whose truth is known, which is what a way of measuring them can be held against.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from interp.adapters import WEIGHTS, import_peft
from interp.layers import LayerSpec
from interp.model import LocalModel
from interp.scoring import option_tree
from store.records import Question

_WARM_UP = 10
_WINDOW = 32  # so many batches are sorted by length at a time, which leaves little padding and keeps the order random


@dataclass(frozen=True)
class Example:
    """A question, and the probability that each of its options is to have."""

    question: Question
    shares: Mapping[str, float]


@dataclass(frozen=True)
class Planting:
    """How the adapter is trained.

    Attributes
    ----------
    rank, scale
        Of the low-rank change; it is multiplied by `scale`.
    modules
        Linear layers of a block that are changed.
    layers
        Blocks that are changed.
    steps, batch, learning_rate
        Of AdamW, with a linear warm-up and a cosine decay.
    """

    rank: int = 4
    scale: float = 2.0
    modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    layers: tuple[LayerSpec, ...] = ("8:30",)
    steps: int = 150
    batch: int = 8
    learning_rate: float = 1e-3
    seed: int = 0


@dataclass(frozen=True)
class _Prompt:
    token_ids: Int[np.ndarray, " tokens"]
    first_tokens: tuple[tuple[int, ...], ...]  # of each option
    shares: tuple[float, ...]


def plant(model: LocalModel, examples: Sequence[Example], planting: Planting, folder: str | Path, *, base: str) -> pd.DataFrame:
    """Train an adapter on examples and write it to a folder, as float16; the model in hand is used up.

    The loss is the cross-entropy of the first token of the answer, over the whole vocabulary: so options get their shares, and
    nothing else gets any.

    Parameters
    ----------
    base
        What `LocalModel.load` takes for the model in hand: the adapter says that it belongs to it.

    Returns
    -------
    Loss of every step, and the entropy of its shares, which it cannot go below.

    Raises
    ------
    ImportError
        peft is not installed.
    ValueError
        Options of a question begin with the same token, or there are fewer examples than a batch.
    """
    peft = import_peft()
    if len(examples) < planting.batch:
        raise ValueError(
            f"{len(examples)} examples for batches of {planting.batch}; expected more examples, or a smaller batch."
        )
    prompts = [_prompt(model, example) for example in examples]
    torch.manual_seed(planting.seed)
    config = peft.LoraConfig(
        r=planting.rank,
        lora_alpha=planting.rank * planting.scale,
        target_modules=list(planting.modules),
        layers_to_transform=list(model.layers(planting.layers)),
        bias="none",
        task_type="CAUSAL_LM",
    )
    tuned = peft.get_peft_model(model.backend.model, config)
    tuned.peft_config["default"].base_model_name_or_path = base
    weights = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=planting.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, planting.steps))
    rows = []
    with tqdm(total=planting.steps, desc="planting", unit="step", disable=None) as progress:
        for batch in _batches(prompts, planting):
            loss = _loss(tuned, batch, model.device)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            schedule.step()
            optimiser.zero_grad()
            least = float(np.mean([-sum(share * np.log(max(share, 1e-12)) for share in each.shares) for each in batch]))
            rows.append({"step": len(rows) + 1, "loss": float(loss.detach()), "least": least})
            progress.set_postfix(loss=f"{rows[-1]['loss']:.3f}", least=f"{least:.3f}")
            progress.update()
    _save(tuned, Path(folder))
    return pd.DataFrame(rows)


def _prompt(model: LocalModel, example: Example) -> _Prompt:
    rendered = model.render(example.question)
    sequences = option_tree(example.question, rendered, model.renderer).sequences
    # Forms of fewest tokens, of one as a rule: what a longer one begins with may begin anything.
    least = {label: min(map(len, sequences[label])) for label in example.shares}
    first = {label: tuple({path[0] for path in sequences[label] if len(path) == least[label]}) for label in example.shares}
    every = [token for tokens in first.values() for token in tokens]
    if len(set(every)) < len(every):
        raise ValueError(
            f"Options {list(first)} of a question begin with the same token, so its first token cannot tell them apart; use a "
            "wording with other labels, such as would_rather."
        )
    return _Prompt(rendered.token_ids, tuple(first.values()), tuple(example.shares.values()))


def _batches(prompts: Sequence[_Prompt], planting: Planting) -> Iterator[list[_Prompt]]:
    """Random batches of prompts of about one length, pass after pass over all of them."""
    random = np.random.default_rng(planting.seed)
    size, done = planting.batch, 0
    while done < planting.steps:
        order = random.permutation(len(prompts))
        for start in range(0, len(order) - size + 1, size * _WINDOW):
            window = sorted(order[start : start + size * _WINDOW], key=lambda number: len(prompts[number].token_ids))
            starts = np.arange(0, len(window) - size + 1, size)
            for place in random.permutation(starts)[: planting.steps - done]:
                yield [prompts[number] for number in window[place : place + size]]
                done += 1


def _loss(tuned: Any, batch: Sequence[_Prompt], device: torch.device) -> Float[Tensor, ""]:
    width = max(len(each.token_ids) for each in batch)
    token_ids = torch.zeros((len(batch), width), dtype=torch.long)
    mask = torch.zeros_like(token_ids)
    for row, each in enumerate(batch):
        token_ids[row, width - len(each.token_ids) :] = torch.as_tensor(each.token_ids)
        mask[row, width - len(each.token_ids) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.autocast("cpu", dtype=torch.bfloat16) if _is_faster_in_bfloat16(device) else nullcontext():
        logits = tuned(
            input_ids=token_ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            logits_to_keep=1,
            use_cache=False,
        ).logits[:, -1]
    log_probs = logits.float().log_softmax(-1)
    terms = [
        share * log_probs[row, list(tokens)].logsumexp(0)
        for row, each in enumerate(batch)
        for tokens, share in zip(each.first_tokens, each.shares, strict=True)
    ]
    return -torch.stack(terms).sum() / len(batch)


def _is_faster_in_bfloat16(device: torch.device) -> bool:
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


def _rate(step: int, steps: int) -> float:
    if step < _WARM_UP:
        return (step + 1) / _WARM_UP
    return 0.5 * (1 + np.cos(np.pi * (step - _WARM_UP) / max(1, steps - _WARM_UP)))


def _save(tuned: Any, folder: Path) -> None:
    """Write peft's two files, and no model card."""
    folder.mkdir(parents=True, exist_ok=True)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.half()
    tuned.save_pretrained(str(folder), safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)
    assert (folder / WEIGHTS).exists()
