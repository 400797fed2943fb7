"""Exact option scoring: every option is a set of token sequences, and its probability is the sum of their chains.

The sequences of one question form a prefix tree below its prompt. Only inner nodes need a next-token distribution, and
packing runs every shared prefix once, whether options, questions or steering conditions share it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.rendering import Rendered, Renderer
from store.records import END_OF_TURN, REFUSAL, Option, Question

Path = tuple[int, ...]
"""Tokens of an answer, or of its beginning."""


@dataclass(frozen=True)
class OptionTree:
    """What must be computed to score a question's options.

    Attributes
    ----------
    sequences
        For every option label (and `REFUSAL`), the token sequences that count as this answer; no two overlap.
    prefixes
        The beginnings (the empty one first) after which a next-token distribution is needed.
    """

    sequences: Mapping[str, tuple[Path, ...]]
    prefixes: tuple[Path, ...]

    def log_probs(self, next_token: Mapping[tuple[Path, int], float]) -> dict[str, float]:
        """Natural-log probability of every option, from those of each token after each prefix."""
        return {
            label: float(
                np.logaddexp.reduce(
                    [sum(next_token[path[:depth], token] for depth, token in enumerate(path)) for path in paths]
                )
            )
            for label, paths in self.sequences.items()
        }

    @property
    def steps(self) -> list[tuple[Path, int]]:
        """Every (prefix, next token) whose log-probability is needed."""
        return sorted({(path[:d], path[d]) for paths in self.sequences.values() for path in paths for d in range(len(path))})


def option_tree(question: Question, rendered: Rendered, renderer: Renderer) -> OptionTree:
    """Token sequences of a question's options, and of its refusals, as continuations of its prompt.

    Raises
    ------
    ValueError
        One option begins another, or the model has no token that ends a turn where one is needed.
    """
    sequences = {option.label: _sequences(option, rendered, renderer) for option in question.options}
    if overlap := _overlap(sequences):
        raise ValueError(
            f"Option {overlap[0]!r} begins option {overlap[1]!r} in tokens, so its probability would contain the other's. "
            "Give both terminators that no option continues with, for instance terminators=(END_OF_TURN, '\\n')."
        )
    paths = {label: _disjoint(found) for label, found in sequences.items()}
    # Refusals of one token need no next-token distribution but the one after the prompt, so they come for nothing.
    refusals = {path for form in question.refusals if len(path := renderer.tokens.continuation(rendered.text, form)) == 1}
    if refusals := refusals - {path[:1] for found in paths.values() for path in found}:
        paths[REFUSAL] = tuple(sorted(refusals))
    prefixes = sorted({path[:depth] for found in paths.values() for path in found for depth in range(len(path))})
    return OptionTree(paths, tuple(prefixes))


def _sequences(option: Option, rendered: Rendered, renderer: Renderer) -> list[Path]:
    found: list[Path] = []
    for form in option.forms:
        tokens = renderer.tokens.continuation(rendered.text, form)
        if not option.terminators:
            found.append(tokens)
        for terminator in option.terminators:
            if terminator != END_OF_TURN:
                found.append((*tokens, *renderer.tokens.continuation(rendered.text + form, terminator)))
            elif renderer.end_of_turn_ids:
                found += [(*tokens, token_id) for token_id in renderer.end_of_turn_ids]
            else:
                raise ValueError("This model names no token that ends a turn; give the options text terminators.")
    return found


def _disjoint(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Without the sequences that continue another one: their probability is in it already."""
    kept: list[Path] = []
    for path in sorted(set(paths), key=len):
        if not any(path[: len(shorter)] == shorter for shorter in kept):
            kept.append(path)
    return tuple(kept)


def _overlap(sequences: Mapping[str, Sequence[Path]]) -> tuple[str, str] | None:
    """Two options of which one begins the other, if there are any."""
    owner = {path: label for label, paths in sequences.items() for path in paths}
    for label, paths in sequences.items():
        for path in paths:
            for depth in range(1, len(path) + 1):
                other = owner.get(path[:depth])
                if other is not None and other != label:
                    return other, label
    return None


def gather_log_probs(
    logits: Float[Tensor, "rows vocabulary"], rows: Int[np.ndarray, " steps"], tokens: Int[np.ndarray, " steps"]
) -> Float[np.ndarray, " steps"]:
    """Log-probability of each token at each row, normalised over the whole vocabulary in float32."""
    normaliser = logits.float().logsumexp(-1)
    at, which = torch.from_numpy(rows).to(logits.device), torch.from_numpy(tokens).to(logits.device)
    return (logits[at, which].float() - normaliser[at]).double().cpu().numpy()
