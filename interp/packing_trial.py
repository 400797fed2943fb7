"""Whether a model can run packed: a short trial of packed passes against padded ones, on the model itself."""

import numpy as np
import torch

from interp.backends.protocol import Backend
from interp.batches import Batch, lay_out

_AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 0.25}
"""Largest mean difference of log-probabilities, packed against padded, at which packing is trusted. In bfloat16 two right
passes of a real model differ by .1 on random tokens; passes that see the wrong tokens differ by more than 2."""


def packing_agrees(backend: Backend) -> bool:
    """Whether packed passes give a model's own next-token probabilities, tried on a few short sequences."""
    words = np.random.default_rng(0).integers(0, backend.vocabulary_size, 24)
    sequences = [words[:8], words[:12], np.concatenate([words[:8], words[12:18]]), words[18:]]
    untouched = [np.zeros_like(sequence) for sequence in sequences]
    try:
        packed, alone = (_log_probs(backend, lay_out(sequences, untouched, layout)) for layout in ("packed", "left"))
    except (TypeError, ValueError, KeyError, RuntimeError):
        return False  # the model does not take its attention from transformers' attention interface
    return bool((packed - alone).abs().mean() < _AGREEMENT.get(backend.dtype, 0.25))


def _log_probs(backend: Backend, batch: Batch) -> torch.Tensor:
    logits = backend.run(batch, logits_at=np.array([rows[-1] for rows in batch.rows])).logits
    assert logits is not None
    return logits.float().log_softmax(-1)
