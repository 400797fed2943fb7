"""Sampling text: a left-padded batch with a key-value cache, steered token by token, each draw with its own seed."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from interp.backends.protocol import Backend
from interp.batches import Layout, lay_out
from interp.rendering import Rendered
from interp.steering import Intervention
from interp.treatments import TreatmentTable
from store.records import Sampling

_LEFT: Layout = "left"


@torch.inference_mode()
def generate(
    backend: Backend,
    prompts: Sequence[Rendered],
    sampling: Sampling,
    draws: Sequence[int],
    end_of_turn_ids: Sequence[int],
    interventions: Sequence[Sequence[Intervention]],
) -> list[list[int]]:
    """Continue prompts until each ends its turn or reaches the limit.

    Parameters
    ----------
    sampling
        Shared by the batch. A draw depends on its seed, its draw number and its prompt, not on the rest of the batch.
    draws
        Draw number of each prompt.
    interventions
        Those of each prompt, carried out on its tokens in the first pass and on every later token as it is made.

    Returns
    -------
    The new tokens of each prompt, without the token that ended the turn (a full list has `max_new_tokens`).
    """
    table = TreatmentTable()
    lengths = [len(prompt.token_ids) for prompt in prompts]
    # One treatment past the prompt is that of every later token.
    treatments = [
        table.encode(own, prompt, length + 1) for own, prompt, length in zip(interventions, prompts, lengths, strict=True)
    ]
    from transformers import DynamicCache

    batch = lay_out([prompt.token_ids for prompt in prompts], [codes[:-1] for codes in treatments], _LEFT)
    assert batch.attention_mask is not None
    later_edits = table.edits(np.array([[codes[-1]] for codes in treatments]))
    device = backend.device
    token_ids = torch.from_numpy(batch.token_ids).to(device)
    position_ids = torch.from_numpy(batch.position_ids).to(device)
    attention_mask = torch.from_numpy(batch.attention_mask.astype(np.int64)).to(device)
    cache = DynamicCache(config=backend.config)
    generators = [_generator(prompt, sampling, draw) for prompt, draw in zip(prompts, draws, strict=True)]
    ends = torch.tensor(list(end_of_turn_ids), device=device)
    finished = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    drawn: list[Tensor] = []
    edits = table.edits(batch.treatments)
    for _ in range(sampling.max_new_tokens):
        logits = backend.step(token_ids, attention_mask=attention_mask, position_ids=position_ids, cache=cache, edits=edits)
        chosen = draw_tokens(logits, sampling, generators)
        finished = finished | torch.isin(chosen, ends)
        drawn.append(torch.where(finished, -1, chosen))
        if bool(finished.all()):
            break
        token_ids = chosen[:, None]
        position_ids = position_ids[:, -1:] + 1
        attention_mask = torch.cat([attention_mask, torch.ones_like(token_ids)], dim=1)
        edits = later_edits
    return [[token for token in line if token >= 0] for line in torch.stack(drawn, dim=1).tolist()]


def draw_tokens(logits: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token a row by adding Gumbel noise from the row's own generator; temperature 0 takes the most probable.

    Parameters
    ----------
    logits
        Shape `(rows, vocabulary)`.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    scores = torch.log_softmax(logits.float() / sampling.temperature, dim=-1)
    if sampling.top_p < 1:
        ordered, index = scores.sort(dim=-1, descending=True)
        before = ordered.exp().cumsum(-1) - ordered.exp()
        scores = scores.masked_fill(torch.zeros_like(before >= 0).scatter(-1, index, before >= sampling.top_p), -torch.inf)
    # Noise is made on the CPU, where a generator gives the same numbers on every machine.
    uniform = torch.stack([torch.rand(scores.shape[-1], generator=each, dtype=torch.float64) for each in generators])
    gumbel = -torch.log(-torch.log(uniform.clamp_min(1e-300)))
    return (scores + gumbel.to(scores.device, scores.dtype)).argmax(-1)


def _generator(prompt: Rendered, sampling: Sampling, draw: int) -> torch.Generator:
    seed = np.random.SeedSequence([sampling.seed, draw, *prompt.token_ids.tolist()]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed >> np.uint64(1)))
