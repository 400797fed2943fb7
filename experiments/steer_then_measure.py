"""steer_then_measure: directions x layers x doses x questions, against random directions at every dose."""

import sys
import time
from pathlib import Path

from pydantic import Field

from elicit import choice
from experiments import figures as plots
from experiments.findings import dose_figure_name, hold_out_finding, position_finding, steering_findings
from experiments.loop import LoopSettings, go_round
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.steering import SteerSettings


class SteerThenMeasureSettings(LoopSettings):
    """Make preference directions from some tasks, steer questions about the others, and compare with random directions."""

    out: Path = Field(default=Path("runs/steer_then_measure"), description="Run directory. The same one continues or repeats.")
    steer: SteerSettings = Field(
        default=SteerSettings(modes=("choice", "choice_both_alike", "rating")), description="Directions, doses and controls."
    )


SETTINGS = SteerThenMeasureSettings


def run(settings: SteerThenMeasureSettings) -> Result:
    """Run the experiment; what was done before in the same directory is not done again."""
    started = time.monotonic()
    loop = go_round(settings, layers=(), positions=())
    response = loop.steered.response
    tested = response.tested()
    conditions = tested[["layer", "mode"]].drop_duplicates().itertuples(index=False)
    steering, preferences = settings.steer, loop.preferences
    first, second = preferences.comparisons[["first", "second"]].iloc[0]
    curve_columns = [
        "direction",
        "layer",
        "mode",
        "dose",
        "shift",
        "shift_low",
        "shift_high",
        "probability",
        "mass",
        "on_format",
    ]
    return publish(
        loop.run,
        Source.of(loop, choice.questions(loop.tasks, [(first, second)], wording=settings.elicit.wording)[0]),
        experiment="steer_then_measure",
        findings=[
            position_finding(preferences.bias),
            hold_out_finding(preferences.held_out),
            *steering_findings(response),
        ],
        figures={
            "position": plots.position_figure(preferences.bias),
            "hold_out": plots.hold_out_figure(preferences.held_out),
            **{dose_figure_name(layer, mode): plots.dose_figure(response, layer, mode) for layer, mode in conditions},
        },
        tables=[
            Table("Slopes", "Shift per dose of one residual norm; random directions are the controls.", response.slopes),
            Table(
                "Dose-response",
                "Directions under test. Mass is the raw probability on the allowed answers, on_format the share of answers "
                "with enough of it.",
                response.curve.loc[~response.curve["is_random"], curve_columns],
            ),
        ],
        methods=(
            f"Directions ({', '.join(steering.methods)}) were made from utilities and activations ({steering.position}) of "
            f"{len(loop.steered.train)} tasks and tested on {len(loop.steered.test)} others. Choices were steered apart, +v on "
            "the tokens of one task and -v on those of the other, in disjoint pairs and both orders; choice_both_alike pushes "
            "every token, which cannot move a choice between two tasks and is a control; ratings were steered on every token. "
            "A dose of 1 is the mean residual norm at that layer over the tokens steered. Slopes are least squares through the "
            "origin over the doses at which answers stay on format, intervals by bootstrap over pairs or tasks, and p-values "
            f"are ranks among {steering.n_random} random directions at the same doses."
        ),
        summary={
            "position_bias": preferences.bias.to_dict(),
            "hold_out": preferences.held_out.to_dict(),
            "slopes": tested.to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["steer_then_measure", *sys.argv[1:]]))
