"""open_ended_steering: open replies pushed along a concept's vectors, as unscaled coefficients and as doses."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field, field_validator, model_validator

from elicit import Context, Task, completion
from elicit.templates import template
from experiments.contrast import ABOVE, BELOW, Contrast
from experiments.dose_response import CONTROLS_NEEDED
from experiments.norm_table import norm_figure, norm_finding, norm_table, shown_table
from experiments.open_ended_figures import coherence_figure, sentiment_figure
from experiments.open_ended_findings import (
    coefficient_finding,
    coherence_finding,
    dose_finding,
    example_table,
    is_valid,
    judge_check,
    judge_finding,
)
from experiments.open_replies import Condition, OpenReplies, judged_sentiment
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.steering import reference_norm_of, split_tasks
from experiments.sysprompt_grid import SyspromptGridSettings
from interp import Positions, random_directions
from interp.layers import LayerSpec
from store import Question, Sampling, SteeringVector, layer_name

_PROMPTS = SyspromptGridSettings().prompts
_SLOPES = ["direction", "slope", "slope_low", "slope_high", "n", "coherent_from", "coherent_to"]


class OpenEndedSteeringSettings(Settings):
    """Read a concept off completions under two system prompts, and push open replies along it on two scales."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 3,
        "train_share": 0.6,
        "coefficients": (-2.0, 2.0),
        "doses": (-0.3, 0.3),
        "n_random": 4,
        "max_new_tokens": 24,
        "out": Path("runs/open_ended_steering_quick"),
    }

    out: Path = Field(
        default=Path("runs/open_ended_steering"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=16, ge=1, description="Tasks sampled from each origin.")
    train_share: float = Field(default=0.75, gt=0, lt=1, description="Share of tasks that directions are made from.")
    above: str = Field(default=_PROMPTS["keen"], description="System prompt that directions point to.")
    below: str = Field(default=_PROMPTS["weary"], description="System prompt that they point away from.")
    written_wording: str = Field(
        default="feeling", description="Wording of mode completion, for what is written under the two system prompts."
    )
    wording: str = Field(default="feeling", description="Wording of mode completion, for what is asked under steering.")
    selectors: tuple[str, ...] = Field(
        default=("completion_first", "completion_last", "completion_mean"),
        min_length=1,
        description="Positions that directions are read from, one row a completion.",
    )
    layers: tuple[LayerSpec, ...] = Field(default=(0.25, 0.5, 0.75), description="Layers of the norm table.")
    layer: LayerSpec = Field(default=0.5, description="Layer to steer.")
    coefficients: tuple[float, ...] = Field(
        default=(-2.0, -1.0, 0.0, 1.0, 2.0), description="Of the raw difference vectors; zero is always asked."
    )
    doses: tuple[float, ...] = Field(
        default=(-0.4, -0.2, 0.0, 0.2, 0.4), description="In mean residual norms; zero is always asked."
    )
    n_random: int = Field(
        default=CONTROLS_NEEDED, ge=2, description="Random directions as controls, at the largest dose and its opposite."
    )
    draws: int = Field(default=1, ge=1, description="Replies sampled for each task and push.")
    max_new_tokens: int = Field(default=32, ge=4, description="Length of completions and replies.")
    temperature: float = Field(default=0.7, ge=0, description="Of completions and replies.")
    resamples: int = Field(default=1000, ge=50, description="Bootstrap resamples of tasks.")

    @field_validator("selectors")
    @classmethod
    def _one_row_each(cls, selectors: tuple[str, ...]) -> tuple[str, ...]:
        for selector in selectors:
            if not Positions.parse(selector).has_one_row:
                raise ValueError(
                    f"{selector!r} has a row for every token; expected one that ends in _first, _last or _mean: completion_mean"
                )
        if len(set(selectors)) < len(selectors):
            raise ValueError("a selector is named twice; expected each once")
        return selectors

    @field_validator("coefficients", "doses")
    @classmethod
    def _mirrored(cls, amounts: tuple[float, ...]) -> tuple[float, ...]:
        complete = tuple(sorted({0.0, *amounts}))
        if len(complete) < 3 or any(-amount not in complete for amount in complete):
            raise ValueError("expected each with its opposite, such as -0.2 and 0.2, so that a slope has both sides")
        return complete

    @model_validator(mode="after")
    def _two_prompts(self) -> "OpenEndedSteeringSettings":
        if not self.above.strip() or self.above.strip() == self.below.strip():
            raise ValueError("above and below are the same system prompt; expected two, whose difference is the concept")
        return self


SETTINGS = OpenEndedSteeringSettings


def run(settings: OpenEndedSteeringSettings) -> Result:
    """Run the experiment; what was done before in the same directory is not done again."""
    started = time.monotonic()
    for wording in (settings.written_wording, settings.wording):
        template("completion", wording)  # a wrong name is an error before the model is loaded
    tasks = settings.load_tasks()
    train, test = split_tasks(tasks, settings.train_share, settings.seed)
    setup = Setup.of(settings, tasks)
    (layer,) = setup.model.layers([settings.layer])
    layers = setup.model.layers([*settings.layers, settings.layer])
    sampling = Sampling(settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed)
    prompts = {ABOVE: settings.above, BELOW: settings.below}
    contrast = Contrast.of(setup, train, prompts, settings.written_wording, sampling, layers, settings.selectors)
    directions = contrast.directions(layers, settings.selectors)
    written = judged_sentiment(setup, contrast.usable)
    check = judge_check(written)
    asked = _open_questions(test, settings, sampling)
    calibrations = {each: reference_norm_of(setup.model, each, asked, ("all",), setup.run) for each in layers}
    norms = norm_table(
        contrast.stores[ABOVE],
        contrast.stores[BELOW],
        directions,
        {each: float(calibration["norm"]) for each, calibration in calibrations.items()},
        seed=settings.seed,
    )
    vectors = {name: directions[layer, name].scaled(**calibrations[layer]) for name in settings.selectors}
    here = norms[norms["layer"] == layer]
    units = dict(zip(here["selector"].astype(str), here["dose_of_1"].astype(float), strict=True))
    random = random_directions(setup.model.identity, setup.model.d_model, layer, settings.n_random, settings.seed)
    controls = {f"random_{number + 1}": each.scaled(**calibrations[layer]) for number, each in enumerate(random)}
    conditions = _conditions(vectors, controls, units, settings)
    replies = OpenReplies.of(setup, asked, conditions, layer, resamples=settings.resamples, seed=settings.seed)
    for name, vector in vectors.items():
        setup.run.save_direction(f"{name}_{layer_name(layer)}", vector)
    tables = {
        "written": written,
        "norms": norms,
        "replies": replies.replies.drop(columns="task"),
        "coefficient_response": replies.coefficients.curve,
        "dose_response": replies.doses.curve,
        "slopes": replies.doses.tested(),
        "ranked": replies.ranked.slopes,
    }
    for name, table in tables.items():
        setup.run.save_table(name, table)
    return publish(
        setup.run,
        Source.of(setup, asked[0]),
        experiment="open_ended_steering",
        findings=[
            norm_finding(norms, "open_ended_norms"),
            judge_finding(check, written),
            coefficient_finding(replies, units, is_valid(check)),
            dose_finding(replies, layer, is_valid(check)),
            coherence_finding(replies, units),
        ],
        figures={
            "open_ended_norms": norm_figure(norms),
            "open_ended_sentiment": sentiment_figure(replies),
            "open_ended_coherence": coherence_figure(replies),
        },
        tables=_shown(norms, replies, settings),
        methods=_methods(settings, len(contrast.tasks), len(train), len(test), layer),
        summary={
            "norms": norms.to_dict("records"),
            "judge": check,
            "leaks": dict(contrast.leaks),
            "coefficients": replies.coefficients.curve.to_dict("records"),
            "doses": replies.doses.curve.to_dict("records"),
            "slopes": tables["slopes"].to_dict("records"),
            "ranked": replies.ranked.tested().to_dict("records"),
        },
        seconds=time.monotonic() - started,
    )


def _open_questions(tasks: list[Task], settings: OpenEndedSteeringSettings, sampling: Sampling) -> list[Question]:
    context = Context(sampling=sampling, n_draws=settings.draws)
    return completion.questions(tasks, wording=settings.wording, context=context)


def _conditions(
    vectors: Mapping[str, SteeringVector],
    controls: Mapping[str, SteeringVector],
    units: Mapping[str, float],
    settings: OpenEndedSteeringSettings,
) -> list[Condition]:
    conditions = [
        Condition("coefficient", name, vector, amount, units[name])
        for name, vector in vectors.items()
        for amount in settings.coefficients
        if amount
    ]
    conditions += [Condition("dose", name, vector, dose) for name, vector in vectors.items() for dose in settings.doses if dose]
    largest = max(settings.doses)
    conditions += [
        Condition("dose", name, vector, dose, is_random=True)
        for name, vector in controls.items()
        for dose in (-largest, largest)
    ]
    return conditions


def _shown(norms: pd.DataFrame, replies: OpenReplies, settings: OpenEndedSteeringSettings) -> list[Table]:
    return [
        Table(
            "Norms",
            "Length of the raw difference vector with its standard error, and what chance alone would give; the cosine of "
            "the vectors of two halves of the tasks; the mean residual norm of the tokens pushed, that of the residuals "
            "that the selector reads, and the doses that coefficients of the raw vector are.",
            shown_table(norms),
        ),
        Table(
            "Slopes",
            "Shift of sentiment per dose, over the doses at which replies make sense.",
            replies.doses.tested()[_SLOPES],
        ),
        Table(
            "Replies",
            "To the first task, at every amount of either scale; dose is in mean residual norms.",
            example_table(replies.replies, settings.selectors),
        ),
    ]


def _methods(settings: OpenEndedSteeringSettings, kept: int, n_train: int, n_test: int, layer: int) -> str:
    return (
        f"Completions of {n_train} tasks (wording {settings.written_wording}, up to {settings.max_new_tokens} tokens, "
        f"temperature {settings.temperature:g}) were written under two system prompts, with the instruction not to mention "
        f"them; {kept} tasks have one under both that is not empty and does not repeat its prompt. A direction is the mean "
        "difference, within tasks, of the residuals of these completions, read after the prompts that they were given under, "
        f"at {', '.join(settings.selectors)}. Open questions about {n_test} other tasks (wording {settings.wording}, no system "
        f"prompt of ours) were then answered with every token pushed at {layer_name(layer)}, prompt and reply: by coefficients "
        "of the raw difference vectors, and by doses, of which 1 is the mean residual norm over the tokens of the prompts. The "
        "sentiment of a reply is the expected value over the untouched model's probabilities of five answers, from very "
        "negative (-1) to very positive (1), missing where too little probability falls on them. Slopes are least squares "
        "through the origin, task by task, over the doses at which replies make sense, intervals by bootstrap over tasks, and "
        f"p-values ranks among {settings.n_random} random directions at the largest dose and its opposite."
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["open_ended_steering", *sys.argv[1:]]))
