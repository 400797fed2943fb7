"""Endpoint: a model behind an OpenAI-compatible server, asked like any other respondent.

Exact answers are read from the log-probabilities that the server lists, sampled ones from its text. What comes back goes
to the measurement log through `elicit.ask`, like every answer.
"""

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from elicit.endpoint_chat import Chat, RefusedRequest, Reply
from elicit.endpoint_limits import Budget, TryAgain
from elicit.endpoint_probe import FORCING, Capabilities, find_capabilities, token_id
from elicit.endpoint_prompt import PromptWriter, WrittenChat
from elicit.endpoint_scoring import Listing, average, read_options
from elicit.endpoint_server import EndpointError, Server
from elicit.endpoint_threads import answer_each
from elicit.respondent import OnAnswer
from store.provenance import ModelIdentity, digest
from store.records import Answer, Outcome, Question


class Endpoint:
    """A model behind an OpenAI-compatible server: vLLM, llama.cpp, OpenRouter, Together, ...

    Nothing is asked of the server until the first question is.

    Parameters
    ----------
    base_url, model
        Address, up to and with `/v1`, and the model's name there.
    api_key_env
        Environment variable that holds the key; None for a server without. It is read when the first request is made.
    concurrency
        Requests under way at a time.
    retries
        Further tries after a failure that may pass (429, 5xx, time-outs, lost connections), each after what the server
        asks for or twice as long as before.
    budget_tokens, budget_usd
        The most that this object, and all that `with_model` makes of it, may spend together; `BudgetReached` ends the run
        before a request that could pass it.
    price_per_million
        US dollars for a million tokens read and written; needed for `budget_usd`.
    repeats
        Calls for each exact answer; their probabilities are averaged, and their spread is kept.
    provider
        Who is to serve the model, where a host chooses among several (OpenRouter); nobody else then does.
    extra_body
        Further fields of every request. They may change answers, so they are part of the fingerprint.
    top_logprobs
        How many tokens to ask a list of; fewer where the server allows fewer.
    write
        Writes the prompts here, with the model's tokenizer (`interp.PromptWriter`); the server then completes them as they
        are. For servers that do not go on with a begun answer, and to know what is read to the token.
    timeout
        Seconds for one request.

    Raises
    ------
    ValueError
        The address is none or holds credentials, or a number is not what was expected.
    """

    interventions = ()
    dtype = "as served"

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key_env: str | None = None,
        *,
        concurrency: int = 8,
        retries: int = 6,
        budget_tokens: int | None = None,
        budget_usd: float | None = None,
        price_per_million: tuple[float, float] | None = None,
        repeats: int = 1,
        provider: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
        top_logprobs: int = 20,
        write: PromptWriter | None = None,
        timeout: float = 60,
    ) -> None:
        least = {"concurrency": (concurrency, 1), "retries": (retries, 0), "repeats": (repeats, 1)}
        for name, (value, minimum) in (least | {"top_logprobs": (top_logprobs, 1)}).items():
            if value < minimum:
                raise ValueError(f"{name} is {value}; expected at least {minimum}.")
        self.budget = Budget(budget_tokens, budget_usd, price_per_million)
        self.concurrency, self.repeats, self.top_logprobs = concurrency, repeats, top_logprobs
        self._extra = dict(extra_body or {})
        if provider:
            self._extra["provider"] = {"order": [provider], "allow_fallbacks": False}
        self._write = write
        self._limits = {"retries": retries, "timeout": timeout}
        self._ask_at(Server(base_url, model, api_key_env))

    def _ask_at(self, server: Server) -> None:
        write, limits = self._write, self._limits
        self.server = server
        self._chat = WrittenChat(server, self.budget, write, **limits) if write else Chat(server, self.budget, **limits)
        self._token_ids: dict[str, int | None] = {}
        options = (self._extra, self.repeats, self.top_logprobs, *([write.digest] if write else []))
        self.identity = ModelIdentity(server.model, "endpoint", digest("endpoint", server.address, server.model, *options))

    def with_model(self, model: str) -> Self:
        """Another model on the same server, asked in the same way, its prompts written alike; both spend one budget."""
        other = copy.copy(self)
        vars(other).pop("capabilities", None)  # those of this model
        other._ask_at(replace(self.server, model=model))
        return other

    def __repr__(self) -> str:
        return f"Endpoint({self.server.model} at {self.server.address}, {self.fingerprint[:12]})"

    @property
    def fingerprint(self) -> str:
        """Digest of host, path, model, provider, and the options that change answers; the weights behind them are not known."""
        return self.identity.fingerprint

    @property
    def device(self) -> str:
        """Host and path of the server."""
        return self.server.address

    @cached_property
    def capabilities(self) -> Capabilities:
        """What the server can do; found out by a few short requests when it is first needed."""
        try:
            return find_capabilities(self._chat, self.top_logprobs, self._extra)
        except TryAgain as failure:
            raise EndpointError(str(failure)) from None

    def prompt_digest(self, question: Question) -> str:
        """Digest of everything that the server is sent of a question, and of its options."""
        values = question.to_dict()
        return digest([values[name] for name in ("messages", "system", "prefill", "options", "refusals", "thinking")])

    def shown(self, question: Question) -> str:
        """A question as it is sent, for people; where the server writes the prompt, its chat template is not known here."""
        if self._write:
            return self._write(question).text
        turns = [*messages_of(question, ""), *([] if question.prefill else [{"role": "assistant", "content": ""}])]
        return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns)

    def next_tokens(self, question: Question, n: int) -> list[tuple[str, float]]:
        """The likeliest first tokens of an answer that the server lists, with their probabilities; at most `n`.

        Raises
        ------
        ValueError
            The server tells no log-probabilities.
        EndpointError, BudgetReached
            It cannot be asked.
        """
        self.check_can_score([])
        try:
            listing = self._first_token(question, "").listing
        except (TryAgain, RefusedRequest) as failure:
            raise EndpointError(str(failure)) from None
        listed = sorted((listing.log_probs if listing else {}).items(), key=lambda item: -item[1])
        return [(text, math.exp(value)) for text, value in listed[:n]]

    def score(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Option probabilities of each question, from the likeliest tokens that the server lists.

        Raises
        ------
        ValueError
            A question has no options; the server tells no log-probabilities, or cannot be asked what comes after the
            beginning of an answer where options need that.
        EndpointError, BudgetReached
            The run cannot go on; what was answered before has been heard.
        """
        if not all(question.options for question in questions):
            raise ValueError("score() needs Question.options; free text is for generate().")
        if not questions:
            return []
        self.check_can_score(questions)
        return self._each(questions, self._score_one, on_answer)

    def generate(self, questions: Sequence[Question], on_answer: OnAnswer | None = None) -> list[Answer]:
        """Sample text for each question (`Question.sampling` must be set); the outcome is for a parser to say.

        Raises
        ------
        ValueError
            A question has no sampling.
        EndpointError, BudgetReached
            The run cannot go on; what was answered before has been heard.
        """
        if any(question.sampling is None for question in questions):
            raise ValueError("generate() needs Question.sampling; exact questions are for score().")
        return self._each(questions, self._generate_one, on_answer) if questions else []

    def check_can_score(self, questions: Sequence[Question]) -> None:
        """Find out whether the server can answer such questions exactly; none of them is asked.

        Raises
        ------
        ValueError
            It tells no log-probabilities, or cannot be asked what comes after the beginning of an answer where options
            need that.
        EndpointError
            It cannot be reached.
        """
        able, server = self.capabilities, self.server
        if not able.log_probs:
            raise ValueError(
                f"{server.address} tells no log-probabilities of {server.model!r}, so nothing can be read exactly. Sample "
                "instead: Context(sampling=Sampling(...), n_draws=...)."
            )
        followed = next((q for q in questions if any(option.terminators for option in q.options)), None)
        if followed and able.prefill is None:
            raise ValueError(
                f"{server.address} does not go on with a prefilled assistant turn, so what follows an option cannot be read, "
                f"as the options {[option.label for option in followed.options]} need. Sample instead, or ask with options of "
                "one token and no terminators."
            )

    def _score_one(self, question: Question) -> Answer:
        def next_tokens(said: str) -> Listing:
            reply = self._first_token(question, said)
            if reply.listing is None:
                raise TryAgain(f"{self.server.address} listed no tokens this time")
            return reply.listing

        def forced(said: str, token: str) -> float | None:
            number = self._token_id(token)
            reply = None if number is None else self._first_token(question, said, logit_bias={str(number): FORCING})
            return math.exp(reply.log_prob) if reply and reply.token == token and reply.log_prob is not None else None

        able = self.capabilities
        readings = [
            read_options(question, next_tokens, self._can_follow, forced if able.logit_bias else None)
            for _ in range(self.repeats)
        ]
        return Answer.exact(question, *average(readings))

    def _generate_one(self, question: Question) -> Answer:
        sampling = question.sampling
        assert sampling is not None
        fields = {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seed + question.draw}
        reply = self._complete(question, "", sampling.max_new_tokens, fields)
        return Answer(Outcome.CHOSE, text=reply.text, truncated=reply.truncated)

    def _first_token(self, question: Question, said: str, **fields: Any) -> Reply:
        # Neutral settings: some servers list probabilities as sampling changes them.
        tried, top_k = {"temperature": 1, "top_p": 1, **fields}, self.capabilities.top_k
        while True:
            reply = self._complete(question, said, 1, {**tried, "top_logprobs": top_k}, listed=True)
            if reply.collided and top_k > 1:
                top_k //= 2
            elif reply.listing or "logit_bias" in tried or not (self._write and self.capabilities.logit_bias):
                return reply
            else:  # the turn was ended, and some servers then list nothing; the list is that of before the bias
                tried["logit_bias"] = {str(each): -FORCING for each in self._write.end_ids}

    def _complete(
        self, question: Question, said: str, max_tokens: int, fields: Mapping[str, Any], *, listed: bool = False
    ) -> Reply:
        able = self.capabilities
        messages = messages_of(question, said)
        prefilled = messages[-1]["role"] == "assistant"
        if prefilled and able.prefill is None:
            self._say_without_prefill()
            messages, prefilled = messages[:-1], False
        known = able.fields(thinking=question.thinking, prefilled=prefilled, listed=listed)
        return self._chat.complete(messages, max_tokens=max_tokens, extra={**known, **fields, **self._extra})

    def _token_id(self, token: str) -> int | None:
        if token not in self._token_ids:
            tokenizer = self.capabilities.tokenizer
            self._token_ids[token] = token_id(self._chat, tokenizer, token) if tokenizer else None
        return self._token_ids[token]

    def _can_follow(self, said: str) -> bool:
        able = self.capabilities
        return able.prefill is not None and (able.spaces or said == said.strip())

    def _say_without_prefill(self) -> None:
        warnings.warn(
            f"{self.server.address} does not go on with a prefilled assistant turn; a question's prefill is left out.",
            stacklevel=2,
        )

    def _each(
        self, questions: Sequence[Question], answer: Callable[[Question], Answer], on_answer: OnAnswer | None
    ) -> list[Answer]:
        _ = self.capabilities  # before there are threads: a server that cannot be asked is an error at once
        return answer_each(questions, answer, self.concurrency, on_answer)


def messages_of(question: Question, said: str = "") -> list[dict[str, str]]:
    """The chat as it is sent; the last turn is what is put into the respondent's mouth, if anything is."""
    found = [] if question.system is None else [{"role": "system", "content": question.system}]
    found += [{"role": message.role, "content": message.content} for message in question.messages]
    spoken = question.prefill + said
    return [*found, {"role": "assistant", "content": spoken}] if spoken else found
