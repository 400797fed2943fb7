"""The reference backend: plain forward hooks on a transformers model."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.backends.causal import CausalBackend, Stop, residual_hook, step_inputs
from interp.backends.onednn import FastLinears
from interp.backends.protocol import Edit, Gather, Run
from interp.batches import Batch
from interp.fingerprint import fingerprint_model
from store import EMBED


class HFBackend(CausalBackend):
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
        super().__init__(model, fingerprint_model(model))
        self._fast_linears = FastLinears(model)

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
        """Run one batch; see `Backend.run`."""
        gathers, edits = gathers or {}, edits or {}
        kept: dict[int, Tensor] = {}
        stop_after = max(gathers) if logits_at is None else None
        inputs, rows = self.inputs(batch, logits_at)
        with ExitStack() as stack:
            stack.enter_context(self._fast_linears.active())
            if resume is not None:
                stack.enter_context(self._resumed(*resume))
            for layer in sorted(set(gathers) | set(edits)):
                hook = residual_hook(layer, edits.get(layer), gathers.get(layer), kept, layer == stop_after)
                stack.enter_context(self.hooked(layer, hook))
            stack.enter_context(self.packed(batch))
            try:
                output = (self.model if rows else self.model.base_model)(**inputs)
            except Stop:
                return Run(kept)
        return Run(kept, output.logits[rows] if rows else None)

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
        with ExitStack() as stack:
            stack.enter_context(self._fast_linears.active())
            for layer, edit in edits.items():
                stack.enter_context(self.hooked(layer, edit))
            return self.model(**step_inputs(token_ids, attention_mask, position_ids, cache)).logits[:, -1]

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
