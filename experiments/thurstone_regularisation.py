"""thurstone_regularisation: how far a spread per task must be held back, and whether it then predicts better than none."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from elicit import Task, all_pairs, choice
from elicit.designs import Pair
from elicit.templates import template
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.thurstone_figures import loss_figure, sigma_figure
from experiments.thurstone_findings import gain_finding, position_finding, sigma_finding
from experiments.thurstone_fits import AS_SHOWN, AVERAGED, DENSE, EXACT, SPARSE, comparable, fit_all, held_out_pairs, split
from experiments.thurstone_tables import curve_table, gains_table


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
            *(gain_finding(gains, kind, settings) for kind in kinds),
            sigma_finding(curve, kinds[0]),
            position_finding(gains),
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
        methods=_methods(settings, tasks, designs, len(test)),
        summary={"curve": curve.to_dict("records"), "gains": gains.to_dict("records")},
        seconds=time.monotonic() - started,
    )


def _methods(
    settings: ThurstoneRegularisationSettings, tasks: Sequence[Task], designs: Mapping[str, Sequence[Pair]], n_held_out: int
) -> str:
    n_pairs = math.comb(len(tasks), 2)
    return (
        f"All {n_pairs} pairs of {len(tasks)} tasks were asked in both orders (template {settings.wording}), and the "
        f"probabilities of both labels read exactly. {n_held_out} pairs were held out; models were fitted to "
        f"{len(designs[DENSE])} others (dense) and to the {len(designs[SPARSE])} of them in which each task meets "
        f"{settings.degree} others (sparse), with {_what_was_fitted(settings)}. A prediction is scored by its "
        "cross-entropy with the exact probabilities, in both orders as shown, or with orders averaged and the position "
        "term left out. Intervals of losses are a bootstrap over held-out pairs. For gains the penalty is chosen on one "
        "half of the held-out pairs and scored on the other, both ways; their intervals allow for pairs that share a task, "
        "not for another set of answers to fit. Bradley-Terry and Thurstone's case V have their default prior (standard "
        "deviation 2)."
    )


def _what_was_fitted(settings: ThurstoneRegularisationSettings) -> str:
    draws = "one draw" if settings.draws == 1 else f"{settings.draws} draws"
    words = {
        "sampled": f"{settings.repeats} sets of sampled answers ({draws} of every question from its exact probabilities, each "
        "set fitted by itself and losses averaged)",
        EXACT: "the exact probabilities as soft labels",
    }
    return " and with ".join(words[kind] for kind in dict.fromkeys(settings.answers))


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["thurstone_regularisation", *sys.argv[1:]]))
