"""nnsight as a backend: traces of the same transformers model, run here or, for models that are too large, on NDIF."""

import copy
from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import nnsight
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GenerationConfig

from interp.backends.causal import CausalBackend, Inputs, step_inputs
from interp.backends.protocol import Edit, Gather, Run
from interp.batches import Batch
from interp.fingerprint import fingerprint_model
from store import EMBED
from store.provenance import digest


class NNsightBackend(CausalBackend):
    """Runs batches through nnsight traces of a transformers causal language model.

    Parameters
    ----------
    model
        The model, in evaluation mode. nnsight puts its own `forward` on every module, idle outside a trace.

    Attributes
    ----------
    envoy
        The `nnsight.NNsight` around the model, for traces of your own.
    """

    name = "nnsight"

    def __init__(self, model: Any) -> None:
        super().__init__(model, fingerprint_model(model))
        self.envoy: Any = nnsight.NNsight(model)
        self._trace_options: dict[str, Any] = {}

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
        inputs, rows = self.inputs(batch, logits_at)
        with self.packed(batch):
            return self._traced(inputs, gathers or {}, edits or {}, rows, resume)

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
        last = (torch.arange(len(token_ids)), torch.zeros(len(token_ids), dtype=torch.long))
        run = self._traced(step_inputs(token_ids, attention_mask, position_ids, cache), {}, edits, last)
        assert run.logits is not None
        return run.logits

    def _traced(
        self,
        inputs: Inputs,
        gathers: Mapping[int, Gather],
        edits: Mapping[int, Edit],
        rows: tuple[Tensor, Tensor] | None,
        resume: tuple[int, Tensor] | None = None,
    ) -> Run:
        """Run one trace. Its block may be sent away, source and all, so it names nothing of penchant's."""
        blocks = list(attrgetter(self.blocks_path)(self.envoy))
        deepest = max(gathers) if rows is None else len(blocks)
        layers = sorted(layer for layer in {*gathers, *edits} if layer <= deepest)
        skipped, given = (blocks[: resume[0] + 1], resume[1]) if resume is not None else ([], None)
        embed = EMBED
        residuals: dict[int, Tensor] = {}
        logits: Tensor | None = None
        with self.envoy.trace(**inputs, **self._trace_options) as tracer:
            residuals = nnsight.save({})
            for block in skipped:
                block.skip(given)
            for layer in layers:
                output = blocks[0].input if layer == embed else blocks[layer].output
                residual = output[0] if isinstance(output, tuple) else output
                if layer in edits:
                    residual = edits[layer](residual)
                    if layer == embed:
                        blocks[0].input = residual
                    else:
                        blocks[layer].output = (residual, *output[1:]) if isinstance(output, tuple) else residual
                if layer in gathers:
                    # Detached, as a server may keep gradients.
                    residuals[layer] = gathers[layer](residual.reshape(-1, residual.shape[-1])).detach()
            if rows is None:
                tracer.stop()
            logits = nnsight.save(tracer.result.logits[rows].detach())
        return Run(residuals, logits)


class RemoteNNsightBackend(NNsightBackend):
    """Runs padded batches on NDIF: the trace is sent away, gathers and edits in it, and only what they keep comes back.

    Of the model, only its configuration is loaded here. nnsight unpickles what comes back, so the server must be trusted.

    Parameters
    ----------
    repo
        Hub id of a model that NDIF runs.
    tokenizer
        Its tokenizer; nnsight gets a copy.

    Attributes
    ----------
    fingerprint
        Digest of `remote`, what NDIF knows the model by (hub id and revision), and its configuration. Weights and dtype are
        not in it: they are not here, and what NDIF runs may change under the same name.
    """

    def __init__(self, repo: str, tokenizer: Any) -> None:
        # Left to itself, nnsight 0.8.1 does not find the tokenizer with transformers 5.23; and it changes the one it is given.
        envoy: Any = nnsight.TransformersModel(repo, tokenizer=copy.deepcopy(tokenizer))
        key = envoy.to_model_key()
        unweighted = fingerprint_model(SimpleNamespace(config=envoy._module.config, state_dict=dict))
        CausalBackend.__init__(self, envoy._module, digest("remote", key, unweighted))
        with suppress(OSError):  # not every model has one
            self.model.generation_config = GenerationConfig.from_pretrained(repo)
        self.envoy = envoy
        self._trace_options = {"remote": True}

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
        if batch.packing is not None:
            raise ValueError(
                "A remote model cannot run packed batches, whose attention is penchant's own; use layout='left' (or 'auto')."
            )
        return super().run(batch, gathers=gathers, edits=edits, logits_at=logits_at, resume=resume)

    def step(
        self,
        token_ids: Int[Tensor, "lines columns"],
        *,
        attention_mask: Int[Tensor, "lines past"],
        position_ids: Int[Tensor, "lines columns"],
        cache: Any,
        edits: Mapping[int, Edit],
    ) -> Float[Tensor, "lines vocabulary"]:
        """Refuse: the key-value cache of a generation cannot stay on NDIF between two requests.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            "A remote model cannot generate text: its key-value cache would have to come back after every token. Ask questions "
            "with options (score), or load a model that fits here with remote=False."
        )


def check_key() -> None:
    """Make sure that nnsight has a key for NDIF.

    Raises
    ------
    ValueError
        It has none.
    """
    if not nnsight.CONFIG.API.APIKEY:
        raise ValueError("remote=True needs a key for NDIF (https://ndif.us): set NDIF_API_KEY, or call nnsight.login() once.")
