"""Directions from activations: differences of means, probes, and random ones as controls."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.fit import fit_probe
from interp.probe import task_rows
from store.activations import ActivationStore
from store.directions import Direction
from store.labels import check_labels
from store.provenance import ModelIdentity


def difference_of_means(
    store: ActivationStore, layer: int, position: str, above: Sequence[str], below: Sequence[str]
) -> Direction:
    """Direction from the mean activation of the tasks `below` to that of the tasks `above`.

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
        method="difference_of_means",
        position=position,
        above=list(above),
        below=list(below),
    )


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
    values = check_labels(labels).sort_values("value", kind="stable")
    if values["target"].nunique() != 1:
        raise ValueError(f"Labels have the targets {sorted(values['target'].unique())}; expected those of one target.")
    if not 0 < share <= 0.5 or len(values) < 2:
        raise ValueError(f"share={share} of {len(values)} tasks; expected a share in (0, 0.5] of at least two tasks.")
    size = max(1, int(len(values) * share))
    ids = values["task_id"].tolist()
    return difference_of_means(store, layer, position, above=ids[-size:], below=ids[:size])


def probe_direction(store: ActivationStore, labels: pd.DataFrame, layer: int, position: str) -> Direction:
    """Direction along which a ridge probe's prediction of the labels rises fastest."""
    return fit_probe(store, labels, layer, position).direction()


def random_directions(model: ModelIdentity, d_model: int, layer: int, n: int, seed: int = 0) -> list[Direction]:
    """Directions drawn uniformly from the sphere: controls for any other direction at this layer.

    The k-th direction depends on the seed, the layer and k alone.
    """
    found = []
    for number in range(n):
        vector = np.random.default_rng([seed, layer, number]).standard_normal(d_model)
        found.append(Direction.from_vector(vector, layer, model, method="random", seed=seed, number=number))
    return found
