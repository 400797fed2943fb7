"""Reading sampled text: which option it settles on, or why it settles on none. Doubt is never turned into a choice."""

import re
from collections.abc import Sequence

from store.records import Option, Outcome

_REFUSAL = re.compile(
    r"\b(?:I(?:['\u2019]m| am) (?:sorry|unable|not able)|I (?:can(?:no|['\u2019])t|will not|won['\u2019]t|must decline|refuse)"
    r"|I(?:['\u2019]d| would) rather not|as an AI)\b",
    re.IGNORECASE,
)
# "on a scale of 1 to 5", "from 1 to 5", "between 1 and 5", "(1-10)", "4 out of 5", "4/5": numbers that are not the answer.
_SCALE = re.compile(
    r"\b(?:scale|from|between|range)\b[^.\n]{0,20}?-?\d+\s*(?:to|and|through|-|\u2013)\s*-?\d+|\(\s*-?\d+\s*[-\u2013]\s*\d+\s*\)"
    r"|(?<=\d)\s*(?:out of|/)\s*\d+",
    re.IGNORECASE,
)
_INTRODUCED = r"(?:task|option|answer|choice|choose|pick|prefer|rating|rate|say)(?:\s*(?:is|would be|:))*\s*[\"'\u201c(*]*"


def read_text(text: str, options: Sequence[Option], *, truncated: bool) -> tuple[Outcome, str | None]:
    """Outcome and chosen label of a sampled text.

    An answer that begins with exactly one option counts; otherwise, an option introduced as the answer ("I would pick
    task B", "rating: 4"). Two different options, a number off the scale, or a letter that may be a mere word do not.

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
    if _REFUSAL.search(text):
        return Outcome.REFUSED, None
    bare = _SCALE.sub(" ", text).strip().strip("\"'\u201c\u201d*_`.:()[] \n\t")
    forms = {form.strip(): option.label for option in options for form in option.forms}
    for form, label in forms.items():
        if bare.casefold() == form.casefold():
            return Outcome.CHOSE, label
    alternatives = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    whole = rf"(?<![\w.-])(?P<form>{alternatives})(?![\w-]|\.\d)"
    begins = re.match(rf"{whole}(?=\s*[).:,;!*\"'\n\u201d]|\s*$|\s+(?:because|since|as)\b)", bare)
    introduced = {forms[match["form"]] for match in re.finditer(rf"(?i:{_INTRODUCED}){whole}", bare)}
    named = introduced | ({forms[begins["form"]]} if begins else set())
    if len(named) == 1:
        return Outcome.CHOSE, named.pop()
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w])", bare)
    if not named and len(numbers) == 1 and numbers[0] in forms:
        return Outcome.CHOSE, forms[numbers[0]]
    return unfinished, None
