"""The record of an import: `import.yaml` in its run directory, with the source's name and digest and how it was read.

It has no paths of the machine that it was made on.
"""

from pathlib import Path
from typing import Any

import yaml

from experiments.imports.tables import ForeignFileError, file_digest
from store.provenance import stamp

_FILE = "import.yaml"
_LABELS = "utilities"


def read_record(run: Path) -> dict[str, Any]:
    """What was imported into a run directory, by kind; empty where nothing was.

    Raises
    ------
    ForeignFileError
        The record is damaged.
    """
    path = run / _FILE
    if not path.is_file():
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ForeignFileError(f"{path} is not what penchant writes: {error}") from error
    if not isinstance(found, dict):
        raise ForeignFileError(f"{path} is not what penchant writes; expected what was imported, by kind.")
    return found


def has_imported_labels(run: Path) -> bool:
    """Whether labels of a run directory were imported, and not fitted."""
    return any(kind.startswith(_LABELS) for kind in read_record(run))


def labels_kind(target: str) -> str:
    """What the record calls the labels of a target."""
    return f"{_LABELS}: {target}"


def begin(out: Path, kind: str, source: Path, how: dict[str, Any]) -> dict[str, Any]:
    """Check that an import may go into a folder, and return its entry for the record.

    Parameters
    ----------
    how
        Maps and options: with the source's digest, all that the result depends on.

    Raises
    ------
    ForeignFileError
        There is a file in its place, it is another run's, has another import of this kind that was fitted since, or labels that
        were fitted.
    """
    entry = {"file": source.name, "sha256": file_digest(source), **how}
    if (file := next((each for each in (out, *out.parents) if each.is_file()), None)) is not None:
        raise ForeignFileError(f"The run directory {out} cannot be made, as {file} is a file; give another --out.")
    record = read_record(out)
    if not record and out.is_dir() and any(out.iterdir()):
        raise ForeignFileError(f"{out} is not empty, and nothing was imported there; give --out a folder of its own.")
    fitted = (out / "tables" / "labels.parquet").exists()
    before = record.get(kind)
    if before and fitted and any(before.get(name) != value for name, value in entry.items()):
        raise ForeignFileError(
            f"{out} holds {kind} of {before.get('file')}, read another way, and labels that depend on them; give another --out."
        )
    if kind.startswith(_LABELS) and fitted and not has_imported_labels(out):
        raise ForeignFileError(f"The labels in {out} were fitted to its comparisons; give imported ones another --out.")
    return entry


def finish(out: Path, kind: str, entry: dict[str, Any]) -> None:
    """Write an entry to the record."""
    record = read_record(out) | {kind: entry | {"penchant": stamp()["penchant"]}}
    (out / _FILE).write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
