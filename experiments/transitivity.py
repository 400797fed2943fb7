"""transitivity: do preferences between pairs hang together, or go round in circles? All pairs of a few tasks, both orders."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import LeastSquares, Utilities, all_pairs, choice, order_averages, position_bias
from elicit.consistency import ROUNDING
from elicit.reliability import CycleRate, HardCycles, PositionBias, dyadic_estimate, hard_cycles
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, plain
from experiments.measuring import restricted
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate

_LEAST_TASKS = 4
"""So many tasks of an origin have triads enough, and pairs that utilities do not fit by themselves."""


class TransitivitySettings(Settings):
    """Ask every pair of some tasks, in both orders, exactly."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 4, "out": Path("runs/transitivity_quick")}

    out: Path = Field(
        default=Path("runs/transitivity"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=10, ge=1, description="Tasks sampled from each origin; every pair of them is asked.")
    wording: str = Field(default="would_rather", description="Template of the choices.")
    simulations: int = Field(default=400, ge=20, description="Simulations of what noise would give.")
    resamples: int = Field(default=1000, ge=50, description="Bootstrap resamples of tasks.")


SETTINGS = TransitivitySettings


def run(settings: TransitivitySettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    template("choice", settings.wording)  # a wrong name is an error before the model is loaded
    tasks = settings.load_tasks()
    if len(tasks) < _LEAST_TASKS:
        raise ValueError(f"There are {len(tasks)} tasks; triads need at least {_LEAST_TASKS}. Raise per_origin.")
    setup = Setup.of(settings, tasks)
    asked = choice.questions(setup.tasks, all_pairs([task.id for task in setup.tasks]), wording=settings.wording)
    comparisons = choice.comparisons(asked, setup.ask(asked, "all pairs"))
    setup.run.save_table("comparisons", comparisons)
    cycles = _cycles(comparisons, settings)
    utilities = LeastSquares(resamples=settings.resamples, seed=settings.seed).fit(comparisons)
    pairs = fitted_pairs(utilities, comparisons)
    explained = explained_share(pairs, utilities)
    bias = position_bias(comparisons)
    parts = parts_of_answers(pairs, explained, bias)
    by_origin = _by_origin(comparisons, setup.origins, settings)
    tables = {
        "hard_cycles": cycles.table,
        "cycles_by_task": cycles.tasks,
        "pairs": pairs.merge(cycles.pairs, on=["task_1", "task_2"]),
        "by_origin": by_origin,
        "parts": parts,
        "labels": utilities.labels(),
    }
    for name, table in tables.items():
        setup.run.save_table(name, table)
    return publish(
        setup.run,
        Source.of(setup, asked[0]),
        experiment="transitivity",
        findings=[
            _cycle_finding("Hard cycles", "With both orders of every pair pooled", cycles.pooled),
            *([_one_order_finding(cycles)] if cycles.one_order else []),
            _utilities_finding(explained, utilities, pairs, parts),
            *([_origin_finding(by_origin, cycles.pooled)] if len(by_origin) > 1 else []),
        ],
        figures={"transitivity": cycles.plot(), "transitivity_fit": fit_figure(pairs, explained)},
        tables=[
            Table(
                "Hard cycles", "Rates are shares of all triads; of_decided leaves out triads with a tied pair.", cycles.table
            ),
            Table("What answers are made of", "Mean squares of log-odds over pairs, and their shares.", parts),
            Table(
                "By origin", "Triads within one origin, and the share of content that their own utilities explain.", by_origin
            ),
        ],
        methods=_methods(settings, len(setup.tasks)),
        summary={
            "cycles": cycles,
            "explained": explained,
            "residual_sd": utilities.report.residual_sd,
            "parts": parts.to_dict("records"),
            "by_origin": by_origin.to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def _methods(settings: TransitivitySettings, n: int) -> str:
    return (
        f"All {math.comb(n, 2)} pairs of {n} tasks were asked in both orders (template {settings.wording}), "
        "and the probabilities of both labels read exactly. The winner of a pair is the task with the larger log-odds, "
        "over both orders or over one that a coin picked for each pair. A triad is a hard cycle where its three winners go "
        "round in a circle. Intervals of the rates are a bootstrap over tasks. Exact answers have no noise of their own: "
        f"the expectation is of {settings.simulations} simulations with the fitted utilities, and residuals of pairs that "
        "are normal, independent and as spread as those of the fit. Utilities are least squares on order-averaged "
        "log-odds; the share that they explain is corrected for their number, and its interval allows for pairs that "
        "share a task."
    )


def _cycles(comparisons: pd.DataFrame, settings: TransitivitySettings) -> HardCycles:
    return hard_cycles(comparisons, simulations=settings.simulations, resamples=settings.resamples, seed=settings.seed)


def fitted_pairs(utilities: Utilities, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Content of every pair beside the difference of its utilities: `task_1, task_2, content, position, fitted, residual`."""
    pairs = order_averages(comparisons).drop(columns="n_templates")
    fitted = utilities.eta(pairs["task_1"], pairs["task_2"])
    return pairs.assign(fitted=fitted, residual=pairs["content"] - fitted)


def explained_share(pairs: pd.DataFrame, utilities: Utilities) -> Estimate:
    """Share of the content's mean square that differences of utilities explain, corrected for the number of utilities.

    One less the residual variance (per degree of freedom) by the mean square of the content: 1 where preferences are one
    line, about 0 where every pair is a matter of its own. The fit is a minimum, so that to first order a pair moves the
    residual sum by its own square alone; the interval is that of `dyadic_estimate`.

    Parameters
    ----------
    pairs
        From `fitted_pairs`.
    """
    freedom = len(pairs) - len(utilities.task_ids) + utilities.report.components
    if freedom < 1 or (pairs["content"].abs() < ROUNDING).all():
        return Estimate.unknown(len(pairs))
    left, content = (pairs["residual"] ** 2).to_numpy() * len(pairs) / freedom, (pairs["content"] ** 2).to_numpy()
    return dyadic_estimate(
        lambda rows: 1 - left[rows].sum() / content[rows].sum(), pairs["task_1"], pairs["task_2"], (-np.inf, 1.0)
    )


def parts_of_answers(pairs: pd.DataFrame, explained: Estimate, bias: PositionBias) -> pd.DataFrame:
    """What the mean square of one answer's log-odds is made of: `part, mean_square, share`."""
    content, position = float((pairs["content"] ** 2).mean()), float((pairs["position"] ** 2).mean())
    constant = max(0.0, bias.mean.value**2 - bias.spread.value**2 / len(pairs))
    parts = {
        "utilities": explained.value * content,
        "pair, orders averaged": (1 - explained.value) * content,
        "order, alike for all pairs": constant,
        "order, by pair": position - constant,
    }
    table = pd.DataFrame({"part": list(parts), "mean_square": list(parts.values())})
    return table.assign(share=table["mean_square"] / (content + position))


def _by_origin(comparisons: pd.DataFrame, origins: Mapping[str, str], settings: TransitivitySettings) -> pd.DataFrame:
    """Hard cycles and explained share within every origin with tasks enough."""
    rows = []
    for origin in dict.fromkeys(origins.values()):
        part = restricted(comparisons, [task for task, of in origins.items() if of == origin])
        known = order_averages(part)
        if len({*known["task_1"], *known["task_2"]}) < _LEAST_TASKS:
            continue
        cycles = _cycles(part, settings).pooled.to_dict()
        utilities = LeastSquares(errors="none").fit(part)
        share = explained_share(fitted_pairs(utilities, part), utilities)
        columns = ("triads", "hard", "rate", "rate_low", "rate_high", "expected", "p")
        ends = {"explained": share.value, "explained_low": share.low, "explained_high": share.high}
        rows.append({"origin": origin} | {name: cycles[name] for name in columns} | ends)
    return pd.DataFrame(rows)


def _percent(estimate: Estimate) -> str:
    value, low, high = (100 * each for each in (estimate.value, estimate.low, estimate.high))
    return f"{value:.1f} % [{low:.1f}, {high:.1f}]"


def _cycle_finding(name: str, which: str, rate: CycleRate) -> Finding:
    sentence = (
        f"{which}, {_percent(rate.rate)} of {rate.triads:,} triads are hard cycles. Pairs that depart from the fitted "
        f"utilities independently of each other would give {_percent(rate.expected)}, fair coins {100 * rate.chance:.1f} %. "
    )
    return Finding(name, sentence + _verdict(rate), "transitivity")


def _verdict(rate: CycleRate) -> str:
    if np.isnan(rate.p):
        return "There are too few pairs to say what noise would give."
    if rate.p > 0.05:
        return (
            f"That is no more than they give (p = {rate.p:.2f}), so no preference for going in circles is claimed; "
            f"{100 * rate.smallest_excess:.1f} percentage points above or below would have been found four times in five."
        )
    if rate.rate.value > rate.expected.value:
        return f"There are more than that (p = {rate.p:.2f}): what utilities leave out is not independent from pair to pair."
    return f"There are fewer than that (p = {rate.p:.2f}): pairs that are close depart from the utilities less than others do."


def _one_order_finding(cycles: HardCycles) -> Finding:
    assert cycles.one_order is not None and cycles.flips is not None
    finding = _cycle_finding("One order", "With one order alone, drawn by a coin for each pair", cycles.one_order)
    flips = f" The order changes the winner of {_percent(cycles.flips)} of {cycles.flips.n:,} pairs."
    return replace(finding, sentence=finding.sentence + flips)


def _utilities_finding(explained: Estimate, utilities: Utilities, pairs: pd.DataFrame, parts: pd.DataFrame) -> Finding:
    if not explained.known:
        reason = "too few for that" if pairs["content"].any() else "order alone decides every one"
        return Finding("Utilities", f"What utilities explain of {len(pairs):,} pairs is not known: {reason}.")
    spread = utilities.report.residual_sd or float("nan")
    rows = tuple(f"{row['part']:28s}{row['mean_square']:8.3f}  {100 * row['share']:4.0f} %" for _, row in parts.iterrows())
    sentence = (
        f"One utility a task explains {plain(explained, percent=True)} of the variance of what {explained.n:,} pairs prefer, "
        f"orders averaged; the rest, a standard deviation of {spread:.2f} logits, belongs to the pair. Of the log-odds of a "
        f"single answer the utilities are {100 * parts['share'].iloc[0]:.0f} %."
    )
    heading = f"{'part of one answer':28s}{'square':>8s}  share"
    return Finding("Utilities", sentence, "transitivity_fit", (heading, *rows))


def _origin_finding(by_origin: pd.DataFrame, pooled: CycleRate) -> Finding:
    in_order = by_origin.sort_values("rate")
    least, most = in_order.iloc[0], in_order.iloc[-1]

    def within(row: pd.Series) -> str:
        ends = Estimate(row["rate"], row["rate_low"], row["rate_high"], float("nan"), int(row["triads"]))
        return f"{_percent(ends)} ({row['origin']})"

    return Finding(
        "Within origins",
        f"Among tasks of one origin the share of hard cycles runs from {within(least)} to {within(most)} of "
        f"{int(by_origin['triads'].max())} triads, against {100 * pooled.rate.value:.1f} % over all; utilities of their own "
        f"explain from {100 * by_origin['explained'].min():.0f} to {100 * by_origin['explained'].max():.0f} % of the variance. "
        "These are the extremes of several origins, each with few tasks; a difference between two of them is not tested.",
    )


def fit_figure(pairs: pd.DataFrame, explained: Estimate) -> Figure:
    """What every pair prefers against the difference of its utilities."""
    figure, axes = plots.new_axes(5.6, 4.6)
    # Which task of a pair is called task 1 is arbitrary: every pair is drawn with the higher utility first.
    sign = np.where(pairs["fitted"] < 0, -1.0, 1.0)
    fitted, content = sign * pairs["fitted"].to_numpy(), sign * pairs["content"].to_numpy()
    against = content < 0
    axes.axhline(0, color=plots.GREY, linewidth=0.8)
    axes.axline((0, 0), slope=1, color=plots.GREEN, linewidth=1.2, label="utilities alone")
    for mask, colour, label in ((~against, plots.BLUE, "as utilities say"), (against, plots.ORANGE, "the other way")):
        axes.scatter(
            fitted[mask], content[mask], s=9, color=colour, alpha=0.5, linewidths=0, label=f"{label} ({mask.sum():,} pairs)"
        )
    axes.set(
        xlabel="difference of utilities (logits)",
        ylabel="preference for the task of higher utility,\norders averaged (logits)",
        title=f"Utilities explain {plain(explained, percent=True)}",
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["transitivity", *sys.argv[1:]]))
