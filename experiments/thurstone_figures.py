"""Figures of the penalties on sigmas: held-out loss, and the largest sigma, by lambda."""

import itertools

import pandas as pd
from matplotlib.figure import Figure

from experiments import figures as plots
from experiments.thurstone_fits import AS_SHOWN, BRADLEY_TERRY, DENSE, EXACT, LARGEST_SIGMA, SIGMAS, SPARSE, THURSTONE

_LINEAR = 50.0
"""Where losses differ by more thousandths of a nat, a panel's axis turns logarithmic beyond 10."""


def loss_figure(curve: pd.DataFrame, scored: str, n: int) -> Figure:
    """Log loss on held-out pairs above that of Bradley-Terry, by lambda; one panel a design and kind of answers."""
    part = curve[curve["scored"] == scored]
    panels = list(part.groupby(["answers", "design"], sort=False))
    figure, axes = plots.new_panels(len(panels), 4.0, share_y=False)
    for panel, ((answers, design), rows) in zip(axes, panels, strict=True):
        for position, colour in ((True, plots.BLUE), (False, plots.ORANGE)):
            here = rows[rows["position"] == position]
            told = "with" if position else "without"
            sigmas = here[here["model"] == SIGMAS].sort_values("penalty")
            panel.fill_between(
                sigmas["penalty"], sigmas["above_low"], sigmas["above_high"], color=colour, alpha=0.18, linewidth=0
            )
            panel.plot(
                sigmas["penalty"], sigmas["above"], "-o", color=colour, markersize=3.5, label=f"sigmas, {told} position term"
            )
            for model, style in ((BRADLEY_TERRY, "--"), (THURSTONE, ":")):
                level = float(here.loc[here["model"] == model, "above"].iloc[0])
                label = f"{'Bradley-Terry' if model == BRADLEY_TERRY else 'Thurstone V'}, {told}"
                panel.axhline(level, color=colour, linestyle=style, linewidth=1.3, label=label)
        panel.set_xscale("log")
        uneven = bool(rows["above"].abs().max() > _LINEAR)
        if uneven:
            panel.set_yscale("symlog", linthresh=10)
        panel.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
        panel.set(xlabel="lambda", title=f"{answers}, {design}{' (log axis)' if uneven else ''}")
    axes[0].set_ylabel("log loss above Bradley-Terry's\n(thousandths of a nat)")
    figure.suptitle(f"{n} held-out pairs, {scored} (band: 95 %, bootstrap over pairs; below 0: better)", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def sigma_figure(curve: pd.DataFrame) -> Figure:
    """Largest sigma by lambda."""
    part = curve[(curve["model"] == SIGMAS) & (curve["scored"] == AS_SHOWN) & curve["position"]]
    figure, axes = plots.new_axes(6.4, 3.8)
    colours = {DENSE: plots.BLUE, SPARSE: plots.ORANGE}
    for answers, design in itertools.product(part["answers"].unique(), (DENSE, SPARSE)):
        rows = part[(part["answers"] == answers) & (part["design"] == design)].sort_values("penalty")
        line = "-o" if answers == EXACT else "--s"
        axes.fill_between(
            rows["penalty"], rows["sigma_low"], rows["sigma_high"], color=colours[design], alpha=0.15, linewidth=0
        )
        axes.plot(
            rows["penalty"], rows["largest_sigma"], line, color=colours[design], markersize=4, label=f"{design}, {answers}"
        )
    axes.axhline(LARGEST_SIGMA, color=plots.GREY, linewidth=1, linestyle=":", label=f"bound ({LARGEST_SIGMA:.2f})")
    axes.axhline(1, color=plots.GREEN, linewidth=1, label="no spread of its own (1)")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.yaxis.set_minor_formatter(lambda _value, _place: "")
    axes.set(
        yticks=[1, 2, 4, LARGEST_SIGMA],
        xlabel="lambda",
        ylabel="largest sigma (log scale)",
        title="How far a spread runs (band: sets of answers, all)",
    )
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:.3g}")
    axes.legend(fontsize=8, frameon=False)
    return figure
