"""The reference backend: plain forward hooks on a transformers model."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.backends.onednn import FastLinears
from interp.batches import Batch
from interp.packing import ATTENTION
from store.activations import EMBED

Gather = Callable[[Tensor], Tensor]
"""From all flat rows of a residual stream, `(rows, d_model)`, to what is kept of them; runs on the device."""

Edit = Callable[[Tensor], Tensor]
"""From a residual stream `(lines, columns, d_model)` to the edited one."""


@dataclass(frozen=True, eq=False)
class Run:
    """What one forward pass returned: gathered residuals by layer, and logits `(asked rows, vocabulary)`."""

    residuals: dict[int, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


class _Stop(Exception):
    """Raised inside a forward pass once everything asked for has been gathered."""


class HFBackend:
    """Runs batches through a transformers causal language model.

    Parameters
    ----------
    model
        The model, in evaluation mode. Its weights are never changed.

    Raises
    ------
    ValueError
        The model's blocks cannot be found.
    """

    name = "hf"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.config = model.config.get_text_config()
        self.blocks = _find_blocks(model, self.config.num_hidden_layers)
        self._fast_linears = FastLinears(model)
        self._configs = list({id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values())

    @property
    def attention(self) -> str:
        """Attention implementation of unpacked passes."""
        return self.config._attn_implementation

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
        """Run one batch.

        Parameters
        ----------
        gathers
            For each layer, what to keep of its residual stream (after edits).
        edits
            For each layer, a change to its residual stream.
        logits_at
            Flat rows whose next-token logits are wanted. Without it, the pass stops at the deepest gathered layer and
            the unembedding is never run.
        resume
            A layer, and the residual stream after it `(lines, columns, d_model)`: blocks up to it are skipped.
        """
        gathers, edits = gathers or {}, edits or {}
        kept: dict[int, Tensor] = {}
        stop_after = max(gathers) if logits_at is None else None
        with ExitStack() as stack:
            stack.enter_context(self._fast_linears.active())
            if resume is not None:
                stack.enter_context(self._resumed(*resume))
            for layer in sorted(set(gathers) | set(edits)):
                hook = _residual_hook(layer, edits.get(layer), gathers.get(layer), kept, layer == stop_after)
                stack.enter_context(self.hooked(layer, hook))
            if batch.packing is not None:
                stack.enter_context(self._attention(ATTENTION))
            try:
                logits = self._forward(batch, logits_at)
            except _Stop:
                logits = None
        return Run(kept, logits)

    def _forward(self, batch: Batch, logits_at: Int[np.ndarray, " asked"] | None) -> Tensor | None:
        device = self.model.get_input_embeddings().weight.device
        inputs: dict[str, Any] = {
            "input_ids": torch.from_numpy(batch.token_ids).to(device),
            "position_ids": torch.from_numpy(batch.position_ids).to(device),
            "use_cache": False,
        }
        if batch.packing is not None:
            inputs["packing"] = batch.packing
        elif batch.attention_mask is not None:
            inputs["attention_mask"] = torch.from_numpy(batch.attention_mask.astype(np.int64)).to(device)
        if logits_at is None:
            return self.model.base_model(**inputs)
        lines, columns = np.divmod(logits_at, batch.token_ids.shape[1])
        kept_columns, where = np.unique(columns, return_inverse=True)
        logits = self.model(**inputs, logits_to_keep=torch.from_numpy(kept_columns).to(device)).logits
        return logits[torch.from_numpy(lines).to(logits.device), torch.from_numpy(where).to(logits.device)]

    @contextmanager
    def edited(self, edits: Mapping[int, Edit]) -> Iterator[None]:
        """Within the context, every forward pass of the model has its residual streams edited."""
        with ExitStack() as stack:
            stack.enter_context(self._fast_linears.active())
            for layer, edit in edits.items():
                stack.enter_context(self.hooked(layer, edit))
            yield

    @contextmanager
    def hooked(self, layer: int, hook: Edit) -> Iterator[None]:
        """Within the context, pass the residual stream of `layer` through `hook`."""
        if layer == EMBED:

            def before(_: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
                if args:
                    return (hook(args[0]), *args[1:]), kwargs
                return args, kwargs | {"hidden_states": hook(kwargs["hidden_states"])}

            handle = self.blocks[0].register_forward_pre_hook(before, with_kwargs=True)
        else:

            def after(_: nn.Module, __: tuple, output: Any) -> Any:
                if isinstance(output, tuple):
                    return (hook(output[0]), *output[1:])
                return hook(output)

            handle = self.blocks[layer].register_forward_hook(after)
        try:
            yield
        finally:
            handle.remove()

    @contextmanager
    def _resumed(self, layer: int, residual: Tensor) -> Iterator[None]:
        """Within the context, blocks up to `layer` pass their input on and the residual after `layer` is the given one."""

        def skip(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
            return hidden_states

        skipped = self.blocks[: layer + 1]
        previous = [block.__dict__.get("forward") for block in skipped]
        with self.hooked(layer, lambda _: residual):
            try:
                for block in skipped:
                    block.forward = skip
                yield
            finally:
                for block, forward in zip(skipped, previous, strict=True):
                    del block.forward
                    if forward is not None:
                        block.forward = forward

    @contextmanager
    def _attention(self, implementation: str) -> Iterator[None]:
        previous = [config._attn_implementation for config in self._configs]
        try:
            for config in self._configs:
                config._attn_implementation = implementation
            yield
        finally:
            for config, name in zip(self._configs, previous, strict=True):
                config._attn_implementation = name


def _residual_hook(layer: int, edit: Edit | None, gather: Gather | None, kept: dict[int, Tensor], is_last: bool) -> Edit:
    def hook(residual: Tensor) -> Tensor:
        if edit is not None:
            residual = edit(residual)
        if gather is not None:
            kept[layer] = gather(residual.reshape(-1, residual.shape[-1]))
        if is_last:
            raise _Stop
        return residual

    return hook


def _find_blocks(model: nn.Module, n_layers: int) -> nn.ModuleList:
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
    return min(found, key=lambda pair: len(pair[0]))[1]
