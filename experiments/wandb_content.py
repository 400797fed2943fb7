"""What one W&B run holds, as W&B has it: configuration, scalars, curves, tables and artefacts of plain values."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    import wandb


@dataclass(frozen=True)
class Content:
    """What one run holds."""

    config: Mapping[str, Any]
    metrics: Mapping[str, float]
    name: str
    curves: Mapping[str, pd.DataFrame]
    tables: Mapping[str, pd.DataFrame]
    artefacts: Sequence[Path]

    def scalars(self) -> dict[str, Any]:
        """Metrics, and tables as W&B has them."""
        import wandb

        if both := self.metrics.keys() & self.tables.keys():
            raise ValueError(f"{sorted(both)} are names of metrics and of tables; each needs its own.")
        tables = {
            name: wandb.Table([str(column) for column in table.columns], _rows(table), allow_mixed_types=True)
            for name, table in self.tables.items()
        }
        return {name: float(value) for name, value in self.metrics.items()} | tables

    def bundle(self, name: str) -> "wandb.Artifact | None":
        """The artefacts, if any, as W&B has them."""
        import wandb

        if not self.artefacts:
            return None
        bundle = wandb.Artifact(name, type="probe", description=self.name)
        for path in map(Path, self.artefacts):
            add = bundle.add_dir if path.is_dir() else bundle.add_file
            add(str(path), name=path.name, skip_cache=True)
        return bundle

    def log_curves(self, run: "wandb.Run") -> None:
        """Log each curve as series over its first column, which gets to be their horizontal axis in W&B too."""
        for name, curve in self.curves.items():
            axis = f"{name}/{curve.columns[0]}"
            run.define_metric(axis, hidden=True, summary="none")
            for column in curve.columns[1:]:
                run.define_metric(f"{name}/{column}", step_metric=axis, summary="none")
            for row in curve.to_dict("records"):
                run.log({f"{name}/{column}": value for column, value in row.items() if not math.isnan(value)})


def _rows(table: pd.DataFrame) -> list[Any]:
    """Rows of plain values; None for what is missing."""
    columns = []
    for place in range(table.shape[1]):
        column = table.iloc[:, place]
        values = zip(plain(column.tolist()), column.isna(), strict=True)
        columns.append([None if missing else value for value, missing in values])
    return [list(row) for row in zip(*columns, strict=True)]


def plain(value: Any) -> Any:
    """The value as JSON has it; numbers that JSON does not have are spelled out."""
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=repr)  # the same in every process
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, str | bool | int | float | None) else str(value)
