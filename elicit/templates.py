"""Templates: the wordings of every mode, kept as YAML beside the code, checked on load, and filled without re-reading.

A template is cut at its fields once. Tasks are put between the pieces verbatim, so nothing in a task's text is ever
taken for a field, and where each task stands is known.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Annotated, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from store.records import END_OF_TURN, Option, Span

_FIELD = re.compile(r"\{(\w+)\}")
_NUMBER = re.compile(r"-?\d+")
_NUMBER_ENDS = (END_OF_TURN, "\n", "\n\n", ".", ",", ":", ";", "!", ")", "/", " ", " (", " out", " because")
"""What may follow a number that is a whole answer, so that 1 is told from 10 and 100."""


class TemplateError(ValueError):
    """A template is unknown or not well formed; the message names it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScalePoint(_Strict):
    """One answer on a scale and what it counts."""

    label: str
    value: float
    forms: tuple[str, ...] = ()


class NumberScale(_Strict):
    """Whole numbers from the first to the last."""

    numbers: tuple[int, int]


class Template(_Strict):
    """One wording.

    Attributes
    ----------
    name, mode
        What it is called and which mode it belongs to.
    prompt
        Text of the user's message, with fields such as `{task_a}`.
    prefill
        Words that the answer begins with.
    options
        The scale, for modes that have one.
    minimum_mass
        Least raw probability on the options for an answer to count as on format.
    """

    name: str
    mode: str
    prompt: str
    prefill: str = ""
    options: tuple[ScalePoint, ...] | NumberScale | None = None
    minimum_mass: Annotated[float, Field(ge=0, le=1)] = 0.0

    @model_validator(mode="after")
    def _has_its_fields(self) -> Self:
        found = _FIELD.findall(self.prompt)
        needed = FIELDS_OF_MODE.get(self.mode)
        if needed is None:
            raise ValueError(f"mode {self.mode!r} is unknown; expected one of {sorted(FIELDS_OF_MODE)}")
        for name in (name for name in needed if name.startswith("task")):
            if found.count(name) != 1:
                raise ValueError(f"the prompt has {{{name}}} {found.count(name)} times; expected once")
        if unknown := sorted(set(found) - set(needed)):
            raise ValueError(f"the prompt has the unknown fields {unknown}; mode {self.mode} has {sorted(needed)}")
        return self

    def fill(self, values: Mapping[str, str]) -> tuple[str, tuple[Span, ...]]:
        """Put values in place of the fields.

        Returns
        -------
        The text, and a span for every field whose name begins with `task`.
        """
        text, spans = "", []
        for place, piece in enumerate(_FIELD.split(self.prompt)):
            if place % 2 == 0:
                text += piece
                continue
            start = len(text)
            text += values[piece]
            if piece.startswith("task"):
                spans.append(Span(piece, 0, start, len(text)))
        return text, tuple(spans)

    @property
    def points(self) -> tuple[ScalePoint, ...]:
        """The answers of the scale, written out."""
        if isinstance(self.options, NumberScale):
            first, last = self.options.numbers
            return tuple(ScalePoint(label=str(number), value=number) for number in range(first, last + 1))
        return self.options or ()

    @property
    def scale(self) -> dict[str, float]:
        """Value of each answer on the scale, by label."""
        return {point.label: point.value for point in self.points}

    def scale_options(self) -> tuple[Option, ...]:
        """The scale as options to score. Numbers are told apart by what follows them."""
        # After a prefill an answer begins with a space; the bare label is tried too, since it costs nothing more.
        space = " " if self.prefill else ""
        return tuple(
            Option(
                point.label,
                (*surface_forms(point.label), *(space + form for form in point.forms)),
                _NUMBER_ENDS if _NUMBER.fullmatch(point.label) else (),
            )
            for point in self.points
        )


def surface_forms(label: str) -> tuple[str, ...]:
    """A label with and without a space before it."""
    return f" {label}", label


FIELDS_OF_MODE: Mapping[str, Sequence[str]] = {
    "choice": ("task_a", "task_b", "label_a", "label_b"),
    "rating": ("task",),
}
"""Fields of each mode's templates; those of tasks must each occur once."""


def template(mode: str, name: str) -> Template:
    """Return the template of a mode by name.

    Raises
    ------
    TemplateError
        There is none of that name.
    """
    found = templates(mode)
    if name not in found:
        raise TemplateError(f"Mode {mode!r} has no template {name!r}; expected one of {sorted(found)}.")
    return found[name]


@cache
def templates(mode: str) -> Mapping[str, Template]:
    """Return all templates of a mode, by name.

    Raises
    ------
    TemplateError
        The mode is unknown, or a template of it is not well formed.
    """
    if mode not in FIELDS_OF_MODE:
        raise TemplateError(f"There is no mode {mode!r}; expected one of {sorted(FIELDS_OF_MODE)}.")
    document = yaml.safe_load((resources.files("elicit") / "wordings" / f"{mode}.yaml").read_text(encoding="utf-8"))
    shared = {name: document[name] for name in ("mode", "minimum_mass")}
    found = {}
    for name, fields in document["templates"].items():
        try:
            found[name] = Template(name=name, **shared | fields)
        except ValueError as error:
            raise TemplateError(f"Template {name!r} of mode {mode!r}: {error}") from error
    return found
