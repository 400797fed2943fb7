"""concept_steering: persona x context x dose. What a system prompt does to ratings, and a push along what it does inside."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from pydantic import Field, ValidationInfo, field_validator

from elicit import Context, Task, ask_views, completion, rating, task_question
from elicit.templates import template
from experiments.coherence import coherence_table, free_questions, texts_of
from experiments.concept_figures import concept_figures
from experiments.concept_findings import KINDS, concept_findings
from experiments.concept_grid import CONCEPT, FACTORS, ConceptGrid
from experiments.crossed import LEAST_TASKS
from experiments.dose_response import CONTROLS_NEEDED
from experiments.findings import Finding
from experiments.personas import done_under, leaked, usable
from experiments.publish import Result, Source, publish
from experiments.report import Table
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.steering import reference_norm_of, split_tasks
from experiments.sysprompt_grid import SyspromptGridSettings
from interp import (
    Intervention,
    LocalModel,
    Positions,
    Push,
    capture,
    flipped_directions,
    paired_difference,
    random_directions,
)
from interp.layers import LayerSpec
from store import ActivationStore, Direction, Question, SteeringVector, layer_name

_POSITIONS = "all"
"""What is pushed: every token, of the prompt and after it."""


class ConceptSteeringSettings(Settings):
    """Do tasks under each system prompt, rate the doing under each, and push along what tells two of the prompts apart."""

    QUICK: ClassVar[Mapping[str, Any]] = {
        "per_origin": 3,
        "doses": (-0.2, 0.2),
        "n_random": 4,
        "n_flipped": 4,
        "out": Path("runs/concept_steering_quick"),
    }

    out: Path = Field(
        default=Path("runs/concept_steering"), description="Run directory. The same one continues, or repeats at no cost."
    )
    per_origin: int = Field(default=6, ge=1, description="Tasks sampled from each origin.")
    prompts: dict[str, str] = Field(
        default=SyspromptGridSettings().prompts, description="System prompts by name; the first is the reference."
    )
    concept: tuple[str, str] = Field(
        default=("keen", "weary"), description="The two prompts whose difference is the concept: from the second to the first."
    )
    scales: tuple[str, ...] = Field(
        default=("yes_somewhat_no",), min_length=1, description="Scales of mode rating, asked after doing."
    )
    max_new_tokens: int = Field(default=40, ge=1, description="Length of a completion.")
    temperature: float = Field(default=0.7, ge=0, description="Of the completions.")
    train_share: float = Field(default=1 / 3, gt=0, lt=1, description="Share of tasks that directions are made from.")
    layer: LayerSpec = Field(default=0.5, description="Layer to read and to push.")
    position: str = Field(default="task_mean", description="Position that directions are read from.")
    doses: tuple[float, ...] = Field(
        default=(-0.2, -0.1, 0.0, 0.1, 0.2),
        description="In mean residual norms; zero is always asked. Controls are asked at the largest and its opposite.",
    )
    n_random: int = Field(default=CONTROLS_NEEDED, ge=2, description="Random directions as controls.")
    n_flipped: int = Field(
        default=CONTROLS_NEEDED, ge=2, description="Directions of the same differences, half of them flipped, as controls."
    )
    texts: int = Field(
        default=4, ge=0, description="Prompts answered in free text at every dose, to see whether it makes sense."
    )
    text_tokens: int = Field(default=24, ge=4, description="Length of these texts.")
    resamples: int = Field(default=1000, ge=50, description="Bootstrap resamples of tasks.")

    @field_validator("prompts")
    @classmethod
    def _several(cls, prompts: dict[str, str]) -> dict[str, str]:
        if len(prompts) < 2:
            raise ValueError("expected two system prompts or more, the first of them the reference")
        return prompts

    @field_validator("concept")
    @classmethod
    def _two_of_them(cls, concept: tuple[str, str], info: ValidationInfo) -> tuple[str, str]:
        names = list(info.data.get("prompts", concept))
        if set(concept) - set(names) or len(set(concept)) < 2:
            raise ValueError(f"expected two different names of prompts, of {', '.join(names)}")
        return concept

    @field_validator("position")
    @classmethod
    def _one_row(cls, position: str) -> str:
        if not Positions.parse(position).has_one_row:
            raise ValueError("a row for every token; a direction needs one row a task: task_mean, task_last")
        return position

    @field_validator("doses")
    @classmethod
    def _mirrored(cls, doses: tuple[float, ...]) -> tuple[float, ...]:
        complete = tuple(sorted({0.0, *doses}))
        if len(complete) < 3 or any(-dose not in complete for dose in complete):
            raise ValueError("expected each dose with its opposite (-0.2 and 0.2)")
        return complete


SETTINGS = ConceptSteeringSettings


@dataclass(frozen=True)
class _Asked:
    """A rating question and its cell."""

    question: Question
    done_under: str
    rated_under: str


def run(settings: ConceptSteeringSettings) -> Result:
    """Run the experiment; what was done before in the same directory is not done again."""
    started = time.monotonic()
    for scale in settings.scales:
        template("rating", scale)  # a wrong name is an error before the model is loaded
    tasks = settings.load_tasks()
    train, test = split_tasks(tasks, settings.train_share, settings.seed)
    setup = Setup.of(settings, tasks)
    (layer,) = setup.model.layers((settings.layer,))
    written = done_under(setup, test, settings.prompts, settings.max_new_tokens, settings.temperature)
    kept = [task for task in test if task.id in usable(written, settings.prompts)]
    if len(kept) < LEAST_TASKS:
        raise ValueError(
            f"{len(kept)} of {len(test)} tasks have a completion under every prompt that does not repeat it; expected "
            f"{LEAST_TASKS}. Sample more tasks, or shorten the system prompts."
        )
    asked = _asked(kept, {name: completion.texts(table) for name, table in written.items()}, settings)
    vectors = _vectors(setup, train, layer, [each.question for each in asked], settings)
    ratings = _rate(setup, asked, kept, vectors, settings)
    texts = _write_freely(setup, asked, vectors[CONCEPT], settings) if settings.texts else None
    coherence = coherence_table(texts) if texts is not None else None
    grid = ConceptGrid.of(ratings, list(settings.prompts), settings.concept, layer, coherence)
    worth = grid.worth(settings.resamples, settings.seed)
    _save(setup, grid, written, ratings, texts)
    setup.run.save_direction(f"{CONCEPT}_{layer_name(layer)}", vectors[CONCEPT])
    return publish(
        setup.run,
        Source.of(setup, asked[0].question),
        experiment="concept_steering",
        findings=[*concept_findings(grid, worth), _completions_finding(written, len(kept), len(test), grid, settings)],
        figures=concept_figures(grid, layer) | {"concept_ratings": grid.crossed.figure()},
        tables=[
            Table(
                "Slopes",
                "Shift of the rating per dose, in scale lengths, with Student's intervals over tasks.",
                grid.cell_slopes(),
            ),
            Table("Ratings", "Mean rating at dose 0, as a share of the scale's length.", grid.crossed.cells()),
        ],
        methods=_methods(settings, layer, len(train), len(test)),
        summary={
            "slope": grid.slope(),
            "slopes": grid.cell_slopes().to_dict("records"),
            "effects": grid.effects(),
            "context_worth_doses": worth,
            "controls": {kind: _summary_of(grid, kind) for kind in KINDS},
            "cells": grid.crossed.cells().to_dict("records"),
            "coherent_doses": grid.doses,
            "tasks_kept": len(kept),
        },
        seconds=time.monotonic() - started,
    )


def _asked(kept: Sequence[Task], texts: Mapping[str, Mapping[str, str]], settings: ConceptSteeringSettings) -> list[_Asked]:
    return [
        _Asked(question, done, rated)
        for done, own in texts.items()
        for rated, system in settings.prompts.items()
        for scale in settings.scales
        for question in rating.questions(kept, scale=scale, completions=own, context=Context(system=system))
    ]


def _vectors(
    setup: Setup, train: Sequence[Task], layer: int, asked: Sequence[Question], settings: ConceptSteeringSettings
) -> dict[str, SteeringVector]:
    """The concept's steering vector, and those of its controls, whose names begin with their kind."""
    model, position = setup.model, settings.position
    above, below = (_activations(setup, train, layer, position, settings.prompts[name]) for name in settings.concept)
    directions: dict[str, Direction] = {CONCEPT: paired_difference(above, below, layer, position)}
    random = random_directions(model.identity, model.d_model, layer, settings.n_random, settings.seed)
    flipped = flipped_directions(above, below, layer, position, settings.n_flipped, seed=settings.seed)
    for kind, several in zip(KINDS, (random, flipped), strict=True):
        directions |= {f"{kind}_{number + 1}": each for number, each in enumerate(several)}
    norm = reference_norm_of(model, layer, asked, (_POSITIONS,), setup.run)
    return {name: direction.scaled(**norm) for name, direction in directions.items()}


def _activations(setup: Setup, tasks: Sequence[Task], layer: int, position: str, system: str) -> ActivationStore:
    """The tasks under a system prompt, with nothing asked about them."""
    ids = [task.id for task in tasks]
    path = setup.run.activations(model=setup.model.fingerprint, tasks=ids, layers=[layer], positions=[position], system=system)
    questions = [task_question(task, system) for task in tasks]
    return capture(setup.model, questions, ids, path, layers=[layer_name(layer)], positions=[position])


def _pushed(model: LocalModel, vector: SteeringVector, dose: float) -> LocalModel:
    return model.steered(Intervention((Push(vector, _POSITIONS),), dose)) if dose else model


def _rate(
    setup: Setup,
    asked: Sequence[_Asked],
    kept: Sequence[Task],
    vectors: Mapping[str, SteeringVector],
    settings: ConceptSteeringSettings,
) -> pd.DataFrame:
    """Ratings under the concept in all cells at every dose, and under controls in a Latin square of cells at the largest."""
    largest = max(settings.doses)
    conditions = {CONCEPT: (asked, settings.doses, [CONCEPT])}
    square = in_latin_square(asked, [task.id for task in kept], list(settings.prompts))
    conditions |= {
        kind: (square, (-largest, largest), [name for name in vectors if name.startswith(f"{kind}_")]) for kind in KINDS
    }
    tables = []
    for kind, (some, doses, names) in conditions.items():
        questions = [each.question for each in some]
        pushes = [(name, dose) for name in names for dose in doses]
        views = [_pushed(setup.model, vectors[name], dose) for name, dose in pushes]
        answers = ask_views(questions, views, setup.run.log, description=f"ratings, {kind}")
        cells = pd.DataFrame([(each.done_under, each.rated_under) for each in some], columns=list(FACTORS))
        control = "" if kind == CONCEPT else kind
        for (name, dose), own in zip(pushes, answers, strict=True):
            table = pd.concat([rating.ratings(questions, own), cells], axis=1)
            tables.append(table.assign(direction=name, control=control, dose=dose))
    return pd.concat(tables, ignore_index=True)


def in_latin_square(asked: Sequence[_Asked], tasks: Sequence[str], prompts: Sequence[str]) -> list[_Asked]:
    """Of the cells of every task, one a persona and one a context, others from task to task: over tasks, all alike often."""
    number = {task: place for place, task in enumerate(tasks)}
    return [
        each
        for each in asked
        if (prompts.index(each.done_under) + prompts.index(each.rated_under) + number[each.question.measures["task"]])
        % len(prompts)
        == 0
    ]


def _write_freely(
    setup: Setup, asked: Sequence[_Asked], vector: SteeringVector, settings: ConceptSteeringSettings
) -> pd.DataFrame:
    """Free texts at every dose, done and rated under the reference.

    Spans are left out: the one of the completion that is rated would be taken for that of the text.
    """
    reference = next(iter(settings.prompts))
    own = [replace(each.question, spans=()) for each in asked if each.done_under == each.rated_under == reference]
    free = free_questions(own, settings.texts, settings.text_tokens, settings.seed)
    views = {(CONCEPT, dose): _pushed(setup.model, vector, dose) for dose in settings.doses}
    return texts_of(setup.model, free, views, setup.run, "free texts")


def _save(
    setup: Setup, grid: ConceptGrid, written: Mapping[str, pd.DataFrame], ratings: pd.DataFrame, texts: pd.DataFrame | None
) -> None:
    effects = {"slope, all cells": grid.slope()} | grid.effects()
    tables = {
        "completions": pd.concat(written.values(), ignore_index=True),
        "ratings": ratings,
        "units": grid.units,
        "cells": grid.crossed.cells(),
        "slopes": grid.cell_slopes(),
        "effects": pd.DataFrame([{"effect": name} | each.to_dict() for name, each in effects.items()]),
        "controls": pd.DataFrame([{"control": kind, "slope": slope} for kind in KINDS for slope in grid.controls(kind).slopes]),
        "dose_response": grid.response.curve,
    }
    tables |= {"texts": texts} if texts is not None else {}
    for name, table in tables.items():
        setup.run.save_table(name, table)


def _summary_of(grid: ConceptGrid, kind: str) -> dict[str, Any]:
    controls = grid.controls(kind)
    return {
        "n": len(controls.slopes),
        "low": controls.slopes.min(initial=float("inf")),
        "high": controls.slopes.max(initial=float("-inf")),
        "concept": controls.tested,
        "p_value": controls.p_value,
    }


def _completions_finding(
    written: Mapping[str, pd.DataFrame], kept: int, asked: int, grid: ConceptGrid, settings: ConceptSteeringSettings
) -> Finding:
    repeating = ", ".join(f"{name} {n}" for name, n in leaked(written, settings.prompts).items())
    n_rated = len(grid.crossed.values)
    return Finding(
        "Completions",
        f"{kept} of {asked} tasks have a usable completion under every prompt (completions that repeat their prompt: "
        f"{repeating}), and {n_rated} of these are rated on format in every cell at dose 0.{grid.crossed.dropped_note}",
        "concept_ratings",
    )


def _methods(settings: ConceptSteeringSettings, layer: int, n_train: int, n_test: int) -> str:
    one, other = settings.concept
    largest = max(settings.doses)
    texts = (
        f" At every dose {settings.texts} of the prompts of the reference ({next(iter(settings.prompts))}, done and rated) "
        f"were also answered in free text ({settings.text_tokens} tokens, temperature 0.7), read by the untouched model."
        if settings.texts
        else ""
    )
    return (
        f"The concept is the mean difference of the activations ({settings.position}, {layer_name(layer)}) of {n_train} tasks "
        f"between the system prompts {one} and {other}. {n_test} other tasks were done under each of {len(settings.prompts)} "
        f"system prompts (the persona), with the instruction not to mention them (up to {settings.max_new_tokens} tokens, "
        f"temperature {settings.temperature:g}); tasks of which a completion repeats its prompt were left out. Each completion "
        f"was then rated on {', '.join(settings.scales)} under each prompt (the context), while every token, of prompt and "
        "answer, was pushed along the concept. A dose of 1 is the mean residual norm at that layer over those tokens. Ratings "
        "are shares of a scale's length. Slopes are least squares through the origin, task by task and cell by cell, over the "
        "doses at which the model stays coherent; effects are within tasks; intervals are Student's, over tasks. Controls of "
        f"the same norm ({settings.n_random} random directions, and {settings.n_flipped} made of the same paired differences, "
        f"half of them with the sign flipped) were asked at the doses {-largest:g} and {largest:g} alone, and for each task in "
        "one cell a persona and a context, in a Latin square; p-values are ranks of the size of the concept's slope, from "
        "those two doses and in those cells, among theirs." + texts
    )


if __name__ == "__main__":
    from experiments.cli import main

    sys.exit(main(["concept_steering", *sys.argv[1:]]))
