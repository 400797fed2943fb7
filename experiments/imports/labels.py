"""Utilities, ratings or any other value per task from elsewhere, as labels."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from elicit.utilities import NORMAL_REACH
from experiments.imports.record import begin, finish, labels_kind
from experiments.imports.tables import ForeignFileError, ids, numbers, read_foreign_table, require, rows_of, take_columns
from experiments.imports.tasks import check_ids, read_origins
from store import read_labels, write_labels
from store.labels import check_labels

COLUMNS = ("task_id", "value", "se", "low", "high", "n")
"""What `--columns` may name."""

METHOD = "imported"


def import_labels(
    source: Path, out: Path, *, target: str = "utility", columns: Mapping[str, str] | None = None, tasks: str | None = None
) -> pd.DataFrame:
    """Read a value per task, and write it to a run directory as `tables/labels` and `import.yaml`.

    Labels of another target that were imported before stay beside it.

    Parameters
    ----------
    columns
        For each of penchant's columns, the file's; see `COLUMNS`.
    tasks
        File of the tasks, or `builtin`: other ids are then an error, and origins are kept with the run.

    Raises
    ------
    ForeignFileError
        See `read_foreign_table`, `labels_of` and `record.begin`; or ids are not among the tasks.
    """
    columns = dict(columns or {})
    labels = labels_of(read_foreign_table(source), source, target, columns)
    origins = read_origins(tasks) if tasks else None
    if origins is not None:
        check_ids(labels["task_id"].tolist(), origins, source, str(tasks))
    kind = labels_kind(target)
    entry = begin(out, kind, source, {"columns": columns})
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "labels.parquet"
    before = read_labels(path) if path.exists() else labels.head(0)
    both = pd.concat([before[before["target"] != target], labels], ignore_index=True) if len(before) else labels
    write_labels(both, path)
    both.to_csv(folder / "labels.csv", index=False)
    if origins is not None:
        origins.to_parquet(folder / "tasks.parquet", index=False)
    finish(out, kind, entry | {"rows": len(labels)})
    return labels


def labels_of(foreign: pd.DataFrame, source: Path, target: str, columns: Mapping[str, str]) -> pd.DataFrame:
    """A foreign table as labels of one target.

    An interval that is not given is that of a normal error, where there is a standard error.

    Raises
    ------
    ForeignFileError
        A column or value is missing, an id is empty or repeated, or a number is not one.
    """
    taken = take_columns(foreign, columns, COLUMNS, source)
    require(taken, ("task_id", "value"), foreign, source)
    task_ids, value = ids(taken["task_id"], source), numbers(taken["value"], source)
    if (missing := pd.Series(np.isnan(value), foreign.index)).any():
        raise ForeignFileError(f"{rows_of(missing)} of {source}: {taken['value'].name} is empty; leave such tasks out.")
    if (repeated := task_ids.duplicated()).any():
        raise ForeignFileError(
            f"{rows_of(repeated)} of {source}: the task {task_ids[repeated].iloc[0]!r} was given before; expected one row a "
            "task. Other targets belong in files or columns of their own."
        )
    found = {
        name: numbers(taken[name], source, least=least) if name in taken else np.full(len(foreign), np.nan)
        for name, least in (("se", 0.0), ("low", -np.inf), ("high", -np.inf))
    }
    margin = NORMAL_REACH * found["se"]
    low, high = (np.where(np.isnan(found[end]), value + sign * margin, found[end]) for end, sign in (("low", -1), ("high", 1)))
    n = np.nan_to_num(numbers(taken["n"], source, least=0)).astype(int) if "n" in taken else 0
    return check_labels(
        pd.DataFrame(
            {
                "task_id": task_ids.to_numpy(),
                "target": target,
                "value": value,
                "se": found["se"],
                "low": low,
                "high": high,
                "n": n,
                "method": METHOD,
            }
        )
    )
