"""task_consistency: which tasks are answered alike from seed to seed, and whether templates, scales and models agree on it."""

import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from matplotlib.figure import Figure
from pydantic import Field

from elicit import BradleyTerry, Endpoint, LeastSquares, ask, choice, rating, regular_pairs
from elicit.consistency import LEAST_COVERAGE
from elicit.designs import Pair
from elicit.reliability import TaskConsistency, consistency_agreement, task_consistency
from elicit.reliability.agreement import correlation
from elicit.reliability.drawing import CYCLE
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, null_note, plain, unsigned
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from interp import LocalModel
from store import Answer, Estimate, Outcome, Question
from store.estimates import POWER_FACTOR
from store.provenance import ModelIdentity

CHOICE, RATING = "choice", "rating"
_RESAMPLES = 1000
_LEAST_TASKS = 8


class TaskConsistencySettings(Settings):
    """Answer choices and self-reports with several seeds, under several templates, scales and models."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 5, "out": Path("runs/task_consistency_quick")}

    out: Path = Field(
        default=Path("runs/task_consistency"), description="Run directory. The same one continues, or repeats at no cost."
    )
    models: tuple[str, ...] = Field(
        default=(),
        description="Models to compare: embedded, folders with checkpoints, or hub ids; with --respondent, names on its "
        "server. Empty: the one model alone.",
    )
    per_origin: int = Field(default=10, ge=1, description="Tasks sampled from each origin.")
    templates: tuple[str, ...] = Field(
        default=("would_rather", "enjoy_more", "pick_one"),
        description="Templates of mode choice, from which utilities are fitted; may be empty.",
    )
    scales: tuple[str, ...] = Field(
        default=("yes_somewhat_no", "likert_5", "stated_10"), description="Scales of mode rating; may be empty."
    )
    degree: int = Field(default=6, ge=2, description="Number of other tasks that each task is compared with.")
    n_seeds: int = Field(default=100, ge=4, description="Seeds: sets of answers, each drawn anew from what was read.")
    draws: int = Field(default=1, ge=1, description="Draws of every question that one seed has.")


SETTINGS = TaskConsistencySettings


def run(settings: TaskConsistencySettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    wordings = [(CHOICE, name) for name in settings.templates] + [(RATING, name) for name in settings.scales]
    for mode, name in wordings:
        template(mode, name)  # a wrong name is an error before the model is loaded
    models = settings.models or (settings.respondent_name,)
    if len(models) * len(wordings) < 2:
        raise ValueError("There is one condition; expected two or more: give several --templates, --scales or --models.")
    tasks = settings.load_tasks()
    pairs = regular_pairs([task.id for task in tasks], settings.degree, settings.seed)
    setup = Setup.of(settings.with_model(models[0]), tasks)
    found: list[Condition] = []
    left_out: list[str] = []
    asked: list[ModelIdentity] = []
    for name, model in zip(models, setup.with_others(models[1:]), strict=True):
        asked.append(model.identity)
        for mode, wording in wordings:
            label = f"{name}: {wording}" if len(models) > 1 else wording
            try:
                found.append(measure(setup, model, Wording(label, mode, wording), pairs, settings))
            except Unmeasurable as reason:
                left_out.append(f"{label} ({reason})")
    conditions = on_common_tasks(found)
    results = {each.wording.label: task_consistency(each.values, seed=settings.seed) for each in conditions}
    flat = [name for name, result in results.items() if result.tasks["consistency"].nunique() < 2]
    left_out += [f"{name} (as consistent about every task)" for name in flat]
    conditions = [each for each in conditions if each.wording.label not in flat]
    results = {name: result for name, result in results.items() if name not in flat}
    if len(conditions) < 2:
        raise ValueError(
            f"{len(conditions)} conditions tell tasks apart with this model; expected two or more. Left out: "
            f"{', '.join(left_out)}."
        )
    consistency = pd.DataFrame({name: each.tasks["consistency"] for name, each in results.items()})
    agreement = consistency_agreement({each.wording.label: each.values for each in conditions}, seed=settings.seed)
    rows = np.random.default_rng(settings.seed).integers(len(consistency), size=(_RESAMPLES, len(consistency)))
    table = conditions_table(conditions, results, rows)
    groups = group_correlations(conditions, consistency, rows)
    by_task = pd.concat(
        [
            result.tasks.assign(condition=name, exact=each.exact, origin=[setup.origins[task] for task in result.tasks.index])
            for (name, result), each in zip(results.items(), conditions, strict=True)
        ]
    ).rename_axis("task_id")
    seeds = pd.concat([each.values.assign(condition=each.wording.label) for each in conditions]).rename_axis("task_id")
    seeds.columns = [str(name) for name in seeds.columns]
    for name, saved in (
        ("conditions", table),
        ("agreement", agreement.pairs),
        ("tasks", by_task.reset_index()),
        ("seeds", seeds.reset_index()),
    ):
        setup.run.save_table(name, saved)
    return publish(
        setup.run,
        Source.of(setup, found[0].example, asked[1:]),
        experiment="task_consistency",
        findings=[
            _consistency_finding(table, settings, left_out),
            _agreement_finding(groups, table),
            _extremeness_finding(conditions, results, rows),
        ],
        figures={
            "task_consistency": agreement.plot(),
            "task_consistency_extremeness": extremeness_figure(conditions, results),
        },
        tables=[
            Table(
                "Conditions",
                "Mean consistency with its interval over seeds; chance: values shuffled over tasks and seeds; reliability: of "
                "a task's consistency, from halves of the seeds; extremeness: correlation over tasks with the distance from "
                "the mean task.",
                table,
            ),
            Table("Agreement", "Correlation over tasks between the consistency of two conditions.", agreement.pairs),
        ],
        methods=(
            f"{len(consistency)} tasks were asked about under {len(conditions)} conditions ({', '.join(results)}): choices of "
            f"{len(pairs)} pairs, each in both orders, or ratings of every task. Probabilities were read exactly, and "
            f"{settings.n_seeds} sets of answers were drawn from them ({settings.draws} of every question), which is sampling "
            "at temperature 1 from the allowed answers. Utilities of each set are Bradley-Terry with a position term, ratings "
            "the mean of the draws. A task's consistency is 1 less the standard deviation over sets by that over all tasks and "
            "sets, cut at 0. Extremeness is the distance of a task's exact value (least squares on exact log-odds, or the mean "
            "of the exact distribution) from the mean of the tasks. Intervals are a bootstrap over tasks, those of mean "
            "consistency a jackknife over seeds."
        ),
        summary={
            "conditions": table.to_dict("records"),
            "agreement": groups,
            "agreement_of_all": agreement.mean,
            "left_out": left_out,
        },
        seconds=time.monotonic() - started,
    )


@dataclass(frozen=True)
class Wording:
    """What a condition is: its label, its mode (`choice` or `rating`), and the template or scale."""

    label: str
    mode: str
    name: str


class Unmeasurable(ValueError):
    """A condition cannot be measured with this model; the message says why."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Values of every task under one condition.

    Attributes
    ----------
    wording
        What was asked.
    exact
        Utility or rating from exact answers, by task.
    values
        The same from every set of draws: one row a task, one column a seed.
    example
        One of the questions.
    """

    wording: Wording
    exact: pd.Series
    values: pd.DataFrame
    example: Question


def measure(
    setup: Setup, model: LocalModel | Endpoint, wording: Wording, pairs: Sequence[Pair], settings: TaskConsistencySettings
) -> Condition:
    """Ask under one condition, and draw sets of answers from what was read.

    Raises
    ------
    Unmeasurable
        Too few answers are on format, or all tasks get the same one.
    """
    if wording.mode == CHOICE:
        asked = choice.questions(setup.tasks, pairs, wording=wording.name)
    else:
        asked = rating.questions(setup.tasks, scale=wording.name)
    answers = ask(asked, model, setup.run.log, description=wording.label)
    usable = np.mean([answer.outcome is Outcome.CHOSE for answer in answers])
    if usable < LEAST_COVERAGE:
        raise Unmeasurable(f"{100 * usable:.0f} % on format")
    # Another stream for every condition, so that none share their luck.
    random = np.random.default_rng([settings.seed, *wording.label.encode()])
    draw = _utilities if wording.mode == CHOICE else _ratings
    exact, values = draw(asked, answers, settings, random)
    if exact.nunique() < 2 or (values.nunique() < 2).any():
        raise Unmeasurable("under some seed all tasks get the same value")
    return Condition(wording, exact, values, asked[0])


def _utilities(
    asked: Sequence[Question], answers: Sequence[Answer], settings: TaskConsistencySettings, random: np.random.Generator
) -> tuple[pd.Series, pd.DataFrame]:
    comparisons = choice.comparisons(asked, answers)
    comparisons = comparisons[comparisons["outcome"] == "chose"]
    exact = LeastSquares(errors="none").fit(comparisons)
    if exact.report.components > 1:
        raise Unmeasurable("the pairs on format fall apart, so that utilities cannot be compared")
    sampled, found = comparisons.drop(columns="logit"), {}
    for number in range(settings.n_seeds):
        drawn = random.binomial(settings.draws, comparisons["p_first"]) / settings.draws
        fit = BradleyTerry(errors="none").fit(sampled.assign(p_first=drawn, weight=float(settings.draws)))
        found[f"seed {number}"] = pd.Series(fit.values, index=list(fit.task_ids))
    values = pd.DataFrame(found)
    return pd.Series(exact.values, index=list(exact.task_ids)).reindex(values.index).dropna(), values


def _ratings(
    asked: Sequence[Question], answers: Sequence[Answer], settings: TaskConsistencySettings, random: np.random.Generator
) -> tuple[pd.Series, pd.DataFrame]:
    usable = [(question, answer) for question, answer in zip(asked, answers, strict=True) if answer.outcome is Outcome.CHOSE]
    scale = template("rating", usable[0][0].measures["template"]).scale
    points = np.array([scale[label] for label in usable[0][1].distribution()], dtype=float)
    shares = np.array([list(answer.distribution().values()) for _, answer in usable])
    tasks = [question.measures["task"] for question, _ in usable]
    counts = random.multinomial(settings.draws, shares / shares.sum(axis=1, keepdims=True), size=(settings.n_seeds, len(tasks)))
    names = [f"seed {number}" for number in range(settings.n_seeds)]
    values = pd.DataFrame((counts @ points).T / settings.draws, index=tasks, columns=names)
    return pd.Series(shares @ points, index=tasks), values


def on_common_tasks(found: Sequence[Condition]) -> list[Condition]:
    """The conditions, each with the tasks that all of them have.

    Raises
    ------
    ValueError
        Too few tasks.
    """
    kept = set.intersection(*({*each.exact.index} & {*each.values.index} for each in found)) if found else set()
    common = [task for task in found[0].values.index if task in kept] if found else []
    if len(common) < _LEAST_TASKS:
        raise ValueError(
            f"{len(common)} tasks have answers on format under all of {len(found)} conditions; expected {_LEAST_TASKS}. Raise "
            "per_origin, or leave out templates and scales that are hard for this model (`penchant preflight` shows which)."
        )
    return [replace(each, exact=each.exact.loc[common], values=each.values.loc[common]) for each in found]


def reliability(values: pd.DataFrame, rows: Int[np.ndarray, "resamples tasks"]) -> Estimate:
    """Share of a task's measured consistency that another set of seeds would find too: two halves, Spearman-Brown."""
    halves = [task_consistency(values.iloc[:, start::2]).tasks["consistency"].to_numpy() for start in (0, 1)]

    def of_rows(which: np.ndarray) -> Any:
        r = correlation(halves[0][which], halves[1][which])
        with np.errstate(divide="ignore"):
            return np.maximum(2 * r / (1 + r), -1.0)

    return _over_tasks(of_rows, rows)


def extremeness(exact: pd.Series) -> Float[np.ndarray, " tasks"]:
    """Distance of every task's exact value from their mean, in standard deviations over tasks."""
    return np.abs((exact - exact.mean()) / exact.std()).to_numpy()


def conditions_table(
    conditions: Sequence[Condition], results: Mapping[str, TaskConsistency], rows: Int[np.ndarray, "resamples tasks"]
) -> pd.DataFrame:
    """One row a condition: mean consistency beside chance, its reliability, and its relation to extremeness."""
    found = []
    for each in conditions:
        result = results[each.wording.label]
        consistency, far = result.tasks["consistency"].to_numpy(), extremeness(each.exact)
        with_extremeness = _over_tasks(lambda which, c=consistency, f=far: correlation(c[which], f[which]), rows)
        found.append(
            {"condition": each.wording.label, "mode": each.wording.mode}
            | _ends("consistency", result.mean)
            | {"chance": result.chance, "seeds": result.mean.n, "at_zero": float((consistency == 0).mean())}
            | _ends("reliability", reliability(each.values, rows))
            | _ends("extremeness", with_extremeness)
        )
    return pd.DataFrame(found)


def group_correlations(
    conditions: Sequence[Condition], consistency: pd.DataFrame, rows: Int[np.ndarray, "resamples tasks"]
) -> dict[str, Estimate]:
    """Mean correlation over tasks between the consistency of two conditions, by what the two have in common."""
    modes = np.array([each.wording.mode for each in conditions])
    names = np.array([each.wording.name for each in conditions])
    upper = np.triu(np.ones((len(conditions), len(conditions)), dtype=bool), 1)
    same_mode, same_name = modes[:, None] == modes, (names[:, None] == names) & (modes[:, None] == modes)
    groups = {
        "two templates of choice": upper & same_mode & (modes == CHOICE) & ~same_name,
        "two scales": upper & same_mode & (modes == RATING) & ~same_name,
        "a template and a scale": upper & ~same_mode,
        "two models, asked alike": upper & same_name,
    }
    columns = consistency.to_numpy(dtype=float).T

    def mean(which: np.ndarray, group: Bool[np.ndarray, "conditions conditions"]) -> Any:
        return np.mean([correlation(columns[i][which], columns[j][which]) for i, j in np.argwhere(group)], axis=0)

    return {
        name: _over_tasks(lambda which, group=group: mean(which, group), rows) for name, group in groups.items() if group.any()
    }


def _over_tasks(statistic: Callable[[np.ndarray], Any], rows: Int[np.ndarray, "resamples tasks"]) -> Estimate:
    """Estimate a statistic of tasks, given their numbers (last axis), with a bootstrap over them."""
    n = rows.shape[1]
    return Estimate.from_draws(float(statistic(np.arange(n))), statistic(rows), n)


def _ends(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high, f"{name}_se": estimate.se}


def _estimate(row: Any, name: str, n: int) -> Estimate:
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], row[f"{name}_se"], n)


def _consistency_finding(table: pd.DataFrame, settings: TaskConsistencySettings, left_out: Sequence[str]) -> Finding:
    in_order = table.sort_values("consistency")
    least, most = in_order.iloc[0], in_order.iloc[-1]
    above = int((table["consistency_low"] > table["chance"]).sum())
    missing = f" Left out: {', '.join(left_out)}." if left_out else ""

    def told(row: pd.Series) -> str:
        return (
            f"{unsigned(_estimate(row, 'consistency', settings.n_seeds))} ({row['condition']}; {row['chance']:.2f} by chance)"
        )

    sentence = (
        f"Over {settings.n_seeds} seeds the mean consistency of a task is from {told(least)} to {told(most)}; its interval is "
        f"above chance under {above} of {len(table)} conditions.{missing}"
    )
    if above < len(table):
        blind = table[table["consistency_low"] <= table["chance"]]
        smallest = float((POWER_FACTOR * blind["consistency_se"]).max())
        sentence += f" Where it is not, {smallest:.2f} more than chance would have been found four times in five."
    width = max(map(len, table["condition"])) + 2
    heading = f"{'condition':{width}s}{'consistency':20s}chance  reliability          with extremeness"
    rows = tuple(
        f"{row['condition']:{width}s}{unsigned(_estimate(row, 'consistency', 0)):20s} {row['chance']:.2f}   "
        f"{plain(_estimate(row, 'reliability', 0)):20s} {plain(_estimate(row, 'extremeness', 0))}"
        for _, row in table.iterrows()
    )
    return Finding("Consistency", sentence, "", (heading, *rows))


def _agreement_finding(groups: Mapping[str, Estimate], table: pd.DataFrame) -> Finding:
    told = "; ".join(
        f"{name}: {plain(each)}"
        + (
            ""
            if each.differs_from(0)
            else f" (no agreement claimed; {each.smallest_effect:.2f} would have been found four times in five)"
        )
        for name, each in groups.items()
    )
    # Two measures cannot correlate beyond the root of the product of their reliabilities.
    known = table["reliability"].clip(lower=0)
    ceiling = float(np.mean([math.sqrt(a * b) for a, b in itertools.combinations(known, 2)]))
    n = next(iter(groups.values())).n
    return Finding(
        "Same tasks?",
        f"Whether the same tasks are answered consistently, as the mean correlation over {n} tasks: {told}. Halves of the "
        f"seeds agree on a task's consistency with a mean reliability of {table['reliability'].mean():+.2f}, so that about "
        f"{ceiling:.2f} is the most that two conditions could correlate at.",
        "task_consistency",
    )


def _extremeness_finding(
    conditions: Sequence[Condition], results: Mapping[str, TaskConsistency], rows: Int[np.ndarray, "resamples tasks"]
) -> Finding:
    sentences = []
    for mode, what in ((CHOICE, "utility"), (RATING, "rating")):
        here = [each for each in conditions if each.wording.mode == mode]
        if not here:
            continue
        both = [(results[each.wording.label].tasks["consistency"].to_numpy(), extremeness(each.exact)) for each in here]
        mean = _over_tasks(lambda which, both=both: np.mean([correlation(c[which], f[which]) for c, f in both], axis=0), rows)
        sentences.append(
            f"A task's consistency correlates with how extreme its {what} is at r = {plain(mean)}, the mean of {len(here)} "
            f"{'condition' if len(here) == 1 else 'conditions'}." + null_note(mean, "such relation")
        )
    return Finding(
        "Extreme tasks",
        " ".join(sentences) + " Draws from a lopsided distribution vary less, so that some relation is arithmetic.",
        "task_consistency_extremeness",
    )


def extremeness_figure(conditions: Sequence[Condition], results: Mapping[str, TaskConsistency]) -> Figure:
    """Consistency of every task against its distance from the mean task, one panel a mode."""
    modes = [mode for mode in (CHOICE, RATING) if any(each.wording.mode == mode for each in conditions)]
    figure, panels = plots.new_panels(len(modes), 4.2)
    colours = itertools.cycle(CYCLE)
    for axes, mode in zip(panels, modes, strict=True):
        for each, colour in zip([each for each in conditions if each.wording.mode == mode], colours, strict=False):
            result = results[each.wording.label]
            label = each.wording.label
            axes.scatter(extremeness(each.exact), result.tasks["consistency"], s=14, color=colour, alpha=0.7, label=label)
            axes.axhline(result.chance, color=colour, linewidth=0.9, linestyle="--")
        what = "utility" if mode == CHOICE else "rating"
        axes.set(xlabel=f"distance from the mean {what}\n(standard deviations of the exact values)", title=f"{mode}s")
    panels[0].set_ylabel("consistency (1 - sd / sd of all)")
    n, seeds = conditions[0].values.shape
    figure.suptitle(f"Are extreme tasks answered more alike? ({n} tasks, {seeds} seeds; dashed: mean by chance)", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["task_consistency", *sys.argv[1:]]))
