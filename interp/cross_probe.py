"""Cross-probing: what a probe of one target, wording, persona, layer or position reads in another, and along which direction.

Every view (activations with labels of one target) is probed on the same folds, and each probe reads the held-out tasks of every
view. Cosines of the weights stand beside those of shuffled labels, and beside what halves of the tasks give.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from tqdm import tqdm

from interp.probe import Splitter, task_rows
from interp.probe_scores import Bootstrap, share_at_least
from interp.ridge import DEFAULT_ALPHAS, Ridge
from interp.splits import Split
from store.activations import ActivationStore
from store.labels import check_labels

_TASKS_A_FOLD = 3


@dataclass(frozen=True, eq=False)
class View:
    """One thing that a ridge probe is fitted to: labels of one target, and the activations at one layer and position.

    Attributes
    ----------
    name
        What tables and figures call it.
    """

    name: str
    store: ActivationStore
    labels: pd.DataFrame
    layer: int
    position: str


@dataclass(frozen=True, eq=False)
class CrossProbe:
    """What probes of each view read in the others, and how alike they point.

    Attributes
    ----------
    names
        The views, in order.
    transfer
        One row for each view `trained_on` and `tested_on`: `pearson`, `spearman`, `r2` (against predicting the training mean
        of the view tested on) and `pairwise_accuracy` over held-out tasks, each with a 95 % interval by bootstrap over tasks
        (`_low`, `_high`); `shuffled_pearson_5` and `shuffled_pearson_95`, percentiles over shuffles of the labels; `p_value`
        of these, two-sided, as a probe may read a view backwards; `offset`, by how much the probe reads the view higher than
        its own, in standard deviations of the labels trained on; `alpha`, the median over folds; and `n`. Of shuffles of the
        labels trained on alone and of both views' labels together, what is wider counts.
    cosine
        One row for each pair `a`, `b` (and each view with itself): `labels`, the correlation of their labels; `cosine` of the
        probes of all tasks, in raw activation space; `chance`, the 95th percentile of its size where the labels of both are
        shuffled, each by itself; `p_value`, two-sided. `split_half` is the mean cosine of a probe of `a` on a random half of
        the tasks with one of `b` on the other half (`_low` to `_high`: 95 % of the halves); of a view with itself it is how
        well its direction is known. `corrected` is what `split_half` would be if both were known perfectly (Spearman 1904):
        split_half_ab / sqrt(split_half_aa split_half_bb); missing where a view's own is not above zero in 97.5 % of halves.
    n, left_out
        Tasks that every view labels and holds, and tasks that only some of them do.
    """

    names: tuple[str, ...]
    transfer: pd.DataFrame
    cosine: pd.DataFrame
    n: int
    left_out: int

    def matrix(self, column: str) -> pd.DataFrame:
        """A column of `transfer` (rows: trained on; columns: tested on) or else of `cosine`, with every view on both sides."""
        if column in self.transfer:
            wide = self.transfer.pivot(index="trained_on", columns="tested_on", values=column)
        else:
            half = self.cosine.pivot(index="a", columns="b", values=column)
            wide = half.combine_first(half.T)
        return wide.loc[list(self.names), list(self.names)]


def cross_probe(
    views: Sequence[View],
    *,
    split: Splitter | None = None,
    alphas: Sequence[float] = DEFAULT_ALPHAS,
    n_folds: int = 5,
    permutations: int = 100,
    halves: int = 20,
    resamples: int = 1000,
    seed: int = 0,
) -> CrossProbe:
    """Fit a ridge probe to every view, and read every view with it.

    A probe fitted to the training tasks of one view, its alpha chosen by leave-one-out among them, predicts the held-out tasks
    from the activations of another, and is scored against the labels of that one. So no task that is scored was trained on, in
    either view, and a view read by its own probe has the ordinary held-out score. What is carried over is the direction: in
    each view it is read about the mean activation of the training tasks there, as another layer or prompt moves all tasks by
    one `offset`, and by another one for the probe of every fold. Labels are in units of their standard deviation over the tasks
    used, which are those that all views label and hold. Views of the same activations share every decomposition, and so do all
    shuffles.

    Parameters
    ----------
    split
        Which tasks are tested by probes of which others; default `n_folds` random folds.
    permutations
        Shuffles of the labels over tasks; the same ones for every view.
    halves
        Random halves of the tasks.

    Raises
    ------
    ValueError
        There are fewer than two views, two of one name, of several models or widths, with labels of several targets or of
        one value, or fewer than three tasks a fold in common; or a position has a row for every token.
    KeyError
        A store lacks the layer or the position.
    """
    _check(views)
    labels = [_labels(view) for view in views]
    task_ids, left_out = _common(views, labels, n_folds)
    divided = Split.k_fold(task_ids, n_folds, seed=seed) if split is None else split(task_ids)
    order = np.random.default_rng([seed, 1])
    shuffles = np.array([np.arange(len(task_ids)), *(order.permutation(len(task_ids)) for _ in range(permutations))])
    columns = np.stack([_in_units(view, each, task_ids)[shuffles.T] for view, each in zip(views, labels, strict=True)])
    places = {(id(view.store), view.layer, view.position): view for view in views}
    sources = [task_rows(view.store, view.layer, view.position, task_ids) for view in places.values()]
    source_of = np.array([list(places).index((id(view.store), view.layer, view.position)) for view in views])
    probes = _Probes(sources, source_of, columns, alphas)
    transfer = _transfer(probes, divided, Bootstrap.of(divided.clusters[divided.tested], resamples, seed))
    cosine = _cosine(probes, halves, np.random.default_rng([seed, 2]))
    names = tuple(view.name for view in views)
    for table, keys in ((transfer, ("trained_on", "tested_on")), (cosine, ("a", "b"))):
        for key in keys:
            table[key] = [names[number] for number in table[key]]
    return CrossProbe(names, transfer, cosine, len(task_ids), left_out)


def _check(views: Sequence[View]) -> None:
    names = [view.name for view in views]
    if len(names) < 2:
        raise ValueError(f"{len(names)} views ({names}) cannot be crossed; expected two or more. For one, use probe_sweep.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"The views are named {names}; expected each name once, but {repeated} return. Rename them.")
    first = views[0]
    for view in views[1:]:
        one, other = first.store.header, view.store.header
        if one.d_model != other.d_model or one.model != other.model:
            raise ValueError(
                f"View {first.name!r} is of {one.model.name} (width {one.d_model}, {one.model.fingerprint[:12]}) and "
                f"{view.name!r} of {other.model.name} (width {other.d_model}, {other.model.fingerprint[:12]}); expected one "
                "model, as weights of one mean nothing in another. Cross the views of each model by itself."
            )


def _labels(view: View) -> pd.DataFrame:
    labels = check_labels(view.labels)
    if (n_targets := labels["target"].nunique()) != 1:
        raise ValueError(
            f"The labels of view {view.name!r} have {n_targets} targets {sorted(labels['target'].unique())}; expected one. "
            "Make a view of each: labels[labels['target'] == ...]."
        )
    return labels


def _common(views: Sequence[View], labels: Sequence[pd.DataFrame], n_folds: int) -> tuple[list[str], int]:
    """Tasks that every view labels and holds, in the order of the first view's labels, and how many others there are."""
    held = {view.name: {view.store.task_ids[slot] for slot in np.flatnonzero(view.store.done)} for view in views}
    usable = {view.name: held[view.name].intersection(each["task_id"]) for view, each in zip(views, labels, strict=True)}
    common = set.intersection(*usable.values())
    left_out = len(set.union(*(set(each["task_id"]) for each in labels)) - common)
    if len(common) < _TASKS_A_FOLD * n_folds:
        each_has = ", ".join(f"{name} {len(tasks)}" for name, tasks in usable.items())
        raise ValueError(
            f"{len(common)} tasks are labelled and held by every view ({each_has}; {left_out} left out); expected "
            f"{_TASKS_A_FOLD * n_folds} or more for {n_folds} folds. Leave out the view that has the fewest, label more tasks, "
            "or ask for fewer folds."
        )
    return [task_id for task_id in labels[0]["task_id"] if task_id in common], left_out


def _in_units(view: View, labels: pd.DataFrame, task_ids: Sequence[str]) -> Float[np.ndarray, " tasks"]:
    """Labels of the tasks, with mean zero and standard deviation 1 over them."""
    values = labels.set_index("task_id")["value"].loc[list(task_ids)].to_numpy(dtype=float)
    if np.ptp(values) == 0:
        raise ValueError(
            f"All {len(values)} labels of view {view.name!r} are {values[0]:g}; a probe needs values that differ. Leave the "
            "view out."
        )
    return (values - values.mean()) / values.std()


@dataclass(frozen=True, eq=False)
class _Probes:
    """Activations of every distinct layer, position and store, and for each view its labels, then their shuffles."""

    sources: list[Float[np.ndarray, "tasks d"]]
    source_of: Int[np.ndarray, " views"]
    columns: Float[np.ndarray, "views tasks shuffles"]
    alphas: Sequence[float]

    def fit(
        self, tasks: Int[np.ndarray, " some"], *, shuffled: bool = True
    ) -> tuple[Float[np.ndarray, "views d shuffles"], Float[np.ndarray, "views shuffles"]]:
        """Weights in raw activation space, and alphas, of the probes of some tasks; one decomposition a source."""
        targets = self.columns[:, tasks, : None if shuffled else 1]
        n_views, _, width = targets.shape
        weights = np.empty((n_views, self.sources[0].shape[1], width))
        chosen = np.empty((n_views, width))
        for number, rows in enumerate(self.sources):
            members = np.flatnonzero(self.source_of == number)
            ridge = Ridge.decompose(rows[tasks])
            side_by_side = np.concatenate(list(targets[members]), axis=1)
            alphas = ridge.choose_alphas(side_by_side, self.alphas)
            fitted, _ = ridge.weights(side_by_side, alphas)
            weights[members] = fitted.reshape(-1, len(members), width).swapaxes(0, 1)
            chosen[members] = alphas.reshape(-1, width)
        return weights, chosen


def _transfer(probes: _Probes, split: Split, bootstrap: Bootstrap) -> pd.DataFrame:
    """Score the probes of every view, trained without each fold, on that fold in every view; views by number."""
    n_views, n_tasks, width = probes.columns.shape
    along = np.full((n_views, len(probes.sources), n_tasks, width), np.nan)  # the prediction, less the mean of the labels
    middle = np.full((n_views, n_tasks), np.nan)
    offsets, chosen = np.empty((len(split.names), n_views, len(probes.sources))), np.empty((len(split.names), n_views))
    for fold in tqdm(range(len(split.names)), desc="cross-probing", unit="fold", disable=None):
        train, test = np.flatnonzero(split.folds != fold), np.flatnonzero(split.folds == fold)
        weights, alphas = probes.fit(train)
        means = np.stack([rows[train].mean(axis=0, dtype=np.float64) for rows in probes.sources])
        for number, rows in enumerate(probes.sources):
            along[:, number, test] = (rows[test] - means[number]) @ weights
            offsets[fold, :, number] = ((means[number] - means[probes.source_of]) * weights[:, :, 0]).sum(axis=1)
        middle[:, test] = probes.columns[:, train, 0].mean(axis=1)[:, None]
        chosen[fold] = alphas[:, 0]
    tested = split.tested
    orders = [bootstrap.order(labels) for labels in probes.columns[:, tested, 0]]
    found: list[dict[str, Any]] = []
    for trained_on, tested_on in np.ndindex(n_views, n_views):
        source, truth = probes.source_of[tested_on], probes.columns[tested_on, tested, 0]
        steps = along[trained_on, source, tested]
        guess = middle[trained_on, tested] + steps[:, 0]
        scores = {"trained_on": trained_on, "tested_on": tested_on} | bootstrap.correlations(truth, guess)
        scores |= bootstrap.r2((truth - guess) ** 2, (truth - middle[tested_on, tested]) ** 2)
        scores |= orders[tested_on].pairwise_accuracy(guess)
        # Training means lean away from the held-out ones, and a shuffle does not know it: compared without.
        observed, alone = np.split(_correlations(truth[:, None], steps), [1])
        together = _correlations(probes.columns[tested_on, tested, 1:], steps[:, 1:])
        scores |= _against(float(observed[0]), [alone, together])
        scores |= {"offset": offsets[:, trained_on, source].mean(), "alpha": np.median(chosen[:, trained_on])}
        found.append(scores | {"n": len(tested)})
    return pd.DataFrame(found)


def _against(observed: float, nulls: Sequence[Float[np.ndarray, " permutations"]]) -> dict[str, float]:
    """Compare a correlation with the wider of two nulls, on both sides.

    Shuffling the labels trained on alone keeps how the view read is laid out: a few wide directions correlate by chance.
    Shuffling both views' labels together keeps how these go together: a pair of tasks then counts twice, once from each side.
    """
    if not len(nulls[0]):
        return {}
    low, high = np.quantile(nulls, (0.05, 0.95), axis=1)
    tails = [min(share_at_least(sign * null, sign * observed) for sign in (1, -1)) for null in nulls]
    p_value = min(1.0, 2 * max(tails))
    return {"shuffled_pearson_5": float(low.min()), "shuffled_pearson_95": float(high.max()), "p_value": p_value}


def _cosine(probes: _Probes, halves: int, random: np.random.Generator) -> pd.DataFrame:
    """Compare the weights of every pair of views, on all tasks and on halves of them; views by number."""
    n_views, n_tasks, _ = probes.columns.shape
    units = _unit(probes.fit(np.arange(n_tasks))[0])
    between = np.empty((halves, n_views, n_views))
    for half in range(halves):
        shuffled = random.permutation(n_tasks)
        one, other = (
            _unit(probes.fit(part, shuffled=False)[0])[:, :, 0] for part in (shuffled[: n_tasks // 2], shuffled[n_tasks // 2 :])
        )
        between[half] = (one @ other.T + other @ one.T) / 2
    mean, (low, high) = between.mean(axis=0), np.quantile(between, (0.025, 0.975), axis=0)
    found = []
    for a, b in zip(*np.triu_indices(n_views), strict=True):
        cosine = float(units[a, :, 0] @ units[b, :, 0])
        # Shuffles are shared, so that of b is the next one: then the two are independent.
        null = np.abs((units[a, :, 1:] * np.roll(units[b, :, 1:], 1, axis=1)).sum(axis=0))
        row = {"a": a, "b": b, "labels": _correlations(probes.columns[a, :, :1], probes.columns[b, :, :1])[0], "cosine": cosine}
        if len(null):
            row |= {"chance": float(np.quantile(null, 0.95)), "p_value": share_at_least(null, abs(cosine))}
        row |= {"split_half": mean[a, b], "split_half_low": low[a, b], "split_half_high": high[a, b]}
        known = low[a, a] > 0 and low[b, b] > 0
        found.append(row | {"corrected": mean[a, b] / np.sqrt(mean[a, a] * mean[b, b]) if known else np.nan})
    return pd.DataFrame(found)


def _unit(weights: Float[np.ndarray, "views d shuffles"]) -> Float[np.ndarray, "views d shuffles"]:
    return weights / np.maximum(np.linalg.norm(weights, axis=1, keepdims=True), np.finfo(float).tiny)


def _correlations(truth: Float[np.ndarray, "n k"], columns: Float[np.ndarray, "n k"]) -> Float[np.ndarray, " k"]:
    """Pearson correlation of every column with that of the truth, or with its only one; that of a constant one is 0."""
    x, y = truth - truth.mean(axis=0), columns - columns.mean(axis=0)
    lengths = np.linalg.norm(x, axis=0) * np.linalg.norm(y, axis=0)
    return (x * y).sum(axis=0) / np.where(lengths > 0, lengths, 1)
