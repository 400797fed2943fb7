"""Controls for directions: random ones, ones drawn where activations vary, ones made alike from shuffled labels or signs."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int

from interp.directions import (
    centred_rows,
    extremes,
    only_target,
    paired_difference,
    preference_direction,
    probe_direction,
)
from interp.probe import task_rows
from interp.probe_block import varying
from store.activations import ActivationStore
from store.directions import Direction
from store.labels import check_labels
from store.provenance import ModelIdentity

Maker = Callable[[ActivationStore, pd.DataFrame, int, str], Direction]
"""Makes a direction from labels of one target; `functools.partial` sets what else it takes."""


def random_directions(model: ModelIdentity, d_model: int, layer: int, n: int, seed: int = 0) -> list[Direction]:
    """Directions drawn uniformly from the sphere: controls for any other direction at this layer.

    The k-th direction depends on the seed, the layer and k alone.
    """
    found = []
    for number in range(n):
        vector = np.random.default_rng([seed, layer % 2**32, number]).standard_normal(d_model)
        found.append(Direction.from_vector(vector, layer, model, method="random", seed=seed, number=number))
    return found


def anisotropic_directions(
    store: ActivationStore, layer: int, position: str, n: int, seed: int = 0, *, tasks: Sequence[str] | None = None
) -> list[Direction]:
    """Directions drawn where activations vary: from a normal distribution with the covariance of the store's rows.

    A harder control than `random_directions`. A direction found in activations lies mostly where they vary most, and a model
    may answer to any push there; one drawn uniformly from the sphere hardly ever lies there. The k-th depends on the rows,
    the seed, the layer and k alone.

    Parameters
    ----------
    tasks
        Whose rows; default: all that the store holds.

    Raises
    ------
    ValueError
        There are fewer than two tasks, or their rows are all the same.
    """
    rows, _ = centred_rows(store, layer, position, tasks)
    found = []
    for number in range(n):
        vector = np.random.default_rng([seed, layer % 2**32, number]).standard_normal(len(rows)) @ rows
        provenance = {"method": "anisotropic", "position": position, "seed": seed, "number": number, "n_tasks": len(rows)}
        found.append(Direction.from_vector(vector / np.sqrt(len(rows) - 1), layer, store.header.model, **provenance))
    return found


def shuffled_directions(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    n: int,
    *,
    make: Maker = preference_direction,
    seed: int = 0,
) -> list[Direction]:
    """Controls made as a direction was, from labels dealt out anew among the same tasks: what the making alone can do.

    The k-th permutation depends on the seed, k and the number of tasks alone, so it is the same at every layer. All
    differences of means are one product of matrices, and all ridge probes share one decomposition.

    Parameters
    ----------
    labels
        Labels of one target.
    make
        What made the direction; `partial(probe_direction, kind="logistic")` for one with settings. Choices in its settings are
        dealt out with the labels.

    Returns
    -------
    Directions whose provenance is that of the maker, with `shuffled` before the name of the method.

    Raises
    ------
    ValueError
        The maker refuses the labels.
    """
    labels = check_labels(labels)
    only_target(labels)
    orders = [np.random.default_rng([seed, number]).permutation(len(labels)) for number in range(n)]
    maker, settings = (make.func, make.keywords) if isinstance(make, partial) and not make.args else (make, {})
    if maker is preference_direction:
        made = _shuffled_differences(store, labels, layer, position, orders, **settings)
    elif maker is probe_direction and settings.get("kind", "ridge") == "ridge":
        made = _shuffled_ridges(store, labels, layer, position, orders)
    else:
        made = _shuffled_one_by_one(store, labels, layer, position, orders, maker, settings)
    return [
        Direction(
            each.vector,
            layer,
            each.model,
            {**each.provenance, "method": f"shuffled {each.provenance.get('method')}", "seed": seed, "number": number},
        )
        for number, each in enumerate(made)
    ]


def flipped_directions(
    above: ActivationStore,
    below: ActivationStore,
    layer: int,
    position: str,
    n: int,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Direction]:
    """Controls for a `paired_difference`: made of the same differences, half of them, drawn at random, with the sign flipped.

    What the conditions differ in alike for all tasks cancels, and what the making alone can do is left. Signs drawn one by one
    would leave some of it: where the differences agree, such a control is nearly the direction itself. (Of an odd number of
    tasks, one is left over.) The k-th draw depends on the seed, k and the number of tasks alone; all are one product of
    matrices.

    Parameters
    ----------
    above, below, tasks
        As in `paired_difference`.

    Raises
    ------
    ValueError
        `paired_difference` refuses the stores, or there is a single task, whose flipped difference is the same direction.
    """
    known = paired_difference(above, below, layer, position, tasks).provenance
    ids: list[str] = known["tasks"]
    if len(ids) < 2:
        raise ValueError(f"Flipped differences of {len(ids)} task; expected at least 2.")
    differences = np.subtract(*(task_rows(store, layer, position, ids).astype(np.float64) for store in (above, below)))
    alternating = np.where(np.arange(len(ids)) % 2, -1.0, 1.0)
    signs = [np.random.default_rng([seed, number]).permutation(alternating) for number in range(n)]
    kept = {name: known[name] for name in ("position", "n", "tasks", "above", "below")}
    return [
        Direction.from_vector(
            vector, layer, above.header.model, method="flipped paired_difference", seed=seed, number=number, **kept
        )
        for number, vector in enumerate(np.reshape(signs, (n, len(ids))) @ differences / len(ids))
    ]


def _dealt(labels: pd.DataFrame, order: Int[np.ndarray, " tasks"]) -> pd.DataFrame:
    """Labels whose rows, whole, went to other tasks."""
    return labels.assign(task_id=labels["task_id"].to_numpy()[order])


def _shuffled_differences(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    orders: Sequence[Int[np.ndarray, " tasks"]],
    *,
    share: float = 1 / 3,
) -> Iterator[Direction]:
    ids = labels["task_id"].tolist()
    place = {task_id: number for number, task_id in enumerate(ids)}
    groups = [extremes(_dealt(labels, order), share) for order in orders]
    weights = np.zeros((len(orders), len(ids)))
    for row, (above, below) in zip(weights, groups, strict=True):
        row[[place[task_id] for task_id in above]] = 1 / len(above)
        row[[place[task_id] for task_id in below]] = -1 / len(below)
    vectors = weights @ task_rows(store, layer, position, ids).astype(np.float64)
    for vector, (above, below) in zip(vectors, groups, strict=True):
        known = {"method": "difference_of_means", "position": position, "above": above, "below": below}
        yield Direction.from_vector(vector, layer, store.header.model, **known)


def _shuffled_ridges(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    orders: Sequence[Int[np.ndarray, " tasks"]],
) -> Iterator[Direction]:
    from interp.estimators import RidgeProbe

    target = only_target(labels)
    values = varying(labels, target)
    if not orders:
        return
    columns = np.empty((len(labels), len(orders)))
    for column, order in zip(columns.T, orders, strict=True):
        column[order] = values
    probe = RidgeProbe().fit(task_rows(store, layer, position, labels["task_id"].tolist()), columns)
    known: dict[str, Any] = {"target": target, "n_tasks": len(labels), "position": position}
    for number in range(len(orders)):
        yield probe.direction(layer=layer, model=store.header.model, output=number, **known)


def _shuffled_one_by_one(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    orders: Sequence[Int[np.ndarray, " tasks"]],
    maker: Maker,
    settings: dict[str, Any],
) -> Iterator[Direction]:
    ids = labels["task_id"].tolist()
    for order in orders:
        dealt = _dealt(labels, order)
        changed = dict(settings)
        if isinstance(choices := settings.get("choices"), pd.DataFrame):
            # What was chosen goes with the label: a probe fitted to choices would not see labels that are dealt out anew.
            kept = choices[choices["first"].isin(ids) & choices["second"].isin(ids)]
            become = dict(zip(ids, dealt["task_id"], strict=True))
            changed["choices"] = kept.assign(first=kept["first"].map(become), second=kept["second"].map(become))
        yield maker(store, dealt, layer, position, **changed)
