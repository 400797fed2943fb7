"""Judges: a model reads replies and says whether they refuse, make sense, or like what they were asked.

A judgement is the expected value over the answers' probabilities, so it has no sampling noise, and the mass that falls on
no answer is known.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from elicit.context import Context
from elicit.templates import template
from store.records import Answer, Outcome, Question

JUDGEMENT_COLUMNS = ("task_id", "draw", "criterion", "outcome", "mass", "value", "choice")


def questions(completions: pd.DataFrame, *, criterion: str, context: Context = Context()) -> list[Question]:
    """One question per completion.

    Parameters
    ----------
    completions
        From `completion.completions`: `task_id, draw, task, text`. For the criteria `executed` and `choice`, which concern
        pairs, `task_a` and `task_b` in place of `task`.
    criterion
        Template of mode `judge`: `refusal`, `coherence`, `sentiment`, `executed`, `choice`.

    Raises
    ------
    KeyError
        A column that the criterion needs is missing.
    """
    chosen = template("judge", criterion)
    needed = [field for field in chosen.fields if field != "completion"]
    if missing := [name for name in ("task_id", "draw", "text", *needed) if name not in completions]:
        raise KeyError(
            f"The completions lack the columns {missing}, which judging {criterion!r} needs; they have {list(completions)}."
        )
    made = []
    for row in completions.to_dict("records"):
        values = {name: row[name] for name in needed} | {"completion": row["text"] or "(empty)"}
        made += context.questions(chosen, values, {"task": row["task_id"], "of_draw": row["draw"]})
    return made


def judgements(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per judged completion.

    Returns
    -------
    Columns `task_id, draw, criterion, outcome, mass, value, choice`. `value` is the expected value on the criterion's scale
    (refusal and coherence from 0 to 1, sentiment from -1 to 1), `choice` the most probable answer; both are missing unless
    the judge answered on format.
    """
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        criterion = question.measures["template"]
        scale = template("judge", criterion).scale
        value, choice = np.nan, None
        if answer.outcome is Outcome.CHOSE:
            distribution = answer.distribution() if answer.log_probs else {str(answer.choice): 1.0}
            value = sum(scale[label] * weight for label, weight in distribution.items())
            choice = max(distribution, key=distribution.__getitem__)
        measures = question.measures
        rows.append((measures["task"], measures["of_draw"], criterion, answer.outcome.value, answer.mass, value, choice))
    return pd.DataFrame(rows, columns=list(JUDGEMENT_COLUMNS))
