"""TransformerLens as a backend: its bridge around the same transformers model, read and edited at its own hook names.

It also opens the analyst's door: `bridge`, and `cache`, TransformerLens's own cache of a prompt under exactly the tokens
that penchant gives the model.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import ActivationCache
from transformer_lens.model_bridge import TransformerBridge

from interp.backends.causal import CausalBackend, Inputs, Stop, residual_hook, step_inputs
from interp.backends.protocol import Edit, Gather, Run
from interp.batches import Batch
from interp.fingerprint import fingerprint_model
from interp.rendering import Rendered
from store import EMBED


class TransformerLensBackend(CausalBackend):
    """Runs padded batches through a `TransformerBridge`.

    Bridging replaces the model's submodules in place and switches it to eager attention: give it a model that nothing
    else uses. TransformerLens does the attention itself, so batches cannot be packed, and compatibility mode, which
    changes residual streams, stays off.

    Parameters
    ----------
    model
        A transformers causal language model, in evaluation mode.
    tokenizer
        Its tokenizer; the bridge gets a copy.

    Attributes
    ----------
    bridge
        The `TransformerBridge`, for everything that TransformerLens can do.

    Raises
    ------
    ValueError
        TransformerLens does not know the model's architecture.
    """

    name = "transformer_lens"

    def __init__(self, model: Any, tokenizer: Any) -> None:
        # Bridging renames parameters, so weights are summed up first.
        super().__init__(model, fingerprint_model(model))
        if not model.config.architectures:
            model.config.architectures = [type(model).__name__]
        self.bridge: TransformerBridge = _bridge(model, tokenizer)

    @torch.inference_mode()
    def run(
        self,
        batch: Batch,
        *,
        gathers: Mapping[int, Gather] | None = None,
        edits: Mapping[int, Edit] | None = None,
        logits_at: Int[np.ndarray, " asked"] | None = None,
        resume: tuple[int, Tensor] | None = None,
    ) -> Run:
        """Run one padded batch; see `Backend.run`."""
        if batch.packing is not None or resume is not None:
            raise ValueError(
                "backend='transformer_lens' cannot run packed batches, as TransformerLens does the attention itself; "
                "use layout='left' (or 'auto'), or backend='hf'."
            )
        gathers, edits = gathers or {}, edits or {}
        kept: dict[int, Tensor] = {}
        stop_after = max(gathers) if logits_at is None else None
        inputs, rows = self.inputs(batch, logits_at)
        hooks = {
            layer: residual_hook(layer, edits.get(layer), gathers.get(layer), kept, layer == stop_after)
            for layer in sorted(set(gathers) | set(edits))
        }
        try:
            logits = self._forward(inputs, hooks)
        except Stop:
            return Run(kept)
        return Run(kept, logits[rows] if rows else None)

    @torch.inference_mode()
    def step(
        self,
        token_ids: Int[Tensor, "lines columns"],
        *,
        attention_mask: Int[Tensor, "lines past"],
        position_ids: Int[Tensor, "lines columns"],
        cache: Any,
        edits: Mapping[int, Edit],
    ) -> Float[Tensor, "lines vocabulary"]:
        """Run the next tokens of a generation; see `Backend.step`."""
        return self._forward(step_inputs(token_ids, attention_mask, position_ids, cache), edits)[:, -1]

    @torch.inference_mode()
    def cache(self, rendered: Rendered, names: str | Sequence[str] | Callable[[str], bool] | None = None) -> ActivationCache:
        """TransformerLens's own cache of one prompt, under the tokens that penchant gives the model.

        Parameters
        ----------
        rendered
            The prompt: `model.render(question)`.
        names
            Hook points to keep, such as `blocks.3.hook_out`, or a test of their names; None keeps all of them.
        """
        token_ids = torch.from_numpy(rendered.token_ids)[None].to(self.device)
        chosen = list(names) if isinstance(names, Sequence) and not isinstance(names, str) else names
        # TransformerLens asks for attention weights beside its own hooks unless told not to.
        _, cache = self.bridge.run_with_cache(token_ids, names_filter=chosen, output_attentions=False)
        return cache

    def _forward(self, inputs: Inputs, hooks: Mapping[int, Edit]) -> Tensor:
        token_ids = inputs.pop("input_ids")
        return self.bridge.run_with_hooks(
            token_ids, fwd_hooks=[(_hook_name(layer), _as_hook(edit)) for layer, edit in hooks.items()], **inputs
        )


def _bridge(model: Any, tokenizer: Any) -> TransformerBridge:
    twin = copy.deepcopy(tokenizer)
    # Says that this tokenizer is to be used as it is: TransformerLens would otherwise load it again, by its name.
    twin.init_kwargs |= {"name_or_path": twin.name_or_path, "add_bos_token": True}
    name = model.config.name_or_path or type(model).__name__
    device = model.get_input_embeddings().weight.device
    try:
        return TransformerBridge.boot_transformers(name, hf_model=model, tokenizer=twin, dtype=model.dtype, device=device)
    except ValueError as error:
        raise ValueError(
            f"TransformerLens cannot bridge a {type(model).__name__}; use backend='hf' or 'nnsight'. Its reason: {error}"
        ) from error


def _hook_name(layer: int) -> str:
    return "blocks.0.hook_in" if layer == EMBED else f"blocks.{layer}.hook_out"


def _as_hook(edit: Edit) -> Callable[..., Tensor]:
    def hook(residual: Tensor, hook: Any) -> Tensor:
        return edit(residual)

    return hook
