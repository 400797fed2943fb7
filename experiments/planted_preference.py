"""planted_preference: the whole pipeline on a model whose preferences were trained in, held against what they are."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field

from elicit import LeastSquares, Task, all_pairs, ask, choice
from experiments import figures as plots
from experiments.calibration import CalibrationSettings, coverage_table, false_positive_table
from experiments.dose_response import DoseResponse, is_tested
from experiments.findings import Finding
from experiments.frozen import FrozenTable
from experiments.loop import cache_activations
from experiments.organisms import Organism
from experiments.planted import SEEN, UNSEEN, UNTOUCHED, Recovery, chance_of_a_claim, planting_table, recovery, slope_gaps
from experiments.planted_figures import gaps_figure, planting_figure
from experiments.planted_findings import (
    false_positive_finding,
    planting_finding,
    readable_finding,
    recovery_finding,
    used_finding,
)
from experiments.planted_nulls import USED, chance_of_use, dealt_labels, probe_claims, rate_row
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
from store import ActivationStore, Estimate


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
    """What a model chose, and what was read from it and pushed."""

    table: FrozenTable
    store: ActivationStore
    response: DoseResponse


@dataclass(frozen=True)
class _Checks:
    """Every stage, held against what was planted and against the untouched model."""

    planting: pd.DataFrame
    recovered: Recovery
    coverage: pd.DataFrame
    false_positives: pd.DataFrame
    chance: Estimate
    sweep: ProbeSweep
    readable: pd.DataFrame
    slopes: pd.DataFrame
    gaps: pd.DataFrame

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """What is kept, by name."""
        return {
            "planting": self.planting,
            "coverage": self.coverage,
            "false_positives": self.false_positives,
            "probes": self.sweep.table,
            "slopes": self.slopes,
            "gaps": self.gaps,
        } | ({"readable": self.readable} if len(self.readable) else {})

    @property
    def summary(self) -> dict[str, Any]:
        """What programs read."""
        found = self.recovered
        return {
            "planting": self.planting.to_dict("records"),
            "recovery": {"own": found.own, "planted": found.planted, "whole": found.whole, "ceiling": found.ceiling},
            "coverage": self.coverage.to_dict("records"),
            "false_positives": self.false_positives.to_dict("records"),
            "steering_false_positives": self.chance,
            "probe": self.sweep.best("utility").to_dict(),
            "readable": self.readable.to_dict("records"),
            "slopes": self.slopes[is_tested(self.slopes)].to_dict("records"),
            "gaps": self.gaps[~self.gaps["is_random"]].to_dict("records"),
        }


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
    checks = _checks(settings, organism, tasks, comparisons, subjects)
    for name, table in checks.tables.items():
        setup.run.save_table(name, table)
    readable, slopes = checks.readable, checks.slopes
    return publish(
        setup.run,
        Source.of(setup, choice.questions(tasks, [(tasks[0].id, tasks[1].id)], wording=settings.wordings[0])[0]),
        experiment="planted_preference",
        findings=[
            planting_finding(checks.planting, organism),
            recovery_finding(checks.recovered, checks.coverage, settings.degree),
            false_positive_finding(checks.false_positives, checks.chance),
            readable_finding(checks.sweep),
            *([features_finding(readable)] if len(readable) else []),
            *_steering(subjects),
            used_finding(checks.gaps, organism),
        ],
        figures={
            "planting": planting_figure(comparisons, truth, organism),
            "probe_utility": plots.probe_figure(checks.sweep, "utility"),
            "gaps": gaps_figure(checks.gaps, organism.folder.name),
        }
        | {f"dose_{name}": plots.dose_figure(each.response, *_steered_at(each)) for name, each in subjects.items()},
        tables=[
            Table("Planting", "Choices beside what was planted, pairs of seen and of unseen topics.", checks.planting),
            Table("Coverage", "Share of intervals that contain the fit to all pairs.", checks.coverage),
            Table("False positives", "How often a claim is made where there is nothing; 5 % is right.", checks.false_positives),
            *([Table("Readable", "Held-out R² of what the rule is made of.", readable)] if len(readable) else []),
            Table("Slopes", "Shift per dose of one residual norm.", slopes[is_tested(slopes)]),
        ],
        methods=_methods(settings, organism, len(tasks), len(fresh.tasks)),
        summary={"organism": {"name": organism.folder.name, "rule": organism.rule.model_dump(mode="json")}} | checks.summary,
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
    return _Subject(table, store, response)


def _checks(
    settings: PlantedPreferenceSettings,
    organism: Organism,
    tasks: Sequence[Task],
    comparisons: Mapping[str, pd.DataFrame],
    subjects: Mapping[str, _Subject],
) -> _Checks:
    truth, subject, untouched = organism.utilities(tasks), subjects[organism.folder.name], subjects[UNTOUCHED]
    recovered = recovery(subject.table, truth, settings.degree, settings.designs, settings.seed)
    calibrated = CalibrationSettings(
        degrees=(settings.degree,), n_resamples=settings.designs, n_nulls=settings.n_nulls, seed=settings.seed
    )
    coverage, shuffled = coverage_table(subject.table, calibrated), false_positive_table(subject.table, calibrated)
    labels = LeastSquares(resamples=200, seed=settings.seed).fit(subject.table.comparisons).labels()
    probes = partial(_probes, settings, organism, tasks, subject.store)
    elsewhere = {UNTOUCHED: untouched.store}
    sweep = probes(pd.concat([labels, *feature_labels(organism, tasks)]), seed=settings.seed, others=elsewhere)
    # What a probe claims of its labels does not depend on other models' activations, so its nulls do without.
    nulls = probe_claims(dealt_labels(subject.table, settings.degree, settings.n_probe_nulls, settings.seed), probes)
    both = subject.response.slopes, untouched.response.slopes
    used = chance_of_use(*both, controls=19)
    return _Checks(
        planting=planting_table(comparisons, truth, organism.unseen),
        recovered=recovered,
        coverage=coverage,
        false_positives=pd.concat([shuffled, nulls, pd.DataFrame([rate_row(USED, used)])], ignore_index=True),
        chance=chance_of_a_claim(both[0], controls=19),
        sweep=sweep,
        readable=readable_table(sweep, organism, UNTOUCHED) if organism.rule.features else pd.DataFrame(),
        slopes=pd.concat([each.response.slopes.assign(model=name) for name, each in subjects.items()], ignore_index=True),
        gaps=slope_gaps(*both),
    )


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


def _steering(subjects: Mapping[str, _Subject]) -> list[Finding]:
    return [
        Finding(f"Steering: {name}", each.sentence, f"dose_{name}")
        for name, subject in subjects.items()
        for each in steering_findings(subject.response)
    ]


def _steered_at(subject: _Subject) -> tuple[int, str]:
    first = subject.response.tested().iloc[0]
    return int(first["layer"]), str(first["mode"])


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
