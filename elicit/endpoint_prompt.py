"""Chats whose prompts are written here, with the model's own tokenizer, and completed by the server as they are.

So an answer can be begun on servers that close every turn, and what the model reads is known to the token.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from elicit.endpoint_chat import Chat, RefusedRequest, import_openai
from elicit.endpoint_limits import Budget
from elicit.endpoint_server import Server
from store.records import Message, Question

_TAKES_TEXT = (400, 422, 500)
"""What a server answers that takes no tokens; 500 is llama-cpp-python's."""


class Written(Protocol):
    """A question as the model reads it; see `interp.prompt_writer.WrittenPrompt`."""

    @property
    def text(self) -> str:
        """Without the BOS."""
        ...

    @property
    def token_ids(self) -> Sequence[int]:
        """All of its tokens."""
        ...

    @property
    def as_text(self) -> bool:
        """Whether a server that reads the text gets these tokens."""
        ...


class PromptWriter(Protocol):
    """Writes the prompts of one model."""

    @property
    def digest(self) -> str:
        """Digest of all that changes them."""
        ...

    @property
    def end_ids(self) -> Sequence[int]:
        """The tokens that end a turn."""
        ...

    @property
    def stops(self) -> Sequence[str]:
        """Their texts."""
        ...

    def __call__(self, question: Question) -> Written:
        """Write a question."""
        ...


class WrittenChat(Chat):
    """A `Chat` that asks for completions of prompts written here: as tokens, or as text where the server takes no tokens."""

    renders = True

    def __init__(self, server: Server, budget: Budget, write: PromptWriter, *, retries: int, timeout: float) -> None:
        super().__init__(server, budget, retries=retries, timeout=timeout)
        self._write = write
        self._takes_tokens: bool | None = None

    def _send(
        self, client: Any, messages: Sequence[Mapping[str, str]], max_tokens: int, extra: Mapping[str, Any]
    ) -> tuple[Any, int | None]:
        openai, fields = import_openai(), dict(extra)
        thinking = fields.pop("chat_template_kwargs", {}).get("enable_thinking", False)
        if fields.pop("logprobs", False):
            fields["logprobs"] = fields.pop("top_logprobs")
        prompt = self._write(_question(messages, thinking))

        def create(form: str | list[int]) -> tuple[Any, int]:
            response = client.completions.with_raw_response.create(
                model=self.server.model, prompt=form, max_tokens=max_tokens, stop=list(self._write.stops), extra_body=fields
            )
            return response, len(prompt.token_ids)

        if self._takes_tokens is not False:
            try:
                answered = create(list(prompt.token_ids))
                self._takes_tokens = True
                return answered
            except openai.APIStatusError as error:
                if self._takes_tokens or error.status_code not in _TAKES_TEXT:
                    raise
        if not prompt.as_text:
            raise RefusedRequest(
                f"{self.server.address} takes prompts as text alone, and this one does not say its tokens: it holds the name "
                "of a special token, or its parts join. Leave such tasks out, or ask a server that takes tokens (vLLM)."
            )
        answered = create(prompt.text)
        self._takes_tokens = False
        return answered


def _question(messages: Sequence[Mapping[str, str]], thinking: bool) -> Question:
    """The question that a chat is, its last turn a prefill if it is the assistant's."""
    turns = [Message(message["role"], message["content"]) for message in messages]  # pyright: ignore[reportArgumentType]
    prefill = turns.pop().content if turns[-1].role == "assistant" else ""
    system = turns.pop(0).content if turns[0].role == "system" else None
    return Question(tuple(turns), system=system, prefill=prefill, thinking=thinking)
