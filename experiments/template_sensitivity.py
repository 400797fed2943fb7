"""template_sensitivity: how far preferences depend on how they are asked, over a balanced sample of templates."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import choice, regular_pairs, sample_templates
from elicit.consistency import LEAST_COVERAGE, contents, correlations, mean_agreement, needed, of_mean, over_pairs, reliability
from elicit.templates import templates
from experiments import figures as plots
from experiments.findings import Finding, null_note, plain
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate
from store.estimates import POWER_FACTOR

_TARGET = 0.8
_TRIAL_PAIRS = 6
_LEAST_ON_FORMAT = LEAST_COVERAGE


class TemplateSensitivitySettings(Settings):
    """Ask the same pairs with templates that vary on many axes at once, each in both orders."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "n_templates": 9, "out": Path("runs/template_sensitivity_quick")}

    out: Path = Field(
        default=Path("runs/template_sensitivity"), description="Run directory. The same one continues, or repeats at no cost."
    )
    n_templates: int = Field(default=18, ge=4, description="Templates, balanced over the levels of every axis.")
    axes: tuple[str, ...] = Field(
        default=("phrasing", "language", "labels", "place", "tags", "punctuation", "typos", "situation"),
        min_length=1,
        description="Axes of mode choice that vary; `penchant templates list choice` names them all.",
    )
    degree: int = Field(default=6, ge=2, description="Number of other tasks that each task is compared with.")


SETTINGS = TemplateSensitivitySettings


def run(settings: TemplateSensitivitySettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    sample_templates("choice", settings.n_templates, settings.axes)  # a wrong axis is an error before the model is loaded
    setup = Setup.of(settings, settings.load_tasks())
    pairs = regular_pairs([task.id for task in setup.tasks], settings.degree, settings.seed)
    tried = _try_levels(setup, pairs[:_TRIAL_PAIRS], settings.axes)
    out = {str(axis): set(part["level"]) for axis, part in tried[~tried["kept"]].groupby("axis")}
    sampled = sample_templates("choice", settings.n_templates, settings.axes, without=out, seed=settings.seed)
    names = list(dict.fromkeys(sampled))
    found = setup.ask_each({name: choice.questions(setup.tasks, pairs, wording=name) for name in names}, "choices")
    comparisons = {name: choice.comparisons(*each) for name, each in found.items()}
    preferences = contents(comparisons)
    if preferences.shape[1] < 3 or len(preferences) < 4:
        raise ValueError(
            f"{preferences.shape[1]} of {len(names)} templates are answered on format and not by order alone, over "
            f"{len(preferences)} pairs; expected three and four. `penchant preflight --templates choice:...` shows which "
            "templates this model can answer."
        )
    table = _table(comparisons, preferences)
    axes = _axes_table(preferences, settings.axes)
    setup.run.save_table("comparisons", pd.concat(comparisons.values(), ignore_index=True))
    setup.run.save_table("templates", table)
    setup.run.save_table("axes", axes)
    setup.run.save_table("levels", tried)
    agreement, single = mean_agreement(preferences), reliability(preferences)
    return publish(
        setup.run,
        Source.of(setup, found[names[0]][0][0]),
        experiment="template_sensitivity",
        findings=[
            _agreement_finding(agreement, single, preferences.shape[1], len(names)),
            _format_finding(table, tried),
            _axes_finding(axes),
        ],
        figures={"template_agreement": agreement_figure(preferences), "template_axes": axes_figure(axes)},
        tables=[
            Table("Levels", "Share of answers on format with the level alone; below four fifths it was left out.", tried),
            Table("Templates", "agreement: correlation over pairs with the mean of the other templates.", table),
            Table(
                "Axes",
                "Mean correlation of two templates with the same level of an axis, and with different ones; cost: the former "
                "less the latter.",
                axes,
            ),
        ],
        methods=(
            f"{len(pairs)} pairs of {len(setup.tasks)} tasks were asked with {len(names)} templates, a balanced sample "
            f"over the axes {', '.join(settings.axes)}, each in both orders, and option probabilities read exactly. "
            "Correlations are over pairs, about zero; reliability is the one-way intraclass correlation; intervals allow for "
            "pairs that share a task. Templates that are off format on more than a fifth of the pairs are left out of the "
            "comparison."
        ),
        summary={
            "agreement": agreement,
            "reliability": single,
            "templates": table.to_dict("records"),
            "axes": axes.to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def _try_levels(setup: Setup, pairs: Sequence[tuple[str, str]], axes: Sequence[str]) -> pd.DataFrame:
    """Ask a few pairs with every level alone: a level that the model cannot answer would leave nothing to compare."""
    wordings = templates("choice")
    levels = [(axis, level) for axis in axes for level in wordings.axes[axis]]
    names = {each: wordings.name(wordings.defaults | {each[0]: each[1]}) for each in levels}
    found = setup.ask_each({name: choice.questions(setup.tasks, pairs, wording=name) for name in names.values()}, "levels")
    rows = []
    for (axis, level), name in names.items():
        part = choice.comparisons(*found[name])
        on_format = float((part["outcome"] == "chose").mean())
        rows.append((axis, level, on_format, float(part["mass"].mean()), on_format >= _LEAST_ON_FORMAT))
    return pd.DataFrame(rows, columns=["axis", "level", "on_format", "mass", "kept"])


def _table(comparisons: Mapping[str, pd.DataFrame], preferences: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for name, part in comparisons.items():
        row = {"template": name, "on_format": float((part["outcome"] == "chose").mean()), "agreement": math.nan}
        if name in preferences:
            both = pd.DataFrame({"own": preferences[name], "others": preferences.drop(columns=name).mean(axis=1)})
            agreement = mean_agreement(both)
            row |= {"agreement": agreement.value, "low": agreement.low, "high": agreement.high}
            row["spread"] = float(np.sqrt((preferences[name] ** 2).mean()))
        rows.append(row | templates("choice").levels(name))
    return pd.DataFrame(rows)


def _axes_table(preferences: pd.DataFrame, axes: Sequence[str]) -> pd.DataFrame:
    """What an axis costs: by how much less two templates agree that differ on it."""
    levels = pd.DataFrame([templates("choice").levels(str(name)) for name in preferences.columns])
    apart = ~np.eye(len(levels), dtype=bool)
    rows = []
    for axis in axes:
        same = levels[axis].to_numpy()[:, None] == levels[axis].to_numpy()[None, :]
        if (same & apart).any() and not same.all():

            def cost(values: np.ndarray, same: np.ndarray = same) -> float:
                r = correlations(values)
                return float(r[same & apart].mean() - r[~same].mean())

            estimate = over_pairs(preferences, cost)
            alike, different = (mean_agreement(preferences, which).value for which in (same & apart, ~same))
            row = {"axis": axis, "same_level": alike, "different_level": different, "cost": estimate.value}
            rows.append(row | {"low": estimate.low, "high": estimate.high, "se": estimate.se, "n": estimate.n})
    return pd.DataFrame(rows, columns=["axis", "same_level", "different_level", "cost", "low", "high", "se", "n"])


def _agreement_finding(agreement: Estimate, single: Estimate, n: int, n_asked: int) -> Finding:
    sentence = (
        f"Two templates agree about a pair at a mean r of {plain(agreement)} ({n} of {n_asked} templates are on format, "
        f"{agreement.n} pairs in both orders). One template has a reliability of {plain(single)}, the mean of {n} of "
        f"{of_mean(single.value, n):.2f}"
    )
    if single.differs_from(0) and single.value > 0:
        most = "no number of templates" if single.low <= 0 else f"{math.ceil(needed(single.low, _TARGET))}"
        least = math.ceil(needed(single.high, _TARGET))
        sentence += f"; for {_TARGET:g}, {math.ceil(needed(single.value, _TARGET))} [{least}, {most}] templates are needed."
    else:
        sentence += "."
    return Finding("Agreement", sentence + null_note(agreement, "agreement between templates"), "template_agreement")


def _format_finding(table: pd.DataFrame, tried: pd.DataFrame) -> Finding:
    worst = table.sort_values("on_format").iloc[0]
    rows = tuple(
        f"{100 * row['on_format']:4.0f} %   "
        + (
            f"{row['agreement']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
            if row["agreement"] == row["agreement"]
            else " " * 20
        )
        + f"   {row['template']}"
        for _, row in table.sort_values("agreement", ascending=False).iterrows()
    )
    out = [f"{row['axis']} {row['level']}" for _, row in tried[~tried["kept"]].iterrows()]
    left_out = f" Left out, since they are answered off format alone: {', '.join(out)}." if out else ""
    return Finding(
        "Templates",
        f"{int((table['on_format'] >= 0.9).sum())} of {len(table)} templates are answered on format nine times in ten; the "
        f"worst, {worst['template']}, {100 * worst['on_format']:.0f} % of the time.{left_out}",
        "",
        ("on format  r with the others     template", *rows),
    )


def _axes_finding(axes: pd.DataFrame) -> Finding:
    if axes.empty:
        return Finding("Axes", "No axis has templates of the same and of different levels, so none can be told apart.")
    costly = axes[axes["low"] > 0].sort_values("cost", ascending=False)
    said = ", ".join(
        f"{row['axis']} {row['cost']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" for _, row in costly.iterrows()
    )
    rest = axes[axes["low"] <= 0]
    smallest = POWER_FACTOR * rest["se"].max() if len(rest) else math.nan
    quiet = (
        f" For the other {len(rest)} no cost is claimed; one of about {smallest:.2f} would have been found four times in five."
        if len(rest)
        else ""
    )
    return Finding(
        "Axes",
        f"Templates that differ on an axis agree less than those that share its level, on {len(costly)} of {len(axes)} axes"
        + (f": {said}" if said else "")
        + f" (by chance {0.025 * len(axes):.1f} would; over pairs, for these very templates)."
        + quiet,
        "template_axes",
    )


def agreement_figure(preferences: pd.DataFrame) -> Figure:
    """Correlation of every template with every other, those that agree best side by side."""
    r = correlations(preferences.to_numpy(dtype=float))
    order = np.argsort(-np.linalg.eigh(r)[1][:, -1] * np.sign(np.linalg.eigh(r)[1][:, -1].sum()))
    names = [f"{preferences.columns[place]}  {number}" for number, place in enumerate(order, start=1)]
    numbers = [str(number) for number in range(1, len(names) + 1)]
    title = f"Agreement of templates over {len(preferences)} pairs"
    return plots.heatmap(r[np.ix_(order, order)], names, numbers, title, "correlation over pairs")


def axes_figure(axes: pd.DataFrame) -> Figure:
    """What differing on an axis costs in agreement."""
    known = axes.sort_values("cost")
    return plots.forest(
        known["axis"].tolist(),
        known[["cost", "low", "high"]].to_numpy(dtype=float),
        "correlation lost between templates that differ on the axis",
        f"What an axis costs (n={int(axes['n'].iloc[0]) if len(axes) else 0} pairs)",
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["template_sensitivity", *sys.argv[1:]]))
