"""Packing: many token sequences in one unpadded row, every shared prefix computed once.

The sequences of a batch form a prefix tree, laid out in depth-first order. A token at row k is then seen by exactly the
rows k <= q < visible_until[k] (its own subtree), and attention runs segment by segment over a token's own ancestors.
The backends register the attention function with transformers, so any model that uses its attention interface can run packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

ATTENTION = "penchant_packed"
_CLUMP_ROWS = 64
"""Neighbouring subtrees of up to this many rows share one attention call: below it, calls cost more than arithmetic."""
_DENSE_ROWS = 8192
"""On an accelerator, rows up to this length take one attention call with a dense mask: there, launches are what costs."""


@dataclass(frozen=True)
class Segment:
    """Rows that attend together: to the `context` runs in full, and to one another as `visible_until` says."""

    start: int
    stop: int
    context: tuple[tuple[int, int], ...]
    is_causal: bool  # the rows are consecutive tokens of one sequence

    @property
    def runs(self) -> tuple[tuple[int, int], ...]:
        """All rows that are attended to: the context, then the segment itself."""
        return (*self.context, (self.start, self.stop))


@dataclass(frozen=True, eq=False)
class Packing:
    """A packed row.

    Attributes
    ----------
    source
        For every packed row, its place in the concatenation of all sequences (shared rows: the place of one of them).
    position_ids
        Place of each row's token in its own sequence.
    visible_until
        Row k is visible to rows k to `visible_until[k] - 1`.
    segments
        The attention calls, in order of their rows.
    rows
        For every sequence, the packed row of each of its tokens.
    """

    source: Int[np.ndarray, " rows"]
    position_ids: Int[np.ndarray, " rows"]
    visible_until: Int[np.ndarray, " rows"]
    segments: tuple[Segment, ...]
    rows: tuple[Int[np.ndarray, " tokens"], ...]
    _masks: dict = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.position_ids)

    def mask(self, segment: Segment, window: int | None, like: Tensor) -> Tensor | None:
        """Additive attention mask of a segment, `(rows, context + rows)`, on the device and in the dtype of `like`.

        None where plain causal attention says the same.
        """
        if window is not None and self.position_ids[segment.start : segment.stop].max() < window:
            window = None
        if window is None and segment.is_causal and not segment.context:
            return None
        key = (segment, window, like.device, like.dtype)
        if key not in self._masks:
            queries = np.arange(segment.start, segment.stop)[:, None]
            keys = np.concatenate([np.arange(start, stop) for start, stop in segment.runs])
            visible = (keys <= queries) & (queries < self.visible_until[keys])
            if window is not None:
                visible &= self.position_ids[queries] - self.position_ids[keys] < window
            mask = torch.zeros(visible.shape, dtype=like.dtype)
            self._masks[key] = mask.masked_fill_(torch.from_numpy(~visible), float("-inf")).to(like.device)
        return self._masks[key]


def shared_prefix(first: Int[np.ndarray, " a"], second: Int[np.ndarray, " b"]) -> int:
    """Length of the longest common prefix of two sequences."""
    length = min(len(first), len(second))
    differs = first[:length] != second[:length]
    return int(differs.argmax()) if differs.any() else length


def pack(sequences: Sequence[Int[np.ndarray, " tokens"]]) -> Packing:
    """Lay out sequences as a prefix tree in one row.

    Parameters
    ----------
    sequences
        Non-empty sequences of integers. Two tokens share a row when they and everything before them are equal, so
        whatever distinguishes tokens (a steering treatment, say) must be part of their integer.
    """
    by_content = sorted(range(len(sequences)), key=lambda number: sequences[number].astype(">i8").tobytes())
    ordered = [sequences[number] for number in by_content]
    shared = [0, *(shared_prefix(a, b) for a, b in pairwise(ordered))]
    nodes: list[_Node] = []
    path: list[list[int]] = [[] for _ in ordered]  # nodes of each sequence, root first
    n_rows = 0
    pending = [(0, len(ordered), 0, -1)]  # sequences first:last agree on `depth` tokens, which end at node `parent`
    while pending:
        first, last, depth, parent = pending.pop()
        agree = min(shared[first + 1 : last], default=len(ordered[first]))
        agree = min(agree, len(ordered[first]))
        if agree > depth:
            nodes.append(_Node(n_rows, n_rows + agree - depth, depth, parent, first))
            parent = len(nodes) - 1
            n_rows += agree - depth
            for number in range(first, last):
                path[number].append(parent)
        if last - first > 1:
            cuts = [first, *(number for number in range(first + 1, last) if shared[number] == agree), last]
            # A group of one sequence that ends here has no tokens left. Depth first: the leftmost group comes next.
            pending += [(a, b, agree, parent) for a, b in pairwise(cuts) if b - a > 1 or len(ordered[a]) > agree][::-1]
    return _lay_out(sequences, nodes, by_content, path)


@dataclass
class _Node:
    start: int
    stop: int
    depth: int
    parent: int
    sequence: int
    subtree_stop: int = 0


def _lay_out(
    sequences: Sequence[Int[np.ndarray, " tokens"]], nodes: list[_Node], by_content: list[int], path: list[list[int]]
) -> Packing:
    n_rows = nodes[-1].stop
    starts = np.cumsum([0, *(len(sequence) for sequence in sequences)])
    source, position_ids, visible_until = (np.empty(n_rows, dtype=np.int64) for _ in range(3))
    for node in reversed(nodes):
        node.subtree_stop = max(node.subtree_stop, node.stop)
        if node.parent >= 0:
            parent = nodes[node.parent]
            parent.subtree_stop = max(parent.subtree_stop, node.subtree_stop)
    for node in nodes:
        run = slice(node.start, node.stop)
        position_ids[run] = np.arange(node.depth, node.depth + node.stop - node.start)
        visible_until[run] = node.subtree_stop
        source[run] = starts[by_content[node.sequence]] + position_ids[run]
    rows: list[np.ndarray] = [source] * len(sequences)
    for number, in_path in zip(by_content, path, strict=True):
        rows[number] = np.concatenate([np.arange(nodes[each].start, nodes[each].stop) for each in in_path])
    return Packing(source, position_ids, visible_until, tuple(_segments(nodes)), tuple(rows))


def _segments(nodes: list[_Node]) -> list[Segment]:
    """One attention call per node, or per run of neighbouring small subtrees under one parent."""
    segments: list[Segment] = []
    current = 0
    while current < len(nodes):
        node = nodes[current]
        context: list[tuple[int, int]] = []
        ancestor = node.parent
        while ancestor >= 0:
            context.insert(0, (nodes[ancestor].start, nodes[ancestor].stop))
            ancestor = nodes[ancestor].parent
        stop, following = node.stop, current + 1
        scan = current
        while scan < len(nodes) and nodes[scan].parent == node.parent:
            sibling = nodes[scan]
            if sibling.subtree_stop - node.start > _CLUMP_ROWS:
                break
            stop = sibling.subtree_stop
            while scan < len(nodes) and nodes[scan].start < stop:
                scan += 1
            following = scan
        segments.append(Segment(node.start, stop, tuple(context), is_causal=stop == node.stop))
        current = following
    return segments


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention over a packed row, in the form transformers' attention interface asks for.

    Parameters
    ----------
    query, key, value
        Shapes `(1, heads, rows, width)`, the last two with the model's key-value heads.
    packing
        The row's layout, handed to the model as a keyword argument.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    segments = packing.segments
    if _is_accelerated(query) and len(packing) <= _DENSE_ROWS:
        segments = (Segment(0, len(packing), (), is_causal=False),)
    output = torch.empty((*query.shape[:-1], value.shape[-1]), dtype=query.dtype, device=query.device)
    for segment in segments:
        if segment.context:
            keys = torch.cat([key[:, :, start:stop] for start, stop in segment.runs], dim=2)
            values = torch.cat([value[:, :, start:stop] for start, stop in segment.runs], dim=2)
        else:
            keys, values = key[:, :, segment.start : segment.stop], value[:, :, segment.start : segment.stop]
        mask = packing.mask(segment, sliding_window, query)
        rows = query[:, :, segment.start : segment.stop]
        output[:, :, segment.start : segment.stop] = _attend(rows, keys, values, mask, scaling, softcap)
    return output.transpose(1, 2).contiguous(), None


def _is_accelerated(tensor: Tensor) -> bool:
    return tensor.device.type != "cpu"


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None, softcap: float | None
) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None and query.shape[2] > 1, scale=scaling
        )
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
    return (scores + mask).softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value
