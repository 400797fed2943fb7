"""Ranking: several tasks are put in order, exactly over all orders of up to four, place by place of up to eight.

Every group is also shown in the reverse order, so that each pair in it is seen both ways round.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from elicit.context import Context
from elicit.modes.choice import COMPARISON_COLUMNS
from elicit.respondent import Respondent
from elicit.runner import ask
from elicit.tasks import Task
from elicit.templates import surface_forms, template
from store.measurements import MeasurementLog
from store.records import Answer, Option, Outcome, Question, Span

MOST_AT_ONCE = 4
MOST_BY_PLACES = 8
_NAMES = {"AB": "ABCDEFGH", "12": "12345678"}


def questions(
    tasks: Sequence[Task], groups: Sequence[Sequence[str]], *, wording: str = "rather_do", context: Context = Context()
) -> list[Question]:
    """Questions whose options are all orders of a group of two to four tasks, each group in two opposite orders of showing.

    Raises
    ------
    ValueError
        A group is too small or too large.
    KeyError
        A group names an unknown task.
    """
    made = []
    for question in _shown(tasks, groups, wording, context, MOST_AT_ONCE):
        labels = question.measures["labels"]
        orders = (", ".join(order) for order in itertools.permutations(labels))
        made.append(_among(question, list(orders)))
    return made


def by_places(
    tasks: Sequence[Task],
    groups: Sequence[Sequence[str]],
    respondent: Respondent,
    log: MeasurementLog | None = None,
    *,
    wording: str = "rather_do",
    context: Context = Context(),
) -> tuple[list[Question], list[Answer]]:
    """Ask for the first place, then for the second given the likeliest first, and so on (Plackett-Luce stages).

    Returns
    -------
    The questions of all places and their answers, for `comparisons` and `orders`.
    """
    asked: list[Question] = []
    answered: list[Answer] = []
    open_questions = [_for_place(question, ()) for question in _shown(tasks, groups, wording, context, MOST_BY_PLACES)]
    while open_questions:
        answers = ask(open_questions, respondent, log, description="places")
        asked += open_questions
        answered += answers
        following = []
        for question, answer in zip(open_questions, answers, strict=True):
            if answer.log_probs and len(question.options) > 2:
                best = max(answer.log_probs, key=answer.log_probs.__getitem__)
                following.append(_for_place(question, (*question.measures["placed"], best)))
        open_questions = following
    return asked, answered


def comparisons(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """What rankings say about every pair, in the columns of `choice.comparisons`.

    Of orders: the log-odds that the task shown earlier is ranked above the other. Of places: the log-odds that it, rather
    than the other, takes the place.
    """
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        shown: Mapping[str, str] = dict(zip(question.measures["labels"], question.measures["shown"], strict=True))
        remaining = [label for label in shown if label not in question.measures["placed"]]
        for first, second in itertools.combinations(remaining, 2):
            logit = math.nan
            if answer.outcome is Outcome.CHOSE and answer.log_probs:
                logit = _log_odds(answer.log_probs, first, second)
            p_first = 1 / (1 + math.exp(-logit)) if logit == logit else math.nan
            where = (shown[first], shown[second], question.measures["template"], question.draw)
            rows.append((*where, answer.outcome.value, answer.mass, logit, p_first))
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _log_odds(log_probs: Mapping[str, float], first: str, second: str) -> float:
    above, below = [], []
    for option, value in log_probs.items():
        order = option.split(", ")
        places = [order.index(label) if label in order else len(order) for label in (first, second)]
        if places[0] != places[1]:
            (above if places[0] < places[1] else below).append(value)
    return float(np.logaddexp.reduce(above) - np.logaddexp.reduce(below))


def _for_place(question: Question, placed: tuple[str, ...]) -> Question:
    """The question for the next place, given the labels of those before it."""
    remaining = [label for label in question.measures["labels"] if label not in placed]
    start = question.measures["prefill"]
    return replace(
        _among(question, remaining),
        prefill=", ".join([f"{start} {placed[0]}", *placed[1:]]) + "," if placed else start,
        measures={**question.measures, "placed": list(placed), "place": len(placed) + 1},
    )


def _among(question: Question, labels: Sequence[str]) -> Question:
    minimum_mass = template("ranking", question.measures["template"]).minimum_mass
    return replace(question, options=tuple(Option(label, surface_forms(label)) for label in labels), minimum_mass=minimum_mass)


def _shown(tasks: Sequence[Task], groups: Sequence[Sequence[str]], wording: str, context: Context, most: int) -> list[Question]:
    chosen = template("ranking", wording)
    by_id = {task.id: task.text for task in tasks}
    made = []
    for group in groups:
        if not 2 <= len(set(group)) == len(group) <= most:
            raise ValueError(f"A group of {len(group)} tasks {list(group)[:9]}; expected 2 to {most} different ones.")
        if unknown := [task_id for task_id in group if task_id not in by_id]:
            raise KeyError(f"A group names the tasks {unknown}, which are not among the tasks.")
        labels = list(_NAMES[chosen.levels["labels"]][: len(group)])
        for shown in (list(group), list(group)[::-1]):
            text, places = "", []
            for label, task_id in zip(labels, shown, strict=True):
                text += f"{chr(10) * 2 if text else ''}Task {label}: "
                places.append((len(text), len(text) + len(by_id[task_id])))
                text += by_id[task_id]
            measures = {"labels": labels, "shown": shown, "placed": [], "prefill": chosen.prefill}
            for question in context.questions(chosen, {"tasks": text}, measures):
                (whole,) = question.spans
                spans = tuple(
                    Span(f"task_{label.lower()}", whole.message, whole.start + start, whole.start + end)
                    for label, (start, end) in zip(labels, places, strict=True)
                )
                made.append(replace(question, spans=spans))
    return made
