"""What a server can do beyond answering, found out once by asking it: a handful of requests of one token each."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import log
from typing import Any

from elicit.endpoint_chat import Chat, RefusedRequest, Reply
from elicit.endpoint_server import EndpointError

_REPEAT = {"role": "user", "content": "Repeat these words in this order, and nothing else: alpha bravo charlie delta echo"}
_COUNT = {"role": "user", "content": "Count from 1 to 6, with a space between the numbers."}
_CONTINUATIONS: tuple[Mapping[str, bool], ...] = ({"continue_final_message": True, "add_generation_prompt": False}, {})
"""What makes a server go on with the last assistant turn: vLLM's and SGLang's fields, or nothing (llama.cpp, some hosts)."""
_TOKENIZERS = ("/tokenize", "/extras/tokenize")
"""Where vLLM and llama.cpp, and llama-cpp-python, tell the tokens of a text."""
FORCING = 100
"""Bias by which nothing but one token is said."""


@dataclass(frozen=True)
class Capabilities:
    """What a server can do.

    Attributes
    ----------
    top_k
        How many of the likeliest tokens it lists with their log-probabilities; 0 for none.
    template_options
        Whether it takes `chat_template_kwargs`, by which thinking is turned on and off.
    prefill
        Fields that make it go on with the last assistant turn; None if nothing does.
    spaces
        Whether a space at either end of such a turn is kept.
    tokenizer
        Where it tells the tokens of a text; None if nowhere.
    logit_bias
        Whether a token can be forced by a bias, and its own log-probability is told then.
    """

    top_k: int
    template_options: bool = False
    prefill: Mapping[str, bool] | None = field(default=None)
    spaces: bool = False
    tokenizer: str | None = None
    logit_bias: bool = False

    @property
    def log_probs(self) -> bool:
        """Whether it tells log-probabilities at all."""
        return self.top_k > 0

    def fields(self, *, thinking: bool = False, prefilled: bool = False, listed: bool = False) -> dict[str, Any]:
        """Fields of a request that say this to the server, as far as it understands them."""
        found: dict[str, Any] = {}
        if self.template_options:
            found["chat_template_kwargs"] = {"enable_thinking": thinking}
        if prefilled and self.prefill:
            found |= self.prefill
        if listed and self.top_k:
            found |= {"logprobs": True, "top_logprobs": self.top_k}
        return found


def find_capabilities(chat: Chat, top_logprobs: int, extra: Mapping[str, Any]) -> Capabilities:
    """Try what a server can do.

    Raises
    ------
    EndpointError
        It takes no request at all; the message says why.
    """
    found = _listing(chat, top_logprobs, extra)
    if chat.renders:
        found = replace(found, prefill={}, spaces=True)
    for fields in () if chat.renders else _CONTINUATIONS:
        tried = Capabilities(found.top_k, found.template_options, fields)
        if _goes_on(chat, tried, extra, _REPEAT, "alpha bravo charlie", "delta"):
            found = tried
            if _goes_on(chat, tried, extra, _COUNT, "1 2 3 ", "4", stripped=False):
                found = replace(tried, spaces=True)
            break
    tokenizer = next((route for route in _TOKENIZERS if token_id(chat, route, "Q") is not None), None)
    if tokenizer is None or not found.log_probs:
        return found
    forced = _forces(chat, found, extra, tokenizer)
    return replace(found, tokenizer=tokenizer, logit_bias=forced)


def token_id(chat: Chat, tokenizer: str, text: str) -> int | None:
    """Number of the token that a text is; None if it is several, or the server does not tell."""
    body = {"model": chat.server.model, "prompt": text, "content": text, "input": text, "add_special_tokens": False}
    values = chat.post(tokenizer, body)
    tokens = values.get("tokens") if isinstance(values, dict) else None
    return tokens[0] if isinstance(tokens, list) and len(tokens) == 1 and isinstance(tokens[0], int) else None


def _listing(chat: Chat, top_logprobs: int, extra: Mapping[str, Any]) -> Capabilities:
    """How many tokens it lists, and whether it takes options of the chat template."""
    refused = ""
    for top_k in (*dict.fromkeys(k for k in (top_logprobs, 20, 5) if k <= top_logprobs), 0):
        for template_options in (True, False):
            tried = Capabilities(top_k, template_options)
            try:
                reply = _ask(chat, [_REPEAT], tried.fields(listed=True), extra)
            except RefusedRequest as error:
                refused = str(error)
                continue
            return tried if reply.listing else Capabilities(0, template_options)
    raise EndpointError(f"{refused} Every simpler form of it was refused too.")


def _goes_on(
    chat: Chat,
    tried: Capabilities,
    extra: Mapping[str, Any],
    question: Mapping[str, str],
    prefill: str,
    expected: str,
    *,
    stripped: bool = True,
) -> bool:
    """Whether what comes after a prefilled turn is its continuation."""
    messages = [question, {"role": "assistant", "content": prefill}]
    try:
        reply = _ask(chat, messages, tried.fields(prefilled=True, listed=True), extra)
    except RefusedRequest:
        return False
    said = max(reply.listing.log_probs, key=reply.listing.log_probs.__getitem__) if reply.listing else reply.text
    said = said.strip().lower() if stripped else said
    return bool(said) and expected.startswith(said)


def _forces(chat: Chat, found: Capabilities, extra: Mapping[str, Any], tokenizer: str) -> bool:
    """Whether a biased token is said, with the log-probability that it has without the bias."""
    bias = {"logit_bias": {str(token_id(chat, tokenizer, "Q")): FORCING}}
    try:
        reply = _ask(chat, [_REPEAT], found.fields(listed=True) | bias, extra)
    except RefusedRequest:
        return False
    return reply.token == "Q" and reply.log_prob is not None and reply.log_prob < log(0.5)


def _ask(chat: Chat, messages: list[Mapping[str, str]], fields: Mapping[str, Any], extra: Mapping[str, Any]) -> Reply:
    return chat.complete(messages, max_tokens=1, extra={"temperature": 0, **fields, **extra})
