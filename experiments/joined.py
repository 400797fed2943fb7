"""Joined by task id: labels of runs, labels of people, texts and origins; everything that `explore` knows of the tasks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from elicit import Task, TaskError, builtin_conversations, calibration_tasks, null_tasks
from elicit.hub import PREFIX, PRESETS
from experiments.hand_labels import TaskLabel, number_label, read_hand_labels
from experiments.imports import origins_of
from experiments.run_tables import comparisons_of, labels_file, run_names
from experiments.settings import read_source
from store.labels import check_labels

_SHOWN = 3
_MOST_TOPICS = 40
ORIGIN, LENGTH = "origin", "text length"
_CONTROLS = {"calibration": "calibration (controls)"}
"""Origins of tasks that are there to be compared with, as the map names them."""


@dataclass(frozen=True, eq=False)
class Joined:
    """Tasks and what is known of them.

    Attributes
    ----------
    ids
        Every task that a run has a label of (or compares, or has activations of, where it has no labels).
    texts, origins
        By id; a text that is nowhere to be found is missing.
    labels
        In the order in which they are offered.
    comparisons
        By the run's name.
    remarks
        What was left out, and what does not fit, one sentence each.
    """

    ids: list[str]
    texts: Mapping[str, str]
    origins: Mapping[str, str]
    labels: list[TaskLabel]
    comparisons: Mapping[str, pd.DataFrame]
    remarks: tuple[str, ...]

    def label(self, name: str, setting: str) -> TaskLabel:
        """The label of that name.

        Raises
        ------
        ValueError
            There is none.
        """
        found = next((label for label in self.labels if label.name == name and label.kind == "number"), None)
        if found is None:
            known = ", ".join(label.name for label in self.labels if label.kind == "number")
            raise ValueError(f"{setting} is {name!r}, and there is no such label of numbers; there are {known}.")
        return found


def join(
    runs: Sequence[Path],
    hand: Sequence[Path],
    tasks: Sequence[str],
    stored: Mapping[Path, Sequence[str]],
    include: Sequence[str] | None = None,
) -> Joined:
    """Read runs, hand labels and texts, and join them by task id.

    Parameters
    ----------
    tasks
        Sources of the tasks, as settings name them; without any, those that the runs' settings name.
    stored
        By run, the ids that its activations are of.
    include
        Ids of the tasks to keep, if not all.

    Raises
    ------
    ValueError
        There is no such run, or nothing in it, or an id to include is in none; see also `read_hand_labels`.
    """
    names = dict(zip(runs, run_names(runs), strict=True))
    tables = {names[run]: _run_labels(run) for run in runs}
    comparisons = {names[run]: table for run in runs if (table := comparisons_of(run)) is not None}
    by_id, remarks = _find_tasks(runs, tasks)
    ids: dict[str, None] = {}
    for run, name in names.items():
        table = tables[name]
        found = list(table["task_id"].astype(str)) if table is not None else []
        if not found and name in comparisons:
            found = list(pd.concat([comparisons[name]["first"], comparisons[name]["second"]]).astype(str))
        found = found or list(stored.get(run, ()))
        if not found:
            raise ValueError(
                f"{run} has no labels, comparisons or activations to explore; expected a run directory of an experiment, or of "
                "penchant import."
            )
        ids |= dict.fromkeys(found)
        if name in comparisons and (table is None or "utility" not in set(table.get("target", ()))):
            remarks.append(f"{run} has comparisons but no utilities: penchant fit {run} --out runs/fitted makes them.")
    if not runs:
        ids = dict.fromkeys(by_id)
    if not ids:
        raise ValueError("There is nothing to explore; expected --runs runs/demo, or --tasks FILE with --labels FILE.")
    labels = _label_of_runs({name: table for name, table in tables.items() if table is not None})
    by_hand, left_out = read_hand_labels(hand, list(ids))
    known = list(ids)
    if include is not None:
        known = _included(known, include)
        labels, by_hand = ([_of_tasks(each, known) for each in several] for several in (labels, by_hand))
        comparisons = {
            name: kept
            for name, table in comparisons.items()
            if len(kept := table[table[["first", "second"]].isin(known).all(axis=1)])
        }
    texts = {task: by_id[task].text for task in known if task in by_id}
    if without := [task for task in known if task not in texts]:
        remarks.append(
            f"The texts of {len(without)} of {len(known)} tasks are nowhere to be found, for instance of "
            f"{', '.join(without[:_SHOWN])}; their ids are shown. Give them with --tasks FILE."
        )
    origins = {task: _CONTROLS.get(by_id[task].origin, by_id[task].origin) for task in known if task in by_id}
    if rest := [task for task in known if task not in origins]:
        origins |= origins_of(rest, runs)[0]
    offered = _told_apart([*labels, *by_hand, *_of_texts(texts, origins, by_id)])
    return Joined(known, texts, origins, offered, comparisons, (*remarks, *left_out))


def _included(known: Sequence[str], include: Sequence[str]) -> list[str]:
    wanted = set(include)
    if unknown := sorted(wanted.difference(known)):
        raise ValueError(
            f"{len(unknown)} of {len(wanted)} ids to include are not among the {len(known)} tasks, for instance "
            f"{', '.join(unknown[:_SHOWN])}; the tasks are called like {', '.join(sorted(known)[:_SHOWN])}."
        )
    return [task for task in known if task in wanted]


def _of_tasks(label: TaskLabel, tasks: Sequence[str]) -> TaskLabel:
    return replace(label, table=label.table[label.table.index.isin(tasks)])


def _run_labels(run: Path) -> pd.DataFrame | None:
    file = labels_file(run)
    return None if file is None else pd.read_parquet(file)


def _label_of_runs(tables: Mapping[str, pd.DataFrame]) -> list[TaskLabel]:
    """One label for every target; of several methods or runs, one for each, called so."""
    found = []
    for run, table in tables.items():
        if "target" not in table or "method" not in table:
            raise ValueError(f"The labels of {run} lack the columns target or method; expected labels as penchant writes them.")
        for target, of_target in table.groupby("target", sort=False):
            several = of_target["method"].nunique() > 1 and of_target["task_id"].duplicated().any()
            parts = of_target.groupby("method", sort=False) if several else [("", of_target)]
            for method, part in parts:
                name = f"{target}, {method}" if several else str(target)
                methods = " and ".join(part["method"].astype(str).unique())
                found.append(number_label(name, check_labels(part), run, str(target), methods))
    return found


def _of_texts(texts: Mapping[str, str], origins: Mapping[str, str], by_id: Mapping[str, Task]) -> list[TaskLabel]:
    """What the tasks themselves say: their origin, their topic, and how long they are."""
    topics = {task: by_id[task].topic for task in texts if by_id[task].topic}
    found = [_category(ORIGIN, origins)]
    if 1 < len(set(topics.values())) <= _MOST_TOPICS:
        found.append(_category("topic", topics))
    if len(texts) > 1:
        lengths = pd.DataFrame({"task_id": list(texts), "value": [float(np.log10(len(text))) for text in texts.values()]})
        found.append(number_label(LENGTH, lengths, "texts", LENGTH, "logarithm (base 10) of characters"))
    return found


def _category(name: str, values: Mapping[str, str]) -> TaskLabel:
    table = pd.DataFrame({"value": list(values.values())}, index=pd.Index(list(values), dtype=str))
    return TaskLabel(name, "category", table, "tasks")


def _told_apart(labels: Sequence[TaskLabel]) -> list[TaskLabel]:
    """Labels of one name get that of their run or file too."""
    names = pd.Series([label.name for label in labels], dtype=str)
    twice = set(names[names.duplicated()])
    apart = [replace(each, name=f"{each.name} ({each.source})") if each.name in twice else each for each in labels]
    if len({each.name for each in apart}) < len(apart):
        again = pd.Series([each.name for each in apart])
        raise ValueError(
            f"Two labels are called {again[again.duplicated()].iloc[0]}; expected files and columns of different names."
        )
    return apart


# ---- texts


def _find_tasks(runs: Sequence[Path], given: Sequence[str]) -> tuple[dict[str, Task], list[str]]:
    """Every task of the sources, by id, the first that has an id counts; and what could not be read."""
    remarks: list[str] = []
    found: dict[str, Task] = {}
    sources = list(given) or list(dict.fromkeys(source for run in runs for source in _named_by(run)))
    differing: set[str] = set()
    for source in sources:
        if not given and (source in PRESETS or source.startswith(PREFIX)):
            remarks.append(f"The tasks of {source} are on the hub, which is not asked unless --tasks {source} says so.")
            continue
        try:
            tasks = read_source(source)
        except TaskError as error:
            if given:
                raise
            remarks.append(f"The tasks that a run names cannot be read: {error}")
            continue
        differing |= {task.id for task in tasks if task.id in found and found[task.id].text != task.text}
        found = {task.id: task for task in tasks} | found
    if differing:
        remarks.append(
            f"{len(differing)} ids, for instance {', '.join(sorted(differing)[:_SHOWN])}, have other texts in other sources: "
            "what is joined there may not be of one task."
        )
    shipped = [*calibration_tasks(), *null_tasks(), *builtin_conversations()] if runs else []
    return {task.id: task for task in shipped} | found, remarks


def _named_by(run: Path) -> list[str]:
    """Sources of tasks in a run's settings; the built-in ones where it names none."""
    config = run / "config.yaml"
    found = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None
    named = found.get("tasks") if isinstance(found, dict) else None
    listed = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    return [str(each) for each in listed] or ["builtin"]
