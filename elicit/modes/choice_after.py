"""Pairwise choice after doing: two tasks are shown with what was answered to them, each pair in both orders."""

from collections.abc import Iterable, Mapping, Sequence

from elicit.context import Context
from elicit.modes.choice import comparisons, orders
from elicit.tasks import Task
from elicit.templates import template
from store.records import Question

__all__ = ["comparisons", "questions"]


def questions(
    tasks: Sequence[Task],
    pairs: Iterable[tuple[str, str]],
    completions: Mapping[str, str],
    *,
    wording: str = "enjoy_most",
    context: Context = Context(),
    both_orders: bool = True,
) -> list[Question]:
    """Questions for pairs of finished tasks; read the answers with `comparisons`.

    Parameters
    ----------
    completions
        What was answered to each task, by task id: by this respondent or by another one.
    wording
        Template of mode `choice_after`.

    Raises
    ------
    KeyError
        A pair names an unknown task, or one without a completion.
    """
    by_id = {task.id: task.text for task in tasks}
    chosen = template("choice_after", wording)
    made = []
    for first, second in orders(pairs, by_id, both_orders):
        for task_id in (first, second):
            if task_id not in completions:
                raise KeyError(f"Task {task_id!r} has no completion; a choice after doing needs one of each task.")
        values = {
            "task_a": by_id[first],
            "completion_a": completions[first],
            "task_b": by_id[second],
            "completion_b": completions[second],
        }
        made += context.questions(chosen, values, {"first": first, "second": second})
    return made
