"""What the backends share: the facts of a transformers causal language model, and a batch as that model takes it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AttentionInterface

from interp.backends.protocol import Edit, Gather
from interp.batches import Batch
from interp.packing import ATTENTION, packed_attention

Inputs = dict[str, Any]

AttentionInterface.register(ATTENTION, packed_attention)


class Stop(Exception):
    """Raised inside a forward pass once everything asked for has been gathered."""


class CausalBackend:
    """A transformers causal language model, whatever runs it.

    Parameters
    ----------
    model
        The model, in evaluation mode. Its weights are never changed.
    fingerprint
        Digest of its weights, dtype and configuration.

    Raises
    ------
    ValueError
        The model's blocks cannot be found.
    """

    def __init__(self, model: Any, fingerprint: str) -> None:
        self.model = model
        self.fingerprint = fingerprint
        self.config = model.config.get_text_config()
        self.blocks_path, self.blocks = _find_blocks(model, self.config.num_hidden_layers)
        self._embedding: Any = model.get_input_embeddings()
        self._configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.blocks)

    @property
    def attention(self) -> str:
        """Attention implementation of unpacked passes."""
        return self.config._attn_implementation

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and residual stream."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where prompts go in."""
        return self._embedding.weight.device

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that can go in."""
        return self._embedding.weight.shape[0]

    def inputs(self, batch: Batch, logits_at: Int[np.ndarray, " asked"] | None) -> tuple[Inputs, tuple[Tensor, Tensor] | None]:
        """Return a batch as keyword arguments of the model, and where in its output the logits asked for stand."""
        # A model that is elsewhere takes its inputs along in the request.
        device = torch.device("cpu") if self.device.type == "meta" else self.device
        inputs: Inputs = {
            "input_ids": torch.from_numpy(batch.token_ids).to(device),
            "position_ids": torch.from_numpy(batch.position_ids).to(device),
            "use_cache": False,
        }
        if batch.packing is not None:
            inputs["packing"] = batch.packing
        elif batch.attention_mask is not None:
            inputs["attention_mask"] = torch.from_numpy(batch.attention_mask.astype(np.int64)).to(device)
        if logits_at is None:
            return inputs, None
        lines, columns = np.divmod(logits_at, batch.token_ids.shape[1])
        kept_columns, where = np.unique(columns, return_inverse=True)
        inputs["logits_to_keep"] = torch.from_numpy(kept_columns).to(device)
        return inputs, (torch.from_numpy(lines), torch.from_numpy(where))

    @contextmanager
    def packed(self, batch: Batch) -> Iterator[None]:
        """Within the context, the model attends as a packed batch asks for; nothing changes for a padded one."""
        if batch.packing is None:
            yield
            return
        previous = [config._attn_implementation for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = ATTENTION
            yield
        finally:
            for config, name in zip(self._configs, previous, strict=True):
                config._attn_implementation = name


def step_inputs(token_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, cache: Any) -> Inputs:
    """Return one step of a generation as keyword arguments of the model."""
    return {
        "input_ids": token_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "past_key_values": cache,
        "use_cache": True,
        "logits_to_keep": 1,
    }


def residual_hook(layer: int, edit: Edit | None, gather: Gather | None, kept: dict[int, Tensor], is_last: bool) -> Edit:
    """Make a hook that edits a residual stream, puts what is gathered of it into `kept`, and stops the pass at the last."""

    def hook(residual: Tensor) -> Tensor:
        if edit is not None:
            residual = edit(residual)
        if gather is not None:
            kept[layer] = gather(residual.reshape(-1, residual.shape[-1]))
        if is_last:
            raise Stop
        return residual

    return hook


def _find_blocks(model: nn.Module, n_layers: int) -> tuple[str, nn.ModuleList]:
    found = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not found:
        raise ValueError(
            f"No list of {n_layers} blocks in {type(model).__name__}; expected a decoder-only language model whose "
            "config.num_hidden_layers counts its blocks."
        )
    return min(found, key=lambda pair: len(pair[0]))
