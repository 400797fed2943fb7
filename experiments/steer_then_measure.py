"""steer_then_measure: directions x layers x doses x questions, against random and shuffled directions at every dose."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from elicit import choice
from experiments import figures as plots
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse, is_tested
from experiments.findings import hold_out_finding, position_finding
from experiments.loop import LoopSettings, go_round
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.steer_findings import dose_figure_name, steering_findings
from experiments.steering import SteerSettings

_CURVE = ("direction", "layer", "mode", "dose", "shift", "shift_low", "shift_high", "probability", "mass", "on_format")
_CURVE_NOTE = (
    "Directions under test. Mass is the raw probability on the allowed answers, on_format the share of answers with enough of "
    "it; log-likelihood (nats per token, to the untouched model) and repetition are of free answers."
)
_READ = ("log_likelihood", "repetition", "coherent")


class SteerThenMeasureSettings(LoopSettings):
    """Make preference directions from some tasks, steer questions about the others, and compare with controls."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 5,
        "steer": SteerSettings(
            modes=("choice", "rating"), doses=(-0.3, 0.3), n_random=4, n_shuffled=4, texts=3, text_tokens=16
        ),
        "out": Path("runs/steer_then_measure_quick"),
    }

    out: Path = Field(default=Path("runs/steer_then_measure"), description="Run directory. The same one continues or repeats.")
    steer: SteerSettings = Field(
        default=SteerSettings(modes=("choice", "rating", "choice_both_alike"), n_shuffled=CONTROLS_NEEDED, texts=6),
        description="Directions, doses and controls.",
    )


SETTINGS = SteerThenMeasureSettings


def run(settings: SteerThenMeasureSettings) -> Result:
    """Run the experiment; what was done before in the same directory is not done again."""
    started = time.monotonic()
    loop = go_round(settings, layers=(), positions=())
    response = loop.steered.response
    tested = response.tested()
    preferences = loop.preferences
    first, second = preferences.comparisons[["first", "second"]].iloc[0]
    curve = response.curve.loc[is_tested(response.curve), [name for name in (*_CURVE, *_READ) if name in response.curve]]
    return publish(
        loop.run,
        Source.of(loop, choice.questions(loop.tasks, [(first, second)], wording=settings.elicit.wording)[0]),
        experiment="steer_then_measure",
        findings=[
            position_finding(preferences.bias),
            hold_out_finding(preferences.held_out),
            *steering_findings(response, settings.steer.equal_kl),
        ],
        figures={
            "position": plots.position_figure(preferences.bias),
            "hold_out": plots.hold_out_figure(preferences.held_out),
            **_steering_figures(response, settings.steer),
        },
        tables=[
            Table(
                "Slopes",
                "Shift per dose; controls are taken at the same doses.",
                tested.drop(columns=["is_random", "shuffled"]),
            ),
            Table("Dose-response", _CURVE_NOTE, curve),
        ],
        methods=_methods(settings.steer, len(loop.steered.train), len(loop.steered.test)),
        summary={
            "position_bias": preferences.bias.to_dict(),
            "hold_out": preferences.held_out.to_dict(),
            "slopes": tested.to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def _steering_figures(response: DoseResponse, steer: SteerSettings) -> dict[str, Any]:
    conditions = response.tested()[["layer", "mode"]].drop_duplicates().itertuples(index=False)
    label = (
        "dose (mean residual norms)"
        if steer.equal_kl is None
        else f"dose (share of that with a divergence of {steer.equal_kl:g} nats)"
    )
    figures = {}
    for layer, mode in conditions:
        name = dose_figure_name(layer, mode)
        figures[name] = plots.dose_figure(response, layer, mode, label)
        figures[f"{name}_coherence"] = plots.coherence_figure(response, layer, mode, label)
    return figures


def _methods(steer: SteerSettings, n_train: int, n_test: int) -> str:
    unit = (
        "A dose of 1 is the mean residual norm at that layer over the tokens steered."
        if steer.equal_kl is None
        else f"Doses are shares of the one at which the next-token distribution departs from the untouched model's by a KL of "
        f"{steer.equal_kl:g} nats, its mean along free texts of the untouched model, found for every direction apart."
    )
    shuffled = (
        f" and among {steer.n_shuffled} directions made in the same way of labels dealt out anew" if steer.n_shuffled else ""
    )
    texts = (
        f" At every dose {steer.texts} of the prompts were also answered in free text ({steer.text_tokens} tokens, temperature "
        "0.7), read by the untouched model."
        if steer.texts
        else ""
    )
    return (
        f"Directions ({', '.join(steer.methods)}) were made from utilities and activations ({steer.position}) of {n_train} "
        f"tasks and tested on {n_test} others. Choices were steered apart, +v on the tokens of one task and -v on those of the "
        "other, in disjoint pairs and both orders; questions about one task on every token; choice_both_alike pushes every "
        f"token, which cannot move a choice between two tasks and is a control. {unit} Slopes are least squares through the "
        "origin over the doses at which the model stays coherent, intervals by bootstrap over pairs or tasks, and p-values are "
        f"ranks among {steer.n_random} random directions{shuffled}, at the same doses.{texts}"
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["steer_then_measure", *sys.argv[1:]]))
