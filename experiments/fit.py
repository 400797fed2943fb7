"""fit: utilities of comparisons that are on disk already, imported or asked, and how far they can be trusted.

No model is asked anything. What cannot be known of such comparisons, for instance a position bias where every pair was shown in
one order, is said and not guessed.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import BradleyTerry, LeastSquares, Thurstone, Utilities, hold_out, hold_out_accuracy, position_bias
from elicit.comparisons import ComparisonError, Comparisons
from elicit.reliability import HardCycles, HoldOut, PositionBias, hard_cycles
from experiments import figures as plots
from experiments.findings import Finding, hold_out_finding, null_note, plain, position_finding
from experiments.imports import ForeignFileError, has_imported_labels, origins_of, read_record
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.run_directory import RunDirectory
from experiments.settings import RunSettings
from store import Estimate, write_labels

_DEFAULT_OUT = Path("runs/fit")
_LEAST_PAIRS = 10
"""Fewer pairs are not split into those to fit and those to predict."""
_MOST_TASKS = 300
"""With more, the circles among all triads take longer to count than all the rest."""
_SHOWN = 5
_UNITS = {"logistic": "logits", "probit": "standard deviations of a difference"}

Name = Literal["bradley_terry", "least_squares", "thurstone"]


class FitSettings(RunSettings):
    """Fit utilities to the comparisons of a run."""

    run: Path | None = Field(default=None, description="Run directory with tables/comparisons, as penchant import makes it.")
    out: Path = Field(
        default=_DEFAULT_OUT, description="Run directory. If it is not given: the run itself where that was imported."
    )
    estimator: Name = Field(
        default="bradley_terry",
        description="bradley_terry or thurstone, for sampled answers and probabilities; least_squares, for log-odds of both "
        "orders.",
    )
    prior_sd: float = Field(default=2.0, gt=0, description="Prior on utilities; raise it where the report says so.")
    target: str = Field(default="utility", description="What the labels are called.")
    hold_out: float = Field(default=0.2, gt=0, lt=1, description="Share of pairs set aside to test the fit.")
    resamples: int = Field(default=200, ge=20, description="Bootstrap resamples of pairs.")
    tasks: str | None = Field(default=None, description="File of the tasks, or builtin: where their origins are.")


@dataclass(frozen=True)
class _Trust:
    """What the comparisons allow to be said of the fit; None where they do not."""

    held_out: HoldOut | None
    bias: PositionBias | None
    cycles: HardCycles | None
    without_cycles: str


def run(settings: FitSettings) -> Result:
    """Fit utilities, and write them with a report."""
    started = time.monotonic()
    source, settings = _resolved(settings)
    comparisons = _read(source)
    order_known = bool(read_record(source).get("comparisons", {}).get("order_known", True))
    estimator = estimator_of(settings, order_known)
    utilities = estimator.fit(comparisons)
    trust = _trust(settings, estimator, comparisons)
    labels = utilities.labels(settings.target)
    origins, from_where = origins_of(labels["task_id"].tolist(), [source], settings.tasks)
    run_directory = RunDirectory(settings)
    tables = {"comparisons": comparisons, "labels": labels}
    if trust.held_out:
        tables["hold_out"] = trust.held_out.table
    by_template = position_by_template(comparisons) if trust.bias else pd.DataFrame()
    if len(by_template):
        tables["position_by_template"] = by_template
    for name, table in tables.items():
        run_directory.save_table(name, table)
    write_labels(labels, run_directory.path / "tables" / "labels.parquet")
    findings = [
        _utilities_finding(utilities, labels),
        *([hold_out_finding(trust.held_out)] if trust.held_out else [_without_hold_out(utilities)]),
        _position_finding(utilities, Comparisons.of(comparisons), trust, order_known, by_template),
        _transitivity_finding(trust),
    ]
    figures: dict[str, Figure] = {"utilities": plots.utilities_figure(labels, origins)}
    if utilities.link == "probit":
        figures["utilities"].axes[0].set_xlabel(f"utility ({_UNITS['probit']}; line: 95 % interval; black: mean of the origin)")
    figures |= {"hold_out": trust.held_out.plot()} if trust.held_out else {}
    figures |= {"position": trust.bias.plot()} if trust.bias else {}
    figures |= {"transitivity": trust.cycles.plot()} if trust.cycles else {}
    ranked = labels.sort_values("value", ascending=False, ignore_index=True)
    columns = ["task_id", "value", "se", "low", "high", "n"]
    return publish(
        run_directory,
        Source(f"{_said_of(source)}, {len(labels):,} tasks, {utilities.method}", {}, len(comparisons)),
        experiment="fit",
        findings=findings,
        figures=figures,
        tables=[
            Table("Highest", f"Tasks with the highest utilities ({_UNITS[utilities.link]}).", ranked[columns].head(10)),
            Table("Lowest", "Tasks with the lowest.", ranked[columns].tail(10)),
        ],
        methods=_methods(settings, utilities, trust, order_known, from_where),
        summary={
            "fit": {name: value for name, value in utilities.report.to_dict().items() if name != "per_task"},
            "position_term": utilities.position.to_dict(),
            "reliability": separation(labels),
            "hold_out": trust.held_out.to_dict() if trust.held_out else None,
            "position_bias": trust.bias.to_dict() if trust.bias else None,
            "cycles": trust.cycles.to_dict() if trust.cycles else None,
        },
        seconds=time.monotonic() - started,
    )


def _resolved(settings: FitSettings) -> tuple[Path, FitSettings]:
    """Where the comparisons are, and the settings with where the results go."""
    source = settings.run
    if source is None:
        raise ValueError("penchant fit needs a run directory with comparisons: penchant fit runs/mine.")
    if settings.out == _DEFAULT_OUT and read_record(source):
        settings = settings.model_copy(update={"out": source})
    if settings.out.resolve() == source.resolve():
        if not read_record(source):
            raise ForeignFileError(f"{source} has results of its own, which these would replace; give another --out.")
        if has_imported_labels(source):
            raise ForeignFileError(f"{source} has labels that were imported; give another --out for fitted ones.")
    return source, settings


def _read(source: Path) -> pd.DataFrame:
    if not source.is_dir():
        raise ForeignFileError(
            f"There is no directory {source}. penchant import comparisons FILE --out {source} makes one of a file."
        )
    path = source / "tables" / "comparisons.parquet"
    if not path.is_file():
        there = sorted(each.stem for each in (source / "tables").glob("*.parquet"))
        known = f"its tables are {', '.join(there)}" if there else "it has no tables"
        raise ForeignFileError(
            f"There is no table {path}: {known}. penchant import comparisons FILE --out {source} makes one of a file."
        )
    return pd.read_parquet(path)


def estimator_of(settings: FitSettings, order_known: bool) -> Any:
    """The estimator that settings name, with a position term where it is known what was shown first."""
    draws: dict[str, Any] = {"resamples": settings.resamples, "seed": settings.seed}
    if settings.estimator == "least_squares":
        return LeastSquares(**draws)
    kind = BradleyTerry if settings.estimator == "bradley_terry" else Thurstone
    return kind(prior_sd=settings.prior_sd, position=order_known, **draws)


def separation(labels: pd.DataFrame) -> float:
    """Share of the variance of labels that is not error: 1 - mean(se²) / variance, not below 0; missing without errors."""
    variance = float(labels["value"].var())
    if labels["se"].isna().any() or not variance > 0:
        return math.nan
    return max(0.0, 1 - float((labels["se"] ** 2).mean()) / variance)


def _trust(settings: FitSettings, estimator: Any, comparisons: pd.DataFrame) -> _Trust:
    known = comparisons[comparisons["outcome"] == "chose"] if "outcome" in comparisons else comparisons
    unordered = list(map(frozenset, zip(known["first"], known["second"], strict=True)))
    pairs = sorted(tuple(sorted(pair)) for pair in set(unordered))
    held_out = bias = cycles = None
    if len(pairs) >= _LEAST_PAIRS:
        held = set(map(frozenset, hold_out(pairs, settings.hold_out, settings.seed)[1]))
        is_held = np.array([pair in held for pair in unordered])
        try:
            rest = type(estimator)(**estimator.get_params() | {"errors": "none"}).fit(known[~is_held])
            held_out = hold_out_accuracy(rest, known[is_held], seed=settings.seed)
        except ValueError:  # what is left joins no pair that was set aside, or has both orders of none
            held_out = None
    if "logit" in known and known["logit"].notna().all() and _in_both_orders(Comparisons.of(known)) >= 3:
        bias = position_bias(known)
    without = f"there are more than {_MOST_TASKS} tasks; among fewer, circles are counted"
    if len({*known["first"], *known["second"]}) <= _MOST_TASKS:
        try:
            cycles = hard_cycles(known, simulations=settings.resamples, resamples=settings.resamples, seed=settings.seed)
        except ComparisonError as error:
            without = str(error)
    return _Trust(held_out, bias, cycles, without)


def _in_both_orders(cells: Comparisons) -> int:
    """Number of pairs with an answer in either order."""
    return len(cells.pair) - cells.n_pairs


def _said_of(source: Path) -> str:
    """Where comparisons are from, in a few words."""
    imported = read_record(source).get("comparisons", {})
    return f"comparisons of {imported.get('file', source.name)}"


def _utilities_finding(utilities: Utilities, labels: pd.DataFrame) -> Finding:
    report, shown = utilities.report, labels.sort_values("value", ascending=False)
    left_out = {name: count for name, count in report.outcomes.items() if name != "chose"}
    without = f" ({', '.join(f'{count:,} {name}' for name, count in left_out.items())} left out)" if left_out else ""
    share = separation(labels)
    reliable = f"; {100 * share:.0f} % of their variance is not error" if share == share else ""
    warned = f" {' '.join(report.warnings())}" if report.warnings() else ""
    listed = pd.concat([shown.head(_SHOWN), shown.tail(_SHOWN)]) if len(shown) > 2 * _SHOWN else shown
    rows = tuple(
        f"{row['task_id'][:40]:42s}{row['value']:+6.2f} [{row['low']:+.2f}, {row['high']:+.2f}]" for _, row in listed.iterrows()
    )
    return Finding(
        "Utilities",
        f"{report.answers:,} answers{without} about {report.pairs:,} pairs give {len(labels):,} tasks utilities with a "
        f"standard deviation of {labels['value'].std():.2f} {_UNITS[utilities.link]} and a median error of "
        f"{labels['se'].median():.2f}"
        f"{reliable}.{warned}",
        "utilities",
        ("highest and lowest", *rows),
    )


def _without_hold_out(utilities: Utilities) -> Finding:
    return Finding(
        "Hold-out",
        f"The {utilities.report.pairs} pairs are too few, or hang together too loosely, to set some aside and predict them.",
    )


def position_by_template(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Position bias of every template, where there are several with three pairs in both orders; least first."""
    if "template" not in comparisons or comparisons["template"].nunique() < 2:
        return pd.DataFrame()
    rows = []
    for template, part in comparisons.groupby("template"):
        known = part[part["outcome"] == "chose"] if "outcome" in part else part
        if len(known) and _in_both_orders(Comparisons.of(known)) >= 3:
            found = position_bias(known).mean
            rows.append(
                {"template": str(template), "mean": found.value, "low": found.low, "high": found.high, "pairs": found.n}
            )
    return pd.DataFrame(rows).sort_values("mean", ignore_index=True) if len(rows) > 1 else pd.DataFrame()


def _position_finding(
    utilities: Utilities, cells: Comparisons, trust: _Trust, order_known: bool, by_template: pd.DataFrame
) -> Finding:
    if trust.bias and len(by_template):
        least, most = by_template.iloc[0], by_template.iloc[-1]
        whole = position_finding(trust.bias)
        pooled = (
            f" That is of {len(by_template)} templates together, and it is not one thing in all: from {least['mean']:+.2f} "
            f"({least['template']}) to {most['mean']:+.2f} ({most['template']}); see tables/position_by_template."
        )
        return Finding(whole.name, whole.sentence + pooled, whole.figure)
    if trust.bias:
        return position_finding(trust.bias)
    if not order_known:
        sentence = "Which task was shown first is not known, so nothing can be said of position bias, and none is taken out."
        return Finding("Position bias", sentence)
    both, unit = _in_both_orders(cells), _UNITS[utilities.link]
    term = f"{plain(utilities.position)} {unit}"
    if not both:
        return Finding(
            "Position bias",
            f"Every one of {cells.n_pairs:,} pairs was asked in one order only, so what a pair owes to its order cannot be "
            f"told from what it prefers. The position term, {term}, is what tasks shown first win beyond their utilities: a "
            "bias, if it was chance that put them first." + _null(utilities.position),
        )
    flips = trust.cycles.flips if trust.cycles else None
    flipped = f" The order changes the winner of {plain(flips, percent=True)} of {flips.n:,} pairs." if flips else ""
    return Finding(
        "Position bias",
        f"Being shown first is worth {term} on average; {both:,} of {cells.n_pairs:,} pairs were asked in both orders."
        f"{flipped}" + _null(utilities.position),
    )


def _null(position: Estimate) -> str:
    return null_note(position, "average bias") if math.isfinite(position.low) else ""


def _transitivity_finding(trust: _Trust) -> Finding:
    if trust.cycles is None:
        return Finding("Hard cycles", f"Circles of preference are not counted: {trust.without_cycles.rstrip('.')}.")
    pooled = trust.cycles.pooled
    noise = f"noise around the utilities gives {plain(pooled.expected, percent=True)}" if pooled.p == pooled.p else ""
    verdict = f" (p = {pooled.p:.2f})" if noise else ""
    return Finding(
        "Hard cycles",
        f"The winners of {plain(pooled.rate, percent=True)} of {pooled.triads:,} triads go round in a circle; {noise}{verdict}"
        f", fair coins {100 * pooled.chance:.0f} %.",
        "transitivity",
    )


def _methods(settings: FitSettings, utilities: Utilities, trust: _Trust, order_known: bool, from_where: str) -> str:
    prior = f", normal priors with a standard deviation of {settings.prior_sd:g}" if utilities.report.prior_sd else ""
    position = " and a position term" if order_known and settings.estimator != "least_squares" else ""
    errors = "residuals of pairs" if utilities.se is not None else f"{settings.resamples} bootstrap resamples of whole pairs"
    held = (
        f" A random {100 * settings.hold_out:.0f} % of unordered pairs was set aside, and predicted by the others' utilities."
        if trust.held_out
        else ""
    )
    cycles = " Hard cycles are triads whose three majority winners form a circle." if trust.cycles else ""
    origins = f" Origins of tasks are from {from_where}." if from_where else ""
    return (
        f"Utilities by {utilities.method} ({utilities.link} link{prior}){position}, mean zero over tasks; intervals from "
        f"{errors}. Answers that are no choice are counted and left out.{held}{cycles}{origins}"
    )
