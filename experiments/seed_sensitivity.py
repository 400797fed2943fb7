"""seed_sensitivity: what depends on chance. Seeds of sampled answers, beside exact ones, and seeds of the design."""

import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from pydantic import Field

from elicit import BradleyTerry, Context, LeastSquares, Utilities, choice, regular_pairs
from elicit.consistency import needed, over_pairs
from elicit.pairs import uncentred_correlation
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, null_note, plain
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate, Question, Sampling

_EXACT = "exact"
_RESAMPLES = 50
_LEAST_PAIRS = 12


class SeedSensitivitySettings(Settings):
    """Sample answers with several seeds, read the same answers exactly, and draw several designs."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "n_seeds": 4, "out": Path("runs/seed_sensitivity_quick")}

    out: Path = Field(
        default=Path("runs/seed_sensitivity"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=6, ge=1, description="Tasks sampled from each origin.")
    wording: str = Field(default="would_rather", description="Template of the choices.")
    degree: int = Field(default=6, ge=2, description="Number of other tasks that each task is compared with.")
    n_seeds: int = Field(default=8, ge=3, description="Seeds of sampling; one draw of every question each.")
    n_designs: int = Field(default=4, ge=2, description="Seeds of the design: which pairs are asked.")
    temperature: float = Field(
        default=1.0, gt=0, description="Of sampling; at other temperatures than 1 the exact answers differ."
    )
    top_p: float = Field(default=1.0, gt=0, le=1, description="Nucleus that is sampled from.")
    max_new_tokens: int = Field(default=3, ge=1, description="Length of a sampled answer; the template's prefill precedes it.")


SETTINGS = SeedSensitivitySettings


def run(settings: SeedSensitivitySettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    template("choice", settings.wording)  # a wrong name is an error before the model is loaded
    setup = Setup.of(settings, settings.load_tasks())
    task_ids = [task.id for task in setup.tasks]
    seeds = range(settings.seed, settings.seed + settings.n_seeds)
    designs = [regular_pairs(task_ids, settings.degree, settings.seed + number) for number in range(settings.n_designs)]

    def questions(pairs: Sequence[tuple[str, str]], context: Context) -> list[Question]:
        return choice.questions(setup.tasks, pairs, wording=settings.wording, context=context)

    exact = setup.ask_each({f"design {number}": questions(pairs, Context()) for number, pairs in enumerate(designs)}, "exact")
    by_design = {name: choice.comparisons(*each) for name, each in exact.items()}
    sampled = setup.ask_each({f"seed {seed}": questions(designs[0], _sampled(settings, seed)) for seed in seeds}, "sampled")
    by_seed = {name: choice.comparisons(*each) for name, each in sampled.items()}
    shares = shares_of_pairs({_EXACT: by_design["design 0"]} | by_seed)
    if len(shares) < _LEAST_PAIRS:
        raise ValueError(
            f"{len(shares)} pairs have a choice in both orders exactly and with two seeds; expected {_LEAST_PAIRS}. "
            f"`penchant preflight --templates choice:{settings.wording}` shows what this model answers."
        )
    utilities = {name: LeastSquares(resamples=_RESAMPLES).fit(part) for name, part in by_design.items()}
    drawn = {name: BradleyTerry(resamples=_RESAMPLES).fit(part) for name, part in by_seed.items()}
    seed_agreement = between_seeds(shares)
    draws = draws_table(shares)
    calibration = calibration_table(by_design["design 0"], by_seed)
    for name, table in (("pairs", shares.reset_index()), ("draws", draws), ("calibration", calibration)):
        setup.run.save_table(name, table)
    gap = _calibration_gap(by_design["design 0"], by_seed, settings.seed)
    between_designs = _mean_correlation(list(utilities.values()), settings.seed)
    between_drawn = _mean_correlation(list(drawn.values()), settings.seed)
    return publish(
        setup.run,
        Source.of(setup, exact["design 0"][0][0]),
        experiment="seed_sensitivity",
        findings=[
            _seed_finding(seed_agreement, between_drawn, settings),
            _draws_finding(draws, seed_agreement),
            _calibration_finding(gap, settings),
            _design_finding(between_designs, settings),
        ],
        figures={"seed_draws": draws_figure(draws), "seed_calibration": calibration_figure(calibration)},
        tables=[
            Table("Draws", "Correlation over pairs of the share of draws that choose a task.", draws),
            Table("Calibration", "Sampled choices by the exact probability of the task shown first.", calibration),
        ],
        methods=(
            f"{len(designs[0])} pairs of {len(setup.tasks)} tasks were asked in both orders (template {settings.wording}), "
            f"exactly and with {settings.n_seeds} seeds of sampling (temperature {settings.temperature:g}, top-p "
            f"{settings.top_p:g}), one draw of each question a seed. Draws are compared by the share of them that choose a "
            "task, averaged over the two orders; correlations are over pairs, about one half, and their intervals allow for "
            f"pairs that share a task. {settings.n_designs} random designs of degree {settings.degree} were asked exactly; "
            "their utilities are compared over tasks, with a bootstrap over tasks."
        ),
        summary={
            "between_seeds": seed_agreement,
            "between_designs": between_designs,
            "utilities_between_seeds": between_drawn,
            "calibration_gap": gap,
            "draws": draws.to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def _sampled(settings: SeedSensitivitySettings, seed: int) -> Context:
    sampling = Sampling(settings.temperature, settings.top_p, settings.max_new_tokens, seed)
    return Context(sampling=sampling)


def shares_of_pairs(conditions: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How often, less a half, task 1 of every pair is chosen, averaged over both orders; one column a condition.

    Missing where a condition has no choice in one of the orders; pairs that no two seeds have are left out.
    """
    columns = {}
    for name, part in conditions.items():
        swapped = part["first"] > part["second"]
        pair = pd.DataFrame(
            {
                "task_1": part["first"].where(~swapped, part["second"]),
                "task_2": part["second"].where(~swapped, part["first"]),
                "share": part["p_first"].where(~swapped, 1 - part["p_first"]) - 0.5,
            }
        )
        both = pair.groupby(["task_1", "task_2"])["share"].agg(["mean", "count"])
        columns[name] = both.loc[both["count"] == 2, "mean"]
    table = pd.DataFrame(columns).dropna(subset=[_EXACT])
    return table[table.drop(columns=_EXACT).notna().sum(axis=1) >= 2]


def between_seeds(shares: pd.DataFrame) -> Estimate:
    """Mean correlation over pairs between two seeds, one draw a question each."""
    seeds = shares.drop(columns=_EXACT)

    def mean(values: Float[np.ndarray, "pairs seeds"]) -> float:
        return float(pd.Series([_correlation(a, b) for a, b in itertools.combinations(values.T, 2)]).mean())

    return over_pairs(seeds, mean, bounds=(-1, 1))


def draws_table(shares: pd.DataFrame) -> pd.DataFrame:
    """Correlation with the exact answers of the mean of the first 1, 2, ... seeds."""
    rows = []
    for k in range(1, shares.shape[1]):
        estimate = over_pairs(
            shares, lambda values, k=k: _correlation(values[:, 0], _mean_of_known(values[:, 1 : k + 1])), bounds=(-1, 1)
        )
        rows.append({"draws": k, "with_exact": estimate.value, "low": estimate.low, "high": estimate.high})
    return pd.DataFrame(rows)


def _mean_of_known(values: Float[np.ndarray, "pairs seeds"]) -> Float[np.ndarray, " pairs"]:
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(known, values, 0).sum(axis=1) / known.sum(axis=1)


def _correlation(x: Float[np.ndarray, " pairs"], y: Float[np.ndarray, " pairs"]) -> float:
    """Correlation about zero over the pairs that both have."""
    known = np.isfinite(x) & np.isfinite(y)
    return float(uncentred_correlation(x[known], y[known]))


def calibration_table(exact: pd.DataFrame, sampled: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """How often the task shown first was chosen, by its exact probability."""
    stacked = _stacked(exact, sampled)
    tenths = np.minimum(np.floor(10 * stacked["exact"]), 9)
    grouped = stacked.groupby(tenths)
    table = grouped.agg(exact=("exact", "mean"), sampled=("drawn", "mean"), draws=("drawn", "size"))
    return table.reset_index(drop=True).assign(se=lambda t: np.sqrt(t["sampled"] * (1 - t["sampled"]) / t["draws"]))


def _stacked(exact: pd.DataFrame, sampled: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Every sampled choice beside the exact probability of the same question; questions come in the same order."""
    parts = [
        pd.DataFrame({"question": range(len(exact)), "exact": exact["p_first"].to_numpy(), "drawn": part["p_first"].to_numpy()})
        for part in sampled.values()
    ]
    return pd.concat(parts, ignore_index=True).dropna()


def _calibration_gap(exact: pd.DataFrame, sampled: Mapping[str, pd.DataFrame], seed: int) -> Estimate:
    """Mean of sampled choices less exact probability; interval by bootstrap over questions."""
    stacked = _stacked(exact, sampled)
    gaps = (stacked["drawn"] - stacked["exact"]).groupby(stacked["question"]).mean().to_numpy()
    rows = np.random.default_rng(seed).integers(len(gaps), size=(1000, len(gaps)))
    return Estimate.from_draws(float(gaps.mean()), gaps[rows].mean(axis=1), len(gaps))


def _mean_correlation(fits: Sequence[Utilities], seed: int) -> Estimate:
    """Mean correlation over tasks of any two fits' utilities; interval by bootstrap over tasks."""
    table = pd.DataFrame({n: dict(zip(fit.task_ids, fit.values, strict=True)) for n, fit in enumerate(fits)}).dropna()
    values = table.to_numpy(dtype=float)
    upper = np.triu_indices(values.shape[1], 1)
    rows = np.random.default_rng(seed).integers(len(values), size=(500, len(values)))
    with np.errstate(invalid="ignore"):  # a fit in which all tasks are alike has no correlation
        draws = [np.corrcoef(values[row], rowvar=False)[upper].mean() for row in rows]
        mean = float(np.corrcoef(values, rowvar=False)[upper].mean())
    return Estimate.of_correlation(mean, draws, len(values))


def _seed_finding(between: Estimate, utilities: Estimate, settings: SeedSensitivitySettings) -> Finding:
    return Finding(
        "Sampling seeds",
        f"Asked once in each order with another seed, the choices of {between.n} pairs correlate at {plain(between)}, and "
        f"the utilities fitted to them at {plain(utilities)} over {utilities.n} tasks ({settings.n_seeds} seeds, temperature "
        f"{settings.temperature:g}). Exact answers have no seed." + null_note(between, "agreement between seeds"),
        "seed_draws",
    )


def _draws_finding(draws: pd.DataFrame, between: Estimate) -> Finding:
    last = draws.iloc[-1]
    if pd.isna(last["with_exact"]):
        return Finding("Draws", "Every draw chose by order alone, so how many would be needed is not known.", "seed_draws")
    sentence = (
        f"The mean of {last['draws']:.0f} draws correlates with the exact probabilities at {last['with_exact']:+.2f} "
        f"[{last['low']:+.2f}, {last['high']:+.2f}]; one draw at {draws['with_exact'].iloc[0]:+.2f}. "
    )
    if between.value <= 0 or not between.differs_from(0):
        return Finding("Draws", sentence + "Draws do not agree enough to say how many would be needed.", "seed_draws")
    # A mean of k draws correlates with what it estimates at the root of its reliability.
    count = math.ceil(needed(between.value, 0.81))
    most = f"{math.ceil(needed(between.low, 0.81))}" if between.low > 0 else "no number"
    return Finding(
        "Draws",
        sentence + f"By their agreement, a correlation of 0.9 takes {count} [{math.ceil(needed(between.high, 0.81))}, {most}] "
        "draws of every question; reading the probability takes one forward pass.",
        "seed_draws",
    )


def _calibration_finding(gap: Estimate, settings: SeedSensitivitySettings) -> Finding:
    percent = Estimate(100 * gap.value, 100 * gap.low, 100 * gap.high, 100 * gap.se, gap.n)
    same = settings.temperature == 1 and settings.top_p == 1
    expected = "as it should be for one distribution read in two ways" if same else "they are of different distributions"
    if same and gap.differs_from(0) and round(percent.value, 1):
        expected = (
            "it should be 0 for one distribution read in two ways: look at how sampled answers were parsed, and at sampling "
            "settings that a server adds"
        )
    return Finding(
        "Exact and sampled",
        f"Sampled answers choose the task shown first {plain(percent, 1)} percentage points more often than its exact "
        f"probability says ({expected})." + null_note(percent, "difference"),
        "seed_calibration",
    )


def _design_finding(between: Estimate, settings: SeedSensitivitySettings) -> Finding:
    return Finding(
        "Design seeds",
        f"Utilities from {settings.n_designs} random designs, in which each task meets {settings.degree} others, correlate at "
        f"{plain(between)} over {between.n} tasks, with exact answers." + null_note(between, "agreement between designs"),
    )


def draws_figure(draws: pd.DataFrame) -> Figure:
    """Correlation with the exact answers by number of draws."""
    figure, axes = plots.new_axes(6.0, 3.6)
    axes.fill_between(draws["draws"], draws["low"], draws["high"], color=plots.BLUE, alpha=0.15, linewidth=0)
    axes.plot(draws["draws"], draws["with_exact"], "-o", color=plots.BLUE, markersize=4)
    axes.axhline(0, color=plots.GREY, linewidth=0.8)
    axes.set(
        xlabel="draws of every question (each in both orders)",
        ylabel="correlation with exact answers",
        ylim=(min(0.0, float(draws["low"].min())), 1.02),
        xticks=draws["draws"].tolist(),
        title="What sampling has of what can be read",
    )
    return figure


def calibration_figure(calibration: pd.DataFrame) -> Figure:
    """Sampled choices against exact probabilities."""
    figure, axes = plots.new_axes(4.8, 4.4)
    axes.plot([0, 1], [0, 1], color=plots.GREEN, linewidth=1, label="one distribution")
    axes.errorbar(
        calibration["exact"],
        calibration["sampled"],
        yerr=1.96 * calibration["se"],
        fmt="o",
        color=plots.BLUE,
        markersize=5,
        linewidth=1.2,
        label="draws (bars: 95 %)",
    )
    axes.set(
        xlim=(0, 1),
        ylim=(0, 1),
        xlabel="exact probability of the task shown first",
        ylabel="share of draws that choose it",
        title=f"Exact and sampled (n={int(calibration['draws'].sum())} draws)",
    )
    axes.legend(fontsize=8, frameon=False, loc="upper left")
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["seed_sensitivity", *sys.argv[1:]]))
