"""probe_sweep: what the activations know of every target, layer by layer, against baselines on the same splits; to W&B."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from pydantic import Field, model_validator

from elicit import Task, choice, read_ids
from experiments import figures as plots
from experiments.findings import Finding, beats_baselines, probe_finding
from experiments.loop import cache_activations
from experiments.measuring import ElicitSettings, Preferences, measure_preferences
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.run_directory import RunDirectory
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.wandb_sink import WandbSink
from experiments.wandb_sweep import sweep_file
from interp import LocalModel, ProbeSweep, Split, fit_probe, probe_sweep
from interp.baselines import sentence_embeddings
from interp.kinds import KINDS, Kind
from interp.layers import LayerSpec
from interp.probe import RESIDUAL
from interp.probe_block import Splitter
from interp.ridge import Choice
from store import ActivationStore, layer_name
from store.directions import Probe
from store.provenance import digest

_METRICS = (
    "r2",
    "pearson",
    "spearman",
    "pairwise_accuracy",
    "choice_accuracy",
    "gain",
    "p_value",
    "ceiling",
    "shuffled_r2_95",
    "alpha",
    "n",
)


class ProbeSweepSettings(Settings):
    """Probes from every layer and position to every target."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 6, "layers": (0.25, 0.5), "permutations": 39}

    out: Path = Field(default=Path("runs/probe_sweep"), description="Run directory. The same one continues, or repeats.")
    elicit: ElicitSettings = Field(default=ElicitSettings(), description="What is asked about the tasks.")
    layers: tuple[LayerSpec, ...] = Field(
        default=("embed", 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9),
        description="Layers to cache: indices, fractions, ranges such as 5:20:5, embed, all.",
    )
    positions: tuple[str, ...] = Field(
        default=("prompt_last", "task_mean"), description="Positions to cache, with one row a task."
    )
    only_layers: tuple[LayerSpec, ...] = Field(
        default=(),
        description="Probe these of the cached layers alone, and put the results in a folder of their own in out.",
    )
    only_positions: tuple[str, ...] = Field(default=(), description="The same for positions.")
    targets: tuple[str, ...] = Field(
        default=("utility", "self_report"), min_length=1, description="utility, self_report, or the name of a scale."
    )
    kind: Kind = Field(
        default="ridge",
        description="ridge; logistic or mass_mean: is the label above the median?; bradley_terry: fitted to the choices.",
    )
    split: Literal["k_fold", "leave_one_origin_out", "leave_one_topic_out", "held_out"] = Field(
        default="k_fold",
        description="k_fold: five random folds. leave_one_..._out: each origin or topic by probes of the others. held_out: the "
        "tasks of the file `tested` by probes of the others, once.",
    )
    tested: Path | None = Field(default=None, description="File with the ids of the tasks of the split held_out, one a line.")
    demean: Literal["none", "origin", "topic"] = Field(
        default="none", description="Take the mean of each origin or topic off labels and activations."
    )
    choice: Choice = Field(
        default="leave_one_out", description="How ridge chooses its penalty inside each training part: leave_one_out or folds."
    )
    one_standard_error: bool = Field(
        default=False, description="The largest penalty within a standard error of the best, instead of the best."
    )
    permutations: int = Field(default=100, ge=19, description="Shuffles of the labels, for the probes' null.")
    embeddings: str | None = Field(
        default=None,
        description="A sentence-transformers model (a folder or hub id), whose text embeddings are one more baseline. Needs "
        "penchant[embeddings].",
    )
    other_model: str | None = Field(
        default=None,
        description="Another model (untouched, or pretrained only), whose activations of the same tasks are probed beside.",
    )
    wandb: Literal["auto", "offline", "online", "disabled"] = Field(
        default="auto", description="auto: online if you are logged in to W&B, else offline beside the results."
    )
    emit_wandb_sweep: Path | None = Field(
        default=None,
        description="Only write a W&B sweep here, one configuration for every layer, position and target; then: wandb sweep "
        "FILE.",
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.split == "held_out") != (self.tested is not None):
            raise ValueError("the split held_out and a file of tested tasks go together; got one of the two")
        if self.demean != "none" and self.kind != "ridge":
            raise ValueError("group means are taken off for ridge alone; expected demean: none, or kind: ridge")
        return self


SETTINGS = ProbeSweepSettings


def run(settings: ProbeSweepSettings) -> Result:
    """Measure, cache, probe; results are on disk before W&B hears of them."""
    started = time.monotonic()
    if settings.emit_wandb_sweep is not None:
        return _emit(settings, settings.emit_wandb_sweep)
    tasks = settings.load_tasks()
    split, texts = _splitter(settings, tasks), {task.id: task.text for task in tasks}
    demean = None if settings.demean == "none" else _groups(tasks, settings.demean)
    embeddings = _embeddings(settings, texts)
    setup = Setup.of(settings, tasks)
    layers, positions = _probed(settings, setup.model)
    preferences = measure_preferences(setup.model, setup.tasks, settings.elicit, setup.run)
    labels = _chosen(preferences.labels(), settings.targets)
    store = cache_activations(setup.model, setup.tasks, settings.layers, settings.positions, setup.run)
    known: dict[str, Any] = {"kind": settings.kind, "choices": preferences.comparisons}
    sweep = probe_sweep(
        store,
        labels,
        layers=layers,
        positions=positions,
        split=split,
        origins=setup.origins,
        texts=texts,
        embeddings=embeddings,
        others=_others(settings, setup),
        demean=demean,
        choice=settings.choice,
        one_standard_error=settings.one_standard_error,
        permutations=settings.permutations,
        seed=settings.seed,
        **known,
    )
    results = setup.run
    if settings.only_layers or settings.only_positions:
        names = [settings.kind, *settings.targets, *map(layer_name, layers), *positions]
        results = setup.run.branch("-".join(names))
    results.save_table("probes", sweep.table)
    results.save_table("probe_predictions", sweep.predictions)
    probes = _fit_all(sweep, results, store, labels, known)
    sink = WandbSink(
        settings.out,
        group=f"probe_sweep-{digest(setup.model.fingerprint, _shared(settings))[:8]}",
        mode=settings.wandb,
    )
    _log(sink, results, setup, sweep, probes)
    result = publish(
        results,
        Source.of(setup, _example(preferences, setup, settings)),
        experiment="probe_sweep",
        findings=[probe_finding(sweep, target, settings.kind) for target in settings.targets],
        figures=_figures(sweep, settings.targets),
        extras=[Finding("Where", "Held-out R² of every probe; white is no better than the mean.", "heat_map")],
        tables=_tables(sweep, texts),
        methods=_methods(setup, settings, preferences),
        summary={
            "tasks": len(tasks),
            "kind": settings.kind,
            "split": settings.split,
            "demeaned": settings.demean,
            "probes": {
                target: sweep.best(target).to_dict() | {"beats_baselines": beats_baselines(sweep.best(target))}
                for target in settings.targets
            },
        },
        seconds=time.monotonic() - started,
    )
    return Result(result.findings, result.summary, result.path, "\n".join(filter(None, [result.screen, sink.note()])))


def _probed(settings: ProbeSweepSettings, model: LocalModel) -> tuple[list[int], list[str]]:
    """Layers and positions that are probed, checked before anything is asked."""
    cached = list(model.layers(settings.layers))
    layers = list(model.layers(settings.only_layers)) if settings.only_layers else cached
    positions = list(settings.only_positions or settings.positions)
    for what, some, of in (("layers", layers, cached), ("positions", positions, settings.positions)):
        if missing := [each for each in some if each not in of]:
            raise ValueError(f"only_{what} names {missing}, which {what} does not cache: {list(of)}.")
    return layers, positions


def _chosen(labels: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    if missing := sorted(set(targets) - set(labels["target"])):
        raise ValueError(f"There are no labels of {missing}; these settings measure {sorted(labels['target'].unique())}.")
    return labels[labels["target"].isin(targets)]


def _groups(tasks: Sequence[Task], by: Literal["origin", "topic"]) -> dict[str, str]:
    """Origin or topic of every task.

    Raises
    ------
    ValueError
        A task has no topic.
    """
    groups = {task.id: getattr(task, by) for task in tasks}
    if unnamed := [task_id for task_id, group in groups.items() if not group]:
        raise ValueError(f"{len(unnamed)} tasks have no {by}, such as {unnamed[0]!r}; give the file of tasks a column {by!r}.")
    return groups


def _splitter(settings: ProbeSweepSettings, tasks: Sequence[Task]) -> Splitter:
    match settings.split:
        case "k_fold":
            return lambda task_ids: Split.k_fold(task_ids, seed=settings.seed)
        case "held_out":
            tested = read_ids(settings.tested or "")
            return lambda task_ids: Split.held_out(task_ids, tested)
        case "leave_one_origin_out" | "leave_one_topic_out":
            groups = _groups(tasks, "origin" if settings.split == "leave_one_origin_out" else "topic")
            return lambda task_ids: Split.leave_one_out(task_ids, groups)


def _embeddings(settings: ProbeSweepSettings, texts: Mapping[str, str]) -> dict[str, Any]:
    return {"text embedding": sentence_embeddings(texts, settings.embeddings)} if settings.embeddings else {}


def _others(settings: ProbeSweepSettings, setup: Setup) -> dict[str, ActivationStore]:
    if settings.other_model is None:
        return {}
    other = settings.model_copy(update={"model": settings.other_model, "intervention": None, "dose": None}).load_model()
    if other.n_layers != setup.model.n_layers:
        raise ValueError(
            f"{settings.other_model} has {other.n_layers} layers and {settings.model} {setup.model.n_layers}; probes are "
            "compared layer by layer, so expected as many. For other models see probe_sweep(others=...)."
        )
    return {other.identity.name: cache_activations(other, setup.tasks, settings.layers, settings.positions, setup.run)}


def _fit_all(
    sweep: ProbeSweep, run: RunDirectory, store: ActivationStore, labels: pd.DataFrame, known: Mapping[str, Any]
) -> dict[str, Probe]:
    """Fit every probe of the sweep to all the tasks, and write it to the run directory."""
    probes = {}
    for _, row in sweep.table[sweep.table["features"] == RESIDUAL].iterrows():
        part = labels[labels["target"] == row["target"]]
        name = _name(row)
        probes[name] = fit_probe(store, part, int(row["layer"]), str(row["position"]), **known)
        run.save_direction(f"probe-{name}", probes[name])
    return probes


def _name(row: pd.Series) -> str:
    return f"{row['target']}-{layer_name(int(row['layer']))}-{row['position']}"


def _shared(settings: ProbeSweepSettings) -> dict[str, Any]:
    """What all probes of a sweep have in common."""
    varied = {"layers", "positions", "only_layers", "only_positions", "targets"}
    return settings.model_dump(mode="json", exclude={"out", "wandb", "emit_wandb_sweep", *varied})


def _log(sink: WandbSink, run: RunDirectory, setup: Setup, sweep: ProbeSweep, probes: Mapping[str, Probe]) -> None:
    """Tell W&B of every probe: one run per layer, position and target."""
    settings: Any = setup.settings
    where = ["layer", "position", "target"]
    for _, row in sweep.table[sweep.table["features"] == RESIDUAL].iterrows():
        name = _name(row)
        curve = {key: probes[name].provenance[key] for key in ("alphas", "errors") if key in probes[name].provenance}
        predicted = sweep.predictions[(sweep.predictions[where] == row[where]).all(axis=1)]
        scores = {
            key: float(row[key])
            for metric in _METRICS
            for key in (metric, f"{metric}_low", f"{metric}_high")
            if key in row and np.isfinite(row[key])
        }
        sink.log(
            _shared(settings)
            | {"layer": int(row["layer"]), "position": row["position"], "target": row["target"]}
            | {"fingerprint": setup.model.fingerprint, "strongest_baseline": row["strongest_baseline"]},
            scores,
            name=name,
            curves={"alpha": pd.DataFrame(curve).rename(columns={"alphas": "alpha", "errors": "error"})} if curve else {},
            tables={"predictions": predicted[["task_id", "fold", "value", "predicted"]]},
            artefacts=[run.path / "directions" / f"probe-{name}.safetensors"],
        )


def _emit(settings: ProbeSweepSettings, path: Path) -> Result:
    """Write a sweep over layers, positions and targets, and beside it the settings that all configurations share."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = path.with_name(f"{path.stem}-settings.yaml")
    resolved = settings.model_dump(mode="json", exclude={"emit_wandb_sweep"}) | {"out": str(settings.out.resolve())}
    shared.write_text(yaml.safe_dump(resolved, sort_keys=False), encoding="utf-8")
    command = ["penchant", "probe_sweep", "--config", str(shared.resolve())]
    parameters = {
        "only_layers": list(settings.only_layers or settings.layers),
        "only_positions": list(settings.only_positions or settings.positions),
        "targets": list(settings.targets),
    }
    path.write_text(sweep_file(command, parameters, metric="r2", goal="maximize"), encoding="utf-8")
    return Result(
        [],
        {},
        path.parent,
        f"{path} is written, and what its configurations share in {shared}.\n"
        f"Start it with: wandb sweep {path}; then wandb agent, on any machine that has the two files.\n"
        "Answers and activations are kept in "
        f"{resolved['out']}: run `{' '.join(command)} --wandb disabled` once before several agents at a time.",
    )


def _example(preferences: Preferences, setup: Setup, settings: ProbeSweepSettings) -> Any:
    first, second = preferences.comparisons[["first", "second"]].iloc[0]
    return choice.questions(setup.tasks, [(first, second)], wording=settings.elicit.wording)[0]


def _figures(sweep: ProbeSweep, targets: Sequence[str]) -> dict[str, Figure]:
    return {"heat_map": plots.probe_map(sweep, targets)} | {
        f"probe_{target}": plots.probe_figure(sweep, target) for target in targets
    }


def _tables(sweep: ProbeSweep, texts: Mapping[str, str]) -> list[Table]:
    shown = ["target", "features", "layer_name", "position", "r2", "r2_low", "r2_high", "pearson", "spearman"]
    shown += ["pairwise_accuracy", "choice_accuracy", "gain", "gain_low", "gain_high", "strongest_baseline", "p_value"]
    shown += ["ceiling", "alpha"]
    missed = []
    for target in sweep.max_null:
        best = sweep.best(target)
        where = sweep.predictions[["target", "layer", "position"]].apply(tuple, axis=1)
        part = sweep.predictions[where == (target, best["layer"], best["position"])]
        residual = (part["value"] - part["predicted"]).rename("residual")
        worst = part.assign(residual=residual, task=part["task_id"].map(texts)).sort_values("residual", key=abs).tail(4)
        missed.append(worst.iloc[::-1][["target", "task_id", "value", "predicted", "residual", "task"]])
    scores = sweep.table[[column for column in shown if column in sweep.table]]
    return [
        Table("Probes and baselines", "Held-out scores; gain: R² above the strongest baseline.", scores),
        Table("What the best probe misses", "The tasks with the largest residuals.", pd.concat(missed)),
    ]


def _methods(setup: Setup, settings: ProbeSweepSettings, preferences: Preferences) -> str:
    how = {
        "k_fold": "scored by five-fold cross-validation over tasks",
        "leave_one_origin_out": "scored on each origin after training on the others",
        "leave_one_topic_out": "scored on each topic after training on the others",
        "held_out": "trained once, and scored on the tasks that were held out",
    }[settings.split]
    labels = {
        "ridge": "",
        "logistic": " Labels above the median were told from those below; R² is of that class.",
        "mass_mean": " Labels above the median were told from those below; R² is of that class, after a line fitted inside.",
        "bradley_terry": " Probes were fitted to the choices within the training part, and put on the scale of the labels by a "
        "line fitted inside.",
    }[settings.kind]
    penalty = {
        "ridge": f"The penalty was chosen by {settings.choice.replace('_', ' ')} inside each training part"
        + (", the largest within a standard error of the best. " if settings.one_standard_error else ". "),
        "mass_mean": "",
    }.get(settings.kind, "The penalty was chosen by inner folds. ")
    demeaned = "" if settings.demean == "none" else f", less the mean of each {settings.demean} over the training part"
    extra = ", text embeddings" if settings.embeddings else ""
    return (
        f"{len(setup.tasks)} tasks ({settings.per_origin} per origin, seed {settings.seed}) were compared in "
        f"{preferences.utilities.report.pairs} pairs, both orders, and rated on {len(settings.elicit.scales)} scales. Residual "
        f"streams were read after each block. Features were standardised on the training part. The {KINDS[settings.kind]} "
        f"probes were {how}{demeaned}.{labels} {penalty}Labels were permuted {settings.permutations} times. Baselines share "
        f"the kind and the splits: random activations, prompt length, origin means, both, the words (TF-IDF){extra}, and the "
        "stream before block 0. Intervals are by bootstrap over tasks."
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["probe_sweep", *sys.argv[1:]]))
