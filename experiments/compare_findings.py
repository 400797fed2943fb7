"""What `compare` says and shows: one sentence a finding with its null, a panel for every two runs, and a forest of origins."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from experiments import figures as plots
from experiments.findings import Finding, null_note, plain
from experiments.side_by_side import LEVEL, OnOneScale, PairOfRuns, Scale, smallest_origin_difference
from store import Estimate

_MOST_PANELS = 5
"""With more runs, a scatter of every two is too small to read: correlations are then shown as colours."""
_MOST_ROWS = 45
_MOST_LINES = 12
_SHOWN = 5


def agreement_finding(pairs: Sequence[PairOfRuns]) -> Finding:
    """How far runs agree."""
    by_r = sorted(pairs, key=lambda each: each.agreement.pearson.value)
    n = pairs[0].agreement.pearson.n
    if len(pairs) == 1:
        (pair,) = pairs
        corrected = f"; without errors of measurement it would be about {plain(pair.corrected)}" if pair.corrected else ""
        sentence = (
            f"{pair.first} and {pair.second} correlate at r = {plain(pair.agreement.pearson)} over {n} tasks (rank correlation "
            f"{plain(pair.agreement.spearman)}){corrected}."
        )
        return Finding("Agreement", sentence + null_note(pair.agreement.pearson, "agreement"), "agreement")
    least, most = by_r[0], by_r[-1]
    null = [each.agreement.pearson for each in pairs if not each.agreement.pearson.differs_from(0)]
    without = (
        f" For {len(null)} of {len(pairs)} the interval contains 0, so no agreement of these is claimed; the smallest that "
        f"would be found about four times in five is {max(each.smallest_effect for each in null):.2f}."
        if null
        else ""
    )
    return Finding(
        "Agreement",
        f"Over {n} tasks the closest of {len(pairs)} pairs of runs are {most.first} and {most.second}, r = "
        f"{plain(most.agreement.pearson)}, and the furthest {least.first} and {least.second}, r = "
        f"{plain(least.agreement.pearson)}.{without}",
        "agreement",
        tuple(f"{f'{each.first} / {each.second}':32s}{plain(each.agreement.pearson)}" for each in reversed(by_r)),
    )


def spread_finding(pairs: Sequence[PairOfRuns], scale: Scale) -> Finding:
    """How far preferences of one run are stronger than another's."""

    def said(pair: PairOfRuns) -> str:
        value, low, high = (f"{each:.2f}" for each in (pair.spread.value, pair.spread.low, pair.spread.high))
        return f"{value} [{low}, {high}] times as wide in {pair.second} as in {pair.first}"

    shown = sorted(pairs, key=lambda each: abs(math.log(each.spread.value)), reverse=True)
    which = "" if len(pairs) == 1 else f" That is the furthest from alike of {len(pairs)} pairs."
    note = null_note(shown[0].spread, "difference in strength", null=1.0) if len(pairs) == 1 else ""
    differs = scale != "standardised" and shown[0].spread.differs_from(1.0)
    part = " Differences of tasks and origins include that; --scale standardised takes it out." if differs else ""
    sentence = f"Labels before scaling are {said(shown[0])}, errors of measurement included.{which}{note}{part}"
    return Finding("Strength", sentence)


def choice_finding(choices: Mapping[tuple[str, str], Estimate]) -> Finding:
    """How often two runs choose the same."""
    (one, other), most = max(choices.items(), key=lambda item: item[1].value)
    rest = f" (the most alike of {len(choices)} pairs of runs)" if len(choices) > 1 else ""
    return Finding(
        "Choices",
        f"Of {most.n:,} pairs of tasks that {one} and {other} both decided, both prefer the same task in "
        f"{plain(most, percent=True)}{rest}, each order counted alike; 50 % by chance."
        + null_note(most, "likeness of choices", null=0.5),
        rows=tuple(f"{f'{a} / {b}':32s}{plain(each, percent=True)} of {each.n}" for (a, b), each in choices.items())
        if len(choices) > 1
        else (),
    )


def task_finding(by_task: pd.DataFrame, scaled: OnOneScale) -> Finding:
    """Which tasks are told apart."""
    tested = by_task.dropna(subset=["p"])
    if tested.empty:
        return Finding(
            "Tasks apart",
            "Not all of these labels have standard errors, so no difference of a single task is tested; the largest are these.",
            rows=tuple(_task_row(row) for _, row in furthest_apart(by_task).head(_SHOWN).iterrows()),
        )
    apart = tested[tested["p_corrected"] <= LEVEL]
    how = f"at a false-discovery rate of {100 * LEVEL:.0f} % over {len(tested):,} tests"
    if apart.empty:
        smallest = (stats.norm.isf(LEVEL / 2 / len(tested)) + stats.norm.isf(0.2)) * tested["se"].median()
        return Finding(
            "Tasks apart",
            f"No task differs {how}, so no difference of a single task is claimed; one of about {smallest:.2f} {scaled.unit} "
            "would be found four times in five.",
        )
    largest = apart.iloc[int(apart["difference"].abs().to_numpy().argmax())]
    return Finding(
        "Tasks apart",
        f"{len(apart):,} of {len(tested):,} differences of single tasks are told from zero {how}; the largest is "
        f"{largest['task_id']}, {_with_interval(largest)} {scaled.unit} from {largest['first']} to {largest['second']}."
        f"{_relative(scaled)}",
        rows=tuple(_task_row(row) for _, row in furthest_apart(apart).head(_SHOWN).iterrows()),
    )


def origin_finding(by_origin: pd.DataFrame, scaled: OnOneScale) -> Finding:
    """Which origins are told apart."""
    tested = by_origin.dropna(subset=["p"])
    apart = tested[tested["p_corrected"] <= LEVEL].sort_values("p")
    how = f"(corrected over {len(tested)} tests)"
    rows = tuple(
        f"{origin_name(row, scaled):36s}{_with_interval(row)}  p = {row['p_corrected']:.3f}"
        for _, row in tested.sort_values("p").head(_MOST_LINES).iterrows()
    )
    if apart.empty:
        if tested.empty:
            said = "No origin has the three tasks that a test of how far runs are apart needs, so no difference is claimed."
            return Finding("Origins apart", said, "origins_apart")
        smallest = smallest_origin_difference(tested)
        return Finding(
            "Origins apart",
            f"No origin differs from the others in how far runs are apart {how}, so no such difference is claimed; for one "
            f"origin alone about {smallest:.2f} {scaled.unit} would be found four times in five, by Student's t at that level.",
            "origins_apart",
            rows,
        )
    once = len(scaled.pairs) == 1
    said = "; ".join(
        f"{row['origin']} {_with_interval(row)}{'' if once else f' from {row.first} to {row.second}'}"
        for _, row in apart.head(_SHOWN).iterrows()
    )
    which = f"{scaled.unit} from {scaled.pairs[0][0]} to {scaled.pairs[0][1]}" if once else scaled.unit
    more = f"; and {len(apart) - _SHOWN} more" if len(apart) > _SHOWN else ""
    return Finding(
        "Origins apart",
        f"{len(apart)} of {len(tested)} differences of origins are told from zero {how}, in {which}: {said}{more}."
        f"{_relative(scaled)}",
        "origins_apart",
        rows,
    )


def _relative(scaled: OnOneScale) -> str:
    if scaled.scale == "as_is":
        return ""
    return " Differences are from the mean of all tasks: where some rise, the others fall a little."


def _task_row(row: pd.Series) -> str:
    return f"{row['task_id'][:34]:36s}{_with_interval(row)}  {row['first']} to {row['second']}"


def _with_interval(row: pd.Series) -> str:
    interval = f" [{row['low']:+.2f}, {row['high']:+.2f}]" if row["se"] == row["se"] else ""
    return f"{row['difference']:+.2f}{interval}"


def origin_name(row: pd.Series, scaled: OnOneScale) -> str:
    """An origin with its tasks, and which runs where there are more than two."""
    which = f", {row['first']} to {row['second']}" if len(scaled.pairs) > 1 else ""
    return f"{row['origin']} (n={row['n']}){which}"


def furthest_apart(differences: pd.DataFrame) -> pd.DataFrame:
    """The surest differences first, or the largest where it is not known how sure they are."""
    by_size = differences.sort_values("difference", key=abs, ascending=False)
    return by_size.sort_values("p", kind="stable")


def agreement_panels(scaled: OnOneScale, pairs: Sequence[PairOfRuns], origins: Mapping[str, str]) -> Figure:
    """Every two runs: the tasks of one against the other below the diagonal, and their correlation above it."""
    names = [str(name) for name in scaled.values.columns]
    k, n = len(names), len(scaled.values)
    if k > _MOST_PANELS:
        r = np.eye(k)
        for pair in pairs:
            i, j = names.index(pair.first), names.index(pair.second)
            r[i, j] = r[j, i] = pair.agreement.pearson.value
        return plots.heatmap(r, names, names, f"Agreement of runs over {n} tasks", "correlation over tasks")
    if k == 2:
        figure, axes = plots.new_axes(6.0, 4.6)
        _scatter(axes, scaled, names[0], names[1], origins)
        axes.set(
            xlabel=f"{names[0]} ({scaled.unit})",
            ylabel=f"{names[1]} ({scaled.unit})",
            title=f"r = {plain(pairs[0].agreement.pearson)}, n = {n} tasks",
        )
        if len(set(origins.values())) > 1:
            axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        return figure
    figure = Figure(figsize=(2.3 * k + 0.6, 2.2 * k + 0.8), layout="constrained")
    panels: Any = figure.subplots(k, k, squeeze=False)
    found = {(pair.first, pair.second): pair.agreement for pair in pairs}
    for row, column in np.ndindex(k, k):
        axes = plots.plain_style(panels[row, column])
        if row > column:
            _scatter(axes, scaled, names[column], names[row], origins)
        elif row == column:
            axes.hist(scaled.values.iloc[:, row], bins=20, color=plots.GREY, alpha=0.6)
            axes.set_title(names[row], fontsize=9)
        else:
            axes.axis("off")
            estimate = found[names[row], names[column]].pearson
            text = f"r = {estimate.value:+.2f}\n[{estimate.low:+.2f}, {estimate.high:+.2f}]"
            axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=10, transform=axes.transAxes)
        if row == k - 1:
            axes.set_xlabel(names[column], fontsize=8)
        if column == 0 and row:
            axes.set_ylabel(names[row], fontsize=8)
        axes.tick_params(labelsize=7)
    if len(set(origins.values())) > 1:
        handles, labels = panels[1, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
    figure.suptitle(f"{n} tasks in {k} runs ({scaled.unit})", fontsize=10)
    return figure


def _scatter(axes: Any, scaled: OnOneScale, first: str, second: str, origins: Mapping[str, str]) -> None:
    values = scaled.values
    tasks = pd.DataFrame({"task_id": values.index, "value_1": values[first].to_numpy(), "value_2": values[second].to_numpy()})
    axes.axline((values[first].mean(), values[second].mean()), slope=1, color=plots.GREY, linewidth=0.8)
    plots.scatter_by_origin(axes, tasks, origins)


def origin_forest(by_origin: pd.DataFrame, scaled: OnOneScale) -> Figure:
    """Mean difference of every origin with its interval; a star where it is told from zero after correction."""
    order = by_origin.groupby("origin")["difference"].mean().sort_values().index.tolist()
    table = by_origin.assign(place=by_origin["origin"].map(order.index)).sort_values(["place", "first", "second"])
    if len(table) > _MOST_ROWS:
        table = table.sort_values("p").head(_MOST_ROWS).sort_values(["place", "first", "second"])
    marked = [origin_name(row, scaled) + (" *" if row["p_corrected"] <= LEVEL else "") for _, row in table.iterrows()]
    which = f"{scaled.pairs[0][1]} minus {scaled.pairs[0][0]}" if len(scaled.pairs) == 1 else "second run minus first"
    star = " (star: told from zero after correction)" if (table["p_corrected"] <= LEVEL).any() else ""
    zero = "" if scaled.scale == "as_is" else ", zero: the mean of all tasks"
    return plots.forest(
        marked,
        table[["difference", "low", "high"]].to_numpy(dtype=float),
        f"{which} ({scaled.unit}{zero}; line: 95 %)",
        f"How far origins are apart{star}",
    )
