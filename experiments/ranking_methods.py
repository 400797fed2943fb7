"""ranking_methods: which way of choosing comparisons ranks tasks with the fewest of them, on judges whose truth is known."""

import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field
from scipy import stats

from elicit import LeastSquares
from experiments import figures as plots
from experiments.findings import Finding
from experiments.frozen import FrozenTable
from experiments.parallel import spread_out
from experiments.publish import Result, Source, publish
from experiments.ranking import FAVOURITE, METHODS, Judge, Simulation, follow
from experiments.report import Table
from experiments.run_directory import RunDirectory
from experiments.settings import RunSettings
from store import Estimate

SIMULATIONS = (
    Simulation("low noise, constant bias", sd=3.0, bias=1.0, own_sd=1.0),
    Simulation("low noise, bias by pair", sd=3.0, bias=0.5, bias_sd=2.0, own_sd=1.0),
    Simulation("high noise, constant bias", sd=1.0, bias=1.0, own_sd=0.3),
    Simulation("high noise, bias by pair", sd=1.0, bias=0.5, bias_sd=2.0, own_sd=0.5),
)
_FROZEN = "frozen table"
_SAMPLED, _EXACT = "one choice, one order", "exact, both orders"
_TAUS = (0.8, 0.9)
_GRID = (2, 4, 6, 8, 10, 14, 20, 30)


class RankingMethodsSettings(RunSettings):
    """Let every method rank the same tasks by the same judges, and count comparisons: prompts, one order each."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_tasks": 30,
        "n_seeds": 6,
        "size_seeds": 3,
        "per_task": 10.0,
        "sizes": (50, 100),
        "out": Path("runs/ranking_methods_quick"),
    }

    out: Path = Field(default=Path("runs/ranking_methods"), description="Run directory.")
    table: str = Field(default="shipped", description="Frozen table that is one of the judges: shipped, or a file.")
    n_tasks: int = Field(default=60, ge=10, description="Tasks of the simulated judges.")
    n_seeds: int = Field(default=40, ge=3, description="Judges and runs drawn.")
    per_task: float = Field(default=20.0, gt=2, description="Budget: comparisons for each task.")
    sizes: tuple[int, ...] = Field(
        default=(50, 100, 200, 500, 1000), min_length=2, description="Numbers of tasks over which the need is followed."
    )
    size_budget: float = Field(default=40.0, gt=2, description="Comparisons for each task, at most, in that study.")
    size_seeds: int = Field(default=10, ge=3, description="Judges and runs drawn for every number of tasks.")
    n_jobs: int = Field(default=-1, description="Processes; -1 for all cores. Results do not depend on it.")


SETTINGS = RankingMethodsSettings


def run(settings: RankingMethodsSettings) -> Result:
    """Run the study; no model is asked anything."""
    started = time.monotonic()
    table = FrozenTable.read(settings.table)
    run_directory = RunDirectory(settings)
    paths = convergence_paths(table, settings)
    convergence = convergence_table(paths)
    against = favourite_table(paths)
    needed = needed_paths(settings)
    exponents = exponent_table(needed, settings)
    for name, frame in (
        ("convergence", convergence),
        ("favourite_against_best", against),
        ("needed", needed),
        ("exponents", exponents),
    ):
        run_directory.save_table(name, frame)
    return publish(
        run_directory,
        Source(f"{len(SIMULATIONS)} simulated judges, and the {table.source().subtitle}", table.source().model),
        experiment="ranking_methods",
        findings=[_favourite_finding(against), _size_finding(exponents, settings)],
        figures={"ranking_methods": convergence_figure(convergence), "ranking_sizes": sizes_figure(needed)},
        tables=[
            Table(
                "The favourite against the best other",
                "Mean tau over the budget; difference paired by seed, interval for all other methods at once.",
                against,
            ),
            Table("Comparisons needed", "Per task, for tau .8 and .9; exponent of the total as tasks grow.", exponents),
            Table("Convergence", "Kendall's tau with the truth by comparisons per task; mean over seeds.", convergence),
        ],
        methods=(
            "A comparison is one prompt. Choices are drawn from the judge's probability in one order, each task first as often "
            "as second; exact answers take both orders, two comparisons. Designs are fitted by Bradley-Terry with a position "
            "term, or by least squares where exact. Simulated judges: normal utilities with a standard deviation of 3 (low "
            "noise) or 1 logit (high noise); a position bias of 1 logit, or of .5 with a spread over pairs of 2; and "
            "pairs that differ by 0.3 to 1 logits from what their tasks are worth. The truth of the frozen table is the fit to "
            f"all of it. {settings.n_seeds} seeds, {settings.size_seeds} for every number of tasks; intervals are Student's "
            "over them, those against the best other method Bonferroni's, since the best is picked after the fact."
        ),
        summary={"favourite_against_best": against.to_dict("records"), "exponents": exponents.to_dict("records")},
        seconds=time.monotonic() - started,
    )


def frozen_judge(table: FrozenTable) -> Judge:
    """The frozen table as a judge: its truth is the fit to all of it."""
    ids = table.task_ids
    place = {task: number for number, task in enumerate(ids)}
    logits = np.zeros((len(ids), len(ids)))
    usable = table.comparisons.dropna(subset=["logit"])
    logits[usable["first"].map(place), usable["second"].map(place)] = usable["logit"]
    fitted = LeastSquares(errors="none").fit(table.comparisons, ids)
    if len(fitted.task_ids) < len(ids):
        raise ValueError(f"Tasks of the frozen table have no answers: {fitted.report.unanswered}; freeze it without them.")
    return Judge(_FROZEN, fitted.values, logits)


def convergence_paths(table: FrozenTable, settings: RankingMethodsSettings) -> pd.DataFrame:
    """Kendall's tau of every method, judge, kind of answer and seed, on a grid of comparisons per task."""
    grid = [per_task for per_task in _GRID if per_task <= settings.per_task]
    frozen = frozen_judge(table)
    work = [
        (kind, number, method, seed)
        for kind in (_SAMPLED, _EXACT)
        for number in range(len(SIMULATIONS) + 1)
        for method in METHODS
        for seed in range(settings.n_seeds)
    ]

    def path(kind: str, number: int, method: str, seed: int) -> list[dict[str, Any]]:
        random = np.random.default_rng([settings.seed, seed, number])
        judge = SIMULATIONS[number].judge(settings.n_tasks, random) if number < len(SIMULATIONS) else frozen
        followed = follow(METHODS[method](judge, kind == _EXACT, random), settings.per_task + 2)
        same = {"answers": kind, "judge": judge.name, "method": method, "seed": seed}
        return [same | {"per_task": per_task, "tau": followed.at(per_task)} for per_task in grid]

    return pd.DataFrame([row for rows in spread_out(path, work, settings.n_jobs, "methods") for row in rows])


def convergence_table(paths: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds with its interval."""
    rows = []
    for (answers, judge, method, per_task), part in paths.groupby(["answers", "judge", "method", "per_task"], sort=False):
        estimate = Estimate.of_mean(part["tau"].to_numpy())
        row = {"answers": answers, "judge": judge, "method": method, "per_task": per_task}
        rows.append(row | {"tau": estimate.value, "tau_low": estimate.low, "tau_high": estimate.high})
    return pd.DataFrame(rows)


def favourite_table(paths: pd.DataFrame) -> pd.DataFrame:
    """The favourite less the best other method, by mean tau over the grid, paired by seed.

    The best is picked after the fact, so the interval is Bonferroni's for all other methods at once.
    """
    rows = []
    for (answers, judge), part in paths.groupby(["answers", "judge"], sort=False):
        means = part.pivot_table(index="seed", columns="method", values="tau", aggfunc="mean")
        best = str(means.drop(columns=FAVOURITE).mean().idxmax())
        difference = (means[FAVOURITE] - means[best]).to_numpy()
        level = 1 - 0.025 / (means.shape[1] - 1)
        margin = float(stats.t.ppf(level, len(difference) - 1) * np.std(difference, ddof=1) / np.sqrt(len(difference)))
        value = float(difference.mean())
        row = {"answers": answers, "judge": judge, "tau": means[FAVOURITE].mean(), "best_other": best}
        row |= {"tau_best": means[best].mean()}
        rows.append(row | {"difference": value, "low": value - margin, "high": value + margin})
    return pd.DataFrame(rows)


def needed_paths(settings: RankingMethodsSettings) -> pd.DataFrame:
    """Comparisons per task that every method needs for tau .8 and .9, by number of tasks: low noise, constant bias, choices."""
    sizes, seeds = sorted(settings.sizes, reverse=True), range(settings.size_seeds)
    work = [(n, method, seed) for n in sizes for method in METHODS for seed in seeds]

    def need(n: int, method: str, seed: int) -> dict[str, Any]:
        random = np.random.default_rng([settings.seed, seed, n])
        judge = SIMULATIONS[0].judge(n, random)
        followed = follow(METHODS[method](judge, False, random), settings.size_budget, enough=_TAUS[-1])
        return {"n": n, "method": method, "seed": seed} | {f"tau_{tau:g}": followed.reaches(tau) for tau in _TAUS}

    return pd.DataFrame(spread_out(need, work, settings.n_jobs, "sizes"))


def exponent_table(needed: pd.DataFrame, settings: RankingMethodsSettings) -> pd.DataFrame:
    """Comparisons per task at the least and greatest size, and the exponent b of comparisons in all ~ n^b, with intervals."""
    rows = []
    for method, part in needed.groupby("method", sort=False):
        for tau in _TAUS:
            column = f"tau_{tau:g}"
            means = part.groupby("n")[column].mean()
            reached = part.dropna(subset=[column])
            row: dict[str, Any] = {"method": method, "tau": tau, "never": int(part[column].isna().sum())}
            row |= {"exponent": math.nan, "exponent_low": math.nan, "exponent_high": math.nan}
            row |= {f"n_{n}": float(means.loc[n]) for n in sorted(settings.sizes)}
            if reached["n"].nunique() >= 2 and len(reached) > 2:
                slope: Any = stats.linregress(np.log(reached["n"]), np.log(reached[column] * reached["n"]))
                margin = float(stats.t.ppf(0.975, len(reached) - 2)) * float(slope.stderr)
                value = float(slope.slope)
                row |= {"exponent": value, "exponent_low": value - margin, "exponent_high": value + margin}
            rows.append(row)
    return pd.DataFrame(rows)


def _favourite_finding(against: pd.DataFrame) -> Finding:
    worse, better = against[against["high"] < 0], against[against["low"] > 0]
    named = ", ".join(
        f"{row['judge']} ({row['answers']}; {row['best_other']} is ahead by {-row['difference']:.3f})"
        for _, row in worse.iterrows()
    )
    verdict = f"worse beyond the interval on {named}" if len(worse) else "no worse within the interval on any of them"
    rows = tuple(
        f"{row.answers:22s} {row.judge:26s} {row.tau:.3f}   {row.best_other:16s} {row.tau_best:.3f}   "
        f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        for row in against.itertuples()
    )
    return Finding(
        "The favourite",
        f"Choosing pairs by {FAVOURITE}, the rule made for ranks, is compared with the best of the other {len(METHODS) - 1} "
        f"methods on {len(against)} kinds of judge: better beyond the interval on {len(better)}, {verdict}.",
        "ranking_methods",
        (f"{'answers':22s} {'judge':26s} tau     {'best other':16s} tau     difference", *rows),
    )


def _size_finding(exponents: pd.DataFrame, settings: RankingMethodsSettings) -> Finding:
    high = exponents[exponents["tau"] == _TAUS[-1]]
    favourite = high[high["method"] == FAVOURITE].iloc[0]
    least, most = min(settings.sizes), max(settings.sizes)
    sizes = sorted(settings.sizes)
    rows = tuple(
        f"{row['method']:18s}" + "".join(f"{_count(row[f'n_{n}']):>9s}" for n in sizes) + f"   {_exponent(row)}"
        for _, row in high.iterrows()
    )
    heading = f"{'tasks':18s}" + "".join(f"{n:>9d}" for n in sizes) + "   exponent"
    return Finding(
        "Number of tasks",
        f"For a tau of {_TAUS[-1]} with low noise, {FAVOURITE} takes {_count(favourite[f'n_{least}'])} comparisons for each of "
        f"{least} tasks and {_count(favourite[f'n_{most}'])} for each of {most}: in all they grow as tasks to the power "
        f"{_exponent(favourite)}.",
        "ranking_sizes",
        (heading, *rows),
    )


def _exponent(row: pd.Series) -> str:
    if row["exponent"] != row["exponent"]:
        return "not known"
    return f"{row['exponent']:.2f} [{row['exponent_low']:.2f}, {row['exponent_high']:.2f}]"


def _count(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.1f}"


def convergence_figure(convergence: pd.DataFrame) -> Figure:
    """Kendall's tau by comparisons per task: one panel a judge, one row a kind of answer, one line a method."""
    judges, kinds = convergence["judge"].unique(), convergence["answers"].unique()
    figure = Figure(figsize=(2.7 * len(judges), 2.8 * len(kinds)), layout="constrained")
    panels = figure.subplots(len(kinds), len(judges), sharex=True, sharey="row", squeeze=False)
    for row, kind in enumerate(kinds):
        for column, judge in enumerate(judges):
            axes = plots.plain_style(panels[row][column])
            part = convergence[(convergence["answers"] == kind) & (convergence["judge"] == judge)]
            for (method, line), colour in zip(part.groupby("method", sort=False), plots.CYCLE, strict=False):
                is_favourite = method == FAVOURITE
                axes.fill_between(line["per_task"], line["tau_low"], line["tau_high"], color=colour, alpha=0.12, linewidth=0)
                axes.plot(
                    line["per_task"],
                    line["tau"],
                    color=colour,
                    linewidth=2.4 if is_favourite else 1.1,
                    label=str(method) if not (row or column) else None,
                    zorder=3 if is_favourite else 2,
                )
            axes.set_title(f"{judge}\n{kind}", fontsize=8)
            if row == len(kinds) - 1:
                axes.set_xlabel("comparisons per task", fontsize=8)
        panels[row][0].set_ylabel("Kendall's tau with the truth", fontsize=8)
    figure.legend(loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    return figure


def sizes_figure(needed: pd.DataFrame) -> Figure:
    """Comparisons per task for tau .8 and .9 by number of tasks, one line a method."""
    figure, panels = plots.new_panels(len(_TAUS), 4.2)
    for axes, tau in zip(panels, _TAUS, strict=True):
        for (method, part), colour in zip(needed.groupby("method", sort=False), plots.CYCLE, strict=False):
            line = part.groupby("n")[f"tau_{tau:g}"].mean()
            axes.plot(line.index, line, marker="o", markersize=3, color=colour, label=str(method) if tau == _TAUS[0] else None)
        axes.set(xscale="log", xlabel="tasks", title=f"tau {tau:g}")
    panels[0].set_ylabel("comparisons per task")
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["ranking_methods", *sys.argv[1:]]))
