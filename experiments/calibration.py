"""calibration: are the intervals and tests right? Studied on a frozen table of real answers, where the truth is known."""

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from pydantic import Field
from scipy import special

from elicit import BradleyTerry, LeastSquares, Utilities, agreement, hold_out, hold_out_accuracy, position_bias, regular_pairs
from elicit.active import Stop, learn
from elicit.adaptive import Brackets, Design, InformationGain, PercentileRule, RandomMatching
from elicit.designs import Pair
from elicit.reliability import HoldOut
from experiments import figures as plots
from experiments.findings import Finding, in_percent
from experiments.frozen import FrozenTable
from experiments.parallel import spread_out
from experiments.publish import Result, publish
from experiments.ranking import kendall_tau
from experiments.report import Table
from experiments.run_directory import RunDirectory
from experiments.settings import RunSettings
from store import Estimate

_TARGET = (0.90, 0.98)
_FIT_RESAMPLES = 200
DESIGNS: Mapping[str, Design] = {
    "random": RandomMatching(),
    "information gain": InformationGain(),
    "brackets": Brackets(),
    "percentile rule": PercentileRule(),
}


class CalibrationSettings(RunSettings):
    """Draw designs from a frozen table again and again, and compare intervals with the fit to the whole table."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "n_resamples": 20,
        "n_nulls": 100,
        "n_seeds": 4,
        "degrees": (6, 12),
        "out": Path("runs/calibration_quick"),
    }

    out: Path = Field(default=Path("runs/calibration"), description="Run directory.")
    table: str = Field(default="shipped", description="Frozen table: shipped, or a file that `penchant freeze` made.")
    degrees: tuple[int, ...] = Field(
        default=(4, 6, 12, 24), min_length=1, description="Other tasks that each task is compared with, one study each."
    )
    n_resamples: int = Field(default=200, ge=10, description="Designs drawn for every degree.")
    n_nulls: int = Field(default=400, ge=50, description="Times that labels are shuffled.")
    n_seeds: int = Field(default=20, ge=3, description="Runs of every design rule.")
    n_jobs: int = Field(default=-1, description="Processes; -1 for all cores. Results do not depend on it.")


SETTINGS = CalibrationSettings


@dataclass(frozen=True)
class _Way:
    """A way of stating uncertainty: an estimator, on exact or sampled answers."""

    name: str
    estimator: Any
    sampled: bool

    def answers(self, exact: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
        """The answers that the estimator gets."""
        return drawn(exact, random) if self.sampled else exact


def _ways(seed: int) -> list[_Way]:
    more: dict[str, Any] = {"resamples": _FIT_RESAMPLES, "seed": seed, "n_jobs": 1}
    return [
        _Way("least squares, residual (default, exact)", LeastSquares(**more), False),
        _Way("least squares, bootstrap", LeastSquares(errors="bootstrap", **more), False),
        _Way("Bradley-Terry, bootstrap (default, sampled)", BradleyTerry(**more), True),
        _Way("Bradley-Terry, Hessian, sampled", BradleyTerry(errors="hessian", **more), True),
        _Way("Bradley-Terry, bootstrap, exact", BradleyTerry(**more), False),
    ]


def run(settings: CalibrationSettings) -> Result:
    """Run the study; no model is asked anything."""
    started = time.monotonic()
    table = FrozenTable.read(settings.table)
    for degree in settings.degrees:
        regular_pairs(table.task_ids, degree)  # an impossible degree is an error at once
    run_directory = RunDirectory(settings)
    coverage = coverage_table(table, settings)
    false_positives = false_positive_table(table, settings)
    designs = design_table(table, settings)
    for name, frame in (("coverage", coverage), ("false_positives", false_positives), ("designs", designs)):
        run_directory.save_table(name, frame)
    return publish(
        run_directory,
        table.source(),
        experiment="calibration",
        findings=[_coverage_finding(coverage), _false_positive_finding(false_positives), _design_finding(designs)],
        figures={"calibration_coverage": coverage_figure(coverage), "calibration_designs": designs_figure(designs)},
        tables=[
            Table("Coverage", "Share of the tasks' 95 % intervals that contain the truth, with its interval.", coverage),
            Table("False positives", "How often a claim is made where labels are shuffled; 5 % is right.", false_positives),
            Table("Designs", "Kendall's tau with the whole table, by pairs asked; mean over seeds.", designs),
        ],
        methods=(
            f"The truth is the fit to all {table.n_pairs} pairs. For every degree {settings.n_resamples} random regular "
            "designs were drawn from the table and fitted. Their exact answers are a sample without replacement from a finite "
            "population, so deviations are shrunk by the root of one less the sampling fraction; sampled answers, drawn once "
            "from the exact probability of each order, are not. False positives: the contents of pairs shuffled over pairs "
            "with random signs (no task is worth more than another), position effects likewise (no bias on average; for the "
            f"likelihood ratio, none at all), or tasks permuted, {settings.n_nulls} times. Designs: {settings.n_seeds} seeds, "
            "exact answers, both orders."
        ),
        summary={
            "coverage": coverage.to_dict("records"),
            "false_positives": false_positives.to_dict("records"),
            "designs": designs.to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def drawn(exact: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """One choice drawn from the exact probability of every answer."""
    chosen = (random.random(len(exact)) < exact["p_first"]).astype(float)
    return exact.drop(columns="logit").assign(p_first=chosen)


def coverage_table(table: FrozenTable, settings: CalibrationSettings) -> pd.DataFrame:
    """Share of intervals that contain the truth, for every way of stating uncertainty and every degree."""
    ways = _ways(settings.seed)
    truths = {way.name: _truth(way, table.comparisons) for way in ways}
    work = [(degree, number) for degree in settings.degrees for number in range(settings.n_resamples)]

    def cover(degree: int, number: int) -> list[float]:
        random = np.random.default_rng([settings.seed, degree, number])
        pairs = regular_pairs(table.task_ids, degree, int(random.integers(2**31)))
        exact, left = table.answers(pairs), 1 - len(pairs) / table.n_pairs
        return [
            _covered(way.estimator.fit(way.answers(exact, random)), truths[way.name], 1.0 if way.sampled else left)
            for way in ways
        ]

    shares = np.array(spread_out(cover, work, settings.n_jobs, "coverage"))
    degrees = np.array([degree for degree, _ in work])
    rows = []
    for degree in settings.degrees:
        for column, way in enumerate(ways):
            estimate = Estimate.of_mean(shares[degrees == degree, column])
            rows.append({"way": way.name, "degree": degree} | _row(estimate, "coverage"))
    return pd.DataFrame(rows)


def _truth(way: _Way, comparisons: pd.DataFrame) -> Float[np.ndarray, " tasks"]:
    point = type(way.estimator)(**way.estimator.get_params() | {"errors": "none"})
    return point.fit(comparisons).values


def _covered(utilities: Utilities, truth: Float[np.ndarray, " tasks"], left: float) -> float:
    labels, shrink = utilities.labels(), np.sqrt(left)
    below = shrink * (labels["value"] - labels["low"]).to_numpy()
    above = shrink * (labels["high"] - labels["value"]).to_numpy()
    return float(((utilities.values - below <= truth) & (truth <= utilities.values + above)).mean())


Null = Literal["content", "signs", "position", "no position"]
Claim = Callable[[pd.DataFrame, np.random.Generator], float]
"""From comparisons without an effect to the share of claims that there is one."""


def false_positive_table(table: FrozenTable, settings: CalibrationSettings) -> pd.DataFrame:
    """How often each claim is made where there is nothing to claim."""
    degree = 12 if len(table.task_ids) > 13 else 4
    claims: dict[str, tuple[Claim, Null]] = {
        "a task's utility differs from zero": (_claims_utility, "content"),
        "the same, each pair keeping its size": (_claims_utility, "signs"),
        "hold-out correlation differs from zero": (_claims_correlation, "content"),
        "hold-out accuracy differs from chance": (_claims_accuracy, "content"),
        "position bias differs from zero": (_claims_position, "position"),
        "position term, likelihood ratio (sampled)": (_claims_position_term, "no position"),
        "two measures agree": (_claims_agreement, "content"),
    }

    def claim(number: int) -> list[float]:
        random = np.random.default_rng([settings.seed, 1, number])
        pairs = regular_pairs(table.task_ids, degree, int(random.integers(2**31)))
        answers = table.answers(pairs)
        made = []
        for column, (function, null) in enumerate(claims.values()):
            own = np.random.default_rng([settings.seed, 2, number, column])
            made.append(function(_without(answers, own, null), own))
        return made

    made = np.array(spread_out(claim, [(number,) for number in range(settings.n_nulls)], settings.n_jobs, "false positives"))
    return pd.DataFrame([{"claim": name} | _row(_rate(made[:, column]), "rate") for column, name in enumerate(claims)])


def _rate(made: Float[np.ndarray, " nulls"]) -> Estimate:
    """How often a claim is made; some are made or not of every null, others of a share of its tasks."""
    once = np.isin(made, (0, 1)).all()
    return Estimate.of_share([bool(each) for each in made]) if once else Estimate.of_mean(made)


def _without(answers: pd.DataFrame, random: np.random.Generator, null: Null) -> pd.DataFrame:
    """The answers without an effect: contents of pairs, or their position effects, shuffled over pairs with random signs.

    With `signs` each pair keeps the size of its content; with `no position` there is none, for any pair. Answers come as
    pairs of orders.
    """
    logit = answers["logit"].to_numpy(dtype=float).reshape(-1, 2)
    preference, position = (logit[:, 0] - logit[:, 1]) / 2, (logit[:, 0] + logit[:, 1]) / 2
    sign = random.choice([-1.0, 1.0], size=len(logit))
    shuffled = np.arange(len(logit)) if null == "signs" else random.permutation(len(logit))
    if null == "no position":
        position = np.zeros_like(position)
    elif null == "position":
        position = sign * position[shuffled]
    else:
        preference = sign * preference[shuffled]
    changed = np.stack([position + preference, position - preference], axis=1).ravel()
    return answers.assign(logit=changed, p_first=special.expit(changed))


def _claims_utility(answers: pd.DataFrame, random: np.random.Generator) -> float:
    labels = LeastSquares(resamples=_FIT_RESAMPLES).fit(answers).labels()
    return float(((labels["low"] > 0) | (labels["high"] < 0)).mean())


def _claims_correlation(answers: pd.DataFrame, random: np.random.Generator) -> float:
    correlation = _held_out(answers, random).correlation
    return float(correlation is not None and correlation.differs_from(0))


def _claims_accuracy(answers: pd.DataFrame, random: np.random.Generator) -> float:
    return float(_held_out(answers, random).accuracy.differs_from(0.5))


def _held_out(answers: pd.DataFrame, random: np.random.Generator) -> HoldOut:
    pairs: list[Pair] = list(zip(answers["first"][::2], answers["second"][::2], strict=True))
    _, held = hold_out(pairs, 0.25, int(random.integers(2**31)))
    aside = np.repeat([pair in set(held) for pair in pairs], 2)
    fitted = LeastSquares(errors="none").fit(answers[~aside])
    return hold_out_accuracy(fitted, answers[aside], resamples=500)


def _claims_position(answers: pd.DataFrame, random: np.random.Generator) -> float:
    return float(position_bias(answers).mean.differs_from(0))


def _claims_position_term(answers: pd.DataFrame, random: np.random.Generator) -> float:
    test = BradleyTerry(errors="none").fit(drawn(answers, random)).report.position_test
    return float(test is not None and test.p < 0.05)


def _claims_agreement(answers: pd.DataFrame, random: np.random.Generator) -> float:
    labels = LeastSquares(errors="none").fit(answers).labels()
    other = labels.assign(value=random.permutation(labels["value"].to_numpy()))
    return float(agreement(labels, other, resamples=500).pearson.differs_from(0))


def design_table(table: FrozenTable, settings: CalibrationSettings) -> pd.DataFrame:
    """Kendall's tau of the utilities with those of the whole table, by pairs asked, for every rule."""
    ids = table.task_ids
    truth = LeastSquares(errors="none").fit(table.comparisons)
    budget = min(10 * len(ids), table.n_pairs)
    work = [(name, seed) for name in DESIGNS for seed in range(settings.n_seeds)]

    def follow(name: str, seed: int) -> list[tuple[int, int, float]]:
        found = learn(
            table.answers,
            ids,
            design=DESIGNS[name],
            estimator=LeastSquares(errors="none"),
            stop=Stop(rank_correlation=None, pairs=budget),
            seed=settings.seed + seed,
        )
        taus = [kendall_tau(utilities, truth.values) for utilities in found.trajectory]
        return list(zip(found.history["batch"], found.history["pairs"], taus, strict=True))

    rows = [
        {"design": name, "batch": batch, "pairs": pairs, "tau": tau}
        for (name, _), path in zip(work, spread_out(follow, work, settings.n_jobs, "designs"), strict=True)
        for batch, pairs, tau in path
    ]
    grouped = pd.DataFrame(rows).groupby(["design", "batch"], sort=False)
    return pd.DataFrame(
        [
            {"design": design, "batch": batch, "pairs": part["pairs"].mean()}
            | _row(Estimate.of_mean(part["tau"].to_numpy()), "tau")
            for (design, batch), part in grouped
            if len(part) == settings.n_seeds
        ]
    )


def _row(estimate: Estimate, name: str) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _coverage_finding(coverage: pd.DataFrame) -> Finding:
    least, most = coverage["coverage"].min(), coverage["coverage"].max()
    default = coverage[coverage["way"].str.contains("default")]
    outside = coverage[(coverage["coverage"] < _TARGET[0]) | (coverage["coverage"] > _TARGET[1])]
    named = "; ".join(
        f"{row['way']} at degree {row['degree']} ({100 * row['coverage']:.0f} %)" for _, row in outside.iterrows()
    )
    rows = tuple(
        f"{way:46s}" + "".join(f"{row['degree']:4d}: {100 * row['coverage']:5.1f} %" for _, row in part.iterrows())
        for way, part in coverage.groupby("way", sort=False)
    )
    return Finding(
        "Coverage",
        f"Intervals of 95 % contain the truth in {100 * default['coverage'].min():.1f} to "
        f"{100 * default['coverage'].max():.1f} % of cases with the defaults, and in {100 * least:.1f} to "
        f"{100 * most:.1f} % with all ways." + (f" Outside 90 to 98 %: {named}." if named else " All are within 90 to 98 %."),
        "calibration_coverage",
        ("by degree", *rows),
    )


def _false_positive_finding(rates: pd.DataFrame) -> Finding:
    wrong = rates[(rates["rate_low"] > 0.05) | (rates["rate_high"] < 0.05)]
    said = ", ".join(f"{row['claim']} {in_percent(row, 'rate', digits=1)}" for _, row in rates.iterrows())
    verdict = "Every interval contains 5 %." if wrong.empty else f"Not 5 %: {', '.join(wrong['claim'])}."
    return Finding("False positives", f"With shuffled labels a claim is made this often: {said}. {verdict}")


def _design_finding(designs: pd.DataFrame) -> Finding:
    last = designs.groupby("design", sort=False).tail(1).sort_values("tau", ascending=False)
    said = ", ".join(
        f"{row['design']} {row['tau']:.3f} [{row['tau_low']:.3f}, {row['tau_high']:.3f}]" for _, row in last.iterrows()
    )
    return Finding(
        "Designs",
        f"With about {last['pairs'].mean():.0f} pairs asked exactly, in both orders, Kendall's tau with the whole table is: "
        f"{said}.",
        "calibration_designs",
    )


def coverage_figure(coverage: pd.DataFrame) -> Figure:
    """Coverage by degree, one line a way of stating uncertainty."""
    figure, axes = plots.new_axes(7.6, 4.2)
    axes.axhspan(100 * _TARGET[0], 100 * _TARGET[1], color=plots.GREEN, alpha=0.12, linewidth=0)
    axes.axhline(95, color=plots.GREEN, linewidth=1)
    places = {degree: place for place, degree in enumerate(sorted(coverage["degree"].unique()))}
    ways = coverage.groupby("way", sort=False)
    for number, ((way, part), colour) in enumerate(zip(ways, plots.CYCLE, strict=False)):
        x = part["degree"].map(places) + 0.08 * (number - (ways.ngroups - 1) / 2)
        bars = [100 * (part["coverage"] - part["coverage_low"]), 100 * (part["coverage_high"] - part["coverage"])]
        axes.errorbar(x, 100 * part["coverage"], bars, marker="o", markersize=4, linewidth=1, color=colour, label=str(way))
    axes.set(
        xticks=list(places.values()),
        xticklabels=[str(degree) for degree in places],
        xlabel="other tasks that each task is compared with",
        ylabel="coverage of 95 % intervals (%)",
        title="How often intervals contain the truth (band: target)",
    )
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def designs_figure(designs: pd.DataFrame) -> Figure:
    """Kendall's tau with the whole table by pairs asked, one line a rule."""
    figure, axes = plots.new_axes(6.4, 4.0)
    for (name, part), colour in zip(designs.groupby("design", sort=False), plots.CYCLE, strict=False):
        axes.fill_between(part["pairs"], part["tau_low"], part["tau_high"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(part["pairs"], part["tau"], marker="o", markersize=3, color=colour, label=str(name))
    axes.set(xlabel="pairs asked, both orders", ylabel="Kendall's tau with the whole table", title="Designs on real answers")
    axes.legend(fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["calibration", *sys.argv[1:]]))
