"""A view of an endpoint that counts what its server would be asked, and asks it nothing."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Self

from elicit import Endpoint
from elicit.endpoint import messages_of
from elicit.endpoint_chat import most_tokens
from elicit.endpoint_probe import Capabilities
from elicit.endpoint_scoring import steps
from elicit.respondent import OnAnswer
from interp.rehearsal import Tally, hear, made_up_scores, made_up_text, mode_of
from store import Answer, Question
from store.provenance import digest


class RehearsedEndpoint(Endpoint):
    """A view that only counts. It has the fingerprint of what it stands for, so that a log's answers are found.

    It puts itself among the `views`, and every other model that is asked for by its help. What the server can do is not known
    without asking it; it is taken to list log-probabilities and to go on with an answer that was begun.
    """

    def __init__(self, real: Endpoint, tally: Tally, views: list) -> None:
        vars(self).update(vars(real))
        self._tally, self._views = tally, views
        views.append(self)

    def with_model(self, model: str) -> Self:
        """A rehearsed view of another model on the same server."""
        self._views.append(other := super().with_model(model))
        return other

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the server is taken to be able to do."""
        return Capabilities(self.top_logprobs, prefill={}, spaces=True)

    @property
    def counts_tokens(self) -> bool:
        """Whether tokens are counted, not reckoned from bytes."""
        return self._write is not None

    def prompt_digest(self, question: Question) -> str:
        """Digest of the question, which is counted as asked for."""
        self._tally.of(mode_of(question)).questions += 1
        return super().prompt_digest(question)

    def score(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Count the questions and make up probabilities."""
        for question in questions:
            self._count(question, self.repeats * [(said, 1) for said in steps(question)])
        return [hear(number, made_up_scores(question, number), on_answer) for number, question in enumerate(questions)]

    def generate(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Count the questions and make up texts."""
        answers = []
        for number, question in enumerate(questions):
            assert question.sampling is not None
            self._count(question, [("", question.sampling.max_new_tokens)])
            seed = digest(self.fingerprint, super().prompt_digest(question), question.sampling.seed, question.draw)
            answers.append(hear(number, made_up_text(question, number, seed), on_answer))
        return answers

    def _count(self, question: Question, requests: Sequence[tuple[str, int]]) -> None:
        """Count requests by what the respondent is made to say, and the most tokens that it may then say."""
        count = self._tally.of(mode_of(question))
        count.missing += 1
        for said, new_tokens in requests:
            tokens = self._tokens(replace(question, prefill=question.prefill + said))
            count.requests += 1
            count.tokens += tokens
            count.new_tokens += new_tokens
            count.usd += self.budget.cost(tokens, new_tokens)

    def _tokens(self, question: Question) -> int:
        return len(self._write(question).token_ids) if self._write else most_tokens(messages_of(question))
