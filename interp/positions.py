"""The grammar of positions: which tokens of a prompt, and how they become one row.

`selection` or `selection_reduction`, for instance `task_mean`, `prompt_last`, `decision`, `task_a`, `end_of_turn`,
`turn_boundary:-5`, `turn:0_mean`, `completion_mean`, `token:-2`, `all`. Capture, probes, steering and reports all speak it.
"""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from jaxtyping import Int

from interp.rendering import Rendered

Reduction = Literal["first", "last", "mean", "all"]

GRAMMAR = (
    "one token (decision, end_of_turn, turn_boundary:-K, token:K), or a selection (prompt, all, turn:K, or the name of a span "
    "such as task, task_a, completion) and a reduction after an underscore (first, last, mean; none means every token)"
)
_ONE_TOKEN = re.compile(r"decision|end_of_turn|turn_boundary:-[1-9]\d*|token:[+-]?\d+")
_SELECTION = re.compile(r"(turn:-?\d+|[a-z](?:[a-z0-9_]*?[a-z0-9])??)(?:_(first|last|mean|all))?")
_RANGE = re.compile(r"(turn_boundary|token):([+-]?\d+)\.\.([+-]?\d+)")
_USUAL_SPANS = ("task", "task_a", "task_b", "completion")
_LIKENESS = 0.8
"""How like a position another text must be (`difflib`) to be taken for a misspelling of it."""


@dataclass(frozen=True)
class Positions:
    """Some tokens of a prompt.

    Attributes
    ----------
    selection
        `prompt` (everything before a prefill), `all` (prefill and completion too), a span's name (`completion` where one was
        given), or `turn:K`, the content of message K (from 0, or back from -1). One token: `decision` (whose output is the
        first answer token), `end_of_turn` (which ends the last message), `turn_boundary:-K` (the K-th last token of what
        the template writes between the last message and the answer), `token:K` (from 0, or back from the last, -1).
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
        if _ONE_TOKEN.fullmatch(text):
            return cls(text, "last")
        match = _SELECTION.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a position{_hint(text, _USUAL_SPANS)}; expected {GRAMMAR}.")
        selection, reduction = match.groups(default="all")
        return cls(selection, reduction)  # pyright: ignore[reportArgumentType] (the expression admits only reductions)

    @classmethod
    def parse_all(cls, texts: Sequence[str]) -> list[Self]:
        """Read several positions; `turn_boundary:-1..-5` and `token:0..3` stand for each of a run of tokens.

        Raises
        ------
        ValueError
            A text is not in the grammar.
        """
        found: list[Self] = []
        for text in texts:
            if run := _RANGE.fullmatch(text):
                first, last = int(run[2]), int(run[3])
                step = 1 if last >= first else -1
                found += [cls.parse(f"{run[1]}:{number}") for number in range(first, last + step, step)]
            else:
                found.append(cls.parse(text))
        return found

    def __str__(self) -> str:
        single = self.reduction == "all" or _ONE_TOKEN.fullmatch(self.selection)
        return self.selection if single else f"{self.selection}_{self.reduction}"

    @property
    def has_one_row(self) -> bool:
        """Whether a prompt has exactly one row here."""
        return self.reduction != "all"

    def rows(self, tokens: Int[np.ndarray, " selected"]) -> list[Int[np.ndarray, " averaged"]]:
        """Divide selected tokens into rows, each the mean over its tokens."""
        return [tokens] if self.has_one_row else list(tokens[:, None])

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
        if self.selection == "end_of_turn":
            if rendered.end_of_turn is None:
                raise ValueError(f"This chat template writes no token that ends a turn: {_excerpt(rendered)}")
            return np.array([rendered.end_of_turn])
        kind, _, number = self.selection.partition(":")
        if kind == "turn_boundary":
            start = max(end for _, end in rendered.turns)
            if rendered.n_prompt + int(number) < start:
                raise ValueError(
                    f"{self} is outside the turn boundary, which has {rendered.n_prompt - start} tokens: {_excerpt(rendered)}"
                )
            return np.array([rendered.n_prompt + int(number)])
        if kind == "token":
            index = int(number)
            if not -n_tokens <= index < n_tokens:
                raise ValueError(f"{self} is outside this prompt of {n_tokens} tokens: {_excerpt(rendered)}")
            return np.array([index % n_tokens])
        if self.selection == "prompt" and self.reduction == "last":
            return np.array([rendered.n_prompt - 1])
        if self.selection in ("prompt", "all"):
            end = rendered.n_prompt if self.selection == "prompt" else n_tokens
            selected = np.flatnonzero(rendered.content[:end])
        elif kind == "turn":
            if not -len(rendered.turns) <= int(number) < len(rendered.turns):
                raise ValueError(f"{self} is outside this chat of {len(rendered.turns)} messages: {_excerpt(rendered)}")
            selected = np.arange(*rendered.turns[int(number)])
        elif self.selection in rendered.spans:
            selected = np.arange(*rendered.spans[self.selection])
        else:
            # A usual span is spelt right: the prompt was made without it.
            hint = "" if self.selection in _USUAL_SPANS else _hint(str(self), rendered.spans)
            raise ValueError(
                f"This prompt has no span {self.selection!r}{hint}; it has "
                f"{sorted(rendered.spans) or 'none'}. A position is {GRAMMAR}. The prompt: {_excerpt(rendered)}"
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


def _hint(text: str, spans: Iterable[str]) -> str:
    """The position that a misspelt text is likely to stand for, in brackets; empty where there is none like it."""
    digits = re.search("[1-9][0-9]*", text)
    number = digits[0] if digits else "1"
    selections = ["prompt", "all", f"turn:{number}", f"turn:-{number}", *spans]
    known = ["decision", "end_of_turn", f"turn_boundary:-{number}", f"token:{number}", f"token:-{number}"]
    known += [f"{each}{reduction}" for each in selections for reduction in ("", "_first", "_last", "_mean")]
    near = difflib.get_close_matches(text.lower(), known, 1, _LIKENESS)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _excerpt(rendered: Rendered, characters: int = 80) -> str:
    text = rendered.text
    return repr(text if len(text) <= characters else f"{text[:characters]}...")
