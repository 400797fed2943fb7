"""Rephrasing: a model rewrites a prompt by a named operator, and what comes back is read, filtered and held to the original."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

from elicit.modes.completion import leaks
from elicit.modes.refusal import declines
from store.records import Answer, Message, Outcome, Question, Sampling, Span

_QUOTES = "\"'\u201c\u201d\u2018\u2019\u00ab\u00bb"
_CLOSING = re.compile(r'["\u201d](?=\s*(?:\n|$))')
_PREAMBLE = re.compile(r"^(?:sure|certainly|of course|here)\b[^\n:]*:\s*\n+", re.IGNORECASE)
_GIVEAWAYS = ("rewrite the request", "rewritten request", "do not carry it out")
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Filters:
    """What a rewriting must be to be scored.

    Attributes
    ----------
    least_words, most_words
        Its length.
    least_kept
        The least that it keeps of the starting prompt, from 0 to 1 (see `Originals.kept`).
    """

    least_words: int = 4
    most_words: int = 120
    least_kept: float = 0.0


def operators() -> dict[str, str]:
    """Instructions to rewrite, by the names of the operators."""
    return dict(_document()["operators"])


def check_operators(names: Sequence[str]) -> None:
    """Say which operators are unknown.

    Raises
    ------
    ValueError
        One is, or none is named.
    """
    known = list(operators())
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"There is no operator {unknown[0]!r} to rewrite by; expected some of {', '.join(known)}.")
    if not names:
        raise ValueError(f"No operator to rewrite by is named; expected some of {', '.join(known)}.")


def question(text: str, operator: str, sampling: Sampling, draw: int = 0) -> Question:
    """Ask for a text to be rewritten."""
    document = _document()
    before, after = document["frame"].replace("{instruction}", document["operators"][operator]).split("{text}")
    span = Span("task", 0, len(before), len(before) + len(text))
    return Question(
        (Message("user", before + text + after),),
        (span,),
        prefill=document["prefill"],
        sampling=sampling,
        draw=draw,
        measures={"mode": "rewriting", "template": operator},
    )


def read(answer: Answer) -> tuple[str, bool]:
    """The rewritten prompt in a reply, and whether it is whole.

    What stands after the closing quotation mark is no part of it, and neither is a line that announces it.
    """
    said = (answer.text or "").strip().lstrip(_QUOTES)
    end = _CLOSING.search(said)
    text = _PREAMBLE.sub("", said[: end.start()] if end else said).strip().strip(_QUOTES).strip()
    return text, end is not None or not answer.truncated


def dropped(answer: Answer, parent: str, operator: str, filters: Filters = Filters()) -> str:
    """Why a rewriting is not to be scored; empty if it is. What it keeps of its original is for `Originals` to say."""
    text, whole = read(answer)
    n_words = len(_WORD.findall(text))
    if answer.outcome is Outcome.ERROR:
        return "error"
    if not text:
        return "empty"
    if not whole:
        return "cut off"
    if _words(text) == _words(parent):
        return "same as its parent"
    if declines(text):
        return "rewriter declined"
    if any(leaks(text, sentence) for sentence in (operators()[operator], *_GIVEAWAYS)):
        return "copied instruction"
    if n_words < filters.least_words:
        return "too short"
    return "too long" if n_words > filters.most_words else ""


class Originals:
    """How much of its starting prompt a rewriting keeps.

    Parameters
    ----------
    texts
        The starting prompts, which say how rare words are.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        found = Counter(word for text in texts for word in set(_words(text)))
        self._weight = {word: self._rarity(count, len(texts)) for word, count in found.items()}
        self._unseen = self._rarity(1, len(texts))

    def kept(self, text: str, original: str) -> float:
        """Cosine of the two texts' counts of words, each weighed by how rare it is among the starting prompts (TF-IDF).

        1 for the same words in any order, 0 for no word in common; a word that no starting prompt has weighs as much as one
        that a single one has.
        """
        one, other = self._vector(text), self._vector(original)
        length = math.sqrt(sum(v * v for v in one.values()) * sum(v * v for v in other.values()))
        return sum(value * other.get(word, 0.0) for word, value in one.items()) / length if length else 0.0

    def _vector(self, text: str) -> Mapping[str, float]:
        return {word: n * self._weight.get(word, self._unseen) for word, n in Counter(_words(text)).items()}

    @staticmethod
    def _rarity(count: int, n: int) -> float:
        return math.log((1 + n) / (1 + count)) + 1


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


@cache
def _document() -> Mapping:
    return yaml.safe_load((resources.files("elicit") / "operators.yaml").read_text(encoding="utf-8"))
