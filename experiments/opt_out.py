"""opt_out: which tasks the model would sooner not do, given the choice; beside requests that nobody should decline."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import Task, calibration_tasks, choice, null_tasks, opt_out, position_bias, rate
from elicit.consistency import correlations
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, in_percent, null_note, plain, position_finding
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate

CONTROL = "calibration"
_RESAMPLES = 1000


class OptOutSettings(Settings):
    """Offer every task beside several ways of being let off, in both orders and several wordings."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 4, "out": Path("runs/opt_out_quick")}

    out: Path = Field(default=Path("runs/opt_out"), description="Run directory. The same one continues, or repeats at no cost.")
    wordings: tuple[str, ...] = Field(
        default=("would_rather", "pick_one"), min_length=1, description="Templates of mode choice."
    )

    def load_tasks(self) -> list[Task]:
        """The sampled tasks, and the requests for calibration as controls."""
        return [*super().load_tasks(), *calibration_tasks()]


SETTINGS = OptOutSettings


def run(settings: OptOutSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    for wording in settings.wordings:
        template("choice", wording)  # a wrong name is an error before the model is loaded
    setup = Setup.of(settings, settings.load_tasks())
    nulls = null_tasks()
    found = setup.ask_each(
        {wording: opt_out.questions(setup.tasks, nulls, wording=wording) for wording in settings.wordings}, "opt-out"
    )
    comparisons = pd.concat([choice.comparisons(*each) for each in found.values()], ignore_index=True)
    labels = opt_out.labels(comparisons, nulls)
    tasks = labels.pivot(index="task_id", columns="target", values="value").reset_index()
    if tasks.empty:
        raise ValueError(
            "No task has answers on format in both orders beside a way of being let off. "
            f"`penchant preflight --templates choice:{settings.wordings[0]}` shows what this model answers."
        )
    tasks["origin"] = tasks["task_id"].map(setup.origins)
    tasks["text"] = tasks["task_id"].map({task.id: task.text for task in setup.tasks})
    origins = _origins_table(tasks, settings.seed)
    by_null = _nulls_table(comparisons, nulls)
    for name, table in (("comparisons", comparisons), ("labels", labels), ("origins", origins), ("nulls", by_null)):
        setup.run.save_table(name, table)
    least = tasks.nsmallest(5, "over_null")
    agreement = _agreement_of_nulls(comparisons, nulls, settings.seed)
    return publish(
        setup.run,
        Source.of(setup, found[settings.wordings[0]][0][0]),
        experiment="opt_out",
        findings=[
            _rate_finding(origins),
            _difference_finding(origins),
            _nulls_finding(by_null, agreement),
            _format_finding(comparisons),
        ],
        figures={"opt_out_tasks": tasks_figure(tasks), "opt_out_nulls": nulls_figure(by_null)},
        tables=[
            Table(
                "Origins",
                "any_null: share of tasks to which some way of being let off is preferred; most_null: to which most of them "
                "are; Wilson intervals over tasks. over_null: mean log-odds of the task against being let off; difference: "
                "from the controls, with a bootstrap over tasks.",
                origins,
            ),
            Table(
                "Least wanted",
                "Log-odds against being let off.",
                least[["over_null", "origin", "text"]],
            ),
            Table("Ways of being let off", "preferred: share of tasks to which it is preferred.", by_null),
        ],
        methods=(
            f"Each of {len(setup.tasks)} tasks was offered beside {len(nulls)} ways of being let off, in both orders and "
            f"{len(settings.wordings)} wordings ({', '.join(settings.wordings)}); option probabilities were read exactly and "
            "averaged over orders and wordings. Controls are requests that nobody should decline."
        ),
        summary={
            "origins": origins.to_dict("records"),
            "nulls": by_null.to_dict("records"),
            "agreement_of_nulls": agreement,
        },
        seconds=time.monotonic() - started,
    )


def _origins_table(tasks: pd.DataFrame, seed: int) -> pd.DataFrame:
    """One row per origin, the controls last, and one for all but them."""
    controls = tasks[tasks["origin"] == CONTROL]
    others = tasks[tasks["origin"] != CONTROL]
    parts = {"all but controls": others} | {str(name): part for name, part in others.groupby("origin")} | {CONTROL: controls}
    rows = []
    for name, part in parts.items():
        row: dict[str, Any] = {"origin": name, "tasks": len(part)}
        if len(part):
            for column, happened in (("any_null", part["any_null"] > 0), ("most_null", part["opts_out"] > 0.5)):
                share = rate(float(happened.sum()), len(part))
                row |= {column: share.value, f"{column}_low": share.low, f"{column}_high": share.high}
            row["over_null"] = float(part["over_null"].mean())
            if name != CONTROL and len(controls):
                row |= _difference(part["over_null"], controls["over_null"], seed).to_dict()
        rows.append(row)
    return pd.DataFrame(rows).rename(columns={"value": "difference", "n": "difference_n", "se": "difference_se"})


def _difference(values: pd.Series, controls: pd.Series, seed: int) -> Estimate:
    random = np.random.default_rng(seed)
    means = [
        part.to_numpy()[random.integers(len(part), size=(_RESAMPLES, len(part)))].mean(axis=1) for part in (values, controls)
    ]
    return Estimate.from_draws(float(values.mean() - controls.mean()), means[0] - means[1], len(values) + len(controls))


def _by_null(comparisons: pd.DataFrame, nulls: Sequence[Task]) -> pd.DataFrame:
    """Log-odds of every task (rows) against every way of being let off (columns)."""
    columns = {}
    for null in nulls:
        part = comparisons[(comparisons["first"] == null.id) | (comparisons["second"] == null.id)]
        labels = opt_out.labels(part, [null])
        columns[null.id] = labels[labels["target"] == "over_null"].set_index("task_id")["value"]
    return pd.DataFrame(columns)


def _nulls_table(comparisons: pd.DataFrame, nulls: Sequence[Task]) -> pd.DataFrame:
    wide = _by_null(comparisons, nulls)
    rows = []
    for null in nulls:
        values = wide[null.id].dropna()
        if len(values):
            share = rate(float((values < 0).sum()), len(values))
            row = {"null": null.id, "text": null.text, "over_null": float(values.mean()), "preferred": share.value}
            rows.append(row | {"low": share.low, "high": share.high, "n": share.n})
    return pd.DataFrame(rows)


def _agreement_of_nulls(comparisons: pd.DataFrame, nulls: Sequence[Task], seed: int) -> Estimate:
    """Mean correlation over tasks between two ways of being let off; interval by bootstrap over tasks."""
    values = _by_null(comparisons, nulls).dropna().to_numpy(dtype=float)
    apart = ~np.eye(values.shape[1], dtype=bool)

    def mean(table: np.ndarray) -> float:
        return float(correlations(table - table.mean(axis=0))[apart].mean())

    rows = np.random.default_rng(seed).integers(len(values), size=(_RESAMPLES, len(values)))
    return Estimate.from_draws(mean(values), [mean(values[row]) for row in rows], len(values))


def _rate_finding(origins: pd.DataFrame) -> Finding:
    whole, controls = origins.iloc[0], origins.iloc[-1]
    rows = tuple(
        f"{row['origin']:18s} {in_percent(row, 'any_null'):20s} {in_percent(row, 'most_null'):20s} {row['over_null']:+.2f}"
        for _, row in origins[origins["tasks"] > 0].iterrows()
    )
    return Finding(
        "Opting out",
        f"To {in_percent(whole, 'any_null')} of {whole['tasks']:.0f} tasks some way of being let off is preferred, to "
        f"{in_percent(whole, 'most_null')} most of them are; of {controls['tasks']:.0f} requests that nobody should decline, "
        f"to {in_percent(controls, 'any_null')} and {in_percent(controls, 'most_null')}. What the controls show is not "
        "reluctance.",
        "opt_out_tasks",
        (f"{'origin':18s} {'any way preferred':20s} {'most preferred':20s} log-odds of the task", *rows),
    )


def _difference_finding(origins: pd.DataFrame) -> Finding:
    part = origins[(origins["origin"] != CONTROL) & (origins["tasks"] > 0)]
    whole, each = part.iloc[0], part.iloc[1:]
    value, low, high, se = (float(whole[name]) for name in ("difference", "low", "high", "difference_se"))
    estimate = Estimate(value, low, high, se, int(whole["difference_n"]))
    away = each[(each["low"] > 0) | (each["high"] < 0)]
    named = ", ".join(
        f"{row['origin']} {row['difference']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" for _, row in away.iterrows()
    )
    return Finding(
        "Beyond controls",
        f"Against being let off, tasks are worth {plain(estimate)} logits more than the controls. Of {len(each)} origins "
        f"{len(away)} have an interval that leaves out zero ({0.05 * len(each):.1f} would by chance)"
        + (f": {named}." if named else ".")
        + null_note(estimate, "difference"),
        "opt_out_tasks",
    )


def _nulls_finding(by_null: pd.DataFrame, agreement: Estimate) -> Finding:
    ordered = by_null.sort_values("preferred")

    def shown(row: pd.Series) -> str:
        return f"{100 * row['preferred']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}] ({row['null']})"

    return Finding(
        "Ways out",
        f"{len(by_null)} ways of being let off are preferred to {shown(ordered.iloc[0])} up to {shown(ordered.iloc[-1])} of "
        f"the tasks: the extremes of several, not a tested difference. About which tasks to avoid, two ways correlate at "
        f"{plain(agreement)} over {agreement.n} tasks." + null_note(agreement, "agreement"),
        "opt_out_nulls",
    )


def _format_finding(comparisons: pd.DataFrame) -> Finding:
    share = float((comparisons["outcome"] == "chose").mean())
    bias = position_finding(position_bias(comparisons))
    return Finding("Answers", f"{100 * share:.0f} % of {len(comparisons)} answers are on format. {bias.sentence}")


def tasks_figure(tasks: pd.DataFrame) -> Figure:
    """Every task's log-odds against being let off, by origin."""
    means = tasks[tasks["origin"] != CONTROL].groupby("origin")["over_null"].mean().sort_values()
    order = [CONTROL, *means.index]
    figure, axes = plots.new_axes(7.0, 0.42 * len(order) + 1.6)
    for row, origin in enumerate(order):
        values = tasks.loc[tasks["origin"] == origin, "over_null"]
        colour = plots.GREY if origin == CONTROL else plots.BLUE
        axes.scatter(values, np.full(len(values), row), color=colour, s=18, alpha=0.7, linewidths=0)
        axes.vlines(values.mean(), row - 0.3, row + 0.3, color="black", linewidth=1.4)
    axes.axvline(0, color=plots.ORANGE, linewidth=0.9)
    axes.set(
        yticks=range(len(order)),
        yticklabels=[f"{name} (n={int((tasks['origin'] == name).sum())})" for name in order],
        xlabel="log-odds of doing it against being let off\n(logits; left of orange: sooner not)",
        title="Doing it or not (grey: controls; black: mean)",
    )
    return figure


def nulls_figure(by_null: pd.DataFrame) -> Figure:
    """How often each way of being let off is preferred."""
    table = by_null.sort_values("preferred")
    return plots.forest(
        table["text"].tolist(),
        table[["preferred", "low", "high"]].to_numpy(dtype=float),
        "share of tasks to which it is preferred",
        f"Ways of being let off (n={int(table['n'].min())} tasks)",
        null=0.5,
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["opt_out", *sys.argv[1:]]))
