"""Ranking: several tasks are put in order, exactly over all orders of up to four, place by place of up to eight.

The probability of an order is a product over places: that of the first label, that of the second given the first, and so
on, with the words between them given. Every group is also shown in the reverse order, so that each pair in it is seen
both ways round.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from scipy import special

from elicit.context import Context
from elicit.modes.choice import COMPARISON_COLUMNS
from elicit.respondent import Respondent
from elicit.runner import ask
from elicit.tasks import Task
from elicit.templates import surface_forms, template
from store.measurements import MeasurementLog
from store.records import Answer, Option, Outcome, Question, Span

SEPARATOR = ", Task "
MOST_AT_ONCE = 4
MOST_BY_PLACES = 8
_NAMES = {"AB": "ABCDEFGH", "12": "12345678"}


def questions(
    tasks: Sequence[Task], groups: Sequence[Sequence[str]], *, wording: str = "rather_do", context: Context = Context()
) -> list[Question]:
    """Questions for every place of every order of groups of two to four tasks; read with `orders` and `comparisons`.

    Raises
    ------
    ValueError
        A group is too small or too large.
    KeyError
        A group names an unknown task.
    """
    return [
        _for_place(question, placed)
        for question in _shown(tasks, groups, wording, context, MOST_AT_ONCE)
        for n_placed in range(len(question.measures["labels"]) - 1)
        for placed in itertools.permutations(question.measures["labels"], n_placed)
    ]


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


def orders(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """Probability of every order of every group, from the questions of `questions`.

    Returns
    -------
    Columns `shown, order` (tuples of task ids), `template, draw, probability, mass`: the last is the least mass on the labels
    at any place. Groups with a place off format are left out.
    """
    groups: dict[tuple[Any, ...], dict[tuple[str, ...], Answer]] = {}
    for question, answer in zip(asked, answers, strict=True):
        measures = question.measures
        key = (tuple(measures["shown"]), tuple(measures["labels"]), measures["template"], question.draw)
        groups.setdefault(key, {})[tuple(measures["placed"])] = answer
    rows = []
    for (shown, labels, name, draw), places in groups.items():
        if any(answer.outcome is not Outcome.CHOSE for answer in places.values()):
            continue
        mass = min(answer.mass or 0.0 for answer in places.values())
        chance = {placed: answer.distribution() for placed, answer in places.items()}
        task = dict(zip(labels, shown, strict=True))
        for order in itertools.permutations(labels):
            probability = math.prod(chance[order[:place]][order[place]] for place in range(len(order) - 1))
            rows.append((shown, tuple(task[label] for label in order), name, draw, probability, mass))
    return pd.DataFrame(rows, columns=["shown", "order", "template", "draw", "probability", "mass"])


def comparisons(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """What rankings say about every pair, in the columns of `choice.comparisons`.

    For each pair and place that is open to both: the log-odds that the task shown earlier, rather than the other, takes it.
    """
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        measures = question.measures
        shown = dict(zip(measures["labels"], measures["shown"], strict=True))
        for first, second in itertools.combinations([option.label for option in question.options], 2):
            logit = p_first = math.nan
            if answer.outcome is Outcome.CHOSE and answer.log_probs:
                logit = answer.log_probs[first] - answer.log_probs[second]
                p_first = float(special.expit(logit))
            where = (shown[first], shown[second], measures["template"], question.draw)
            rows.append((*where, answer.outcome.value, answer.mass, answer.refusal_mass, logit, p_first))
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def _for_place(question: Question, placed: tuple[str, ...]) -> Question:
    """The question for the next place, given the labels of those before it."""
    remaining = [label for label in question.measures["labels"] if label not in placed]
    start = question.measures["prefill"]
    return replace(
        _among(question, remaining),
        prefill=SEPARATOR.join([f"{start} {placed[0]}", *placed[1:]]) + SEPARATOR.rstrip() if placed else start,
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
