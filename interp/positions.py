"""The grammar of positions: which tokens of a prompt, and how they become one row.

`selection` or `selection_reduction`, for instance `task_mean`, `prompt_last`, `decision`, `task_a`, `token:-2`, `all`.
Capture, probes, steering and reports all speak it.
"""

import re
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Int

from interp.rendering import Rendered

Reduction = Literal["first", "last", "mean", "all"]

GRAMMAR = (
    "a selection (prompt, all, decision, token:K, or the name of a span such as task, task_a, task_b), and for prompt, all "
    "and spans a reduction after an underscore (first, last, mean; none means every token)"
)


@dataclass(frozen=True)
class Positions:
    """Some tokens of a prompt.

    Attributes
    ----------
    selection
        `prompt` (everything before a prefill), `all` (prefill too), `decision` (the token whose output is the first
        answer token), `token:K` (K counts from 0, or back from -1, the decision token), or a span's name.
    reduction
        `first` and `last` name one token; `mean` averages the selected ones and `all` keeps each as a row of its own.
        Over `prompt` and `all`, `first`, `mean` and `all` leave out special tokens and the first token, an attention
        sink whose norm dwarfs the others; `prompt_last` is the last token whatever it is.
    """

    selection: str
    reduction: Reduction = "all"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a position from text such as `task_mean`.

        Raises
        ------
        ValueError
            The text is not in the grammar.
        """
        if text == "decision" or re.fullmatch(r"token:[+-]?\d+", text):
            return cls(text, "last")
        match = re.fullmatch(r"([a-z][a-z0-9_]*?)(?:_(first|last|mean|all))?", text)
        if match is None:
            raise ValueError(f"{text!r} is not a position; expected {GRAMMAR}.")
        selection, reduction = match.groups(default="all")
        return cls(selection, reduction)  # pyright: ignore[reportArgumentType] (the expression admits only reductions)

    def __str__(self) -> str:
        single = self.selection == "decision" or self.selection.startswith("token:")
        return self.selection if single or self.reduction == "all" else f"{self.selection}_{self.reduction}"

    @property
    def has_one_row(self) -> bool:
        """Whether a prompt has exactly one row here."""
        return self.reduction != "all"

    def tokens(self, rendered: Rendered) -> Int[np.ndarray, " selected"]:
        """Indices of the selected tokens; a mean is taken over them.

        Raises
        ------
        ValueError
            The prompt has no such span or token.
        """
        n_tokens = len(rendered.token_ids)
        if self.selection == "decision":
            return np.array([rendered.decision])
        if self.selection.startswith("token:"):
            index = int(self.selection.removeprefix("token:"))
            if not -n_tokens <= index < n_tokens:
                raise ValueError(f"{self} is outside this prompt of {n_tokens} tokens: {_excerpt(rendered)}")
            return np.array([index % n_tokens])
        if self.selection == "prompt" and self.reduction == "last":
            return np.array([rendered.n_prompt - 1])
        if self.selection in ("prompt", "all"):
            end = rendered.n_prompt if self.selection == "prompt" else n_tokens
            selected = np.flatnonzero(rendered.content[:end])
        elif self.selection in rendered.spans:
            selected = np.arange(*rendered.spans[self.selection])
        else:
            raise ValueError(
                f"This prompt has no span {self.selection!r}; it has {sorted(rendered.spans) or 'none'}. "
                f"A position is {GRAMMAR}. The prompt: {_excerpt(rendered)}"
            )
        if not len(selected):
            raise ValueError(f"{self} selects no token of this prompt: {_excerpt(rendered)}")
        match self.reduction:
            case "first":
                return selected[:1]
            case "last":
                return selected[-1:]
            case _:
                return selected


def _excerpt(rendered: Rendered, characters: int = 80) -> str:
    text = rendered.text
    return repr(text if len(text) <= characters else f"{text[:characters]}...")
