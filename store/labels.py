"""Labels: one row per task and target (a utility, a rating, a rate) with its uncertainty, as a Parquet table."""

from pathlib import Path

import numpy as np
import pandas as pd

LABEL_COLUMNS = ("task_id", "target", "value", "se", "low", "high", "n", "method")


def check_labels(labels: pd.DataFrame) -> pd.DataFrame:
    """Return the label columns of `labels` in standard order, or say what is wrong with them.

    Raises
    ------
    ValueError
        A column is missing, a task has two values for one target, or a value is not a number.
    """
    missing = [column for column in LABEL_COLUMNS if column not in labels]
    if missing:
        raise ValueError(f"Labels lack the columns {missing}; expected {list(LABEL_COLUMNS)}.")
    repeated = labels[labels.duplicated(["task_id", "target"])]
    if len(repeated):
        first = repeated.iloc[0]
        raise ValueError(
            f"Task {first.task_id!r} has more than one value for target {first.target!r} ({len(repeated)} such rows); "
            "expected one row per task and target."
        )
    bad = labels[~np.isfinite(labels["value"].astype(float))]
    if len(bad):
        raise ValueError(
            f"{len(bad)} label values are not finite, the first for task {bad.iloc[0].task_id!r}; "
            "leave such tasks out (a task without an answer has no label)."
        )
    return labels.loc[:, list(LABEL_COLUMNS)].reset_index(drop=True)


def write_labels(labels: pd.DataFrame, path: str | Path) -> None:
    """Check and write labels to a Parquet file."""
    check_labels(labels).to_parquet(path, index=False)


def read_labels(path: str | Path) -> pd.DataFrame:
    """Read labels from a Parquet file and check them."""
    return check_labels(pd.read_parquet(path))
