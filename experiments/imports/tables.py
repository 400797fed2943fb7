"""Tables from elsewhere, in CSV, TSV, JSON, JSONL, YAML or Parquet, read without trust; columns get penchant's names.

Nothing is unpickled or constructed. Cells of text files stay texts until a column is said to hold numbers, so that the ids
`007` and `NA` survive.
"""

import csv
import difflib
import hashlib
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from jaxtyping import Float

SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", ".yaml", ".yml", ".parquet")
_LARGEST = {".json": 2**30, ".yaml": 2**26, ".yml": 2**26}
"""Bytes; YAML is read a thousand times slower than the others, and JSON in one piece."""
_LARGEST_TABLE = 2**33
_SHOWN = 5


class ForeignFileError(ValueError):
    """A file from elsewhere cannot be taken over; the message names what is wrong with it and the way out."""


def read_foreign_table(path: Path) -> pd.DataFrame:
    """Read a table; its rows are numbered from 1.

    JSON and YAML hold a list of rows (`[{a: 1}, ...]`), columns (`{a: [1, ...]}`), or values by id (`{t1: 0.3}` or
    `{t1: {a: 1}}`, whose ids then are the column `task_id`).

    Raises
    ------
    ForeignFileError
        There is no such file, it is of another kind, too large, damaged or empty, or it is no table.
    """
    suffix = path.suffix.lower()
    if not path.is_file():
        raise ForeignFileError(f"There is no file {path}.")
    if suffix not in SUFFIXES:
        raise ForeignFileError(f"{path} is a {suffix or 'nameless'} file; expected one of {', '.join(SUFFIXES)}.")
    size, largest = path.stat().st_size, _LARGEST.get(suffix, _LARGEST_TABLE)
    if size > largest:
        raise ForeignFileError(
            f"{path} has {size / 1e6:,.0f} MB; expected at most {largest / 1e6:,.0f} of {suffix[1:].upper()}. Write it as "
            "Parquet, or in parts."
        )
    if not size:
        raise ForeignFileError(f"{path} is empty; expected a table with a row an answer or a task.")
    try:
        table = _read(path, suffix)
    except ForeignFileError:
        raise
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ForeignFileError(f"{path} is not UTF-8 (it has the byte 0x{byte:02x}); save it as UTF-8.") from error
    except Exception as error:  # a file from elsewhere fails in any way
        raise ForeignFileError(f"{path} cannot be read as {suffix[1:].upper()}: {error}") from error
    if table.empty:
        raise ForeignFileError(f"{path} has no rows, only the columns {list(map(str, table.columns))}.")
    table.columns = [str(name).strip() for name in table.columns]
    table.index = pd.RangeIndex(1, len(table) + 1)
    return table


def _read(path: Path, suffix: str) -> pd.DataFrame:
    match suffix:
        case ".csv" | ".tsv":
            return _separated(path, "\t" if suffix == ".tsv" else ",")
        case ".parquet":
            import pyarrow.parquet as pq

            file = pq.ParquetFile(path)
            unpacked = sum(file.metadata.row_group(group).total_byte_size for group in range(file.metadata.num_row_groups))
            if unpacked > _LARGEST_TABLE:
                raise ForeignFileError(f"{path} unpacks to {unpacked / 1e9:,.0f} GB; expected at most 8. Write it in parts.")
            return file.read().to_pandas(ignore_metadata=True)
        case ".jsonl":
            return _of_rows(_json_lines(path), path)
        case ".json":
            return _of_nesting(json.loads(path.read_text(encoding="utf-8-sig")), path)
    return _of_nesting(yaml.safe_load(path.read_text(encoding="utf-8-sig")), path)


def _separated(path: Path, separator: str) -> pd.DataFrame:
    """CSV or TSV. Pandas takes short rows for rows with empty cells, so these are looked for where the last cell is empty."""
    try:
        table = pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    except pd.errors.ParserError as error:
        _check_lines(path, separator, unclosed="EOF inside string" in str(error))
        raise
    if len(table) and (table.iloc[:, -1].isna().any() or not isinstance(table.index, pd.RangeIndex)):
        _check_lines(path, separator)
    return table


def _check_lines(path: Path, separator: str, *, unclosed: bool = False) -> None:
    """Raise a ForeignFileError that names the first line with more or fewer fields than there are columns.

    With `unclosed` it names the line on which the last row begins, whose quotation mark is never closed.
    """
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=separator)
        columns: list[str] = []
        end = begins = 0
        try:
            for row in reader:
                begins, end = end + 1, reader.line_num
                if not row or (len(row) == 1 and not row[0].strip()):
                    continue
                columns = columns or row
                if len(row) != len(columns) and not unclosed:
                    raise ForeignFileError(_uneven(f"Line {begins} of {path}", row, columns, separator))
        except csv.Error:
            return  # a cell too long for this reader, which is not what is looked for
    if unclosed:
        raise ForeignFileError(
            f"Line {begins} of {path} opens a text with a quotation mark that is never closed; close it, and write a mark "
            'inside a text twice: "he said ""yes""".'
        )


def _uneven(where: str, row: Sequence[str], columns: Sequence[str], separator: str) -> str:
    named = ", ".join(columns[:_SHOWN]) + (", ..." if len(columns) > _SHOWN else "")
    mark = "tabs" if separator == "\t" else "commas"
    way_out = (
        f'put quotes around a text with {mark}: "one{separator}two"'
        if len(row) > len(columns)
        else f"a cell that is empty needs its {mark[:-1]} too"
    )
    has = f"{len(row)} field{'s' if len(row) > 1 else ''}"
    return f"{where} has {has}; expected {len(columns)} ({named}): {way_out}."


def _json_lines(path: Path) -> list[Any]:
    rows = []
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    rows.append(json.loads(line))
                except (ValueError, RecursionError) as error:
                    raise ForeignFileError(f"Line {number} of {path} is not JSON: {error}.") from error
    return rows


def _of_nesting(found: Any, path: Path) -> pd.DataFrame:
    match found:
        case list():
            return _of_rows(found, path)
        case dict() if len(found) == 1 and _are_rows(only := next(iter(found.values()))):
            return _of_rows(only, path)
        case dict() if found and all(isinstance(each, list) for each in found.values()):
            lengths = {str(name): len(each) for name, each in found.items()}
            if len(set(lengths.values())) > 1:
                raise ForeignFileError(f"The columns in {path} have the lengths {lengths}; expected one length.")
            return pd.DataFrame(found)
        case dict() if found and all(isinstance(each, dict) for each in found.values()):
            return _of_rows([{"task_id": str(name)} | each for name, each in found.items()], path)
        case dict() if found and all(_is_number(each) for each in found.values()):
            return pd.DataFrame({"task_id": [str(name) for name in found], "value": list(found.values())})
    raise ForeignFileError(
        f"{path} holds {_kind(found)}; expected a table: a list of rows, such as - {{first: a, second: b, outcome: first}}, "
        "or columns, such as first: [a, b]."
    )


def _of_rows(rows: Sequence[Any], path: Path) -> pd.DataFrame:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ForeignFileError(f"Row {number} of {path} is {_kind(row)}; expected names and values, such as {{first: a}}.")
    return pd.DataFrame(list(rows))


def _are_rows(found: Any) -> bool:
    return isinstance(found, list) and bool(found) and all(isinstance(each, dict) for each in found)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "nothing"
        case dict():
            return f"a mapping with the keys {[str(key)[:30] for key in list(value)[:_SHOWN]]}"
        case list():
            return f"a list of {len(value)}"
    return f"the {type(value).__name__} {str(value)[:40]!r}"


# ---- columns


def mapping_of(assignments: Sequence[str], option: str, *, last: bool = False) -> dict[str, str]:
    """What `--columns first=task_a second=task_b` says, as a mapping; split at the first `=`, or the last.

    Raises
    ------
    ForeignFileError
        One has no `=`, or a name is given twice.
    """
    found: dict[str, str] = {}
    for each in assignments:
        if "=" not in each:
            raise ForeignFileError(f"{option} {each!r} has no '='; expected NAME=NAME.")
        left, _, right = each.rpartition("=") if last else each.partition("=")
        if left in found:
            raise ForeignFileError(f"{option} says what {left!r} is twice: {found[left]!r} and {right!r}; expected it once.")
        found[left] = right
    return found


Columns = Mapping[str, pd.Series]
"""By penchant's name, columns of a foreign table, each under its own name still, by which errors call it."""


def take_columns(table: pd.DataFrame, columns: Mapping[str, str], known: Sequence[str], path: Path) -> Columns:
    """The columns of a foreign table that penchant has names for, by those names.

    Parameters
    ----------
    columns
        For each of penchant's names, the file's. A column that is not mentioned is taken if it is called as penchant calls it.
    known
        Penchant's names.

    Raises
    ------
    ForeignFileError
        A name is not one of penchant's, or the file has no such column; both with the nearest.
    """
    for ours in columns:
        if ours not in known:
            raise ForeignFileError(
                f"--columns {ours}={columns[ours]}: penchant has no column {ours!r}; {_nearest(ours, known)}"
            )
    names = list(table.columns)
    for ours, theirs in columns.items():
        if theirs not in names:
            raise ForeignFileError(
                f"{path} has no column {theirs!r}, which --columns takes for {ours}; {_nearest(theirs, names)}"
            )
    taken = {name: name for name in known if name in names and name not in columns and name not in columns.values()}
    return {ours: table[theirs] for ours, theirs in (taken | dict(columns)).items()}


def require(taken: Columns, needed: Sequence[str], table: pd.DataFrame, path: Path) -> None:
    """Raise a ForeignFileError that names the columns which are missing, with those there are and the nearest."""
    missing = [name for name in needed if name not in taken]
    if not missing:
        return
    spare = list(table.columns)
    near = {name: difflib.get_close_matches(name, spare, n=1, cutoff=0.6) for name in missing}
    guess = [shlex.quote(f"{name}={found[0]}") if found else f"{name}=COLUMN" for name, found in near.items()]
    hint = " Columns may be separated by something else than a comma." if len(spare) == 1 else ""
    raise ForeignFileError(
        f"{path} has no column {', '.join(missing)}; it has {', '.join(map(str, spare))}. Say which is which: --columns "
        f"{' '.join(guess)}.{hint}"
    )


def texts(column: pd.Series) -> pd.Series:
    """Cells as texts without outer blanks; whole numbers without a decimal point, empty ones as ''."""

    def text(cell: Any) -> str:
        if cell is None or (isinstance(cell, float) and cell != cell) or cell is pd.NA:
            return ""
        if isinstance(cell, float | np.floating) and float(cell).is_integer():
            return str(int(cell))
        return str(cell).strip()

    return column.map(text).astype(str)


def ids(column: pd.Series, path: Path) -> pd.Series:
    """Cells as task ids.

    Raises
    ------
    ForeignFileError
        One is empty, or no id but a list or mapping.
    """
    nested = column.map(lambda cell: isinstance(cell, list | dict | np.ndarray))
    if nested.any():
        raise ForeignFileError(
            f"{rows_of(nested)} of {path}: {column.name} is {_kind(column[nested].iloc[0])}; expected an id."
        )
    found = texts(column)
    if (empty := found == "").any():
        raise ForeignFileError(f"{rows_of(empty)} of {path}: {column.name} is empty; expected the id of a task.")
    return found


def numbers(column: pd.Series, path: Path, *, least: float = -np.inf, greatest: float = np.inf) -> Float[np.ndarray, " rows"]:
    """Cells as finite numbers within bounds; empty cells are missing values.

    Raises
    ------
    ForeignFileError
        A cell is no number, not finite, or out of bounds.
    """
    written = texts(column)
    values = pd.to_numeric(written.where(written != "", None), errors="coerce").astype(float)
    given = written != ""
    wrong = given & ~(np.isfinite(values) & (values >= least) & (values <= greatest))
    if wrong.any():
        bounds = "" if np.isinf([least, greatest]).all() else f" from {least:g} to {greatest:g}".replace(" to inf", " up")
        raise ForeignFileError(
            f"{rows_of(wrong)} of {path}: {column.name} is {written[wrong].iloc[0]!r}; expected a finite number{bounds}. Leave "
            "such rows out."
        )
    return values.to_numpy()


def rows_of(which: pd.Series) -> str:
    """The first row that is marked, and how many more there are: `Row 3 (and 4 more)`."""
    more = int(which.sum()) - 1
    return f"Row {which.index[which][0]}" + (f" (and {more} more)" if more else "")


def _nearest(name: str, names: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}There are {', '.join(map(str, names))}."


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
