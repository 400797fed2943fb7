"""Templates: how every mode words its questions, as data. A template is one level of every axis of its mode.

The wordings are YAML beside the code. A piece of a wording is a text, or a choice of texts by the level of an axis; the
pieces that a level of every axis picks make the template. It is cut at its fields once: tasks are put between the cuts
verbatim, so nothing in a task's text is ever taken for a field, and where each task stands is known.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from elicit.rewriting import in_tags, light_punctuation, with_typos
from store.records import END_OF_TURN, Message, Option, Span

_FIELD = re.compile(r"\{(\w+)\}")
_REPLY = "reply"
NUMBERS: Literal["numbers"] = "numbers"
_NUMBER = re.compile(r"-?\d+")
_NUMBER_ENDS = (END_OF_TURN, "\n", "\n\n", ".", ",", ":", ";", "!", ")", "/", " ", " (", " out", " because")
"""What may follow a number that is a whole answer, so that 1 is told from 10 and 100."""


class TemplateError(ValueError):
    """A template is unknown or not well formed; the message names it."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScalePoint(_Strict):
    """One answer, what it counts, and other spellings of it."""

    label: str
    value: float
    forms: tuple[str, ...] = ()


class NumberScale(_Strict):
    """Whole numbers from the first to the last."""

    numbers: tuple[int, int]
    without: tuple[int, ...] = ()


class _Points(_Strict):
    options: tuple[ScalePoint, ...] | NumberScale

    def written_out(self) -> tuple[ScalePoint, ...]:
        if not isinstance(self.options, NumberScale):
            return self.options
        first, last = self.options.numbers
        numbers = [number for number in range(first, last + 1) if number not in self.options.without]
        return tuple(ScalePoint(label=str(number), value=number) for number in numbers)


@dataclass(frozen=True)
class Template:
    """One way of asking.

    Attributes
    ----------
    mode, levels
        Which mode it belongs to, and its level on every axis.
    name
        The level of the first axis, and what differs from the defaults: `would_rather,language=fr`.
    fields
        Names of what is put in.
    turns
        Texts with fields such as `{task_a}`: what the user says, and between that what the assistant is made to say.
    prefill
        Words that the answer begins with.
    points
        The allowed answers and their values.
    terminators
        What must follow an answer: nothing, one of these, or, for `numbers`, something that ends a number.
    minimum_mass
        Least raw probability on the options for an answer to count as on format.
    refusals
        Openings of an answer that picks none of the options.
    """

    mode: str
    levels: Mapping[str, str]
    name: str
    fields: tuple[str, ...]
    turns: tuple[str, ...]
    prefill: str
    points: tuple[ScalePoint, ...]
    terminators: tuple[str, ...] | Literal["numbers"]
    minimum_mass: float
    refusals: tuple[str, ...]

    def fill(self, values: Mapping[str, str], after: int = 0) -> tuple[tuple[Message, ...], tuple[Span, ...]]:
        """Put values in place of the fields.

        Returns
        -------
        The messages, and a span for every field, numbered as they stand after `after` other messages.
        """
        messages, spans = [], []
        for number, turn in enumerate(self.turns):
            text = ""
            for place, piece in enumerate(_FIELD.split(turn)):
                if place % 2 and values[piece]:
                    spans.append(Span(piece, after + number, len(text), len(text) + len(values[piece])))
                text += values[piece] if place % 2 else piece
            messages.append(Message("assistant" if number % 2 else "user", text))
        return tuple(messages), tuple(spans)

    @property
    def scale(self) -> dict[str, float]:
        """Value of each answer, by label."""
        return {point.label: point.value for point in self.points}

    def _ends(self, label: str) -> tuple[str, ...]:
        if self.terminators != NUMBERS:
            return self.terminators
        return _NUMBER_ENDS if _NUMBER.fullmatch(label) else ()

    def options(self) -> tuple[Option, ...]:
        """Answers to score. Numbers are told apart by what follows them."""
        # After a prefill an answer begins with a space; the bare label is tried too, since it costs nothing more.
        space = " " if self.prefill else ""
        return tuple(
            Option(
                point.label,
                (*surface_forms(point.label), *(space + form for form in point.forms)),
                self._ends(point.label),
            )
            for point in self.points
        )


def surface_forms(label: str) -> tuple[str, ...]:
    """A label with and without a space before it."""
    return f" {label}", label


def _spellings(word: str) -> tuple[str, ...]:
    """A word with and without a capital, and with and without a space before it."""
    return tuple(dict.fromkeys(form for each in (word, word.capitalize()) for form in surface_forms(each)))


class _Document(_Strict):
    """A YAML file of wordings."""

    mode: str
    minimum_mass: float = Field(ge=0, le=1)
    axes: dict[str, tuple[str, ...]] = Field(min_length=1)
    pieces: dict[str, Any]


class Wordings:
    """All templates of one mode.

    Parameters
    ----------
    document
        The mode's YAML: `mode`, `minimum_mass`, `axes`, `pieces`.
    where
        What error messages call it.

    Raises
    ------
    TemplateError
        The document lacks a key, has an unknown one, or an axis without levels.
    """

    def __init__(self, document: Mapping[str, Any], where: str) -> None:
        try:
            checked = _Document(**document)
        except (ValidationError, TypeError) as error:
            raise TemplateError(f"{where} is not a file of wordings: {error}") from error
        shared = _read(resources.files("elicit") / "wordings" / "shared.yaml")
        self.mode, self.minimum_mass = checked.mode, checked.minimum_mass
        self.axes: Mapping[str, tuple[str, ...]] = {
            **checked.axes,
            **{name: tuple(levels) for name, levels in shared["axes"].items()},
        }
        self._pieces = shared["pieces"] | checked.pieces

    @property
    def first_axis(self) -> str:
        """The axis whose level a template's name begins with."""
        return next(iter(self.axes))

    @property
    def defaults(self) -> dict[str, str]:
        """The first level of every axis."""
        return {axis: levels[0] for axis, levels in self.axes.items()}

    def __iter__(self):
        """Names of the templates of the first axis, everything else at its default."""
        return iter(self.axes[self.first_axis])

    def name(self, levels: Mapping[str, str]) -> str:
        """Name of the template with these levels."""
        defaults = self.defaults
        others = [f"{axis}={level}" for axis, level in levels.items() if axis != self.first_axis and level != defaults[axis]]
        return ",".join([levels[self.first_axis], *others])

    def levels(self, name: str) -> dict[str, str]:
        """Levels that a name such as `would_rather,language=fr` stands for.

        Raises
        ------
        TemplateError
            An axis or a level is unknown.
        """
        levels = self.defaults
        for part in filter(None, (part.strip() for part in name.split(","))):
            axis, _, level = part.rpartition("=")
            axis = axis.strip() or self.first_axis
            if axis not in self.axes:
                raise TemplateError(f"Mode {self.mode!r} has no axis {axis!r} ({name!r}); expected one of {list(self.axes)}.")
            if level.strip() not in self.axes[axis]:
                raise TemplateError(
                    f"Mode {self.mode!r} has no {axis} {level.strip()!r} ({name!r}); expected one of {list(self.axes[axis])}."
                )
            levels[axis] = level.strip()
        return levels

    def template(self, name: str) -> Template:
        """Return a template by name; see `levels`."""
        levels = self.levels(name)
        full = self.name(levels)
        try:
            return self._compose(levels, full)
        except (TemplateError, ValidationError) as error:
            raise TemplateError(f"Template {full!r} of mode {self.mode!r}: {error}") from error

    def _compose(self, levels: Mapping[str, str], name: str) -> Template:
        def text(piece: str) -> str:
            return self._text(piece, levels, ())

        rewrite = _rewriting(levels)
        parts = {piece: rewrite(text(piece)) for piece in ("situation", "question", "answer")} | {"body": text("body")}
        prompt = "\n\n".join(part for piece in self._pick("layout", levels) if (part := parts[piece]))
        turns = prompt.split(f"{{{_REPLY}}}")
        reply = text(_REPLY) if len(turns) > 1 else ""
        fields = tuple(self._pick("fields", levels))
        _check_fields(prompt + reply, fields)
        spoken = [each for turn in turns for each in (turn.strip("\n"), reply)][:-1]
        options, terminators = self._pick("options", levels), self._pick("terminators", levels)
        if not isinstance(options, Mapping):
            options = [
                {
                    **point,
                    "label": self._filled(str(point["label"]), levels, ()),
                    "forms": [self._filled(form, levels, ()) for form in point.get("forms", ())],
                }
                for point in options
            ]
        return Template(
            self.mode,
            dict(levels),
            name,
            fields,
            tuple(spoken),
            text("prefill"),
            _Points(options=options).written_out(),  # pyright: ignore[reportArgumentType]
            terminators if terminators == NUMBERS else tuple(terminators),
            self.minimum_mass,
            tuple(form for word in self._pick("refusals", levels) for form in _spellings(str(word))),
        )

    def _pick(self, piece: str, levels: Mapping[str, str]) -> Any:
        """Follow a piece down its axes to what the levels pick."""
        if piece not in self._pieces:
            raise TemplateError(f"there is no piece {piece!r}; expected one of {sorted(self._pieces)}")
        found = self._pieces[piece]
        while isinstance(found, Mapping) and "by" in found:
            axis = found["by"]
            level = levels.get(axis, "else")
            if level not in found and "else" not in found:
                raise TemplateError(f"the piece {piece!r} has no {axis} {level!r}")
            found = found.get(level, found.get("else"))
        return found

    def _text(self, piece: str, levels: Mapping[str, str], inside: tuple[str, ...]) -> str:
        if piece in inside:
            raise TemplateError(f"the pieces {[*inside, piece]} hold each other")
        found = self._pick(piece, levels)
        if not isinstance(found, str):
            raise TemplateError(f"the piece {piece!r} is {found!r}; expected a text")
        return self._filled(found, levels, (*inside, piece))

    def _filled(self, text: str, levels: Mapping[str, str], inside: tuple[str, ...]) -> str:
        """Put pieces in place of their names; fields and the end of a turn stay."""
        kept = {*self._pick("fields", levels), _REPLY}
        return _FIELD.sub(lambda m: m[0] if m[1] in kept else self._text(m[1], levels, inside), text)


def _check_fields(prompt: str, fields: Sequence[str]) -> None:
    found = _FIELD.findall(prompt)
    for name in fields:
        if found.count(name) != 1:
            raise TemplateError(f"the prompt has {{{name}}} {found.count(name)} times; expected once")


def _rewriting(levels: Mapping[str, str]) -> Callable[[str], str]:
    def rewrite(text: str) -> str:
        if not text:
            return text
        text = with_typos(text) if levels["typos"] == "some" else text
        text = light_punctuation(text) if levels["punctuation"] == "light" else text
        return in_tags(text) if levels["tags"] == "xml" else text

    return rewrite


def _read(path: Any) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TemplateError(f"{path} is not YAML: {error}") from error


def modes() -> list[str]:
    """Names of the modes that have templates."""
    files = (resources.files("elicit") / "wordings").iterdir()
    return sorted(name for file in files if (name := Path(file.name).stem) != "shared")


@cache
def templates(mode: str) -> Wordings:
    """Return all templates of a mode.

    Raises
    ------
    TemplateError
        The mode is unknown, or its wordings are not well formed.
    """
    if mode not in modes():
        raise TemplateError(f"There is no mode {mode!r}; expected one of {modes()}.")
    path = resources.files("elicit") / "wordings" / f"{mode}.yaml"
    return Wordings(_read(path), str(path.name))


def read_templates(path: str | Path) -> Wordings:
    """Read wordings of your own from a YAML file."""
    path = Path(path)
    if not path.exists():
        raise TemplateError(f"There is no file of wordings {path}.")
    return Wordings(_read(path), str(path))


@cache
def template(mode: str, name: str) -> Template:
    """Return the template of a mode by name, for instance `would_rather` or `would_rather,language=fr,labels=12`.

    Raises
    ------
    TemplateError
        The mode, an axis or a level is unknown, or the wording is not well formed.
    """
    return templates(mode).template(name)


def check_templates(wordings: Wordings) -> int:
    """Compose every template of a mode; returns how many there are.

    Raises
    ------
    TemplateError
        One is not well formed; the message names it.
    """
    count = 0
    for levels in itertools.product(*wordings.axes.values()):
        wordings.template(wordings.name(dict(zip(wordings.axes, levels, strict=True))))
        count += 1
    return count


def template_names(mode: str, axes: Sequence[str]) -> list[str]:
    """Names of all templates of a mode that differ on the given axes; the others stay at their defaults."""
    wordings = templates(mode)
    varied = {axis: wordings.axes[axis] for axis in axes}
    return [
        wordings.name(wordings.defaults | dict(zip(varied, levels, strict=True)))
        for levels in itertools.product(*varied.values())
    ]
