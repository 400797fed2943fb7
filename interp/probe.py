"""Probes: what can be read off the residual stream, layer by layer, against baselines on the same splits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm import tqdm

from interp.baselines import baseline_features
from interp.probe_scores import Bootstrap, share_at_least
from interp.ridge import DEFAULT_ALPHAS, Ridge
from interp.splits import Split
from store.activations import ActivationStore
from store.directions import Probe
from store.labels import check_labels
from store.layout import layer_name

RESIDUAL = "residual"

Splitter = Callable[[Sequence[str]], Split]
"""From task ids to a split, such as `lambda ids: Split.leave_one_out(ids, origins)`."""


@dataclass(frozen=True)
class ProbeSweep:
    """Held-out scores of probes and baselines.

    Attributes
    ----------
    table
        One row per features x target. `features` is `residual` (with layer and position), the name of another store (with
        layer and position), or a baseline: `random activations`, `prompt length`, `origin means`, `length and origins`,
        `words (TF-IDF)`, the stream at the first layer (`embed/task_mean`), embeddings by name. `r2` is measured against
        predicting the training mean; every score has a 95 % interval from a bootstrap over tasks, or over groups where tasks
        are split by group (`_low`, `_high`). `gain` is the R2 above that of the `strongest_baseline`, its interval paired over
        tasks; `gain over NAME` is the R2 above another store's probe at the same layer and position. `shuffled_r2` and
        `shuffled_r2_95` are mean and 95th percentile over permuted labels, `p_value` the share of permutations that do as well.
        `ceiling` is the R2 that the labels' own uncertainty allows, missing where that is not known.
    predictions
        Held-out prediction of every task, for the residual rows; `value` is what was predicted (without its group's mean, if
        groups were demeaned).
    max_null
        For each target, the best R2 over all layers and positions under each permutation.
    """

    table: pd.DataFrame
    predictions: pd.DataFrame
    max_null: Mapping[str, Float[np.ndarray, " permutations"]]

    def best(self, target: str) -> pd.Series:
        """Return the layer and position with the highest R2, with `p_best`: how often permuted labels reach it anywhere.

        A best of several scores is optimistic; `p_best` compares it with the best of as many scores of permuted labels.
        """
        rows = self.table[(self.table["target"] == target) & (self.table["features"] == RESIDUAL)]
        best = rows.iloc[int(rows["r2"].to_numpy().argmax())].copy()
        best["p_best"] = share_at_least(self.max_null[target], float(best["r2"]))
        return best


def probe_sweep(
    store: ActivationStore,
    labels: pd.DataFrame,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    split: Splitter | None = None,
    origins: Mapping[str, str] | None = None,
    texts: Mapping[str, str] | None = None,
    embeddings: Mapping[str, Mapping[str, Float[np.ndarray, " width"]]] | None = None,
    others: Mapping[str, ActivationStore] | None = None,
    groups: Mapping[str, str] | None = None,
    demean: Mapping[str, str] | None = None,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_folds: int = 5,
    permutations: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> ProbeSweep:
    """Ridge probes from every layer and position to every target, with baselines on the same folds.

    Targets that label the same tasks share every decomposition, and so do their permutations.

    Parameters
    ----------
    labels
        Labels of one or more targets, for tasks that the store holds.
    layers, positions
        Which of the store's to read; default all that have one row a task.
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
        Penalties to choose from, inside each training part and by leave-one-out.
    permutations
        How often labels are shuffled over tasks; the same shuffles at every layer and position.

    Raises
    ------
    ValueError
        A target is constant or has too few tasks for the folds; a group that is demeaned is held out whole.
    KeyError
        The store lacks tasks that have labels.
    """
    labels = check_labels(labels)
    layers = store.header.layers if layers is None else layers
    positions = [each for each in store.header.positions if each not in store.by_token] if positions is None else positions
    others = others or {}

    def folds(task_ids: Sequence[str]) -> Split:
        return Split.k_fold(task_ids, n_folds, groups, seed)

    blocks = [_Block.make(part, split or folds, demean, permutations, resamples, seed) for part in _by_tasks(labels)]
    baselines: list[dict[str, list[_Scored]]] = []
    for block in blocks:
        features = baseline_features(
            store, block.task_ids, origins=origins, texts=texts, embeddings=embeddings, positions=positions, seed=seed
        )
        scored = {name: [block.score(each, alphas) for each in variants] for name, variants in features.items()}
        baselines.append({name: [_middle(each) for each in zip(*variants, strict=True)] for name, variants in scored.items()})
    rows: list[dict[str, Any]] = []
    predictions: list[pd.DataFrame] = []
    nulls: dict[str, list[np.ndarray]] = {}
    with tqdm(total=len(layers) * len(positions) * len(blocks), desc="probes", unit="probe", disable=None) as progress:
        for layer in layers:
            for position in positions:
                for block, against in zip(blocks, baselines, strict=True):
                    where = {"layer": layer, "position": position}
                    elsewhere = {
                        name: block.score(task_rows(other, layer, position, block.task_ids), alphas)
                        for name, other in others.items()
                    }
                    for number, scored in enumerate(block.score(task_rows(store, layer, position, block.task_ids), alphas)):
                        target = {"target": block.targets[number]}
                        strongest = max(against, key=lambda name: against[name][number].scores["r2"])
                        gain = block.gain(scored, against[strongest][number]) | {"strongest_baseline": strongest}
                        for name, found in elsewhere.items():
                            over = block.gain(scored, found[number])
                            gain |= {key.replace("gain", f"gain over {name}"): value for key, value in over.items()}
                            rows.append({"features": name, **where, **target, **found[number].scores})
                        rows.append({"features": RESIDUAL, **where, **target, **scored.scores, **gain})
                        predictions.append(block.predictions(scored, where | target))
                        nulls.setdefault(block.targets[number], []).append(scored.null)
                    progress.update()
    for block, against in zip(blocks, baselines, strict=True):
        for name, by_target in against.items():
            for target, scored in zip(block.targets, by_target, strict=True):
                rows.append({"features": name, "layer": np.nan, "position": "", "target": target} | scored.scores)
    table = pd.DataFrame(rows)
    table.insert(1, "layer_name", [layer_name(int(layer)) if layer == layer else "" for layer in table["layer"]])
    best_nulls = {target: np.max(each, axis=0) for target, each in nulls.items()}
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


def fit_probe(
    store: ActivationStore,
    labels: pd.DataFrame,
    layer: int,
    position: str,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
) -> Probe:
    """Fit one ridge probe to all the labels given, alpha chosen by leave-one-out."""
    labels = check_labels(labels)
    target = _single_target(labels)
    values = _varying(labels, target)[:, None]
    ridge = Ridge.decompose(task_rows(store, layer, position, labels["task_id"].tolist()))
    alpha = ridge.choose_alphas(values, alphas)
    weights, intercepts = ridge.weights(values, alpha)
    return Probe(
        weights[:, 0].astype(np.float32),
        float(intercepts[0]),
        layer,
        position,
        store.header.model,
        {"target": target, "alpha": float(alpha[0]), "n_tasks": len(labels)},
    )


def _by_tasks(labels: pd.DataFrame) -> list[pd.DataFrame]:
    """Divide labels into tables `(tasks, targets)` whose targets label the same tasks."""
    parts: dict[frozenset[str], list[pd.DataFrame]] = {}
    for _, part in labels.groupby("target", sort=False):
        parts.setdefault(frozenset(part["task_id"]), []).append(part)
    return [pd.concat(each) for each in parts.values()]


@dataclass(frozen=True, eq=False)
class _Scored:
    """One set of features and one target: scores, held-out predictions and squared errors, and R2 under each permutation."""

    scores: dict[str, float]
    predicted: Float[np.ndarray, " tested"]
    truth: Float[np.ndarray, " tested"]
    error: Float[np.ndarray, " tested"]
    baseline: Float[np.ndarray, " tested"]
    null: Float[np.ndarray, " permutations"]


def _middle(scored: Sequence[_Scored]) -> _Scored:
    """Of several variants, the one with the median R2."""
    return sorted(scored, key=lambda each: each.scores["r2"])[len(scored) // 2]


@dataclass(frozen=True, eq=False)
class _Block:
    """Targets of the same tasks, with their split, permutations and bootstrap, shared by all features."""

    task_ids: list[str]
    targets: list[str]
    columns: Float[np.ndarray, "tasks columns"]  # for each target its values, then their permutations
    split: Split
    groups: Int[np.ndarray, " tasks"] | None  # whose means are taken off
    bootstrap: Bootstrap
    ceilings: list[float]

    @classmethod
    def make(
        cls,
        labels: pd.DataFrame,
        split: Splitter,
        demean: Mapping[str, str] | None,
        permutations: int,
        resamples: int,
        seed: int,
    ) -> "_Block":
        targets = list(dict.fromkeys(labels["target"]))
        first = labels[labels["target"] == targets[0]]
        task_ids = first["task_id"].tolist()
        order = np.random.default_rng([seed, 1])
        shuffles = [np.arange(len(task_ids)), *(order.permutation(len(task_ids)) for _ in range(permutations))]
        columns, ceilings = [], []
        for target in targets:
            part = labels[labels["target"] == target].set_index("task_id").loc[task_ids]
            values = _varying(part, str(target))
            columns += [values[shuffle] for shuffle in shuffles]
            noise = part["se"].to_numpy(dtype=float) ** 2  # missing where it is not known; so is the ceiling then
            ceilings.append(float(np.clip(1 - noise.mean() / values.var(ddof=1), 0, 1)))
        divided = split(task_ids)
        groups = None if demean is None else np.unique([demean[task_id] for task_id in task_ids], return_inverse=True)[1]
        clusters = divided.clusters[divided.tested]
        return cls(
            task_ids,
            [str(target) for target in targets],
            np.stack(columns, axis=1),
            divided,
            groups,
            Bootstrap.of(clusters, resamples, seed),
            ceilings,
        )

    def score(self, features: Float[np.ndarray, "tasks d"], alphas: Sequence[float]) -> list[_Scored]:
        """Ridge probes from these features, one result a target; alpha is chosen inside each training part."""
        features = np.asarray(features, dtype=np.float64)
        truth, predicted, middle = (np.full(self.columns.shape, np.nan) for _ in range(3))
        chosen = []
        for fold in range(len(self.split.names)):
            train, test = np.flatnonzero(self.split.folds != fold), np.flatnonzero(self.split.folds == fold)
            x_train, x_test = self._without_means(features, train, test)
            y_train, truth[test] = self._without_means(self.columns, train, test)
            ridge = Ridge.decompose(x_train)
            chosen.append(ridge.choose_alphas(y_train, alphas))
            predicted[test] = ridge.predict(x_test, y_train, chosen[-1])
            middle[test] = y_train.mean(axis=0)
        tested = self.split.tested
        error, baseline = ((truth - guess)[tested] ** 2 for guess in (predicted, middle))
        r2 = 1 - error.sum(axis=0) / baseline.sum(axis=0)
        width = self.columns.shape[1] // len(self.targets)
        found = []
        for number in range(len(self.targets)):
            column, null = number * width, r2[number * width + 1 : (number + 1) * width]
            values, guess = truth[tested, column], predicted[tested, column]
            scores = {"n": float(len(tested))} | self.bootstrap.r2(error[:, column], baseline[:, column])
            scores |= self.bootstrap.correlations(values, guess) | self.bootstrap.pairwise_accuracy(values, guess)
            scores["alpha"] = float(np.median([each[column] for each in chosen]))
            scores["ceiling"] = self.ceilings[number]
            if len(null):
                scores["shuffled_r2"] = float(null.mean())
                scores["shuffled_r2_95"] = float(np.quantile(null, 0.95))
                scores["p_value"] = share_at_least(null, float(r2[column]))
            found.append(_Scored(scores, guess, values, error[:, column], baseline[:, column], null))
        return found

    def gain(self, scored: _Scored, over: _Scored) -> dict[str, float]:
        """R2 above another set of features, with an interval paired over tasks."""
        return self.bootstrap.gain(over.error, scored.error, scored.baseline)

    def predictions(self, scored: _Scored, where: Mapping[str, Any]) -> pd.DataFrame:
        """Held-out predictions as a table."""
        tested = self.split.tested
        return pd.DataFrame(
            {"task_id": [self.task_ids[number] for number in tested]}
            | dict(where)
            | {"fold": self.split.folds[tested], "value": scored.truth, "predicted": scored.predicted}
        )

    def _without_means(
        self, values: Float[np.ndarray, "tasks columns"], train: Int[np.ndarray, " train"], test: Int[np.ndarray, " test"]
    ) -> tuple[Float[np.ndarray, "train columns"], Float[np.ndarray, "test columns"]]:
        """Training and test rows, less the means that their groups have in the training part, if groups are demeaned."""
        if self.groups is None:
            return values[train], values[test]
        n_groups = int(self.groups.max()) + 1
        sizes = np.bincount(self.groups[train], minlength=n_groups)
        if not sizes[self.groups[test]].all():
            raise ValueError(
                "A group whose mean is to be taken off is held out whole, so its mean is not known; split by task, or do not "
                "demean."
            )
        sums = np.zeros((n_groups, values.shape[1]))
        np.add.at(sums, self.groups[train], values[train])
        means = sums / np.maximum(sizes, 1)[:, None]
        return values[train] - means[self.groups[train]], values[test] - means[self.groups[test]]


def _single_target(labels: pd.DataFrame) -> str:
    targets = labels["target"].unique()
    if len(targets) != 1:
        raise ValueError(f"Labels have the targets {sorted(targets)}; expected those of one target.")
    return str(targets[0])


def _varying(labels: pd.DataFrame, target: str) -> Float[np.ndarray, " n"]:
    values = labels["value"].to_numpy(dtype=float)
    if len(values) < 3 or np.ptp(values) == 0:
        raise ValueError(
            f"Target {target!r} has {len(values)} tasks and values from {values.min(initial=np.inf):g} to "
            f"{values.max(initial=-np.inf):g}; a probe needs at least three tasks with different values."
        )
    return values
