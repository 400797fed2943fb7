"""The engine: turns jobs (a prompt, perhaps steered) into batches, runs them, and hands back what was read off.

Batches are cut by a token budget, halved when memory runs out. Where one prompt is steered in several ways, the blocks
below the first steered layer run once for all of them.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.backends.protocol import Backend, Gather
from interp.batches import Layout, TokenIds, distinguished, lay_out, plan
from interp.budget import find_token_budget
from interp.generation import generate
from interp.rendering import Rendered
from interp.scoring import OptionTree, gather_log_probs
from interp.steering import Intervention
from interp.treatments import TreatmentTable
from store.records import Sampling

_SEQUENCES_PER_BATCH = 256
"""Bounds the logits of a batch, sequences x vocabulary."""
_TRIAL_PAYS_FROM = 50
"""The token budget is tried out where the work is so many batches of the default."""
_TRIAL_FROM = 8
"""The trial begins at the default budget divided by this."""
_TRIAL_BLOCKS = 4
_TRIAL_SEQUENCE = 128
_TRUNK_MUST_COST = 0.9
"""Blocks below a steered layer are run apart where the whole then costs at most this share of running it in one."""


@dataclass(frozen=True, eq=False)
class Job:
    """One prompt to run, and the interventions it is run under, one after the other at every layer."""

    rendered: Rendered
    interventions: tuple[Intervention, ...] = ()


Selection = Sequence[Int[np.ndarray, " tokens"]]
"""Rows wanted of one prompt: each is the mean over some of its tokens (of one token: that token)."""


class Engine:
    """Runs jobs on a backend.

    Parameters
    ----------
    backend
        What runs a batch.
    layout
        How sequences are laid out.
    token_budget
        Most tokens in a batch, shared ones counted once; lowered when memory runs out.
    try_budgets
        Whether `settle_token_budget` may choose another.
    """

    def __init__(self, backend: Backend, layout: Layout, token_budget: int, *, try_budgets: bool = False) -> None:
        self.backend = backend
        self.layout: Layout = layout
        self.token_budget = token_budget
        self._try_budgets = try_budgets

    def settle_token_budget(self, work: int) -> None:
        """Find by trial how many tokens a batch should have on this device, if `work` (in tokens) is worth it; once."""
        if not self._try_budgets or work < _TRIAL_PAYS_FROM * self.token_budget:
            return
        self._try_budgets = False
        layer = min(_TRIAL_BLOCKS, self.backend.n_layers) - 1
        vocabulary = self.backend.vocabulary_size
        random = np.random.default_rng(0)

        def tokens_per_second(budget: int) -> float | None:
            sequences = list(random.integers(0, vocabulary, (max(1, budget // _TRIAL_SEQUENCE), _TRIAL_SEQUENCE)))
            batch = lay_out(sequences, [np.zeros_like(each) for each in sequences], self.layout)
            last = torch.tensor([rows[-1] for rows in batch.rows])
            started = time.perf_counter()
            try:
                found = self.backend.run(batch, gathers={layer: lambda rows: rows[last.to(rows.device)]}).residuals[layer]
                found.cpu()  # waits for the device
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                _release_memory()
                return None
            return batch.token_ids.size / (time.perf_counter() - started)

        smallest = max(_TRIAL_SEQUENCE, self.token_budget // _TRIAL_FROM)
        tokens_per_second(smallest)  # the first pass sets things up
        self.token_budget = find_token_budget(tokens_per_second, smallest)

    def score(self, jobs: Sequence[Job], trees: Sequence[OptionTree], done: Callable[[int, dict[str, float]], None]) -> None:
        """Read the option log-probabilities of every job; `done(number, log_probs)` hears of each, batch by batch."""
        table = TreatmentTable()
        sequences: list[list[TokenIds]] = []
        treatments: list[list[TokenIds]] = []
        for job, tree in zip(jobs, trees, strict=True):
            prompt = job.rendered.token_ids
            ends = [np.concatenate([prompt, np.array(prefix, dtype=np.int64)]) for prefix in tree.prefixes]
            codes = table.encode(job.interventions, job.rendered, max(map(len, ends)))
            sequences.append(ends)
            treatments.append([codes[: len(end)] for end in ends])

        def run(numbers: list[int]) -> None:
            logits = self._next_token_logits(
                [sequence for number in numbers for sequence in sequences[number]],
                [codes for number in numbers for codes in treatments[number]],
                table,
            )
            rows: list[int] = []
            tokens: list[int] = []
            first = 0
            for number in numbers:
                row = {prefix: first + place for place, prefix in enumerate(trees[number].prefixes)}
                rows += [row[prefix] for prefix, _ in trees[number].steps]
                tokens += [token for _, token in trees[number].steps]
                first += len(row)
            values = iter(gather_log_probs(logits, np.array(rows), np.array(tokens)).tolist())
            for number in numbers:
                done(number, trees[number].log_probs({step: next(values) for step in trees[number].steps}))

        groups = [list(map(distinguished, *pair)) for pair in zip(sequences, treatments, strict=True)]
        self._in_batches(groups, run)

    def next_token_log_probs(self, job: Job) -> Float[Tensor, " vocabulary"]:
        """Log-probabilities of what follows one prompt."""
        table, tokens = TreatmentTable(), job.rendered.token_ids
        codes = table.encode(job.interventions, job.rendered, len(tokens))
        return self._next_token_logits([tokens], [codes], table)[0].float().log_softmax(-1)

    def token_logits(
        self,
        jobs: Sequence[Job],
        tokens: Sequence[Int[np.ndarray, " tokens"]],
        done: Callable[[int, Float[Tensor, "tokens vocabulary"]], None],
    ) -> None:
        """Read the logits after some tokens of every job, on the device; `done(number, logits)` hears of each."""
        table = TreatmentTable()
        sequences = [job.rendered.token_ids for job in jobs]
        treatments = [table.encode(job.interventions, job.rendered, len(job.rendered.token_ids)) for job in jobs]

        def run(numbers: list[int]) -> None:
            logits = self._logits(
                [sequences[n] for n in numbers], [treatments[n] for n in numbers], [tokens[n] for n in numbers], table
            )
            for number, part in zip(numbers, logits.split([len(tokens[number]) for number in numbers]), strict=True):
                done(number, part)

        groups = [[distinguished(*pair)] for pair in zip(sequences, treatments, strict=True)]
        most = max(map(len, tokens), default=1)
        self._in_batches(groups, run, sequences=max(1, _SEQUENCES_PER_BATCH // max(1, most)))

    def capture(
        self,
        jobs: Sequence[Job],
        selections: Sequence[Selection],
        layers: Sequence[int],
        done: Callable[[int, Float[np.ndarray, "rows layers d_model"]], None],
    ) -> None:
        """Read residual rows of every job as float32, stopping at the deepest layer; `done(number, rows)` hears of each.

        Parameters
        ----------
        selections
            For each job, the rows wanted.
        layers
            Ascending layer indices; the middle axis of the result.
        """
        table = TreatmentTable()
        sequences = [job.rendered.token_ids for job in jobs]
        treatments = [table.encode(job.interventions, job.rendered, len(job.rendered.token_ids)) for job in jobs]

        def run(numbers: list[int]) -> None:
            batch = lay_out([sequences[n] for n in numbers], [treatments[n] for n in numbers], self.layout)
            wanted = [rows[tokens] for n, rows in zip(numbers, batch.rows, strict=True) for tokens in selections[n]]
            gather = _mean_rows(wanted)
            residuals = self.backend.run(
                batch, gathers=dict.fromkeys(layers, gather), edits=table.edits(batch.treatments)
            ).residuals
            device = residuals[layers[0]].device
            rows = torch.stack([residuals[layer].to(device) for layer in layers], dim=1).cpu().numpy()
            ends = np.cumsum([len(selections[number]) for number in numbers])
            for number, part in zip(numbers, np.split(rows, ends[:-1]), strict=True):
                done(number, part)

        self._in_batches([[distinguished(*pair)] for pair in zip(sequences, treatments, strict=True)], run)

    def generate(
        self,
        jobs: Sequence[Job],
        samplings: Sequence[Sampling],
        draws: Sequence[int],
        end_of_turn_ids: Sequence[int],
        done: Callable[[int, list[int]], None],
    ) -> None:
        """Sample a continuation of every job; `done(number, new_tokens)` hears of each, batch by batch."""
        for sampling in dict.fromkeys(samplings):
            members = [number for number, each in enumerate(samplings) if each == sampling]
            # Room for the answer counts towards the budget, as it will fill the cache.
            room = np.zeros(sampling.max_new_tokens, dtype=np.int64)
            groups = [[np.concatenate([jobs[number].rendered.token_ids, room])] for number in members]

            def run(places: list[int], sampling: Sampling = sampling, members: list[int] = members) -> None:
                numbers = [members[place] for place in places]
                drawn = generate(
                    self.backend,
                    [jobs[number].rendered for number in numbers],
                    sampling,
                    [draws[number] for number in numbers],
                    end_of_turn_ids,
                    [jobs[number].interventions for number in numbers],
                )
                for number, tokens in zip(numbers, drawn, strict=True):
                    done(number, tokens)

            self._in_batches(groups, run, layout="left")

    def _in_batches(
        self,
        groups: Sequence[Sequence[TokenIds]],
        run: Callable[[list[int]], None],
        layout: Layout | None = None,
        sequences: int = _SEQUENCES_PER_BATCH,
    ) -> None:
        """Run groups batch by batch; on running out of memory, halve the batch and the budget and go on."""
        batches = plan(groups, layout or self.layout, self.token_budget, sequences)
        # The batch with the longest sequence goes first: what does not fit is met at the start.
        pending = sorted(batches, key=lambda numbers: max(len(each) for number in numbers for each in groups[number]))
        while pending:
            numbers = pending.pop()
            try:
                run(numbers)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error) or len(numbers) == 1:
                    raise
                self.token_budget = max(1, self.token_budget // 2)
                _release_memory()
                half = len(numbers) // 2
                pending += [numbers[half:], numbers[:half]]

    def _next_token_logits(
        self, sequences: Sequence[TokenIds], treatments: Sequence[TokenIds], table: TreatmentTable
    ) -> Float[Tensor, "sequences vocabulary"]:
        """Logits after the last token of each sequence."""
        return self._logits(sequences, treatments, [np.array([len(sequence) - 1]) for sequence in sequences], table)

    def _logits(
        self,
        sequences: Sequence[TokenIds],
        treatments: Sequence[TokenIds],
        tokens: Sequence[Int[np.ndarray, " tokens"]],
        table: TreatmentTable,
    ) -> Float[Tensor, "asked vocabulary"]:
        """Logits after some tokens of each sequence, one sequence after the other."""
        batch = lay_out(sequences, treatments, self.layout)
        edits = table.edits(batch.treatments)
        asked = np.concatenate([rows[own] for rows, own in zip(batch.rows, tokens, strict=True)])
        resume = None
        if edits and batch.packing is not None:
            trunk = lay_out(sequences, [np.zeros_like(codes) for codes in treatments], self.layout)
            below, blocks = min(edits) + 1, self.backend.n_layers
            together, apart = batch.token_ids.size * blocks, trunk.token_ids.size * below
            apart += batch.token_ids.size * (blocks - below)
            if apart <= _TRUNK_MUST_COST * together:
                layer = min(edits)
                residual = self.backend.run(trunk, gathers={layer: lambda rows: rows.clone()}).residuals[layer]
                source = torch.from_numpy(np.concatenate(trunk.rows)[batch.packing.source])
                resume = (layer, residual[source.to(residual.device)][None])
        logits = self.backend.run(batch, edits=edits, logits_at=asked, resume=resume).logits
        assert logits is not None
        return logits


def _mean_rows(wanted: Sequence[Int[np.ndarray, " tokens"]]) -> Gather:
    """Make a gather that averages each set of flat rows, in float32 and on the device."""
    rows = torch.from_numpy(np.concatenate(wanted))
    owner = torch.from_numpy(np.repeat(np.arange(len(wanted)), [len(each) for each in wanted]))
    size = torch.tensor([len(each) for each in wanted], dtype=torch.float32)[:, None]
    placed: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}  # copied once, not for every layer

    def gather(residual: Tensor) -> Tensor:
        device = residual.device
        if device not in placed:
            placed[device] = (rows.to(device), owner.to(device), size.to(device))
        index, into, count = placed[device]
        sums = torch.zeros(len(wanted), residual.shape[-1], device=device)
        return sums.index_add_(0, into, residual[index].float()) / count

    return gather


def _release_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
