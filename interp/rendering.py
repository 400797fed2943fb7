"""From a Question to what the model reads: chat template, system prompt, prefill, and where the spans are.

The chat template is rendered once per conversation shape with placeholders for contents; contents are then put in
verbatim. Template logic therefore never sees a task's text, and the place of every content is known, not searched for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from jinja2 import TemplateError

from interp.tokens import Tokens
from store.provenance import digest
from store.records import Question

_PAD = "\u2003"  # white space that no template writes: shows whether a template trims its contents
_PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\\n\\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\\n\\n' }}"
    "{% else %}{{ 'Assistant: ' + message['content'] + '\\n\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For models without a chat template."""
COMPLETION = "completion"
"""Name of the span that a completion becomes."""


@dataclass(frozen=True, eq=False)
class Rendered:
    """A Question as the model reads it, and perhaps an answer given to it.

    Attributes
    ----------
    text
        All of it, prefill and completion included.
    token_ids
        Its tokens.
    n_prompt
        Number of tokens before the prefill.
    content
        True for ordinary tokens; False for special tokens and for the first token, which serves as attention sink.
    spans
        Token range `start, end` of every named span.
    turns
        Token range of the content of every message.
    end_of_turn
        Index of the token that ends the last message, if the chat template writes one.
    n_completion
        Number of tokens of the completion, which come last.
    system
        How the system prompt got in: `template default`, `system turn`, `first user turn` or `none`.
    """

    text: str
    token_ids: Int[np.ndarray, " tokens"]
    n_prompt: int
    content: Bool[np.ndarray, " tokens"]
    spans: Mapping[str, tuple[int, int]]
    turns: tuple[tuple[int, int], ...]
    end_of_turn: int | None
    n_completion: int
    system: str

    @property
    def decision(self) -> int:
        """Index of the decision token: its output is the first answer token."""
        return len(self.token_ids) - self.n_completion - 1


@dataclass(frozen=True)
class _Skeleton:
    """A rendered conversation shape: the literals around the contents, and the sides on which each content is trimmed."""

    literals: tuple[str, ...]  # one more than there are contents
    trims: tuple[tuple[bool, bool], ...]
    system: str


class Renderer:
    """Renders Questions for one tokenizer and its chat template.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer with a Rust backend. Without a chat template, `User:` and `Assistant:` are written.
    eos_token_ids
        Tokens that end a turn according to the model's generation settings.
    """

    def __init__(self, tokenizer: Any, eos_token_ids: tuple[int, ...] = ()) -> None:
        self.has_chat_template = bool(tokenizer.chat_template)
        template = tokenizer.chat_template or _PLAIN_TEMPLATE
        self._template: str = template if isinstance(template, str) else dict(template)["default"]
        self.tokens = Tokens(tokenizer, self._template)
        self._tokenizer = tokenizer
        self._skeleton = lru_cache(maxsize=None)(self._build_skeleton)
        self.end_of_turn_ids = tuple(dict.fromkeys((*self._template_end_of_turn(), *eos_token_ids)))

    @property
    def template_hash(self) -> str:
        """Digest of the chat template."""
        return digest("template", self._template)

    @property
    def knows_thinking(self) -> bool:
        """Whether the chat template can turn thinking on and off."""
        return "enable_thinking" in self._template

    @property
    def system_role(self) -> str:
        """Where this template puts a system prompt: `system turn` or `first user turn`."""
        return self._skeleton(("user",), True, False).system

    def render(self, question: Question, completion: str | None = None) -> Rendered:
        """Render a Question, and an answer given to it, and locate its spans.

        Parameters
        ----------
        completion
            What the respondent said after prompt and prefill; its tokens become the span `completion`. Like a task, it is
            text: the name of a special token inside it becomes plain characters.

        Raises
        ------
        ValueError
            A span or the completion holds no token.
        """
        contents = [message.content for message in question.messages]
        roles = tuple(message.role for message in question.messages)
        system = question.system
        if system == "" and (self.system_role == "first user turn" or not self.has_chat_template):
            has_system, placed = False, "none"
        else:
            has_system = system is not None
            placed = self.system_role if has_system else "template default"
        skeleton = self._skeleton(roles, has_system, question.thinking)
        if has_system:
            contents.insert(0, system or "")
        text = skeleton.literals[0]
        ranges: list[tuple[int, int]] = []
        dropped: list[int] = []
        for content, literal, trim in zip(contents, skeleton.literals[1:], skeleton.trims, strict=True):
            kept = content.lstrip() if trim[0] else content
            dropped.append(len(content) - len(kept))
            kept = kept.rstrip() if trim[1] else kept
            ranges.append((len(text), len(text) + len(kept)))
            text += kept + literal
        token_ids, offsets = self.tokens.encode(text, ranges)
        spans = {}
        for span in question.spans:
            number = span.message + has_system
            first, last = ranges[number]
            shift = first - dropped[number]
            start, end = max(first, shift + span.start), min(last, shift + span.end)
            found = _tokens_between(offsets, start, end)
            if found[0] == found[1]:
                raise ValueError(
                    f"Span {span.name!r} holds no token: characters {span.start}:{span.end} of message {span.message} "
                    "are white space that the chat template drops. Give the task some text."
                )
            spans[span.name] = found
        after = np.flatnonzero(np.isin(token_ids, self.end_of_turn_ids) & (offsets[:, 0] >= ranges[-1][1]))
        prompt, text = text, text + question.prefill
        added = list(self.tokens.continuation(prompt, question.prefill)) if question.prefill else []
        n_asked = len(token_ids) + len(added)
        if completion is not None:
            if COMPLETION in spans:
                raise ValueError(f"The question has a span {COMPLETION!r} of its own; rename it to read a completion too.")
            added += self.tokens.continuation(text, completion, inert=True)
            text += completion
            spans[COMPLETION] = (n_asked, len(token_ids) + len(added))
        all_ids = np.concatenate([token_ids, np.array(added, dtype=np.int64)])
        content_mask = ~np.isin(all_ids, self.tokens.special_ids)
        content_mask[0] = False
        return Rendered(
            text,
            all_ids,
            len(token_ids),
            content_mask,
            spans,
            turns=tuple(_tokens_between(offsets, *ends) for ends in ranges[has_system:]),
            end_of_turn=int(after[0]) if len(after) else None,
            n_completion=len(all_ids) - n_asked,
            system=placed,
        )

    def decode(self, token_ids: Sequence[int], *, special: bool = False) -> str:
        """Text of tokens, with or without the special ones."""
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=not special)

    def _build_skeleton(self, roles: tuple[str, ...], has_system: bool, thinking: bool) -> _Skeleton:
        bare = self._cut(roles, thinking)
        if not has_system:
            return bare
        try:
            full = self._cut(("system", *roles), thinking)
        except (TemplateError, ValueError):
            # No system role: the system prompt opens the first user turn, set off by an empty line.
            literals = (bare.literals[0], "\n\n", *bare.literals[1:])
            return _Skeleton(literals, ((False, False), *bare.trims), "first user turn")
        # Some templates take a system message and write it where the first user turn begins.
        in_user_turn = self.has_chat_template and full.literals[0] == bare.literals[0]
        return _Skeleton(full.literals, full.trims, "first user turn" if in_user_turn else "system turn")

    def _cut(self, roles: tuple[str, ...], thinking: bool) -> _Skeleton:
        """Render placeholders in the given roles and cut the text at them."""
        marks = [f"\ue000{number}\ue001" for number in range(len(roles))]
        text = self._apply(
            [{"role": role, "content": _PAD + mark + _PAD} for role, mark in zip(roles, marks, strict=True)],
            thinking=thinking,
            add_generation_prompt=True,
        )
        literals: list[str] = []
        trims: list[tuple[bool, bool]] = []
        for mark in marks:
            if text.count(mark) != 1:
                raise ValueError(
                    f"The chat template writes message {len(literals)} of a chat with roles {list(roles)} "
                    f"{text.count(mark)} times; expected once."
                )
            before, text = text.split(mark)
            trims.append((not before.endswith(_PAD), not text.startswith(_PAD)))
            literals.append(before.removesuffix(_PAD))
            text = text.removeprefix(_PAD)
        return _Skeleton((*literals, text), tuple(trims), "template default")

    def _apply(self, messages: list[dict[str, str]], thinking: bool, add_generation_prompt: bool) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **({"enable_thinking": thinking} if self.knows_thinking else {}),
        )

    def _template_end_of_turn(self) -> tuple[int, ...]:
        """Special token that the template writes after an assistant turn, if it writes one."""
        mark = "\ue000turn\ue001"
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
        text = self._apply(messages, thinking=False, add_generation_prompt=False)
        token_id = self.tokens.special_at_start(text.split(mark)[-1].lstrip())
        return () if token_id is None else (token_id,)


def _tokens_between(offsets: Int[np.ndarray, "tokens 2"], start: int, end: int) -> tuple[int, int]:
    """Range of the tokens that hold any of the characters `start:end`."""
    inside = np.flatnonzero((offsets[:, 0] < end) & (offsets[:, 1] > start)) if start < end else np.empty(0, dtype=int)
    return (int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0)
