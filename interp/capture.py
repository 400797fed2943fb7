"""Capture: the residual streams of many prompts, streamed into an activation store; a killed capture is continued."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from interp.engine import Job
from interp.layers import LayerSpec
from interp.model import LocalModel
from interp.positions import Positions
from store.activations import ActivationStore, ActivationWriter, StoreHeader
from store.provenance import digest
from store.records import Question

_ROWS_PER_COMMIT = 64


def capture(
    model: LocalModel,
    questions: Sequence[Question],
    task_ids: Sequence[str],
    path: str | Path,
    *,
    layers: LayerSpec | Sequence[LayerSpec],
    positions: Sequence[str],
    dtype: str = "auto",
) -> ActivationStore:
    """Cache one row per task, layer and position.

    Parameters
    ----------
    questions, task_ids
        A prompt for each task (see `elicit.task_question`), and the ids that the rows are found by.
    path
        HDF5 file, created if absent. If it was left unfinished, only its missing rows are computed.
    layers
        Block indices, fractions of the depth, ranges, `embed` or `all`.
    positions
        Positions with one row a prompt, such as `prompt_last` and `task_mean`.
    dtype
        `float32` or `bfloat16`; `auto` takes the model's own.

    Raises
    ------
    ValueError
        No tasks, a task id twice, a position with several rows, a prompt longer than the model's context.
    StoreMismatch
        The file holds other activations; the message names the field that differs.
    """
    if len(questions) != len(task_ids):
        raise ValueError(f"{len(questions)} questions but {len(task_ids)} task ids; expected one id for each question.")
    where = check_capturable(positions)
    jobs = [Job(model.render(question), model.intervention) for question in questions]
    for job, task_id in zip(jobs, task_ids, strict=True):
        if model.context_length is not None and len(job.rendered.token_ids) > model.context_length:
            raise ValueError(
                f"The prompt of task {task_id!r} has {len(job.rendered.token_ids)} tokens; {model.identity.name} has room "
                f"for {model.context_length}. Leave it out or shorten it."
            )
    header = StoreHeader(
        model=model.identity,
        tokenizer_hash=model.renderer.tokens.digest,
        template_hash=model.renderer.template_hash,
        prompts_digest=digest([job.rendered.token_ids for job in jobs]),
        attention=f"{model.backend.attention}, {model.engine.layout}",
        dtype=model.dtype if dtype == "auto" else dtype,
        d_model=model.d_model,
        layers=model.layers(layers),
        positions=tuple(map(str, where)),
    )
    with ActivationWriter.resume(path, header, task_ids) as writer:
        slots = writer.open_slots()
        if len(slots):
            _fill(model, [jobs[slot] for slot in slots], slots, where, writer)
            writer.write_norms()
    return ActivationStore(path)


def check_capturable(positions: Sequence[str]) -> list[Positions]:
    """Parse positions, each of which must have one row a prompt.

    Raises
    ------
    ValueError
        One is not in the grammar, or has a row for every token.
    """
    where = [Positions.parse(position) for position in positions]
    if several := [str(each) for each in where if not each.has_one_row]:
        raise ValueError(
            f"The positions {several} have one row for every token (a name without _mean, _last or _first is all of a span); a "
            "store keeps one row a task. Name a reduction (task_mean, task_last), or read them with model.residuals(...)."
        )
    return where


def _fill(
    model: LocalModel, jobs: Sequence[Job], slots: np.ndarray, where: Sequence[Positions], writer: ActivationWriter
) -> None:
    selections = [[position.tokens(job.rendered) for position in where] for job in jobs]
    ready: list[tuple[int, np.ndarray]] = []

    def commit() -> None:
        numbers = np.array([number for number, _ in ready])
        # From (positions, layers, width) to the store's order, layers first.
        rows = np.stack([rows.transpose(1, 0, 2).reshape(-1, rows.shape[-1]) for _, rows in ready])
        index = [[tokens[0] if len(tokens) == 1 else -1 for tokens in selections[number]] for number in numbers]
        n_tokens = np.array([len(jobs[number].rendered.token_ids) for number in numbers])
        writer.write(slots[numbers], rows, n_tokens, np.array(index))
        progress.update(len(ready))
        ready.clear()

    def done(number: int, rows: np.ndarray) -> None:
        ready.append((number, rows))
        if len(ready) >= _ROWS_PER_COMMIT:
            commit()

    with tqdm(total=len(writer), initial=len(writer) - len(jobs), desc="capture", unit="task", disable=None) as progress:
        model.engine.capture(jobs, selections, writer.header.layers, done)
        if ready:
            commit()
