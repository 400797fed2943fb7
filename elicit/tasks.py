"""Tasks: what a model may be asked to do. The built-in set, files of your own, and stratified samples."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from store.records import Message, Question, Span

_FIELDS = ("id", "text", "messages", "origin", "topic")


class TaskError(ValueError):
    """A task file has a problem; the message names the file, the line and the way out."""


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes
    ----------
    id
        What everything else is joined by.
    text
        What a user would send; of a conversation, its transcript. It is data: nothing inside it can change the prompts that
        it is put in.
    origin, topic
        Where it comes from (`math`, `creative`, a data set's name) and what it is about.
    messages
        Of a conversation: its turns, the user's first and last. Empty for a single request.
    meta
        Anything else that came with it.
    """

    id: str
    text: str
    origin: str = "own"
    topic: str = ""
    messages: tuple[Message, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)


def builtin_tasks() -> list[Task]:
    """The tasks written for penchant: 42 each of math, instruction, chat, creative, harmful and dilemma."""
    return _shipped("builtin_tasks.jsonl")


def builtin_conversations() -> list[Task]:
    """Conversations of several turns written for penchant, for questions such as bail.

    Origins: abuse, pressure, distressing, tedious, manipulation, and pleasant and neutral ones that nobody should leave.
    """
    return _shipped("builtin_conversations.jsonl")


def calibration_tasks() -> list[Task]:
    """Requests that nobody should refuse or leave, for false-positive rates."""
    return _shipped("calibration_tasks.jsonl")


def null_tasks() -> list[Task]:
    """Ways of being let off, for opt-out."""
    return _shipped("null_tasks.jsonl")


def _shipped(name: str) -> list[Task]:
    with resources.as_file(resources.files("elicit") / name) as path:
        return load_tasks(path)


def load_tasks(path: str | Path) -> list[Task]:
    """Read tasks from a JSONL, CSV or Parquet file with columns `id`, `text` and, if known, `origin` and `topic`.

    A conversation has `messages` in place of `text`: a list of `{"role": "user" or "assistant", "content": ...}`.

    Raises
    ------
    TaskError
        The file is empty or of another kind, or a row lacks an id, repeats one, or has no text; every such row is named.
    """
    path = Path(path)
    if not path.exists():
        raise TaskError(f"There is no task file {path}.")
    try:
        tasks = checked_tasks(_rows(path), str(path), "line")
    except UnicodeDecodeError as error:
        raise TaskError(_not_utf8(path, error)) from error
    if not tasks:
        example = {
            ".jsonl": 'one a line, for instance {"id": "t1", "text": "Write a haiku."}',
            ".csv": "a line of column names such as id,text and then one a row",
        }.get(path.suffix.lower(), "columns id and text, one task a row")
        raise TaskError(f"{path} has no tasks; expected {example}.")
    return tasks


def checked_tasks(rows: Iterable[tuple[int, Mapping[str, Any]]], where: str, unit: str) -> list[Task]:
    """Make tasks of numbered rows.

    Raises
    ------
    TaskError
        A row lacks an id, repeats one, or has no text; every such row is named by its number in `unit`s.
    """
    tasks: list[Task] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, row in rows:
        problem = _problem(row, seen, unit)
        if problem:
            problems.append(f"{unit} {number}: {problem}")
            continue
        seen[row["id"]] = number
        meta = {name: value for name, value in row.items() if name not in _FIELDS}
        messages = tuple(Message(turn["role"], turn["content"]) for turn in _turns(row))
        text = transcript(messages) if messages else row["text"]
        tasks.append(Task(row["id"], text, row.get("origin") or "own", row.get("topic") or "", messages, meta))
    if problems:
        if len(problems) > 1 and not tasks and len({problem.partition(": ")[2] for problem in problems}) == 1:
            raise TaskError(f"{where} has no good row, and in all {len(problems)} {problems[0].partition(': ')[2]}.")
        shown = "\n  ".join(problems[:10])
        more = f"\n  and {len(problems) - 10} more" if len(problems) > 10 else ""
        raise TaskError(f"{where} has {len(problems)} bad row{'s' if len(problems) > 1 else ''}:\n  {shown}{more}")
    return tasks


def read_ids(path: str | Path) -> list[str]:
    """Read task ids from a text file, one a line; empty lines and what follows a # are left out.

    Raises
    ------
    TaskError
        There is no such file, or no id in it.
    """
    path = Path(path)
    if not path.exists():
        raise TaskError(f"There is no file of task ids {path}.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(_not_utf8(path, error)) from error
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    ids = [line for line in lines if line]
    if not ids:
        raise TaskError(f"{path} has no task ids; expected one a line.")
    return ids


def select_tasks(
    tasks: Sequence[Task], include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> list[Task]:
    """Keep only the tasks to include, if any are named, and leave out those to exclude.

    Raises
    ------
    TaskError
        An id to include is unknown, or none of those to exclude is known.
    """
    known = {task.id for task in tasks}
    if unknown := [task_id for task_id in include or () if task_id not in known]:
        named = ", ".join(map(repr, unknown[:3]))
        raise TaskError(
            f"{len(unknown)} of {len(include or ())} ids to include are not among the {len(known)} tasks, for instance "
            f"{named}; tasks are called like {', '.join(map(repr, sorted(known)[:3]))}."
        )
    if exclude and not known.intersection(exclude):
        raise TaskError(f"None of the {len(exclude)} ids to exclude is among the tasks, for instance {list(exclude)[:3]}.")
    wanted = known if include is None else set(include)
    return [task for task in tasks if task.id in wanted and task.id not in set(exclude or ())]


def sample_tasks(tasks: Sequence[Task], per_origin: int, seed: int = 0, origins: Iterable[str] | None = None) -> list[Task]:
    """Sample the same number of tasks from every origin, in random order.

    A larger `per_origin` with the same seed keeps the tasks of a smaller one.

    Raises
    ------
    ValueError
        An origin is unknown or has too few tasks.
    """
    by_origin: dict[str, list[Task]] = {}
    for task in tasks:
        by_origin.setdefault(task.origin, []).append(task)
    chosen: list[Task] = []
    for number, origin in enumerate(sorted(by_origin) if origins is None else origins):
        if origin not in by_origin:
            raise ValueError(f"There are no tasks of origin {origin!r}; expected one of {sorted(by_origin)}.")
        available = sorted(by_origin[origin], key=lambda task: task.id)
        if per_origin > len(available):
            raise ValueError(
                f"{per_origin} tasks of origin {origin!r} were asked for; there are {len(available)}. Lower per_origin to "
                "that, or name the origins to sample from."
            )
        order = np.random.default_rng([seed, number]).permutation(len(available))
        chosen += [available[place] for place in order[:per_origin]]
    return [chosen[place] for place in np.random.default_rng([seed, len(by_origin)]).permutation(len(chosen))]


def task_question(task: Task, system: str | None = None) -> Question:
    """Return the task as a user would send it, with nothing asked about it: the prompt that activations are read from.

    Of a conversation, the span `task` is what the user said last.
    """
    messages = task.messages or (Message("user", task.text),)
    span = Span("task", len(messages) - 1, 0, len(messages[-1].content))
    return Question(messages, (span,), system=system, measures={"mode": "task", "task": task.id})


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as plain text."""
    return "\n\n".join(f"{message.role.capitalize()}: {message.content}" for message in messages)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows with the number of the line that each begins on (of the row, for Parquet)."""
    match path.suffix.lower():
        case ".jsonl":
            with open(path, encoding="utf-8") as file:
                for number, line in enumerate(file, start=1):
                    if not line.strip():
                        continue
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        row = {"_problem": f"not JSON ({error})"}
                    yield number, row if isinstance(row, dict) else {"_problem": f"expected an object, got {line.strip()[:40]}"}
        case ".csv":
            with open(path, encoding="utf-8", newline="") as file:
                reader, line = csv.DictReader(file, strict=True), 2
                while True:
                    try:
                        row = next(reader)
                    except StopIteration:
                        break
                    except csv.Error as error:
                        raise TaskError(
                            f"{path}, line {line}: the row that begins here is not CSV ({error}): perhaps a quote that is "
                            'never closed. Put quotes around the whole text, and double one inside it: "Say ""hello""."'
                        ) from error
                    if too_many := row.pop(None, None):  # pyright: ignore[reportArgumentType] (where DictReader puts the rest)
                        row = {"_problem": f"{len(row) + len(too_many)} fields in {len(row)} columns; quote texts with commas"}
                    yield line, {str(name): value for name, value in row.items()}
                    line = reader.line_num + 1
        case ".parquet":
            frame = pd.read_parquet(path).astype(object)
            for number, row in enumerate(frame.where(frame.notna(), None).to_dict("records"), start=1):
                yield number, {str(name): value for name, value in row.items()}
        case other:
            raise TaskError(f"{path} is a {other or 'nameless'} file; expected .jsonl, .csv or .parquet.")


def _not_utf8(path: Path, error: UnicodeDecodeError) -> str:
    return f"{path} is not UTF-8 (it has the byte 0x{error.object[error.start]:02x}); save it as UTF-8."


def _problem(row: Mapping[str, Any], seen: Mapping[str, int], unit: str) -> str | None:
    if "_problem" in row:
        return row["_problem"]
    for name in ("id",) if _turns(row) else ("id", "text"):
        if name not in row:
            return f"there is no {name!r}; it has {', '.join(map(repr, row)) or 'nothing'}"
        if not isinstance(row[name], str):
            return f"{name} is {row.get(name)!r}; expected a string"
        if not row[name].strip():
            return f"{name} is empty"
    if row["id"] in seen:
        return f"id {row['id']!r} was used on {unit} {seen[row['id']]} already"
    return _problem_of_turns(_turns(row))


def _turns(row: Mapping[str, Any]) -> list[Any]:
    turns = row.get("messages")
    return [] if turns is None else list(turns) if isinstance(turns, list | tuple | np.ndarray) else [turns]


def _problem_of_turns(turns: Sequence[Any]) -> str | None:
    for number, turn in enumerate(turns, start=1):
        expected = "user" if number % 2 else "assistant"
        if not isinstance(turn, Mapping) or turn.get("role") != expected:
            return f"message {number} is {str(turn)[:60]}; expected one with role {expected!r}"
        if not isinstance(turn.get("content"), str) or not turn["content"].strip():
            return f"message {number} has the content {turn.get('content')!r}; expected a text"
    return "the last message is the assistant's; expected the user's" if turns and not len(turns) % 2 else None
