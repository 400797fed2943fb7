"""Pairwise choice before doing: two tasks are shown and one is picked, each pair in both orders."""

import math
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from elicit.tasks import Task
from elicit.templates import surface_forms, template
from store.records import Answer, Message, Option, Outcome, Question, Sampling

LABELS: Mapping[str, tuple[str, str]] = {"AB": ("A", "B"), "12": ("1", "2")}
"""What the two tasks may be called."""

COMPARISON_COLUMNS = ("first", "second", "template", "labels", "draw", "outcome", "mass", "logit", "p_first")


def questions(
    tasks: Sequence[Task],
    pairs: Iterable[tuple[str, str]],
    *,
    wording: str = "would_rather",
    labels: str = "AB",
    system: str | None = None,
    sampling: Sampling | None = None,
    n_draws: int = 1,
    both_orders: bool = True,
) -> list[Question]:
    """Questions for pairs of tasks.

    Parameters
    ----------
    pairs
        Pairs of task ids; the first of each is shown first.
    wording
        Template of mode `choice`.
    labels
        `AB` or `12`.
    system
        System prompt at measurement time (None: the template's default).
    sampling
        None reads the probabilities exactly; otherwise `n_draws` texts are sampled a question.
    both_orders
        Ask each pair the other way round too. One order alone measures position as much as preference.

    Raises
    ------
    KeyError
        A pair names an unknown task.
    ValueError
        A pair has one task twice, or the labels are unknown.
    """
    if labels not in LABELS:
        raise ValueError(f"Labels {labels!r}; expected one of {sorted(LABELS)}.")
    by_id = {task.id: task for task in tasks}
    shown: list[tuple[str, str]] = []
    for first, second in pairs:
        for task_id in (first, second):
            if task_id not in by_id:
                raise KeyError(f"The pair ({first!r}, {second!r}) names task {task_id!r}, which is not among the tasks.")
        if first == second:
            raise ValueError(f"Task {first!r} is paired with itself.")
        shown += [(first, second), (second, first)] if both_orders else [(first, second)]
    chosen = template("choice", wording)
    options = tuple(Option(label, surface_forms(label)) for label in LABELS[labels])
    made = []
    for first, second in shown:
        text, spans = chosen.fill(
            {
                "task_a": by_id[first].text,
                "task_b": by_id[second].text,
                "label_a": LABELS[labels][0],
                "label_b": LABELS[labels][1],
            }
        )
        for draw in range(n_draws if sampling else 1):
            made.append(
                Question(
                    (Message("user", text),),
                    spans,
                    options,
                    system=system,
                    prefill=chosen.prefill,
                    sampling=sampling,
                    draw=draw,
                    minimum_mass=chosen.minimum_mass,
                    measures={"mode": "choice", "template": wording, "labels": labels, "first": first, "second": second},
                )
            )
    return made


def comparisons(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per answer: which task was shown first, and how strongly it was chosen.

    Returns
    -------
    Columns `first, second, template, labels, draw, outcome, mass, logit, p_first`. `logit` is the log-odds of the task
    shown first, given that one of the two was chosen (exact answers); `p_first` its probability (0 or 1 for a sampled
    choice). Both are missing unless the outcome is `chose`: a refusal is not a vote.
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
        shown = {name: question.measures[name] for name in ("first", "second", "template", "labels")}
        read = {"outcome": answer.outcome.value, "mass": answer.mass, "logit": logit, "p_first": p_first}
        rows.append(shown | {"draw": question.draw} | read)
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))
