"""Batches: token sequences laid out as one forward pass, packed (the default) or padded on either side.

Whatever the layout, a batch says at which flat row each token of each sequence stands, so scoring, capture and steering
are written once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int

from interp.packing import Packing, pack, shared_prefix

Layout = Literal["packed", "left", "right"]
"""`packed`: no padding, shared prefixes computed once. `left`, `right`: one padded line a sequence."""

_TOKEN_BITS = 32

TokenIds = Int[np.ndarray, " tokens"]
Treatments = Int[np.ndarray, " tokens"]
"""Which steering treatment each token gets; 0 is none."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Sequences laid out for one forward pass.

    Attributes
    ----------
    token_ids, position_ids, treatments
        Shape `(lines, columns)`; a flat row is `line * columns + column`.
    attention_mask
        Which places hold a token; None when packed.
    rows
        For every sequence, the flat row of each of its tokens.
    packing
        The layout of a packed batch; None when padded.
    """

    token_ids: Int[np.ndarray, "lines columns"]
    position_ids: Int[np.ndarray, "lines columns"]
    treatments: Int[np.ndarray, "lines columns"]
    attention_mask: Bool[np.ndarray, "lines columns"] | None
    rows: tuple[Int[np.ndarray, " tokens"], ...]
    packing: Packing | None


def lay_out(sequences: Sequence[TokenIds], treatments: Sequence[Treatments], layout: Layout) -> Batch:
    """Lay out sequences, each with the treatments of its tokens."""
    if layout == "packed":
        return _packed(sequences, treatments)
    return _padded(sequences, treatments, layout)


def distinguished(token_ids: TokenIds, treatments: Treatments) -> TokenIds:
    """Return tokens that differ also where only their treatment differs: those must not share a row."""
    return token_ids.astype(np.int64) | (treatments.astype(np.int64) << _TOKEN_BITS)


def _packed(sequences: Sequence[TokenIds], treatments: Sequence[Treatments]) -> Batch:
    packing = pack([distinguished(*pair) for pair in zip(sequences, treatments, strict=True)])
    token_ids, codes = (np.concatenate(values)[packing.source] for values in (sequences, treatments))
    return Batch(token_ids[None], packing.position_ids[None], codes[None], None, packing.rows, packing)


def _padded(sequences: Sequence[TokenIds], treatments: Sequence[Treatments], side: Literal["left", "right"]) -> Batch:
    shape = (len(sequences), max(map(len, sequences)))
    token_ids = np.zeros(shape, dtype=np.int64)
    position_ids, codes = np.zeros_like(token_ids), np.zeros_like(token_ids)
    attention_mask = np.zeros(shape, dtype=bool)
    rows = []
    for line, (tokens, treated) in enumerate(zip(sequences, treatments, strict=True)):
        start = shape[1] - len(tokens) if side == "left" else 0
        place = slice(start, start + len(tokens))
        token_ids[line, place] = tokens
        codes[line, place] = treated
        position_ids[line, place] = np.arange(len(tokens))
        attention_mask[line, place] = True
        rows.append(line * shape[1] + np.arange(shape[1])[place])
    return Batch(token_ids, position_ids, codes, attention_mask, tuple(rows), None)


def plan(groups: Sequence[Sequence[TokenIds]], layout: Layout, token_budget: int, sequence_budget: int) -> Iterator[list[int]]:
    """Divide groups of (distinguished) sequences into batches; a group, whose sequences share a prompt, stays together.

    Packed batches take groups in lexicographic order of tokens, so that neighbours share prefixes and the treatments of
    one prompt meet; shared rows are counted once. Padded batches take the longest first, so that lines are alike and
    memory is met at the start.

    Yields
    ------
    Numbers of the groups of one batch.
    """
    prompts = [min(group, key=len) for group in groups]
    widths = [max(map(len, group)) for group in groups]
    answers = [sum(len(each) - len(prompt) for each in group) for group, prompt in zip(groups, prompts, strict=True)]
    if layout == "packed":
        tokens_alone = (1 << _TOKEN_BITS) - 1
        order = sorted(range(len(groups)), key=lambda number: (prompts[number] & tokens_alone).astype(">i8").tobytes())
    else:
        order = sorted(range(len(groups)), key=lambda number: -widths[number])
    batch: list[int] = []
    tokens = sequences = 0
    for number in order:
        added = len(groups[number])
        if layout == "packed":
            shared = shared_prefix(prompts[batch[-1]], prompts[number]) if batch else 0
            cost = len(prompts[number]) - shared + answers[number]
        else:
            cost = widths[batch[0] if batch else number] * added
        if batch and (tokens + cost > token_budget or sequences + added > sequence_budget):
            yield batch
            batch, tokens, sequences = [], 0, 0
            cost = len(prompts[number]) + answers[number] if layout == "packed" else widths[number] * added
        batch.append(number)
        tokens += cost
        sequences += added
    if batch:
        yield batch
