"""position_bias: what the order of showing is worth, template by template, and what asking one order alone costs."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from pydantic import Field

from elicit import PositionBias, choice, order_averages, position_bias, regular_pairs
from elicit.pairs import uncentred_correlation
from elicit.reliability import dyadic_estimate
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, null_note, plain
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate

_LEAST_PAIRS = 3


class PositionBiasSettings(Settings):
    """Ask the same pairs with several templates, always in both orders."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 4, "out": Path("runs/position_bias_quick")}

    out: Path = Field(default=Path("runs/position_bias"), description="Run directory. The same one continues, or repeats.")
    templates: tuple[str, ...] = Field(
        default=tuple(
            f"{phrasing}{labels}"
            for phrasing in ("would_rather", "enjoy_more", "pick_one")
            for labels in ("", ",labels=12", ",place=before", ",place=tasks_first")
        ),
        min_length=2,
        description="Templates of mode choice; `penchant templates list choice` names the axes.",
    )
    degree: int = Field(default=6, ge=2, description="Number of other tasks that each task is compared with.")


SETTINGS = PositionBiasSettings


def run(settings: PositionBiasSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    for name in settings.templates:
        template("choice", name)  # a wrong name is an error before the model is loaded
    setup = Setup.of(settings, settings.load_tasks())
    pairs = regular_pairs([task.id for task in setup.tasks], settings.degree, settings.seed)
    asked = {name: choice.questions(setup.tasks, pairs, wording=name) for name in settings.templates}
    answers = setup.ask([question for questions in asked.values() for question in questions], "choices")
    comparisons = choice.comparisons([question for questions in asked.values() for question in questions], answers)
    setup.run.save_table("comparisons", comparisons)
    biases = _biases(comparisons, settings.seed)
    table = _table(comparisons, biases)
    setup.run.save_table("position_bias", table)
    if not biases:
        raise ValueError(
            "No template has three pairs with answers on format in both orders, so there is no bias to measure. "
            "`penchant preflight` shows which templates this model can answer."
        )
    one, two = _worth_of_orders(biases, settings.seed)
    example = next(iter(asked.values()))[0]
    return publish(
        setup.run,
        Source.of(setup, example),
        experiment="position_bias",
        findings=[_bias_finding(table, len(settings.templates)), _order_finding(one, two)],
        figures={"position_bias": bias_figure(table)},
        tables=[
            Table(
                "Templates",
                "Logits; intervals allow for pairs that share a task. flips: share of pairs decided by order.",
                table,
            )
        ],
        methods=(
            f"{len(pairs)} pairs of {len(setup.tasks)} tasks were asked with {len(settings.templates)} templates, each in both "
            "orders, and the probabilities of both labels read exactly. The position bias of a pair is half the sum of the "
            "log-odds of the task shown first over its two orders, the content half the difference. Intervals allow for "
            "pairs that share a task (dyadic cluster-robust)."
        ),
        summary={
            "templates": {name: bias.to_dict() for name, bias in biases.items()},
            "one_order": one,
            "two_orders": two,
        },
        seconds=time.monotonic() - started,
    )


def _biases(comparisons: pd.DataFrame, seed: int) -> dict[str, PositionBias]:
    """Of the templates that this model answers on format."""
    return {
        str(name): position_bias(part)
        for name, part in comparisons.groupby("template", sort=False)
        if len(order_averages(part)) >= _LEAST_PAIRS
    }


def _table(comparisons: pd.DataFrame, biases: Mapping[str, PositionBias]) -> pd.DataFrame:
    rows = []
    for name, part in comparisons.groupby("template", sort=False):
        row: dict[str, Any] = {"template": name, "on_format": float((part["outcome"] == "chose").mean())}
        if name in biases:
            bias = biases[str(name)]
            for column in ("mean", "spread", "content", "flips"):
                estimate: Estimate = getattr(bias, column)
                row |= {column: estimate.value, f"{column}_low": estimate.low, f"{column}_high": estimate.high}
            row["pairs"] = bias.mean.n
        rows.append(row)
    return pd.DataFrame(rows)


def _worth_of_orders(biases: Mapping[str, PositionBias], seed: int) -> tuple[Estimate, Estimate]:
    """Mean correlation over pairs of two templates' preferences: one template asked in one order, and in both.

    The other template is always asked in both. Intervals allow for pairs that share a task.
    """
    tables = [bias.pairs.set_index(["task_1", "task_2"]) for bias in biases.values()]
    shared = tables[0].index
    for table in tables[1:]:
        shared = shared.intersection(table.index)
    if len(tables) < 2 or len(shared) < 4:
        return Estimate.unknown(len(shared)), Estimate.unknown(len(shared))
    content = np.stack([table.loc[shared, "content"].to_numpy() for table in tables])
    position = np.stack([table.loc[shared, "position"].to_numpy() for table in tables])
    # Which task of a pair is shown first in the one order that is asked is a coin.
    coin = np.where(np.random.default_rng(seed).random(len(shared)) < 0.5, 1.0, -1.0)

    def mean_correlation(first: Float[np.ndarray, "templates pairs"], rows: np.ndarray) -> float:
        values = [
            uncentred_correlation(first[i, rows], content[j, rows])
            for i in range(len(tables))
            for j in range(len(tables))
            if i != j
        ]
        return float(np.mean(values))

    tasks = shared.to_frame(index=False)
    one, two = (
        dyadic_estimate(lambda rows, first=first: mean_correlation(first, rows), tasks["task_1"], tasks["task_2"], (-1, 1))
        for first in (content + coin * position, content)
    )
    return one, two


def _bias_finding(table: pd.DataFrame, n_templates: int) -> Finding:
    known = table.dropna(subset=["mean"])
    in_order = known.sort_values("mean")
    least, most = in_order.iloc[0], in_order.iloc[-1]
    swamped = int((known["spread"] > known["content"]).sum())
    apart = int((known["spread_low"] > known["content_high"]).sum())
    away = int(((known["mean_low"] > 0) | (known["mean_high"] < 0)).sum())
    least_pairs, most_pairs = int(known["pairs"].min()), int(known["pairs"].max())
    pairs = f"{least_pairs}" if least_pairs == most_pairs else f"{least_pairs} to {most_pairs}"
    rows = tuple(
        f"{row['template']:36s} {row['mean']:+.2f} [{row['mean_low']:+.2f}, {row['mean_high']:+.2f}]   {row['spread']:.2f}   "
        f"{row['content']:.2f}   {100 * row['flips']:.0f} %"
        for _, row in known.iterrows()
    )
    return Finding(
        "Position bias",
        f"Being shown first is worth from {least['mean']:+.2f} ({least['template']}) to {most['mean']:+.2f} logits "
        f"({most['template']}) over {len(known)} of {n_templates} templates that are answered on format, each from {pairs} "
        f"pairs; the interval leaves out zero for {away}. Its spread over pairs is larger than what the tasks are worth in "
        f"{swamped} of them, and in {apart} their intervals do not meet.",
        "position_bias",
        (f"{'template':36s} {'bias':21s} spread content order decides", *rows),
    )


def _order_finding(one: Estimate, two: Estimate) -> Finding:
    if np.isnan(one.value):
        return Finding(
            "One order", "Fewer than two templates are answered on format and not by order alone, so orders cannot be compared."
        )
    sentence = (
        f"A template asked in one order agrees with another asked in both at r = {plain(one)} over {one.n} pairs; asked in "
        f"both orders, at {plain(two)}."
    )
    note = null_note(two, "agreement between templates")
    if note and two.smallest_effect > 1:  # than a correlation can be
        note = f" The interval contains 0, and {two.n} pairs are too few to find even perfect agreement between templates."
    return Finding("One order", sentence + note)


def bias_figure(table: pd.DataFrame) -> Figure:
    """Mean bias of every template with its interval, inside its spread over pairs, beside the spread of the content."""
    known = table.dropna(subset=["mean"]).sort_values("mean").reset_index(drop=True)
    figure, axes = plots.new_axes(8.0, 0.36 * len(known) + 1.7)
    rows, mean, spread = np.arange(len(known)), known["mean"], known["spread"]
    axes.hlines(rows, mean - spread, mean + spread, color=plots.ORANGE, linewidth=6, alpha=0.3)
    axes.hlines(rows, known["mean_low"], known["mean_high"], color=plots.ORANGE, linewidth=1.6)
    axes.scatter(mean, rows, color=plots.ORANGE, s=22, zorder=3, label="bias with its interval; band: spread over pairs")
    axes.scatter(known["content"], rows, color=plots.BLUE, marker="|", s=90, label="content: spread of what tasks are worth")
    axes.axvline(0, color=plots.GREY, linewidth=0.8)
    axes.set(
        yticks=rows,
        yticklabels=known["template"].tolist(),
        xlabel="log-odds for the task shown first (logits)",
        title=f"Order and content (n={int(known['pairs'].min())} pairs or more)",
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["position_bias", *sys.argv[1:]]))
