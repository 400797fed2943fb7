"""Pairwise choice before doing: two tasks are shown and one is picked, each pair in both orders."""

import math
from collections.abc import Iterable, Sequence

import pandas as pd

from elicit.context import Context
from elicit.tasks import Task
from elicit.templates import Template, template
from store.records import Answer, Outcome, Question

COMPARISON_COLUMNS = ("first", "second", "template", "draw", "outcome", "mass", "refusal", "logit", "p_first")


def questions(
    tasks: Sequence[Task],
    pairs: Iterable[tuple[str, str]],
    *,
    wording: str = "would_rather",
    context: Context = Context(),
    both_orders: bool = True,
) -> list[Question]:
    """Questions for pairs of tasks.

    Parameters
    ----------
    pairs
        Pairs of task ids; the first of each is shown first.
    wording
        Template of mode `choice`: `would_rather`, `would_rather,labels=12`, `pick_one,language=fr,format=xml`.
    context
        System prompt, earlier messages, and how answers are read.
    both_orders
        Ask each pair the other way round too. One order alone measures position as much as preference.

    Raises
    ------
    KeyError
        A pair names an unknown task.
    ValueError
        A pair has one task twice, or the wording is unknown.
    """
    return pair_questions(tasks, pairs, template("choice", wording), context, both_orders)


def pair_questions(
    tasks: Sequence[Task], pairs: Iterable[tuple[str, str]], chosen: Template, context: Context, both_orders: bool
) -> list[Question]:
    """Fill a template that shows two tasks, `task_a` and `task_b`, with pairs; see `questions`."""
    by_id = {task.id: task.text for task in tasks}
    return [
        question
        for first, second in orders(pairs, by_id, both_orders)
        for question in context.questions(
            chosen, {"task_a": by_id[first], "task_b": by_id[second]}, {"first": first, "second": second}
        )
    ]


def orders(pairs: Iterable[tuple[str, str]], known: Iterable[str], both: bool = True) -> list[tuple[str, str]]:
    """Every pair in the orders in which it is shown: each as given, directly followed by its opposite.

    Raises
    ------
    KeyError
        A pair names a task that is not `known`.
    ValueError
        A pair has one task twice.
    """
    known = set(known)
    shown: list[tuple[str, str]] = []
    for first, second in pairs:
        for task_id in (first, second):
            if task_id not in known:
                raise KeyError(f"The pair ({first!r}, {second!r}) names task {task_id!r}, which is not among the tasks.")
        if first == second:
            raise ValueError(f"Task {first!r} is paired with itself.")
        shown += [(first, second), (second, first)] if both else [(first, second)]
    return shown


def comparisons(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per answer: which task was shown first, and how strongly it was chosen.

    Returns
    -------
    Columns `first, second, template, draw, outcome, mass, refusal, logit, p_first`. `mass` is the raw probability of the two
    labels, `refusal` that of opening with a refusal instead, the rest is off format. `logit` is the log-odds of the task shown
    first, given that one of the two was chosen (exact answers); `p_first` its probability (0 or 1 for a sampled choice).
    Both are missing unless the outcome is `chose`: a refusal is not a vote.
    """
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        first_label, second_label = (option.label for option in question.options)
        logit = p_first = math.nan
        if answer.outcome is Outcome.CHOSE and answer.log_probs:
            logit = answer.log_probs[first_label] - answer.log_probs[second_label]
            p_first = answer.distribution()[first_label]
        elif answer.outcome is Outcome.CHOSE:
            p_first = float(answer.choice == first_label)
        shown = {name: question.measures[name] for name in ("first", "second", "template")}
        read = {"outcome": answer.outcome.value, "mass": answer.mass, "refusal": answer.refusal_mass}
        read |= {"logit": logit, "p_first": p_first}
        rows.append(shown | {"draw": question.draw} | read)
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
