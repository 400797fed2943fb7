"""active_learning: utilities of many tasks from few comparisons, asked batch by batch until the ranking is stable."""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import LeastSquares, choice, hold_out_accuracy, position_bias, regular_pairs
from elicit.active import Learned, Stop, learn
from elicit.adaptive import Brackets, Design, DOptimal, InformationGain, PercentileRule, RandomMatching
from elicit.designs import Pair
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, hold_out_finding, null_note, plain, position_finding
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate, write_labels

DESIGNS: Mapping[str, Design] = {
    "information_gain": InformationGain(),
    "d_optimal": DOptimal(),
    "percentile": PercentileRule(),
    "brackets": Brackets(),
    "random": RandomMatching(),
}


class ActiveLearningSettings(Settings):
    """Ask batches of pairs, exactly and in both orders, and choose each batch by the answers before it."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 6, "out": Path("runs/active_learning_quick")}

    out: Path = Field(
        default=Path("runs/active_learning"), description="Run directory. The same one goes on after the last batch asked."
    )
    per_origin: int = Field(default=20, ge=1, description="Tasks sampled from each origin.")
    wording: str = Field(default="would_rather", description="Template of the choices.")
    design: Literal["information_gain", "d_optimal", "percentile", "brackets", "random"] = Field(
        default="d_optimal",
        description="Rule for the next pairs. information_gain ranks strong preferences a little sooner, and states too narrow "
        "intervals where they are weak.",
    )
    batch: int | None = Field(default=None, ge=1, description="Pairs a batch; by default as many as there are tasks.")
    rank_correlation: float | None = Field(
        default=0.99, gt=0, le=1, description="Stop when two successive fits rank the tasks so much alike (Spearman)."
    )
    target_se: float | None = Field(default=None, gt=0, description="Stop at this mean standard error of utilities, in logits.")
    budget: int | None = Field(default=None, ge=1, description="Stop when so many pairs were asked.")
    hold_out: float = Field(default=0.1, gt=0, lt=1, description="Share of pairs drawn at random and never fitted.")
    top: int = Field(default=10, ge=1, description="Tasks listed at the top and at the bottom.")


SETTINGS = ActiveLearningSettings


def run(settings: ActiveLearningSettings) -> Result:
    """Run the experiment; batches asked before in the same directory are not asked again."""
    started = time.monotonic()
    template("choice", settings.wording)  # a wrong name is an error before the model is loaded
    tasks = settings.load_tasks()
    regular_pairs([task.id for task in tasks], 2)  # too few tasks likewise
    setup = Setup.of(settings, tasks)
    ids = [task.id for task in tasks]
    found = _learned(setup, ids, settings)
    utilities = LeastSquares(seed=settings.seed).fit(found.comparisons, ids)
    labels = utilities.labels()
    listed = _best_first(labels, setup)
    origins = origin_table(found, utilities.draws, utilities.task_ids, setup.origins)
    top, bottom = listed.head(settings.top), listed.tail(settings.top)[::-1]
    tables = {
        "comparisons": found.comparisons,
        "held_out": found.held_out,
        "history": found.history,
        "trajectory": pd.DataFrame(found.trajectory, columns=ids).assign(batch=found.history["batch"]),
        "utilities": listed,
        "origins": origins,
        "top": top,
        "bottom": bottom,
    }
    for name, table in tables.items():
        setup.run.save_table(name, table)
    write_labels(labels, setup.run.path / "labels.parquet")
    held_out = hold_out_accuracy(utilities, found.held_out, seed=settings.seed)
    bias = position_bias(found.comparisons)
    refused = refusals(found.comparisons, labels)
    shown = ["task_id", "origin", "value", "low", "high", "text"]
    return publish(
        setup.run,
        Source.of(setup, choice.questions(setup.tasks, [(ids[0], ids[1])], wording=settings.wording)[0]),
        experiment="active_learning",
        findings=[
            _stop_finding(found, settings),
            hold_out_finding(held_out),
            _origin_finding(origins),
            _refusal_finding(refused, found.comparisons),
            position_finding(bias),
            _extremes_finding(top, bottom),
        ],
        figures={
            "active_history": history_figure(found.history),
            "active_origins": origins_figure(origins),
            "hold_out": held_out.plot(),
            "position": bias.plot(),
        },
        tables=[
            Table("Batches", "Hold-out accuracy is on pairs that were never fitted.", found.history),
            Table("Origins", "Mean utility and its spread over tasks, with the interval of the mean.", origins),
            Table("Top", "The tasks preferred most.", top[shown]),
            Table("Bottom", "The tasks preferred least.", bottom[shown]),
        ],
        methods=_methods(settings, len(ids)),
        summary={
            "reason": found.reason,
            "fit": {name: value for name, value in utilities.report.to_dict().items() if name != "per_task"},
            "history": found.history.to_dict("records"),
            "hold_out": held_out,
            "position_bias": bias,
            "origins": origins.to_dict("records"),
            "refusal_correlation": refused,
        },
        seconds=time.monotonic() - started,
    )


def _learned(setup: Setup, ids: Sequence[str], settings: ActiveLearningSettings) -> Learned:
    def ask(pairs: Sequence[Pair]) -> pd.DataFrame:
        asked = choice.questions(setup.tasks, pairs, wording=settings.wording)
        return choice.comparisons(asked, setup.ask(asked, "choices"))

    return learn(
        ask,
        ids,
        design=DESIGNS[settings.design],
        batch=settings.batch,
        stop=Stop(settings.rank_correlation, settings.target_se, settings.budget),
        hold_out=settings.hold_out,
        seed=settings.seed,
    )


def _best_first(labels: pd.DataFrame, setup: Setup) -> pd.DataFrame:
    """The labels with origin and text of every task, what is preferred most first."""
    texts = {task.id: task.text for task in setup.tasks}
    listed = labels.assign(origin=labels["task_id"].map(setup.origins), text=labels["task_id"].map(texts))
    return listed.sort_values("value", ascending=False, ignore_index=True)


def origin_table(found: Learned, draws: np.ndarray, task_ids: Sequence[str], origins: Mapping[str, str]) -> pd.DataFrame:
    """Mean utility of every origin with its interval, its spread over tasks, and the mean standard error of a task.

    The interval of the mean is over measurement alone: it is of these tasks, and not of all that the origin might have.
    """
    names = np.array([origins[task] for task in task_ids])
    values, se = found.utilities.values, found.utilities.labels()["se"].to_numpy()
    rows = []
    for origin in sorted(set(names)):
        which = names == origin
        mean = Estimate.from_draws(float(values[which].mean()), draws[:, which].mean(axis=1), int(which.sum()))
        rows.append(
            {"origin": origin, "tasks": int(which.sum()), "mean": mean.value, "low": mean.low, "high": mean.high}
            | {"sigma": float(values[which].std(ddof=1)) if which.sum() > 1 else np.nan, "mean_se": float(se[which].mean())}
        )
    return pd.DataFrame(rows).sort_values("mean", ascending=False, ignore_index=True)


def refusals(comparisons: pd.DataFrame, labels: pd.DataFrame) -> Estimate | None:
    """Correlation over tasks of the utility with the probability of refusing a choice that has the task in it.

    None where the probability hardly varies.
    """
    sides = [comparisons[[end, "refusal"]].set_axis(["task_id", "refusal"], axis=1) for end in ("first", "second")]
    mean = pd.concat(sides).groupby("task_id")["refusal"].mean()
    both = labels.assign(refusal=labels["task_id"].map(mean)).dropna(subset=["refusal", "value"])
    if len(both) < 4 or both["refusal"].std() < 1e-9:
        return None
    x, y = both["value"].rank().to_numpy(), both["refusal"].rank().to_numpy()
    rows = np.random.default_rng(0).integers(len(both), size=(1000, len(both)))
    draws = [np.corrcoef(x[row], y[row])[0, 1] for row in rows]
    return Estimate.of_correlation(float(np.corrcoef(x, y)[0, 1]), draws, len(both))


def _methods(settings: ActiveLearningSettings, n: int) -> str:
    return (
        f"{n} tasks were compared in batches of {settings.batch or n} pairs, each pair in both orders with exact probabilities "
        f"(template {settings.wording}): first a random circle through all of them, then pairs by the rule {settings.design}. "
        f"Beside them {100 * settings.hold_out:.0f} % of all pairs were drawn at random and never fitted. Utilities minimise "
        "squared error on order-averaged log-odds; intervals are residual-based, and take the pairs as given although they "
        "were chosen by earlier answers."
    )


def _stop_finding(found: Learned, settings: ActiveLearningSettings) -> Finding:
    last, n = found.history.iloc[-1], found.trajectory.shape[1]
    share = last["pairs"] / (n * (n - 1) / 2)
    rows = tuple(
        f"{int(row['batch']):5d} {int(row['pairs']):6d} {_number(row['rank_correlation'], 3):>9s} "
        f"{_number(row['mean_se'], 3):>9s} {_number(100 * row.get('accuracy', np.nan), 0):>9s} %"
        for _, row in found.history.iterrows()
    )
    return Finding(
        "Stopped",
        f"After {int(last['batch'])} batches and {int(last['pairs'])} pairs of {n} tasks ({share:.0%} of all), "
        f"because {found.reason}. Utilities have a standard deviation of {last['sd']:.2f} logits and a mean "
        f"standard error of {last['mean_se']:.2f}.",
        "active_history",
        ("batch  pairs  rank r    mean se   hold-out", *rows),
    )


def _number(value: float, digits: int) -> str:
    return "-" if np.isnan(value) else f"{value:.{digits}f}"


def _origin_finding(origins: pd.DataFrame) -> Finding:
    said = ", ".join(
        f"{row.origin} {row.mean:+.2f} [{row.low:+.2f}, {row.high:+.2f}] (n={row.tasks})" for row in origins.itertuples()
    )
    return Finding("Origins", f"Mean utility by origin, in logits: {said}.", "active_origins")


def _refusal_finding(refused: Estimate | None, comparisons: pd.DataFrame) -> Finding:
    if refused is None:
        return Finding("Refusals", "The probability of refusing a choice does not vary over tasks, so nothing goes with it.")
    mass = 100 * float(comparisons["refusal"].mean())
    counted = int((comparisons["outcome"] == "refused").sum())
    sentence = (
        f"{counted} of {len(comparisons)} choices were refused (mean probability of opening with a refusal {mass:.2g} %). Over "
        f"{refused.n} tasks that probability goes with the utility at a rank correlation of {plain(refused)}."
    )
    return Finding("Refusals", sentence + null_note(refused, "relation"))


def _extremes_finding(top: pd.DataFrame, bottom: pd.DataFrame) -> Finding:
    def line(row: pd.Series) -> str:
        text = " ".join(str(row["text"]).split())
        text = text if len(text) <= 50 else f"{text[:47]}..."
        return f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]  {row['task_id']:16s} {text}"

    rows = [
        *(line(row) for _, row in top.head(3).iterrows()),
        "...",
        *(line(row) for _, row in bottom.head(3)[::-1].iterrows()),
    ]
    apart = float(top["low"].iloc[0] - bottom["high"].iloc[0])
    verdict = "their intervals do not touch" if apart > 0 else "their intervals overlap, so even these two are not told apart"
    return Finding(
        "Top and bottom",
        f"The most and the least preferred task are {top['task_id'].iloc[0]} and {bottom['task_id'].iloc[0]}; {verdict}. The "
        f"{len(top)} at either end are in tables/top and tables/bottom.",
        "",
        tuple(rows),
    )


def history_figure(history: pd.DataFrame) -> Figure:
    """Rank correlation of successive fits, and hold-out accuracy, by pairs asked."""
    figure, (left, right) = plots.new_panels(2, 3.8, share_y=False)
    left.plot(history["pairs"], history["rank_correlation"], "-o", color=plots.BLUE, markersize=4)
    left.set(xlabel="pairs asked", ylabel="rank correlation with the fit before", title="Stability")
    if "accuracy" in history:
        right.fill_between(
            history["pairs"], 100 * history["accuracy_low"], 100 * history["accuracy_high"], color=plots.ORANGE, alpha=0.15
        )
        right.plot(history["pairs"], 100 * history["accuracy"], "-o", color=plots.ORANGE, markersize=4)
    right.axhline(50, color=plots.GREY, linewidth=0.8)
    right.set(xlabel="pairs asked", ylabel="hold-out accuracy (%; band: 95 %)", title="Pairs never fitted")
    return figure


def origins_figure(origins: pd.DataFrame) -> Figure:
    """Mean utility of every origin with its interval, inside its spread over tasks."""
    figure, axes = plots.new_axes(6.4, 0.42 * len(origins) + 1.6)
    rows = np.arange(len(origins))[::-1]
    low, high = origins["mean"] - origins["sigma"], origins["mean"] + origins["sigma"]
    axes.hlines(rows, low, high, color=plots.BLUE, alpha=0.25, linewidth=7)
    axes.hlines(rows, origins["low"], origins["high"], color=plots.BLUE, linewidth=1.8)
    axes.scatter(origins["mean"], rows, color=plots.BLUE, s=24, zorder=3)
    axes.axvline(0, color=plots.GREY, linewidth=0.8)
    axes.set(
        yticks=rows,
        yticklabels=[f"{row.origin} ({row.tasks})" for row in origins.itertuples()],
        xlabel="mean utility (logits; line: 95 %, band: spread over tasks)",
        title="Utility by origin",
    )
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["active_learning", *sys.argv[1:]]))
