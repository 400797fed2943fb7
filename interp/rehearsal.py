"""Rehearsal: a view of a model that counts what it is asked and answers at random, so that a run can be gone through first.

Nothing passes through the model but what `seconds` needs, which times real batches of the questions that were counted.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from interp.engine import Engine, Job, Selection
from interp.model import LocalModel, OnAnswer
from interp.scoring import option_tree
from interp.steering import Intervention
from store.provenance import digest
from store.records import Answer, Outcome, Question

ACTIVATIONS = "activations"
TEXTS = "texts read through"
_TIMED_QUESTIONS = 48
_TIMED_GENERATIONS = 8
_TIMED_CALLS = 2
"""So many questions of the first so many calls of each kind are really run, to learn how fast this machine is."""
_WORDS = ("the", "of", "and", "to", "in", "is", "for", "with")


@dataclass
class Count:
    """What one kind of question takes.

    Attributes
    ----------
    questions
        Asked for, known answers included.
    missing
        Of these, what the model would have to answer.
    tokens
        To be read for the missing ones, options included, before any sharing of prefixes.
    new_tokens
        Most that can be written.
    requests, usd
        To a server, and what they cost at the prices given; 0 on this machine.
    """

    questions: int = 0
    missing: int = 0
    tokens: int = 0
    new_tokens: int = 0
    requests: int = 0
    usd: float = 0.0


@dataclass
class Tally:
    """Counts by mode, and a few real calls of each kind to be timed."""

    counts: dict[str, Count] = field(default_factory=dict)
    _calls: dict[str, list[tuple[int, Callable[[], Any]]]] = field(default_factory=dict)

    def of(self, mode: str) -> Count:
        """Count of a mode."""
        return self.counts.setdefault(mode, Count())

    def remember(self, mode: str, work: int, call: Callable[[], Any]) -> None:
        """Keep a call for timing; `work` is its number of tokens."""
        calls = self._calls.setdefault(mode, [])
        if len(calls) < _TIMED_CALLS and work:
            calls.append((work, call))

    def seconds(self) -> dict[str, float]:
        """Run the calls that were kept, and reckon from their speed how long everything takes, by mode."""
        found = {}
        for mode, calls in self._calls.items():
            started = time.perf_counter()
            for _, call in calls:
                call()
            speed = sum(work for work, _ in calls) / (time.perf_counter() - started)
            count = self.counts[mode]
            found[mode] = (count.new_tokens or count.tokens) / speed
        return found


class RehearsedModel(LocalModel):
    """A view that only counts. It has the fingerprint of what it stands for, so that a log's answers are found."""

    def __init__(self, real: LocalModel, tally: Tally) -> None:
        self.real, self.tally = real, tally
        self.backend, self.renderer, self.identity = real.backend, real.renderer, real.identity
        self.interventions = real.interventions
        self.engine = _CountingEngine(real.engine, tally)

    def steered(self, intervention: Intervention) -> "RehearsedModel":  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return a rehearsed view under an intervention."""
        return RehearsedModel(self.real.steered(intervention), self.tally)

    def prompt_digest(self, question: Question) -> str:
        """Digest of the question, which is counted as asked for."""
        self.tally.of(mode_of(question)).questions += 1
        return self.real.prompt_digest(question)

    def score_together(self, asked: Sequence[tuple[LocalModel, Question]], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Count the questions and make up probabilities."""
        answers = []
        for number, (_, question) in enumerate(asked):
            rendered = self.render(question)
            tree = option_tree(question, rendered, self.renderer)
            self._count(question, len(rendered.token_ids) + len(tree.prefixes) - 1)
            answers.append(hear(number, made_up_scores(question, number), on_answer))
        for mode, sample in self._samples(asked, _TIMED_QUESTIONS).items():
            real = [(_real(view), question) for view, question in sample]
            work = sum(len(self.render(question).token_ids) for _, question in sample)
            self.tally.remember(mode, work, lambda real=real: self.real.score_together(real))
        return answers

    def generate_together(
        self, asked: Sequence[tuple[LocalModel, Question]], on_answer: OnAnswer | None = None
    ) -> list[Answer]:
        """Count the questions and make up texts: an option where there are some, else words up to the limit."""
        answers = []
        for number, (view, question) in enumerate(asked):
            assert question.sampling is not None
            limit = question.sampling.max_new_tokens
            self._count(question, len(self.render(question).token_ids), limit)
            seed = digest(view.fingerprint, _real(view).prompt_digest(question), question.sampling.seed, question.draw)
            answers.append(hear(number, made_up_text(question, number, seed), on_answer))
        for mode, sample in self._samples(asked, _TIMED_GENERATIONS).items():
            real = [(_real(view), question) for view, question in sample]
            work = sum(question.sampling.max_new_tokens for _, question in real if question.sampling)
            self.tally.remember(mode, work, lambda real=real: self.real.generate_together(real))
        return answers

    def _count(self, question: Question, tokens: int, new_tokens: int = 0) -> None:
        count = self.tally.of(mode_of(question))
        count.missing += 1
        count.tokens += tokens
        count.new_tokens += new_tokens

    def _samples(self, asked: Sequence[tuple[LocalModel, Question]], size: int) -> dict[str, list[tuple[LocalModel, Question]]]:
        """Some questions of every mode, in order and with all views of each, so that they share what the whole does."""
        found: dict[str, dict[bytes, list[tuple[LocalModel, Question]]]] = {}
        full: set[str] = set()
        for view, question in asked:
            mode, prompt = mode_of(question), self.render(question).token_ids.tobytes()
            prompts = found.setdefault(mode, {})
            if prompt in prompts or mode not in full:
                prompts.setdefault(prompt, []).append((view, question))
            if len(prompts) >= size:
                full.add(mode)
        return {mode: _up_to(size, list(prompts.values())) for mode, prompts in found.items()}


class _CountingEngine(Engine):
    """Counts captured prompts and makes up their rows."""

    def __init__(self, real: Engine, tally: Tally) -> None:
        super().__init__(real.backend, real.layout, real.token_budget)
        self._real, self._tally = real, tally

    def token_logits(
        self,
        jobs: Sequence[Job],
        tokens: Sequence[Int[np.ndarray, " tokens"]],
        done: Callable[[int, torch.Tensor], None],
    ) -> None:
        """Count the texts that are read through, and make up logits."""
        count = self._tally.of(TEXTS)
        count.questions += len(jobs)
        count.missing += len(jobs)
        count.tokens += sum(len(job.rendered.token_ids) for job in jobs)
        sample, own = jobs[:_TIMED_QUESTIONS], tokens[:_TIMED_QUESTIONS]
        work = sum(len(job.rendered.token_ids) for job in sample)
        self._tally.remember(TEXTS, work, lambda: self._real.token_logits(sample, own, lambda _number, _logits: None))
        generator = torch.Generator().manual_seed(0)
        for number, wanted in enumerate(tokens):
            done(number, torch.randn(len(wanted), self.backend.vocabulary_size, generator=generator))

    def capture(
        self,
        jobs: Sequence[Job],
        selections: Sequence[Selection],
        layers: Sequence[int],
        done: Callable[[int, np.ndarray], None],
    ) -> None:
        count = self._tally.of(ACTIVATIONS)
        count.questions += len(jobs)
        count.missing += len(jobs)
        count.tokens += sum(len(job.rendered.token_ids) for job in jobs)
        sample = jobs[:_TIMED_QUESTIONS]
        work = sum(len(job.rendered.token_ids) for job in sample)
        rows = selections[: len(sample)]
        self._tally.remember(
            ACTIVATIONS, work, lambda: self._real.capture(sample, rows, layers, lambda _number, _residuals: None)
        )
        # Other rows every time, as in a real run: two conditions of the same tasks are not the same.
        random, width = np.random.default_rng(count.questions), self.backend.config.hidden_size
        for number, rows_wanted in enumerate(selections):
            done(number, random.normal(size=(len(rows_wanted), len(layers), width)).astype(np.float32))


def _real(view: LocalModel) -> LocalModel:
    return view.real if isinstance(view, RehearsedModel) else view


def made_up_scores(question: Question, number: int) -> Answer:
    """Probabilities drawn at random, by the number of the question."""
    chances = np.random.default_rng(number).dirichlet(np.full(len(question.options), 2.0)) + 1e-6
    log_probs = {option.label: float(np.log(p)) for option, p in zip(question.options, chances, strict=True)}
    return Answer.exact(question, log_probs)


def made_up_text(question: Question, number: int, seed: str) -> Answer:
    """An option where there are some, else as many words as there may be tokens.

    The words are drawn by `seed`, a hexadecimal digest: other questions and respondents get others, as in a real run.
    """
    if question.options:
        return Answer(Outcome.CHOSE, text=question.options[number % len(question.options)].forms[0])
    assert question.sampling is not None
    words = np.random.default_rng(int(seed[:12], 16)).choice(_WORDS, size=question.sampling.max_new_tokens)
    return Answer(Outcome.CHOSE, text=" " + " ".join(words))


def mode_of(question: Question) -> str:
    """Mode of a question; what could be read exactly is counted apart where it is sampled."""
    mode = str(question.measures.get("mode", "other"))
    return f"{mode}, sampled" if question.sampling and question.options else mode


def hear(number: int, answer: Answer, on_answer: OnAnswer | None) -> Answer:
    """Tell of an answer, and return it."""
    if on_answer is not None:
        on_answer(number, answer)
    return answer


def _up_to(size: int, groups: Sequence[list[tuple[LocalModel, Question]]]) -> list[tuple[LocalModel, Question]]:
    """Whole groups, until there are `size` questions or more."""
    found: list[tuple[LocalModel, Question]] = []
    for group in groups:
        if len(found) < size:
            found += group
    return found
