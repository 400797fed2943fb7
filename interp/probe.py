"""Probes: what can be read off the residual stream, layer by layer, against baselines on the same splits."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from tqdm import tqdm

from interp.baselines import baseline_features
from interp.kinds import Fitting, Kind
from interp.probe_block import Block, Scored, Splitter, middle
from interp.probe_scores import share_at_least
from interp.ridge import Choice
from interp.shifted import Place, Precision
from interp.splits import Split
from store.activations import ActivationStore
from store.labels import check_labels
from store.layout import layer_name

RESIDUAL = "residual"


@dataclass(frozen=True)
class ProbeSweep:
    """Held-out scores of probes and baselines.

    Attributes
    ----------
    table
        One row per features x target. `features` is `residual` (with layer and position), the name of another store (with
        layer and position), or a baseline: `random activations`, `prompt length`, `origin means`, `length and origins`,
        `words (TF-IDF)`, the stream at the first layer (`embed/task_mean`), embeddings by name. `is_baseline` is also said of
        the residual stream there. `r2` is measured against predicting the training mean; every score has a 95 % interval from
        a bootstrap over tasks, or over groups where tasks are split by group (`_low`, `_high`). `gain` is the R2 above that of
        the `strongest_baseline`, its interval paired over tasks; `gain over NAME` is the R2 above another store's probe at the
        same layer and position. `shuffled_r2` and `shuffled_r2_95` are mean and 95th percentile over permuted labels,
        `p_value` the share of permutations that do as well.
        `ceiling` is the R2 that the labels' own uncertainty allows, missing where that is not known.
    predictions
        Held-out prediction of every task, for the residual rows; `value` is what was predicted (without its group's mean, if
        groups were demeaned).
    max_null
        For each target, the best R2 over the layers and positions of `probes` under each permutation.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    max_null: Mapping[str, Float[np.ndarray, " permutations"]]

    def probes(self, target: str) -> pd.DataFrame:
        """Rows of the residual stream, less those that are baselines too (unless there are no others)."""
        rows = self.table[(self.table["target"] == target) & (self.table["features"] == RESIDUAL)]
        tested = rows[~rows["is_baseline"]]
        return rows if tested.empty else tested

    def best(self, target: str) -> pd.Series:
        """Return the layer and position with the highest R2, with `p_best`: how often permuted labels reach it anywhere.

        A best of several scores is optimistic; `p_best` compares it with the best of as many scores of permuted labels.
        """
        rows = self.probes(target)
        best = rows.iloc[int(rows["r2"].to_numpy().argmax())].copy()
        best["p_best"] = share_at_least(self.max_null[target], float(best["r2"]))
        return best


def probe_sweep(
    store: ActivationStore,
    labels: pd.DataFrame,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    targets: Sequence[str] | None = None,
    kind: Kind = "ridge",
    choices: pd.DataFrame | None = None,
    split: Splitter | None = None,
    origins: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    embeddings: Mapping[str, Mapping[str, Float[np.ndarray, " width"]]] | None = None,
    others: Mapping[str, ActivationStore] | None = None,
    groups: Mapping[str, str] | None = None,
    demean: Mapping[str, str] | None = None,
    alphas: Sequence[float] = (),
    choice: Choice = "leave_one_out",
    one_standard_error: bool = False,
    n_folds: int = 5,
    permutations: int = 100,
    resamples: int = 1000,
    dtype: Precision = "float64",
    device: str = "auto",
    seed: int = 0,
) -> ProbeSweep:
    """Probes from every layer and position to every target, with baselines of the same kind on the same folds.

    Targets that label the same tasks share every decomposition, and so do their permutations.

    Parameters
    ----------
    labels
        Labels of one or more targets, for tasks that the store holds.
    layers, positions
        Which of the store's to read; default all that have one row a task.
    targets
        Which of the labels to predict; default all.
    kind
        `ridge`; `logistic` or `mass_mean`, which tell apart two classes (the greater of two values, or what is above the
        median) and whose R2 is of the class, 0 or 1; or `bradley_terry`, fitted to `choices` and put on the scale of the
        labels.
    choices
        Columns `first`, `second`, `p_first`, as from `choice.comparisons`; only choices within a training part are used.
    split
        Which tasks are tested by probes of which others; default `n_folds` random folds that keep `groups` whole.
    origins, texts, embeddings
        Origin, text and vectors of every task, for baselines (see `baseline_features`).
    others
        By name, stores of the same tasks from other models or runs, probed at the same layers and positions: does the
        model at hand know more of the labels than one that was never asked?
    demean
        Group (origin, topic) of every task, whose mean over the training part is taken off labels and activations.
    alphas
        Penalties to choose from, inside each training part; default those of the kind.
    choice, one_standard_error
        How ridge chooses its penalty: see `cross_predict`. The other kinds choose by inner folds.
    permutations
        How often labels are shuffled over tasks (with groups kept together); the same shuffles at every layer and position.
    dtype, device
        What ridge computes with, and where: see `Ridge.decompose`.

    Raises
    ------
    ValueError
        A target is constant or has too few tasks for the folds; a group that is demeaned is held out whole.
    KeyError
        The store lacks tasks that have labels, or there are no labels of a target.
    """
    labels = _of_targets(check_labels(labels), targets)
    _check_held(store, labels)
    layers = store.header.layers if layers is None else layers
    positions = [each for each in store.header.positions if each not in store.by_token] if positions is None else positions
    others = others or {}
    fitting = Fitting(kind, alphas, choice, one_standard_error, seed)
    place = Place.of(dtype, device)

    def folds(task_ids: Sequence[str]) -> Split:
        return Split.k_fold(task_ids, n_folds, groups, seed)

    amount = {"permutations": permutations, "resamples": resamples}
    blocks = [
        Block.make(part, split or folds, demean, choices, fitting=fitting, place=place, **amount) for part in _by_tasks(labels)
    ]
    baselines: list[dict[str, list[Scored]]] = []
    for block in blocks:
        features = baseline_features(
            store, block.task_ids, origins=origins, texts=texts, embeddings=embeddings, positions=positions, seed=seed
        )
        scored = {name: [block.score(each) for each in variants] for name, variants in features.items()}
        baselines.append({name: [middle(each) for each in zip(*variants, strict=True)] for name, variants in scored.items()})
    rows: list[dict[str, Any]] = []
    predictions: list[pd.DataFrame] = []
    nulls: dict[tuple[str, bool], list[np.ndarray]] = {}
    probed = list(itertools.product(layers, positions, zip(blocks, baselines, strict=True)))
    for layer, position, (block, against) in tqdm(probed, desc="probes", unit="probe", disable=None):
        elsewhere = {name: block.score(task_rows(other, layer, position, block.task_ids)) for name, other in others.items()}
        is_baseline = f"{layer_name(layer)}/{position}" in against
        for number, scored in enumerate(block.score(task_rows(store, layer, position, block.task_ids))):
            where = {"layer": layer, "position": position, "target": block.targets[number]}
            strongest = max(against, key=lambda name: against[name][number].scores["r2"])
            gain = block.gain(scored, against[strongest][number]) | {"strongest_baseline": strongest}
            for name, found in elsewhere.items():
                over = block.gain(scored, found[number])
                gain |= {key.replace("gain", f"gain over {name}"): value for key, value in over.items()}
                rows.append({"features": name, **where, **found[number].scores, "is_baseline": True})
            rows.append({"features": RESIDUAL, **where, **scored.scores, **gain, "is_baseline": is_baseline})
            predictions.append(block.predictions(scored, where))
            nulls.setdefault((block.targets[number], is_baseline), []).append(scored.null)
    for block, against in zip(blocks, baselines, strict=True):
        for name, by_target in against.items():
            for target, scored in zip(block.targets, by_target, strict=True):
                known = {"features": name, "layer": np.nan, "position": "", "target": target, "is_baseline": True}
                rows.append(known | scored.scores)
    table = pd.DataFrame(rows)
    table.insert(1, "layer_name", [layer_name(int(layer)) if layer == layer else "" for layer in table["layer"]])
    best_nulls = {
        target: np.max(nulls.get((target, False)) or nulls[target, True], axis=0) for target in dict.fromkeys(labels["target"])
    }
    return ProbeSweep(table, pd.concat(predictions, ignore_index=True), best_nulls)


def task_rows(store: ActivationStore, layer: int, position: str, tasks: Sequence[str]) -> Float[np.ndarray, "tasks d_model"]:
    """Read one row a task.

    Raises
    ------
    ValueError
        The position has a row for every token.
    KeyError
        The store lacks a row.
    """
    if position in store.by_token:
        raise ValueError(
            f"{position!r} has a row for every token; a probe or a direction needs one a task. Capture a reduction such as "
            f"{position}_mean, or average rows of store.load yourself."
        )
    return store.load(layer, position, tasks)


def _by_tasks(labels: pd.DataFrame) -> list[pd.DataFrame]:
    """Divide labels into tables `(tasks, targets)` whose targets label the same tasks."""
    parts: dict[frozenset[str], list[pd.DataFrame]] = {}
    for _, part in labels.groupby("target", sort=False):
        parts.setdefault(frozenset(part["task_id"]), []).append(part)
    return [pd.concat(each) for each in parts.values()]


def _of_targets(labels: pd.DataFrame, targets: Sequence[str] | None) -> pd.DataFrame:
    known = labels["target"].unique().tolist()
    if targets is None:
        return labels
    if missing := [target for target in targets if target not in known]:
        raise KeyError(f"There are no labels of {missing}; expected some of {known}.")
    return labels[labels["target"].isin(targets)]


def _check_held(store: ActivationStore, labels: pd.DataFrame) -> None:
    """See that the store holds what is labelled, before anything is computed."""
    frame = store.frame()
    held = set(frame.loc[frame["done"], "task_id"])
    wanted = dict.fromkeys(labels["task_id"])
    if missing := [task_id for task_id in wanted if task_id not in held]:
        raise KeyError(
            f"The store has no rows for {len(missing)} of {len(wanted)} tasks with labels: "
            f"{', '.join(map(repr, missing[:5]))}{', ...' if len(missing) > 5 else ''}. Capture them, or leave their labels "
            "out."
        )
