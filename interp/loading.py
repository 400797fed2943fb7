"""Loading: a model's weights and tokenizer by name, and the backend that runs it, on this machine or on NDIF."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from interp import embedded
from interp.adapters import adapter_base, merge_adapter
from interp.backends.choice import backend_maker, remote_backend_maker
from interp.backends.protocol import Backend
from interp.checkpoints import locate, ways_out

_REASON = 240
"""Characters of another library's reason that are shown; some list every model there is."""


def load_here(name: str, backend: str, dtype: str, device: str) -> tuple[Any, Any, Backend]:
    """Model, tokenizer and backend of a model on this machine; see `LocalModel.load`."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_backend, where = backend_maker(backend), device
    if device == "auto":
        where = "cuda" if torch.cuda.is_available() else "cpu"
    adapter = _adapter(name)
    try:
        source = locate((adapter and adapter_base(adapter)) or name)
        weights = _dtype(dtype, where, source)
        with _bars_on_terminals_only():
            try:
                tokenizer = AutoTokenizer.from_pretrained(source)
                model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=weights, use_safetensors=True)
            except ValueError as error:  # no tokenizer that can be read, or no causal language model
                raise OSError(" ".join(str(error).split())[:_REASON]) from error
            if adapter:
                model = merge_adapter(model, adapter)
    except OSError as error:
        raise embedded.MissingModel(f"Cannot load the model {name!r}. {ways_out(name)} Reason: {error}") from error
    try:
        model.to(where)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"The device is {device!r}; expected auto, cpu, cuda or cuda:N on this machine ({error}).") from error
    return model, tokenizer, make_backend(model, tokenizer)


def load_remote(name: str, backend: str) -> tuple[Any, Any, Backend]:
    """Model without weights, tokenizer and backend of a model on NDIF; see `LocalModel.load`."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]
    from transformers import AutoTokenizer

    make_backend = remote_backend_maker(backend)
    repo = embedded.HUB_ID if name == embedded.NAME else name
    try:
        tokenizer = AutoTokenizer.from_pretrained(repo)
        made = make_backend(repo, tokenizer)
    except (HTTPError, OSError, RuntimeError) as error:
        raise embedded.MissingModel(
            f"Cannot read the configuration of the remote model {name!r} from the Hugging Face hub; expected the hub id of "
            f"a model that NDIF runs (nnsight.status() lists them). Reason: {error}"
        ) from error
    return made.model, tokenizer, made


def _adapter(name: str) -> Path | None:
    """The folder of that name, if it holds an adapter."""
    folder = Path(name).expanduser()
    return folder if adapter_base(folder) else None


@contextmanager
def _bars_on_terminals_only() -> Iterator[None]:
    """Within the context, transformers draws progress bars only where someone can see them."""
    from transformers.utils import logging

    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def _dtype(dtype: str, device: str, source: str) -> torch.dtype:
    if dtype == "float32" or (dtype == "auto" and device == "cpu"):
        return torch.float32
    if dtype == "bfloat16":
        return torch.bfloat16
    if dtype != "auto":
        raise ValueError(f"dtype is {dtype!r}; expected 'auto', 'float32' or 'bfloat16' (float16 overflows).")
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(source).get_text_config()
    return torch.float32 if config.dtype == torch.float32 else torch.bfloat16
