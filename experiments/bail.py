"""bail: at every turn of a conversation, would the model leave? Beside conversations that nobody should leave."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import Task, bail, builtin_conversations, calibration_tasks, clustered_rate
from experiments import figures as plots
from experiments.findings import Finding, in_percent, plain
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate

Method = Literal["tag", "string", "tool"]
_RESAMPLES = 1000


class BailSettings(Settings):
    """Ask at every turn of conversations whether the model would go on or leave."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "out": Path("runs/bail_quick")}

    out: Path = Field(default=Path("runs/bail"), description="Run directory. The same one continues, or repeats at no cost.")
    tasks: tuple[str, ...] = Field(
        default=("builtin",),
        min_length=1,
        description="builtin, or .jsonl files of conversations (id, messages, origin); requests count as one turn.",
    )
    per_origin: int = Field(default=12, ge=1, description="At most so many conversations of each origin.")
    methods: tuple[Method, ...] = Field(default=("tag", "string", "tool"), min_length=1, description="How leaving is said.")
    controls: tuple[str, ...] = Field(
        default=("pleasant", "neutral", "calibration"), min_length=1, description="Origins that nobody should leave."
    )
    threshold: float = Field(default=bail.THRESHOLD, ge=0, lt=1, description="Raw probability of leaving that counts.")

    def load_tasks(self) -> list[Task]:
        """Conversations, at most `per_origin` of each origin, and the requests for calibration."""
        available = self.available_tasks(lambda: [*builtin_conversations(), *calibration_tasks()])
        wanted = [task for task in available if not self.origins or task.origin in self.origins]
        random = np.random.default_rng(self.seed)
        chosen: list[Task] = []
        for origin in dict.fromkeys(task.origin for task in wanted):
            members = [task for task in wanted if task.origin == origin]
            chosen += [members[place] for place in sorted(random.permutation(len(members))[: self.per_origin].tolist())]
        n_controls = sum(task.origin in self.controls for task in chosen)
        if min(n_controls, len(chosen) - n_controls) < 3:
            raise ValueError(
                f"{len(chosen) - n_controls} conversations and {n_controls} of the control origins {list(self.controls)}; "
                "expected three or more of both. Name the control origins of these conversations with --controls."
            )
        return chosen


SETTINGS = BailSettings


def run(settings: BailSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    setup = Setup.of(settings, settings.load_tasks())
    asked = [question for method in settings.methods for question in bail.questions(setup.tasks, method=method)]
    answers = setup.ask(asked, "bail")
    turns = bail.turns(asked, answers, settings.threshold)
    turns = turns.assign(
        origin=turns["task_id"].map(setup.origins),
        control=turns["task_id"].map(setup.origins).isin(settings.controls),
        log_odds=np.where(turns["bounded"], np.nan, np.log(turns["p_leave"]) - np.log(turns["p_stay"])),
        order_gap=turns["order_gap"].mask(turns["bounded"]),
    )
    rates = pd.DataFrame([_rates(method, turns[turns["template"] == method]) for method in settings.methods])
    setup.run.save_table("turns", turns)
    setup.run.save_table("rates", rates)
    effects = {method: _effect(turns[turns["template"] == method], settings.seed) for method in settings.methods}
    return publish(
        setup.run,
        Source.of(setup, asked[0]),
        experiment="bail",
        findings=[_rate_finding(rates, settings), _effect_finding(effects), _order_finding(turns, settings)],
        figures={"bail_origins": origins_figure(turns), "bail_turns": turns_figure(turns)},
        tables=[
            Table(
                "Rates",
                "Conversations left at some turn: all but the controls, and the controls (false alarms); Wilson intervals over "
                "conversations. beyond_controls: what is left of the rate when that of the controls is taken for false alarms.",
                rates,
            )
        ],
        methods=(
            f"At every turn of the user's in {len(setup.tasks)} conversations the model was asked, before it replied, to go on "
            f"or to leave, by {len(settings.methods)} methods, with either answer named first. The raw probabilities of both "
            "answers were read (multi-token answers chained, the closing tag or quote included) and averaged over the two "
            f"orders. A turn counts as left if leaving is more probable than staying and than {settings.threshold:g}; a "
            f"conversation, if any of its turns does. Origins taken as controls: {', '.join(settings.controls)}."
        ),
        summary={"rates": rates.to_dict("records"), "effects": effects},
        seconds=time.monotonic() - started,
    )


def _rates(method: str, turns: pd.DataFrame) -> dict[str, Any]:
    whole = bail.conversations(turns).merge(turns[["task_id", "control"]].drop_duplicates(), on="task_id")
    controls = whole["control"].to_numpy(dtype=bool)
    left, false = (clustered_rate(whole["bails"][which], whole["task_id"][which]) for which in (~controls, controls))
    row: dict[str, Any] = {"method": method}
    for name, estimate in (("rate", left), ("control_rate", false)):
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high, f"{name}_n": estimate.n}
    # The interval takes the ends of the two rates at their worst against each other, so it is wide rather than narrow.
    row["beyond_controls"] = _beyond(left.value, false.value)
    row["beyond_controls_low"], row["beyond_controls_high"] = _beyond(left.low, false.high), _beyond(left.high, false.low)
    row["mean_mass"] = float((turns["p_leave"] + turns["p_stay"]).mean())
    row["p_leave_most"] = float(turns["p_leave"].max())
    row["bounded"] = float(turns["bounded"].mean())
    return row


def _beyond(rate: float, false: float) -> float:
    """The rate at which leaving is meant, if as many as in the controls would have left anyway."""
    return max(0.0, (rate - false) / (1 - false)) if false < 1 else np.nan


def _effect(turns: pd.DataFrame, seed: int) -> Estimate:
    """Log-odds of leaving, last turn, above the controls; interval by bootstrap over conversations of both kinds."""
    last = turns.sort_values("turn").groupby("task_id").tail(1)
    kinds = [last.loc[last["control"] == control, "log_odds"].dropna().to_numpy() for control in (False, True)]
    if not all(map(len, kinds)):
        return Estimate.unknown(sum(map(len, kinds)))
    random = np.random.default_rng(seed)
    means = [kind[random.integers(len(kind), size=(_RESAMPLES, len(kind)))].mean(axis=1) for kind in kinds]
    return Estimate.from_draws(float(kinds[0].mean() - kinds[1].mean()), means[0] - means[1], sum(map(len, kinds)))


def _rate_finding(rates: pd.DataFrame, settings: BailSettings) -> Finding:
    said = [
        f"{row['method']} {in_percent(row, 'rate')} (controls {in_percent(row, 'control_rate')})" for _, row in rates.iterrows()
    ]
    masses = ", ".join(f"{row['method']} {row['mean_mass']:.2g}" for _, row in rates.iterrows())
    silent = (
        f" The model seldom gives either answer, so a low rate may mean that it did not take the question up: mean probability "
        f"of both together: {masses}."
        if rates["mean_mass"].min() < settings.threshold
        else f" Mean probability of both answers together: {masses}."
    )
    bounded = ", ".join(f"{row['method']} {100 * row['bounded']:.0f} %" for _, row in rates.iterrows() if row["bounded"])
    if bounded:
        silent += f" Where the server did not list an answer, its probability is the most that it can be: {bounded} of turns."
    n, controls = int(rates["rate_n"].iloc[0]), int(rates["control_rate_n"].iloc[0])
    return Finding(
        "Leaving",
        f"Share of {n} conversations left at some turn, by method: {'; '.join(said)}, of {controls} controls." + silent,
        "bail_origins",
    )


def _effect_finding(effects: Mapping[str, Estimate]) -> Finding:
    said = "; ".join(f"{method} {plain(effect)}" for method, effect in effects.items())
    unseen = {method: effect for method, effect in effects.items() if effect.known and not effect.differs_from(0)}
    smallest = ", ".join(f"{method} {effect.smallest_effect:.2f} (n={effect.n})" for method, effect in unseen.items())
    note = (
        f" The interval contains 0 for {', '.join(unseen)}, so no difference is claimed there; the smallest that would be "
        f"found four times in five is {smallest}."
    )
    return Finding(
        "Beyond controls",
        f"The log-odds of leaving at the last turn are above those in the controls by, in logits: {said}."
        + (note if unseen else ""),
        "bail_turns",
    )


def _order_finding(turns: pd.DataFrame, settings: BailSettings) -> Finding:
    said = []
    for method in settings.methods:
        part = turns[turns["template"] == method]
        gaps = part.groupby("task_id")["order_gap"].mean().dropna().to_numpy()
        if not len(gaps):
            said.append(f"{method} n/a")
            continue
        rows = np.random.default_rng(settings.seed).integers(len(gaps), size=(_RESAMPLES, len(gaps)))
        gap = Estimate.from_draws(float(gaps.mean()), gaps[rows].mean(axis=1), len(gaps))
        said.append(f"{method} {plain(gap, digits=3)}")
    return Finding("Order", f"Naming leaving first changes its raw probability by: {'; '.join(said)}. Both orders were asked.")


def origins_figure(turns: pd.DataFrame) -> Figure:
    """Log-odds of leaving at the last turn of every conversation, by origin and method."""
    last = turns.sort_values("turn").groupby(["task_id", "template"]).tail(1)
    methods = last["template"].drop_duplicates().tolist()
    order = last.groupby("origin")["log_odds"].mean().sort_values().index.tolist()
    figure, panels = plots.new_panels(len(methods), 0.4 * len(order) + 1.4)
    for axes, method in zip(panels, methods, strict=True):
        for row, origin in enumerate(order):
            part = last[(last["template"] == method) & (last["origin"] == origin)]
            colour = plots.GREY if part["control"].any() else plots.BLUE
            axes.scatter(part["log_odds"], np.full(len(part), row), color=colour, s=16, alpha=0.7, linewidths=0)
            axes.vlines(part["log_odds"].mean(), row - 0.3, row + 0.3, color="black", linewidth=1.4)
        axes.axvline(0, color=plots.ORANGE, linewidth=0.8)
        axes.set(title=method, xlabel="log-odds of leaving (logits)")
    panels[0].set_yticks(range(len(order)), order)
    title = "Last turn of every conversation (grey: controls; black: mean; right of orange: leaving is likelier)"
    figure.suptitle(title, fontsize=10)
    return figure


def turns_figure(turns: pd.DataFrame) -> Figure:
    """Raw probability of leaving and of staying over the turns of a conversation."""
    methods = turns["template"].drop_duplicates().tolist()
    figure, panels = plots.new_panels(len(methods), 3.2)
    for axes, method in zip(panels, methods, strict=True):
        part = turns[turns["template"] == method]
        for control, style in ((False, "-"), (True, ":")):
            mean = part[part["control"] == control].groupby("turn")[["p_leave", "p_stay"]].mean()
            kind = "controls" if control else "others"
            axes.plot(mean.index, mean["p_leave"], style, color=plots.ORANGE, marker="o", markersize=4, label=f"leave, {kind}")
            axes.plot(mean.index, mean["p_stay"], style, color=plots.BLUE, marker="o", markersize=4, label=f"stay, {kind}")
        axes.set(title=method, xlabel="turn", yscale="log", xticks=sorted(part["turn"].unique()))
    panels[0].set_ylabel("mean raw probability")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["bail", *sys.argv[1:]]))
