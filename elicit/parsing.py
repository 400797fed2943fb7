"""Reading sampled text: which option it settles on, or why it settles on none. Doubt is never turned into a choice.

The text is cleaned of what is not said (thoughts, markup, list numbers, the wording of the scale). What is left is read
in the order of how plainly it answers: an answer in the format asked for, a conclusion ("so B", "I would pick B"), a
first or a last clause that is nothing but the answer. What none of these settles is left to a judge.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from store.records import Option, Outcome

_REFUSAL = re.compile(
    r"\bI(?:'m| am) (?:sorry|unable|not able|not going to)|(?<!what )\bI (?:can(?:no|')t|will not|won't|must decline|refuse|decline)\b"
    r"|\bI(?:'d| would) (?:rather|prefer) not\b|\bgoing to pass on\b|\bas an? (?:AI|language model)\b|\bI(?:'ll| will)? have to pass\b"
    r"|\bI (?:don't|do not) (?:have|experience|hold) [^.,;]*(?:preferences?|feelings?|states|opinions?)\b"
    r"|\bje (?:ne (?:peux|veux|souhaite) pas|suis désolée?|préfère (?:ne pas|m'abstenir))|\ben tant qu'IA\b"
    r"|\blo siento\b|\bno puedo\b|\bcomo IA\b|\bnão posso\b|\bnon posso\b|\bmi dispiace\b"
    r"|\bje préfère n(?:e|'en)\b|\bkann ich (?:\w+ )?nicht\b|\bich (?:kann|möchte|will)\b[^.,;]* nicht\b|\bes tut mir leid\b|抱歉|无法|不能",
    re.IGNORECASE,
)
# "on a scale of 1 to 5", "from 1 to 5", "between 1 and 5", "(1-10)", "4 out of 5", "4/5": numbers that are not the answer.
_SCALE = re.compile(
    r"\b(?:scale|from|between|range)\b[^.\n]{0,20}?-?\d+\s*(?:to|and|through|-|\u2013)\s*-?\d+|\(\s*-?\d+\s*[-\u2013]\s*\d+\s*\)"
    r"|(?<=\d)\s*(?:out of|/|sur|sobre|von)\s*\d+",
    re.IGNORECASE,
)
_THOUGHT = re.compile(r"<think(?:ing)?>.*?(?:</think(?:ing)?>|$)", re.DOTALL | re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>|</?tool_call>|```\w*")
_PROGRAM = re.compile(r"```(?!json|xml)\w+\n.*?(?:```|$)", re.DOTALL)
_LIST = re.compile(r"^[ \t]*\d+[.)][ \t]+(?=\S)", re.MULTILINE)
_CLAUSE_END = re.compile(r"\.{2,}|[.!?](?=\s|$)|[,;:\n\u2014]|\s-\s|\bbecause\b|\bsince\b|\bcar\b|\bweil\b|\bporque\b", re.IGNORECASE)
_FILLERS = frozenset(
    "a about actually an answer at choice clearly definitely der die du einfach el for honest honestly i'd i'll it it's its l'attività "
    "la le lieber maybe mine my number of one option perhaps please pick probably rating rather roughly say sans hésiter "
    "solid task tarea the to tâche un una une would um uh well wholly ok okay sure aufgabe erste go with choose is i that do "
    "be very really just thing think for me percentile percent place".split()
)
_CORRECTION = re.compile(
    r"\b(?:actually|wait|no|rather|instead|on second thoughts?|final(?:ly)?|on balance|on reflection|in the end|overall|in fact"
    r"|change|correction|so|therefore|hence|but|my answer)\b",
    re.IGNORECASE,
)
# What introduces an answer, in the languages of the templates and some others.
_CUE = (
    r"\b(?:so|therefore|hence|in fact|donc|also|así que|final(?: answer)?|this is|number|answer|choice|rating|verdict|result"
    r"|prefer(?:s|red)?|pick|choose|choosing|select|take|rate|go(?:ing)? (?:with|for)|picking|(?:settle|land) on|round(?:ing)? (?:up|down) to|opt(?:ing)? for|say|give(?: me)?"
    r"|make (?:that|it)|puts? (?:me|it|this|that)|place (?:it|this|that)|rather do|like to do|actually(?: no)?|wait"
    r"|i'?d be|i would be|i'?d feel|je (?:pr[ée]f[ée]r\w+|choisis|choisirais|prends|prendrais|dirais)(?: faire)?|elijo|escojo"
    r"|prefiero|prefer[ií]r[ií]a(?: hacer)?|dir[ií]a|w[äa]hle|nehme|w[üu]rde (?:lieber|sagen)|vorrei(?: fare)?|scelgo|preferirei)\b"
    r"|选择?|选|更想做|更喜欢"
)
_BETWEEN = (
    r"(?:\s*(?:\b(?:is|are|would be|be|it'?s|it is|that|to do|doing|the|to|at|(?-i:a)|an|do|as|with|for|number|task|option|label|answer"
    r"|la|le|el|die|der|das|l'|una?|tâche|tarea|aufgabe|attività|faire|hacer|fare|machen|this|it|definitely|probably|about|around)\b"
    r"|l'|任务|[:=\"'(\[,]))*\s*"
)
_NEGATED = re.compile(r"(?:\bnot|n't|\bnever|\bneither|\bnor|\bni|\bpas|\bnicht|\bno)\s+(?:\w+\s+){0,3}$", re.IGNORECASE)
_UNREAL = re.compile(r"\b(?:was going to|were going to|would have|might have|could have|'d have|if i|could)\s+(?:\w+\s+){0,2}$", re.IGNORECASE)
_DESPITE = re.compile(r"\bbut if I (?:had|have) to\b|\bif pressed\b|\bif forced\b", re.IGNORECASE)
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "zéro un deux trois quatre cinq six sept huit neuf dix",
    "cero uno dos tres cuatro cinco seis siete ocho nueve diez",
    "null eins zwei drei vier fünf sechs sieben acht neun zehn",
)
_FIRST = "first 1st première premier primera primero erste ersten former".split()
_SECOND = "second 2nd deuxième seconde second segunda segundo zweite zweiten latter".split()
_YES_NO = {"yes": "oui sí si ja sim yeah yep".split(), "no": "non nein não nope".split()}

_VALUE_OF_WORD = {word: value for words in _NUMBER_WORDS for value, word in enumerate(words.split())}
_MINUS = re.compile(rf"\b(?:minus|negative|moins|menos)\s+(\d+|{'|'.join(_VALUE_OF_WORD)})\b", re.IGNORECASE)


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
                if spelled not in ("one", "un", "uno", "six"):
                    strict.setdefault(spelled, str(number))
        ordinal = {form: label for label, forms in zip(labels, (_FIRST, _SECOND), strict=False) for form in forms}
        if len(labels) == 2 and not any(label.casefold() in loose for label in ("good", "bad")):
            strict |= {form: label for form, label in ordinal.items() if form not in strict}
            loose |= {form: label for form, label in ordinal.items() if form not in loose}
        for label, forms in _YES_NO.items():
            if label in labels:
                loose |= dict.fromkeys(forms, label)
        alternatives = "|".join((r"(?<!\ba )" if form in ("second", "seconde") else "") + re.escape(form) for form in sorted(strict, key=len, reverse=True))
        return cls(strict, loose, rf"(?<![\w.±-])[+]?(?P<form>{alternatives})(?:(?<=\d)(?:st|nd|rd|th))?(?![\w-]|\.\d|\s*(?:or|oder|ou|o)\s)")

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
    for words in _NUMBER_WORDS:
        yield from enumerate(words.split())
    for ten, word in enumerate(_TENS, start=2):
        yield ten * 10, word
        for unit, small in enumerate(_NUMBER_WORDS[0].split()[1:10], start=1):
            yield ten * 10 + unit, f"{word}-{small}"


def _clean(text: str) -> str:
    """The words that count as the reply, with one spelling of quotes, digits and minus signs."""
    text = unicodedata.normalize("NFKC", text)
    for old, new in (("\u2018", "'"), ("\u2019", "'"), ("\u201c", '"'), ("\u201d", '"'), ("\u2212", "-"), ("«", '"'), ("»", '"')):
        text = text.replace(old, new)
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
