"""The measurement log: every answer ever given, in one SQLite file, keyed by everything that could change it.

Asking again is free because the key is found; changing anything makes another key. The log keeps what the model said
(probabilities or text); what that implies is derived when it is read.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import pandas as pd

from store.provenance import digest
from store.records import REFUSAL, Answer, Outcome, Question

SCHEMA_VERSION = 2
"""Version 1 had no `bounds` and no `spread`; it is brought up to date when it is opened."""
_PATIENCE = 30.0
"""Seconds for which a writer waits for another."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key        TEXT PRIMARY KEY,
    respondent TEXT NOT NULL,
    question   TEXT NOT NULL,
    outcome    TEXT NOT NULL,
    log_probs  TEXT,
    mass       REAL,
    choice     TEXT,
    text       TEXT,
    truncated  INTEGER NOT NULL,
    error      TEXT,
    asked_at   TEXT NOT NULL,
    bounds     TEXT,
    spread     TEXT
)
"""
_ANSWER_COLUMNS = "outcome, log_probs, choice, text, truncated, error, bounds, spread"
_JSON_COLUMNS = ("log_probs", "bounds", "spread")
_KEYS_PER_QUERY = 500


@dataclass(frozen=True)
class Entry:
    """One row of the log."""

    key: str
    respondent: str
    question: Question
    answer: Answer


def answer_key(respondent_fingerprint: str, prompt_digest: str, question: Question) -> str:
    """Key of an answer: a digest of all that could change it.

    Parameters
    ----------
    respondent_fingerprint
        Identifies weights, dtype and intervention.
    prompt_digest
        What the respondent will really read: rendered prompt, prefill and option tokens, and where the spans are.
    question
        Supplies the sampling parameters and the draw. Its `measures` are left out: a name does not change an answer.
    """
    sampling = question.to_dict()["sampling"]
    return digest(respondent_fingerprint, prompt_digest, sampling, question.draw)


def _answer(
    outcome: str,
    log_probs: str | None,
    choice: str | None,
    text: str | None,
    truncated: int,
    error: str | None,
    bounds: str | None,
    spread: str | None,
) -> Answer:
    """An answer from its `_ANSWER_COLUMNS`."""
    raw, most, deviations = (json.loads(values) if values else {} for values in (log_probs, bounds, spread))
    return Answer(
        Outcome(outcome), raw, choice, text, bool(truncated), error, raw.pop(REFUSAL, None), bounds=most, spread=deviations
    )


class MeasurementLog:
    """Answers on disk. Use as a context manager, or call `close()`.

    Parameters
    ----------
    path
        SQLite file, created if absent. `":memory:"` keeps nothing.
    """

    def __init__(self, path: str | Path = ":memory:") -> None:
        self.path = str(path)
        if self.path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            self._connection = sqlite3.connect(self.path, timeout=_PATIENCE)
            # A network file system may refuse WAL; SQLite then stays with its rollback journal, which is as safe.
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, SCHEMA_VERSION):
                raise ValueError(
                    f"{path} is a measurement log of version {version}; this penchant reads version {SCHEMA_VERSION}. "
                    "Use the penchant that wrote it, or start another log."
                )
            if version != SCHEMA_VERSION:
                self._bring_up_to_date()
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"{path} cannot be used as a measurement log ({error}). Expected an SQLite file written by penchant, "
                "or a path where one can be created."
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._connection.execute("SELECT count(*) FROM answers").fetchone()[0]

    def close(self) -> None:
        """Flush and close the file."""
        self._connection.close()

    def _bring_up_to_date(self) -> None:
        """Create the table, or add the columns that version 1 did not have."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")  # another process may be at it
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            self._connection.execute(_SCHEMA)
            if version == 1:
                for column in ("bounds", "spread"):
                    self._connection.execute(f"ALTER TABLE answers ADD COLUMN {column} TEXT")
            self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def put(self, entries: Iterable[Entry]) -> None:
        """Write entries in one transaction; an entry with a known key replaces the old one.

        Raises
        ------
        OSError
            Another process keeps the file locked, or the disk is full.
        """
        try:
            self._put(entries)
        except sqlite3.OperationalError as error:
            raise OSError(
                f"{self.path} cannot be written ({error}). If another process has been at it for {_PATIENCE:g} seconds, wait "
                "for it, or give each process a log of its own and join them: penchant log merge."
            ) from error

    def _put(self, entries: Iterable[Entry]) -> None:
        asked_at = datetime.now(UTC).isoformat(timespec="seconds")
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    (
                        entry.key,
                        entry.respondent,
                        json.dumps(entry.question.to_dict(), ensure_ascii=False),
                        entry.answer.outcome.value,
                        json.dumps(entry.answer.raw_log_probs) if entry.answer.log_probs else None,
                        entry.answer.mass,
                        entry.answer.choice,
                        entry.answer.text,
                        entry.answer.truncated,
                        entry.answer.error,
                        asked_at,
                        json.dumps(dict(entry.answer.bounds)) if entry.answer.bounds else None,
                        json.dumps(dict(entry.answer.spread)) if entry.answer.spread else None,
                    )
                    for entry in entries
                ),
            )

    def get(self, keys: Sequence[str]) -> dict[str, Answer]:
        """Answers already given to `keys`. A recorded failure is no answer: it is left out, to be asked again."""
        found: dict[str, Answer] = {}
        unique = list(dict.fromkeys(keys))
        for start in range(0, len(unique), _KEYS_PER_QUERY):
            chunk = unique[start : start + _KEYS_PER_QUERY]
            marks = ",".join("?" * len(chunk))
            rows = self._connection.execute(
                f"SELECT key, {_ANSWER_COLUMNS} FROM answers WHERE key IN ({marks}) AND outcome != 'error'",
                chunk,
            )
            for key, *columns in rows:
                found[key] = _answer(*columns)
        return found

    def questions(self, keys: Sequence[str]) -> dict[str, Question]:
        """Return the questions behind `keys`, as they were asked; unknown keys are left out."""
        found: dict[str, Question] = {}
        for key in keys:
            row = self._connection.execute("SELECT question FROM answers WHERE key = ?", (key,)).fetchone()
            if row:
                found[key] = Question.from_dict(json.loads(row[0]))
        return found

    def find(self, prefix: str) -> Entry:
        """Return the one entry whose key begins with `prefix`.

        Raises
        ------
        KeyError
            None does, or several do.
        """
        rows = self._connection.execute(
            f"SELECT key, respondent, question, {_ANSWER_COLUMNS} FROM answers WHERE key BETWEEN ? AND ? LIMIT 2",
            (prefix, prefix + "~"),
        ).fetchall()
        if len(rows) != 1:
            found = f"Several keys in {self.path} begin" if rows else f"No key in {self.path} begins"
            way = "give more of it" if rows else "'penchant log export LOG OUT.parquet' lists all"
            raise KeyError(f"{found} with {prefix!r}; expected one: {way}.")
        key, respondent, question, *columns = rows[0]
        return Entry(key, respondent, Question.from_dict(json.loads(question)), _answer(*columns))

    def merge(self, path: str | Path) -> int:
        """Add the answers of another log; returns how many were new. Keys that are known keep their answers."""
        MeasurementLog(path).close()  # another file is checked before it is attached
        before = len(self)
        self._connection.execute("ATTACH DATABASE ? AS other", (str(path),))
        try:
            with self._connection:
                self._connection.execute("INSERT OR IGNORE INTO answers SELECT * FROM other.answers")
        finally:
            self._connection.execute("DETACH DATABASE other")
        return len(self) - before

    def summary(self) -> pd.DataFrame:
        """Count answers by mode, template and outcome, with the respondents who gave them and the mean mass on the options."""
        query = """
            SELECT json_extract(question, '$.measures.mode') AS mode, json_extract(question, '$.measures.template') AS template,
                   outcome, count(*) AS answers, count(DISTINCT respondent) AS respondents, avg(mass) AS mean_mass,
                   min(asked_at) AS first, max(asked_at) AS last
            FROM answers GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        """
        return pd.read_sql_query(query, self._connection)

    def to_frame(self) -> pd.DataFrame:
        """Return the whole log, one row per answer; what each answer measures becomes columns of its own."""
        names = ("key", "respondent", "question", "outcome", "log_probs", "mass", "choice", "text", "truncated", "error")
        names += ("bounds", "spread")
        rows = self._connection.execute(f"SELECT {', '.join(names)}, asked_at FROM answers ORDER BY rowid")
        records: list[Mapping[str, Any]] = []
        for row in rows:
            record = dict(zip((*names, "asked_at"), row, strict=True))
            question = json.loads(record.pop("question"))
            for column in _JSON_COLUMNS:
                record[column] = json.loads(record[column]) if record[column] else None
            record["truncated"] = bool(record["truncated"])
            clashes = set(question["measures"]) & set(record)
            record |= {(f"measures.{k}" if k in clashes else k): v for k, v in question["measures"].items()}
            records.append(record)
        return pd.DataFrame.from_records(records)

    def export(self, path: str | Path) -> None:
        """Write `to_frame()` to a Parquet file."""
        frame = self.to_frame()
        for column in set(_JSON_COLUMNS) & set(frame):
            frame[column] = frame[column].map(lambda value: None if value is None else json.dumps(value))
        frame.to_parquet(path, index=False)
