"""Capture: the residual streams of many prompts, streamed into an activation store; a killed capture is continued.

Prompts are read twice, so that memory does not grow with their number: once for their lengths and digests, from which
the file is laid out, and again, longest first, as they are run (a short list is kept instead). Rows are written while the
next batch runs.
"""

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Int
from tqdm import tqdm

from interp.engine import Job
from interp.layers import LayerSpec
from interp.model import LocalModel
from interp.positions import Positions
from interp.rendering import Rendered
from store.activations import ActivationStore
from store.layout import Slots, StoreHeader
from store.measurements import Entry, MeasurementLog, answer_key
from store.provenance import digest
from store.records import Answer, Question
from store.writer import ActivationWriter

_PROMPTS_AT_A_TIME = 1024
"""Prompts are rendered and put in order so many at a time."""
_TASKS_PER_COMMIT = 64
_BYTES_PER_COMMIT = 64 << 20
_SECONDS_PER_COMMIT = 1.0
_COMMITS_IN_FLIGHT = 2


def capture(
    model: LocalModel,
    questions: Sequence[Question],
    task_ids: Sequence[str],
    path: str | Path,
    *,
    layers: LayerSpec | Sequence[LayerSpec],
    positions: Sequence[str],
    completions: Sequence[str] | MeasurementLog | None = None,
    dtype: str = "auto",
    unfit: Literal["refuse", "skip"] = "refuse",
) -> ActivationStore:
    """Cache the residual stream of each task at some layers and positions.

    Parameters
    ----------
    questions, task_ids
        A prompt for each task (see `elicit.task_question`), and the ids that its rows are found by.
    path
        HDF5 file, created if absent. If it was left unfinished, only its missing rows are computed.
    layers
        Block indices, fractions of the depth, ranges, `embed` or `all`.
    positions
        Such as `prompt_last`, `task_mean`, `turn_boundary:-1..-5`, `completion_mean`; those without a reduction (`all`,
        `completion`) have a row for every token.
    completions
        Answers to read after the prompts: texts, or a measurement log. Each question, which then needs `sampling`, is
        completed by the model unless the log has its completion, and the store keeps its key in the log.
    dtype
        `float32` or `bfloat16`; `auto` takes the model's own.
    unfit
        Whether a prompt that is longer than the model's context, or an empty completion, is an error or skipped and
        counted (`ActivationStore.skipped`).

    Raises
    ------
    ValueError
        No tasks, a task id twice, a position that a prompt lacks, a prompt longer than the model's context.
    StoreMismatch, UnwritableStore
        The file holds other activations (the message names the field that differs), or cannot be written.
    """
    if len(questions) != len(task_ids):
        raise ValueError(f"{len(questions)} questions but {len(task_ids)} task ids; expected one id for each question.")
    if unfit not in ("refuse", "skip"):
        raise ValueError(f"unfit is {unfit!r}; expected 'refuse' or 'skip'.")
    where = Positions.parse_all(positions)
    texts, keys = _completions(model, questions, completions)
    prompts = _Prompts(model, questions, texts, where)
    survey = prompts.survey(task_ids)
    if len(survey.unfit) and unfit == "refuse":
        raise ValueError(survey.complaint(task_ids, model))
    if len(survey.unfit) == len(questions) > 0:
        raise ValueError(f"Nothing is left to capture. {survey.complaint(task_ids, model)}")
    header = StoreHeader(
        model=model.identity,
        tokenizer_hash=model.renderer.tokens.digest,
        template_hash=model.renderer.template_hash,
        attention=f"{model.backend.name}, {model.backend.attention}, {model.engine.layout}",
        dtype=model.dtype if dtype == "auto" else dtype,
        d_model=model.d_model,
        layers=model.layers(layers),
        positions=tuple(map(str, where)),
    )
    with ActivationWriter.resume(path, header, Slots(task_ids, survey.digests, survey.rows, keys)) as writer:
        slots = writer.open_slots()
        if len(skipped := np.intersect1d(slots, survey.unfit)):
            writer.skip(skipped, survey.lengths[skipped])
        _fill(model, prompts, np.setdiff1d(slots, survey.unfit), survey.lengths, writer)
    return ActivationStore(path)


def _completions(
    model: LocalModel, questions: Sequence[Question], completions: Sequence[str] | MeasurementLog | None
) -> tuple[Sequence[str] | None, Sequence[str]]:
    """Texts of the completions, and their keys in the log they came from."""
    if not isinstance(completions, MeasurementLog):
        if completions is not None and len(completions) != len(questions):
            raise ValueError(f"{len(completions)} completions for {len(questions)} questions; expected one each.")
        return completions, ()
    if unsampled := [number for number, question in enumerate(questions) if question.sampling is None]:
        raise ValueError(f"Question {unsampled[0]} has no sampling; a completion can be drawn only with Question.sampling.")
    keys = [answer_key(model.fingerprint, model.prompt_digest(question), question) for question in questions]
    known = completions.get(keys)
    missing = [number for number, key in enumerate(keys) if key not in known]
    with tqdm(total=len(keys), initial=len(keys) - len(missing), desc="complete", unit="task", disable=None) as progress:

        def keep(place: int, answer: Answer) -> None:
            number = missing[place]
            completions.put([Entry(keys[number], model.fingerprint, questions[number], answer)])
            known[keys[number]] = answer
            progress.update()

        model.generate([questions[number] for number in missing], keep)
    return [known[key].text or "" for key in keys], keys


@dataclass
class _Survey:
    """What must be known of all prompts before the file is laid out; a few bytes a prompt."""

    lengths: Int[np.ndarray, " tasks"]
    digests: list[str]
    rows: dict[str, Int[np.ndarray, " tasks"]]
    unfit: Int[np.ndarray, " unfit"]

    def complaint(self, task_ids: Sequence[str], model: LocalModel) -> str:
        shown = [
            f"{task_ids[slot]!r} ({f'{self.lengths[slot]} tokens' if self.lengths[slot] else 'empty completion'})"
            for slot in self.unfit[:5]
        ]
        more = f" and {len(self.unfit) - 5} more" if len(self.unfit) > 5 else ""
        return (
            f"{model.identity.name} has room for {model.context_length} tokens; these tasks cannot be read: "
            f"{', '.join(shown)}{more}. Shorten them, leave them out, or pass unfit='skip' to have them skipped and counted."
        )


@dataclass(frozen=True)
class _Prompts:
    """Prompts, rendered as they are asked for; the first of them are kept."""

    model: LocalModel
    questions: Sequence[Question]
    completions: Sequence[str] | None
    positions: Sequence[Positions]
    _kept: dict[int, Rendered] = field(default_factory=dict)

    def render(self, number: int) -> Rendered | None:
        """A prompt and its completion; None where that is empty."""
        completion = None if self.completions is None else self.completions[number]
        if completion == "":
            return None
        rendered = self._kept.get(number) or self.model.render(self.questions[number], completion)
        if len(self._kept) < _PROMPTS_AT_A_TIME:
            self._kept[number] = rendered
        return rendered

    def survey(self, task_ids: Sequence[str]) -> _Survey:
        n = len(self.questions)
        several = {str(position): np.zeros(n, dtype=np.int64) for position in self.positions if not position.has_one_row}
        lengths, digests, unfit = np.zeros(n, dtype=np.int64), [], []
        limit = self.model.context_length
        for number in tqdm(range(n), desc="read prompts", unit="task", disable=None if n > 4 * _PROMPTS_AT_A_TIME else True):
            rendered = self.render(number)
            lengths[number] = 0 if rendered is None else len(rendered.token_ids)
            if rendered is None or (limit is not None and lengths[number] > limit):
                digests.append("")
                unfit.append(number)
                continue
            try:
                selected = [position.tokens(rendered) for position in self.positions]
            except ValueError as error:
                raise ValueError(f"Task {task_ids[number]!r}: {error}") from error
            digests.append(digest(rendered.token_ids, selected)[:32])
            for position, tokens in zip(self.positions, selected, strict=True):
                if not position.has_one_row:
                    several[str(position)][number] = len(tokens)
        return _Survey(lengths, digests, several, np.array(unfit, dtype=np.int64))


@dataclass
class _Ready:
    """Rows of some tasks that are not written yet."""

    slots: list[int] = field(default_factory=list)
    rows: list[Float[np.ndarray, "rows layers d_model"]] = field(default_factory=list)
    tokens: list[list[Int[np.ndarray, " tokens"]]] = field(default_factory=list)
    since: float = field(default_factory=time.monotonic)

    @property
    def is_due(self) -> bool:
        size = sum(rows.nbytes for rows in self.rows)
        late = time.monotonic() - self.since > _SECONDS_PER_COMMIT
        return len(self.slots) >= _TASKS_PER_COMMIT or size >= _BYTES_PER_COMMIT or late

    def write(self, writer: ActivationWriter, positions: Sequence[Positions], lengths: Int[np.ndarray, " tasks"]) -> int:
        grid: dict[tuple[int, str], np.ndarray] = {}
        index: dict[str, np.ndarray] = {}
        first = np.zeros(len(self.slots), dtype=np.int64)
        for place, position in enumerate(positions):
            chosen = [tokens[place] for tokens in self.tokens]
            counts = [1 if position.has_one_row else len(tokens) for tokens in chosen]
            rows = np.concatenate([rows[a : a + n] for rows, a, n in zip(self.rows, first, counts, strict=True)])
            first += counts
            for column, layer in enumerate(writer.file.header.layers):
                grid[layer, str(position)] = rows[:, column]
            index[str(position)] = np.concatenate(
                [[-1] if position.has_one_row and len(tokens) > 1 else tokens for tokens in chosen]
            )
        slots = np.array(self.slots)
        writer.write(slots, grid, lengths[slots], index)
        return len(slots)


def _fill(
    model: LocalModel,
    prompts: _Prompts,
    slots: Int[np.ndarray, " slots"],
    lengths: Int[np.ndarray, " tasks"],
    writer: ActivationWriter,
) -> None:
    """Compute and commit slots, the longest prompts first, so that what does not fit in memory is met at the start."""
    slots = slots[np.argsort(-lengths[slots], kind="stable")]
    model.engine.settle_token_budget(int(lengths[slots].sum()))
    with (
        tqdm(total=len(writer), initial=len(writer) - len(slots), desc="capture", unit="task", disable=None) as progress,
        ThreadPoolExecutor(max_workers=1) as thread,
    ):
        in_flight: list[Future[int]] = []
        ready = _Ready()

        def commit() -> None:
            nonlocal ready
            in_flight.append(thread.submit(ready.write, writer, prompts.positions, lengths))
            ready = _Ready()
            _settle(in_flight, _COMMITS_IN_FLIGHT, progress)

        for part in _parts(slots):
            jobs = [Job(rendered, model.interventions) for slot in part if (rendered := prompts.render(slot)) is not None]
            chosen = [[position.tokens(job.rendered) for position in prompts.positions] for job in jobs]
            selections = [
                [rows for position, tokens in zip(prompts.positions, each, strict=True) for rows in position.rows(tokens)]
                for each in chosen
            ]

            def done(number: int, rows: np.ndarray, part: np.ndarray = part, chosen: list = chosen) -> None:
                ready.slots.append(int(part[number]))
                ready.rows.append(rows)
                ready.tokens.append(chosen[number])
                if ready.is_due:
                    commit()

            model.engine.capture(jobs, selections, writer.file.header.layers, done)
        if ready.slots:
            commit()
        _settle(in_flight, 0, progress)


def _settle(in_flight: list[Future[int]], at_most: int, progress: tqdm) -> None:
    """Wait until no more than so many commits are under way; what went wrong in one is raised here."""
    while len(in_flight) > at_most:
        progress.update(in_flight.pop(0).result())


def _parts(slots: Int[np.ndarray, " slots"]) -> Iterable[Int[np.ndarray, " part"]]:
    return (slots[start : start + _PROMPTS_AT_A_TIME] for start in range(0, len(slots), _PROMPTS_AT_A_TIME))
