"""Directions from activations: differences of means, probes, principal components (controls are in `interp.controls`).

Every maker reads one layer and position of an activation store, and gives unit vectors that know where they come from.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import linalg

from interp.fit import fit_probe
from interp.kinds import Kind
from interp.probe import task_rows
from store.activations import ActivationStore
from store.directions import Direction
from store.labels import check_labels
from store.layout import layer_name
from store.provenance import digest

_LEAST_VARIANCE = 1e-12
"""Share of the first component's variance below which a component is rounding."""


def difference_of_means(
    store: ActivationStore,
    layer: int,
    position: str,
    above: Sequence[str],
    below: Sequence[str],
    *,
    method: str = "difference_of_means",
) -> Direction:
    """Direction from the mean activation of the tasks `below` to that of the tasks `above`.

    Parameters
    ----------
    method
        What the provenance calls it, e.g. `refused_less_complied`.

    Raises
    ------
    ValueError
        A group is empty, the groups overlap, or their means are equal.
    """
    if not len(above) or not len(below):
        raise ValueError(f"Difference of means of {len(above)} and {len(below)} tasks; expected some in both groups.")
    if shared := sorted(set(above) & set(below)):
        raise ValueError(f"Tasks {shared[:5]} are in both groups; a difference of means needs two groups apart.")
    means = [task_rows(store, layer, position, tasks).astype(np.float64).mean(axis=0) for tasks in (above, below)]
    return Direction.from_vector(
        means[0] - means[1],
        layer,
        store.header.model,
        method=method,
        position=position,
        above=list(above),
        below=list(below),
    )


def paired_difference(
    above: ActivationStore, below: ActivationStore, layer: int, position: str, tasks: Sequence[str] | None = None
) -> Direction:
    """Direction from one condition to another, such as two system prompts: the mean difference within the same tasks.

    What tasks differ in drops out, so fewer are needed than for a difference of the means of two groups.

    Parameters
    ----------
    above, below
        The same tasks captured under the two conditions.
    tasks
        Which; default: all that both stores hold.

    Returns
    -------
    The direction. Its provenance has the standard error, over tasks, of the mean projection, whose value is `length`; it is
    small beside how far the direction would turn with other tasks, because the direction was chosen on these.

    Raises
    ------
    ValueError
        The stores are of different models, have no task in common, or do not differ.
    """
    models = above.header.model, below.header.model
    if models[0].fingerprint != models[1].fingerprint:
        described = [
            f"{store.name} ({store.header.model.name}, {store.header.model.fingerprint[:12]})" for store in (above, below)
        ]
        raise ValueError(
            f"{described[0]} and {described[1]} are of different models; a paired difference needs one model under two "
            "conditions."
        )
    if tasks is None:
        others = set(_all_tasks(below))
        tasks = [task_id for task_id in _all_tasks(above) if task_id in others]
    if not len(tasks):
        raise ValueError(f"{above.name} and {below.name} have no task in common; expected the same tasks under two conditions.")
    rows = [task_rows(store, layer, position, tasks).astype(np.float64) for store in (above, below)]
    differences = rows[0] - rows[1]
    made = Direction.from_vector(
        differences.mean(axis=0),
        layer,
        models[0],
        method="paired_difference",
        position=position,
        n=len(tasks),
        tasks=list(tasks),
        above=_condition(above, tasks),
        below=_condition(below, tasks),
    )
    projected = differences @ made.vector.astype(np.float64)
    error = float(projected.std(ddof=1) / np.sqrt(len(tasks))) if len(tasks) > 1 else None
    return Direction(made.vector, layer, made.model, {**made.provenance, "se": error})


def _condition(store: ActivationStore, tasks: Sequence[str]) -> dict[str, str]:
    """What a store knows of how its tasks were asked: its name, its template, and a digest of the prompts."""
    prompts = dict(zip(store.task_ids, (prompt for file in store.files for prompt in file.prompts), strict=True))
    return {
        "store": store.name,
        "template_hash": store.header.template_hash,
        "prompts": digest("prompts", [prompts[task_id] for task_id in tasks]),
    }


def _all_tasks(store: ActivationStore) -> list[str]:
    return [store.task_ids[slot] for slot in store.slots()]


def preference_direction(
    store: ActivationStore, labels: pd.DataFrame, layer: int, position: str, *, share: float = 1 / 3
) -> Direction:
    """Difference of means between the tasks with the highest and the lowest labels.

    Parameters
    ----------
    labels
        Labels of one target; only these tasks are used.
    share
        Share of the tasks in each of the two groups.

    Raises
    ------
    ValueError
        There are fewer than two tasks, several targets, or the share is not in (0, 0.5].
    """
    above, below = extremes(labels, share)
    return difference_of_means(store, layer, position, above, below)


def extremes(labels: pd.DataFrame, share: float) -> tuple[list[str], list[str]]:
    """Tasks with the highest and with the lowest labels.

    Raises
    ------
    ValueError
        There are fewer than two tasks, several targets, or the share is not in (0, 0.5].
    """
    values = check_labels(labels).sort_values("value", kind="stable")
    only_target(values)
    if not 0 < share <= 0.5 or len(values) < 2:
        raise ValueError(f"share={share} of {len(values)} tasks; expected a share in (0, 0.5] of at least two tasks.")
    size = max(1, int(len(values) * share))
    ids = values["task_id"].tolist()
    return ids[-size:], ids[:size]


def only_target(labels: pd.DataFrame) -> str:
    """The target of labels that are all of one.

    Raises
    ------
    ValueError
        There are several, or none.
    """
    targets = sorted(labels["target"].unique())
    if len(targets) != 1:
        raise ValueError(f"Labels have the targets {targets}; expected those of one target.")
    return str(targets[0])


def probe_direction(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    *,
    kind: Kind = "ridge",
    choices: pd.DataFrame | None = None,
) -> Direction:
    """Direction along which what a probe reads rises fastest.

    Parameters
    ----------
    kind, choices
        As in `fit_probe`: a ridge, logistic, mass-mean or Bradley-Terry probe, the last fitted to choices.
    """
    return fit_probe(store, labels, layer, position, kind=kind, choices=choices).direction()


def principal_directions(
    store: ActivationStore, layer: int, position: str, n: int = 1, tasks: Sequence[str] | None = None
) -> list[Direction]:
    """Directions along which the rows vary most, the strongest first; the provenance has each one's share of the variance.

    A principal component has no sign of its own: its largest coordinate is made positive.

    Parameters
    ----------
    tasks
        Whose rows; default: all that the store holds.

    Raises
    ------
    ValueError
        The rows vary in fewer than `n` directions.
    """
    if n < 1:
        raise ValueError(f"n={n} principal directions; expected at least 1.")
    rows, tasks = centred_rows(store, layer, position, tasks)
    wide = len(rows) <= rows.shape[1]
    gram = rows @ rows.T if wide else rows.T @ rows
    size = len(gram)
    squares, vectors = linalg.eigh(gram, subset_by_index=[max(0, size - n), size - 1])
    found = int((squares > _LEAST_VARIANCE * squares[-1]).sum())
    if found < n:
        raise ValueError(
            f"n={n} principal directions of {len(rows)} rows at {layer_name(layer)}/{position}, which vary in {found} only; "
            "ask for fewer, or give more tasks."
        )
    directions = []
    components = (rows.T @ vectors if wide else vectors).T
    for number, (square, component) in enumerate(zip(squares[::-1], components[::-1], strict=True)):
        upright = component * np.sign(component[np.abs(component).argmax()]) / np.linalg.norm(component)
        directions.append(
            Direction.from_vector(
                upright * np.sqrt(square / (len(rows) - 1)),  # its length is the standard deviation of the rows along it
                layer,
                store.header.model,
                method="principal_component",
                position=position,
                number=number,
                variance_share=float(square / gram.trace()),
                tasks=tasks,
            )
        )
    return directions


def centred_rows(
    store: ActivationStore, layer: int, position: str, tasks: Sequence[str] | None
) -> tuple[Float[np.ndarray, "tasks d_model"], list[str]]:
    """Rows of tasks (default: all) less their mean, and whose they are.

    Raises
    ------
    ValueError
        There are fewer than two tasks.
    """
    chosen = _all_tasks(store) if tasks is None else list(tasks)
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} tasks of {store.name}; how rows vary takes at least two.")
    rows = task_rows(store, layer, position, chosen).astype(np.float64)
    return rows - rows.mean(axis=0), chosen
