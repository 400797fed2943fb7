"""From text to tokens: exactly one BOS, special tokens only where the template wrote them, exact continuations."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int
from tokenizers import AddedToken, Tokenizer

from store.provenance import digest

TokenIds = Int[np.ndarray, " tokens"]
Offsets = Int[np.ndarray, "tokens 2"]
CharacterRange = tuple[int, int]

_TAIL_CHARACTERS = 24
_CACHED_CONTINUATIONS = 65_536


class Tokens:
    """Tokenises rendered prompts for one transformers tokenizer.

    Ordinary text gets the tokens of the whole rendered string. Where a content holds the name of a special token, the
    prompt is tokenised by a twin of the tokenizer that knows its special tokens by private aliases, so that only the
    template's own are recognised. Special are the tokens so marked, and unmarked added tokens that the chat template
    writes (`<think>`); other added tokens (runs of newlines, say) are ordinary text.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    template
        Its chat template.

    Raises
    ------
    ValueError
        The tokenizer has no Rust backend, so characters cannot be mapped to tokens.
    """

    def __init__(self, tokenizer: Any, template: str) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise ValueError(
                f"{type(tokenizer).__name__} has no Rust backend, so characters cannot be mapped to tokens. "
                "Load a tokenizer with a tokenizer.json."
            )
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self.special = {
            token.content: token_id
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token.special or (token.content.strip() and token.content in template)
        }
        self.special_ids = np.array(sorted(self.special.values()), dtype=np.int64)
        names = sorted(self.special, key=len, reverse=True)
        self._special_name = re.compile("|".join(map(re.escape, names)) if names else "(?!)")
        self.digest = digest("tokenizer", self._backend.to_str())
        """Digest of the vocabulary, merges, normalisation and special tokens."""
        self._alias_start = f"\ue000{self.digest}"  # a private-use character and what no task would hold by chance
        self._aliases = {name: f"{self._alias_start}:{number}\uf8ff" for number, name in enumerate(names)}
        self._twin, self._twin_ids = _alias_special_tokens(self._backend, self._aliases)
        self._bos: int | None = tokenizer.bos_token_id
        with_bos = tokenizer("a", add_special_tokens=True)["input_ids"]
        self.adds_bos = self._bos is not None and bool(with_bos) and with_bos[0] == self._bos
        self._cached_continuation = lru_cache(_CACHED_CONTINUATIONS)(self._continuation)

    def special_at_start(self, text: str) -> int | None:
        """Return the special token that `text` begins with, if it begins with one."""
        match = self._special_name.match(text)
        return self.special[match.group()] if match else None

    def encode(self, text: str, contents: Sequence[CharacterRange]) -> tuple[TokenIds, Offsets]:
        """Tokenise a rendered prompt whose contents (as against template text) stand at the given character ranges.

        Raises
        ------
        ValueError
            A content would yield a special token whatever is done.
        """
        fakes = [match.span() for start, end in contents for match in self._special_name.finditer(text, start, end)]
        ids, offsets = self._encode_inert(text, contents) if fakes else _encode(self._backend, text)
        for start, end in fakes:
            inside = (offsets[:, 0] < end) & (offsets[:, 1] > start)
            if np.isin(ids[inside], self.special_ids).any():
                raise ValueError(
                    f"This tokenizer turns the task text {text[start:end]!r} into a special token and offers no way to "
                    "keep it plain; remove it from the task."
                )
        return self._with_one_bos(ids, offsets)

    def continuation(self, prompt: str, text: str, *, inert: bool = False) -> tuple[int, ...]:
        """Tokens of `text` where it continues the rendered `prompt`, whose own tokens stay as they are.

        Parameters
        ----------
        inert
            The text was written by a model: names of special tokens in it are plain characters.

        Raises
        ------
        ValueError
            The text has no tokens.
        """
        tail = prompt[-_TAIL_CHARACTERS:]
        return self._continuation(tail, text, True) if inert else self._cached_continuation(tail, text)

    def _with_one_bos(self, ids: TokenIds, offsets: Offsets) -> tuple[TokenIds, Offsets]:
        if self._bos is not None and len(ids) > 1 and ids[0] == ids[1] == self._bos:
            return ids[1:], offsets[1:]
        if self._bos is not None and self.adds_bos and (not len(ids) or ids[0] != self._bos):
            return np.insert(ids, 0, self._bos), np.insert(offsets, 0, (0, 0), axis=0)
        return ids, offsets

    def _encode_inert(self, text: str, contents: Sequence[CharacterRange]) -> tuple[TokenIds, Offsets]:
        if self._alias_start in text:
            raise ValueError(
                f"The prompt holds both a special token's name and {self._alias_start!r}, which stands for special tokens "
                "here; remove either from the task."
            )
        pieces: list[str] = []
        origin: list[int] = []  # for every character of the aliased text, its place in `text`
        last = 0
        for match in self._special_name.finditer(text):
            if any(match.start() < end and match.end() > start for start, end in contents):
                continue
            alias = self._aliases[match.group()]
            pieces += [text[last : match.start()], alias]
            origin += [*range(last, match.start()), *([match.start()] * len(alias))]
            last = match.end()
        pieces.append(text[last:])
        origin += range(last, len(text) + 1)
        ids, offsets = _encode(self._twin, "".join(pieces))
        return np.array([self._twin_ids.get(int(each), int(each)) for each in ids]), np.array(origin)[offsets]

    def _continuation(self, tail: str, text: str, inert: bool = False) -> tuple[int, ...]:
        # If the text would merge with the prompt's last token, take its tokens after characters it does not merge with.
        for anchor in (tail, "\n", "a", ""):
            before = self._plain_ids(anchor)
            if inert and self._special_name.search(text):
                both = self._encode_inert(anchor + text, [(len(anchor), len(anchor) + len(text))])[0].tolist()
            else:
                both = self._plain_ids(anchor + text)
            if both[: len(before)] == before and len(both) > len(before):
                return tuple(both[len(before) :])
        raise ValueError(f"The text {text!r} has no tokens; expected something to score, to prefill or to read.")

    def _plain_ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids


def _encode(backend: Tokenizer, text: str) -> tuple[TokenIds, Offsets]:
    encoding = backend.encode(text, add_special_tokens=False)
    return np.array(encoding.ids, dtype=np.int64), np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _alias_special_tokens(backend: Tokenizer, aliases: dict[str, str]) -> tuple[Tokenizer, dict[int, int]]:
    """Build a twin of `backend` that knows special tokens by their aliases, and the way back to the original ids."""
    state = json.loads(backend.to_str())
    added, state["added_tokens"], state["post_processor"] = state["added_tokens"], [], None
    twin = Tokenizer.from_str(json.dumps(state))
    ids = {}
    for token in added:
        name = str(aliases.get(token["content"], token["content"]))
        flags = {flag: token[flag] for flag in ("single_word", "lstrip", "rstrip")}
        twin.add_tokens([AddedToken(name, normalized=token["normalized"] and name == token["content"], **flags)])
        ids[twin.token_to_id(name)] = token["id"]
    return twin, ids
