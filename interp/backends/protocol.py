"""What a backend is: all that the engine and the generation loop know of a model.

It runs a batch of tokens, reads and edits residual streams on the way, and makes one step of a generation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from interp.batches import Batch

Gather = Callable[[Tensor], Tensor]
"""From all flat rows of a residual stream, `(rows, d_model)`, to what is kept of them; runs on the device."""

Edit = Callable[[Tensor], Tensor]
"""From a residual stream `(lines, columns, d_model)` to the edited one."""


@dataclass(frozen=True, eq=False)
class Run:
    """What one forward pass returned: gathered residuals by layer, and logits `(asked rows, vocabulary)`."""

    residuals: dict[int, Tensor] = field(default_factory=dict)
    logits: Tensor | None = None


class Backend(Protocol):
    """Runs batches through one causal language model. Layers are block indices; the residual stream is that after a block.

    Attributes
    ----------
    name
        What chooses it: `hf`, `nnsight` or `transformer_lens`.
    model, blocks
        The transformers model and its blocks, for hooks of your own; on the `meta` device if the weights are elsewhere.
    config
        The text configuration of the transformers model.
    fingerprint
        Digest of weights, dtype and configuration.
    """

    name: str
    model: Any
    blocks: nn.ModuleList
    config: Any
    fingerprint: str

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        ...

    @property
    def attention(self) -> str:
        """Attention implementation of unpacked passes."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of weights and residual stream."""
        ...

    @property
    def device(self) -> torch.device:
        """Where prompts go in; `meta` if the weights are elsewhere."""
        ...

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that can go in."""
        ...

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

        Raises
        ------
        ValueError
            The backend cannot run this layout.
        """
        ...

    def step(
        self,
        token_ids: Int[Tensor, "lines columns"],
        *,
        attention_mask: Int[Tensor, "lines past"],
        position_ids: Int[Tensor, "lines columns"],
        cache: Any,
        edits: Mapping[int, Edit],
    ) -> Float[Tensor, "lines vocabulary"]:
        """Run the next tokens of a generation, and return the logits after the last of them.

        Parameters
        ----------
        attention_mask
            Over everything in the cache and the tokens given.
        cache
            A transformers cache; the tokens given are added to it.

        Raises
        ------
        ValueError
            The backend cannot generate.
        """
        ...
