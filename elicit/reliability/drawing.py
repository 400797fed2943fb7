"""How results look, in a table and on paper. matplotlib is imported when something is drawn, not before."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PURPLE, GREY = "#1f6fb2", "#d9822b", "#2e8b57", "#7b5ea7", "#8a8f98"
CYCLE = (BLUE, ORANGE, GREEN, PURPLE, "#c0504d", "#4aa6a6", "#8c6d46", "#b0638f")
"""Colours of groups, in order."""


def estimate_row(estimate: Estimate) -> dict[str, float]:
    """What a table says of one estimate: value, low, high, se, n and the smallest effect that could have been seen."""
    return estimate.to_dict() | {"smallest_effect": estimate.smallest_effect}


def estimate_table(estimates: Mapping[str, Estimate], name: str = "statistic") -> pd.DataFrame:
    """One row an estimate, indexed by what it is of."""
    index = pd.Index(list(estimates), name=name)
    return pd.DataFrame([estimate_row(estimate) for estimate in estimates.values()], index=index)


def new_axes(width: float = 6.4, height: float = 4.0) -> "tuple[Figure, Axes]":
    """Return an empty figure in the style of all others, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, plain_style(figure.add_subplot())


def new_panels(n: int, height: float, *, share_y: bool = True) -> "tuple[Figure, list[Axes]]":
    """Return an empty figure of several panels side by side, which may share the vertical axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.0 + 2.6 * n, height), layout="constrained")
    panels = figure.subplots(1, n, sharey=share_y, squeeze=False)[0]
    return figure, [plain_style(axes) for axes in panels]


def plain_style(axes: "Axes") -> "Axes":
    """Take away what says nothing, and lay a faint grid behind the rest."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    return axes


def heatmap(
    values: Float[np.ndarray, "rows columns"],
    rows: Sequence[str],
    columns: Sequence[str],
    title: str,
    label: str,
    *,
    digits: int = 2,
) -> "Figure":
    """A matrix of correlations or signed effects as colours, symmetric about zero, each cell with its number."""
    from matplotlib.figure import Figure

    n_rows, n_columns = values.shape
    longest = max(map(len, rows))
    width = max(0.52 * n_columns, 0.08 * len(title))  # a title wider than the cells would be cut off
    height = max(1.6 + 0.36 * n_rows, 0.09 * len(label) + 0.05 * max(map(len, columns)))  # as much for its own label
    figure = Figure(figsize=(1.8 + 0.075 * longest + width, height), layout="constrained")
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


def forest(
    names: Sequence[str], estimates: Float[np.ndarray, "names 3"], label: str, title: str, null: float = 0.0
) -> "Figure":
    """Estimates with their intervals, one row a name; orange where the interval leaves out the null."""
    longest = max(map(len, names))
    figure, axes = new_axes(max(7.0, 4.5 + 0.065 * longest), 0.32 * len(names) + 1.5)
    for row, (value, low, high) in enumerate(estimates):
        colour = ORANGE if low > null or high < null else BLUE
        axes.hlines(row, low, high, color=colour, linewidth=1.8)
        axes.scatter(value, row, color=colour, s=24, zorder=3)
    axes.axvline(null, color=GREY, linewidth=0.9)
    axes.set(xlabel=f"{label}\n(orange: the interval leaves out {null:g})", title=title)
    axes.set_yticks(range(len(names)), list(names), fontsize=8)
    return figure
