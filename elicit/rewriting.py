"""Rewritings of instructions: the same words with other punctuation, with typos, in XML tags. Fields stay as they are."""

import re

_WORDS_PER_TYPO = 4
_SWAPPABLE = re.compile(r"(?<![\w{<\"«/'\u2019])[^\W\d_]{5,}(?![\w}>\"»'\u2019])")
_FINAL_STOPS = re.compile(r"[ \u00a0]?[.?!:;]+(?=\s|$)|[¿¡]", re.MULTILINE)


def with_typos(text: str) -> str:
    """Swap two inner letters of every fourth word of five letters or more.

    Fields, tags and quoted words, which an answer may have to repeat, are spared. The same text always gets the same
    typos.
    """
    words = list(_SWAPPABLE.finditer(text))
    for word in words[::_WORDS_PER_TYPO][::-1]:
        at = word.start() + len(word[0]) // 2
        text = text[: at - 1] + text[at] + text[at - 1] + text[at + 1 :]
    return text


def light_punctuation(text: str) -> str:
    """Drop what ends a sentence or a line, and inverted marks."""
    return _FINAL_STOPS.sub("", text)


def in_tags(text: str) -> str:
    """Wrap an instruction in XML tags."""
    return f"<instructions>\n{text}\n</instructions>"
