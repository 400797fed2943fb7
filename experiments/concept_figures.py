"""Figures of a persona x context x dose grid: slopes cell by cell, doses and responses, and effects within tasks."""

import numpy as np
from matplotlib.figure import Figure

from experiments import figures as plots
from experiments.concept_findings import KINDS
from experiments.concept_grid import MODE, ConceptGrid, mean_of_known
from experiments.crossed import effects_figure

_DOSE = "dose (mean residual norms)"
_GREYS = {"random": plots.GREY, "flipped": "#c9ccd1"}


def concept_figures(grid: ConceptGrid, layer: int) -> dict[str, Figure]:
    """All of them, by name."""
    return {
        "concept_slopes": slopes_figure(grid),
        "concept_doses": doses_figure(grid),
        "concept_effects": effects_figure(
            {"slope, all cells": grid.slope()} | grid.effects(),
            "scale lengths (slopes: scale lengths per dose)",
            "System prompts and push, within tasks",
        ),
        "concept_coherence": plots.coherence_figure(grid.response, layer, MODE, _DOSE),
    }


def slopes_figure(grid: ConceptGrid) -> Figure:
    """Slope of every cell with its interval."""
    table = grid.cell_slopes().set_index(["done_under", "rated_under"])
    n = len(grid.prompts)
    values = table["slope"].to_numpy().reshape(n, n)
    longest = max(map(len, grid.prompts))
    figure = Figure(figsize=(2.6 + 0.07 * longest + 1.25 * n, 1.6 + 0.75 * n), layout="constrained")
    axes = figure.add_subplot()
    limit = float(np.nanmax(np.abs(values), initial=0)) or 1.0
    image = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
    for (done, rated), row in table.iterrows():  # pyright: ignore[reportGeneralTypeIssues]
        text = f"{row['slope']:+.3f}\n[{row['low']:+.3f}, {row['high']:+.3f}]"
        colour = "white" if abs(row["slope"]) > 0.6 * limit else "black"
        place = grid.prompts.index(rated), grid.prompts.index(done)
        axes.text(*place, text, ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(n), grid.prompts, fontsize=8)
    axes.set_yticks(range(n), grid.prompts, fontsize=8)
    axes.set(xlabel="rated under (context)", ylabel="done under (persona)")
    axes.set_title(f"Slope of the rating, 95 % intervals (n={int(table['n'].max())} tasks)", fontsize=10)
    figure.colorbar(image, ax=axes, label="scale lengths per dose", shrink=0.9)
    return figure


def doses_figure(grid: ConceptGrid) -> Figure:
    """Shift by dose: a panel a context, a line a persona, and the range of all controls at the doses that they have."""
    figure, panels = plots.new_panels(len(grid.prompts), 4.0)
    doses = sorted(grid.units.loc[grid.units["control"] == "", "dose"].unique())
    step = float(np.diff(doses).min())
    apart = 0.06 * step
    for place, (axes, rated) in enumerate(zip(panels, grid.prompts, strict=True)):
        _draw_controls(axes, grid, place, 0.4 * step)
        for number, (colour, done) in enumerate(zip(plots.CYCLE, grid.prompts, strict=False)):
            means = [mean_of_known(grid.shifts(dose)[:, number, place]) for dose in doses]
            at = np.array(doses) + apart * (number - (len(grid.prompts) - 1) / 2)
            error = [[each.value - each.low for each in means], [each.high - each.value for each in means]]
            axes.errorbar(
                at,
                [each.value for each in means],
                error,
                color=colour,
                marker="o",
                markersize=4,
                capsize=2,
                label=f"done under {done}",
            )
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xlabel=_DOSE, title=f"rated under {rated}")
    panels[0].set_ylabel("shift of the rating (scale lengths)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, frameon=False, loc="outside lower center", ncols=len(handles))
    n = grid.slope().n
    figure.suptitle(
        f"Ratings under a push from {grid.concept[1]} to {grid.concept[0]} (n={n} tasks; 95 % intervals)", fontsize=10
    )
    return figure


def _draw_controls(axes: plots.Axes, grid: ConceptGrid, place: int, width: float) -> None:
    for kind, side in zip(KINDS, (-0.5, 0.5), strict=True):
        for number, dose in enumerate((-grid.largest_dose, grid.largest_dose)):
            shifts = grid.control_shifts(kind, dose)[:, place]
            known = shifts[np.isfinite(shifts)]
            if not len(known):
                continue
            label = None if number else f"{len(known)} {kind} controls, all"
            least, most = known.min(), known.max()
            axes.bar(
                dose + side * width, most - least, width, bottom=least, color=_GREYS[kind], alpha=0.55, linewidth=0, label=label
            )
