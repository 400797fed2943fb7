"""thurstone_regularisation: how far a spread per task must be held back, and whether it then predicts better than none."""

import itertools
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure
from pydantic import Field, field_validator
from scipy import special
from tqdm import tqdm

from elicit import (
    BradleyTerry,
    Thurstone,
    ThurstoneSigmas,
    Utilities,
    all_pairs,
    choice,
    hold_out,
    order_averages,
    regular_pairs,
)
from elicit.designs import Pair
from elicit.estimators import Estimator
from elicit.reliability import dyadic_estimate
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, plain
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate

DENSE, SPARSE = "dense", "sparse"
SIGMAS, BRADLEY_TERRY, THURSTONE = "thurstone sigmas", "bradley-terry", "thurstone"
EXACT = "exact"
AS_SHOWN, AVERAGED = "as shown", "orders averaged"
LARGEST_SIGMA = math.exp(2.0)
"""Upper bound of a sigma."""
_RESAMPLES = 1000
_LEAST_HELD_OUT = 20
_LINEAR = 50.0
"""Where losses differ by more thousandths of a nat, a panel's axis turns logarithmic beyond 10."""
_MILLI = 1000.0
"""Losses differ in their third decimal: differences are told in thousandths of a nat."""


class ThurstoneRegularisationSettings(Settings):
    """Ask all pairs of some tasks once; fit a spread per task under several penalties to many and to few of the pairs."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 4, "repeats": 2, "out": Path("runs/thurstone_regularisation_quick")}

    out: Path = Field(
        default=Path("runs/thurstone_regularisation"),
        description="Run directory. The same one continues, or repeats at no cost.",
    )
    per_origin: int = Field(default=10, ge=1, description="Tasks sampled from each origin; every pair of them is asked.")
    wording: str = Field(default="would_rather", description="Template of the choices.")
    penalties: tuple[float, ...] = Field(
        default=(0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1000.0),
        min_length=2,
        description="Weights lambda of the sum of (log sigma)^2, in nats.",
    )
    degree: int = Field(default=6, ge=2, description="Other tasks that each task is compared with in the sparse design.")
    hold_out: float = Field(default=0.25, gt=0, lt=1, description="Share of the pairs outside the sparse design set aside.")
    answers: tuple[Literal["sampled", "exact"], ...] = Field(
        default=("sampled", "exact"),
        min_length=1,
        description="What is fitted: draws from the exact probabilities, the probabilities themselves, or each in turn.",
    )
    draws: int = Field(default=1, ge=1, description="Draws of every question, where answers are sampled.")
    repeats: int = Field(default=4, ge=1, description="Sets of sampled answers, each drawn and fitted anew.")

    @field_validator("penalties")
    @classmethod
    def _positive_and_rising(cls, penalties: tuple[float, ...]) -> tuple[float, ...]:
        if min(penalties) <= 0 or len(set(penalties)) < len(penalties):
            raise ValueError(f"expected different numbers above 0, got {penalties}")
        return tuple(sorted(penalties))


SETTINGS = ThurstoneRegularisationSettings


def run(settings: ThurstoneRegularisationSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    template("choice", settings.wording)  # a wrong name is an error before the model is loaded
    tasks = settings.load_tasks()
    task_ids = [task.id for task in tasks]
    designs, held = split(task_ids, settings.degree, settings.hold_out, settings.seed)
    setup = Setup.of(settings, tasks)
    asked = choice.questions(tasks, all_pairs(task_ids), wording=settings.wording)
    comparisons = choice.comparisons(asked, setup.ask(asked, "all pairs"))
    setup.run.save_table("comparisons", comparisons)
    test = held_out_pairs(comparisons, held)
    fits = fit_all(comparisons, designs, test, settings)
    test, fits = comparable(test, fits)
    curve, gains = curve_table(fits, settings.seed), gains_table(fits, test, settings.seed)
    for name, table in (("curve", curve), ("gains", gains), ("held_out", test)):
        setup.run.save_table(name, table)
    kinds = list(dict.fromkeys(settings.answers))
    return publish(
        setup.run,
        Source.of(setup, asked[0]),
        experiment="thurstone_regularisation",
        findings=[
            *(_gain_finding(gains, kind, settings) for kind in kinds),
            _sigma_finding(curve, kinds[0]),
            _position_finding(gains),
        ],
        figures={
            "thurstone_regularisation": loss_figure(curve, AS_SHOWN, len(test)),
            "thurstone_averaged": loss_figure(curve, AVERAGED, len(test)),
            "thurstone_sigmas": sigma_figure(curve),
        },
        tables=[
            Table(
                "Gains",
                "What sigmas save on held-out pairs against Bradley-Terry and Thurstone's case V, in thousandths of a nat; "
                "lambda chosen on the other half of the pairs. best: lambda with the least loss over all of them.",
                gains,
            ),
            Table("Curve", "Log loss on held-out pairs in nats; above: less that of Bradley-Terry, in thousandths.", curve),
        ],
        methods=(
            f"All {len(asked) // 2} pairs of {len(tasks)} tasks were asked in both orders (template {settings.wording}), and "
            f"the probabilities of both labels read exactly. {len(test)} pairs were held out; models were fitted to "
            f"{len(designs[DENSE])} others (dense) and to the {len(designs[SPARSE])} of them in which each task meets "
            f"{settings.degree} others (sparse), with {_what_was_fitted(settings)}. A prediction is scored by its "
            "cross-entropy with the exact probabilities, in both orders as shown, or with orders averaged and the position "
            "term left out. Intervals of losses are a bootstrap over held-out pairs. For gains the penalty is chosen on one "
            "half of the held-out pairs and scored on the other, both ways; their intervals allow for pairs that share a task, "
            "not for another set of answers to fit. Bradley-Terry and Thurstone's case V have their default prior (standard "
            "deviation 2)."
        ),
        summary={"curve": curve.to_dict("records"), "gains": gains.to_dict("records")},
        seconds=time.monotonic() - started,
    )


def split(task_ids: Sequence[str], degree: int, share: float, seed: int) -> tuple[dict[str, list[Pair]], list[Pair]]:
    """The pairs of both designs, the sparse one within the dense, and the pairs held out of both.

    Raises
    ------
    ValueError
        See `regular_pairs`; or too few pairs are left to be held out.
    """
    sparse = regular_pairs(task_ids, degree, seed)
    among = {frozenset(pair) for pair in sparse}
    rest = [pair for pair in all_pairs(task_ids) if frozenset(pair) not in among]
    if len(rest) * share < _LEAST_HELD_OUT:
        raise ValueError(
            f"{len(rest)} pairs of {len(task_ids)} tasks are outside the sparse design of degree {degree}, and a share of "
            f"{share:g} of them is fewer than {_LEAST_HELD_OUT} to hold out. Raise per_origin or hold_out, or lower degree."
        )
    fitted, held = hold_out(rest, share, seed)
    return {DENSE: sparse + fitted, SPARSE: sparse}, held


def held_out_pairs(comparisons: pd.DataFrame, held: Sequence[Pair]) -> pd.DataFrame:
    """Exact probabilities of the held-out pairs: `task_1, task_2`, and P(task 1), `shown_first`, `shown_second`, `averaged`."""
    pairs = order_averages(among(comparisons, held))
    content, position = pairs["content"], pairs["position"]
    chances = {"shown_first": content + position, "shown_second": content - position, "averaged": content}
    return pairs[["task_1", "task_2"]].assign(**{name: special.expit(logit) for name, logit in chances.items()})


def among(comparisons: pd.DataFrame, pairs: Sequence[Pair]) -> pd.DataFrame:
    """Usable comparisons of the given pairs, in either order."""
    wanted = {frozenset(pair) for pair in pairs}
    ends = zip(comparisons["first"], comparisons["second"], strict=True)
    chosen = np.fromiter((frozenset(pair) in wanted for pair in ends), dtype=bool, count=len(comparisons))
    return comparisons[chosen & (comparisons["outcome"] == "chose").to_numpy()]


@dataclass(frozen=True, eq=False)
class Fit:
    """One model under one condition, and what it loses on the held-out pairs.

    Attributes
    ----------
    design, answers, position, model, penalty
        What was fitted to what; the penalty is missing (nan) for models without one.
    losses
        By how predictions are scored: mean over sets of answers, one number a held-out pair, in nats.
    largest
        Largest sigma of every set of answers; empty for models without sigmas.
    unconverged
        Sets of answers whose fit did not converge.
    """

    design: str
    answers: str
    position: bool
    model: str
    penalty: float
    losses: dict[str, Float[np.ndarray, " pairs"]]
    largest: Float[np.ndarray, " repeats"]
    unconverged: int

    @property
    def condition(self) -> tuple[str, str, bool]:
        """All but the model."""
        return self.design, self.answers, self.position


def fit_all(
    comparisons: pd.DataFrame,
    designs: Mapping[str, Sequence[Pair]],
    test: pd.DataFrame,
    settings: ThurstoneRegularisationSettings,
) -> list[Fit]:
    """Fit every model to every design, with both kinds of answers, with a position term and without one."""
    found = []
    conditions = [
        (design, answers, position)
        for answers in dict.fromkeys(settings.answers)
        for design in designs
        for position in (True, False)
    ]
    for design, answers, position in tqdm(conditions, desc="fits", disable=None):
        tables = _answers(among(comparisons, designs[design]), answers, settings)
        for model, penalty, estimator in _estimators(settings.penalties, position):
            fits = [estimator.fit(table) for table in tables]
            scored = [scores(fit, test) for fit in fits]
            losses = {name: np.mean([each[name] for each in scored], axis=0) for name in (AS_SHOWN, AVERAGED)}
            largest = np.array([fit.sigmas.max() for fit in fits if fit.sigmas is not None])
            failed = sum(not fit.report.convergence.converged for fit in fits)
            found.append(Fit(design, answers, position, model, penalty, losses, largest, failed))
    return found


def _estimators(penalties: Sequence[float], position: bool) -> list[tuple[str, float, Estimator]]:
    plain_ones: list[tuple[str, float, Estimator]] = [
        (BRADLEY_TERRY, math.nan, BradleyTerry(position=position, errors="none")),
        (THURSTONE, math.nan, Thurstone(position=position, errors="none")),
    ]
    return plain_ones + [
        (SIGMAS, penalty, ThurstoneSigmas(penalty=penalty, position=position, errors="none")) for penalty in penalties
    ]


def _answers(exact: pd.DataFrame, kind: str, settings: ThurstoneRegularisationSettings) -> list[pd.DataFrame]:
    """What is fitted: the exact probabilities, or several sets of draws from them, the same for every model."""
    if kind == EXACT:
        return [exact]
    sets = []
    for number in range(settings.repeats):
        random = np.random.default_rng([settings.seed, number])
        drawn = random.binomial(settings.draws, exact["p_first"].to_numpy()) / settings.draws
        sets.append(exact.drop(columns="logit").assign(p_first=drawn, weight=float(settings.draws)))
    return sets


def scores(fit: Utilities, test: pd.DataFrame) -> dict[str, Float[np.ndarray, " pairs"]]:
    """Cross-entropy of what a fit predicts of every held-out pair with its exact probabilities, in nats."""
    one, two = test["task_1"], test["task_2"]
    first = fit.cross_entropy(fit.eta(one, two, with_position=True), test["shown_first"].to_numpy())
    second = fit.cross_entropy(fit.eta(two, one, with_position=True), 1 - test["shown_second"].to_numpy())
    return {AS_SHOWN: (first + second) / 2, AVERAGED: fit.cross_entropy(fit.eta(one, two), test["averaged"].to_numpy())}


def comparable(test: pd.DataFrame, fits: Sequence[Fit]) -> tuple[pd.DataFrame, list[Fit]]:
    """Only the held-out pairs that every fit has a prediction for.

    Raises
    ------
    ValueError
        They are too few.
    """
    known = np.all([np.isfinite(fit.losses[AS_SHOWN]) for fit in fits], axis=0)
    if known.sum() < _LEAST_HELD_OUT:
        raise ValueError(
            f"{known.sum()} held-out pairs have answers on format, and two tasks with utilities in every fit; expected "
            f"{_LEAST_HELD_OUT}. `penchant preflight` shows which templates this model can answer."
        )
    kept = [replace(fit, losses={name: losses[known] for name, losses in fit.losses.items()}) for fit in fits]
    return test[known].reset_index(drop=True), kept


def curve_table(fits: Sequence[Fit], seed: int) -> pd.DataFrame:
    """Log loss of every fit, itself and less that of Bradley-Terry with a position term; bootstrap over held-out pairs."""
    n = len(fits[0].losses[AS_SHOWN])
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES) / n
    plain_fits = {(fit.design, fit.answers): fit for fit in fits if fit.model == BRADLEY_TERRY and fit.position}
    rows = []
    for fit in fits:
        for scored, losses in fit.losses.items():
            above = _MILLI * (losses - plain_fits[fit.design, fit.answers].losses[scored])
            own, less = (Estimate.from_draws(float(each.mean()), counts @ each, n) for each in (losses, above))
            largest = fit.largest if len(fit.largest) else np.array([math.nan])
            rows.append(
                {"answers": fit.answers, "design": fit.design, "position": fit.position, "model": fit.model}
                | {"penalty": fit.penalty, "scored": scored}
                | {"log_loss": own.value, "log_loss_low": own.low, "log_loss_high": own.high}
                | {"above": less.value, "above_low": less.low, "above_high": less.high}
                | {"largest_sigma": largest.mean(), "sigma_low": largest.min(), "sigma_high": largest.max()}
                | {"unconverged": fit.unconverged}
            )
    return pd.DataFrame(rows)


def gains_table(fits: Sequence[Fit], test: pd.DataFrame, seed: int) -> pd.DataFrame:
    """What sigmas save against models without, in thousandths of a nat an answer.

    Beside it what Bradley-Terry saves against a fair coin (`over_coin`), and by its position term (`position_gain`).

    `best` is the penalty with the least loss over all held-out pairs, with an interval by bootstrap over them.
    """
    rows = []
    for condition in dict.fromkeys(fit.condition for fit in fits):
        here = [fit for fit in fits if fit.condition == condition]
        by_model = {fit.model: fit for fit in here if fit.model != SIGMAS}
        penalised = [fit for fit in here if fit.model == SIGMAS]
        for scored in (AS_SHOWN, AVERAGED):
            losses = np.stack([fit.losses[scored] for fit in penalised])
            best, low, high = best_penalty([fit.penalty for fit in penalised], losses, seed)
            chosen = cross_chosen(losses, seed)
            row: dict[str, Any] = dict(zip(("design", "answers", "position"), condition, strict=True))
            row |= {"scored": scored, "best": best, "best_low": low, "best_high": high}
            plain_losses = by_model[BRADLEY_TERRY].losses[scored]
            differences = {"gain": plain_losses - chosen, "over_thurstone": by_model[THURSTONE].losses[scored] - chosen}
            differences["over_coin"] = math.log(2) - plain_losses
            if condition[2]:
                without = next(fit for fit in fits if fit.condition == (*condition[:2], False) and fit.model == BRADLEY_TERRY)
                differences["position_gain"] = without.losses[scored] - plain_losses
            for name, difference in differences.items():
                estimate = mean_over_pairs(_MILLI * difference, test)
                row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
                row |= {f"{name}_se": estimate.se}
            rows.append(row | {"n": len(test)})
    return pd.DataFrame(rows)


def best_penalty(
    penalties: Sequence[float], losses: Float[np.ndarray, "penalties pairs"], seed: int
) -> tuple[float, float, float]:
    """The penalty with the least mean loss, and the 95 % interval of it over bootstrap resamples of pairs."""
    n = losses.shape[1]
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=_RESAMPLES)
    drawn = np.asarray(penalties)[(counts @ losses.T).argmin(axis=1)]
    low, high = np.quantile(drawn, [0.025, 0.975], method="nearest")
    return float(np.asarray(penalties)[losses.mean(axis=1).argmin()]), float(low), float(high)


def cross_chosen(losses: Float[np.ndarray, "penalties pairs"], seed: int) -> Float[np.ndarray, " pairs"]:
    """Loss of every pair under the penalty that is best on the half of the pairs that it is not in.

    The least of several losses on the very pairs that are scored would look better than it is.
    """
    n = losses.shape[1]
    in_half = np.random.default_rng([seed, 1]).permutation(n) < n // 2
    chosen = np.empty(n)
    for half in (in_half, ~in_half):
        chosen[half] = losses[losses[:, ~half].mean(axis=1).argmin(), half]
    return chosen


def mean_over_pairs(values: Float[np.ndarray, " pairs"], test: pd.DataFrame) -> Estimate:
    """Mean over held-out pairs; the interval allows for pairs that share a task."""
    return dyadic_estimate(lambda rows: values[rows].mean(-1), test["task_1"], test["task_2"])


def _what_was_fitted(settings: ThurstoneRegularisationSettings) -> str:
    draws = "one draw" if settings.draws == 1 else f"{settings.draws} draws"
    words = {
        "sampled": f"{settings.repeats} sets of sampled answers ({draws} of every question from its exact probabilities, each "
        "set fitted by itself and losses averaged)",
        EXACT: "the exact probabilities as soft labels",
    }
    return " and with ".join(words[kind] for kind in dict.fromkeys(settings.answers))


def _estimate(row: pd.Series, name: str) -> Estimate:
    return Estimate(row[name], row[f"{name}_low"], row[f"{name}_high"], row[f"{name}_se"], int(row["n"]))


def _gain_finding(gains: pd.DataFrame, kind: str, settings: ThurstoneRegularisationSettings) -> Finding:
    part = gains[gains["answers"] == kind]
    told = "the exact probabilities" if kind == EXACT else f"sampled answers ({settings.draws} a question)"
    with_position = [_verdict(row, settings.penalties) for _, row in part[part["position"]].iterrows()]
    heading = (
        f"{'design':8s}{'position':10s}{'scored':17s}{'lambda':>20s}   {'sigmas save':22s} Bradley-Terry saves against a coin"
    )
    rows = tuple(
        f"{row['design']:8s}{'on' if row['position'] else 'off':10s}{row['scored']:17s}{_lambda(row):>20s}   "
        f"{plain(_estimate(row, 'gain')):22s} {plain(_estimate(row, 'over_coin'))}"
        for _, row in part.iterrows()
    )
    return Finding(
        f"Fitted to {kind}",
        "What a spread per task saves on held-out pairs against Bradley-Terry, both with a position term and fitted to "
        f"{told}, in thousandths of a nat an answer: {'; '.join(with_position)}. At the largest lambda all spreads are alike, "
        "and what then differs from Bradley-Terry is the curve and the lack of a prior.",
        "thurstone_regularisation",
        (heading, *rows),
    )


def _lambda(row: pd.Series) -> str:
    return f"{row['best']:g} [{row['best_low']:g}, {row['best_high']:g}]"


def _verdict(row: pd.Series, penalties: Sequence[float]) -> str:
    """Whether sigmas predict better than Bradley-Terry under one condition."""
    gain = _estimate(row, "gain")
    edges = {
        max(penalties): ", the largest tried",
        min(penalties): ", the least tried",
    }
    if gain.differs_from(0):
        verdict = "better" if gain.value > 0 else "worse"
    else:
        verdict = f"not shown to be better or worse, though {gain.smallest_effect:.2f} would have been found four times in five"
    best = f"lambda = {_lambda(row)} is best{edges.get(row['best'], '')}"
    return f"{row['design']}, {row['scored']}, {plain(gain)} ({verdict}; {best})"


def _sigma_finding(curve: pd.DataFrame, kind: str) -> Finding:
    part = curve[(curve["model"] == SIGMAS) & (curve["scored"] == AS_SHOWN) & curve["position"] & (curve["answers"] == kind)]
    told = []
    for design in (DENSE, SPARSE):
        rows = part[part["design"] == design]
        rows = rows.sort_values("penalty")
        least, most = rows.iloc[0], rows.iloc[-1]
        bound = rows[rows["sigma_high"] >= 0.999 * LARGEST_SIGMA]["penalty"]
        held = (
            f"some is on its bound ({LARGEST_SIGMA:.2f}) up to lambda = {bound.max():g}" if len(bound) else "none on its bound"
        )
        told.append(
            f"from {least['largest_sigma']:.2f} at lambda = {least['penalty']:g} to {most['largest_sigma']:.2f} at "
            f"{most['penalty']:g} in the {design} design ({held})"
        )
    failed = int(curve.drop_duplicates(["answers", "design", "position", "model", "penalty"])["unconverged"].sum())
    note = f" {failed} fits did not converge." if failed else ""
    sentence = (
        f"The largest sigma, fitted to {kind} answers, falls {'; '.join(told)}. Where all are 1, the model is Thurstone's case "
        "V, without a prior."
    )
    return Finding("Largest sigma", sentence + note, "thurstone_sigmas")


def _position_finding(gains: pd.DataFrame) -> Finding:
    part = gains[gains["position"] & (gains["scored"] == AS_SHOWN)]
    told = "; ".join(
        f"{plain(_estimate(row, 'position_gain'))} ({row['design']}, {row['answers']})" for _, row in part.iterrows()
    )
    effects = [_estimate(row, "position_gain") for _, row in part.iterrows()]
    unseen = [effect.smallest_effect for effect in effects if not effect.differs_from(0)]
    note = (
        f" Where the interval contains 0 nothing is claimed; {max(unseen):.1f} would have been found four times in five."
        if unseen
        else ""
    )
    return Finding(
        "Position term",
        f"The term saves Bradley-Terry {told} thousandths of a nat an answer as shown.{note} In the model with sigmas it "
        "counts for less where sigmas are large, so that they can stand for a bias that differs by task: what they save as "
        "shown, yet neither with orders averaged nor without the term, would be that, and no spread of what tasks are worth.",
        "thurstone_regularisation",
    )


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
    axes.yaxis.set_major_formatter(lambda value, _place: f"{value:g}")
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


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["thurstone_regularisation", *sys.argv[1:]]))
