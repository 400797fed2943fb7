"""One request to a server that speaks OpenAI's chat completions, and what may come back: a reply, or a failure with a name."""

import json
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from elicit.endpoint_limits import Budget, Pace, TryAgain, persist, retry_after
from elicit.endpoint_scoring import Listing
from elicit.endpoint_server import EndpointError, Server

_BYTES_PER_TOKEN = 3
"""Fewer than English has, so that a budget is rather kept than passed."""
_FATAL = {401: "refuses the key", 402: "asks for payment", 403: "does not allow this"}


def most_tokens(messages: Sequence[Mapping[str, str]]) -> int:
    """Tokens of a chat whose tokenizer is not known, rather too many."""
    return sum(len(message["content"].encode()) // _BYTES_PER_TOKEN + 8 for message in messages)


class RefusedRequest(Exception):
    """The server does not take this one request (too long, an option that it does not know)."""


@dataclass(frozen=True)
class Reply:
    """What came back.

    Attributes
    ----------
    text
        What was said.
    truncated
        Whether it stopped at the token limit.
    listing
        Likeliest first tokens, where the server tells them.
    token, log_prob
        The first token said, and its natural-log probability, where the server tells them.
    collided
        Whether several tokens of one text were listed by text, so that the list was lost; a shorter one may be whole.
    """

    text: str
    truncated: bool
    listing: Listing | None = None
    token: str | None = None
    log_prob: float | None = None
    collided: bool = False


class Chat:
    """The way to a server: `complete` for one chat completion, within budget and pace, tried again where that may help."""

    renders = False
    """Whether prompts are written here, so that an answer can always be begun."""

    def __init__(self, server: Server, budget: Budget, *, retries: int, timeout: float) -> None:
        self.server, self.budget, self.pace = server, budget, Pace()
        self._retries, self._timeout = retries, timeout
        self._lock = threading.Lock()
        self._client: Any = None
        self._reached = False

    def complete(self, messages: Sequence[Mapping[str, str]], *, max_tokens: int, extra: Mapping[str, Any]) -> Reply:
        """Ask for one completion.

        Parameters
        ----------
        extra
            Further fields of the request, OpenAI's or the server's own.

        Raises
        ------
        EndpointError
            The server cannot be reached, or will not be asked: wrong key, wrong model, no funds.
        RefusedRequest
            The server does not take this request.
        TryAgain
            It failed to the last try: overload, time-out, or a reply that is not what was asked for.
        BudgetReached
            It could pass the budget; it was not made.
        """
        read = most_tokens(messages)

        def once() -> Reply:
            self.pace.wait()
            with self.budget.reserved(read, max_tokens) as bill:
                with self._failures_named() as client:
                    response, n_tokens = self._send(client, messages, max_tokens, extra)
                self.pace.hear(response.headers)
                values = self._completion(response)
                self._reached = True
                try:
                    usage = values.get("usage") or {}
                    bill.read = int(usage.get("prompt_tokens", bill.read))
                    if n_tokens is not None:
                        self._check_read(usage.get("prompt_tokens"), n_tokens)
                    bill.written = int(usage.get("completion_tokens", bill.written))
                    return _reply(values)
                except (KeyError, IndexError, TypeError, AttributeError) as error:
                    raise TryAgain(f"{self.server.address} answered with a malformed completion ({error!r})") from None

        return persist(once, self._retries, self.pace)

    def _send(
        self, client: Any, messages: Sequence[Mapping[str, str]], max_tokens: int, extra: Mapping[str, Any]
    ) -> tuple[Any, int | None]:
        """Make the request; returns the response, and the number of tokens in the prompt where it is known."""
        create = client.chat.completions.with_raw_response.create
        return create(model=self.server.model, messages=list(messages), max_tokens=max_tokens, extra_body=dict(extra)), None

    def _check_read(self, read: int | None, written: int) -> None:
        if read and read != written:  # not every server counts
            raise EndpointError(
                f"{self.server.address} reads {read} tokens in a prompt that has {written} with the given tokenizer. Expected "
                f"the tokenizer of {self.server.model!r}; one token more or less may be a BOS."
            )

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """Ask for something that is not OpenAI's, at a path below the server's root; None if the server does not have it."""
        try:
            with self._failures_named() as client:
                return client.post(self.server.root + path, body=dict(body), cast_to=object)
        except (EndpointError, RefusedRequest, TryAgain, ValueError):
            return None

    @contextmanager
    def _failures_named(self) -> Iterator[Any]:
        """The client, whose failures become those of this module."""
        openai, server = import_openai(), self.server
        try:
            yield self._connected()
        except openai.APITimeoutError:
            raise TryAgain(f"{server.address} did not answer within {self._timeout:g} s") from None
        except openai.APIConnectionError as error:
            cause = server.scrubbed(str(error.__cause__ or error))
            message = f"{server.address} cannot be reached ({cause}). Is the server running, and base_url right?"
            # One that was there may come back; one that never was is an error at once.
            raise (_Gone if self._reached else EndpointError)(message) from None
        except openai.APIStatusError as error:
            raise self._failure(error.status_code, error.response) from None

    def _failure(self, status: int, response: Any) -> Exception:
        """What a status other than 200 means."""
        server, said = self.server, self._said(response)
        if status in _FATAL:
            way = f"the variable {server.api_key_env} holds it" if server.api_key_env else "no api_key_env was given"
            return EndpointError(f"{server.address} {_FATAL[status]} ({status}; {way}): {said}")
        if status == 404 or (
            status == 400 and re.search(r"\bmodel\b.*\b(not|no|unknown|invalid)\b|not a valid model", said, re.I)
        ):
            return EndpointError(
                f"{server.address} has no model {server.model!r}, or is not where chat completions are served ({status}): "
                f"{said} Check the model's name and base_url, which usually ends in /v1."
            )
        if status == 429 and "insufficient_quota" in said:
            return EndpointError(f"{server.address} has no funds left for this key ({status}): {said}")
        if status in (408, 409, 425, 429) or status >= 500:
            return TryAgain(f"{server.address} answered {status}: {said}", retry_after(response.headers))
        return RefusedRequest(f"{server.address} does not take this request ({status}): {said}")

    def _said(self, response: Any) -> str:
        """A server's own words about a failure."""
        if "html" in response.headers.get("content-type", ""):
            title = re.search(r"<title>(.*?)</title>", response.text, re.IGNORECASE | re.DOTALL)
            return self.server.scrubbed(f"an HTML page{f', {title[1]!r}' if title else ''}.")
        try:
            values = response.json()
        except ValueError:
            return self.server.scrubbed(response.text)
        error = values.get("error", values) if isinstance(values, dict) else values
        return self.server.scrubbed(str(error.get("message", error) if isinstance(error, dict) else error))

    def _completion(self, response: Any) -> dict[str, Any]:
        server = self.server
        try:
            values = json.loads(response.text)
        except ValueError:
            kind = "an HTML page" if "<html" in response.text[:500].lower() else "what is not JSON"
            message = (
                f"{server.address} answered with {kind} ({server.scrubbed(response.text[:80])!r}); expected a chat completion. "
                "base_url usually ends in /v1."
            )
            raise (TryAgain if self._reached else EndpointError)(message) from None
        if isinstance(values, dict) and values.get("choices"):
            return values
        error = values.get("error") if isinstance(values, dict) else None
        said = error.get("message", error) if isinstance(error, dict) else error or values
        raise TryAgain(f"{server.address} answered with no completion: {server.scrubbed(str(said))}")

    def _connected(self) -> Any:
        with self._lock:
            if self._client is None:
                self._client = import_openai().OpenAI(
                    base_url=self.server.base_url,
                    api_key=self.server.key() or "none",
                    timeout=self._timeout,
                    max_retries=0,  # tries are counted, and waits chosen, here
                )
            return self._client


class _Gone(TryAgain, EndpointError):
    """A server that does not answer any more: tried again, and then the end of the run."""


def import_openai() -> Any:
    """The `openai` package, with what it needs for another try.

    Raises
    ------
    ImportError
        It is not installed; the message says how to get it.
    """
    try:
        import openai
        import tenacity  # noqa: F401
    except ImportError as error:
        raise ImportError(f"Endpoints need openai and tenacity ({error}): pip install 'penchant[endpoint]'") from error
    return openai


def _reply(values: Mapping[str, Any]) -> Reply:
    chosen = values["choices"][0]
    text = chosen["message"].get("content") if "message" in chosen else chosen.get("text")
    truncated = chosen.get("finish_reason") == "length"
    log_probs = chosen.get("logprobs") or {}
    if content := log_probs.get("content"):
        first = content[0]
        listed = _merged([(each["token"], each["logprob"]) for each in first.get("top_logprobs") or ()])
        return Reply(text or "", truncated, Listing(listed) if listed else None, first.get("token"), first.get("logprob"))
    if tops := log_probs.get("top_logprobs"):
        token, told = (log_probs.get("tokens") or [None])[0], log_probs.get("token_logprobs") or [None]
        listed = _by_text(tops[0] or {}, token)
        return Reply(text or "", truncated, Listing(listed) if listed else None, token, told[0], collided=listed is None)
    return Reply(text or "", truncated)


def _by_text(tops: Mapping[str, float], said: str | None) -> dict[str, float] | None:
    """A list in the older form, which is by text, likeliest first; None where a text stands for several tokens.

    Of such tokens the last one's value is told, in the place of the first. The token that was said comes in addition, first
    or last. Tokens without a text (end of turn, special ones, parts of characters) are never told apart.
    """
    listed = [each for each in tops.items() if each[0]]
    ordered = [value for place, (text, value) in enumerate(listed) if not (text == said and place in (0, len(listed) - 1))]
    if any(after > before for before, after in pairwise(ordered)):
        return None
    if len(listed) > 1 and listed[-1][0] == said:  # not one of the likeliest, perhaps: nothing is bounded by it
        listed.pop()
    return dict(listed)


def _merged(listed: Sequence[tuple[str, float]]) -> dict[str, float]:
    """One value for each text, the greatest: several tokens that are parts of characters are shown alike."""
    found: dict[str, float] = {}
    for token, value in listed:
        found[token] = max(value, found.get(token, value))
    return found
