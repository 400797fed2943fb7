"""System prompts by category, as data: those shipped, or a YAML file of one's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

DEFAULT, NONE = "default", "none"
"""Names of the two other states of a system prompt: what the chat template does by itself, and explicitly none."""


@dataclass(frozen=True)
class SystemPrompt:
    """A named system prompt of a category."""

    name: str
    category: str
    text: str


def read_system_prompts(path: Path | None = None) -> list[SystemPrompt]:
    """Read categories, each a mapping of names to texts.

    Raises
    ------
    ValueError
        The file is missing, not such a mapping, or uses a name twice.
    """
    where = path or Path("system_prompts.yaml")
    if path is not None and not path.exists():
        raise ValueError(f"There is no file of system prompts {path}.")
    source = path or resources.files("experiments") / "system_prompts.yaml"
    try:
        found = yaml.safe_load(source.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{where} is not YAML: {error}") from error
    prompts = [
        SystemPrompt(str(name), str(category), _text(text, f"{category}.{name}", where))
        for category, members in _mapping(found, "the whole", where).items()
        for name, text in _mapping(members, str(category), where).items()
    ]
    names = [prompt.name for prompt in prompts]
    if repeated := sorted({name for name in names if names.count(name) > 1 or name in (DEFAULT, NONE)}):
        raise ValueError(
            f"{where} uses the names {repeated} twice, or for something else ({DEFAULT!r} and {NONE!r} are taken)."
        )
    return prompts


def _mapping(value: Any, what: str, where: Path) -> Mapping[Any, Any]:
    if not isinstance(value, dict) or not value:
        raise ValueError(
            f"In {where}, {what} is {str(value)[:40]!r}; expected categories of names and texts: keen: {{glad: ...}}."
        )
    return value


def _text(value: Any, what: str, where: Path) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"In {where}, {what} is {str(value)[:40]!r}; expected the text of a system prompt.")
    return value
