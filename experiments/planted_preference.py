"""planted_preference: the whole pipeline on a model whose preferences were trained in, held against what they are."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import LeastSquares, Task, all_pairs, ask, choice
from elicit.pairs import order_averages
from experiments import figures as plots
from experiments.calibration import CalibrationSettings, coverage_table, false_positive_table
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse, is_tested
from experiments.findings import Finding, plain, probe_finding
from experiments.frozen import FrozenTable
from experiments.loop import cache_activations
from experiments.organisms import Organism
from experiments.planted import SEEN, UNSEEN, Recovery, chance_of_a_claim, is_used, planting_table, recovery, slope_gaps
from experiments.planted_nulls import CONJUNCTIONS, USED, chance_of_use, dealt_labels, probe_claims, rate_row
from experiments.planted_readable import feature_labels, features_finding, readable_table
from experiments.planted_tasks import Fresh, measured_tasks
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.steer_findings import steering_findings
from experiments.steering import Directions, SteerSettings, steer_along
from interp import LocalModel, ProbeSweep, Split, probe_sweep
from interp.layers import LayerSpec
from store import ActivationStore, Estimate, layer_name

UNTOUCHED = "untouched"


class PlantedPreferenceSettings(Settings):
    """Measure an organism, and hold every stage against what was planted, and against the untouched model."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 5,
        "designs": 50,
        "n_nulls": 100,
        "n_probe_nulls": 20,
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
    n_probe_nulls: int = Field(
        default=200, ge=10, description="Times that utilities are dealt to other tasks, for false positives of the probes."
    )
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
    tasks = measured_tasks(settings, organism)
    fresh = Fresh.of(settings, organism, tasks, settings.steered_pairs)
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
    coverage, shuffled = coverage_table(subject.table, calibrated), false_positive_table(subject.table, calibrated)
    labels = LeastSquares(resamples=200, seed=settings.seed).fit(subject.table.comparisons).labels()
    probes = partial(_probes, settings, organism, tasks, subject.store)
    elsewhere = {UNTOUCHED: subjects[UNTOUCHED].store}
    sweep = probes(pd.concat([labels, *feature_labels(organism, tasks)]), seed=settings.seed, others=elsewhere)
    # What a probe claims of its labels does not depend on other models' activations, so its nulls do without.
    nulls = probe_claims(dealt_labels(subject.table, settings.degree, settings.n_probe_nulls, settings.seed), probes)
    slopes = pd.concat([each.response.slopes.assign(model=name) for name, each in subjects.items()], ignore_index=True)
    both = subject.response.slopes, subjects[UNTOUCHED].response.slopes
    gaps, used, chance = slope_gaps(*both), chance_of_use(*both, controls=19), chance_of_a_claim(both[0], controls=19)
    false_positives = pd.concat([shuffled, nulls, pd.DataFrame([rate_row(USED, used)])], ignore_index=True)
    readable = readable_table(sweep, organism, UNTOUCHED) if organism.rule.features else pd.DataFrame()
    tables = {
        "planting": planting,
        "coverage": coverage,
        "false_positives": false_positives,
        "probes": sweep.table,
        "slopes": slopes,
        "gaps": gaps,
    } | ({"readable": readable} if len(readable) else {})
    for name, table in tables.items():
        setup.run.save_table(name, table)
    return publish(
        setup.run,
        Source.of(setup, choice.questions(tasks, [(tasks[0].id, tasks[1].id)], wording=settings.wordings[0])[0]),
        experiment="planted_preference",
        findings=[
            planting_finding(planting, organism, settings),
            recovery_finding(recovered, coverage, settings),
            false_positive_finding(false_positives, chance),
            _readable_finding(sweep),
            *([features_finding(readable)] if len(readable) else []),
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
            Table("False positives", "How often a claim is made where there is nothing; 5 % is right.", false_positives),
            *([Table("Readable", "Held-out R² of what the rule is made of.", readable)] if len(readable) else []),
            Table("Slopes", "Shift per dose of one residual norm.", slopes[is_tested(slopes)]),
        ],
        methods=_methods(settings, organism, len(tasks), len(fresh.tasks)),
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
            "readable": readable.to_dict("records"),
            "slopes": slopes[is_tested(slopes)].to_dict("records"),
            "gaps": gaps[~gaps["is_random"]].to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def _choices(setup: Setup, model: LocalModel, wording: str) -> pd.DataFrame:
    asked = choice.questions(setup.tasks, all_pairs([task.id for task in setup.tasks]), wording=wording)
    return choice.comparisons(
        asked, ask(asked, model, setup.run.log, description=f"all pairs, {model.identity.name}, {wording}")
    )


def _subject(setup: Setup, name: str, model: LocalModel, comparisons: pd.DataFrame, fresh: Fresh) -> _Subject:
    """Read a model's activations, make directions of its own utilities, and steer its choices between fresh tasks."""
    settings: Any = setup.settings
    model_named = {"name": model.identity.name, "fingerprint": model.fingerprint, "dtype": model.dtype}
    table = FrozenTable(comparisons, setup.origins, model_named)
    layers = [*settings.layers, *settings.steer.layers]
    store = cache_activations(model, setup.tasks, layers, [settings.position], setup.run)
    labels = LeastSquares(errors="none").fit(comparisons).labels()
    steer = settings.steer.model_copy(update={"position": settings.position})
    directions = {
        layer: Directions.of(store, labels, layer, steer, choices=comparisons) for layer in model.layers(steer.layers)
    }
    run = setup.run.branch(name)
    response, _ = steer_along(model, directions, fresh.tasks, fresh.pairs, settings.wordings[0], steer, run)
    return _Subject(model, table, store, response)


def _probes(
    settings: PlantedPreferenceSettings,
    organism: Organism,
    tasks: Sequence[Task],
    store: ActivationStore,
    labels: pd.DataFrame,
    *,
    seed: int,
    others: Mapping[str, ActivationStore] | None = None,
) -> ProbeSweep:
    """Probes of labels of the tasks, trained on seen topics and tested on unseen ones, beside other models' activations."""
    unseen = set(organism.unseen)
    return probe_sweep(
        store,
        labels,
        positions=[settings.position],
        split=lambda ids: Split.held_out(ids, [task_id for task_id in ids if task_id in unseen]),
        origins={task.id: task.origin for task in tasks},
        texts={task.id: task.text for task in tasks},
        others=others,
        permutations=settings.permutations,
        seed=seed,
    )


def planting_finding(planting: pd.DataFrame, organism: Organism, settings: PlantedPreferenceSettings) -> Finding:
    """Whether the model took what was planted, on topics and wordings that it was not trained on."""
    said = []
    for _, row in planting.iterrows():
        wording = str(row["condition"]).rsplit(", ", 1)[1]
        new = "" if wording in organism.wordings or UNTOUCHED in row["condition"] else " (a wording not trained on)"
        words = f"{row['condition']}{new}, {row['topics']} topics: orders correlate at {_scored(row, 'swapped')}"
        if pd.notna(row.get("pearson")):
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


def false_positive_finding(rates: pd.DataFrame, chance: Estimate) -> Finding:
    """How often claims are made where there is nothing to claim."""
    said = {row["claim"]: _percent(row, "rate") for _, row in rates.iterrows()}
    used = said.pop(USED)
    below = rates["claim"].isin(CONJUNCTIONS) & (rates["rate_high"] < 0.05)
    wrong = ((rates["rate_low"] > 0.05) | (rates["rate_high"] < 0.05)) & ~below
    verdict = f"Every {'other ' if below.any() else ''}interval contains 5 %."
    if wrong.any():
        verdict = f"Not 5 %: {'; '.join(rates.loc[wrong, 'claim'])}."
    if below.any():
        verdict += f" Below 5 %, as it needs both: {'; '.join(rates.loc[below, 'claim'])}."
    return Finding(
        "False positives",
        "Of this model's answers with their labels shuffled, or dealt to other tasks, a claim is made this often: "
        f"{'; '.join(f'{claim} {rate}' for claim, rate in said.items())}. Of {chance.n} random directions, each tested against "
        f"the others, {plain(chance, percent=True)} exceed them, and {used} are said to be used. {verdict}",
    )


def _readable_finding(sweep: ProbeSweep) -> Finding:
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
        verdict = "so what was planted is used there" if is_used(row) else "so use is not shown"
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
    differ = ", one of each pair worth more by the rule" if organism.rule.features else ""
    cells = ", as many from each of the four cells of the rule," if organism.rule.features else ""
    return (
        f"The organism {organism.folder.name} is the embedded model after a LoRA fine-tune on choices between "
        f"{len(organism.seen)} tasks ({', '.join(organism.wordings)}), by the rule that {rule}; {len(organism.unseen)} tasks "
        f"of other topics were never trained on. All pairs of {n} tasks{cells} were asked, both orders, and option "
        f"probabilities read exactly. Utilities were recovered from {settings.designs} random designs of that table. Probes "
        f"were trained on the {SEEN} topics and tested on {UNSEEN} ones, with the untouched model's activations of the same "
        f"tasks beside; for their false positives, utilities of {settings.n_probe_nulls} such designs were dealt to the tasks "
        "at random and probed as the real ones. "
        f"Directions were made from the measured tasks and pushed apart (+v on one task, -v on the other) in choices between "
        f"{n_fresh} others{differ}, in both models, against {settings.steer.n_random} random directions."
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["planted_preference", *sys.argv[1:]]))
