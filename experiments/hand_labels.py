"""Labels that people gave: tables with a task id a row, codebooks with several codes a task, and what codes mean.

Columns become labels by what is in them: numbers, a few categories, codes, or free text. The files are read without trust.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from elicit.utilities import NORMAL_REACH
from experiments.imports.tables import ForeignFileError, ids, read_foreign_table, rows_of, texts

Kind = Literal["number", "category", "codes", "text"]

ID_COLUMNS = ("task_id", "id")
CODE_COLUMNS = ("code", "codes")
MEANING = "description"
_MOST_CATEGORIES = 40
_SEPARATORS = r"\s*[;|]\s*"
_COMPANIONS = ("se", "low", "high")
_SHOWN = 3


@dataclass(frozen=True, eq=False)
class TaskLabel:
    """One thing that is known of tasks.

    Attributes
    ----------
    name
        As it is shown.
    kind
        `number`; `category`: one of a few texts; `codes`: any number of them; `text`: shown and searched, not coloured.
    table
        Indexed by task id, `value` (a float, a text, or a tuple of texts), and of numbers `se, low, high`, missing where they
        are not known. Tasks without a value are left out.
    source
        The run or file that it is from.
    target, method
        Of labels of a run.
    meanings
        What categories or codes mean, where a codebook says.
    """

    name: str
    kind: Kind
    table: pd.DataFrame
    source: str
    target: str = ""
    method: str = ""
    meanings: Mapping[str, str] = field(default_factory=dict)

    @property
    def values(self) -> pd.Series:
        """By task id."""
        return self.table["value"]


def number_label(name: str, table: pd.DataFrame, source: str, target: str = "", method: str = "") -> TaskLabel:
    """A label of numbers from a table with `task_id, value` and, where they are known, `se, low, high`."""
    columns = {each: table.get(each, np.nan) for each in ("value", *_COMPANIONS)}
    found = pd.DataFrame(columns, index=table.index).astype(float).set_axis(table["task_id"].astype(str), axis=0)
    return TaskLabel(name, "number", found.dropna(subset=["value"]), source, target, method)


def read_hand_labels(paths: Sequence[Path], known: Sequence[str]) -> tuple[list[TaskLabel], list[str]]:
    """Read files of hand labels and codebooks.

    A file with a column `task_id` or `id` has labels: every other column is one. Its rows are of different tasks, unless its
    only other column is `code`: then each row is one code of a task. Cells of `code` or `codes` may hold several, with `;` or
    `|` between them, or a list. A file with `code` and `description` and no ids says what codes mean.

    Parameters
    ----------
    known
        Ids of the tasks. Others are left out and counted.

    Returns
    -------
    The labels, and a sentence for every file with ids that are left out.

    Raises
    ------
    ForeignFileError
        See `read_foreign_table`; a file has neither ids nor meanings, an id is empty or repeated, none of its ids is a task's,
        or codes have no meaning in the codebook.
    """
    found: list[TaskLabel] = []
    meanings: dict[str, str] = {}
    remarks: list[str] = []
    for path in paths:
        table = read_foreign_table(path)
        id_column = next((name for name in ID_COLUMNS if name in table), None)
        if id_column is None:
            meanings |= _meanings(table, path)
            continue
        task_ids = ids(table[id_column], path)
        unknown = sorted(set(task_ids) - set(known))
        if len(unknown) == task_ids.nunique():
            raise ForeignFileError(
                f"None of the {len(unknown)} ids in {path} is a task's, for instance {', '.join(unknown[:_SHOWN])}; the tasks "
                f"are called like {', '.join(list(known)[:_SHOWN])}. Give the ids of the tasks in {id_column}."
            )
        if unknown:
            left_out = "match no task and are left out" if len(unknown) > 1 else "matches no task and is left out"
            remarks.append(
                f"{len(unknown)} of {task_ids.nunique()} ids in {path.name} {left_out}, for instance "
                f"{', '.join(unknown[:_SHOWN])}."
            )
        found += _labels_of(table.drop(columns=id_column), task_ids, set(known), path)
    return [_with_meanings(label, meanings) for label in found], remarks


def _meanings(table: pd.DataFrame, path: Path) -> dict[str, str]:
    code = next((name for name in CODE_COLUMNS if name in table), None)
    if code is None or MEANING not in table:
        raise ForeignFileError(
            f"{path} has the columns {', '.join(map(str, table.columns))}; expected task_id (or id) and labels, or code and "
            f"{MEANING}, which say what codes mean. Rename the column that has the ids."
        )
    codes, said = ids(table[code], path), texts(table[MEANING])
    if (repeated := codes.duplicated()).any():
        raise ForeignFileError(f"{rows_of(repeated)} of {path}: the code {codes[repeated].iloc[0]!r} was described before.")
    return dict(zip(codes, said, strict=True))


def _labels_of(columns: pd.DataFrame, task_ids: pd.Series, known: set[str], path: Path) -> list[TaskLabel]:
    kept = task_ids.isin(known)
    if columns.empty or not len(columns.columns):
        raise ForeignFileError(f"{path} has ids and no other column; expected a label in each of its other columns.")
    names = [str(name) for name in columns.columns]
    if names[0] in CODE_COLUMNS and len(names) == 1:
        return [_codes(names[0], columns[names[0]], task_ids, kept, path)]
    if (repeated := task_ids.duplicated()).any():
        raise ForeignFileError(
            f"{rows_of(repeated)} of {path}: the task {task_ids[repeated].iloc[0]!r} was labelled before; expected one row a "
            "task. Several codes of a task stand in one cell with ; between them, or in a file of task_id and code alone."
        )
    companions = {f"{name}_{end}": (name, end) for name in names for end in _COMPANIONS if f"{name}_{end}" in names}
    found = []
    for name in names:
        if name in companions or columns[name].isna().all():
            continue
        listed = columns[name].map(lambda cell: isinstance(cell, list | tuple | np.ndarray))
        if name in CODE_COLUMNS or listed.any():
            found.append(_codes(name, columns[name], task_ids, kept, path))
            continue
        more = {end: columns[f"{name}_{end}"] for end in _COMPANIONS if f"{name}_{end}" in companions}
        found.append(_column(name, columns[name], more, task_ids, kept, path))
    return found


def _codes(name: str, column: pd.Series, task_ids: pd.Series, kept: pd.Series, path: Path) -> TaskLabel:
    def split(cell: Any) -> list[str]:
        if isinstance(cell, list | tuple | np.ndarray):
            return [str(each).strip() for each in cell if str(each).strip()]
        return [each for each in pd.Series([cell]).pipe(texts).str.split(_SEPARATORS, regex=True).iloc[0] if each]

    rows = pd.DataFrame({"task_id": task_ids, "code": column.map(split)}).explode("code").dropna()
    if (repeated := rows.duplicated()).any():
        task, code = rows[repeated].iloc[0]
        raise ForeignFileError(
            f"{rows_of(repeated)} of {path}: the task {task!r} has the code {code!r} twice; expected each code of a task once."
        )
    by_task = rows[kept.reindex(rows.index)].groupby("task_id", sort=False)["code"].agg(tuple)
    return TaskLabel(name, "codes", by_task.to_frame("value"), path.name)


def _column(
    name: str, column: pd.Series, more: Mapping[str, pd.Series], task_ids: pd.Series, kept: pd.Series, path: Path
) -> TaskLabel:
    written = texts(column)
    given = written != ""
    values = pd.to_numeric(written.where(given, None), errors="coerce").astype(float)
    if bool(np.isfinite(values[given]).all()) and not column.map(lambda cell: isinstance(cell, bool | np.bool_)).any():
        ends = {end: pd.to_numeric(texts(each), errors="coerce").astype(float) for end, each in more.items()}
        if "se" in ends and "low" not in ends:
            ends |= {"low": values - NORMAL_REACH * ends["se"], "high": values + NORMAL_REACH * ends["se"]}
        return number_label(name, pd.DataFrame({"task_id": task_ids, "value": values} | ends)[kept & given], path.name)
    table = written[kept & given].set_axis(task_ids[kept & given], axis=0).to_frame("value")
    distinct = table["value"].nunique()
    few = distinct <= _MOST_CATEGORIES and (distinct <= 12 or 2 * distinct <= len(table))
    return TaskLabel(name, "category" if few else "text", table, path.name)


def _with_meanings(label: TaskLabel, meanings: Mapping[str, str]) -> TaskLabel:
    if not meanings or label.kind not in ("codes", "category"):
        return label
    used = set(label.values.explode()) if label.kind == "codes" else set(label.values)
    if label.kind == "codes" and (without := sorted(used - set(meanings))):
        raise ForeignFileError(
            f"{len(without)} {'codes' if len(without) > 1 else 'code'} in {label.source} "
            f"{'are' if len(without) > 1 else 'is'} not in the codebook, for instance {', '.join(without[:_SHOWN])}; it "
            f"has {', '.join(list(meanings)[:_SHOWN])}. Describe them, or mend their spelling."
        )
    known = {each: meanings[each] for each in used if each in meanings}
    return replace(label, meanings=known) if known else label
