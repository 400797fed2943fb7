"""The tables that a run directory has for other experiments: labels, and comparisons, found where every run puts them."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

_PLACES = (Path("tables") / "labels.parquet", Path("labels.parquet"))


def run_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Names of the directories, with those they are in where names alone are not enough."""
    short = tuple(path.resolve().name for path in paths)
    return short if len(set(short)) == len(short) else tuple(map(str, paths))


def labels_file(run: Path) -> Path | None:
    """Where the labels of a run are; None where it has none.

    Raises
    ------
    ValueError
        There is no such directory.
    """
    if not run.is_dir():
        raise ValueError(f"There is no run directory {run}.")
    return next((run / place for place in _PLACES if (run / place).is_file()), None)


def comparisons_of(run: Path) -> pd.DataFrame | None:
    """The comparisons of a run; None where it has none, or none with a probability of the first."""
    file = run / "tables" / "comparisons.parquet"
    if not file.is_file():
        return None
    table = pd.read_parquet(file)
    return table if {"first", "second", "p_first"} <= set(table) else None
