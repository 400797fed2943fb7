"""demo: the whole loop on a small model in a few minutes - ask, read, probe, steer, ask again."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from pydantic import Field

from elicit import choice
from experiments import figures as plots
from experiments.findings import (
    Finding,
    agreement_finding,
    hold_out_finding,
    position_finding,
    probe_finding,
)
from experiments.loop import Loop, LoopSettings, go_round
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.steer_findings import dose_figure_name, steering_findings
from interp import ProbeSweep, probe_sweep
from interp.layers import LayerSpec

TARGETS = ("utility", "self_report")


class DemoSettings(LoopSettings):
    """The whole loop: preferences, activations, probes, steering."""

    out: Path = Field(default=Path("runs/demo"), description="Run directory. The same one continues, or repeats at no cost.")
    layers: tuple[LayerSpec, ...] = Field(
        default=(0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9), description="Layers to cache and probe."
    )
    positions: tuple[str, ...] = Field(default=("prompt_last", "task_mean"), description="Positions to cache and probe.")
    permutations: int = Field(default=100, ge=19, description="Shuffles of the labels, for the probes' null.")


SETTINGS = DemoSettings


def run(settings: DemoSettings) -> Result:
    """Run the loop; what was done before in the same directory is not done again."""
    started = time.monotonic()
    loop = go_round(settings, settings.layers, settings.positions)
    labels = loop.preferences.labels()
    sweep = probe_sweep(
        loop.store,
        labels[labels["target"].isin(TARGETS)],
        origins=loop.origins,
        permutations=settings.permutations,
        seed=settings.seed,
    )
    loop.run.save_table("probes", sweep.table)
    loop.run.save_table("probe_predictions", sweep.predictions)
    findings = [
        position_finding(loop.preferences.bias),
        hold_out_finding(loop.preferences.held_out),
        agreement_finding(loop.preferences.agreement, loop.preferences.scales_agree),
        *(probe_finding(sweep, target) for target in TARGETS),
        *steering_findings(loop.steered.response),
    ]
    first, second = loop.preferences.comparisons[["first", "second"]].iloc[0]
    elicitation = settings.elicit
    return publish(
        loop.run,
        Source.of(loop, choice.questions(loop.tasks, [(first, second)], wording=elicitation.wording)[0]),
        experiment="demo",
        findings=findings,
        figures=_figures(loop, sweep),
        extras=[
            Finding(
                "Utilities by origin",
                "Each point is a task, with its interval by bootstrap over pairs; origins are sorted by their mean.",
                "utilities",
            )
        ],
        tables=_tables(loop, sweep),
        methods=_methods(loop, settings),
        summary=_summary(loop, sweep),
        seconds=time.monotonic() - started,
    )


def _figures(loop: Loop, sweep: ProbeSweep) -> dict[str, Figure]:
    preferences, response = loop.preferences, loop.steered.response
    steered = response.tested()[["layer", "mode"]].drop_duplicates()
    return {
        "position": plots.position_figure(preferences.bias),
        "hold_out": plots.hold_out_figure(preferences.held_out),
        "agreement": plots.agreement_figure(preferences.agreement, loop.origins),
        "utilities": plots.utilities_figure(preferences.utilities.labels(), loop.origins),
        **{f"probe_{target}": plots.probe_figure(sweep, target) for target in TARGETS},
        **{
            dose_figure_name(layer, mode): plots.dose_figure(response, layer, mode)
            for layer, mode in steered.itertuples(index=False)
        },
    }


def _tables(loop: Loop, sweep: ProbeSweep) -> list[Table]:
    texts = {task.id: task.text for task in loop.tasks}
    utilities = loop.preferences.utilities.labels().sort_values("value", ascending=False)
    ranked = pd.DataFrame(
        {
            "utility": utilities["value"],
            "low": utilities["low"],
            "high": utilities["high"],
            "origin": utilities["task_id"].map(loop.origins),
            "task": utilities["task_id"].map(texts),
        }
    )
    answers = pd.concat(
        [
            loop.preferences.comparisons[["template", "outcome", "mass"]],
            loop.preferences.ratings.rename(columns={"scale": "template"})[["template", "outcome", "mass"]],
        ]
    )
    on_format = answers.groupby("template", sort=False).agg(
        questions=("outcome", "size"),
        on_format=("outcome", lambda outcome: (outcome == "chose").mean()),
        mean_mass=("mass", "mean"),
        least_mass=("mass", "min"),
    )
    probe_columns = ["target", "features", "layer_name", "position", "r2", "r2_low", "r2_high", "pearson", "pairwise_accuracy"]
    return [
        Table("Most preferred tasks", "Utilities in logits with 95 % intervals.", ranked.head(5)),
        Table("Least preferred tasks", "Utilities in logits with 95 % intervals.", ranked.tail(5).iloc[::-1]),
        Table(
            "Answers on format",
            "Mass is the raw probability on the allowed answers; below the template's minimum an answer is not counted.",
            on_format.reset_index(),
        ),
        Table(
            "Probes and baselines",
            "Held-out scores, alpha chosen inside each training part; gain: R² above the strongest baseline; shuffled_r2_95: "
            "95th percentile over permuted labels.",
            sweep.table[[*probe_columns, "gain", "shuffled_r2_95", "p_value", "ceiling"]].rename(
                columns={"layer_name": "layer"}
            ),
        ),
        Table("Slopes", "Shift per dose; random directions are the controls.", loop.steered.response.slopes),
    ]


def _methods(loop: Loop, settings: DemoSettings) -> str:
    elicitation, steering, report = settings.elicit, settings.steer, loop.preferences.utilities.report
    return (
        f"{len(loop.tasks)} tasks ({settings.per_origin} per origin, seed {settings.seed}) were compared in "
        f"{report.pairs} pairs, each task with {elicitation.degree} others, every pair in both orders (template "
        f"{elicitation.wording}), and rated on {len(elicitation.scales)} scales. Answers are "
        "exact: the probability of every allowed answer was read, and answers with too little probability on the allowed ones "
        "were counted as off format and left out. Utilities minimise squared error on order-averaged log-odds; their intervals "
        "are residual-based, with Student's t; other intervals of pairs are by bootstrap over whole pairs. "
        "Residual streams were read after each block. "
        "Ridge probes were scored by five-fold cross-validation over tasks, the penalty chosen by leave-one-out inside each "
        f"training part, against {settings.permutations} permutations of the labels. Directions were made from "
        f"{len(loop.steered.train)} tasks and tested on {len(loop.steered.test)} others in disjoint pairs: +v on the tokens of "
        "one task and -v on those of the other, both orders averaged. A dose of 1 is the mean residual norm at that layer over "
        f"the tokens steered. Controls are {steering.n_random} random directions at the same doses."
    )


def _summary(loop: Loop, sweep: ProbeSweep) -> Mapping[str, Any]:
    preferences = loop.preferences
    return {
        "tasks": len(loop.tasks),
        "position_bias": preferences.bias.to_dict(),
        "hold_out": preferences.held_out.to_dict(),
        "agreement": preferences.agreement.to_dict(),
        "scales_agree": preferences.scales_agree,
        "utilities": {k: v for k, v in preferences.utilities.report.to_dict().items() if k != "per_task"},
        "probes": {target: sweep.best(target).to_dict() for target in TARGETS},
        "slopes": loop.steered.response.tested().to_dict("records"),
    }


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["demo", *sys.argv[1:]]))
