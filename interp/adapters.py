"""Adapters: low-rank changes of a model (LoRA) in the files of peft, trained here or elsewhere, and merged when loaded."""

import json
import warnings
from pathlib import Path
from typing import Any

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def adapter_base(folder: str | Path) -> str | None:
    """The model that the adapter in a folder belongs to; None if there is no adapter.

    Raises
    ------
    ValueError
        The adapter names no model, or its weights are not safetensors.
    """
    config = Path(folder) / CONFIG
    if not config.exists():
        return None
    try:
        base = json.loads(config.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{config} is not the configuration of an adapter: {error}") from error
    if not isinstance(base, str) or not base:
        raise ValueError(f"{config} names no base model; expected the key base_model_name_or_path.")
    if not (Path(folder) / WEIGHTS).exists():
        raise ValueError(f"There is no {Path(folder) / WEIGHTS}; adapters are read from safetensors alone.")
    return base


def merge_adapter(model: Any, folder: str | Path) -> Any:
    """Add an adapter to the weights of the transformers model that it belongs to; the result has no trace of peft.

    Raises
    ------
    ImportError
        peft is not installed.
    ValueError
        The adapter does not fit the model.
    """
    peft = import_peft()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # between peft and transformers, and none of the user's
            return peft.PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except (RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"The adapter in {folder} does not fit {type(model).__name__}: {error}") from error


def import_peft() -> Any:
    """The library, which is an extra.

    Raises
    ------
    ImportError
        It is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'penchant[organisms]'") from error
    return peft
