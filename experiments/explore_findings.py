"""What `explore` says and shows: a sentence for the map, its neighbours and each of the tables, and the static figures."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments import figures as plots
from experiments.explore_page import CATEGORIES
from experiments.explored import TaskMap
from experiments.findings import Finding, null_note, plain
from experiments.hand_labels import TaskLabel
from experiments.side_by_side import LEVEL
from experiments.task_tables import OrderFlips, PreferredRefused, SaidAndChosen
from store.estimates import POWER_FACTOR

_MOST_PANELS = 4
_MOST_ROWS = 8


def map_finding(found: TaskMap, of: int) -> Finding:
    """What the map is of, and how much of the neighbourhoods is left on it."""
    n = len(found.places)
    return Finding(
        "Map",
        f"{n:,} of {of:,} tasks by {found.said}. Of the {found.k} tasks nearest to a task, {100 * found.kept:.0f} % are among "
        f"its {found.k} nearest on the map ({100 * found.k / (n - 1):.1f} % by chance); distances between groups and their "
        "sizes mean nothing.",
        "map",
    )


def near_finding(found: TaskMap) -> Finding:
    """Which labels neighbours tell, and which of them beyond origins."""
    near, k = found.near, found.k
    if near.empty:
        return Finding("Neighbours", "No label has enough tasks on the map to say whether tasks that are near are alike.")
    told = near[near["p_corrected"] <= LEVEL]
    beyond = told[told["p_origin_corrected"] <= LEVEL]
    rows = tuple(
        f"{row['label'][:26]:28s}{_r2(row)}  p = {row['p_corrected']:.3f}"
        + (f"; beyond origins p = {row['p_origin_corrected']:.3f}" if row["p_origin"] == row["p_origin"] else "")
        for _, row in near.sort_values("p_corrected", kind="stable").head(_MOST_ROWS).iterrows()
    )
    if told.empty:
        said = (
            f"The {k} nearest tasks tell none of {len(near)} labels better than chance (corrected), so no label is said to "
            f"cluster; a held-out R² about {near['smallest_gain'].median():.2f} above that of permuted labels would be "
            "found four times in five."
        )
    else:
        best = told.iloc[int(told["r2"].to_numpy().argmax())]
        said = (
            f"The {k} nearest tasks tell {len(told)} of {len(near)} labels better than permuted ones (corrected), best "
            f"{best['label']} (held-out R² {_r2(best)}; permuted {best['chance']:+.2f}).{_rests(best, 'p_corrected')} "
        )
        if beyond.empty:
            said += "None of these is told better than where tasks come from tells it (labels permuted within origins)."
        else:
            most = beyond.iloc[int((beyond["r2"] - beyond["origin"]).to_numpy().argmax())]
            said += (
                f"{len(beyond)} of these {'is' if len(beyond) == 1 else 'are'} told beyond where tasks come from, most of all "
                f"{most['label']} (R² {_r2(most)}; permuted within origins {most['origin']:+.2f})."
                f"{_rests(most, 'p_origin_corrected')}"
            )
    return Finding("Neighbours", said, "map", rows)


def _rests(row: pd.Series, p: str) -> str:
    """A note where the interval alone would not bear the claim."""
    if row["r2_low"] > 0:
        return ""
    where = "contains" if row["r2_high"] >= 0 else "is below"
    return f" As that interval {where} 0, the claim rests on the permutation p ({row[p]:.3f}, corrected)."


def _r2(row: pd.Series) -> str:
    return f"{row['r2']:+.2f} [{row['r2_low']:+.2f}, {row['r2_high']:+.2f}]"


def flips_finding(name: str, flips: OrderFlips) -> Finding:
    """How often the order decides, and for which tasks more or less often than position bias would have it."""
    told = flips.tasks[flips.tasks["p_corrected"] <= LEVEL]
    odd = (
        f"{len(told)} of {len(flips.tasks)} tasks flip more or less often than that has it (corrected)"
        if len(told)
        else f"no task of {len(flips.tasks)} is told from that (corrected)"
    )
    worst = flips.tasks.sort_values(["rate", "pairs"], ascending=False).head(_MOST_ROWS).to_dict("records")
    return Finding(
        f"Order flips: {name}",
        f"The order of showing decides {plain(flips.rate, percent=True)} of {len(flips.pairs):,} pairs; "
        f"{100 * flips.expected:.0f} % if position were worth alike in all pairs, and {odd}.{_pooled(flips)}",
        "flips",
        tuple(f"{row['task_id'][:34]:36s}{row['flips']} of {row['pairs']} pairs" for row in worst),
    )


def _pooled(flips: OrderFlips) -> str:
    """A note where several templates are averaged, as their position biases may cancel."""
    if len(flips.positions) < 2:
        return ""
    least, most = min(flips.positions.values()), max(flips.positions.values())
    cancel = ", so that their biases cancel in part" if least < 0 < most else ""
    return (
        f" Answers of {len(flips.positions)} templates are averaged pair by pair; being shown first is worth from "
        f"{least:+.2f} to {most:+.2f} in them ({flips.unit}){cancel}. penchant position_bias tells templates apart."
    )


def cross_finding(cross: PreferredRefused) -> Finding:
    """Whether what is preferred is refused less, or more."""
    name = f"Preferred, refused: {cross.refusal}"
    counts = cross.counts.to_numpy(dtype=int)
    n, refused, both = counts.sum(), counts[:, 0].sum(), counts[0, 0]
    start = (
        f"Of {n} tasks {refused} are refused ({cross.refusal} above {cross.refused_above:g}), {both} of them preferred "
        f"({cross.preference} above {cross.preferred_above:+.2f})"
    )
    if not math.isfinite(cross.odds_ratio.value):
        return Finding(name, f"{start}; with all tasks on one side, nothing is said of how the two go together.", "crosses")
    ratio = cross.odds_ratio
    verdict = (
        f"Fisher's exact p = {cross.p:.3f}."
        if cross.p <= LEVEL
        else f"Fisher's exact p = {cross.p:.2f}, so no relation is claimed; {_smallest_ratio(cross.counts)}"
    )
    surely = int((cross.tasks["preferred"] & cross.tasks["refused"] & cross.tasks["sure"]).sum())
    return Finding(
        name,
        f"{start}, {surely} with both intervals clear of the thresholds. The odds of being refused are {ratio.value:.2f} "
        f"[{ratio.low:.2f}, {ratio.high:.2f}] times as high for preferred tasks; {verdict}",
        "crosses",
    )


def _smallest_ratio(counts: pd.DataFrame) -> str:
    """Least odds ratio away from one that such margins find four times in five, by the standard error of its logarithm."""
    margins = counts.to_numpy(dtype=float)
    expected = np.outer(margins.sum(axis=1), margins.sum(axis=0)) / margins.sum()
    se = float(np.sqrt((1 / np.maximum(expected, 0.5)).sum()))
    return f"one of about {math.exp(POWER_FACTOR * se):.1f} (or 1 by that) would be found four times in five."


def said_finding(said: SaidAndChosen) -> Finding:
    """Where self-report and choice part ways."""
    n = len(said.tasks)
    rho = said.agreement.spearman
    start = (
        f"{said.report} and {said.choice} have a rank correlation of {plain(rho)} over {n} tasks.{null_note(rho, 'agreement')} "
    )
    furthest = said.tasks.sort_values("difference", key=abs, ascending=False).head(5)
    rows = tuple(
        f"{row['task_id'][:34]:36s}said {row['said']:+.2f}, chosen {row['chosen']:+.2f} (standard deviations)"
        for _, row in furthest.iterrows()
    )
    if not said.tested:
        return Finding(
            "Said, chosen", f"{start}They do not both have standard errors, so no difference is tested.", "said", rows
        )
    tested, apart = said.tasks["p"].notna(), int(said.tasks["apart"].sum())
    if apart:
        end = f"In {apart} of {int(tested.sum())} tasks they differ by more than their errors (standardised, corrected)"
        return Finding("Said, chosen", f"{start}{end}.", "said", rows)
    smallest = POWER_FACTOR * float(said.tasks["se"].median())
    return Finding(
        "Said, chosen",
        f"{start}In no task do they differ by more than their errors (standardised, corrected), so no disagreement is "
        f"claimed; of one task alone about {smallest:.1f} standard deviations would be found four times in five.",
        "said",
        rows,
    )


# ---- figures


def map_figure(places: Mapping[str, tuple[float, float]], labels: Sequence[TaskLabel], said: str) -> Figure:
    """The map in the colours of up to four labels, one panel each."""
    chosen = [label for label in labels if label.kind != "text"][:_MOST_PANELS]
    columns = min(2, len(chosen))
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(5.0 * columns, 3.9 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in panels[len(chosen) :]:
        axes.axis("off")
    everything = np.array(list(places.values()))
    size = float(np.clip(2000 / len(places), 3, 22))
    for axes, label in zip(panels, chosen, strict=False):
        plots.plain_style(axes).grid(False)
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[], title=f"{label.name} (n={sum(task in places for task in label.table.index)})")
        axes.scatter(*everything.T, s=size / 3, color="#d5d8dc", linewidths=0)
        known = [task for task in label.table.index if task in places]
        at = np.array([places[task] for task in known]).reshape(-1, 2)
        if label.kind == "number":
            values = label.values.loc[known].to_numpy(dtype=float)
            low, high = np.quantile(values, [0.02, 0.98]) if len(values) else (0.0, 1.0)
            signed = low < 0 < high
            end = max(-low, high)
            low, high = (-end, end) if signed else (low, high)
            colours = "coolwarm" if signed else "viridis"
            image = axes.scatter(*at.T, c=values, s=size, cmap=colours, vmin=low, vmax=high, edgecolors="#777", linewidths=0.2)
            figure.colorbar(image, ax=axes, shrink=0.85)
        else:
            _draw_categories(axes, label, known, at, size)
    figure.suptitle(said, fontsize=9, wrap=True)
    return figure


def _draw_categories(axes, label: TaskLabel, known: Sequence[str], at: np.ndarray, size: float) -> None:
    values = label.values.loc[list(known)].tolist()
    first = np.array([each[0] if label.kind == "codes" else each for each in values], dtype=object)
    names = pd.Series(first).value_counts().index
    for place, name in enumerate(names):
        colour = CATEGORIES[place] if place < len(CATEGORIES) else plots.GREY
        mine = first == name
        axes.scatter(*at[mine].T, s=size, color=colour, linewidths=0, label=str(name) if place < len(CATEGORIES) else None)
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))


def flips_figure(flips: Mapping[str, OrderFlips]) -> Figure:
    """Every pair: how it leans when its first task is shown first and second; orange where the order decides."""
    figure, panels = plots.new_panels(max(len(flips), 2), 4.0, share_y=False)
    for axes in panels[len(flips) :]:
        axes.axis("off")
    for axes, (name, each) in zip(panels, flips.items(), strict=False):
        for mask, colour, label in (
            (~each.pairs["flips"], plots.BLUE, "same choice"),
            (each.pairs["flips"], plots.ORANGE, "flips"),
        ):
            part = each.pairs[mask]
            axes.scatter(part["when_first"], part["when_second"], s=8, color=colour, alpha=0.6, linewidths=0, label=label)
        axes.axhline(0, color=plots.GREY, linewidth=0.6)
        axes.axvline(0, color=plots.GREY, linewidth=0.6)
        axes.set(xlabel=f"for task 1 when shown first\n({each.unit})", ylabel="for task 1 when shown second", title=name)
        axes.legend(fontsize=8, frameon=False)
    return figure


def crosses_figure(crosses: Sequence[PreferredRefused]) -> Figure:
    """Preference against refusal with both thresholds, and how many tasks are in each corner."""
    figure, panels = plots.new_panels(max(len(crosses), 2), 3.8, share_y=False)
    for axes in panels[len(crosses) :]:
        axes.axis("off")
    for axes, cross in zip(panels, crosses, strict=False):
        corner = cross.tasks["preferred"] & cross.tasks["refused"]
        for mask, colour in ((~corner, plots.BLUE), (corner, plots.ORANGE)):
            axes.scatter(
                cross.tasks["preference"][mask], cross.tasks["refusal"][mask], s=16, color=colour, alpha=0.8, linewidths=0
            )
        axes.axvline(cross.preferred_above, color=plots.GREY, linewidth=0.8)
        axes.axhline(cross.refused_above, color=plots.GREY, linewidth=0.8)
        axes.set(xlabel=cross.preference, ylabel=f"share refused ({cross.refusal})", ylim=(-0.05, 1.05))
        spots = ((0.98, 0.96, 0, 0), (0.98, 0.04, 0, 1), (0.02, 0.96, 1, 0), (0.02, 0.04, 1, 1))
        for x, y, row, column in spots:
            text = f"n={cross.counts.iloc[row, column]}"
            side, edge = ("right" if x > 0.5 else "left"), ("top" if y > 0.5 else "bottom")
            axes.text(x, y, text, transform=axes.transAxes, ha=side, va=edge, fontsize=9)
    figure.suptitle("Preferred, and yet refused (orange)", fontsize=10)
    return figure


def said_figure(said: SaidAndChosen, origins: Mapping[str, str]) -> Figure:
    """What is said against what is chosen, a ring where the two are told apart."""
    figure, axes = plots.new_axes(6.0, 4.4)
    table = said.tasks.rename(columns={"chosen": "value_1", "said": "value_2"})
    axes.axline((0, 0), slope=1, color=plots.GREY, linewidth=0.8)
    plots.scatter_by_origin(axes, table, origins)
    apart = table[table["apart"]]
    axes.scatter(apart["value_1"], apart["value_2"], s=60, facecolors="none", edgecolors=plots.ORANGE)
    axes.set(
        xlabel=f"chosen: {said.choice} (standardised)",
        ylabel=f"said: {said.report} (standardised)",
        title=f"{len(table)} tasks (ring: told apart after correction)",
    )
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
