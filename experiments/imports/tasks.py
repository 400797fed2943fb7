"""Tasks that imported ids are held against, and the origins of tasks wherever a run knows them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from elicit import builtin_tasks, load_tasks
from experiments.imports.tables import ForeignFileError

_LEADING_WORDS = re.compile(r"[^\W\d_]+(?:[_-][^\W\d_]+)*(?=[_-]?\d)")
_SHOWN = 3


def read_origins(source: str) -> pd.DataFrame:
    """Columns `task_id, origin, topic` of a file of tasks, or of the built-in ones."""
    tasks = builtin_tasks() if source == "builtin" else load_tasks(source)
    return pd.DataFrame([(task.id, task.origin, task.topic) for task in tasks], columns=["task_id", "origin", "topic"])


def check_ids(found: Sequence[str], tasks: pd.DataFrame, source: Path, where: str) -> None:
    """Raise a ForeignFileError that counts the ids which are not among the tasks, with examples of both."""
    known, used = set(tasks["task_id"]), set(found)
    if unknown := sorted(used - known):
        raise ForeignFileError(
            f"{len(unknown)} of {len(used)} ids in {source} are not among the {len(known)} tasks of {where}, for instance "
            f"{', '.join(unknown[:_SHOWN])}; the tasks are called like {', '.join(sorted(known)[:_SHOWN])}. Give the tasks "
            "that were compared, or leave --tasks out."
        )


def origins_of(task_ids: Sequence[str], runs: Sequence[Path] = (), tasks: str | None = None) -> tuple[dict[str, str], str]:
    """Origins of tasks, and where they are from.

    In this order: a file of tasks; the table `tasks` of a run; the files of tasks in a run's settings; the built-in tasks; the
    words that ids begin with (`alpaca_1014` is of `alpaca`), where they make groups. Tasks of which nothing is known are of the
    origin `all`.
    """
    ways: list[tuple[str, Mapping[str, str]]] = []
    if tasks:
        ways.append((tasks, _by_id(read_origins(tasks))))
    tables = [run / "tables" / "tasks.parquet" for run in runs]
    ways += [(f"the tasks of {path.parent.parent.name}", _by_id(pd.read_parquet(path))) for path in tables if path.is_file()]
    ways += [(path.name, _by_id(read_origins(str(path)))) for run in runs for path in _files_of(run)]
    ways.append(("the built-in tasks", {task.id: task.origin for task in builtin_tasks()}))
    ways.append(("the words that ids begin with", _leading_words(task_ids)))
    for said, known in ways:
        if all(task in known for task in task_ids):
            return {task: known[task] for task in task_ids}, said
    return dict.fromkeys(task_ids, "all"), ""


def _files_of(run: Path) -> list[Path]:
    """Files of tasks that a run's settings name, as far as they are still there."""
    config = run / "config.yaml"
    found = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    named = found.get("tasks") if isinstance(found, dict) else None
    listed = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return [path for each in listed if (path := Path(str(each))).suffix in (".jsonl", ".csv", ".parquet") and path.is_file()]


def _by_id(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["task_id"], table["origin"], strict=True))


def _leading_words(task_ids: Sequence[str]) -> dict[str, str]:
    """The words before the first number of every id; nothing, unless they make groups of two or more."""
    found = {task: match[0] for task in task_ids if (match := _LEADING_WORDS.match(task))}
    counts = pd.Series(found, dtype=object).value_counts()
    return found if len(counts) > 1 and counts.median() > 1 else {}
