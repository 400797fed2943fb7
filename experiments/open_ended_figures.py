"""Figures of open replies under steering: coefficients of raw vectors beside doses, one colour a selector."""

from collections.abc import Iterator

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments import figures as plots
from experiments.dose_response import is_tested
from experiments.findings import spaced
from experiments.open_replies import LEAST_TASKS, OpenReplies

_COEFFICIENT = "old scale: coefficient\n(raw difference vectors)"
_DOSE = "dose\n(mean residual norms)"


def sentiment_figure(replies: OpenReplies) -> Figure:
    """Shift of sentiment by coefficient, beside that by dose, with random directions at the largest dose and its opposite."""
    figure = Figure(figsize=(8.8, 4.1), layout="constrained")
    old, new = (plots.plain_style(axes) for axes in figure.subplots(1, 2, sharey=True))
    ends = replies.ranked.curve
    random = ends[~is_tested(ends) & (ends["dose"] != 0)]
    if len(random):
        span = random.groupby("dose")["shift"].agg(["min", "max"])
        n = random["direction"].nunique()
        new.vlines(
            span.index, span["min"], span["max"], color=plots.GREY, alpha=0.35, linewidth=9, label=f"{n} random directions"
        )
        new.scatter(random["dose"], random["shift"], s=5, color=plots.GREY, zorder=2)
    spread = {"coefficient": 0.04, "dose": 0.008}
    for axes, scale, curve in ((old, "coefficient", replies.coefficients.curve), (new, "dose", replies.doses.curve)):
        for number, (colour, name, part) in enumerate(_lines(curve)):
            # Side by side, so that no interval hides another.
            part = part.assign(dose=part["dose"] + spread[scale] * (number - 1))
            known = part["n"] >= LEAST_TASKS
            error = [(part[end] - part["shift"]).abs().where(known) for end in ("shift_low", "shift_high")]
            axes.errorbar(part["dose"], part["shift"], error, color=colour, marker="o", markersize=4, capsize=2, label=name)
            _ring(axes, part, "shift")
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xticks(sorted(curve["dose"].unique()))
        axes.set_xlabel(_COEFFICIENT if scale == "coefficient" else _DOSE)
    old.set_ylabel("shift of sentiment (scale from -1 to 1)")
    new.legend(fontsize=8, frameon=False)
    n = int(replies.doses.curve["n"].max())
    figure.suptitle(
        f"Open replies under steering (n={n} tasks at most; lines: 95 % intervals; red ring: not coherent)", fontsize=10
    )
    return figure


def coherence_figure(replies: OpenReplies) -> Figure:
    """Log-probability to the untouched model, and repetition, by coefficient and by dose."""
    figure = Figure(figsize=(8.8, 6.2), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    quantities = {
        "log_likelihood": "log-probability to the untouched\nmodel (nats per token)",
        "repetition": "share said before\n(runs of three words)",
    }
    ends = replies.ranked.curve
    random = ends[~is_tested(ends) & (ends["dose"] != 0)]
    for row, (quantity, label) in zip(panels, quantities.items(), strict=True):
        for axes, curve in zip(row, (replies.coefficients.curve, replies.doses.curve), strict=True):
            plots.plain_style(axes)
            axes.set_xticks(sorted(curve["dose"].unique()))
            for colour, name, part in _lines(curve):
                axes.plot(part["dose"], part[quantity], color=colour, marker="o", markersize=4, label=name)
                _ring(axes, part, quantity)
        n = random["direction"].nunique()
        row[1].scatter(random["dose"], random[quantity], s=8, color=plots.GREY, zorder=1, label=f"{n} random directions")
        row[0].set_ylabel(label)
    panels[1][0].set_xlabel(_COEFFICIENT)
    panels[1][1].set_xlabel(_DOSE)
    panels[0][1].legend(fontsize=8, frameon=False)
    tested = replies.replies[~replies.replies["is_random"]]
    n = len(tested[["task_id", "draw"]].drop_duplicates())
    figure.suptitle(f"Do the replies still make sense? (n={n} replies a point; red ring: not coherent)", fontsize=10)
    return figure


def _lines(curve: pd.DataFrame) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Colour, name and rows of each direction under test."""
    tested = curve[is_tested(curve)].sort_values("dose")
    for colour, name in zip(plots.CYCLE, dict.fromkeys(curve.loc[is_tested(curve), "direction"]), strict=False):
        yield colour, spaced(name), tested[tested["direction"] == name]


def _ring(axes: Axes, part: pd.DataFrame, quantity: str) -> None:
    wild = part[~part["coherent"]]
    axes.scatter(wild["dose"], wild[quantity], s=60, facecolors="none", edgecolors="red", zorder=3)
