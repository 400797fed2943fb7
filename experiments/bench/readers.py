"""Ways of reading residual streams, all given the same prompts and asked for the same rows: penchant's own and its peers'.

A peer is one function from a padded batch to the residual streams of some layers; batching and averaging are the same
plain code for all of them, so that only what differs is timed.
"""

import copy
import importlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from elicit import builtin_tasks, load_tasks, task_question
from interp import LocalModel, Positions, capture
from interp.backends.onednn import FastLinears
from interp.engine import Job
from interp.packing import shared_prefix
from store import ActivationStore, Question

LAYERS = ("0.5", "0.75")
POSITIONS = ("prompt_last", "task_mean")
BATCH = 8
"""Prompts in a batch of a peer; on two CPU cores, with prompts sorted by length, faster than 16."""
PLAIN_BATCH = 16
"""The same for the plain loop."""

Rows = Float[np.ndarray, "prompts positions layers d_model"]


@dataclass(frozen=True, eq=False)
class Work:
    """Prompts in order of arrival, and the rows wanted of each.

    Attributes
    ----------
    prompts
        Their tokens, which peers are given; penchant renders the questions itself.
    selections
        For each prompt and position, the tokens whose mean is its row.
    layers
        Block indices.
    """

    task_ids: list[str]
    questions: list[Question]
    prompts: list[Int[np.ndarray, " tokens"]]
    selections: list[list[Int[np.ndarray, " selected"]]]
    layers: tuple[int, ...]

    @classmethod
    def of(cls, model: LocalModel, files: Sequence[Path], n: int) -> Self:
        """The first tasks of some files (default: the built-in ones), as their users would send them, that fit the context."""
        tasks = [task for file in files for task in load_tasks(file)] or builtin_tasks()
        limit, where = model.context_length, Positions.parse_all(POSITIONS)
        found = []
        for task in tasks:
            if len(found) == n:
                break
            rendered = model.render(question := task_question(task))
            if limit is None or len(rendered.token_ids) <= limit:
                found.append((task.id, question, rendered.token_ids, [each.tokens(rendered) for each in where]))
        if len(found) < n:
            raise ValueError(f"{n} prompts are asked for and there are {len(found)}; ask for fewer, or name more --tasks.")
        ids, questions, prompts, selections = map(list, zip(*found, strict=True))
        return cls(ids, questions, prompts, selections, model.layers(LAYERS))

    @property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(map(len, self.prompts))

    @cached_property
    def reach(self) -> Int[np.ndarray, " distinct"]:
        """How many tokens each token attends to, itself included; a prefix that prompts share is counted once."""
        ordered = sorted(self.prompts, key=lambda tokens: tokens.astype(">i8").tobytes())
        shared = [0, *(shared_prefix(one, other) for one, other in pairwise(ordered))]
        return np.concatenate([np.arange(n, len(tokens)) + 1 for n, tokens in zip(shared, ordered, strict=True)])

    def described(self) -> dict[str, Any]:
        """What it is, for the last line of a benchmark."""
        size = {"prompts": len(self.prompts), "tokens": self.tokens, "distinct_tokens": len(self.reach)}
        return size | {"layers": self.layers, "positions": POSITIONS}


@dataclass(frozen=True, eq=False)
class Padded:
    """Some prompts padded on the left, with mask-derived positions.

    Attributes
    ----------
    prompts
        Their tokens, without padding.
    inputs
        Keyword arguments of a transformers model.
    weights
        From tokens to rows: means over the selected ones.
    """

    prompts: list[list[int]]
    inputs: dict[str, Int[Tensor, "lines columns"]]
    weights: Float[Tensor, "lines positions columns"]

    @classmethod
    def of(cls, work: Work, numbers: Sequence[int], device: torch.device) -> Self:
        """Lay out some prompts."""
        prompts = [work.prompts[number] for number in numbers]
        width = max(map(len, prompts))
        ids, mask = torch.zeros(2, len(prompts), width, dtype=torch.long)
        weights = torch.zeros(len(prompts), len(POSITIONS), width)
        for line, (number, prompt) in enumerate(zip(numbers, prompts, strict=True)):
            start = width - len(prompt)
            ids[line, start:] = torch.from_numpy(prompt)
            mask[line, start:] = 1
            for place, tokens in enumerate(work.selections[number]):
                weights[line, place, start + tokens] = 1 / len(tokens)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        named = {name: tensor.to(device) for name, tensor in inputs.items()}
        return cls([prompt.tolist() for prompt in prompts], named, weights.to(device))

    def pooled(self, residuals: Sequence[Tensor]) -> Rows:
        """Rows of this batch from residual streams `(lines, columns, d_model)`, one a layer."""
        return torch.stack([self.weights @ residual.float() for residual in residuals], dim=2).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Peer:
    """Another way of reading: what it does with a batch, how large batches are, and whether prompts are sorted by length."""

    residuals: Callable[[Padded], Sequence[Tensor]]
    size: int = BATCH
    is_sorted: bool = True

    @torch.inference_mode()
    def read(self, work: Work, device: torch.device) -> Rows:
        """Read every row; nothing is stored."""
        n = len(work.prompts)
        order = sorted(range(n), key=lambda number: -len(work.prompts[number])) if self.is_sorted else list(range(n))
        rows: list[np.ndarray] = [np.empty(0)] * n
        for start in range(0, n, self.size):
            numbers = order[start : start + self.size]
            batch = Padded.of(work, numbers, device)
            for number, found in zip(numbers, batch.pooled(self.residuals(batch)), strict=True):
                rows[number] = found
        return np.stack(rows)


# ---- penchant


def stored(model: LocalModel, work: Work, path: Path) -> ActivationStore:
    """Capture into a new store: rendering, checksums and flushes to disk included."""
    return capture(model, work.questions, work.task_ids, path, layers=work.layers, positions=POSITIONS)


def unstored(model: LocalModel, work: Work) -> Rows:
    """Do the same pass of penchant's engine, and store nothing."""
    rendered = [model.render(question) for question in work.questions]
    where = Positions.parse_all(POSITIONS)
    selections = [[position.tokens(each) for position in where] for each in rendered]
    rows: list[np.ndarray] = [np.empty(0)] * len(rendered)
    model.engine.capture([Job(each) for each in rendered], selections, work.layers, rows.__setitem__)
    return np.stack(rows)


def rows_of(found: ActivationStore | Rows) -> Rows:
    """Rows of a store, as peers give them."""
    if not isinstance(found, ActivationStore):
        return found
    layers, positions = found.header.layers, found.header.positions
    return np.stack([np.stack([found.load(layer, at) for layer in layers], axis=1) for at in positions], axis=1)


# ---- peers


class _Stop(Exception):
    """Ends a forward pass at the deepest layer."""


def hand_written(model: Any, blocks: Sequence[Any], layers: Sequence[int], linears: FastLinears | None = None) -> Peer:
    """The loop one would write by hand: own hooks, no block after the deepest, no unembedding, prompts sorted by length."""

    def residuals(batch: Padded) -> Sequence[Tensor]:
        kept: dict[int, Tensor] = {}

        def reading(layer: int) -> Callable[..., None]:
            def hook(_: Any, __: Any, output: Any) -> None:
                kept[layer] = output[0] if isinstance(output, tuple) else output
                if layer == max(layers):
                    raise _Stop

            return hook

        handles = [blocks[layer].register_forward_hook(reading(layer)) for layer in layers]
        try:
            with linears.active() if linears else nullcontext():
                model.base_model(**batch.inputs, use_cache=False)
        except _Stop:
            pass
        finally:
            for handle in handles:
                handle.remove()
        return [kept[layer] for layer in layers]

    return Peer(residuals)


def plain_loop(model: Any, layers: Sequence[int]) -> Peer:
    """The loop of a first script: every hidden state of the whole model, prompts in order of arrival."""

    def residuals(batch: Padded) -> Sequence[Tensor]:
        found = model(**batch.inputs, output_hidden_states=True).hidden_states
        return [found[layer + 1] for layer in layers]

    return Peer(residuals, PLAIN_BATCH, is_sorted=False)


def nnsight_trace(model: Any, tokenizer: Any, blocks_path: str, layers: Sequence[int]) -> Peer:
    """A trace of each batch that saves the outputs of layers and stops there, as nnsight's documentation shows."""
    nnsight = importlib.import_module("nnsight")
    envoy = nnsight.TransformersModel(copy.deepcopy(model), tokenizer=copy.deepcopy(tokenizer), task="text-generation")
    blocks = list(attrgetter(blocks_path)(envoy))

    def residuals(batch: Padded) -> Sequence[Tensor]:
        with envoy.trace(batch.prompts) as tracer:
            kept = nnsight.save([])
            for layer in layers:
                output = blocks[layer].output
                kept.append(output[0] if isinstance(output, tuple) else output)
            tracer.stop()
        return kept

    return Peer(residuals)


def transformer_lens_cache(model: Any, tokenizer: Any, layers: Sequence[int]) -> Peer:
    """Run `run_with_cache` with a filter of names and an early stop, as TransformerLens's documentation shows."""
    from interp.backends.transformer_lens import TransformerLensBackend

    bridge: Any = TransformerLensBackend(copy.deepcopy(model), tokenizer).bridge
    names = [f"blocks.{layer}.hook_out" for layer in layers]

    def residuals(batch: Padded) -> Sequence[Tensor]:
        inputs = dict(batch.inputs)
        _, cache = bridge.run_with_cache(
            inputs.pop("input_ids"), names_filter=names, stop_at_layer=max(layers) + 1, output_attentions=False, **inputs
        )
        return [cache[name] for name in names]

    return Peer(residuals)


def steering_vectors_record(model: Any, layers: Sequence[int]) -> Peer:
    """Run the model within `record_activations` of steering-vectors, which has no early stop.

    Raises
    ------
    ImportError
        It is not installed; its release asks for transformers 4, but this part of it works with 5.
    """
    record_activations = importlib.import_module("steering_vectors").record_activations

    def residuals(batch: Padded) -> Sequence[Tensor]:
        with record_activations(model, layer_nums=list(layers)) as kept:
            model(**batch.inputs)
        return [kept[layer][0] for layer in layers]

    return Peer(residuals)
