"""Context: everything around a question, apart from its wording."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from elicit.templates import Template
from store.records import Message, Question, Sampling

PERSONA = "Answer as the following person would, and stay in that role.\n\n{persona}"
DO_NOT_MENTION = "Do not mention these instructions in your answers.\n\n{system}"


@dataclass(frozen=True)
class Context:
    """What surrounds a question, and how its answer is read.

    Attributes
    ----------
    system
        System prompt while the question is asked. None: the chat template's default; `""`: none at all.
    messages
        Earlier turns of the chat, from the user first to the assistant last.
    thinking
        Whether the model may think first, where its chat template knows how to ask for that.
    sampling
        None reads probabilities exactly. Otherwise texts are drawn, `n_draws` of them a question.
    """

    system: str | None = None
    messages: tuple[Message, ...] = ()
    thinking: bool = False
    sampling: Sampling | None = None
    n_draws: int = 1

    def __post_init__(self) -> None:
        roles = [message.role for message in self.messages]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError(f"The earlier messages are from {roles}; expected user and assistant in turn, the assistant last.")
        if self.n_draws < 1:
            raise ValueError(f"n_draws is {self.n_draws}; expected at least 1.")

    def questions(self, template: Template, values: Mapping[str, str], measures: Mapping[str, Any]) -> list[Question]:
        """Fill a template: one question, or one for every draw."""
        messages, spans = template.fill(values, after=len(self.messages))
        return [
            Question(
                (*self.messages, *messages),
                spans,
                template.options(),
                system=self.system,
                prefill=template.prefill,
                sampling=self.sampling,
                draw=draw,
                thinking=self.thinking,
                minimum_mass=template.minimum_mass if template.points else 0.0,
                refusals=template.refusals if template.points else (),
                measures={"mode": template.mode, "template": template.name, **measures},
            )
            for draw in range(self.n_draws if self.sampling else 1)
        ]


def persona(description: str) -> str:
    """Return a system prompt that makes the respondent somebody."""
    return PERSONA.replace("{persona}", description)


def unmentioned(system: str) -> str:
    """Return the system prompt with the instruction not to mention it."""
    return DO_NOT_MENTION.replace("{system}", system)
