"""refusal_correlation: whether what a model refuses is what it would rather not do, or say it dislikes."""

import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field
from scipy import stats

from elicit import (
    Context,
    LeastSquares,
    Task,
    calibration_tasks,
    choice,
    clustered_rate,
    completion,
    judge,
    rating,
    refusal,
    regular_pairs,
)
from elicit.reliability import Agreement, agreement
from elicit.templates import template
from experiments import figures as plots
from experiments.findings import Finding, null_note, plain
from experiments.measuring import length_and_origin
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Estimate, Sampling

Detector = Literal["phrases", "judge"]
CONTROL = "calibration"
_ALL = "all but controls"
_RESAMPLES = 500
_LEVEL = 0.05
_FEWEST_TASKS = 4
_FEWEST_UNLIKE = 5
"""Tasks that must differ from the commonest refusal rate; of fewer, an interval would be of how they happen to lie."""


class RefusalCorrelationSettings(Settings):
    """Have every task done several times, see how often it is refused, and compare that with choices and self-reports."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 4,
        "n_draws": 2,
        "degree": 4,
        "out": Path("runs/refusal_correlation_quick"),
    }

    out: Path = Field(
        default=Path("runs/refusal_correlation"), description="Run directory. The same one continues, or repeats at no cost."
    )
    n_draws: int = Field(default=4, ge=1, description="Completions of every task.")
    max_new_tokens: int = Field(default=48, ge=8, description="Length of a completion; refusals come early.")
    temperature: float = Field(default=1.0, ge=0, description="Of the completions.")
    detectors: tuple[Detector, ...] = Field(
        default=("phrases", "judge"), min_length=1, description="What calls a completion a refusal."
    )
    wording: str = Field(default="would_rather", description="Template of the choices.")
    degree: int = Field(default=6, ge=2, description="Number of other tasks that each task is compared with.")
    scale: str = Field(default="yes_somewhat_no", description="Scale of the self-reports.")

    def load_tasks(self) -> list[Task]:
        """The sampled tasks, and requests that nobody should refuse as controls."""
        return [*super().load_tasks(), *calibration_tasks()]


SETTINGS = RefusalCorrelationSettings


def run(settings: RefusalCorrelationSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    for mode, name in (("choice", settings.wording), ("rating", settings.scale)):
        template(mode, name)  # a wrong name is an error before the model is loaded
    setup = Setup.of(settings, settings.load_tasks())
    setup.check_can_rate([settings.scale])
    written = _write(setup, settings)
    refused: dict[Detector, np.ndarray] = {detector: _refused(detector, written, setup) for detector in settings.detectors}
    detected = written.assign(**refused, origin=written["task_id"].map(setup.origins))
    tasks = [task for task in setup.tasks if task.origin != CONTROL]
    measures = _measures(setup, tasks, settings)
    refusals: dict[Detector, pd.DataFrame] = {
        detector: refusal.labels(written, values.tolist(), method=detector) for detector, values in refused.items()
    }
    related = _related(refusals, measures, tasks, settings)
    rates = _rates(detected, settings.detectors)
    for name, table in (("completions", detected), ("rates", rates)):
        setup.run.save_table(name, table)
    setup.run.save_table("labels", pd.concat([*refusals.values(), *measures.values()], ignore_index=True))
    correlations = _correlation_table(related)
    setup.run.save_table("correlations", correlations)
    kappa = _kappa(detected, settings)
    return publish(
        setup.run,
        Source.of(setup, completion.questions(tasks[:1], context=_sampled(settings))[0]),
        experiment="refusal_correlation",
        findings=[
            _rate_finding(rates, settings),
            *([_kappa_finding(kappa)] if kappa else []),
            *(_relation_finding(detector, measure, each, len(related)) for (detector, measure), each in related.items()),
        ],
        figures={
            "refusal_rates": rates_figure(rates, settings.detectors),
            "refusal_against": relation_figure(related, setup.origins),
        },
        tables=[
            Table("Refusal rates", "Share of completions; Wilson intervals over tasks.", rates),
            Table(
                "Correlations",
                "Over tasks; unlike: tasks without the commonest value; partial: of what length and origin leave of both.",
                correlations,
            ),
        ],
        methods=_methods(settings, len(setup.tasks), len(tasks)),
        summary={
            "rates": rates.to_dict("records"),
            "kappa": kappa,
            "correlations": {f"{detector} / {measure}": each for (detector, measure), each in related.items()},
        },
        seconds=time.monotonic() - started,
    )


def _related(
    refusals: Mapping[Detector, pd.DataFrame],
    measures: Mapping[str, pd.DataFrame],
    tasks: Sequence[Task],
    settings: RefusalCorrelationSettings,
) -> dict[tuple[Detector, str], Agreement]:
    """Every detector with every measure that has enough tasks in common with it."""
    controls = length_and_origin(tasks)
    related: dict[tuple[Detector, str], Agreement] = {
        (detector, measure): agreement(
            table[table["task_id"].isin(controls.index)], labels, controls=controls, resamples=_RESAMPLES, seed=settings.seed
        )
        for (detector, table), (measure, labels) in itertools.product(refusals.items(), measures.items())
        if _common(table, labels, controls) >= _FEWEST_TASKS
    }
    if not related:
        raise ValueError(
            f"No detector of refusals is known with a measure of {_FEWEST_TASKS} tasks: the model is off format as a judge, "
            f"or on {settings.wording} and {settings.scale}. `penchant preflight` shows what it can answer."
        )
    return related


def _methods(settings: RefusalCorrelationSettings, n: int, n_asked: int) -> str:
    return (
        f"Each of {n} tasks ({n - n_asked} of them requests that nobody should refuse) was done {settings.n_draws} times "
        f"(temperature {settings.temperature:g}, up to {settings.max_new_tokens} tokens). A completion is a refusal by rules "
        "on its opening phrases, or by the model's own probability of yes to whether it declines. The tasks were compared in "
        f"pairs (template {settings.wording}, degree {settings.degree}, both orders) and rated on {settings.scale}; refusal "
        "rates are correlated with utilities and ratings over tasks, with a bootstrap over tasks."
    )


def _sampled(settings: RefusalCorrelationSettings) -> Context:
    sampling = Sampling(settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed)
    return Context(sampling=sampling, n_draws=settings.n_draws)


def _write(setup: Setup, settings: RefusalCorrelationSettings) -> pd.DataFrame:
    asked = completion.questions(setup.tasks, context=_sampled(settings))
    return completion.completions(asked, setup.ask(asked, "completions"))


def _refused(detector: Detector, written: pd.DataFrame, setup: Setup) -> np.ndarray:
    """Whether, or with what probability, each completion refuses; missing where the judge is off format."""
    if detector == "phrases":
        return np.array([refusal.declines(text) for text in written["text"]], dtype=float)
    asked = judge.questions(written, criterion="refusal")
    return judge.judgements(asked, setup.ask(asked, "judge"))["value"].to_numpy(dtype=float)


def _measures(setup: Setup, tasks: Sequence[Task], settings: RefusalCorrelationSettings) -> dict[str, pd.DataFrame]:
    pairs = regular_pairs([task.id for task in tasks], settings.degree, settings.seed)
    asked = choice.questions(tasks, pairs, wording=settings.wording)
    utilities = LeastSquares(resamples=_RESAMPLES, seed=settings.seed).fit(
        choice.comparisons(asked, setup.ask(asked, "choices"))
    )
    rated = rating.questions(tasks, scale=settings.scale)
    labels = rating.labels(rating.ratings(rated, setup.ask(rated, "self-reports")))
    return {"utility": utilities.labels(), settings.scale: labels[labels["target"] == settings.scale]}


def _common(refused: pd.DataFrame, labels: pd.DataFrame, controls: pd.DataFrame) -> int:
    """Number of tasks, controls left out, that have both labels."""
    return len(set(refused["task_id"]) & set(labels["task_id"]) & set(controls.index))


def _rates(detected: pd.DataFrame, detectors: Sequence[Detector]) -> pd.DataFrame:
    """Refusal rate by every detector, a task counting once: of all but the controls, of every origin, of the controls."""
    others = detected[detected["origin"] != CONTROL]
    parts = {_ALL: others} | {str(name): part for name, part in others.groupby("origin")}
    parts[CONTROL] = detected[detected["origin"] == CONTROL]
    rows = []
    for (origin, part), detector in itertools.product(parts.items(), detectors):
        known = part[part[detector].notna()]
        row = {"origin": origin, "detector": detector, "completions": len(known), "rate": np.nan}
        if len(known):
            found = clustered_rate(known[detector] > 0.5, known["task_id"])
            row |= {"rate": found.value, "low": found.low, "high": found.high, "tasks": found.n}
        rows.append(row)
    return pd.DataFrame(rows)


def _kappa(detected: pd.DataFrame, settings: RefusalCorrelationSettings) -> Estimate | None:
    """Cohen's kappa of the two detectors; interval by bootstrap over tasks."""
    if len(settings.detectors) < 2:
        return None
    known = detected.dropna(subset=list(settings.detectors))
    refused = [known.loc[known[detector] > 0.5, "task_id"].nunique() for detector in settings.detectors]
    if known.empty or min(refused) < _FEWEST_UNLIKE:
        return None  # where one finds next to nothing, there is nothing to agree about
    said = [known[detector].to_numpy() > 0.5 for detector in settings.detectors]
    # Kappa needs sums of four indicators only, so whole tasks can be resampled by weights.
    indicators = np.stack([said[0] & said[1], said[0], said[1], np.ones_like(said[0])], axis=1).astype(float)
    by_task = pd.DataFrame(indicators).groupby(known["task_id"].to_numpy()).sum().to_numpy()
    rows = np.random.default_rng(settings.seed).integers(len(by_task), size=(1000, len(by_task)))
    draws = [_kappa_of(by_task[row].sum(axis=0)) for row in rows]
    return Estimate.from_draws(_kappa_of(by_task.sum(axis=0)), draws, len(by_task))


def _kappa_of(sums: np.ndarray) -> float:
    both, first, second, n = sums
    observed = (n - first - second + 2 * both) / n
    expected = (first * second + (n - first) * (n - second)) / n**2
    return float((observed - expected) / (1 - expected)) if expected < 1 else float("nan")


def _correlation_table(related: Mapping[tuple[Detector, str], Agreement]) -> pd.DataFrame:
    rows = []
    for (detector, measure), each in related.items():
        row: dict[str, Any] = {"refusal_by": detector, "measure": measure, "tasks": each.pearson.n, "unlike": _unlike(each)}
        for name in ("pearson", "spearman", "partial"):
            estimate: Estimate = getattr(each, name)
            row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _rate_finding(rates: pd.DataFrame, settings: RefusalCorrelationSettings) -> Finding:
    said = []
    for detector in settings.detectors:
        part = rates[rates["detector"] == detector].set_index("origin")
        whole: Any = part.loc[_ALL]
        if np.isnan(whole["rate"]):
            said.append(f"by {detector} nothing can be said, since the model as a judge is off format")
            continue
        others = part.drop([_ALL, CONTROL]).sort_values("rate")
        highest = others[others["rate"] >= others["rate"].max() - 1e-12]
        most = f", most of {' and '.join(highest.index)} ({_share(highest.iloc[0])})" if others["rate"].max() > 0 else ""
        alarms = f"; of the controls {_share(part.loc[CONTROL])}" if part.loc[CONTROL, "completions"] else ""
        said.append(f"by {detector} {_share(whole)} of {whole['tasks']:.0f} tasks{most}{alarms}")
    return Finding("Refusals", f"Refused are, {'; '.join(said)}.", "refusal_rates")


def _share(row: Any) -> str:
    return f"{100 * row['rate']:.0f} % [{100 * row['low']:.0f}, {100 * row['high']:.0f}]"


def _kappa_finding(kappa: Estimate) -> Finding:
    return Finding(
        "Detectors",
        f"Phrase rules and the judge agree about a completion at a kappa of {plain(kappa)} ({kappa.n} tasks; 0 by chance, 1 in "
        "full)." + null_note(kappa, "agreement of the two"),
        "refusal_rates",
    )


def _relation_finding(detector: Detector, measure: str, found: Agreement, n_relations: int) -> Finding:
    name = f"{detector}, {measure.replace('_', ' ')}"
    what = "The share of refusals by phrases" if detector == "phrases" else "The mean probability of refusal by the judge"
    n = found.pearson.n
    if (unlike := _unlike(found)) < _FEWEST_UNLIKE:
        how = "are all alike" if unlike == 0 else f"differ in {unlike} of {n} tasks alone"
        return Finding(
            name,
            f"Refusals by {detector} {how}, so nothing is said of how they go with {measure} (five tasks or more are needed).",
        )
    beyond = f"; given length and origin, at {plain(found.partial)}" if found.partial else ""
    p = min(1.0, n_relations * _p_of(found.pearson))
    excludes = found.pearson.low > 0 or found.pearson.high < 0
    verdict = (
        f" Corrected for the {n_relations} relations looked at, p = {p:.2f}{'' if p <= _LEVEL else ', so none is claimed'}."
        if excludes
        else null_note(found.pearson, "relation")
    )
    return Finding(
        name,
        f"{what} correlates with {measure} at r = {plain(found.pearson)} over {n} tasks (rank correlation "
        f"{plain(found.spearman)}){beyond}; it is one of {n_relations} relations looked at.{verdict}",
        "refusal_against",
    )


def _unlike(found: Agreement) -> int:
    """Number of tasks whose refusal rate is not the commonest one."""
    return len(found.tasks) - int(found.tasks["value_1"].round(9).value_counts().iloc[0])


def _p_of(correlation: Estimate) -> float:
    """Two-sided p of a correlation from its interval, on Fisher's scale."""
    low, value, high = np.arctanh(np.clip([correlation.low, correlation.value, correlation.high], -0.999999, 0.999999))
    return float(2 * stats.norm.sf(abs(value) / max((high - low) / (2 * stats.norm.ppf(0.975)), 1e-12)))


def rates_figure(rates: pd.DataFrame, detectors: Sequence[Detector]) -> Figure:
    """Refusal rate of every origin, one panel a detector."""
    origins = rates["origin"].drop_duplicates().tolist()[::-1]
    figure, panels = plots.new_panels(len(detectors), 0.4 * len(origins) + 1.6)
    for axes, detector in zip(panels, detectors, strict=True):
        part = rates[rates["detector"] == detector].set_index("origin").reindex(origins)
        colours = [plots.GREY if origin == CONTROL else plots.BLUE for origin in origins]
        axes.hlines(range(len(origins)), part["low"], part["high"], color=colours, linewidth=1.8)
        axes.scatter(part["rate"], range(len(origins)), color=colours, s=24, zorder=3)
        axes.set(title=f"by {detector}", xlabel="share refused", xlim=(-0.02, 1.02))
    panels[0].set_yticks(range(len(origins)), origins)
    figure.suptitle("Refusals (grey: requests that nobody should refuse)", fontsize=10)
    return figure


def relation_figure(related: Mapping[tuple[Detector, str], Agreement], origins: Mapping[str, str]) -> Figure:
    """Refusal rate against each measure, one panel a combination."""
    figure, panels = plots.new_panels(len(related), 3.6, share_y=False)
    for axes, ((detector, measure), each) in zip(panels, related.items(), strict=True):
        plots.scatter_by_origin(axes, each.tasks, origins)
        axes.set(xlabel=f"refused, by {detector}", ylabel=measure)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), fontsize=8, frameon=False)
    return figure


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["refusal_correlation", *sys.argv[1:]]))
