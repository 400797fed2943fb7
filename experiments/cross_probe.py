"""cross_probe: what probes of one target, wording, persona, layer or position read in the others, and in which direction."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pandas as pd
from pydantic import Field, field_validator

from elicit import Context, LeastSquares, choice, rating, regular_pairs, task_question
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, null_note
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from interp import CrossProbe, Positions, Split, View, capture, cross_probe
from interp.layers import LayerSpec, resolve_layer
from interp.probe import Splitter
from store import ActivationStore, Estimate, layer_name
from store.estimates import POWER_FACTOR

UTILITY = "utility"
_PERSONAS: dict[str, str | None] = {
    "plain": "",
    "keen": "You love your work. Whatever you are asked to do next, you look forward to it.",
    "weary": "You are tired of your work. Whatever you are asked to do next is one task too many.",
}
_SUBJECTS = {
    "targets": "Probes of {}",
    "wordings": "Probes of choices worded {}",
    "personas": "Probes of choices under {}",
    "layers": "Probes at {}",
    "positions": "Probes at {}",
}
"""Axes, and what a probe at one of their levels is called."""

_TOLD = 3
"""So many levels are told of one by one; of more, those read least and best."""


class CrossProbeSettings(Settings):
    """Vary one axis at a time, the others at their first level, and read every level with probes of every other."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 6,
        "degree": 4,
        "scales": ("yes_somewhat_no",),
        "layers": (0.5, 0.75),
        "personas": {name: _PERSONAS[name] for name in ("plain", "weary")},
        "permutations": 39,
        "out": Path("runs/cross_probe_quick"),
    }

    out: Path = Field(default=Path("runs/cross_probe"), description="Run directory. The same one continues, or repeats.")
    targets: tuple[str, ...] = Field(
        default=(UTILITY, "self_report"), min_length=1, description="utility, self_report, or the name of a scale."
    )
    wordings: tuple[str, ...] = Field(
        default=("would_rather", "enjoy_more"), min_length=1, description="Templates of the choices that utilities come from."
    )
    personas: dict[str, str | None] = Field(
        default=_PERSONAS,
        min_length=1,
        description="System prompts by name, the plain one first; tasks are read and choices asked under each.",
    )
    layers: tuple[LayerSpec, ...] = Field(
        default=(0.5, 0.25, 0.75),
        min_length=1,
        description="Indices, fractions, ranges, embed, all; the first names one layer.",
    )
    positions: tuple[str, ...] = Field(
        default=("task_mean", "prompt_last"), min_length=1, description="Positions with one row a task."
    )
    degree: int = Field(default=8, ge=2, description="Number of other tasks that each task is compared with.")
    scales: tuple[str, ...] = Field(
        default=("yes_somewhat_no", "likert_5", "stated_10"), min_length=1, description="Templates of the self-reports."
    )
    split: Literal["k_fold", "leave_one_origin_out"] = Field(
        default="k_fold", description="k_fold: five random folds. leave_one_origin_out: each origin by probes of the others."
    )
    permutations: int = Field(default=100, ge=39, description="Shuffles of the labels, for what chance gives.")
    halves: int = Field(default=40, ge=20, description="Random halves of the tasks, for how well directions are known.")

    @field_validator("targets", "wordings", "positions", "scales")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"expected each level once, but {repeated} return")
        return names


SETTINGS = CrossProbeSettings


@dataclass(frozen=True)
class _Measured:
    """Labels of every target, and utilities of every wording and persona; the first of each are the same."""

    targets: pd.DataFrame
    wordings: Mapping[str, pd.DataFrame]
    personas: Mapping[str, pd.DataFrame]
    conditions: pd.DataFrame


def run(settings: CrossProbeSettings) -> Result:
    """Run the experiment; what was asked or captured before in the same directory is not asked or captured again."""
    started = time.monotonic()
    for mode, names in (("choice", settings.wordings), ("rating", settings.scales)):
        for name in names:
            template(mode, name)  # a wrong name is an error before the model is loaded
    known = {UTILITY, "self_report", *settings.scales}
    if several := [str(each) for each in Positions.parse_all(settings.positions) if not each.has_one_row]:
        raise ValueError(f"The positions {several} have a row for every token; name a reduction: task_mean, task_last.")
    if missing := sorted(set(settings.targets) - known):
        raise ValueError(f"There are no labels of {missing}; these settings measure {sorted(known)}.")
    setup = Setup.of(settings, settings.load_tasks())
    layer, layers = resolve_layer(settings.layers[0], setup.model.n_layers), setup.model.layers(settings.layers)
    (plain_prompt, *prompts), position = settings.personas.values(), settings.positions[0]
    measured = _measure(setup, settings)
    store = _captured(setup, plain_prompt, layers, settings.positions)
    stores = [store, *(_captured(setup, prompt, (layer,), (position,)) for prompt in prompts)]
    labels = measured.targets
    first = labels[labels["target"] == settings.targets[0]]
    axes = {
        "targets": [View(name, store, labels[labels["target"] == name], layer, position) for name in settings.targets],
        "wordings": [View(name, store, each, layer, position) for name, each in measured.wordings.items()],
        "personas": [
            View(name, each_store, each, layer, position)
            for each_store, (name, each) in zip(stores, measured.personas.items(), strict=True)
        ],
        "layers": [View(layer_name(each), store, first, each, position) for each in layers],
        "positions": [View(each, store, first, layer, each) for each in settings.positions],
    }
    references = {axis: views[0].name for axis, views in axes.items()} | {"layers": layer_name(layer)}
    crossed = {
        axis: cross_probe(
            views,
            split=_splitter(settings, setup.origins),
            permutations=settings.permutations,
            halves=settings.halves,
            seed=settings.seed,
        )
        for axis, views in axes.items()
        if len(views) > 1
    }
    if not crossed:
        raise ValueError("Every axis has one level, so there is nothing to cross; give two targets, wordings or layers.")
    tables = {
        name: pd.concat([getattr(each, name).assign(axis=axis) for axis, each in crossed.items()], ignore_index=True)
        for name in ("transfer", "cosine")
    }
    for name, table in (tables | {"labels": labels, "conditions": measured.conditions}).items():
        setup.run.save_table(name, table)
    return publish(
        setup.run,
        Source.of(setup, choice.questions(setup.tasks, _pairs(setup)[:1], wording=settings.wordings[0])[0]),
        experiment="cross_probe",
        findings=[axis_finding(axis, each, references[axis]) for axis, each in crossed.items()],
        figures={f"cross_{axis}": plots.cross_probe_figure(each, axis) for axis, each in crossed.items()},
        tables=_tables(tables, measured),
        methods=_methods(setup, settings, layer),
        summary={
            "tasks": {axis: {"n": each.n, "left_out": each.left_out} for axis, each in crossed.items()},
            "references": references,
        }
        | {name: table.to_dict("records") for name, table in tables.items()},
        seconds=time.monotonic() - started,
    )


def _pairs(setup: Setup) -> list[tuple[str, str]]:
    settings: Any = setup.settings
    return regular_pairs([task.id for task in setup.tasks], settings.degree, settings.seed)


def _measure(setup: Setup, settings: CrossProbeSettings) -> _Measured:
    """Ask for choices in both orders with every wording and under every persona, and for self-reports."""
    (plain, plain_prompt), *others = settings.personas.items()
    pairs = _pairs(setup)
    asked = {
        ("wording", wording): choice.questions(setup.tasks, pairs, wording=wording, context=Context(system=plain_prompt))
        for wording in settings.wordings
    } | {
        ("persona", name): choice.questions(setup.tasks, pairs, wording=settings.wordings[0], context=Context(system=prompt))
        for name, prompt in others
    }
    found = setup.ask_each({" ".join(key): questions for key, questions in asked.items()}, "choices")
    labels, rows = {}, []
    for axis, name in asked:
        comparisons = choice.comparisons(*found[f"{axis} {name}"])
        labels[axis, name] = LeastSquares(errors="none").fit(comparisons).labels()
        on_format = float((comparisons["outcome"] == "chose").mean())
        rows.append({"condition": f"{axis} {name}", "on_format": on_format, "tasks": len(labels[axis, name])})
    wordings = {name: each for (axis, name), each in labels.items() if axis == "wording"}
    utilities = wordings[settings.wordings[0]]
    rated = [
        question
        for scale in settings.scales
        for question in rating.questions(setup.tasks, scale=scale, context=Context(system=plain_prompt))
    ]
    ratings = rating.ratings(rated, setup.ask(rated, "self-reports"))
    for name, part in ratings.groupby("scale", sort=False):
        on_format = float((part["outcome"] == "chose").mean())
        rows.append(
            {"condition": f"scale {name}", "on_format": on_format, "tasks": part.dropna(subset=["mean"])["task_id"].nunique()}
        )
    return _Measured(
        pd.concat([utilities, rating.labels(ratings)], ignore_index=True),
        wordings,
        {plain: utilities} | {name: each for (axis, name), each in labels.items() if axis == "persona"},
        pd.DataFrame(rows),
    )


def _captured(setup: Setup, system: str | None, layers: Sequence[int], positions: Sequence[str]) -> ActivationStore:
    """Residual streams of the tasks under a system prompt, in the run's store for exactly that."""
    task_ids = [task.id for task in setup.tasks]
    path = setup.run.activations(
        model=setup.model.fingerprint, tasks=task_ids, layers=layers, positions=positions, system=system
    )
    prompts = [task_question(task, system=system) for task in setup.tasks]
    return capture(setup.model, prompts, task_ids, path, layers=layers, positions=positions)


def _splitter(settings: CrossProbeSettings, origins: Mapping[str, str]) -> Splitter | None:
    if settings.split == "leave_one_origin_out":
        return lambda task_ids: Split.leave_one_out(task_ids, origins)
    return None


def axis_finding(axis: str, crossed: CrossProbe, reference: str) -> Finding:
    """What the probe of the reference reads at the other levels of an axis, what theirs read of it, and how they point."""
    transfer = _by_pair(crossed.transfer, "trained_on", "tested_on")
    own, others = transfer[reference, reference], [name for name in crossed.names if name != reference]
    subject = _SUBJECTS[axis].format(reference)
    sentence = f"{subject} reach r = {_scored(own)} on {own['n']:.0f} tasks that they were not trained on."
    if not _is_read(own):
        sentence += " It is not shown that there is anything for them to carry over." + _null(own, "probe")
    told = sorted(others, key=lambda other: transfer[reference, other]["pearson"])
    if len(others) > _TOLD:
        n_read = sum(_is_read(transfer[reference, other]) for other in others)
        sentence += f" Of {len(others)} others they read {n_read}; of all, {told[0]} least and {told[-1]} best."
        told = [told[0], told[-1]]
    for other in others if len(others) <= _TOLD else told:
        sentence += f" {_transfer_words(transfer, reference, other)} {_direction_words(crossed, reference, other)}"
    nulls = [row for other in others if not _is_read(row := transfer[reference, other])]
    if nulls and _is_read(own):
        sentence += _null(max(nulls, key=lambda row: _estimate(row).se), "transfer")
    return Finding(axis.capitalize(), sentence, f"cross_{axis}")


def _transfer_words(transfer: Mapping[tuple[str, str], pd.Series], reference: str, other: str) -> str:
    there, own, back = (transfer[key] for key in ((reference, other), (other, other), (other, reference)))
    verb = "read" if _is_read(there) else "are not shown to read"
    backwards = " backwards" if _is_read(there) and there["pearson"] < 0 else ""
    return (
        f"They {verb} {other}{backwards}: r = {_scored(there)}, p = {there['p_value']:.2f} (its own probes "
        f"{_scored(own)}; the other way round {_scored(back)})."
    )


def _direction_words(crossed: CrossProbe, reference: str, other: str) -> str:
    pairs = _by_pair(crossed.cosine, "a", "b")
    row = pairs[reference, other] if (reference, other) in pairs else pairs[other, reference]
    labels = "" if row["labels"] > 1 - 1e-9 else f"; the labels correlate at {row['labels']:+.2f}"
    apart, *each = (
        f"{found['split_half']:+.2f} [{found['split_half_low']:+.2f}, {found['split_half_high']:+.2f}]"
        for found in (row, pairs[reference, reference], pairs[other, other])
    )
    corrected = (
        f"without noise it would be {row['corrected']:+.2f}"
        if row["corrected"] == row["corrected"]
        else "whether the directions differ is lost in noise"
    )
    return (
        f"The cosine is {row['cosine']:+.2f} (by chance up to {row['chance']:.2f}, p = {row['p_value']:.2f}{labels}); "
        f"{corrected} (half the tasks against the other half {apart}; the same of {reference} {each[0]}, {other} {each[1]})."
    )


def _by_pair(table: pd.DataFrame, one: str, other: str) -> dict[tuple[str, str], pd.Series]:
    return {(str(row[one]), str(row[other])): row for _, row in table.iterrows()}


def _is_read(row: pd.Series) -> bool:
    """Whether shuffled labels do not do as well, and the interval leaves out zero."""
    return bool(row["p_value"] <= 0.05 and _estimate(row).differs_from(0))


def _estimate(row: pd.Series) -> Estimate:
    value, low, high = (float(row[f"pearson{end}"]) for end in ("", "_low", "_high"))
    return Estimate(value, low, high, (high - low) / (2 * 1.96), int(row["n"]))


def _null(row: pd.Series, what: str) -> str:
    """What could have been seen, where an interval contains zero or shuffled labels do as well."""
    estimate = _estimate(row)
    if estimate.differs_from(0):
        # To pass 97.5 % of the shuffles, and to do so four times in five.
        needed = 1.96 / 1.645 * row["shuffled_pearson_95"] + (POWER_FACTOR - 1.96) * estimate.se
        return (
            f" Probes of shuffled labels do as well too often (p = {row['p_value']:.2f}), so no {what} is claimed; with "
            f"n={estimate.n} an r of about {needed:.2f} would have stood out four times in five."
        )
    return null_note(estimate, what)


def _scored(row: pd.Series) -> str:
    return str(_estimate(row))


def _tables(tables: Mapping[str, pd.DataFrame], measured: _Measured) -> list[Table]:
    scores = ["axis", "trained_on", "tested_on", "pearson", "pearson_low", "pearson_high", "shuffled_pearson_95", "p_value"]
    scores += ["spearman", "r2", "r2_low", "r2_high", "pairwise_accuracy", "alpha", "n"]
    angles = ["axis", "a", "b", "labels", "cosine", "chance", "p_value", "split_half", "split_half_low", "split_half_high"]
    return [
        Table("Transfer", "Held-out scores of the probes of one view, read in another.", tables["transfer"][scores]),
        Table(
            "Cosines",
            "labels: correlation of the labels; chance: 95th percentile of the size for shuffled labels; split_half: probes of "
            "different halves of the tasks; corrected: the same for probes without noise, missing where a view's own halves "
            "do not agree.",
            tables["cosine"][[*angles, "corrected"]],
        ),
        Table("Conditions", "Share of answers on format, and tasks with a label.", measured.conditions),
    ]


def _methods(setup: Setup, settings: CrossProbeSettings, layer: int) -> str:
    (plain, _), position = next(iter(settings.personas.items())), settings.positions[0]
    how = (
        "each origin was predicted by probes of the others"
        if settings.split == "leave_one_origin_out"
        else "probes were scored by five-fold cross-validation over tasks"
    )
    return (
        f"{len(setup.tasks)} tasks ({settings.per_origin} per origin, seed {settings.seed}) were compared in "
        f"{len(_pairs(setup))} pairs, both orders, with each of {len(settings.wordings)} wordings and under each of "
        f"{len(settings.personas)} system prompts, and rated on {len(settings.scales)} scales. Utilities minimise squared "
        f"error on order-averaged log-odds. Each axis was varied with the others at {settings.targets[0]}, "
        f"{settings.wordings[0]}, {plain}, {layer_name(layer)} and {position} (wordings and personas: of utility). Features "
        f"were standardised on the training part; {how}, the same folds for every view, the ridge penalty chosen by "
        "leave-one-out inside each training part. A probe of one view reads the held-out tasks in the activations of the "
        f"other, against the other's labels. Labels were shuffled {settings.permutations} times; intervals are by bootstrap "
        f"over tasks. Cosines are of weights in raw activation space; {settings.halves} random halves of the tasks say how "
        "well a direction is known, and cosines are corrected for that as correlations are for attenuation (Spearman 1904)."
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["cross_probe", *sys.argv[1:]]))
