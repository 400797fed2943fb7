"""The fingerprint of a model: a digest of its weights, dtype and configuration, made where the weights are."""

import json
from typing import Any

import torch
from torch import Tensor

from store.provenance import digest

_WORDS_PER_STEP = 1 << 24
# Settings that do not change what the model computes.
_IRRELEVANT = {
    "_name_or_path",
    "name_or_path",
    "transformers_version",
    "dtype",
    "torch_dtype",
    "architectures",
    "_attn_implementation",
    "use_cache",
    "output_hidden_states",
    "output_attentions",
    "return_dict",
}


def fingerprint_model(model: Any) -> str:
    """Digest of every parameter and persistent buffer, and of the configuration that gives them meaning.

    Notes
    -----
    Each tensor enters as its name, dtype, shape and two sums modulo 2^64 over its bits, one plain and one weighted by
    place, so that a change of any one value is seen; both run at memory speed on the device that holds the tensor.
    """
    state = {name: _sums(tensor) for name, tensor in sorted(model.state_dict().items())}
    config = {name: value for name, value in model.config.to_dict().items() if name not in _IRRELEVANT}
    return digest("model", state, json.dumps(config, sort_keys=True, default=str))


def _sums(tensor: Tensor) -> list[int | str | list[int]]:
    words = _as_words(tensor.detach().contiguous())
    plain = weighted = 0
    for start in range(0, len(words), _WORDS_PER_STEP):
        part = words[start : start + _WORDS_PER_STEP].long()
        place = torch.arange(start + 1, start + 1 + len(part), device=part.device)
        plain += int(part.sum())
        weighted += int((part * place).sum())
    return [str(tensor.dtype), list(tensor.shape), plain % 2**64, weighted % 2**64]


def _as_words(tensor: Tensor) -> Tensor:
    """Return the tensor's bytes as the widest integers that they divide into."""
    flat = tensor.reshape(-1).view(torch.uint8)
    for dtype, width in ((torch.int64, 8), (torch.int32, 4), (torch.int16, 2)):
        if flat.numel() % width == 0 and flat.storage_offset() % width == 0:
            return flat.view(dtype)
    return flat
