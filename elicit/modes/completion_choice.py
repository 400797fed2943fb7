"""Completion preference: the respondent chooses one of two tasks and does it. Stated label and executed task are kept apart."""

import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from elicit.context import Context
from elicit.modes.choice import pair_questions
from elicit.tasks import Task
from elicit.templates import template
from store.records import Answer, Outcome, Question, Sampling


def questions(
    tasks: Sequence[Task],
    pairs: Iterable[tuple[str, str]],
    *,
    wording: str = "choose_and_do",
    context: Context = Context(sampling=Sampling(max_new_tokens=96)),
    both_orders: bool = True,
) -> list[Question]:
    """Questions for pairs of tasks, answered by sampled text.

    Raises
    ------
    ValueError
        The context has no sampling.
    """
    if context.sampling is None:
        raise ValueError("A completion preference is sampled text; expected a context with sampling=Sampling(...).")
    return pair_questions(tasks, pairs, template("completion_choice", wording), context, both_orders)


def stated(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per answer, in the columns of `choice.comparisons`, by the label that the text begins with.

    Returns
    -------
    Also `text`, and `task_id, task_a, task_b` for a judge of the criterion `executed`. A text that begins with neither label
    has no `p_first`, whatever it goes on to do.
    """
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        labels = [option.label for option in question.options]
        opening = re.match(rf"\W*task\s+({'|'.join(labels)})\b", answer.text or "", re.IGNORECASE)
        label = opening[1].upper() if opening else None
        outcome = Outcome.CHOSE if label else Outcome.OFF_FORMAT if answer.outcome is Outcome.CHOSE else answer.outcome
        shown = {span.name: question.messages[span.message].content[span.start : span.end] for span in question.spans}
        measures = question.measures
        rows.append(
            {
                "first": measures["first"],
                "second": measures["second"],
                "template": measures["template"],
                "draw": question.draw,
                "outcome": outcome.value,
                "mass": None,
                "refusal": None,
                "logit": np.nan,
                "p_first": np.nan if label is None else float(label == labels[0]),
                "task_id": f"{measures['first']}/{measures['second']}",
                "text": answer.text,
                **shown,
            }
        )
    return pd.DataFrame(rows)


def with_executed(table: pd.DataFrame, judgements: pd.DataFrame) -> pd.DataFrame:
    """Add which task was executed, as a judge read it: `executed_first` (1, 0, or missing) and `kept_word`."""
    executed = judgements["choice"].map({"A": 1.0, "B": 0.0}).to_numpy(dtype=float)
    agrees = np.where(np.isnan(executed) | table["p_first"].isna(), np.nan, executed == table["p_first"])
    return table.assign(executed_first=executed, kept_word=agrees)
