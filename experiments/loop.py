"""The loop: tasks are asked about, their activations cached, directions found, pushed, and the questions asked again."""

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from elicit import Task, task_question
from experiments.measuring import ElicitSettings, Preferences, measure_preferences
from experiments.run_directory import RunDirectory
from experiments.settings import Settings
from experiments.setup import Setup
from experiments.steering import Steered, SteerSettings, split_tasks, steer
from interp import LocalModel, Positions, capture
from interp.layers import LayerSpec
from store import ActivationStore, layer_name


class LoopSettings(Settings):
    """Settings of experiments that go round the loop."""

    elicit: ElicitSettings = Field(default=ElicitSettings(), description="What is asked about the tasks.")
    steer: SteerSettings = Field(default=SteerSettings(), description="Directions, doses and controls.")


@dataclass(frozen=True)
class Loop(Setup):
    """Everything that one round of the loop measured."""

    preferences: Preferences
    store: ActivationStore
    steered: Steered


def go_round(settings: LoopSettings, layers: Sequence[LayerSpec], positions: Sequence[str]) -> Loop:
    """Run the loop; what was done before in the same directory is not done again.

    Parameters
    ----------
    layers, positions
        What to cache; the layers and the position that steering needs are added.
    """
    setup = Setup.of(settings, settings.load_tasks())
    run, model, tasks = setup.run, setup.model, setup.tasks
    # What only the model can tell to be wrong is told before anything is asked.
    positions = list(dict.fromkeys([*positions, settings.steer.position]))
    model.layers([*layers, *settings.steer.layers])
    if several := [str(each) for each in Positions.parse_all(positions) if not each.has_one_row]:
        raise ValueError(
            f"The positions {several} have a row for every token (a name without _mean, _last or _first is all of a span); "
            "probes and directions need one row a task. Name a reduction: task_mean, task_last."
        )
    split_tasks(tasks, settings.steer.train_share, settings.seed)
    preferences = measure_preferences(model, tasks, settings.elicit, run)
    store = cache_activations(model, tasks, [*layers, *settings.steer.layers], positions, run)
    steered = steer(model, tasks, preferences, store, settings.elicit, settings.steer, run)
    return Loop(settings, run, model, tasks, preferences, store, steered)


def cache_activations(
    model: LocalModel, tasks: Sequence[Task], layers: Sequence[LayerSpec], positions: Sequence[str], run: RunDirectory
) -> ActivationStore:
    """Capture the tasks' residual streams into the run's store for this model, these tasks, layers and positions."""
    task_ids = [task.id for task in tasks]
    resolved = model.layers(layers)
    path = run.activations(model=model.fingerprint, tasks=task_ids, layers=resolved, positions=positions)
    named = [layer_name(layer) for layer in resolved]
    return capture(model, [task_question(task) for task in tasks], task_ids, path, layers=named, positions=positions)
