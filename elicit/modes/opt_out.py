"""Opt-out: a task against being allowed not to do it, in several wordings of the latter."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from elicit.context import Context
from elicit.modes import choice
from elicit.pairs import order_averages
from elicit.tasks import Task
from store.labels import LABEL_COLUMNS
from store.records import Question


def questions(
    tasks: Sequence[Task], nulls: Sequence[Task], *, wording: str = "would_rather", context: Context = Context()
) -> list[Question]:
    """Choices between every task and every null task, in both orders; read the answers with `choice.comparisons`.

    Parameters
    ----------
    nulls
        Ways of not doing anything, such as `null_tasks()`.
    wording
        Template of mode `choice`.
    """
    pairs = [(task.id, null.id) for task in tasks for null in nulls]
    return choice.questions([*tasks, *nulls], pairs, wording=wording, context=context)


def labels(comparisons: pd.DataFrame, nulls: Sequence[Task]) -> pd.DataFrame:
    """How far each task is preferred to not doing it.

    Returns
    -------
    Labels of three targets: `over_null`, the mean log-odds of the task against the null tasks, with its spread over them as
    uncertainty; `opts_out`, the share of null tasks that are preferred to it; `any_null`, whether any of them is.
    """
    names = {null.id for null in nulls}
    pairs = order_averages(comparisons)
    swapped = pairs["task_1"].isin(names)
    task = pairs["task_2"].where(swapped, pairs["task_1"])
    content = pairs["content"].where(~swapped, -pairs["content"])
    grouped = pd.DataFrame({"task_id": task, "content": content}).groupby("task_id", sort=False)["content"]
    mean, n = grouped.mean(), grouped.size()
    se = grouped.std(ddof=1) / np.sqrt(n)
    share, any_null = grouped.agg(lambda values: (values < 0).mean()), grouped.agg(lambda values: float((values < 0).any()))
    rows = pd.concat(
        [
            pd.DataFrame({"value": mean, "se": se, "low": mean - 1.96 * se, "high": mean + 1.96 * se, "n": n}).assign(
                target="over_null"
            ),
            pd.DataFrame({"value": share, "n": n}).assign(target="opts_out"),
            pd.DataFrame({"value": any_null, "n": n}).assign(target="any_null"),
        ]
    )
    return rows.rename_axis("task_id").reset_index().assign(method="opt-out").reindex(columns=list(LABEL_COLUMNS))
