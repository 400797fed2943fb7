"""Reading sampled text: which option it settles on, or why it settles on none. Doubt is never turned into a choice.

The text is cleaned of what is not said (thoughts, markup, list numbers, the wording of the scale). What is left is read
in the order of how plainly it answers: an answer in the format asked for, a conclusion ("so B", "I would pick B"), a
first or a last clause that is nothing but the answer. What none of these settles is left to a judge.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

import yaml

from store.records import Option, Outcome

_PHRASES: Mapping[str, Any] = yaml.safe_load((resources.files("elicit") / "phrases.yaml").read_text(encoding="utf-8"))


def _words(name: str) -> list[str]:
    """A list of words; an underscore stands for the space in a group of them."""
    return [word.replace("_", " ") for word in _PHRASES[name].split()]


def _any(alternatives: Iterable[str]) -> str:
    return "|".join(alternatives)


_REFUSAL = re.compile(_any(_PHRASES["refusals"]), re.IGNORECASE)
_DESPITE = re.compile(_any(_PHRASES["despite"]), re.IGNORECASE)
_CUE = _any(_PHRASES["cues"])
_BETWEEN = rf"(?:\s*(?:\b(?:{_any(_words('between'))}|(?-i:a))\b|\bl'|任务|[:=\"'(\[,]))*\s*"
_CORRECTION = re.compile(rf"\b(?:{_any(_words('corrections'))})\b", re.IGNORECASE)
_UNREAL = re.compile(rf"(?:{_any(_words('unreal'))})\s+(?:\w+\s+){{0,2}}$", re.IGNORECASE)
_NEGATED = re.compile(rf"(?:{_any(_words('negations'))})\s+(?:\w+\s+){{0,3}}$", re.IGNORECASE)
_FILLERS = frozenset(_words("fillers"))
_VALUE_OF_WORD = {word: value for words in _PHRASES["numbers"] for value, word in enumerate(words.split())}
_MINUS = re.compile(rf"\b(?:minus|negative|moins|menos)\s+(\d+|{_any(_VALUE_OF_WORD)})\b", re.IGNORECASE)
# "on a scale of 1 to 5", "from 1 to 5", "between 1 and 5", "(1-10)", "4 out of 5", "4/5": numbers that are not the answer.
_SCALE = re.compile(
    r"\b(?:scale|from|between|range)\b[^.\n]{0,20}?-?\d+\s*(?:to|and|through|-|\u2013)\s*-?\d+"
    r"|\(\s*-?\d+\s*[-\u2013]\s*\d+\s*\)|(?<=\d)\s*(?:out of|/|sur|sobre|von)\s*\d+",
    re.IGNORECASE,
)
# The opening tag may stand in the prompt already, and the closing one may be missing where the text was cut off.
_THOUGHT = re.compile(
    r"(?:^(?:(?!<think).)*?</think(?:ing)?>|<think(?:ing)?>.*?(?:</think(?:ing)?>|$))", re.DOTALL | re.IGNORECASE
)
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?tool_call>|```\w*")
_PROGRAM = re.compile(r"```(?!json|xml)\w+\n.*?(?:```|$)", re.DOTALL)
_LIST = re.compile(r"^[ \t]*\d+[.)][ \t]+(?=\S)", re.MULTILINE)
_CLAUSE_END = re.compile(
    r"\.{2,}|[.!?](?=\s|$)|[,;:\n\u2014]|\s-\s|\bbecause\b|\bsince\b|\bcar\b|\bweil\b|\bporque\b", re.IGNORECASE
)
_QUOTES = str.maketrans("\u2018\u2019\u201c\u201d\u2212\u00ab\u00bb", '\'\'""-""')


def read_text(text: str, options: Sequence[Option], *, truncated: bool) -> tuple[Outcome, str | None]:
    """Outcome and chosen label of a sampled text.

    Parameters
    ----------
    options
        The allowed answers; with none, any text is an answer.
    truncated
        Whether the text was cut off by its token limit.
    """
    unfinished = Outcome.TRUNCATED if truncated else Outcome.OFF_FORMAT
    if not options:
        return (Outcome.TRUNCATED if truncated else Outcome.CHOSE), None
    if truncated and _may_go_on(text, options):
        return Outcome.TRUNCATED, None
    names = _Names.of(options)
    said = _clean(text)
    if label := names.exactly(said):
        return Outcome.CHOSE, label
    tagged = _tagged(said, names)
    if tagged:
        return (Outcome.CHOSE, tagged.label) if tagged.settled else (unfinished, None)
    plain = _LIST.sub("", said) if len(_LIST.findall(said)) > 1 else said
    plain = _SCALE.sub(" ", re.sub(r"\([^()]*\)|[*_`\"()\[\]]", "", plain) or plain)
    concluded = _last(_conclusions(plain, names), plain)
    first, last = _first_clause(plain, names), _last_clause(plain, names, truncated)
    if _REFUSAL.search(plain) and concluded is None and not (last and _DESPITE.search(plain)):
        return Outcome.REFUSED, None
    if concluded is not None and not concluded.settled:
        return unfinished, None
    if concluded is not None:
        # Where the first clause answers, a later conclusion counts only if something takes the first one back.
        opening = len(_clauses(plain)[0][0]) if first else 0
        taken_back = first in (None, concluded.label) or _CORRECTION.search(plain[opening : concluded.start])
        return Outcome.CHOSE, concluded.label if taken_back else first
    candidates = {label for label in (first, last) if label}
    if len(candidates) == 1:
        return Outcome.CHOSE, candidates.pop()
    if len(candidates) == 2 and last and _CORRECTION.search(plain):
        return Outcome.CHOSE, last
    return unfinished, None


def _may_go_on(text: str, options: Sequence[Option]) -> bool:
    """Whether a text stops within a number that could still become another option: 1 of 10."""
    number = re.search(r"-?\d+$", text)
    return number is not None and any(option.label != number[0] and option.label.startswith(number[0]) for option in options)


def split_thought(text: str) -> tuple[str, str]:
    """What was thought, without its tags, and what was said."""
    thoughts = [re.sub(r"</?think(?:ing)?>", "", match[0], flags=re.IGNORECASE).strip() for match in _THOUGHT.finditer(text)]
    return "\n\n".join(filter(None, thoughts)), _THOUGHT.sub(" ", text).strip() if thoughts else text


@dataclass(frozen=True)
class _Found:
    """An answer found in a text, and where; unsettled where several contradict each other."""

    label: str
    start: int
    settled: bool = True


@dataclass(frozen=True)
class _Names:
    """What the options are called: `strict` wherever an answer is expected, `loose` only where nothing else is said."""

    strict: Mapping[str, str]
    loose: Mapping[str, str]
    pattern: str

    @classmethod
    def of(cls, options: Sequence[Option]) -> "_Names":
        strict = {form.strip(): option.label for option in options for form in option.forms}
        loose = {form.casefold(): label for form, label in strict.items()}
        labels = [option.label for option in options]
        for number, spelled in _number_words():
            if str(number) in labels:
                loose.setdefault(spelled, str(number))
                if spelled not in _words("number_homonyms"):
                    strict.setdefault(spelled, str(number))
        ordinal = {form: label for label, order in zip(labels, ("first", "second"), strict=False) for form in _words(order)}
        if {label.casefold() for label in labels} in ({"a", "b"}, {"1", "2"}, set(_words("first")[:1] + _words("second")[:1])):
            strict |= {form: label for form, label in ordinal.items() if form not in strict}
            loose |= {form: label for form, label in ordinal.items() if form not in loose}
        for label in ("yes", "no"):
            if label in labels:
                loose |= dict.fromkeys(_words(label), label)
        forms = sorted(map(re.escape, strict), key=len, reverse=True)
        alternatives = _any(rf"(?<!\ba ){form}" if form in ("second", "seconde") else form for form in forms)
        form = rf"(?<![\w.±-])[+]?(?P<form>{alternatives})"
        return cls(strict, loose, rf"{form}(?:(?<=\d)(?:st|nd|rd|th))?(?![\w-]|\.\d|\s*(?:or|oder|ou|o)\s)")

    def exactly(self, text: str) -> str | None:
        """The option that a text names, if it says nothing else."""
        bare = text.strip().strip("\"'*_`.:()[]!,;?% \n\t").casefold()
        return self.loose.get(bare) or self.loose.get(re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", bare.removeprefix("+")))

    def in_clause(self, clause: str) -> str | None:
        """The option that a clause names, if the rest of it is mere filling."""
        if label := self.exactly(clause):
            return label
        words = [word.strip("\"'*_`.:()[]!? \n\t").casefold() for word in clause.split()]
        words = [word for word in words if any(character.isalnum() for character in word) or word in self.loose]
        named = [word for word in words if self.exactly(word) and not (word in _FILLERS and len(words) > 1)]
        if not named:
            named = [word for word in words[1:] if self.exactly(word)]  # "option a"
        rest = [word for word in words if word not in named]
        if len({self.exactly(word) for word in named}) == 1 and all(word in _FILLERS for word in rest):
            return self.exactly(named[0])
        return None


def _number_words() -> Iterable[tuple[int, str]]:
    for words in _PHRASES["numbers"]:
        yield from enumerate(words.split())
    for ten, word in enumerate(_words("tens"), start=2):
        yield ten * 10, word
        for unit, small in enumerate(_PHRASES["numbers"][0].split()[1:10], start=1):
            yield ten * 10 + unit, f"{word}-{small}"


def _clean(text: str) -> str:
    """The words that count as the reply, with one spelling of quotes, digits and minus signs."""
    text = unicodedata.normalize("NFKC", text).translate(_QUOTES)
    text = _SPECIAL_TOKEN.sub(" ", _PROGRAM.sub(" ", _THOUGHT.sub(" ", text)))
    text = re.sub(r"(?<=[\u3040-\u9fff])(?=[A-Za-z0-9])|[\ufe0f\u20e3#]", " ", text)
    return _MINUS.sub(lambda match: f"-{_VALUE_OF_WORD.get(match[1].casefold(), match[1])}", text).strip()


def _tagged(text: str, names: _Names) -> _Found | None:
    """An answer between tags, in JSON, or as the argument of a call; the last, where the text says that it counts."""
    form = rf"\s*[\"']?\s*(?:(?:task|option)\s+)?{names.pattern}\s*[\"']?\s*"
    key = r"[\"'](?:task|answer|choice|label|option|rating|value|fruit|word)[\"']\s*:"
    shapes = (
        rf"<(?P<tag>\w+)>{form}(?=</|$|\n)",
        rf"^{form}</\w+>",
        rf"{key}{form}(?=[,}}]|$)",
        rf"\b\w+\((?:\w+\s*=)?{form}\)",
        rf"\[x\]{form}",
    )
    flags = re.IGNORECASE
    found = [
        _Found(label, match.start("form"))
        for shape in shapes
        for match in re.finditer(shape, text, flags)
        if (label := names.exactly(match["form"]))
    ]
    return _last(sorted(found, key=lambda each: each.start), text)


def _conclusions(text: str, names: _Names) -> list[_Found]:
    """Answers that the text introduces as such."""
    found = []
    for match in re.finditer(rf"(?i:(?P<cue>{_CUE}){_BETWEEN}){names.pattern}", text):
        before = text[: match.start()]
        if not (_NEGATED.search(before) or _UNREAL.search(before)):
            found.append(_Found(names.strict[match["form"]], match.start("form")))
    for match in re.finditer(rf"{names.pattern}(?i:\s+(?:it is|is (?:my|nearer|closer|the one)))\b", text):
        if not _NEGATED.search(text[: match.start()]):
            found.append(_Found(names.strict[match["form"]], match.start()))
    return sorted(found, key=lambda each: each.start)


def _last(found: Sequence[_Found], text: str) -> _Found | None:
    """The last answer; unsettled if another came before it and nothing between takes that back."""
    if not found:
        return None
    last = found[-1]
    others = [each for each in found if each.label != last.label]
    settled = not others or bool(_CORRECTION.search(text[others[-1].start + 1 : last.start]))
    return _Found(last.label, last.start, settled)


def _first_clause(text: str, names: _Names) -> str | None:
    """The answer that a text opens with, unless it goes on to list others or to ask."""
    clauses = _clauses(text)
    if not clauses or clauses[0][1] in ("?", ":"):  # a colon: the task is repeated
        return None
    label = names.in_clause(clauses[0][0])
    others = {names.exactly(clause) for clause, _ in clauses[1:]} - {None, label}
    listed = names.exactly(clauses[0][0]) and clauses[0][1] == "," and others
    return None if listed else label


def _last_clause(text: str, names: _Names, truncated: bool) -> str | None:
    """The answer that a finished text closes with, unless others stand right before it."""
    clauses = _clauses(text)
    if truncated or len(clauses) < 2 or clauses[-1][1] == "?":
        return None
    label = names.in_clause(clauses[-1][0])
    before = names.exactly(clauses[-2][0])
    return None if before and before != label and clauses[-2][1] == "," else label


def _clauses(text: str) -> list[tuple[str, str]]:
    """Clauses that hold a word or a sign, each with what ends it."""
    found, last = [], 0
    for match in _CLAUSE_END.finditer(text):
        found.append((text[last : match.start()], match[0]))
        last = match.end()
    found.append((text[last:], ""))
    return [(clause, end) for clause, end in found if clause.strip(" \n\t*_\"'")]
