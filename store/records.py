"""The plain values that travel between rooms: what is asked, and what came back.

A Question is made by a mode in `elicit`, rendered and answered by a Respondent, and kept with its Answer in the
measurement log. Nothing here knows about tokens or tensors.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, Self

END_OF_TURN = "<end of turn>"
"""Terminator that stands for whatever token ends a turn in the model at hand."""
REFUSAL = "<refusal>"
"""Name, beside the options' labels, of what a respondent says when it picks none of them."""
NEGLIGIBLE = 1e-3
"""Share of the mass on the options: what may be missing of one option without changing what the answer says."""


class Outcome(StrEnum):
    """What became of one question."""

    CHOSE = "chose"
    REFUSED = "refused"
    OFF_FORMAT = "off_format"
    TRUNCATED = "truncated"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. The system prompt is not a message: it is a field of the Question."""

    role: Literal["user", "assistant"]
    content: str


@dataclass(frozen=True, slots=True)
class Span:
    """A named run of characters `start:end` inside the content of message number `message`."""

    name: str
    message: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Option:
    """One possible answer.

    Attributes
    ----------
    label
        The name of the option, as it appears in results.
    forms
        Surface forms that count as this answer (`"A"` and `" A"`), scored as continuations of the prompt.
    terminators
        What must follow a form for it to be the whole answer: `END_OF_TURN`, a newline, a closing tag. They are scored
        with the form; empty means that the form alone is enough. Numbers need them: "1" also begins 10 and 100.
    """

    label: str
    forms: tuple[str, ...]
    terminators: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.forms or not all(self.forms):
            raise ValueError(f"Option {self.label!r} has forms {self.forms!r}; expected at least one, none of them empty.")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How text is drawn. `temperature=0` is greedy; a draw depends on `seed` and `Question.draw` alone, not on its batch."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature is {self.temperature}; expected a finite number of at least 0 (0 is greedy).")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; expected a number in (0, 1].")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}; expected at least 1.")


@dataclass(frozen=True)
class Question:
    """One thing asked of a Respondent.

    Attributes
    ----------
    messages
        The chat so far; the Respondent speaks next.
    spans
        Where the tasks stand inside the messages, set by the template that wrote them.
    options
        The allowed answers; empty for free text.
    system
        None: whatever the chat template does by default. `""`: explicitly no system prompt. Text: that prompt.
    prefill
        Words put into the Respondent's mouth; the answer continues them.
    sampling
        None: read the probabilities of the options exactly. Otherwise draw text.
    draw
        Which of several draws this is (0 for exact answers).
    thinking
        Whether the model may think first, where its chat template knows how to ask for that.
    minimum_mass
        Least raw probability on the options for the answer to count as on format. It does not change what is asked.
    refusals
        Openings of an answer that picks none of the options. Those that are one token of the respondent's are scored with
        the options, which costs nothing; longer ones are not, so the probability of refusing is a lower bound.
    measures
        What the answer is a measurement of (mode, template, tasks, order, ...): plain JSON values.
    """

    messages: tuple[Message, ...]
    spans: tuple[Span, ...] = ()
    options: tuple[Option, ...] = ()
    system: str | None = None
    prefill: str = ""
    sampling: Sampling | None = None
    draw: int = 0
    thinking: bool = False
    minimum_mass: float = 0.0
    refusals: tuple[str, ...] = ()
    measures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError("A Question needs at least one message.")
        if self.messages[-1].role != "user":
            raise ValueError(
                f"The last message is from {self.messages[-1].role!r}; expected 'user', since the respondent speaks next. "
                "Put words into its mouth with prefill=..."
            )
        if not self.options and self.sampling is None and self.minimum_mass:
            raise ValueError("minimum_mass needs options.")
        labels = [option.label for option in self.options]
        if REFUSAL in labels:
            raise ValueError(
                f"An option is called {REFUSAL!r}, which stands for picking none of the options; name it otherwise."
            )
        if len(set(labels)) != len(labels):
            raise ValueError(f"Option labels {labels} repeat; each option needs its own.")
        for span in self.spans:
            if not 0 <= span.message < len(self.messages):
                raise ValueError(f"{span} points at message {span.message} of {len(self.messages)}.")
            if not 0 <= span.start < span.end <= len(self.messages[span.message].content):
                raise ValueError(
                    f"{span} does not fit message {span.message}, which has "
                    f"{len(self.messages[span.message].content)} characters; a span holds at least one."
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, enough to ask the same question again."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo `to_dict`, also after a round trip through JSON."""
        sampling = values["sampling"]
        return cls(
            messages=tuple(Message(**message) for message in values["messages"]),
            spans=tuple(Span(**span) for span in values["spans"]),
            options=tuple(
                Option(option["label"], tuple(option["forms"]), tuple(option["terminators"])) for option in values["options"]
            ),
            sampling=None if sampling is None else Sampling(**sampling),
            refusals=tuple(values.get("refusals", ())),
            **{name: values[name] for name in ("system", "prefill", "draw", "thinking", "minimum_mass", "measures")},
        )


@dataclass(frozen=True)
class Answer:
    """What came back for one Question.

    Attributes
    ----------
    outcome
        `chose`, `refused`, `off_format`, `truncated` or `error`.
    log_probs
        Raw natural-log probability of every option, not normalised over the options (exact answers). Of an option in
        `unlisted`, the most that it can be.
    choice
        The label that a sampled text settled on, if any. Exact answers have a distribution instead of a choice.
    text
        The sampled text, without the prefill.
    truncated
        Whether the text stopped at `max_new_tokens`.
    error
        Why there is no answer.
    refusal_log_prob
        Raw natural-log probability of opening with a refusal (exact answers to questions that name refusals).
    bounds
        For the options of which a server that lists only its likeliest tokens did not list every form: the most that
        their log-probability can be.
    spread
        Standard deviation of each option's log-probability in nats, where a server was asked several times.
    """

    outcome: Outcome
    log_probs: Mapping[str, float] = field(default_factory=dict)
    choice: str | None = None
    text: str | None = None
    truncated: bool = False
    error: str | None = None
    refusal_log_prob: float | None = None
    bounds: Mapping[str, float] = field(default_factory=dict)
    spread: Mapping[str, float] = field(default_factory=dict)

    @property
    def unlisted(self) -> tuple[str, ...]:
        """Labels of which no form was listed, so that nothing but a bound is known."""
        return tuple(label for label, bound in self.bounds.items() if self.log_probs.get(label) == bound)

    @property
    def raw_log_probs(self) -> dict[str, float]:
        """All that was read: the options, and the refusal under its name."""
        return dict(self.log_probs) | ({} if self.refusal_log_prob is None else {REFUSAL: self.refusal_log_prob})

    @property
    def refusal_mass(self) -> float | None:
        """Raw probability of opening with a refusal, where it was read."""
        return None if self.refusal_log_prob is None else math.exp(self.refusal_log_prob)

    @property
    def mass(self) -> float | None:
        """Raw probability that is known to have fallen on the options, for exact answers."""
        if not self.log_probs:
            return None
        return min(1.0, sum(math.exp(value) for label, value in self.log_probs.items() if label not in self.unlisted))

    def distribution(self) -> dict[str, float]:
        """Probabilities given that one of the options was answered (they sum to one)."""
        if not self.log_probs:
            raise ValueError(f"This answer ({self.outcome}) has no option probabilities; it was sampled or it failed.")
        top = max(self.log_probs.values())
        weights = {label: math.exp(value - top) for label, value in self.log_probs.items()}
        total = sum(weights.values())
        return {label: weight / total for label, weight in weights.items()}

    @classmethod
    def exact(
        cls,
        question: Question,
        log_probs: Mapping[str, float],
        bounds: Mapping[str, float] | None = None,
        spread: Mapping[str, float] | None = None,
    ) -> Self:
        """Answer from raw log-probabilities (see `raw_log_probs`), and from bounds where not all of them were listed.

        `refused` where a refusal is more probable than the options together, `chose` where their mass reaches the question's
        minimum and what was not listed is negligible beside it, else `off_format`.
        """
        options = {label: value for label, value in log_probs.items() if label != REFUSAL}
        refusal = log_probs.get(REFUSAL)
        answer = cls(Outcome.CHOSE, options, refusal_log_prob=refusal, bounds=bounds or {}, spread=spread or {})
        mass = answer.mass or 0.0
        if (answer.refusal_mass or 0.0) > mass:
            return replace(answer, outcome=Outcome.REFUSED)
        if reason := answer._unsettled():
            return replace(answer, outcome=Outcome.OFF_FORMAT, error=reason)
        return answer if mass >= question.minimum_mass else replace(answer, outcome=Outcome.OFF_FORMAT)

    def _unsettled(self) -> str:
        """What was not listed and could matter; empty where nothing is."""
        mass, unlisted = self.mass or 0.0, self.unlisted
        missing = {
            label: math.exp(bound) - (0.0 if label in unlisted else math.exp(self.log_probs[label]))
            for label, bound in self.bounds.items()
        }
        named = ", ".join(f"{label!r} (up to {most:.2g})" for label, most in missing.items() if most >= NEGLIGIBLE * mass)
        return f"not listed in the top k: {named}, beside {mass:.2g} on the options" if named else ""
