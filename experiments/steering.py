"""Steering: push along directions and along their controls, and ask again, for every dose.

Directions come from one part of the tasks and are tested on the others. What is asked, and where a push acts, is in
`experiments.steer_modes`; how directions are made in `experiments.steer_directions`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, field_validator

from elicit import LeastSquares, Task, ask_views, disjoint_pairs
from experiments.coherence import coherence_table, free_questions, own_texts, texts_of
from experiments.dose_response import CONTROLS_NEEDED, DoseResponse
from experiments.equal_kl import equal_kl_doses
from experiments.measuring import ElicitSettings, Preferences, restricted
from experiments.run_directory import RunDirectory
from experiments.steer_directions import Method, made_directions, shuffled_controls
from experiments.steer_modes import Mode, intervention_of, positions_of, questions_of, units_of
from interp import LocalModel, random_directions
from interp.layers import LayerSpec
from store import ActivationStore, Direction, Question, SteeringVector, layer_name
from store.provenance import digest

_CONTROLS_THAT_WRITE = 3
"""So many random directions write texts too, to see what a push as such does to them."""


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
    n_shuffled: int = Field(default=0, ge=0, description="Directions of shuffled labels as controls, for every method.")
    texts: int = Field(
        default=0, ge=0, description="Prompts answered in free text at every dose, to see whether it makes sense."
    )
    text_tokens: int = Field(default=32, ge=4, description="Length of these texts.")
    equal_kl: float | None = Field(
        default=None,
        gt=0,
        description="Scale the doses of every direction so that its largest departs this far from the untouched model: mean KL "
        "of the next token along free texts, in nats, e.g. 0.1. Doses are then shares of it.",
    )
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


@dataclass(frozen=True)
class Directions:
    """What is pushed at one layer: directions under test by name, and for each method its controls of shuffled labels."""

    tested: Mapping[str, Direction]
    shuffled: Mapping[str, Sequence[Direction]]

    @classmethod
    def of(
        cls,
        store: ActivationStore,
        labels: pd.DataFrame,
        layer: int,
        settings: SteerSettings,
        *,
        choices: pd.DataFrame | None = None,
        seed: int = 0,
    ) -> Self:
        """Make them from labels of some tasks, and the choices behind those."""
        where = (store, labels, layer, settings.position, settings.methods)
        return cls(made_directions(*where, choices), shuffled_controls(*where, settings.n_shuffled, seed, choices))


@dataclass(frozen=True)
class _Grid:
    """One mode at one layer: the vectors, and by how much each one's doses are scaled."""

    mode: Mode
    layer: int
    asked: Sequence[Question]
    vectors: Mapping[str, SteeringVector]
    controls: pd.DataFrame  # by direction: is_random, shuffled
    factors: Mapping[str, float]

    def view(self, model: LocalModel, name: str, dose: float) -> LocalModel:
        return model.steered(intervention_of(self.mode, self.vectors[name], dose * self.factors[name]))


def steer(
    model: LocalModel,
    tasks: Sequence[Task],
    preferences: Preferences,
    store: ActivationStore,
    elicitation: ElicitSettings,
    settings: SteerSettings,
    run: RunDirectory,
) -> Steered:
    """Make directions from some tasks, steer questions about the others, and compare with random and shuffled directions."""
    seed = run.settings.seed
    train, test = split_tasks(tasks, settings.train_share, seed)
    comparisons = restricted(preferences.comparisons, [task.id for task in train])
    labels = LeastSquares(resamples=50, seed=seed).fit(comparisons).labels()
    directions = {
        layer: Directions.of(store, labels, layer, settings, choices=comparisons, seed=seed)
        for layer in model.layers(settings.layers)
    }
    pairs = disjoint_pairs([task.id for task in test], seed)
    response, vectors = steer_along(model, directions, test, pairs, elicitation.wording, settings, run)
    return Steered(response, vectors, [task.id for task in train], [task.id for task in test])


def steer_along(
    model: LocalModel,
    directions: Mapping[int, Directions],
    tasks: Sequence[Task],
    pairs: Sequence[tuple[str, str]],
    wording: str,
    settings: SteerSettings,
    run: RunDirectory,
) -> tuple[DoseResponse, dict[str, SteeringVector]]:
    """Push along directions, by layer, and along their controls, and ask about tasks that none was made from."""
    units, texts, doses, vectors = [], [], [], {}
    for mode in settings.modes:
        asked = questions_of(mode, tasks, pairs, wording, settings.scale)
        for layer, own in directions.items():
            grid = _grid(model, mode, layer, asked, own, settings, run)
            if settings.equal_kl is not None:
                grid, found = _equalised(model, grid, settings, run)
                doses.append(found.assign(layer=layer, mode=mode))
            units.append(_ask_grid(model, grid, settings, run))
            if settings.texts:
                texts.append(_write_grid(model, grid, settings, run))
            vectors |= {f"{name}_{layer_name(layer)}_{mode}": grid.vectors[name] for name in own.tested}
    for name, vector in vectors.items():
        run.save_direction(name, vector)
    written = pd.concat(texts, ignore_index=True) if texts else None
    coherence = _coherence(written) if written is not None else None
    response = DoseResponse.of(
        pd.concat(units, ignore_index=True), coherence, resamples=settings.resamples, seed=run.settings.seed
    )
    tables = {"steering_units": response.units, "dose_response": response.curve, "slopes": response.slopes}
    tables |= {"steered_texts": written} if written is not None else {}
    tables |= {"equal_kl": pd.concat(doses, ignore_index=True)} if doses else {}
    for name, table in tables.items():
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


def reference_norm_of(
    model: LocalModel, layer: int, asked: Sequence[Question], positions: Sequence[str], run: RunDirectory
) -> dict[str, Any]:
    """What one unit of dose is (see `LocalModel.reference_norm`), measured once a run directory."""
    key = digest(model.fingerprint, layer, list(positions), [model.prompt_digest(question) for question in asked])
    return run.remembered("reference_norms", key, lambda: model.reference_norm(layer, asked, positions))


def _grid(
    model: LocalModel,
    mode: Mode,
    layer: int,
    asked: Sequence[Question],
    directions: Directions,
    settings: SteerSettings,
    run: RunDirectory,
) -> _Grid:
    random = random_directions(model.identity, model.d_model, layer, settings.n_random, run.settings.seed)
    shuffled = {} if mode == "choice_both_alike" else directions.shuffled  # which is a control itself
    named = [(name, direction, False, "") for name, direction in directions.tested.items()]
    named += [(f"random_{number + 1}", each, True, "") for number, each in enumerate(random)]
    named += [
        (f"shuffled_{method}_{number + 1}", each, False, method)
        for method, several in shuffled.items()
        for number, each in enumerate(several)
    ]
    norm = reference_norm_of(model, layer, asked, positions_of(mode), run)
    vectors = {name: direction.scaled(**norm) for name, direction, _, _ in named}
    controls = pd.DataFrame(
        [(name, is_random, of) for name, _, is_random, of in named], columns=["direction", "is_random", "shuffled"]
    )
    return _Grid(mode, layer, asked, vectors, controls, dict.fromkeys(vectors, 1.0))


def _equalised(model: LocalModel, grid: _Grid, settings: SteerSettings, run: RunDirectory) -> tuple[_Grid, pd.DataFrame]:
    """The same grid with the doses of every direction scaled to the same divergence, and what that took."""
    asked = free_questions(grid.asked, settings.texts or 8, settings.text_tokens, run.settings.seed)
    largest = max(settings.doses)
    found = equal_kl_doses(
        model,
        {name: partial(grid.view, model, name) for name in grid.vectors},
        asked,
        own_texts(model, asked, run),
        settings.equal_kl or 0.0,
        largest,
        run,
    )
    factors = dict(zip(found["direction"], found["dose"] / largest, strict=True))
    return replace(grid, factors=factors), found.merge(grid.controls, on="direction")


def _ask_grid(model: LocalModel, grid: _Grid, settings: SteerSettings, run: RunDirectory) -> pd.DataFrame:
    conditions = [(name, dose) for name in grid.vectors for dose in settings.doses]
    views = [grid.view(model, *condition) for condition in conditions]
    answers = ask_views(grid.asked, views, run.log, description=f"steered {grid.mode} {layer_name(grid.layer)}")
    units = units_of(grid.mode, grid.asked, dict(zip(conditions, answers, strict=True)), settings.scale)
    if settings.equal_kl is not None:
        units["dose"] /= max(settings.doses)
    return units.merge(grid.controls, on="direction", sort=False).assign(layer=grid.layer, mode=grid.mode)


def _write_grid(model: LocalModel, grid: _Grid, settings: SteerSettings, run: RunDirectory) -> pd.DataFrame:
    """Texts of the directions under test, and of a few random ones."""
    is_random = grid.controls["is_random"]
    tested = grid.controls.loc[~is_random & (grid.controls["shuffled"] == ""), "direction"].tolist()
    writing = tested + grid.controls.loc[is_random, "direction"].tolist()[:_CONTROLS_THAT_WRITE]
    asked = free_questions(grid.asked, settings.texts, settings.text_tokens, run.settings.seed)
    views = {(name, dose): grid.view(model, name, dose) for name in writing for dose in settings.doses}
    texts = texts_of(model, asked, views, run, f"steered texts, {grid.mode} {layer_name(grid.layer)}")
    if settings.equal_kl is not None:
        texts["dose"] /= max(settings.doses)
    return texts.assign(layer=grid.layer, mode=grid.mode)


def _coherence(texts: pd.DataFrame) -> pd.DataFrame:
    """How texts read, condition by condition."""
    tables = []
    for condition in dict.fromkeys(zip(texts["layer"], texts["mode"], strict=True)):
        layer, mode = condition
        part = texts[(texts["layer"] == layer) & (texts["mode"] == mode)]
        tables.append(coherence_table(part).assign(layer=layer, mode=mode))
    return pd.concat(tables, ignore_index=True)
