"""Respondent: whatever can be asked. A local model, a steered view of it, or an endpoint; none needs to import this."""

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from store.records import Answer, Question

OnAnswer = Callable[[int, Answer], None]
"""Hears of each answer as soon as it is there: the question's number, and the answer."""


class Respondent(Protocol):
    """Something that answers Questions."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything about the respondent that could change an answer."""
        ...

    def prompt_digest(self, question: Question) -> str:
        """Digest of everything that the respondent will read of a question."""
        ...

    def score(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Exact option probabilities."""
        ...

    def generate(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Sampled text."""
        ...


@runtime_checkable
class SharedRespondent(Protocol):
    """A respondent that can answer for its other views in shared batches, as a LocalModel can for its steered views."""

    def score_together(self, asked: Sequence[tuple["Respondent", Question]], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Exact option probabilities of questions put to several views."""
        ...

    def generate_together(
        self, asked: Sequence[tuple["Respondent", Question]], on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """Sampled text for questions put to several views."""
        ...
