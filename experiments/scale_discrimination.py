"""scale_discrimination: which scales of self-report tell tasks apart (KL), and which do so again when asked anew (ICC)."""

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
from scipy import special

from elicit import Task, rating, sample_templates
from elicit.reliability.scales import divergence
from elicit.templates import template, templates
from experiments import figures as plots
from experiments.findings import Finding, plain
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from store import Answer, Estimate, Outcome, Question

_RESAMPLES = 500
_ROUNDING = 1e-9
"""Of a scale's length: ratings that differ by less are alike."""
_LEAST_TASKS = 6


class ScaleDiscriminationSettings(Settings):
    """Rate the same tasks on many scales, each in several wordings of the same question."""

    QUICK: ClassVar[Mapping[str, Any]] = {"per_origin": 3, "n_variants": 3, "out": Path("runs/scale_discrimination_quick")}

    out: Path = Field(
        default=Path("runs/scale_discrimination"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=8, ge=1, description="Tasks sampled from each origin.")
    scales: tuple[str, ...] = Field(
        default=tuple(templates("rating").axes["scale"]), min_length=2, description="Scales of mode rating."
    )
    variants: tuple[str, ...] = Field(
        default=("place", "tags", "punctuation", "typos", "situation"),
        min_length=1,
        description="Axes on which the wordings of one scale vary: none of them should matter.",
    )
    n_variants: int = Field(default=4, ge=2, description="Wordings of each scale, balanced over those axes.")


SETTINGS = ScaleDiscriminationSettings


def run(settings: ScaleDiscriminationSettings) -> Result:
    """Run the experiment; what was asked before in the same directory is not asked again."""
    started = time.monotonic()
    wordings = {scale: _wordings(scale, settings) for scale in settings.scales}
    setup = Setup.of(settings, settings.load_tasks())
    asked = {name: rating.questions(setup.tasks, scale=name) for names in wordings.values() for name in dict.fromkeys(names)}
    found = setup.ask_each(asked, "ratings")
    ratings = pd.concat([rating.ratings(*each) for each in found.values()], ignore_index=True)
    read = {
        scale: _Readings.of([found[name] for name in names], setup.tasks, list(template("rating", scale).scale.values()))
        for scale, names in wordings.items()
    }
    usable = {scale: each for scale, each in read.items() if len(each.task_ids) >= _LEAST_TASKS and not each.alike}
    if len(usable) < 2:
        raise ValueError(
            f"{len(usable)} of {len(read)} scales are answered on format in every wording for {_LEAST_TASKS} tasks, and not "
            "alike for all of them; expected two. `penchant preflight --templates rating:` shows which scales this model can "
            "answer, and on how many tasks."
        )
    table = _table(read, usable, settings.seed)
    setup.run.save_table("ratings", ratings)
    setup.run.save_table("scales", table)
    relation = _kl_against_icc(table)
    return publish(
        setup.run,
        Source.of(setup, next(iter(asked.values()))[0]),
        experiment="scale_discrimination",
        findings=[_best_finding(table, setup), _relation_finding(relation, table), _format_finding(table, settings)],
        figures={"scale_discrimination": discrimination_figure(table), "scale_reliability": reliability_figure(table)},
        tables=[
            Table(
                "Scales",
                "kl: nats by which answers tell about the task; kl_share: of the answers' entropy; icc: share of variance "
                "between tasks that another wording finds again; others: correlation over tasks with the mean of the other "
                "scales.",
                table,
            )
        ],
        methods=(
            f"{len(setup.tasks)} tasks were rated on {len(settings.scales)} scales, each in {settings.n_variants} wordings "
            f"that differ on the axes {', '.join(settings.variants)}. The whole distribution over the allowed answers was "
            "read. KL is the mean divergence of a task's distribution from the mean over tasks (the mutual information of "
            "task and answer), averaged over wordings. ICC is that of one wording, for consistency (ICC(C,1), McGraw & Wong "
            "1996), of the mean ratings. Only tasks answered on format in every wording of a scale count; intervals are a "
            "bootstrap over tasks."
        ),
        summary={"scales": table.to_dict("records"), "kl_against_icc": relation},
        seconds=time.monotonic() - started,
    )


def _wordings(scale: str, settings: ScaleDiscriminationSettings) -> list[str]:
    return sample_templates("rating", settings.n_variants, settings.variants, fixed={"scale": scale}, seed=settings.seed)


class _Readings:
    """The answers on one scale, of the tasks that are on format in every wording."""

    def __init__(
        self,
        task_ids: Sequence[str],
        distributions: Float[np.ndarray, "tasks wordings answers"],
        values: Sequence[float],
        on_format: float,
    ) -> None:
        self.task_ids, self.distributions, self.on_format = list(task_ids), distributions, on_format
        length = max(values) - min(values)
        self.means: Float[np.ndarray, "tasks wordings"] = (distributions @ np.array(values) - min(values)) / length

    @property
    def alike(self) -> bool:
        """Whether all tasks get the same rating."""
        return len(self.means) > 0 and float(np.ptp(self.means, axis=0).max()) < _ROUNDING

    @classmethod
    def of(
        cls, wordings: Sequence[tuple[list[Question], list[Answer]]], tasks: Sequence[Task], values: Sequence[float]
    ) -> "_Readings":
        n_answers = len(wordings[0][0][0].options)
        found = np.full((len(tasks), len(wordings), n_answers), np.nan)
        for place, (_, answers) in enumerate(wordings):
            for row, answer in enumerate(answers):
                if answer.outcome is Outcome.CHOSE:
                    found[row, place] = list(answer.distribution().values())
        complete = np.flatnonzero(np.isfinite(found).all(axis=(1, 2))).tolist()
        return cls([tasks[row].id for row in complete], found[complete], values, float(np.isfinite(found[..., 0]).mean()))


def consistency(ratings: Float[np.ndarray, "... tasks wordings"]) -> Float[np.ndarray, "..."]:
    """ICC(C,1): the share of variance between tasks that one wording has in common with another; missing where all are alike.

    McGraw & Wong (1996), "Forming inferences about some intraclass correlation coefficients", case 3.
    """
    n, k = ratings.shape[-2:]
    by_task, by_wording = ratings.mean(axis=-1, keepdims=True), ratings.mean(axis=-2, keepdims=True)
    whole = by_task.mean(axis=-2, keepdims=True)
    between = k * ((by_task - whole) ** 2).sum(axis=(-2, -1)) / (n - 1)
    error = ((ratings - by_task - by_wording + whole) ** 2).sum(axis=(-2, -1)) / ((n - 1) * (k - 1))
    total = between + (k - 1) * error
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > _ROUNDING**2, (between - error) / total, np.nan)


def _table(read: Mapping[str, _Readings], usable: Mapping[str, _Readings], seed: int) -> pd.DataFrame:
    standard = pd.DataFrame({scale: _standardised(each) for scale, each in usable.items()})
    rows = []
    for scale, each in read.items():
        row: dict[str, Any] = {"scale": scale, "on_format": each.on_format, "tasks": len(each.task_ids), "alike": each.alike}
        if scale in usable:
            resampled = np.random.default_rng(seed).integers(len(each.task_ids), size=(_RESAMPLES, len(each.task_ids)))
            by_wording = np.moveaxis(each.distributions, 1, 0)  # wordings, tasks, answers
            kl = Estimate.from_draws(
                float(divergence(by_wording).mean()),
                [float(divergence(by_wording[:, some]).mean()) for some in resampled],
                len(each.task_ids),
            )
            icc = Estimate.from_draws(float(consistency(each.means)), consistency(each.means[resampled]), len(each.task_ids))
            entropy = float(special.entr(by_wording.mean(axis=1)).sum(axis=-1).mean())
            others = standard.drop(columns=scale).mean(axis=1)
            for name, estimate in (("kl", kl), ("icc", icc)):
                row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
            row |= {"kl_share": kl.value / entropy, "sd": float(each.means.mean(axis=1).std(ddof=1))}
            row["others"] = float(standard[scale].corr(others))
        rows.append(row)
    return pd.DataFrame(rows)


def _standardised(readings: _Readings) -> pd.Series:
    means = pd.Series(readings.means.mean(axis=1), readings.task_ids)
    return (means - means.mean()) / means.std()


def _kl_against_icc(table: pd.DataFrame) -> Estimate:
    """Rank correlation over scales, with Fisher's interval (standard error 1.06 / sqrt(n - 3))."""
    known = table.dropna(subset=["kl", "icc"])
    n = len(known)
    if n < 5:
        return Estimate.unknown(n)
    rho = float(known["kl"].corr(known["icc"], method="spearman"))
    z, se = math.atanh(min(max(rho, -0.999), 0.999)), 1.06 / math.sqrt(n - 3)
    return Estimate(rho, math.tanh(z - 1.96 * se), math.tanh(z + 1.96 * se), se * (1 - rho**2), n)


def _best_finding(table: pd.DataFrame, setup: Setup) -> Finding:
    known = table.dropna(subset=["icc"]).sort_values("icc", ascending=False)
    best = known.iloc[0]
    reliable = int((known["icc_low"] > 0.5).sum())
    rows = tuple(
        f"{row['scale']:20s} {row['icc']:+.2f} [{row['icc_low']:+.2f}, {row['icc_high']:+.2f}]   {row['kl']:7.4f}   "
        f"{100 * row['kl_share']:4.1f} %   {row['others']:+.2f}   {100 * row['on_format']:3.0f} %"
        for _, row in known.iterrows()
    )
    return Finding(
        "Scales",
        f"Another wording finds the same differences between tasks most on {best['scale']} (ICC {best['icc']:+.2f} "
        f"[{best['icc_low']:+.2f}, {best['icc_high']:+.2f}], the best of {len(known)}, so flattered); the interval is above "
        f"one half for {reliable} of {len(known)} scales.",
        "scale_reliability",
        (f"{'scale':20s} {'ICC':20s} KL (nats)  of entropy  others  on format", *rows),
    )


def _relation_finding(relation: Estimate, table: pd.DataFrame) -> Finding:
    known = table.dropna(subset=["icc"])
    top = known.sort_values("kl", ascending=False).iloc[0]
    sentence = (
        f"Answers tell most about the task on {top['scale']} ({top['kl']:.3f} nats, {100 * top['kl_share']:.0f} % of their "
        "entropy). "
    )
    if math.isnan(relation.value):
        return Finding("KL and ICC", sentence + f"{relation.n} scales are too few to relate the two.", "scale_discrimination")
    verdict = (
        "scales that tell tasks apart do so reliably" if relation.low > 0 else "telling tasks apart is not shown to be reliable"
    )
    return Finding(
        "KL and ICC",
        sentence + f"Over {relation.n} scales KL and ICC correlate by rank at {plain(relation)}: {verdict}.",
        "scale_discrimination",
    )


def _format_finding(table: pd.DataFrame, settings: ScaleDiscriminationSettings) -> Finding:
    out = table[table["icc"].isna()] if "icc" in table else table
    named = ", ".join(f"{row['scale']} ({100 * row['on_format']:.0f} %)" for _, row in out[~out["alike"]].iterrows())
    alike = ", ".join(out.loc[out["alike"], "scale"])
    return Finding(
        "On format",
        f"{len(table) - len(out)} of {len(table)} scales are answered on format in all {settings.n_variants} wordings"
        + (f"; too seldom: {named}" if named else "")
        + (f"; alike for all tasks: {alike}." if alike else "."),
    )


def discrimination_figure(table: pd.DataFrame) -> Figure:
    """How far answers tell tasks apart, against how far another wording agrees."""
    known = table.dropna(subset=["kl", "icc"])
    figure, axes = plots.new_axes(7.2, 5.0)
    axes.errorbar(
        known["kl"],
        known["icc"],
        xerr=_bars(known, "kl"),
        yerr=_bars(known, "icc"),
        fmt="o",
        color=plots.BLUE,
        ecolor="#c3d7ea",
        markersize=5,
        linewidth=1,
    )
    # Names stand beside the axes in the order of the points, so that none lies on another.
    for place, (_, row) in zip(np.linspace(0.05, 0.95, len(known)), known.sort_values("icc").iterrows(), strict=True):
        axes.annotate(
            row["scale"],
            (row["kl"], row["icc"]),
            xytext=(1.03, place),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            arrowprops={"arrowstyle": "-", "color": plots.GREY, "linewidth": 0.6},
        )
    axes.axhline(0, color=plots.GREY, linewidth=0.8)
    axes.set(
        xscale="log",
        xlabel="KL: what answers tell about the task (nats, log scale)",
        ylabel="ICC: agreement of two wordings about tasks",
        title=f"{len(known)} scales, {int(known['tasks'].min())} tasks or more",
    )
    return figure


def reliability_figure(table: pd.DataFrame) -> Figure:
    """ICC of every scale, the best on top."""
    known = table.dropna(subset=["icc"]).sort_values("icc")
    return plots.forest(
        known["scale"].tolist(),
        known[["icc", "icc_low", "icc_high"]].to_numpy(dtype=float),
        "ICC of one wording",
        "Reliability",
    )


def _bars(table: pd.DataFrame, name: str) -> Float[np.ndarray, "2 rows"]:
    return np.abs(np.stack([table[name] - table[f"{name}_low"], table[f"{name}_high"] - table[name]]).astype(float))


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["scale_discrimination", *sys.argv[1:]]))
