"""Option probabilities from lists of likeliest tokens, which is all that a server tells.

A server shows neither its tokenizer nor its whole distribution: after some text it lists its likeliest next tokens, each as
text. An option is followed through these lists, one request a step. What is not listed is bounded by what is listed last.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from store.records import END_OF_TURN, REFUSAL, Question

END_OF_TURN_TOKENS = frozenset(
    {"", "</s>", "<eos>", "<end_of_turn>", "<turn|>", "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|endoftext|>"}
    | {"<|end_of_text|>", "<|return|>", "<|END_OF_TURN_TOKEN|>", "<\uff5cend\u2581of\u2581sentence\uff5c>"}
)
"""What servers call the token that ends a turn; some list it as an empty text."""
_ENDS = "<|im_end|>"
_WORD = re.compile(r" ?[^\W\d]+| ?\d| ?[^\w\s]+|\s")
_NOT_FOLLOWED = 1e-5
"""A beginning less probable than this is not followed; its own probability is then the bound."""
_LEAST = 1e-300
_ROUNDED = 1e-5
"""What the sum of a list may miss because a server rounds."""


@dataclass(frozen=True)
class Listing:
    """The likeliest next tokens, with their natural-log probabilities."""

    log_probs: Mapping[str, float]

    def __post_init__(self) -> None:
        if not self.log_probs:
            raise ValueError("A listing needs at least one token.")

    def probability(self, token: str) -> float | None:
        """Probability of a token; None if it is not listed."""
        return max(math.exp(self.log_probs[token]), _LEAST) if token in self.log_probs else None

    @property
    def floor(self) -> float:
        """The most that a token can have that is not listed: as much as the last one that is, or all that is left."""
        return max(min(math.exp(min(self.log_probs.values())), max(self.rest, _ROUNDED)), _LEAST)

    @property
    def rest(self) -> float:
        """Probability of all that is not listed."""
        return max(0.0, 1.0 - sum(map(math.exp, self.log_probs.values())))

    def end_of_turn(self) -> float | None:
        """Probability that the turn ends; None where no such token is listed."""
        found = [math.exp(value) for token, value in self.log_probs.items() if token in END_OF_TURN_TOKENS]
        return sum(found) if found else None

    def beginning_of(self, text: str) -> str | None:
        """The longest listed token that a text begins with, the whole text included."""
        return max((token for token in self.log_probs if token and text.startswith(token)), key=len, default=None)


NextTokens = Callable[[str], Listing]
"""The listing after what the respondent has said so far."""
Forced = Callable[[str, str], float | None]
"""Probability of one token (second) after what was said so far (first), wherever it ranks; None if it cannot be had."""


@dataclass(frozen=True)
class Reading:
    """What lists tell about the options of one question.

    Attributes
    ----------
    listed
        Probability of every option (and of `REFUSAL`) as far as it was listed; 0 where nothing was.
    most
        The most that it can be.
    """

    listed: Mapping[str, float]
    most: Mapping[str, float]


Range = tuple[float, float]
"""What is listed of a probability, and the most that it can be."""


def _exactly(probability: float) -> Range:
    return probability, probability


@dataclass(frozen=True)
class _Goal:
    """A form of an option, and perhaps what must follow it."""

    label: str
    form: str
    terminator: str = ""

    @property
    def text(self) -> str:
        return self.form if self.terminator == END_OF_TURN else self.form + self.terminator

    def ahead(self, said: str) -> str:
        """What comes next: the rest of the form or, once that is said, of the terminator."""
        return (self.form if len(said) < len(self.form) else self.form + self.terminator)[len(said) :]

    def ends_with(self, said: str, ahead: str) -> bool:
        return len(said) + len(ahead) == len(self.form + self.terminator)


def read_options(
    question: Question, next_tokens: NextTokens, can_follow: Callable[[str], bool], forced: Forced | None = None
) -> Reading:
    """Follow every option of a question through the listings of a server.

    Parameters
    ----------
    next_tokens
        Asks the server; called once for every text.
    can_follow
        Whether the server can be asked what comes after a text that was put into its mouth.
    forced
        Asks for one token wherever it ranks, where the server allows that; used for options of which nothing is listed.
    """
    goals = _goals(question)
    first = next_tokens("")
    found = _Following({goal.text: goal.label for goal in goals if not goal.terminator}, next_tokens, can_follow).read(
        "", 1.0, first, goals
    )
    if forced:
        _force(found, goals, forced)
    labels = [option.label for option in question.options]
    listed = {label: sum(found[goal][0] for goal in found if goal.label == label) for label in labels}
    most = {label: sum(found[goal][1] for goal in found if goal.label == label) for label in labels}
    if refusal := _refusal(question, first):
        listed[REFUSAL] = most[REFUSAL] = refusal
    return Reading(listed, most)


def steps(question: Question) -> list[str]:
    """What the respondent is made to say, request by request, if every option is followed and each word is a token.

    For plans: a real tokenizer may cut finer, and what is not likely is not followed.
    """
    goals, asked = _goals(question), []

    def words(said: str) -> Listing:
        asked.append(said)
        ahead = [goal.ahead(said) for goal in goals if (goal.form + goal.terminator).startswith(said)]
        found = {_ENDS if rest == END_OF_TURN else _WORD.findall(rest)[0] for rest in ahead if rest}
        return Listing(dict.fromkeys(sorted(found), -math.log(len(found))))

    read_options(question, words, lambda said: True)
    return asked


def _goals(question: Question) -> list[_Goal]:
    return [
        _Goal(option.label, form, terminator)
        for option in question.options
        for form in option.forms
        for terminator in option.terminators or ("",)
    ]


def _refusal(question: Question, first: Listing) -> float:
    """Probability of the refusals that are one listed token, other than those that begin an option."""
    begun = {first.beginning_of(form) for option in question.options for form in option.forms}
    return sum(first.probability(form) or 0.0 for form in {*question.refusals} - begun)


@dataclass(frozen=True)
class _Following:
    """How options are followed; `whole` names the option that a text is, where nothing need follow it."""

    whole: Mapping[str, str]
    next_tokens: NextTokens
    can_follow: Callable[[str], bool]

    def read(self, said: str, reach: float, listing: Listing, goals: Sequence[_Goal]) -> dict[_Goal, Range]:
        found: dict[_Goal, Range] = {}
        followed: dict[str, list[_Goal]] = {}
        floor = reach * listing.floor
        for goal in goals:
            ahead = goal.ahead(said)
            if ahead == END_OF_TURN:
                # A server may hide this token, so that it is not bounded by what is listed last.
                ends = listing.end_of_turn()
                hidden = 0.0, reach * max(listing.floor, listing.rest)
                found[goal] = hidden if ends is None else _exactly(reach * ends)
            elif (token := listing.beginning_of(ahead)) is None:
                found[goal] = (0.0, floor)
            elif token == ahead and goal.ends_with(said, ahead):
                found[goal] = _exactly(reach * (listing.probability(token) or 0.0))
            else:
                followed.setdefault(token, []).append(goal)
        for token, own in followed.items():
            found |= self._follow(said + token, reach * (listing.probability(token) or 0.0), own)
            for goal in own:
                # Less than what is listed last: then the form may as well be a token of its own that is not listed.
                if token != goal.ahead(said) and 0 < found[goal][1] < floor:
                    found[goal] = (0.0, floor)
        return found

    def _follow(self, said: str, reach: float, goals: Sequence[_Goal]) -> dict[_Goal, Range]:
        if (shorter := self.whole.get(said)) is not None:
            # An option that goes on from a shorter form of its own is counted with that; one that goes on from another
            # option cannot be told from it.
            return {goal: (0.0, 0.0 if goal.label == shorter else reach) for goal in goals}
        if reach < _NOT_FOLLOWED or not self.can_follow(said):
            return {goal: (0.0, reach) for goal in goals}
        return self.read(said, reach, self.next_tokens(said), goals)


def _force(found: dict[_Goal, Range], goals: Sequence[_Goal], forced: Forced) -> None:
    """Ask for the forms of options of which nothing is listed, as far as each is one token."""
    for label in dict.fromkeys(goal.label for goal in goals):
        own = [goal for goal in found if goal.label == label]
        if any(found[goal][0] for goal in own):
            continue
        for goal in own:
            if not goal.terminator and (probability := forced("", goal.form)) is not None:
                found[goal] = _exactly(probability)


def average(readings: Sequence[Reading]) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Mean probability over repeated calls, in logarithms.

    Returns
    -------
    `log_probs`, `bounds` and `spread`, as an `Answer` has them.
    """
    labels = list(dict.fromkeys(label for reading in readings for label in reading.listed))
    listed = {label: float(np.mean([reading.listed.get(label, 0.0) for reading in readings])) for label in labels}
    most = {label: float(np.mean([reading.most.get(label, 0.0) for reading in readings])) for label in labels}
    # What little is added by summing many numbers is no bound.
    bounds = {label: math.log(most[label]) for label in labels if most[label] > listed[label] * (1 + 1e-12)}
    log_probs = {label: math.log(listed[label]) if listed[label] else bounds[label] for label in labels}
    if len(readings) == 1:
        return log_probs, bounds, {}
    values = {label: [reading.listed.get(label) or reading.most.get(label, _LEAST) for reading in readings] for label in labels}
    return log_probs, bounds, {label: float(np.std(np.log(each), ddof=1)) for label, each in values.items()}
