"""Completions: what the respondent writes when it is given a task, or asked about it in the open."""

import re
from collections.abc import Sequence

import pandas as pd

from elicit.context import Context
from elicit.parsing import split_thought
from elicit.tasks import Task
from elicit.templates import template
from store.records import Answer, Outcome, Question, Sampling

COMPLETION_COLUMNS = ("task_id", "draw", "task", "text", "thought", "outcome", "truncated")
_LEAKED_WORDS = 8


def questions(
    tasks: Sequence[Task], *, wording: str = "task", context: Context = Context(sampling=Sampling())
) -> list[Question]:
    """One question per task and draw.

    Parameters
    ----------
    wording
        Template of mode `completion`: `task` for the task itself; `feeling`, `opinion` and `domain` ask about it.
    context
        Needs sampling.

    Raises
    ------
    ValueError
        The context has no sampling.
    """
    if context.sampling is None:
        raise ValueError("A completion is sampled text; expected a context with sampling=Sampling(...).")
    chosen = template("completion", wording)
    return [question for task in tasks for question in context.questions(chosen, {"task": task.text}, {"task": task.id})]


def completions(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per text that came back: `task_id, draw, task, text, thought, outcome, truncated`.

    A thought is kept apart from the text. Failed questions are left out.
    """
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        if answer.outcome is not Outcome.ERROR:
            span = question.spans[-1]
            task = question.messages[span.message].content[span.start : span.end]
            thought, said = split_thought(answer.text or "")
            rows.append((question.measures["task"], question.draw, task, said, thought, answer.outcome.value, answer.truncated))
    return pd.DataFrame(rows, columns=list(COMPLETION_COLUMNS))


def texts(table: pd.DataFrame) -> dict[str, str]:
    """The first text of every task, by task id, as `rating.questions` and `choice_after.questions` take them."""
    first = table.drop_duplicates("task_id")
    return dict(zip(first["task_id"].astype(str), first["text"].astype(str), strict=True))


def leaks(text: str, system: str | None) -> bool:
    """Whether a text repeats its system prompt: eight words of it in a row, or all of a shorter one."""
    said, secret = _words(text), _words(system or "")
    if not secret:
        return False
    size = min(_LEAKED_WORDS, len(secret))
    windows = {secret[start : start + size] for start in range(len(secret) - size + 1)}
    return any(said[start : start + size] in windows for start in range(len(said) - size + 1))


def without_leaks(table: pd.DataFrame, system: str | None) -> pd.DataFrame:
    """Completions that do not repeat the system prompt that they were written under."""
    return table[[not leaks(text, system) for text in table["text"]]].reset_index(drop=True)


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.casefold()))
