"""The run directory: everything an experiment leaves behind, where a second run finds it again."""

import json
import math
import reprlib
import warnings
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure

from experiments.settings import RunSettings
from store import MeasurementLog
from store.directions import Direction, Probe, SteeringVector, save
from store.provenance import digest, stamp


class RunDirectory:
    """One folder for everything.

    It gets `config.yaml`, `measurements.sqlite`, `activations/`, `tables/`, `figures/`, `directions/`, `report.html` and
    `summary.json`.

    Parameters
    ----------
    settings
        Resolved settings; `settings.out` is the folder, created if absent.
    log
        Of answers, if it is that of another run directory.

    Raises
    ------
    NotADirectoryError
        There is a file where the folder is to be.
    """

    def __init__(self, settings: RunSettings, log: MeasurementLog | None = None) -> None:
        self.path = settings.out
        self.settings = settings
        if (file := next((each for each in (self.path, *self.path.parents) if each.is_file()), None)) is not None:
            raise NotADirectoryError(f"The run directory {self.path} cannot be made, as {file} is a file; give another --out.")
        for name in ("activations", "tables", "figures", "directions"):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        resolved = json.loads(settings.model_dump_json())
        config = self.path / "config.yaml"
        if changed := _changed(config, resolved):
            warnings.warn(
                f"{self.path} holds a run with other settings ({changed}). Its answers serve this run too; tables, figures and "
                "report of the same names are replaced. Another --out keeps both.",
                stacklevel=2,
            )
        config.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
        self.log = log or MeasurementLog(self.path / "measurements.sqlite")

    def branch(self, name: str) -> "RunDirectory":
        """A run directory inside this one for the results of one configuration of many, which share the log of this one."""
        inside = RunDirectory(self.settings.model_copy(update={"out": self.path / name}), self.log)
        (inside.path / "activations").rmdir()
        return inside

    def activations(self, **identity: Any) -> Path:
        """Path of the activation store for what `identity` describes, so that other settings get another file."""
        return self.path / "activations" / f"{digest(identity)[:12]}.h5"

    def save_table(self, name: str, table: pd.DataFrame) -> None:
        """Write a table as CSV, to be looked at, and Parquet, to be loaded."""
        table.to_csv(self.path / "tables" / f"{name}.csv", index=False)
        table.to_parquet(self.path / "tables" / f"{name}.parquet", index=False)

    def save_figure(self, name: str, figure: Figure) -> Path:
        """Write a figure as PNG and SVG; return the path of the SVG."""
        path = self.path / "figures" / f"{name}.svg"
        figure.savefig(path)
        figure.savefig(path.with_suffix(".png"), dpi=160)
        return path

    def save_direction(self, name: str, value: Direction | SteeringVector | Probe) -> None:
        """Write a direction, steering vector or probe."""
        save(value, self.path / "directions" / f"{name}.safetensors")

    def save_summary(self, summary: dict[str, Any], model: dict[str, Any]) -> None:
        """Write `summary.json`: results, settings, versions, and the model behind them (`publish.Source.model`)."""
        everything = {
            "results": summary,
            "model": model,
            "settings": json.loads(self.settings.model_dump_json()),
            "versions": stamp(),
        }
        text = json.dumps(_plain(everything), indent=2, ensure_ascii=False, allow_nan=False)
        (self.path / "summary.json").write_text(text, encoding="utf-8")

    def remembered(self, name: str, key: str, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `name.json` holds under a key, or measure it and keep it there."""
        path = self.path / f"{name}.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if key not in known:
            known[key] = measure()
            scratch = path.with_suffix(".partial")
            scratch.write_text(json.dumps(known, indent=2), encoding="utf-8")
            scratch.replace(path)
        return known[key]


def _changed(config: Path, settings: Mapping[str, Any], most: int = 3) -> str:
    """What the settings of an earlier run were and are now, the directory itself aside; empty where nothing differs."""
    try:
        written = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return ""
    if not isinstance(written, Mapping):  # as a run that was killed may leave it
        return ""
    before, now = _flat(written), _flat(settings)
    names = [name for name in now | before if name != "out" and before.get(name) != now.get(name)]
    said = [f"{name} was {reprlib.repr(before.get(name))}, is {reprlib.repr(now.get(name))}" for name in islice(names, most)]
    return "; ".join([*said, *([f"and {len(names) - most} more"] if len(names) > most else [])])


def _flat(values: Any, inside: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    if not isinstance(values, Mapping):
        return {inside: values}
    return {name: each for key, value in values.items() for name, each in _flat(value, f"{inside}.{key}".strip(".")).items()}


def _plain(value: Any) -> Any:
    """Turn results into what JSON can hold; a number that is not there becomes null."""
    if hasattr(value, "to_dict"):
        return _plain(value.to_dict())
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, str | int | float | bool | None) else str(value)
