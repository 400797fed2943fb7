"""Figures: one function a plot, from result tables to a matplotlib Figure with named axes, units and n."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from elicit.reliability import Agreement, HoldOut, PositionBias
from experiments.dose_response import DoseResponse
from interp.probe import RESIDUAL, ProbeSweep
from store import layer_name

BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f6fb2", "#d9822b", "#2e8b57", "#7b5ea7", "#8a8f98"
_CYCLE = (BLUE, ORANGE, GREEN, PURPLE, "#c0504d", "#4aa6a6")


def new_axes(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Return an empty figure in the style of all others, and its axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, _plain_style(figure.add_subplot())


def new_panels(n: int, height: float, *, share_y: bool = True) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of several panels side by side, which may share the vertical axis."""
    figure = Figure(figsize=(2.0 + 2.6 * n, height), layout="constrained")
    panels = figure.subplots(1, n, sharey=share_y, squeeze=False)[0]
    return figure, [_plain_style(axes) for axes in panels]


def _plain_style(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def _colours(origins: Mapping[str, str]) -> dict[str, str]:
    """One colour per origin, the same in every figure."""
    return {name: _CYCLE[place % len(_CYCLE)] for place, name in enumerate(sorted(set(origins.values())))}


def position_figure(bias: PositionBias) -> Figure:
    """Preference for a task when it is shown first against the same when it is shown second."""
    figure, axes = new_axes(5.2, 5.0)
    content, position = bias.pairs["content"].to_numpy(), bias.pairs["position"].to_numpy()
    first, second = (
        np.concatenate([content + position, position - content]),
        np.concatenate([content - position, -content - position]),
    )
    limit = 1.08 * max(np.abs(first).max(), np.abs(second).max())
    axes.plot([-limit, limit], [-limit, limit], color=GREEN, linewidth=1, label="order does not matter")
    axes.plot([-limit, limit], [limit, -limit], color=ORANGE, linewidth=1, label="only order matters")
    axes.axhline(0, color=GREY, linewidth=0.6)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.scatter(first, second, s=9, color=BLUE, alpha=0.5, linewidths=0)
    axes.set(
        xlim=(-limit, limit),
        ylim=(-limit, limit),
        xlabel="log-odds for a task shown first (logits)",
        ylabel="log-odds for the same task shown second (logits)",
        title=f"Both orders of {len(content)} pairs",
    )
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


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
    for place, (colour, (position, part)) in enumerate(zip(_CYCLE, residual.groupby("position", sort=False), strict=False)):
        part = part.sort_values("layer")
        part = part.assign(layer=part["layer"] + 0.25 * place)  # side by side, so that no interval hides another
        error = [part["r2"] - part["r2_low"], part["r2_high"] - part["r2"]]
        axes.errorbar(part["layer"], part["r2"], error, color=colour, marker="o", markersize=4, capsize=2, label=str(position))
    if "shuffled_r2_95" in residual:
        null = residual.groupby("layer")["shuffled_r2_95"].max()
        axes.fill_between(
            null.index, null, axes.get_ylim()[0], color=GREY, alpha=0.18, label="shuffled labels, 95 %", linewidth=0
        )
    styles = iter(("--", ":", "-.", (0, (1, 4))))
    for _, row in table[table["features"] != RESIDUAL].iterrows():
        axes.axhline(
            row["r2"], color="black", linewidth=1, linestyle=next(styles), label=f"{row['features']} ({row['r2']:.2f})"
        )
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


def dose_figure(response: DoseResponse, layer: int, mode: str) -> Figure:
    """Shift by dose, and for choices the probability of the task pushed up: tested directions over the random ones."""
    curve = response.curve[(response.curve["layer"] == layer) & (response.curve["mode"] == mode)]
    is_choice = bool(curve["probability"].notna().any())
    quantities = ["shift", "probability"] if is_choice else ["shift"]
    figure = Figure(figsize=(4.8 * len(quantities) + (0 if is_choice else 1.2), 4.2), layout="constrained")
    panels = [
        (_plain_style(figure.add_subplot(1, len(quantities), place)), quantity)
        for place, quantity in enumerate(quantities, start=1)
    ]
    axes = panels[0][0]
    tested, random = curve[~curve["is_random"]], curve[curve["is_random"]]
    for panel, quantity in panels:
        band = random.groupby("dose")[quantity].agg(["min", "max"])
        label = f"{random['direction'].nunique()} random directions, all"
        panel.fill_between(band.index, band["min"], band["max"], color=GREY, alpha=0.25, linewidth=0, label=label)
        for _, part in random.groupby("direction"):
            panel.plot(part["dose"], part[quantity], color=GREY, linewidth=0.5, alpha=0.6)
        for colour, (name, part) in zip(_CYCLE, tested.groupby("direction", sort=False), strict=False):
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
        panel.set_xlabel("dose (mean residual norms)")
    moved = "rating (scale lengths)" if mode == "rating" else "choice of the task pushed up (logits)"
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set_ylabel(f"shift of the {moved}")
    if is_choice:
        panels[1][0].axhline(0.5, color="black", linewidth=0.6)
        panels[1][0].set_ylabel("P(the task pushed up is chosen)")
    unit_name = "tasks" if mode == "rating" else "pairs, both orders"
    heading = f"Steering {mode.replace('_', ' ')} at {layer_name(layer)}"
    figure.suptitle(
        f"{heading} (n={int(tested['n'].max())} {unit_name}; lines: 95 % intervals; red ring: off format)", fontsize=10
    )
    axes.legend(fontsize=8, frameon=False)
    return figure


def heatmap(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    label: str,
    *,
    digits: int = 2,
) -> Figure:
    """A matrix of correlations or signed effects as colours, symmetric about zero, each cell with its number."""
    n_rows, n_columns = values.shape
    longest = max(map(len, rows))
    figure = Figure(figsize=(1.8 + 0.075 * longest + 0.52 * n_columns, 1.6 + 0.36 * n_rows), layout="constrained")
    axes = figure.add_subplot()
    limit = float(np.nanmax(np.abs(values))) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for row, column in np.argwhere(np.isfinite(values)):
        dark = abs(values[row, column]) > 0.6 * limit
        text = f"{values[row, column].round(digits) + 0.0:.{digits}f}".replace("0.", ".")
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    upright = max(map(len, columns)) <= 3
    axes.set_xticks(
        range(n_columns), list(columns), rotation=0 if upright else 60, ha="center" if upright else "right", fontsize=7
    )
    axes.set_yticks(range(n_rows), list(rows), fontsize=7)
    axes.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axes, label=label, shrink=0.8)
    return figure


def forest(names: Sequence[str], estimates: Float[np.ndarray, "names 3"], label: str, title: str, null: float = 0.0) -> Figure:
    """Estimates with their intervals, one row a name; orange where the interval leaves out the null."""
    figure, axes = new_axes(7.0, 0.32 * len(names) + 1.5)
    for row, (value, low, high) in enumerate(estimates):
        colour = ORANGE if low > null or high < null else BLUE
        axes.hlines(row, low, high, color=colour, linewidth=1.8)
        axes.scatter(value, row, color=colour, s=24, zorder=3)
    axes.axvline(null, color=GREY, linewidth=0.9)
    axes.set(xlabel=f"{label}\n(orange: the interval leaves out {null:g})", title=title)
    axes.set_yticks(range(len(names)), list(names), fontsize=8)
    return figure
