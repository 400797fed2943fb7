"""Probes: what can be read off the residual stream, layer by layer, against baselines on the same splits."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats
from tqdm import tqdm

from interp.ridge import DEFAULT_ALPHAS, Ridge, cross_predict, grouped_folds
from store.activations import ActivationStore
from store.directions import Probe
from store.labels import check_labels
from store.layout import layer_name

RESIDUAL = "residual"
_RANDOM_DRAWS = 9


@dataclass(frozen=True)
class ProbeSweep:
    """Held-out scores of probes and baselines.

    Attributes
    ----------
    table
        One row per features x target. `features` is `residual` (with layer and position), `random activations`,
        `prompt length`, `origin means` or `length and origins`. `r2` is measured against predicting the training mean; every
        score has a 95 % interval from a bootstrap over tasks (`_low`, `_high`). `gain` is the R2 above that of the
        `strongest_baseline`, its interval paired over tasks. `shuffled_r2` and `shuffled_r2_95` are mean and 95th percentile
        over permuted labels, `p_value` the share of permutations that do as well. `ceiling` is the R2 that the labels' own
        uncertainty allows, missing where that is not known.
    predictions
        Held-out prediction of every task, for the residual rows.
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
        best["p_best"] = _share_at_least(self.max_null[target], float(best["r2"]))
        return best


def probe_sweep(
    store: ActivationStore,
    labels: pd.DataFrame,
    *,
    layers: Sequence[int] | None = None,
    positions: Sequence[str] | None = None,
    origins: Mapping[str, str] | None = None,
    groups: Mapping[str, str] | None = None,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_folds: int = 5,
    permutations: int = 100,
    resamples: int = 1000,
    seed: int = 0,
) -> ProbeSweep:
    """Ridge probes from every layer and position to every target, with baselines on the same folds.

    Parameters
    ----------
    labels
        Labels of one or more targets, for tasks that the store holds.
    layers, positions
        Which of the store's to read; default all.
    origins
        Origin of every task, for the origin-means baseline.
    groups
        Tasks of one group stay on one side of every split; default: each task is its own group.
    alphas
        Penalties to choose from, inside each training part and by leave-one-out.
    permutations
        How often labels are shuffled over tasks; the same shuffles at every layer and position.

    Raises
    ------
    ValueError
        A target is constant or has too few tasks for the folds.
    KeyError
        The store lacks tasks that have labels.
    """
    labels = check_labels(labels)
    layers = store.header.layers if layers is None else layers
    positions = [each for each in store.header.positions if each not in store.by_token] if positions is None else positions
    grid = [(layer, position) for layer in layers for position in positions]
    rows: list[dict[str, Any]] = []
    predictions: list[pd.DataFrame] = []
    max_null: dict[str, np.ndarray] = {}
    with tqdm(total=len(grid) * labels["target"].nunique(), desc="probes", unit="probe", disable=None) as progress:
        for target, part in labels.groupby("target", sort=False):
            task_ids = part["task_id"].tolist()
            split = _Split.make(part, task_ids, groups, n_folds, permutations, resamples, seed)
            nulls = []
            baselines = {
                name: _middle([split.score(features, alphas) for features in variants])
                for name, variants in _baselines(store, task_ids, origins, seed).items()
            }
            strongest = max(baselines, key=lambda name: baselines[name].scores["r2"])
            for layer, position in grid:
                scored = split.score(task_rows(store, layer, position, task_ids), alphas)
                gain = split.gain(scored, baselines[strongest]) | {"strongest_baseline": strongest}
                rows.append(
                    {"features": RESIDUAL, "layer": layer, "position": position, "target": target} | scored.scores | gain
                )
                where = {"task_id": task_ids, "target": target, "layer": layer, "position": position, "fold": split.folds}
                predictions.append(pd.DataFrame(where | {"value": split.values, "predicted": scored.predicted}))
                nulls.append(scored.null)
                progress.update()
            max_null[str(target)] = np.max(nulls, axis=0)
            for name, scored in baselines.items():
                rows.append({"features": name, "layer": np.nan, "position": "", "target": target} | scored.scores)
    table = pd.DataFrame(rows)
    table.insert(1, "layer_name", [layer_name(int(layer)) if layer == layer else "" for layer in table["layer"]])
    return ProbeSweep(table, pd.concat(predictions, ignore_index=True), max_null)


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


@dataclass(frozen=True, eq=False)
class _Scored:
    """One set of features on one split: scores, held-out predictions and squared errors, and R2 under each permutation."""

    scores: dict[str, float]
    predicted: Float[np.ndarray, " n"]
    error: Float[np.ndarray, " n"]
    null: Float[np.ndarray, " permutations"]


def _middle(scored: Sequence[_Scored]) -> _Scored:
    """Of several variants, the one with the median R2."""
    return sorted(scored, key=lambda each: each.scores["r2"])[len(scored) // 2]


@dataclass(frozen=True, eq=False)
class _Split:
    """One target with its folds, its permutations and its bootstrap, shared by all features."""

    values: Float[np.ndarray, " n"]
    targets: Float[np.ndarray, "n columns"]  # the values, then their permutations
    folds: Int[np.ndarray, " n"]
    baseline: Float[np.ndarray, "n columns"]  # squared error of predicting the training mean
    counts: Float[np.ndarray, "resamples n"]
    ceiling: float

    @classmethod
    def make(
        cls,
        labels: pd.DataFrame,
        task_ids: Sequence[str],
        groups: Mapping[str, str] | None,
        n_folds: int,
        permutations: int,
        resamples: int,
        seed: int,
    ) -> "_Split":
        values = _varying(labels, _single_target(labels))
        folds = grouped_folds([groups[task] if groups else task for task in task_ids], n_folds, seed)
        random = np.random.default_rng([seed, 1])
        shuffled = [random.permutation(values) for _ in range(permutations)]
        targets = np.stack([values, *shuffled], axis=1)
        means = np.empty_like(targets)
        for fold in np.unique(folds):
            means[folds == fold] = targets[folds != fold].mean(axis=0)
        counts = random.multinomial(len(values), np.full(len(values), 1 / len(values)), size=resamples).astype(float)
        noise = labels["se"].to_numpy(dtype=float) ** 2  # missing where it is not known; so is the ceiling then
        ceiling = float(np.clip(1 - noise.mean() / values.var(ddof=1), 0, 1))
        return cls(values, targets, folds, (targets - means) ** 2, counts, ceiling)

    def score(self, features: Float[np.ndarray, "n d"], alphas: Sequence[float]) -> _Scored:
        """Cross-validate ridge probes from these features."""
        predictions, chosen = cross_predict(features, self.targets, self.folds, alphas)
        error = (self.targets - predictions) ** 2
        r2 = 1 - error.sum(axis=0) / self.baseline.sum(axis=0)
        predicted, null = predictions[:, 0], r2[1:]
        scores = {"n": float(len(self.values)), "r2": float(r2[0])}
        scores |= _interval("r2", 1 - (self.counts @ error[:, 0]) / (self.counts @ self.baseline[:, 0]))
        scores |= self._correlation("pearson", self.values, predicted)
        scores |= self._correlation("spearman", stats.rankdata(self.values), stats.rankdata(predicted))
        scores |= self._pairwise_accuracy(predicted)
        scores["alpha"] = float(np.median(chosen[:, 0]))
        scores["ceiling"] = self.ceiling
        if len(null):
            scores["shuffled_r2"] = float(null.mean())
            scores["shuffled_r2_95"] = float(np.quantile(null, 0.95))
            scores["p_value"] = _share_at_least(null, float(r2[0]))
        return _Scored(scores, predicted, error[:, 0], null)

    def gain(self, scored: _Scored, over: _Scored) -> dict[str, float]:
        """R2 above another set of features, with an interval paired over tasks."""
        saved, baseline = over.error - scored.error, self.baseline[:, 0]
        return {"gain": saved.sum() / baseline.sum()} | _interval("gain", (self.counts @ saved) / (self.counts @ baseline))

    def _correlation(self, name: str, x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> dict[str, float]:
        if np.ptp(y) == 0:  # a constant prediction orders nothing
            return {name: 0.0, f"{name}_low": 0.0, f"{name}_high": 0.0}
        total = self.counts.sum(axis=1)
        mean_x, mean_y = self.counts @ x / total, self.counts @ y / total
        covariance = self.counts @ (x * y) / total - mean_x * mean_y
        spread = (self.counts @ x**2 / total - mean_x**2) * (self.counts @ y**2 / total - mean_y**2)
        resampled = covariance / np.sqrt(np.maximum(spread, 1e-300))
        return {name: float(np.corrcoef(x, y)[0, 1])} | _interval(name, resampled)

    def _pairwise_accuracy(self, predicted: Float[np.ndarray, " n"]) -> dict[str, float]:
        """Share of task pairs put in the right order; a tied prediction is half right."""
        name = "pairwise_accuracy"
        truth = np.sign(self.values[:, None] - self.values[None, :])
        guess = np.sign(predicted[:, None] - predicted[None, :])
        decided = (truth != 0).astype(float)
        right = decided * (1 + truth * guess) / 2
        resampled = ((self.counts @ right) * self.counts).sum(axis=1) / ((self.counts @ decided) * self.counts).sum(axis=1)
        return {name: float(right.sum() / decided.sum())} | _interval(name, resampled)


def _interval(name: str, resampled: Float[np.ndarray, " resamples"]) -> dict[str, float]:
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def _share_at_least(null: Float[np.ndarray, " permutations"], observed: float) -> float:
    """Permutation p-value; the observed score counts as one of the permutations, so it is never zero."""
    return float((1 + (null >= observed).sum()) / (1 + len(null)))


def _baselines(
    store: ActivationStore, task_ids: Sequence[str], origins: Mapping[str, str] | None, seed: int
) -> dict[str, list[Float[np.ndarray, "n d"]]]:
    """Features that know nothing of the model's inside; of several variants, the one with the median R2 counts."""
    lengths = store.frame()["n_tokens"].to_numpy(dtype=float)[store.slots(task_ids)]
    random = np.random.default_rng([seed, 2])
    found = {
        "random activations": [random.standard_normal((len(task_ids), store.header.d_model)) for _ in range(_RANDOM_DRAWS)],
        "prompt length": [np.stack([lengths, np.log(lengths)], axis=1)],
    }
    if origins is not None:
        means = pd.get_dummies(pd.Series([origins[task] for task in task_ids])).to_numpy(dtype=float)
        found["origin means"] = [means]
        found["length and origins"] = [np.column_stack([found["prompt length"][0], means])]
    return found


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
