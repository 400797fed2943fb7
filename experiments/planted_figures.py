"""Figures of a model whose preferences were planted: choices by what was planted, and what a push does in it and without it."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from elicit.pairs import order_averages
from experiments import figures as plots
from experiments.findings import spaced
from experiments.organisms import Organism
from store import layer_name


def planting_figure(comparisons: Mapping[str, pd.DataFrame], truth: pd.Series, organism: Organism) -> Figure:
    """Order-averaged log-odds by planted difference, one panel a condition; pairs of unseen topics stand out."""
    figure, panels = plots.new_panels(len(comparisons), 3.6)
    unseen = set(organism.unseen)
    for axes, (condition, table) in zip(panels, comparisons.items(), strict=True):
        pairs = order_averages(table)
        planted = truth[pairs["task_1"]].to_numpy() - truth[pairs["task_2"]].to_numpy()
        new = (pairs["task_1"].isin(unseen) & pairs["task_2"].isin(unseen)).to_numpy()
        jitter = 0.06 * np.random.default_rng(0).standard_normal(len(pairs))
        for part, colour, label in ((~new, plots.GREY, "others"), (new, plots.ORANGE, "unseen topics")):
            axes.plot(planted[part] + jitter[part], pairs["content"][part], ".", color=colour, markersize=3, label=label)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set(xlabel="planted difference (logits)")
        axes.set_title(f"{condition} (n={len(pairs)} pairs)", fontsize=9)
    panels[0].set_ylabel("log-odds for the task, both orders")
    panels[-1].legend(fontsize=8, frameon=False)
    return figure


def gaps_figure(gaps: pd.DataFrame, name: str) -> Figure:
    """Slope in the organism by slope in the untouched model, every direction a point."""
    figure, axes = plots.new_axes(5.4, 4.6)
    random = gaps["is_random"]
    axes.plot(gaps.loc[random, "untouched"], gaps.loc[random, "organism"], "o", color=plots.GREY, label="random")
    for (_, row), colour in zip(gaps[~random].iterrows(), plots.CYCLE, strict=False):
        label = f"{spaced(row['direction'])}, {layer_name(row['layer'])}"
        axes.plot(row["untouched"], row["organism"], "o", color=colour, markersize=8, label=label)
    axes.axline((0, 0), slope=1, color="black", linewidth=0.6)
    axes.set(
        xlabel="slope in the untouched model (logits per dose)",
        ylabel=f"slope in {name} (logits per dose)",
    )
    axes.set_title(f"What a push does to choices (n={int(gaps['n'].min())} pairs; line: the same in both)", fontsize=9)
    axes.legend(fontsize=8, frameon=False)
    return figure
