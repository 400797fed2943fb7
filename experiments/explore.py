"""explore: a map of the tasks in the colours of any label, and the tasks that want a look, on a page that needs no network."""

import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from experiments.explore_findings import cross_finding, flips_finding, map_finding, near_finding, said_finding
from experiments.explore_page import page
from experiments.explore_written import figures_of, save_tables
from experiments.explored import Explored, explored
from experiments.findings import Finding
from experiments.publish import Result, Source, publish
from experiments.run_directory import RunDirectory
from experiments.settings import RunSettings


class ExploreSettings(RunSettings):
    """Look at the tasks of one run or several, with labels of people beside those of models."""

    QUICK: ClassVar[Mapping[str, Any]] = {"reduce": "pca", "permutations": 199, "out": Path("runs/explore_quick")}

    out: Path = Field(default=Path("runs/explore"), description="Run directory; explore.html is the page.")
    runs: tuple[Path, ...] = Field(
        default=(), description="Run directories whose labels and comparisons are joined by task id."
    )
    labels: tuple[Path, ...] = Field(default=(), description="Hand labels and codebooks: tables with a column task_id.")
    tasks: tuple[str, ...] = Field(
        default=(), description="Where the texts are: task files, or builtin; default: what the runs' settings name."
    )
    include: Path | None = Field(
        default=None, description="File with the ids of the tasks to look at, one a line, as Save ids on the page writes it."
    )
    map: Literal["auto", "activations", "embeddings", "words"] = Field(
        default="auto", description="What tasks are near by; auto: activations where a run has them, else words."
    )
    store: Path | None = Field(default=None, description="Activation store; default: the one in the runs with the most tasks.")
    layer: int | str | None = Field(default=None, description="Of the store, such as 15 or L15; default: the middle one.")
    position: str | None = Field(default=None, description="Of the store; default: task_mean.")
    embeddings: str | None = Field(
        default=None, description="An .npz file with task_id and rows, or a sentence-transformers model, for --map embeddings."
    )
    reduce: Literal["umap", "pca"] = Field(default="umap", description="How rows are laid out in the plane.")
    neighbours: int = Field(default=15, ge=2, description="UMAP's n_neighbors: small for fine groups, large for the whole.")
    k: int = Field(default=10, ge=2, description="How many of the nearest tasks have to tell a task's label.")
    permutations: int = Field(default=999, ge=19, description="Shuffles of every label, over all tasks and within origins.")
    preference: str | None = Field(default=None, description="Label of preference; default: the first called utility.")
    report: str | None = Field(default=None, description="Label of self-report; default: self_report, or the first rating.")
    refusal: str | None = Field(default=None, description="Label of refusal; default: every one that is called so.")
    preferred_above: float | None = Field(default=None, description="What preferred tasks are above; default: the median.")
    refused_above: float = Field(default=0.5, description="What refused tasks are above: a share of draws.")
    top: int = Field(default=10, ge=1, description="Tasks at each end, in the tables.")


SETTINGS = ExploreSettings


def run(settings: ExploreSettings) -> Result:
    """Join, lay out, count and write the page; no model is asked anything."""
    started = time.monotonic()
    found = explored(settings)
    joined, said = found.joined, found.said
    findings, methods = _findings(found), _methods(settings, found)
    subtitle = f"{len(joined.ids):,} tasks of {len(set(joined.origins.values()))} origins, {len(found.labels)} labels"
    title = f"penchant explore: {', '.join(run.resolve().name for run in settings.runs) or 'tasks'}"
    run_directory = RunDirectory(settings)
    path = run_directory.path / "explore.html"
    path.write_text(page(found, title=title, subtitle=subtitle, findings=findings, methods=methods), encoding="utf-8")
    result = publish(
        run_directory,
        Source(subtitle, {}),
        experiment="explore",
        findings=findings,
        figures=figures_of(found),
        tables=save_tables(run_directory, found, settings.top),
        methods=methods,
        summary={
            "tasks": len(joined.ids),
            "map": found.map.said if found.map else "",
            "neighbourhoods": found.map.near.to_dict("records") if found.map else [],
            "order_flips": {name: {"rate": each.rate, "expected": each.expected} for name, each in found.flips.items()},
            "preferred_refused": [
                {"refusal": each.refusal, "counts": each.counts.to_dict(), "odds_ratio": each.odds_ratio, "p": each.p}
                for each in found.crosses
            ],
            "said_and_chosen": {**said.agreement.to_dict(), "apart": int(said.tasks["apart"].sum())} if said else {},
            "remarks": list(joined.remarks),
        },
        seconds=time.monotonic() - started,
    )
    return replace(result, screen=f"{result.screen}\nPage:   {path.resolve().as_uri() if path.is_absolute() else path}")


def _findings(found: Explored) -> list[Finding]:
    joined = found.joined
    return [
        *(
            [map_finding(found.map, len(joined.ids)), near_finding(found.map)]
            if found.map
            else [Finding("Map", f"There is no map: {found.no_map}")]
        ),
        *(flips_finding(name, each) for name, each in found.flips.items()),
        *(cross_finding(each) for each in found.crosses),
        *([said_finding(found.said)] if found.said else []),
        *([Finding("Left out", " ".join(joined.remarks))] if joined.remarks else []),
    ]


def _methods(settings: ExploreSettings, found: Explored) -> str:
    said = [f"Labels of {', '.join(dict.fromkeys(label.source for label in found.joined.labels))} are joined by task id."]
    if found.map:
        said.append(
            f"Tasks are near by {found.map.of}, by cosine. A label of a task is predicted by the mean of the {found.map.k} "
            "nearest tasks that have it, itself left out; held-out R² is against the mean of all others, its interval is a "
            f"jackknife over tasks, and its p comes from {settings.permutations} permutations of labels over all tasks, and "
            "within origins. Both are corrected by Benjamini and Hochberg over labels."
        )
    if found.flips:
        said.append(
            "The order of a pair decides where the same place is chosen in both orders. The flips of a task are held against "
            "a Poisson binomial in which position is worth, given the content of each pair, what it is over all pairs (normal, "
            "with their mean and spread); intervals of a task's share are exact, and that of all pairs allows for pairs that "
            "share a task."
        )
    if found.crosses:
        said.append("Odds ratios are conditional estimates with exact intervals, tests are Fisher's.")
    if found.said:
        said.append(
            "Self-report and choice are standardised over the tasks that have both; their difference is tested with both "
            "standard errors, where there are both, corrected by Benjamini and Hochberg over tasks."
        )
    return " ".join(said)


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["explore", *sys.argv[1:]]))
