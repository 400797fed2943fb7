"""Labels that `penchant direction make` starts from: one target, obtained in one way, of the tasks that a store holds."""

from pathlib import Path

import pandas as pd

from store import ActivationStore
from store.labels import check_labels


def read_labels(path: Path, target: str | None, by: str | None) -> pd.DataFrame:
    """Labels of one target, obtained in one way; neither need be named where the file has only one.

    Raises
    ------
    ValueError
        There is no such table, target or way, or there are several and none is named.
    """
    table = read_table(path)
    if not {"target", "method", "task_id"}.issubset(table):
        return check_labels(table)  # which says what is missing
    table = _only(table, "target", target, f"{path} has labels of", "--target")
    if by is not None or table["task_id"].duplicated().any():
        table = _only(table, "method", by, f"{table['target'].iloc[0]} in {path} was obtained by", "--labels-by")
    return check_labels(table)


def _only(table: pd.DataFrame, column: str, wanted: str | None, subject: str, flag: str) -> pd.DataFrame:
    """Rows with one value of a column, the only one there is unless one is named."""
    found = table[column].astype(str).drop_duplicates().tolist()
    if wanted not in found and (wanted is not None or len(found) != 1):
        raise ValueError(
            f"{subject} {', '.join(found) or 'nothing'}{f', and not {wanted}' if wanted else ''}; say which with {flag}."
        )
    return table[table[column].astype(str) == (wanted or found[0])]


def read_table(path: Path) -> pd.DataFrame:
    """Read a table of a run, Parquet or CSV; ids are texts even where they are all digits.

    Raises
    ------
    ValueError
        There is no such file, or it is neither by its name.
    """
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    match path.suffix:
        case ".parquet":
            return pd.read_parquet(path)
        case ".csv":
            return pd.read_csv(path, dtype={"task_id": str, "first": str, "second": str})
    raise ValueError(f"{path} is neither Parquet nor CSV by its name; expected a table of a run, .parquet or .csv.")


def of_held_tasks(labels: pd.DataFrame, store: ActivationStore) -> pd.DataFrame:
    """Labels of the tasks that a store holds: a run also labels some, such as controls, that nobody captured.

    Raises
    ------
    ValueError
        It holds none.
    """
    frame = store.frame()
    kept = labels[labels["task_id"].isin(frame.loc[frame["done"], "task_id"])].reset_index(drop=True)
    if kept.empty:
        raise ValueError(
            f"{store.name} holds none of the {len(labels)} tasks with labels, such as {labels['task_id'].iloc[0]!r}; expected "
            "a capture of these tasks."
        )
    return kept
