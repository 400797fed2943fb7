"""Prompts written with a model's tokenizer alone, for servers that run the model elsewhere.

A chat that a server renders is out of sight: where its turn begins, whether thinking is closed, how a task's text is read.
Written here, the prompt is the one that `LocalModel` would read, and an answer may be begun.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from interp.checkpoints import locate, ways_out
from interp.embedded import MissingModel
from interp.rendering import Renderer
from store.provenance import digest
from store.records import Question


@dataclass(frozen=True)
class WrittenPrompt:
    """A question as the model reads it, prefill included.

    Attributes
    ----------
    text
        Without the BOS, which servers put before a text themselves.
    token_ids
        All of its tokens.
    as_text
        Whether a server that reads the text gets these tokens: not where a task holds the name of a special token.
    """

    text: str
    token_ids: tuple[int, ...]
    as_text: bool


class PromptWriter:
    """Writes the prompts of one model.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer with a Rust backend; its chat template is used.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.renderer = tokenizer, Renderer(tokenizer)

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Load the tokenizer of a model: `smollm2-135m`, a folder, or a Hugging Face hub id.

        Raises
        ------
        MissingModel
            There is no such tokenizer here or on the hub.
        """
        from transformers import AutoTokenizer

        name = str(name_or_path)
        try:
            return cls(AutoTokenizer.from_pretrained(locate(name)))
        except OSError as error:
            raise MissingModel(f"Cannot load the tokenizer of {name!r}. {ways_out(name)} Reason: {error}") from error

    @property
    def digest(self) -> str:
        """Digest of tokenizer and chat template."""
        return digest("prompts", self.renderer.tokens.digest, self.renderer.template_hash)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens that end a turn."""
        ends = (*self.renderer.end_of_turn_ids, self._tokenizer.eos_token_id)
        return tuple(dict.fromkeys(each for each in ends if each is not None))

    @property
    def stops(self) -> tuple[str, ...]:
        """Their texts."""
        return tuple(self._tokenizer.decode([each]) for each in self.end_ids)

    def __call__(self, question: Question) -> WrittenPrompt:
        """Write a question."""
        rendered = self.renderer.render(question)
        text = rendered.text.removeprefix(self._tokenizer.bos_token or "") if self.renderer.tokens.adds_bos else rendered.text
        plain = self._tokenizer(text, add_special_tokens=self.renderer.tokens.adds_bos)["input_ids"]
        token_ids = tuple(int(each) for each in rendered.token_ids)
        return WrittenPrompt(text, token_ids, tuple(plain) == token_ids)
