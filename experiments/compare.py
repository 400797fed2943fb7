"""compare: runs side by side, whether they are of other models, personas, doses or people; joined by task id."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from experiments.compare_findings import (
    agreement_finding,
    agreement_panels,
    choice_finding,
    furthest_apart,
    origin_finding,
    origin_forest,
    spread_finding,
    task_finding,
)
from experiments.imports import origins_of
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.run_directory import RunDirectory
from experiments.run_tables import comparisons_of, labels_file, run_names
from experiments.settings import RunSettings
from experiments.side_by_side import (
    LEVEL,
    OnOneScale,
    PairOfRuns,
    Scale,
    agree,
    natural_scale,
    on_one_scale,
    origin_differences,
    same_choices,
    task_differences,
)
from store import Estimate
from store.labels import check_labels

_SCALED = {
    "centred": "each run's mean over the common tasks set to zero",
    "standardised": "each run's mean over the common tasks set to zero and its standard deviation to one",
    "as_is": "values as they are",
}


class CompareSettings(RunSettings):
    """Hold runs against each other by what is in their directories."""

    QUICK: ClassVar[Mapping[str, Any]] = {"resamples": 200, "out": Path("runs/compare_quick")}

    out: Path = Field(default=Path("runs/compare"), description="Run directory.")
    runs: tuple[Path, ...] = Field(default=(), description="Two or more run directories with tables/labels.")
    names: tuple[str, ...] = Field(default=(), description="What they are called; default: the names of the directories.")
    targets: tuple[str, ...] = Field(
        default=("utility",), min_length=1, description="Which of their labels: one target for all, or one for each run."
    )
    scale: Scale | None = Field(
        default=None,
        description="How labels are made comparable: centred, standardised or as_is. Default: utilities of one link are "
        "centred, ratings are as they are, and anything else is standardised.",
    )
    tasks: str | None = Field(default=None, description="File of the tasks, or builtin: where their origins are.")
    resamples: int = Field(default=1000, ge=100, description="Bootstrap resamples of tasks.")


SETTINGS = CompareSettings


@dataclass(frozen=True, eq=False)
class _Run:
    """What is in a run directory: labels of one target, and comparisons if there are any."""

    name: str
    path: Path
    labels: pd.DataFrame
    comparisons: pd.DataFrame | None

    @property
    def method(self) -> str:
        """How its labels were obtained."""
        return " and ".join(sorted(self.labels["method"].astype(str).unique()))


def run(settings: CompareSettings) -> Result:
    """Compare the runs; no model is asked anything."""
    started = time.monotonic()
    runs = _read_runs(settings)
    natural, unit = natural_scale({each.name: each.method for each in runs})
    if settings.scale not in (None, natural):
        unit = "standard deviations over tasks" if settings.scale == "standardised" else "the labels' own units"
    scaled = on_one_scale({each.name: each.labels for each in runs}, settings.scale or natural, unit)
    tasks = [str(task) for task in scaled.values.index]
    origins, from_where = origins_of(tasks, [each.path for each in runs], settings.tasks)
    common = {each.name: each.labels[each.labels["task_id"].isin(tasks)] for each in runs}
    pairs = [
        agree(common[one], common[other], (one, other), resamples=settings.resamples, seed=settings.seed)
        for one, other in scaled.pairs
    ]
    choices = _choices(runs)
    by_task = task_differences(scaled)
    by_origin = origin_differences(scaled, origins, resamples=settings.resamples, seed=settings.seed)
    agreements = _agreement_table(pairs, choices)
    run_directory = RunDirectory(settings)
    by_task.insert(3, "origin", by_task["task_id"].map(origins))
    side_by_side = scaled.values.rename_axis(index="task_id", columns=None).reset_index()
    side_by_side.insert(1, "origin", side_by_side["task_id"].map(origins))
    tables = {"side_by_side": side_by_side, "agreement": agreements, "tasks_apart": by_task, "origins_apart": by_origin}
    for name, table in tables.items():
        run_directory.save_table(name, table)
    has_origins = by_origin["origin"].nunique() > 1
    findings = [
        agreement_finding(pairs),
        spread_finding(pairs, scaled.scale),
        *([choice_finding(choices)] if choices else []),
        task_finding(by_task, scaled),
        *([origin_finding(by_origin, scaled)] if has_origins else []),
    ]
    figures = {"agreement": agreement_panels(scaled, pairs, origins)}
    if has_origins:
        figures["origins_apart"] = origin_forest(by_origin, scaled)
    columns = [name for name in by_task if name not in ("low", "high")]
    counts = ", ".join(f"{each.name} {len(each.labels):,}" for each in runs)
    return publish(
        run_directory,
        Source(f"{' / '.join(scaled.values.columns)}: {len(tasks):,} tasks that all have ({counts})", {}),
        experiment="compare",
        findings=findings,
        figures=figures,
        tables=[
            Table("Agreement", "Correlations over tasks, with intervals; same_choice: over pairs asked in both.", agreements),
            Table("Origins", f"Second minus first ({unit}); p_corrected is by Benjamini and Hochberg.", by_origin),
            Table("Tasks furthest apart", f"Second minus first ({unit}).", furthest_apart(by_task)[columns].head(20)),
        ],
        methods=_methods(settings, runs, scaled, has_origins, from_where),
        summary={
            "runs": {each.name: {"tasks": len(each.labels), "method": each.method} for each in runs},
            "common_tasks": len(tasks),
            "scale": scaled.scale,
            "agreement": agreements.to_dict("records"),
            "origins": by_origin.to_dict("records"),
            "tasks_apart": int((by_task["p_corrected"] <= LEVEL).sum()),
        },
        seconds=time.monotonic() - started,
    )


# ---- reading


def _read_runs(settings: CompareSettings) -> list[_Run]:
    paths, targets = settings.runs, settings.targets
    if len(paths) < 2:
        given = "1 run directory was" if len(paths) == 1 else "No run directories were"
        raise ValueError(f"{given} given; expected two or more: --runs runs/a runs/b.")
    for what, given in (("names", settings.names), ("targets", targets if len(targets) > 1 else ())):
        if given and len(given) != len(paths):
            count = f"1 {what[:-1]} was" if len(given) == 1 else f"{len(given)} {what} were"
            raise ValueError(f"{count} given for {len(paths)} runs; expected one for each.")
    names = settings.names or run_names(paths)
    if len(set(names)) < len(names):
        raise ValueError(f"The runs are called {', '.join(names)}; expected a name for each: --names one other.")
    targets = targets * len(paths) if len(targets) == 1 else targets
    return [
        _Run(name, path, _labels(path, target), comparisons_of(path))
        for name, path, target in zip(names, paths, targets, strict=True)
    ]


def _labels(path: Path, target: str) -> pd.DataFrame:
    file = labels_file(path)
    if file is None:
        hint = (
            f"penchant fit {path} --out runs/fitted makes them of its comparisons"
            if (path / "tables" / "comparisons.parquet").is_file()
            else "runs that fit utilities or ask for ratings have them, and penchant import makes them"
        )
        raise ValueError(f"{path} has no tables/labels.parquet: {hint}.")
    table = pd.read_parquet(file)
    known = table["target"].astype(str).drop_duplicates().tolist() if "target" in table else []
    if "target" in table and target not in known:
        raise ValueError(f"{path} has no labels of {target!r}; it has {', '.join(known)}. Say which with --targets.")
    return check_labels(table[table["target"] == target] if known else table)


def _choices(runs: Sequence[_Run]) -> dict[tuple[str, str], Estimate]:
    """For every two runs that asked for the same pairs, how often they choose the same."""
    found = {}
    for place, one in enumerate(runs):
        for other in runs[place + 1 :]:
            if one.comparisons is not None and other.comparisons is not None:
                same = same_choices(one.comparisons, other.comparisons)
                found |= {(one.name, other.name): same} if same else {}
    return found


# ---- written


def _agreement_table(pairs: Sequence[PairOfRuns], choices: Mapping[tuple[str, str], Estimate]) -> pd.DataFrame:
    rows = []
    for each in pairs:
        row: dict[str, Any] = {"first": each.first, "second": each.second, "n": each.agreement.pearson.n}
        estimates = {
            "pearson": each.agreement.pearson,
            "spearman": each.agreement.spearman,
            "corrected": each.corrected,
            "spread": each.spread,
            "same_choice": choices.get((each.first, each.second)),
        }
        for name, estimate in estimates.items():
            ends = (estimate.value, estimate.low, estimate.high) if estimate else (math.nan,) * 3
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        rows.append(row)
    return pd.DataFrame(rows)


def _methods(settings: CompareSettings, runs: Sequence[_Run], scaled: OnOneScale, has_origins: bool, from_where: str) -> str:
    obtained = "; ".join(f"{each.name} by {each.method} ({len(each.labels)} tasks)" for each in runs)
    origins = (
        f" Origins are from {from_where}; the error of an origin's mean difference is by {settings.resamples} bootstrap "
        "resamples of tasks within origins, with Student's t. What would be found of one origin alone is by Student's t at the "
        "level of Bonferroni over all tests."
        if has_origins
        else ""
    )
    return (
        f"Labels of {' / '.join(dict.fromkeys(settings.targets))}: {obtained}. They are joined by task id over the "
        f"{len(scaled.values)} tasks that all runs have, {_SCALED[scaled.scale]}. Intervals of correlations are a bootstrap "
        f"over tasks ({settings.resamples} resamples, Fisher's scale); corrected for attenuation they are divided by the root "
        "of both reliabilities, each one less the mean squared standard error by the variance. Differences of tasks are "
        "tested with both standard errors, taken as independent and normal; p-values of tasks, and of origins, are corrected "
        f"by Benjamini and Hochberg over all pairs of runs.{origins}"
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["compare", *sys.argv[1:]]))
