"""Steering: push along directions and along random ones, and ask again, for every dose.

Directions come from one part of the tasks and are tested on the others. Choices are steered apart: +v on one task of a
pair and -v on the other, in both orders, so that what a push does to position cancels. Ratings are steered on all tokens.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator
from scipy import special

from elicit import LeastSquares, Task, ask_views, choice, disjoint_pairs, rating
from elicit.templates import template
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse
from experiments.measuring import ElicitSettings, Preferences, restricted
from experiments.run_directory import RunDirectory
from interp import Intervention, LocalModel, Push, preference_direction, probe_direction, random_directions
from interp.layers import LayerSpec
from store import ActivationStore, Direction, Question, SteeringVector, layer_name
from store.provenance import digest

Method = Literal["difference_of_means", "ridge_probe"]
Mode = Literal["choice", "rating", "choice_both_alike"]
_SPANS = ("task_a", "task_b")


class SteerSettings(BaseModel):
    """Which directions are pushed, where and how hard."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: tuple[LayerSpec, ...] = Field(default=(0.5,), min_length=1, description="Layers to steer, one at a time.")
    position: str = Field(default="task_mean", description="Position that directions are read from.")
    methods: tuple[Method, ...] = Field(default=("difference_of_means", "ridge_probe"), description="How directions are made.")
    modes: tuple[Mode, ...] = Field(default=("choice",), min_length=1, description="What is asked under steering.")
    doses: tuple[float, ...] = Field(
        default=(-0.4, -0.2, 0.0, 0.2, 0.4), description="In mean residual norms; zero is always asked."
    )
    n_random: int = Field(default=CONTROLS_NEEDED, ge=2, description="Random directions as controls.")
    train_share: float = Field(default=2 / 3, gt=0, lt=1, description="Share of tasks that directions are made from.")
    scale: str = Field(default="yes_somewhat_no", description="Self-report asked under steering, for mode rating.")
    resamples: int = Field(default=1000, ge=50, description="Bootstrap resamples of pairs or tasks.")

    @field_validator("doses")
    @classmethod
    def _mirrored(cls, doses: tuple[float, ...]) -> tuple[float, ...]:
        complete = tuple(sorted({0.0, *doses}))
        if len(complete) < 3 or any(-dose not in complete for dose in complete):
            raise ValueError(
                "expected each dose with its opposite (-0.2 and 0.2): both orders are steered the same way only then"
            )
        return complete


@dataclass(frozen=True)
class Steered:
    """A dose-response, and what made it.

    Attributes
    ----------
    vectors
        Every steering vector, by the name of its direction, layer and mode.
    train, test
        Ids of the tasks that directions were made from, and of those they were tested on.
    """

    response: DoseResponse
    vectors: Mapping[str, SteeringVector]
    train: Sequence[str]
    test: Sequence[str]


def steer(
    model: LocalModel,
    tasks: Sequence[Task],
    preferences: Preferences,
    store: ActivationStore,
    elicitation: ElicitSettings,
    settings: SteerSettings,
    run: RunDirectory,
) -> Steered:
    """Make directions from some tasks, steer choices or ratings of the others, and compare with random directions."""
    seed = run.settings.seed
    train, test = split_tasks(tasks, settings.train_share, seed)
    utilities = LeastSquares(resamples=50, seed=seed).fit(restricted(preferences.comparisons, [task.id for task in train]))
    directions = {layer: made_directions(store, utilities.labels(), layer, settings) for layer in model.layers(settings.layers)}
    pairs = disjoint_pairs([task.id for task in test], seed)
    response, vectors = steer_along(model, directions, test, pairs, elicitation.wording, settings, run)
    return Steered(response, vectors, [task.id for task in train], [task.id for task in test])


def steer_along(
    model: LocalModel,
    directions: Mapping[int, Mapping[str, Direction]],
    tasks: Sequence[Task],
    pairs: Sequence[tuple[str, str]],
    wording: str,
    settings: SteerSettings,
    run: RunDirectory,
) -> tuple[DoseResponse, dict[str, SteeringVector]]:
    """Push along directions, by layer and name, and along random ones, and ask about tasks that none was made from."""
    seed = run.settings.seed
    frames, vectors = [], {}
    for mode in settings.modes:
        asked = _questions(mode, tasks, pairs, wording, settings)
        positions = _SPANS if mode == "choice" else ("all",)
        for layer, named in directions.items():
            random = random_directions(model.identity, model.d_model, layer, settings.n_random, seed)
            everything = {**named, **{f"random_{number + 1}": each for number, each in enumerate(random)}}
            norm = reference_norm_of(model, layer, asked, positions, run)
            scaled = {name: direction.scaled(**norm) for name, direction in everything.items()}
            vectors |= {_vector_name(name, layer, mode): vector for name, vector in scaled.items()}
            frames.append(_ask_grid(model, mode, layer, asked, scaled, settings, run))
    units = pd.concat(frames, ignore_index=True)
    for name, vector in vectors.items():
        if vector.direction.provenance["method"] != "random":
            run.save_direction(name, vector)
    response = DoseResponse.of(units, resamples=settings.resamples, seed=seed)
    for name, table in (("steering_units", units), ("dose_response", response.curve), ("slopes", response.slopes)):
        run.save_table(name, table)
    return response, vectors


def split_tasks(tasks: Sequence[Task], share: float, seed: int) -> tuple[list[Task], list[Task]]:
    """Divide the tasks of every origin at random into those that directions are made from and those they are tested on."""
    random = np.random.default_rng([seed, 3])
    train: list[Task] = []
    for origin in sorted({task.origin for task in tasks}):
        members = [task for task in tasks if task.origin == origin]
        order = random.permutation(len(members))
        train += [members[place] for place in order[: round(share * len(members))]]
    chosen = {task.id for task in train}
    test = [task for task in tasks if task.id not in chosen]
    if len(train) < 3 or len(test) < 6:
        raise ValueError(
            f"{len(train)} tasks to make directions from and {len(test)} to test them on; expected at least 3 and 6. "
            "Sample more tasks per origin or change train_share."
        )
    return train, test


def made_directions(store: ActivationStore, labels: pd.DataFrame, layer: int, settings: SteerSettings) -> dict[str, Direction]:
    """Directions from the labels of some tasks, by the methods of the settings."""
    make = {"difference_of_means": preference_direction, "ridge_probe": probe_direction}
    return {method: make[method](store, labels, layer, settings.position) for method in settings.methods}


def _vector_name(direction: str, layer: int, mode: Mode) -> str:
    return f"{direction}_{layer_name(layer)}_{mode}"


def _questions(
    mode: Mode, test: Sequence[Task], pairs: Sequence[tuple[str, str]], wording: str, settings: SteerSettings
) -> list[Question]:
    if mode == "rating":
        return rating.questions(test, scale=settings.scale)
    return choice.questions(test, pairs, wording=wording)


def reference_norm_of(
    model: LocalModel, layer: int, asked: Sequence[Question], positions: Sequence[str], run: RunDirectory
) -> dict[str, Any]:
    """What one unit of dose is (see `LocalModel.reference_norm`), measured once a run directory."""
    key = digest(model.fingerprint, layer, list(positions), [model.prompt_digest(question) for question in asked])
    return run.remembered("reference_norms", key, lambda: model.reference_norm(layer, asked, positions))


def _intervention(vector: SteeringVector, mode: Mode, dose: float) -> Intervention:
    if mode == "choice":
        return Intervention.apart(vector, dose, toward=_SPANS[0], away_from=_SPANS[1])
    return Intervention((Push(vector, "all"),), dose)


def _ask_grid(
    model: LocalModel,
    mode: Mode,
    layer: int,
    asked: Sequence[Question],
    vectors: Mapping[str, SteeringVector],
    settings: SteerSettings,
    run: RunDirectory,
) -> pd.DataFrame:
    conditions = [(name, dose) for name in vectors for dose in settings.doses]
    views = [model.steered(_intervention(vectors[name], mode, dose)) for name, dose in conditions]
    answers = ask_views(asked, views, run.log, description=f"steered {mode} {layer_name(layer)}")
    if mode == "rating":
        tables = [rating.ratings(asked, each) for each in answers]
        frames = _rating_units(conditions, tables, settings.scale)
    else:
        tables = [choice.comparisons(asked, each) for each in answers]
        frames = _choice_units(conditions, tables, mirrored=mode == "choice")
    units = pd.concat(frames, ignore_index=True)
    random = [name for name, vector in vectors.items() if vector.direction.provenance["method"] == "random"]
    return units.assign(is_random=units["direction"].isin(random), layer=layer, mode=mode)


def _choice_units(
    conditions: Sequence[tuple[str, float]], tables: Sequence[pd.DataFrame], mirrored: bool
) -> list[pd.DataFrame]:
    """One row per pair: the log-odds for its first task X, averaged over both orders, as X is pushed up by the dose.

    Questions alternate X first, X second. A view pushes the task shown first by +dose; where X is shown second, pushing X
    up is the view of the opposite dose (`mirrored`). Pushes on all tokens are the same in both orders.
    """
    by_condition = dict(zip(conditions, tables, strict=True))
    frames = []
    for (name, dose), table in by_condition.items():
        opposite = by_condition[name, -dose if mirrored else dose]
        zero = by_condition[name, 0.0]
        shown_first, shown_second = table.iloc[0::2].reset_index(drop=True), opposite.iloc[1::2].reset_index(drop=True)
        before = (zero["logit"].to_numpy()[0::2] - zero["logit"].to_numpy()[1::2]) / 2
        after = (shown_first["logit"].to_numpy() - shown_second["logit"].to_numpy()) / 2
        chosen = (special.expit(shown_first["logit"].to_numpy()) + special.expit(-shown_second["logit"].to_numpy())) / 2
        on_format = [(frame["outcome"] == "chose").to_numpy(dtype=float) for frame in (shown_first, shown_second)]
        frames.append(
            pd.DataFrame(
                {
                    "direction": name,
                    "dose": dose,
                    "unit": shown_first["first"] + " / " + shown_first["second"],
                    "shift": after - before,
                    "probability": chosen,
                    "mass": (shown_first["mass"] + shown_second["mass"]) / 2,
                    "on_format": (on_format[0] + on_format[1]) / 2,
                }
            )
        )
    return frames


def _rating_units(conditions: Sequence[tuple[str, float]], tables: Sequence[pd.DataFrame], scale: str) -> list[pd.DataFrame]:
    """One row per task: the change of its rating, as a share of the scale's length."""
    values = template("rating", scale).scale.values()
    length = max(values) - min(values)
    by_condition = dict(zip(conditions, tables, strict=True))
    return [
        pd.DataFrame(
            {
                "direction": name,
                "dose": dose,
                "unit": table["task_id"],
                "shift": (table["mean"] - by_condition[name, 0.0]["mean"]) / length,
                "probability": np.nan,
                "mass": table["mass"],
                "on_format": (table["outcome"] == "chose").astype(float),
            }
        )
        for (name, dose), table in by_condition.items()
    ]
