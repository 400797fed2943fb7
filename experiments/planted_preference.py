"""planted_preference: the whole pipeline on a model whose preferences were trained in, held against what they are."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import LeastSquares, Task, all_pairs, ask, builtin_tasks, choice, disjoint_pairs, sample_tasks
from elicit.pairs import order_averages
from experiments import figures as plots
from experiments.calibration import CalibrationSettings, coverage_table, false_positive_table
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse
from experiments.findings import Finding, plain, probe_finding, steering_findings
from experiments.frozen import FrozenTable
from experiments.loop import cache_activations
from experiments.organisms import Organism
from experiments.planted import SEEN, UNSEEN, Recovery, chance_of_a_claim, planting_table, recovery, slope_gaps
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.steering import SteerSettings, made_directions, steer_along
from interp import LocalModel, ProbeSweep, Split, probe_sweep
from interp.layers import LayerSpec
from store import ActivationStore, layer_name

UNTOUCHED = "untouched"


class PlantedPreferenceSettings(Settings):
    """Measure an organism, and hold every stage against what was planted, and against the untouched model."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 5,
        "designs": 50,
        "n_nulls": 100,
        "permutations": 39,
        "steered_pairs": 8,
        "steer": SteerSettings(n_random=4, doses=(-0.4, 0.4), methods=("difference_of_means",)),
        "out": Path("runs/planted_preference_quick"),
    }

    out: Path = Field(default=Path("runs/planted_preference"), description="Run directory. The same one continues, or repeats.")
    organism: str = Field(default="topics", description="`penchant organism list`, or a folder of `penchant organism train`.")
    per_origin: int = Field(default=8, ge=3, description="Tasks sampled from each origin; all their pairs are asked.")
    wordings: tuple[str, ...] = Field(
        default=("would_rather", "enjoy_more"),
        min_length=1,
        description="Templates of the choices; the first is the one measured by, the others are shown beside.",
    )
    degree: int = Field(
        default=10, ge=2, description="Other tasks that each task is compared with, in both orders, to recover."
    )
    designs: int = Field(default=200, ge=10, description="Random designs that utilities are recovered from.")
    n_nulls: int = Field(default=400, ge=50, description="Times that labels are shuffled, for false positives.")
    layers: tuple[LayerSpec, ...] = Field(default=("embed", 0.25, 0.5, 0.75), description="Layers that are probed.")
    position: str = Field(default="task_mean", description="Position that is probed, and that directions are read from.")
    permutations: int = Field(default=100, ge=19, description="Shuffles of the labels, for the probes' null.")
    steered_pairs: int = Field(
        default=20, ge=4, description="Pairs of tasks, not measured before, that are asked under steering."
    )
    steer: SteerSettings = Field(default=SteerSettings(n_random=24), description="Directions, doses and controls.")


SETTINGS = PlantedPreferenceSettings


@dataclass(frozen=True)
class _Subject:
    """A model, what it chose, and what was read and pushed."""

    model: LocalModel
    table: FrozenTable
    store: ActivationStore
    response: DoseResponse


def run(settings: PlantedPreferenceSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    organism = Organism.read(settings.organism)
    tasks = settings.load_tasks()
    fresh = _unmeasured(settings, tasks)
    truth = organism.utilities(tasks)
    setup = Setup.of(settings, tasks)
    planted = settings.model_copy(update={"model": str(organism.folder)}).load_model()
    models = {organism.folder.name: planted, UNTOUCHED: setup.model}
    comparisons = {
        f"{name}, {wording}": _choices(setup, model, wording)
        for name, model in models.items()
        for wording in (settings.wordings if name != UNTOUCHED else settings.wordings[:1])
    }
    subjects = {
        name: _subject(setup, name, model, comparisons[f"{name}, {settings.wordings[0]}"], fresh)
        for name, model in models.items()
    }
    planting = planting_table(comparisons, truth, organism.unseen)
    subject = subjects[organism.folder.name]
    recovered = recovery(subject.table, truth, settings.degree, settings.designs, settings.seed)
    calibrated = CalibrationSettings(
        degrees=(settings.degree,), n_resamples=settings.designs, n_nulls=settings.n_nulls, seed=settings.seed
    )
    coverage, false_positives = coverage_table(subject.table, calibrated), false_positive_table(subject.table, calibrated)
    sweep = _probes(settings, organism, subject, subjects[UNTOUCHED].store, tasks)
    slopes = pd.concat([each.response.slopes.assign(model=name) for name, each in subjects.items()], ignore_index=True)
    gaps = slope_gaps(subject.response.slopes, subjects[UNTOUCHED].response.slopes)
    tables = {
        "planting": planting,
        "coverage": coverage,
        "false_positives": false_positives,
        "probes": sweep.table,
        "slopes": slopes,
        "gaps": gaps,
    }
    for name, table in tables.items():
        setup.run.save_table(name, table)
    chance = chance_of_a_claim(subject.response.slopes, controls=19)
    return publish(
        setup.run,
        Source.of(setup, choice.questions(tasks, [(tasks[0].id, tasks[1].id)], wording=settings.wordings[0])[0]),
        experiment="planted_preference",
        findings=[
            planting_finding(planting, organism, settings),
            recovery_finding(recovered, coverage, settings),
            false_positive_finding(false_positives, chance),
            _readable_finding(sweep, organism),
            *_steering(subjects),
            _used_finding(gaps, organism),
        ],
        figures={
            "planting": planting_figure(comparisons, truth, organism),
            "probe_utility": plots.probe_figure(sweep, "utility"),
            "gaps": gaps_figure(gaps, organism.folder.name),
        }
        | {f"dose_{name}": plots.dose_figure(each.response, *_steered_at(each)) for name, each in subjects.items()},
        tables=[
            Table("Planting", "Choices beside what was planted, pairs of seen and of unseen topics.", planting),
            Table("Coverage", "Share of intervals that contain the fit to all pairs.", coverage),
            Table("False positives", "How often a claim is made where labels are shuffled; 5 % is right.", false_positives),
            Table("Slopes", "Shift per dose of one residual norm.", slopes[~slopes["is_random"].astype(bool)]),
        ],
        methods=_methods(settings, organism, len(tasks), len(fresh)),
        summary={
            "organism": {"name": organism.folder.name, "rule": organism.rule.model_dump(mode="json")},
            "planting": planting.to_dict("records"),
            "recovery": {
                "own": recovered.own,
                "planted": recovered.planted,
                "whole": recovered.whole,
                "ceiling": recovered.ceiling,
            },
            "coverage": coverage.to_dict("records"),
            "false_positives": false_positives.to_dict("records"),
            "steering_false_positives": chance,
            "probe": sweep.best("utility").to_dict(),
            "slopes": slopes[~slopes["is_random"].astype(bool)].to_dict("records"),
            "gaps": gaps[~gaps["is_random"]].to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def _unmeasured(settings: PlantedPreferenceSettings, tasks: Sequence[Task]) -> list[Task]:
    """Tasks of the same sources that are not measured: what directions are tested on."""
    measured = {task.id for task in tasks}
    others = [task for task in settings.available_tasks(builtin_tasks) if task.id not in measured]
    if len(others) < 2 * settings.steered_pairs:
        raise ValueError(
            f"{len(others)} tasks are left to steer choices between, for {settings.steered_pairs} pairs; expected twice as "
            "many. Measure fewer (per_origin), or steer fewer pairs."
        )
    origins = sorted({task.origin for task in others})
    each = -(-2 * settings.steered_pairs // len(origins))
    return sample_tasks(others, each, settings.seed + 1)[: 2 * settings.steered_pairs]


def _choices(setup: Setup, model: LocalModel, wording: str) -> pd.DataFrame:
    asked = choice.questions(setup.tasks, all_pairs([task.id for task in setup.tasks]), wording=wording)
    return choice.comparisons(
        asked, ask(asked, model, setup.run.log, description=f"all pairs, {model.identity.name}, {wording}")
    )


def _subject(setup: Setup, name: str, model: LocalModel, comparisons: pd.DataFrame, fresh: Sequence[Task]) -> _Subject:
    """Read a model's activations, make directions of its own utilities, and steer its choices between fresh tasks."""
    settings: Any = setup.settings
    model_named = {"name": model.identity.name, "fingerprint": model.fingerprint, "dtype": model.dtype}
    table = FrozenTable(comparisons, setup.origins, model_named)
    layers = [*settings.layers, *settings.steer.layers]
    store = cache_activations(model, setup.tasks, layers, [settings.position], setup.run)
    labels = LeastSquares(errors="none").fit(comparisons).labels()
    steer = settings.steer.model_copy(update={"position": settings.position})
    directions = {layer: made_directions(store, labels, layer, steer) for layer in model.layers(steer.layers)}
    pairs = disjoint_pairs([task.id for task in fresh], settings.seed)
    run = setup.run.branch(name)
    response, _ = steer_along(model, directions, fresh, pairs, settings.wordings[0], steer, run)
    return _Subject(model, table, store, response)


def _probes(
    settings: PlantedPreferenceSettings,
    organism: Organism,
    subject: _Subject,
    untouched: ActivationStore,
    tasks: Sequence[Task],
) -> ProbeSweep:
    """Probes of the organism's utilities, tested on unseen topics, beside the untouched model's activations."""
    labels = LeastSquares(resamples=200, seed=settings.seed).fit(subject.table.comparisons).labels()
    unseen = set(organism.unseen)
    return probe_sweep(
        subject.store,
        labels,
        positions=[settings.position],
        split=lambda ids: Split.held_out(ids, [task_id for task_id in ids if task_id in unseen]),
        origins={task.id: task.origin for task in tasks},
        texts={task.id: task.text for task in tasks},
        others={UNTOUCHED: untouched},
        permutations=settings.permutations,
        seed=settings.seed,
    )


def planting_finding(planting: pd.DataFrame, organism: Organism, settings: PlantedPreferenceSettings) -> Finding:
    """Whether the model took what was planted, on topics and wordings that it was not trained on."""
    said = []
    for _, row in planting.iterrows():
        wording = str(row["condition"]).rsplit(", ", 1)[1]
        new = "" if wording in organism.wordings or UNTOUCHED in row["condition"] else " (a wording not trained on)"
        words = f"{row['condition']}{new}, {row['topics']} topics: orders correlate at {_scored(row, 'swapped')}"
        if row.get("pearson") == row.get("pearson"):
            words += (
                f", {_percent(row, 'right')} of choices go as planted (r = {_scored(row, 'pearson')}, "
                f"{_scored(row, 'slope')} of what was planted)"
            )
        said.append(f"{words}, position is worth {_scored(row, 'position')}.")
    return Finding("Planting", " ".join(said), "planting")


def recovery_finding(found: Recovery, coverage: pd.DataFrame, settings: PlantedPreferenceSettings) -> Finding:
    """How well few comparisons recover the utilities."""
    row = coverage[coverage["way"].str.contains("default, exact")].iloc[0]
    sentence = (
        f"From {2 * settings.degree} comparisons a task, utilities have a rank correlation of {plain(found.own)} with the fit "
        f"to all pairs (mean and range of {found.own.n} designs; the target of .9 is "
        f"{'met' if found.own.value >= 0.9 else 'missed'}). "
    )
    if found.planted is not None and found.whole is not None:
        sentence += (
            f"With the planted utilities it is {plain(found.planted)}, and {plain(found.whole)} from all pairs; ties among the "
            f"planted allow {found.ceiling:.2f} at most. "
        )
    sentence += f"Intervals of 95 % contain the fit to all pairs in {_percent(row, 'coverage')} of cases."
    return Finding("Recovery", sentence)


def false_positive_finding(rates: pd.DataFrame, chance: Any) -> Finding:
    """How often claims are made where there is nothing to claim."""
    said = ", ".join(f"{row['claim']} {_percent(row, 'rate')}" for _, row in rates.iterrows())
    wrong = [row["claim"] for _, row in rates.iterrows() if not row["rate_low"] <= 0.05 <= row["rate_high"]]
    verdict = "Every interval contains 5 %." if not wrong else f"Not 5 %: {', '.join(wrong)}."
    return Finding(
        "False positives",
        f"Of this model's answers with their labels shuffled, a claim is made this often: {said}. {verdict} A random direction "
        f"is said to exceed the other random ones in {plain(chance, percent=True)} of {chance.n} cases.",
    )


def _readable_finding(sweep: ProbeSweep, organism: Organism) -> Finding:
    found = probe_finding(sweep, "utility")
    return Finding(
        "Readable",
        f"{found.sentence} Probes were trained on the topics that the model was trained on, and tested on the others. What the "
        "untouched model's activations give as well is content that was there all along: readable, which is not to say used.",
        found.figure,
    )


def _steering(subjects: Mapping[str, _Subject]) -> list[Finding]:
    return [
        Finding(f"Steering: {name}", each.sentence, f"dose_{name}")
        for name, subject in subjects.items()
        for each in steering_findings(subject.response)
    ]


def _used_finding(gaps: pd.DataFrame, organism: Organism) -> Finding:
    """Slopes of the organism beside those of the untouched model."""
    said = []
    for _, row in gaps[~gaps["is_random"]].iterrows():
        enough = row["n_random"] >= CONTROLS_NEEDED
        verdict = (
            "so what was planted is used there" if row["p_value"] <= 0.05 and row["gap_low"] > 0 else "so use is not shown"
        )
        said.append(
            f"{row['direction'].replace('_', ' ')} at {layer_name(row['layer'])}: {row['organism']:+.2f} logits per dose in "
            f"{organism.folder.name}, {row['untouched']:+.2f} in the untouched model, a difference of {_scored(row, 'gap')}; "
            f"the same {row['n_random']:.0f} random directions differ by {row['random_low']:+.2f} to {row['random_high']:+.2f} "
            + (f"(p = {row['p_value']:.2f}), {verdict}." if enough else "and are too few for a claim.")
        )
    return Finding(
        "Used", "Pushing along a direction says whether a model uses what can be read along it. " + " ".join(said), "gaps"
    )


def _steered_at(subject: _Subject) -> tuple[int, str]:
    first = subject.response.tested().iloc[0]
    return int(first["layer"]), str(first["mode"])


def planting_figure(comparisons: Mapping[str, pd.DataFrame], truth: pd.Series, organism: Organism) -> Figure:
    """Order-averaged log-odds by planted difference, one panel a condition; pairs of unseen topics stand out."""
    figure, panels = plots.new_panels(len(comparisons), 3.6)
    unseen = set(organism.unseen)
    for axes, (condition, table) in zip(panels, comparisons.items(), strict=True):
        pairs = order_averages(table)
        planted = truth[pairs["task_1"]].to_numpy() - truth[pairs["task_2"]].to_numpy()
        new = (pairs["task_1"].isin(unseen) & pairs["task_2"].isin(unseen)).to_numpy()
        jitter = 0.06 * np.random.default_rng(0).standard_normal(len(pairs))
        for part, colour, label in ((~new, plots.GREY, "others"), (new, plots.ORANGE, "unseen topics")):
            axes.plot(planted[part] + jitter[part], pairs["content"][part], ".", color=colour, markersize=3, label=label)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xlabel="planted difference (logits)")
        axes.set_title(f"{condition} (n={len(pairs)} pairs)", fontsize=9)
    panels[0].set_ylabel("log-odds for the task, both orders")
    panels[-1].legend(fontsize=8, frameon=False)
    return figure


def gaps_figure(gaps: pd.DataFrame, name: str) -> Figure:
    """Slope in the organism by slope in the untouched model, every direction a point."""
    figure, axes = plots.new_axes(5.4, 4.6)
    random = gaps["is_random"]
    axes.plot(gaps.loc[random, "untouched"], gaps.loc[random, "organism"], "o", color=plots.GREY, label="random")
    for (_, row), colour in zip(gaps[~random].iterrows(), plots.CYCLE, strict=False):
        label = f"{row['direction'].replace('_', ' ')}, {layer_name(row['layer'])}"
        axes.plot(row["untouched"], row["organism"], "o", color=colour, markersize=8, label=label)
    axes.axline((0, 0), slope=1, color="black", linewidth=0.6)
    axes.set(
        xlabel="slope in the untouched model (logits per dose)",
        ylabel=f"slope in {name} (logits per dose)",
    )
    axes.set_title(f"What a push does to choices (n={int(gaps['n'].min())} pairs; line: the same in both)", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _scored(row: pd.Series, name: str) -> str:
    return f"{row[name]:+.2f} [{row[f'{name}_low']:+.2f}, {row[f'{name}_high']:+.2f}]"


def _percent(row: pd.Series, name: str) -> str:
    return f"{100 * row[name]:.1f} % [{100 * row[f'{name}_low']:.1f}, {100 * row[f'{name}_high']:.1f}]"


def _methods(settings: PlantedPreferenceSettings, organism: Organism, n: int, n_fresh: int) -> str:
    rule = {
        "origins": "what a task is worth depends on its origin",
        "xor": "a task is worth more where exactly one is true: that it is technical, and that it asks a question",
        "position": "no task is worth more than another, and the one shown first is preferred",
    }[organism.rule.name]
    return (
        f"The organism {organism.folder.name} is the embedded model after a LoRA fine-tune on choices between "
        f"{len(organism.seen)} tasks ({', '.join(organism.wordings)}), by the rule that {rule}; {len(organism.unseen)} tasks "
        f"of other topics were never trained on. All pairs of {n} tasks were asked, both orders, and option probabilities read "
        f"exactly. Utilities were recovered from {settings.designs} random designs of that table. Probes were trained on the "
        f"{SEEN} topics and tested on {UNSEEN} ones, with the untouched model's activations of the same tasks beside. "
        f"Directions were made from the measured tasks and pushed apart (+v on one task, -v on the other) in choices between "
        f"{n_fresh} others, in both models, against {settings.steer.n_random} random directions."
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["planted_preference", *sys.argv[1:]]))
