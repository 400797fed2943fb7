"""Figures: one function a plot, from result tables to a matplotlib Figure with named axes, units and n."""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elicit.reliability import Agreement, HoldOut, PositionBias
from elicit.reliability.drawing import (
    BLUE,
    CYCLE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    forest,
    heatmap,
    new_axes,
    new_panels,
    plain_style,
)
from experiments.dose_response import DoseResponse, is_tested
from experiments.steer_modes import MOVED, UNITS
from interp.cross_probe import CrossProbe
from interp.probe import RESIDUAL, ProbeSweep
from store import layer_name

__all__ = [
    "BLUE",
    "CYCLE",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "agreement_figure",
    "coherence_figure",
    "cross_probe_figure",
    "dose_figure",
    "forest",
    "heatmap",
    "hold_out_figure",
    "new_axes",
    "new_panels",
    "plain_style",
    "position_figure",
    "probe_figure",
    "probe_map",
    "scatter_by_origin",
    "utilities_figure",
]


_DOSE = "dose (mean residual norms)"


def _colours(origins: Mapping[str, str]) -> dict[str, str]:
    """One colour per origin, the same in every figure."""
    return {name: CYCLE[place % len(CYCLE)] for place, name in enumerate(sorted(set(origins.values())))}


def position_figure(bias: PositionBias) -> Figure:
    """Preference for a task when it is shown first against the same when it is shown second."""
    return bias.plot()


def utilities_figure(labels: pd.DataFrame, origins: Mapping[str, str]) -> Figure:
    """Utility of every task with its interval, by origin."""
    table = labels.assign(origin=labels["task_id"].map(origins))
    names = table.groupby("origin")["value"].mean().sort_values().index.tolist()
    colours = _colours(origins)
    figure, axes = new_axes(7.0, 0.55 * len(names) + 1.6)
    for row, name in enumerate(names):
        part = table[table["origin"] == name].sort_values("value")
        height = row + np.linspace(-0.32, 0.32, len(part))
        colour = colours[name]
        axes.hlines(height, part["low"], part["high"], color=colour, linewidth=0.8, alpha=0.6)
        axes.scatter(part["value"], height, s=12, color=colour)
        axes.vlines(part["value"].mean(), row - 0.4, row + 0.4, color="black", linewidth=1.2)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set(
        yticks=range(len(names)),
        yticklabels=[f"{name} (n={int((table['origin'] == name).sum())})" for name in names],
        xlabel="utility (logits, mean zero; line: 95 % interval; black: mean of the origin)",
        title="What is chosen over what",
    )
    return figure


def hold_out_figure(held_out: HoldOut) -> Figure:
    """Measured against predicted preference on held-out pairs."""
    figure, axes = new_axes(5.2, 4.4)
    pairs = held_out.pairs
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.axline((0, 0), slope=1, color=GREEN, linewidth=1)
    right = np.sign(pairs["predicted"]) == np.sign(pairs["content"])
    for mask, colour, label in ((right, BLUE, "right"), (~right, ORANGE, "wrong")):
        axes.scatter(pairs["predicted"][mask], pairs["content"][mask], s=16, color=colour, label=f"{label} ({mask.sum()})")
    axes.set(
        xlabel="predicted: difference of utilities (logits)",
        ylabel="measured, orders averaged (logits)",
        title=f"{len(pairs)} pairs that the fit has not seen",
    )
    axes.legend(fontsize=8, frameon=False)
    return figure


def agreement_figure(agreement: Agreement, origins: Mapping[str, str]) -> Figure:
    """Utilities from choices against self-reports."""
    figure, axes = new_axes(6.0, 4.4)
    scatter_by_origin(axes, agreement.tasks, origins)
    axes.set(
        xlabel="utility from choices (logits)",
        ylabel="self-report (mean of standardised scales)",
        title=f"Two measures of the same {len(agreement.tasks)} tasks",
    )
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def scatter_by_origin(axes: Axes, tasks: pd.DataFrame, origins: Mapping[str, str]) -> None:
    """Draw `value_2` against `value_1` of every task, in the colour of its origin."""
    colours = _colours(origins)
    for name, part in tasks.assign(origin=tasks["task_id"].map(origins)).groupby("origin"):
        axes.scatter(part["value_1"], part["value_2"], s=16, color=colours[str(name)], label=name)


def probe_figure(sweep: ProbeSweep, target: str) -> Figure:
    """Held-out R2 by layer, with its baselines."""
    figure, axes = new_axes(7.4, 4.2)
    table = sweep.table[sweep.table["target"] == target]
    residual = table[table["features"] == RESIDUAL]
    for place, (colour, (position, part)) in enumerate(zip(CYCLE, residual.groupby("position", sort=False), strict=False)):
        part = part.sort_values("layer")
        part = part.assign(layer=part["layer"] + 0.25 * place)  # side by side, so that no interval hides another
        error = [part["r2"] - part["r2_low"], part["r2_high"] - part["r2"]]
        axes.errorbar(part["layer"], part["r2"], error, color=colour, marker="o", markersize=4, capsize=2, label=str(position))
    if "shuffled_r2_95" in residual:
        null = residual.groupby("layer")["shuffled_r2_95"].max()
        axes.fill_between(
            null.index, null, axes.get_ylim()[0], color=GREY, alpha=0.18, label="shuffled labels, 95 %", linewidth=0
        )
    styles = itertools.cycle(itertools.product(("black", GREY), ("--", ":", "-.", (0, (1, 4)))))
    # The stream at the first layer is a baseline too, and stands in the plot as a point.
    for _, row in table[(table["features"] != RESIDUAL) & ~table["features"].str.contains("/")].iterrows():
        colour, style = next(styles)
        axes.axhline(row["r2"], color=colour, linewidth=1, linestyle=style, label=f"{row['features']} ({row['r2']:z.2f})")
    layers = sorted(residual["layer"].unique())
    axes.set(
        xticks=layers,
        xticklabels=[layer_name(int(layer)) for layer in layers],
        xlabel="layer (residual stream after the block)",
        ylabel="held-out R² (line: 95 % interval)",
        title=f"What the activations know of {target.replace('_', ' ')} (n={int(residual['n'].iloc[0])} tasks)",
    )
    axes.set_ylim(max(axes.get_ylim()[0], -0.6), None)
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def probe_map(sweep: ProbeSweep, targets: Sequence[str]) -> Figure:
    """Held-out R2 of every layer and position, one panel a target; a dot where a probe beats every baseline."""
    figure = Figure(figsize=(1.6 + 3.4 * len(targets), 4.6), layout="constrained")
    residual = sweep.table[sweep.table["features"] == RESIDUAL]
    limit = max(0.05, float(residual["r2"].max()))
    panels = figure.subplots(1, len(targets), squeeze=False)[0]
    image = None
    for axes, target in zip(panels, targets, strict=True):
        part = residual[residual["target"] == target]
        table = part.pivot(index="layer", columns="position", values="r2").sort_index()
        beats = part.pivot(index="layer", columns="position", values="gain_low").loc[table.index, table.columns].to_numpy() > 0
        image = axes.imshow(table.to_numpy(), vmin=0, vmax=limit, cmap="Blues", aspect="auto", origin="lower")
        for row, column in np.ndindex(*table.shape):
            value = float(table.to_numpy()[row, column])
            mark = "\n•" if beats[row, column] else ""
            colour = "white" if value > 0.6 * limit else "black"
            axes.text(column, row, f"{value:.2f}{mark}", ha="center", va="center", fontsize=8, color=colour)
        axes.set(
            xticks=range(table.shape[1]),
            xticklabels=list(table.columns),
            yticks=range(table.shape[0]),
            yticklabels=[layer_name(int(layer)) for layer in table.index],
            title=f"{target.replace('_', ' ')} (n={int(part['n'].iloc[0])})",
            xlabel="position",
        )
        axes.tick_params(axis="x", labelrotation=20)
    panels[0].set_ylabel("layer (residual stream after the block)")
    assert image is not None
    figure.colorbar(image, ax=list(panels), label="held-out R²; dot: beats every baseline", shrink=0.8)
    return figure


def cross_probe_figure(crossed: CrossProbe, axis: str) -> Figure:
    """What probes of each view read in the others, with intervals, beside cosines, as measured and corrected for noise."""
    names, n = list(crossed.names), len(crossed.names)
    r, low, high = (crossed.matrix(f"pearson{end}").to_numpy() for end in ("", "_low", "_high"))
    cosine, corrected, halves = (crossed.matrix(column).to_numpy() for column in ("cosine", "corrected", "split_half"))
    intervals = [[f"[{low[row, column]:.2f}, {high[row, column]:.2f}]" for column in range(n)] for row in range(n)]
    known = [["(noisy)" if value != value else f"({value:.2f})" for value in row] for row in corrected]
    for number in range(n):
        known[number][number] = f"halves {halves[number, number]:.2f}"
    longest = max(map(len, names))
    figure = Figure(figsize=(2.2 + 0.16 * longest + 1.8 * n, 1.5 + 0.055 * longest + 0.62 * n), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    titles = (f"Read on held-out tasks (n={crossed.n})", "Cosine (corrected for noise)")
    image = None
    for axes, title, values, notes in zip(panels, titles, (r, cosine), (intervals, known), strict=True):
        image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
        for row, column in np.ndindex(n, n):
            colour = "white" if abs(values[row, column]) > 0.6 else "black"
            text = f"{values[row, column]:.2f}\n{notes[row][column]}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7.5, color=colour)
        axes.set_xticks(range(n), names, rotation=20 if longest > 16 else 0, fontsize=8)
        axes.set_yticks(range(n), names, fontsize=8)
        axes.set_title(title, fontsize=9)
    panels[0].set(ylabel="probe trained on", xlabel="read in")
    assert image is not None
    figure.colorbar(image, ax=list(panels), label="r; cosine", shrink=0.8)
    figure.suptitle(f"Probes across {axis}", fontsize=10)
    return figure


def dose_figure(response: DoseResponse, layer: int, mode: str, dose_label: str = _DOSE) -> Figure:
    """Shift by dose, and for choices the probability of the task pushed up: tested directions over their controls."""
    curve = response.curve[(response.curve["layer"] == layer) & (response.curve["mode"] == mode)]
    is_choice = bool(curve["probability"].notna().any())
    quantities = ["shift", "probability"] if is_choice else ["shift"]
    figure = Figure(figsize=(4.8 * len(quantities) + (0 if is_choice else 1.2), 4.6), layout="constrained")
    panels = [
        (plain_style(figure.add_subplot(1, len(quantities), place)), quantity)
        for place, quantity in enumerate(quantities, start=1)
    ]
    axes = panels[0][0]
    tested, random = curve[is_tested(curve)], curve[curve["is_random"]]
    shuffled = curve[curve["shuffled"] != ""]
    for panel, quantity in panels:
        for number, (method, part) in enumerate(shuffled.groupby("shuffled", sort=False)):
            ends = part.groupby("dose")[quantity].agg(["min", "max"])
            label = f"{part['direction'].nunique()} of shuffled labels, {str(method).replace('_', ' ')}"
            style = {"color": CYCLE[number % len(CYCLE)], "linestyle": ":", "linewidth": 1}
            panel.plot(ends.index, ends["min"], label=label, **style)
            panel.plot(ends.index, ends["max"], **style)
        band = random.groupby("dose")[quantity].agg(["min", "max"])
        label = f"{random['direction'].nunique()} random directions, all"
        panel.fill_between(band.index, band["min"], band["max"], color=GREY, alpha=0.25, linewidth=0, label=label)
        for _, part in random.groupby("direction"):
            panel.plot(part["dose"], part[quantity], color=GREY, linewidth=0.5, alpha=0.6)
        for colour, (name, part) in zip(CYCLE, tested.groupby("direction", sort=False), strict=False):
            error = [part["shift"] - part["shift_low"], part["shift_high"] - part["shift"]] if quantity == "shift" else None
            panel.errorbar(
                part["dose"],
                part[quantity],
                error,
                color=colour,
                marker="o",
                markersize=4,
                capsize=2,
                label=str(name).replace("_", " "),
            )
            wild = part[~part["coherent"]]
            panel.scatter(wild["dose"], wild[quantity], s=60, facecolors="none", edgecolors="red")
        panel.set_xlabel(dose_label)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel(f"shift of {MOVED.get(mode, 'the answer')} ({UNITS.get(mode, 'logits')})")
    if is_choice:
        panels[1][0].axhline(0.5, color="black", linewidth=0.6)
        panels[1][0].set_ylabel(f"{MOVED.get(mode, 'the answer')} (probability)")
    unit_name = "pairs, both orders" if mode.startswith("choice") else "tasks"
    heading = f"Steering {mode.replace('_', ' ')} at {layer_name(layer)}"
    figure.suptitle(
        f"{heading} (n={int(tested['n'].max())} {unit_name}; lines: 95 % intervals; red ring: not coherent)", fontsize=10
    )
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def coherence_figure(response: DoseResponse, layer: int, mode: str, dose_label: str = _DOSE) -> Figure:
    """What becomes of the answers by dose: their mass on format, how probable free texts are, and how they repeat."""
    curve = response.curve[(response.curve["layer"] == layer) & (response.curve["mode"] == mode)]
    quantities = {
        "mass": "raw probability on the allowed answers",
        "log_likelihood": "free text: log-probability to the\nuntouched model (nats per token)",
        "repetition": "free text: share said before",
    }
    shown = {name: label for name, label in quantities.items() if name in curve}
    figure, panels = new_panels(len(shown), 4.0, share_y=False)
    for axes, (quantity, label) in zip(panels, shown.items(), strict=True):
        known = curve.dropna(subset=[quantity])
        for number, (_, part) in enumerate(known[known["is_random"]].groupby("direction", sort=False)):
            axes.plot(part["dose"], part[quantity], color=GREY, linewidth=0.7, label=None if number else "random")
        for colour, (name, part) in zip(CYCLE, known[is_tested(known)].groupby("direction", sort=False), strict=False):
            axes.plot(part["dose"], part[quantity], color=colour, marker="o", markersize=4, label=str(name).replace("_", " "))
            wild = part[~part["coherent"]]
            axes.scatter(wild["dose"], wild[quantity], s=60, facecolors="none", edgecolors="red")
        axes.set(xlabel=dose_label, ylabel=label)
        if quantity != "log_likelihood":
            axes.set_ylim(-0.03, 1.03)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(
        f"Coherence under steering {mode.replace('_', ' ')} at {layer_name(layer)} (red ring: not coherent)", fontsize=10
    )
    return figure
