"""Tasks from data sets on the Hugging Face hub: presets for four of them, any other by its id and a column map.

Only the hub's own Parquet copies of a data set are read: no code comes along with them.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import pandas as pd

from elicit.tasks import Task, TaskError, checked_tasks

_REVISION = "refs/convert/parquet"
_SECONDS = 20
PREFIX = "hub:"


@dataclass(frozen=True)
class HubSource:
    """A data set on the hub, and which of its columns make a task.

    Attributes
    ----------
    repo
        Owner and name.
    text
        Columns that make the text, joined by an empty line where they are not empty. A column with a conversation (a list
        of turns with `role` and `content`) gives what its user says first.
    id, topic
        Columns; without an id, tasks are numbered: `alpaca_0`.
    origin
        Origin of its tasks.
    split, config
        Which part of the data set.
    where
        Values that a row must have, by column.
    """

    repo: str
    text: tuple[str, ...] = ("text",)
    id: str | None = None
    topic: str | None = None
    origin: str = "hub"
    split: str = "train"
    config: str = "default"
    where: Mapping[str, Any] = field(default_factory=dict)


PRESETS: Mapping[str, HubSource] = {
    "math": HubSource("HuggingFaceH4/MATH-500", ("problem",), "unique_id", "subject", "math", split="test"),
    "alpaca": HubSource("tatsu-lab/alpaca", ("instruction", "input"), origin="alpaca"),
    "wildchat": HubSource(
        "allenai/WildChat-1M",
        ("conversation",),
        "conversation_hash",
        origin="wildchat",
        where={"language": "English", "toxic": False},
    ),
    "bailbench": HubSource("Phylliida/BailBench", ("content",), topic="category", origin="bailbench"),
}
"""Sources by name. Data sets move: if one of them has, its new id can be given as `hub:owner/name?text=...`."""


def hub_source(name: str) -> HubSource:
    """The source that a name stands for: a preset, or `hub:owner/name?text=prompt&id=uid&topic=subject&split=test`.

    Several text columns are separated by commas; any other key is a value that rows must have.

    Raises
    ------
    TaskError
        The name is neither.
    """
    if name in PRESETS:
        return PRESETS[name]
    repo, _, query = name.removeprefix(PREFIX).partition("?")
    if not name.startswith(PREFIX) or repo.count("/") != 1 or not all(repo.split("/")):
        raise TaskError(f"There is no data set {name!r}; expected one of {sorted(PRESETS)} or {PREFIX}owner/name?text=prompt.")
    values = dict(parse_qsl(query))
    known = {key: values.pop(key) for key in ("id", "topic", "origin", "split", "config") if key in values}
    text = tuple(values.pop("text", "text").split(","))
    return HubSource(repo, text, **{"origin": repo.split("/")[1], **known}, where=values)


def load_hub_tasks(name: str, limit: int | None = None, *, endpoint: str | None = None) -> list[Task]:
    """Read tasks from the hub; what was downloaded before is not downloaded again.

    Parameters
    ----------
    name
        See `hub_source`.
    limit
        Read no more than so many, from as few files as they take; None reads everything.
    endpoint
        Another address than the hub's, such as a mirror's.

    Raises
    ------
    TaskError
        The hub cannot be reached or has no such data set, or the data set lacks a column.
    """
    source = hub_source(name)
    rows: list[tuple[int, dict[str, Any]]] = []
    for path in _files(source, endpoint):
        frame = _selected(pd.read_parquet(path), source)
        rows += [(len(rows) + number, _row(record, source)) for number, record in enumerate(frame.to_dict("records"))]
        if limit is not None and len(rows) >= limit:
            break
    numbered = ((number, row | {"id": row["id"] or f"{source.origin}_{number}"}) for number, row in rows[:limit])
    return checked_tasks(numbered, f"{source.repo} on the hub", "row")


def _files(source: HubSource, endpoint: str | None) -> Iterator[Path]:
    """Download the Parquet files of the split, one by one, as they are asked for."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    try:
        described = HfApi(endpoint=endpoint).dataset_info(source.repo, revision=_REVISION, timeout=_SECONDS)
        found = [file.rfilename for file in described.siblings or []]
        folders = tuple(f"{source.config}/{part}{source.split}/" for part in ("", "partial-"))
        names = sorted(name for name in found if name.startswith(folders))
        if not names:
            parts = sorted({"/".join(name.split("/")[:2]) for name in found if name.endswith(".parquet")})
            raise TaskError(
                f"{source.repo} has no {source.config}/{source.split}; expected config and split to be one of {parts}."
            )
        for name in names:
            yield Path(hf_hub_download(source.repo, name, repo_type="dataset", revision=_REVISION, endpoint=endpoint))
    except TaskError:
        raise
    except (HTTPError, OSError) as error:
        raise TaskError(
            f"Cannot read the data set {source.repo} from the Hugging Face hub ({_first_line(error)}). It needs a network, and "
            "for gated data sets a login (`hf auth login`). Without one, give a .jsonl, .csv or .parquet file, or 'builtin'."
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _selected(frame: pd.DataFrame, source: HubSource) -> pd.DataFrame:
    needed = [*source.text, *source.where, *filter(None, (source.id, source.topic))]
    if missing := [column for column in needed if column not in frame]:
        raise TaskError(
            f"{source.repo} has no columns {missing}; it has {list(frame)}. Map them: {PREFIX}{source.repo}?text=..."
        )
    for column, value in source.where.items():
        frame = frame[frame[column].astype(str) == str(value)]
    return frame


def _row(record: Mapping[Any, Any], source: HubSource) -> dict[str, Any]:
    texts = [_text(record[column]) for column in source.text]
    text = "\n\n".join(text for text in texts if text) if all(isinstance(text, str) for text in texts) else None
    return {
        "id": str(record[source.id]) if source.id else "",
        "text": text,
        "origin": source.origin,
        "topic": str(record[source.topic]) if source.topic else "",
    }


def _text(value: Any) -> str | None:
    """A text, or what the user says first in a conversation."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value.strip()
    if not isinstance(value, list | np.ndarray):
        return None
    said = [turn.get("content") for turn in value if isinstance(turn, Mapping) and turn.get("role") == "user"]
    return said[0].strip() if said and isinstance(said[0], str) else None
