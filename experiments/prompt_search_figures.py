"""Figures of a search for prompts: the two scores with the fronts of every arm, and hypervolume against budget."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from elicit.pareto import front
from elicit.prompt_search import Line, shared_budget
from experiments import figures as plots
from experiments.prompt_scores import SIGN, Goal, Yardstick

COLOURS: Mapping[str, str] = {"search": plots.BLUE, "random": plots.ORANGE, "walk": plots.GREEN}


def front_figure(candidates: pd.DataFrame, yardstick: Yardstick, goal: Goal) -> Figure:
    """Preference against refusal of every scored prompt, with the front of every arm."""
    figure, axes = plots.new_axes(7.4, 4.8)
    scored = candidates[candidates["dropped"] == ""]
    for value, line in zip(yardstick.centre, (axes.axvline, axes.axhline), strict=True):
        line(value, color=plots.GREY, linewidth=0.9, linestyle="--")
    for arm, part in scored[scored["generation"] > 0].groupby("arm", sort=False):
        colour = COLOURS[str(arm)]
        axes.scatter(part["preference"], part["refusal"], s=14, color=colour, alpha=0.45, linewidths=0)
    for arm, part in scored.groupby("arm", sort=False):
        points = part[["x", "y"]].to_numpy(dtype=float)
        best = part[front(points) & (points > 0).all(axis=1)].sort_values("preference").drop_duplicates("text")
        axes.plot(
            best["preference"],
            best["refusal"],
            color=COLOURS[str(arm)],
            marker="o",
            markersize=5,
            linewidth=1.6,
            drawstyle="steps-pre" if SIGN[goal] > 0 else "steps-post",
            label=f"front of {arm} ({len(best)})",
        )
    starts = scored[scored["generation"] == 0].drop_duplicates("id")
    axes.scatter(starts["preference"], starts["refusal"], s=26, color=plots.GREY, zorder=3, label=f"starting ({len(starts)})")
    wanted = "upper right" if SIGN[goal] > 0 else "lower left"
    axes.set(
        xlabel="preference, above the average starting prompt (logits)",
        ylabel="refusal: log-odds of opening by declining",
        title=f"Scored prompts (dashed: average start; wanted: {wanted})",
    )
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def budget_figure(lines: Sequence[Line]) -> Figure:
    """Mean hypervolume over replicates against the number of scored prompts, with Student's 95 % band."""
    figure, axes = plots.new_axes(6.8, 4.2)
    for arm in dict.fromkeys(line.name for line in lines):
        own = [line for line in lines if line.name == arm]
        grown = np.array([line.growth[: shared_budget(lines)] for line in own])
        mean, n = grown.mean(axis=0), len(grown)
        margin = stats.t.ppf(0.975, n - 1) * grown.std(axis=0, ddof=1) / np.sqrt(n)
        at = np.arange(1, grown.shape[1] + 1)
        axes.fill_between(at, np.maximum(0, mean - margin), mean + margin, color=COLOURS[arm], alpha=0.15, linewidth=0)
        axes.plot(at, mean, color=COLOURS[arm], linewidth=1.8, label=f"{arm} (n={n} replicates)")
    axes.axvline(len(lines[0].starts), color=plots.GREY, linewidth=0.9, linestyle="--")
    axes.set(
        xlabel="prompts scored (left of the dashed line: the starting prompts)",
        ylabel="hypervolume (squared standard deviations)",
        title="What a budget buys (band: 95 %, over replicates)",
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure
