"""probe_sweep: what the activations know of every target, layer by layer, against baselines on the same splits; to W&B."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import choice
from experiments import figures as plots
from experiments.findings import Finding, probe_finding
from experiments.loop import cache_activations
from experiments.measuring import ElicitSettings, Preferences, measure_preferences
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.wandb_sink import WandbSink, sweep_file
from interp import ProbeSweep, fit_probe, probe_sweep
from interp.layers import LayerSpec
from interp.probe import RESIDUAL, Splitter, task_rows
from interp.ridge import DEFAULT_ALPHAS, Ridge
from interp.splits import Split
from store import ActivationStore, layer_name
from store.provenance import digest

_METRICS = ("r2", "pearson", "spearman", "pairwise_accuracy", "gain", "p_value", "ceiling", "shuffled_r2_95", "alpha", "n")


class ProbeSweepSettings(Settings):
    """Probes from every layer and position to every target."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 6, "layers": (0.25, 0.5), "permutations": 39}

    out: Path = Field(default=Path("runs/probe_sweep"), description="Run directory. The same one continues, or repeats.")
    elicit: ElicitSettings = Field(default=ElicitSettings(), description="What is asked about the tasks.")
    layers: tuple[LayerSpec, ...] = Field(
        default=("embed", 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9),
        description="Indices, fractions, ranges such as 5:20:5, embed, all.",
    )
    positions: tuple[str, ...] = Field(default=("prompt_last", "task_mean"), description="Positions with one row a task.")
    targets: tuple[str, ...] = Field(
        default=("utility", "self_report"), min_length=1, description="utility, self_report, or the name of a scale."
    )
    split: Literal["k_fold", "leave_one_origin_out"] = Field(
        default="k_fold", description="k_fold: five random folds. leave_one_origin_out: each origin by probes of the others."
    )
    demean: bool = Field(default=False, description="Take the mean of each origin off labels and activations.")
    permutations: int = Field(default=100, ge=19, description="Shuffles of the labels, for the probes' null.")
    wandb: Literal["auto", "offline", "online", "disabled"] = Field(
        default="auto", description="auto: online if you are logged in to W&B, else offline beside the results."
    )
    emit_wandb_sweep: Path | None = Field(
        default=None, description="Only write a W&B sweep file here, over every layer and position; then: wandb sweep FILE."
    )


SETTINGS = ProbeSweepSettings


def run(settings: ProbeSweepSettings) -> Result:
    """Measure, cache, probe; results are on disk before W&B hears of them."""
    started = time.monotonic()
    if settings.emit_wandb_sweep is not None:
        return _emit(settings, settings.emit_wandb_sweep)
    setup = Setup.of(settings, settings.load_tasks())
    setup.model.layers(settings.layers)
    preferences = measure_preferences(setup.model, setup.tasks, settings.elicit, setup.run)
    labels = _chosen(preferences.labels(), settings.targets)
    store = cache_activations(setup.model, setup.tasks, settings.layers, settings.positions, setup.run)
    sweep = probe_sweep(
        store,
        labels,
        split=_splitter(settings, setup.origins),
        origins=setup.origins,
        texts={task.id: task.text for task in setup.tasks},
        demean=setup.origins if settings.demean else None,
        permutations=settings.permutations,
        seed=settings.seed,
    )
    setup.run.save_table("probes", sweep.table)
    setup.run.save_table("probe_predictions", sweep.predictions)
    sink = WandbSink(
        settings.out,
        group=f"probe_sweep-{digest(setup.model.fingerprint, settings.model_dump(mode='json'))[:8]}",
        mode=settings.wandb,
    )
    _log(sink, setup, store, labels, sweep)
    result = publish(
        setup.run,
        Source.of(setup, _example(preferences, setup, settings)),
        experiment="probe_sweep",
        findings=[probe_finding(sweep, target) for target in settings.targets],
        figures=_figures(sweep, settings.targets),
        extras=[Finding("Where", "Held-out R² of every probe; white is no better than the mean.", "heat_map")],
        tables=_tables(sweep, setup),
        methods=_methods(setup, settings, preferences),
        summary={
            "tasks": len(setup.tasks),
            "split": settings.split,
            "demeaned": settings.demean,
            "probes": {target: sweep.best(target).to_dict() for target in settings.targets},
        },
        seconds=time.monotonic() - started,
    )
    return Result(result.findings, result.summary, result.path, "\n".join(filter(None, [result.screen, sink.note()])))


def _chosen(labels: pd.DataFrame, targets: Sequence[str]) -> pd.DataFrame:
    if missing := sorted(set(targets) - set(labels["target"])):
        raise ValueError(f"There are no labels of {missing}; these settings measure {sorted(labels['target'].unique())}.")
    return labels[labels["target"].isin(targets)]


def _splitter(settings: ProbeSweepSettings, origins: Mapping[str, str]) -> Splitter:
    if settings.split == "leave_one_origin_out":
        return lambda task_ids: Split.leave_one_out(task_ids, origins)
    return lambda task_ids: Split.k_fold(task_ids, seed=settings.seed)


def _log(sink: WandbSink, setup: Setup, store: ActivationStore, labels: pd.DataFrame, sweep: ProbeSweep) -> None:
    """Write every probe to the run directory, and tell W&B of it: one run per layer, position and target."""
    settings: Any = setup.settings
    shared = settings.model_dump(mode="json", exclude={"out", "wandb", "layers", "positions", "targets", "emit_wandb_sweep"})
    probed = sweep.table[sweep.table["features"] == RESIDUAL]
    for _, row in probed.iterrows():
        layer, position, target = int(row["layer"]), str(row["position"]), str(row["target"])
        part = labels[labels["target"] == target]
        name = f"{target}-{layer_name(layer)}-{position}"
        probe = fit_probe(store, part, layer, position)
        setup.run.save_direction(f"probe-{name}", probe)
        values = part["value"].to_numpy(dtype=float)[:, None]
        ridge = Ridge.decompose(task_rows(store, layer, position, part["task_id"].tolist()))
        error = ridge.leave_one_out(values, DEFAULT_ALPHAS)[:, 0]
        predicted = sweep.predictions.query("layer == @layer and position == @position and target == @target")
        scores = {
            key: float(row[key])
            for metric in _METRICS
            for key in (metric, f"{metric}_low", f"{metric}_high")
            if key in row and np.isfinite(row[key])
        }
        sink.log(
            shared
            | {"layer": layer, "position": position, "target": target, "fingerprint": setup.model.fingerprint}
            | {"strongest_baseline": row["strongest_baseline"]},
            scores,
            name=name,
            curves={"alpha": pd.DataFrame({"alpha": DEFAULT_ALPHAS, "leave_one_out_r2": 1 - error / values.var()})},
            tables={"predictions": predicted[["task_id", "fold", "value", "predicted"]]},
            artefacts=[setup.run.path / "directions" / f"probe-{name}.safetensors"],
        )


def _emit(settings: ProbeSweepSettings, path: Path) -> Result:
    """Write a sweep over layers and positions; every configuration goes to a run directory of its own."""
    fixed = [f"--per-origin={settings.per_origin}", f"--seed={settings.seed}", f"--model={settings.model}"]
    fixed += [f"--split={settings.split}", f"--permutations={settings.permutations}", f"--out={settings.out}"]
    parameters = {"layers": list(settings.layers), "positions": list(settings.positions)}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(sweep_file(["penchant", "probe_sweep", *fixed], parameters, metric="r2", goal="maximize"), encoding="utf-8")
    return Result([], {}, path.parent, f"{path} is written. Start it with: wandb sweep {path}; then wandb agent, anywhere.")


def _example(preferences: Preferences, setup: Setup, settings: ProbeSweepSettings) -> Any:
    first, second = preferences.comparisons[["first", "second"]].iloc[0]
    return choice.questions(setup.tasks, [(first, second)], wording=settings.elicit.wording)[0]


def _figures(sweep: ProbeSweep, targets: Sequence[str]) -> dict[str, Figure]:
    return {"heat_map": plots.probe_map(sweep, targets)} | {
        f"probe_{target}": plots.probe_figure(sweep, target) for target in targets
    }


def _tables(sweep: ProbeSweep, setup: Setup) -> list[Table]:
    shown = ["target", "features", "layer_name", "position", "r2", "r2_low", "r2_high", "pearson", "spearman"]
    shown += ["pairwise_accuracy", "gain", "gain_low", "gain_high", "strongest_baseline", "p_value", "ceiling", "alpha"]
    texts = {task.id: task.text for task in setup.tasks}
    missed = []
    for target in sweep.max_null:
        best = sweep.best(target)
        where = sweep.predictions[["target", "layer", "position"]].apply(tuple, axis=1)
        part = sweep.predictions[where == (target, best["layer"], best["position"])]
        residual = (part["value"] - part["predicted"]).rename("residual")
        worst = part.assign(residual=residual, task=part["task_id"].map(texts)).sort_values("residual", key=abs).tail(4)
        missed.append(worst.iloc[::-1][["target", "task_id", "value", "predicted", "residual", "task"]])
    return [
        Table("Probes and baselines", "Held-out scores; gain: R² above the strongest baseline.", sweep.table[shown]),
        Table("What the best probe misses", "The tasks with the largest residuals.", pd.concat(missed)),
    ]


def _methods(setup: Setup, settings: ProbeSweepSettings, preferences: Preferences) -> str:
    how = (
        "each origin was predicted by probes of the others"
        if settings.split == "leave_one_origin_out"
        else "probes were scored by five-fold cross-validation over tasks"
    )
    demeaned = ", less the mean of each origin over the training part" if settings.demean else ""
    return (
        f"{len(setup.tasks)} tasks ({settings.per_origin} per origin, seed {settings.seed}) were compared in "
        f"{preferences.utilities.report.pairs} pairs, both orders, and rated on {len(settings.elicit.scales)} scales. Residual "
        f"streams were read after each block. Features were standardised on the training part; {how}{demeaned}. The ridge "
        f"penalty was chosen by leave-one-out inside each training part. Labels were permuted {settings.permutations} times. "
        "Baselines share the splits: random activations, prompt length, origin means, both, the words (TF-IDF), and the "
        "stream before block 0. Intervals are by bootstrap over tasks."
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["probe_sweep", *sys.argv[1:]]))
