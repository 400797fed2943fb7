"""Reads what W&B wrote to disk: `wandb.proto` records framed as a LevelDB log, which wandb itself has no Python reader for.

A header of 7 bytes (`:W&B`, magic 0xBEE1, version 0), then blocks of 32 KiB (the first includes the header) of chunks:
checksum, length, kind, content. A record is one full chunk, or a first, any middle and a last one. Unlike LevelDB's, the
checksum is the plain CRC-32 of zlib over kind and content, not masked.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import ArtifactRecord, MetricRecord, Record

BLOCK = 32 * 1024
HEADER = struct.Struct("<4sHB")
CHUNK = struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = range(1, 5)


class DamagedLog(ValueError):
    """A file is not a W&B log, or a part of it is not what was written."""


def records(path: Path) -> Iterator[Record]:
    """The records of a `.wandb` file, every checksum verified."""
    content = path.read_bytes()
    if content[: HEADER.size] != HEADER.pack(b":W&B", 0xBEE1, 0):
        raise DamagedLog(f"{path} begins with {content[: HEADER.size]!r}, not with W&B's header.")
    place, parts = HEADER.size, []
    while place < len(content):
        if (left := BLOCK - place % BLOCK) < CHUNK.size:
            place += left
            continue
        if len(content) - place < CHUNK.size:
            raise DamagedLog(f"{path} ends within the header of a chunk, at byte {place}.")
        checksum, length, kind = CHUNK.unpack_from(content, place)
        data = content[place + CHUNK.size : place + CHUNK.size + length]
        if zlib.crc32(bytes([kind]) + data) != checksum:
            raise DamagedLog(f"{path}: the chunk of {length} bytes at byte {place} does not match its checksum.")
        if kind not in (FULL, FIRST, MIDDLE, LAST) or (kind in (FULL, FIRST)) != (not parts):
            raise DamagedLog(f"{path}: a chunk of kind {kind} at byte {place}, after {len(parts)} of the same record.")
        parts.append(data)
        if kind in (FULL, LAST):
            yield Record.FromString(b"".join(parts))
            parts = []
        place += CHUNK.size + length
    if parts:
        raise DamagedLog(f"{path} ends within a record.")


@dataclass
class OfflineRun:
    """One run as its file has it."""

    folder: Path
    id: str = ""
    group: str = ""
    project: str = ""
    name: str = ""
    host: str = ""
    sweep: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, MetricRecord] = field(default_factory=dict)
    artefacts: list[ArtifactRecord] = field(default_factory=list)
    exit_code: int | None = None
    kinds: set[str] = field(default_factory=set)

    def series(self, axis: str, name: str) -> list[tuple[float, float]]:
        """Points of one metric over another."""
        return [(row[axis], row[name]) for row in self.history if axis in row and name in row]

    def table(self, name: str) -> dict[str, Any]:
        """The media file of a table that was logged."""
        logged = [row[name] for row in self.history if name in row]
        assert len(logged) == 1 and logged[0]["_type"] == "table-file"
        return json.loads((self.folder / "files" / logged[0]["path"]).read_text(encoding="utf-8"))


def read_run(folder: Path) -> OfflineRun:
    """Everything that the file in the folder of a run says."""
    (path,) = folder.glob("run-*.wandb")
    run = OfflineRun(folder)
    for record in records(path):
        kind = record.WhichOneof("record_type")
        run.kinds.add(kind)
        if kind == "run":
            run.id, run.group, run.project = record.run.run_id, record.run.run_group, record.run.project
            run.name, run.host, run.sweep = record.run.display_name, record.run.host, record.run.sweep_id
            _update(run.config, record.run.config.update)
        elif kind == "config":
            _update(run.config, record.config.update)
        elif kind == "history":
            run.history.append({})
            _update(run.history[-1], record.history.item)
        elif kind == "summary":
            _update(run.summary, record.summary.update)
        elif kind == "metric":
            run.metrics[record.metric.name or record.metric.glob_name] = record.metric
        elif kind == "artifact":
            run.artefacts.append(record.artifact)
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def read_runs(directory: Path) -> list[OfflineRun]:
    """Every run in the folder `wandb` of a directory."""
    return [read_run(folder) for folder in sorted(directory.glob("wandb/*run-*"))]


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        inner = target
        for key in outer:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)
