"""Directions that are steered along, by method, and their controls."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from interp import preference_direction, principal_directions, probe_direction, shuffled_directions
from interp.probe import task_rows
from store import ActivationStore, Direction

Method = Literal[
    "difference_of_means", "ridge_probe", "logistic_probe", "mass_mean_probe", "bradley_terry_probe", "principal_component"
]
"""`difference_of_means`: most less least preferred third. Probes of the utilities, the Bradley-Terry one of the choices.
`principal_component`: the first, turned towards the preferred."""

Maker = Callable[[ActivationStore, pd.DataFrame, int, str], Direction]


def made_directions(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    methods: tuple[Method, ...],
    choices: pd.DataFrame | None = None,
) -> dict[str, Direction]:
    """Directions from the labels of some tasks, by method; the Bradley-Terry probe needs the choices behind them."""
    return {method: _maker(method, choices)(store, labels, layer, position) for method in methods}


def shuffled_controls(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    methods: tuple[Method, ...],
    n: int,
    seed: int,
    choices: pd.DataFrame | None = None,
) -> dict[str, list[Direction]]:
    """For every method, directions made in the same way of labels dealt out anew.

    A principal component is the same whatever the labels, so there is none for it.
    """
    return {
        method: shuffled_directions(store, labels, layer, position, n, make=_maker(method, choices), seed=seed)
        for method in methods
        if method != "principal_component"
    }


def _maker(method: Method, choices: pd.DataFrame | None) -> Maker:
    makers: Mapping[Method, Maker] = {
        "difference_of_means": preference_direction,
        "ridge_probe": probe_direction,
        "logistic_probe": partial(probe_direction, kind="logistic"),
        "mass_mean_probe": partial(probe_direction, kind="mass_mean"),
        "bradley_terry_probe": partial(probe_direction, kind="bradley_terry", choices=choices),
        "principal_component": _principal_component,
    }
    return makers[method]


def _principal_component(store: ActivationStore, labels: pd.DataFrame, layer: int, position: str) -> Direction:
    """The first principal component, its sign that of its correlation with the labels."""
    ids = labels["task_id"].tolist()
    (found,) = principal_directions(store, layer, position, tasks=ids)
    along = task_rows(store, layer, position, ids).astype(np.float64) @ found.vector
    if np.corrcoef(along, labels["value"])[0, 1] >= 0:
        return found
    return Direction.from_vector(-found.vector, layer, found.model, **dict(found.provenance))
