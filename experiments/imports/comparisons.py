"""Comparisons from elsewhere, in penchant's own columns: who was chosen over whom, or how probably, in the order shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from elicit.modes.choice import COMPARISON_COLUMNS
from experiments.imports.record import begin, finish
from experiments.imports.tables import (
    Columns,
    ForeignFileError,
    ids,
    numbers,
    read_foreign_table,
    require,
    rows_of,
    take_columns,
    texts,
)
from experiments.imports.tasks import check_ids, read_origins
from store.records import Outcome

COLUMNS = (
    "first", "second", "outcome", "winner", "loser", "p_first", "logit", "wins_first", "wins_second",
    "weight", "template", "draw", "mass", "refusal",
)  # fmt: skip
"""What `--columns` may name."""

_SHARES = {"first": 1.0, "second": 0.0, "tie": 0.5}
OUTCOMES = (*_SHARES, *(str(each.value) for each in Outcome))
"""What `--outcomes` may map a value to; they need no mapping themselves."""

_ANSWERS = ("outcome", "winner", "p_first", "logit", "wins_first", "wins_second")
_CHOSE, _NOTHING = Outcome.CHOSE.value, Outcome.OFF_FORMAT.value
_SHOWN = 8


@dataclass(frozen=True)
class ImportedComparisons:
    """What came of an import.

    Attributes
    ----------
    table
        In the columns of `choice.comparisons`, and `weight` where there are any.
    order_known
        Whether `first` was shown first; of winners and losers that is not known, and the order is that of their ids.
    notes
        What a reader must know, a sentence each.
    """

    table: pd.DataFrame
    order_known: bool
    notes: tuple[str, ...]


def import_comparisons(
    source: Path,
    out: Path,
    *,
    columns: Mapping[str, str] | None = None,
    outcomes: Mapping[str, str] | None = None,
    tasks: str | None = None,
) -> ImportedComparisons:
    """Read comparisons, and write them to a run directory as `tables/comparisons` and `import.yaml`.

    Parameters
    ----------
    columns
        For each of penchant's columns, the file's; see `COLUMNS`.
    outcomes
        For each value of the file's column of outcomes, what it is; see `OUTCOMES`.
    tasks
        File of the tasks, or `builtin`: other ids are then an error, and origins are kept with the run.

    Raises
    ------
    ForeignFileError
        See `read_foreign_table`, `comparisons_of` and `record.begin`; or ids are not among the tasks.
    """
    columns, outcomes = dict(columns or {}), dict(outcomes or {})
    foreign = read_foreign_table(source)
    found = comparisons_of(foreign, source, columns, outcomes)
    origins = read_origins(tasks) if tasks else None
    if origins is not None:
        check_ids([*found.table["first"], *found.table["second"]], origins, source, str(tasks))
    entry = begin(out, "comparisons", source, {"columns": columns, "outcomes": outcomes})
    folder = out / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    found.table.to_csv(folder / "comparisons.csv", index=False)
    found.table.to_parquet(folder / "comparisons.parquet", index=False)
    if origins is not None:
        origins.to_parquet(folder / "tasks.parquet", index=False)
    counts = {str(name): int(count) for name, count in found.table["outcome"].value_counts().items()}
    finish(out, "comparisons", entry | {"rows": len(found.table), "counts": counts, "order_known": found.order_known})
    return found


def comparisons_of(
    foreign: pd.DataFrame, source: Path, columns: Mapping[str, str], outcomes: Mapping[str, str]
) -> ImportedComparisons:
    """A foreign table in penchant's columns.

    The answer is in one of these: `logit` or `p_first` (of the first; `outcome` may then say which rows are choices),
    `wins_first` and `wins_second` (counts), `outcome`, `winner` (an id, beside `first` and `second`), or `winner` and `loser`.

    Raises
    ------
    ForeignFileError
        A column is missing, an outcome is not mapped, an id is empty, a task meets itself, or a number is not one.
    """
    for value, meaning in outcomes.items():
        if meaning not in OUTCOMES:
            raise ForeignFileError(f"--outcomes {value}={meaning}: {meaning!r} is no outcome; expected {', '.join(OUTCOMES)}.")
    taken = take_columns(foreign, columns, COLUMNS, source)
    order_known = not {"winner", "loser"} <= set(taken) or {"first", "second"} <= set(taken)
    ends = ("first", "second") if order_known else ("winner", "loser")
    answered = not order_known or any(name in taken for name in _ANSWERS)
    require(taken, ends if answered else (*ends, "outcome"), foreign, source)
    first, second = (ids(taken[end], source) for end in ends)
    if (itself := first == second).any():
        raise ForeignFileError(f"{rows_of(itself)} of {source}: {first[itself].iloc[0]!r} is compared with itself.")
    answers = _answers(taken, (first, second), foreign, source, outcomes) if order_known else _won(len(first))
    table = pd.DataFrame({"first": first, "second": second} | answers)
    if not order_known:
        table = _sorted_by_id(table)
    for name in ("mass", "refusal"):
        table[name] = numbers(taken[name], source, least=0, greatest=1) if name in taken else np.nan
    table["template"] = texts(taken["template"]) if "template" in taken else "imported"
    cells = table.groupby(["first", "second", "template"])
    table["draw"] = numbers(taken["draw"], source).astype(int) if "draw" in taken else cells.cumcount()
    if "weight" in taken:
        table["weight"] = _complete(numbers(taken["weight"], source, least=0), table["outcome"] == _CHOSE, "weight", source)
    table = table[[*COMPARISON_COLUMNS, *(["weight"] if "weight" in table else [])]].reset_index(drop=True)
    return ImportedComparisons(table, order_known, tuple(_notes(table, order_known)))


def _answers(
    taken: Columns, ends: tuple[pd.Series, pd.Series], foreign: pd.DataFrame, source: Path, outcomes: Mapping[str, str]
) -> dict[str, Any]:
    """Columns `outcome`, `p_first`, `logit` and perhaps `weight` of a table whose order is known."""
    none = np.full(len(foreign), np.nan)
    if "logit" in taken or "p_first" in taken:
        meant = _meanings(taken["outcome"], source, outcomes) if "outcome" in taken else pd.Series(_CHOSE, foreign.index)
        outcome = meant.where(~meant.isin(list(_SHARES)), _CHOSE)
        return {"outcome": outcome} | _exact(taken, outcome == _CHOSE, source)
    if "wins_first" in taken or "wins_second" in taken:
        require(taken, ("wins_first", "wins_second"), foreign, source)
        won, lost = (numbers(taken[name], source, least=0) for name in ("wins_first", "wins_second"))
        total = np.nan_to_num(won) + np.nan_to_num(lost)
        share = np.divide(np.nan_to_num(won), total, out=none.copy(), where=total > 0)
        return {"outcome": np.where(total > 0, _CHOSE, _NOTHING), "p_first": share, "logit": none, "weight": total}
    if "winner" in taken and "outcome" not in taken:
        winner = texts(taken["winner"])
        by_id = np.select([winner == ends[0], winner == ends[1]], ["first", "second"], default="")
        meant = pd.Series(by_id, foreign.index)
        rest = meant == ""
        if rest.any():
            meant[rest] = _meanings(taken["winner"][rest], source, outcomes)
    else:
        meant = _meanings(taken["outcome"], source, outcomes)
    outcome = meant.where(~meant.isin(list(_SHARES)), _CHOSE)
    if (bare := meant == _CHOSE).any():
        raise ForeignFileError(f"{rows_of(bare)} of {source} says {_CHOSE!r} and not which; expected first, second or tie.")
    return {"outcome": outcome, "p_first": meant.map(_SHARES).astype(float), "logit": none}


def _exact(taken: Columns, chose: pd.Series, source: Path) -> dict[str, Any]:
    """Probabilities and log-odds, either from the other; there are no log-odds where some probability is 0 or 1."""
    name = "logit" if "logit" in taken else "p_first"
    bounds = {} if name == "logit" else {"least": 0.0, "greatest": 1.0}
    given = _complete(numbers(taken[name].where(chose, None), source, **bounds), chose, name, source)
    given = np.where(chose, given, np.nan)
    if name == "logit":
        return {"p_first": special.expit(given), "logit": given}
    sure = bool(((given == 0) | (given == 1)).any())
    return {"p_first": given, "logit": np.full(len(given), np.nan) if sure else special.logit(given)}


def _complete(values: np.ndarray, needed: pd.Series, name: str, source: Path) -> np.ndarray:
    if (missing := needed & np.isnan(values)).any():
        raise ForeignFileError(
            f"{rows_of(missing)} of {source}: {name} is empty; expected a number for every choice. What is none is said by a "
            "column of outcomes, such as refused."
        )
    return values


def _meanings(column: pd.Series, source: Path, outcomes: Mapping[str, str]) -> pd.Series:
    """What the values of a column of outcomes are."""
    written = texts(column)
    known = {name: name for name in OUTCOMES} | dict(outcomes)
    strange = written[~written.isin(list(known))].value_counts()
    if len(strange):
        counted = ", ".join(f"{value!r} ({count:,} rows)" for value, count in strange.head(_SHOWN).items())
        more = f" and {len(strange) - _SHOWN} others" if len(strange) > _SHOWN else ""
        option = " ".join(f'"{value}=..."' if " " in value or not value else f"{value}=..." for value in strange.index[:3])
        raise ForeignFileError(
            f"The column {column.name} of {source} has values that are no outcome: {counted}{more}. Say what each is: "
            f"--outcomes {option}, with one of {', '.join(OUTCOMES)}."
        )
    return written.map(known)


def _won(n: int) -> dict[str, Any]:
    return {"outcome": [_CHOSE] * n, "p_first": np.ones(n), "logit": np.full(n, np.nan)}


def _sorted_by_id(table: pd.DataFrame) -> pd.DataFrame:
    """With the smaller id first: who won says nothing of who was shown first."""
    swapped = table["first"] > table["second"]
    return table.assign(
        first=table["first"].where(~swapped, table["second"]),
        second=table["second"].where(~swapped, table["first"]),
        p_first=np.where(swapped, 0.0, 1.0),
    )


def _notes(table: pd.DataFrame, order_known: bool) -> list[str]:
    chosen = table[table["outcome"] == _CHOSE]
    found = []
    if not order_known:
        found.append("Winners and losers do not say which was shown first: no position term is fitted.")
    is_probability = ~chosen["p_first"].isin(list(_SHARES.values())).all() and "weight" not in table
    if is_probability and chosen["logit"].isna().any():
        n = int(chosen["p_first"].isin([0, 1]).sum())
        found.append(f"{n:,} probabilities are 0 or 1 and have no log-odds: fit them by Bradley-Terry or Thurstone.")
    return found
