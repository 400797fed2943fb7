"""What all probes of a sweep share: the tasks of some targets, their split, their permutations, and the bootstrap of scores."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from interp.folds import FoldTable, less_group_means
from interp.kinds import Columns, Fitting
from interp.likelihood import Choices
from interp.probe_scores import Bootstrap, Order, share_at_least
from interp.shifted import Place
from interp.splits import Split

Splitter = Callable[[Sequence[str]], Split]
"""From task ids to a split, such as `lambda ids: Split.leave_one_out(ids, origins)`."""


@dataclass(frozen=True, eq=False)
class Scored:
    """One set of features and one target: scores, held-out predictions and squared errors, and R2 under each permutation."""

    scores: dict[str, float]
    predicted: Float[np.ndarray, " tested"]
    truth: Float[np.ndarray, " tested"]
    error: Float[np.ndarray, " tested"]
    baseline: Float[np.ndarray, " tested"]
    null: Float[np.ndarray, " permutations"]


def middle(scored: Sequence[Scored]) -> Scored:
    """Of several variants, the one with the median R2."""
    return sorted(scored, key=lambda each: each.scores["r2"])[len(scored) // 2]


@dataclass(frozen=True, eq=False)
class Block:
    """Targets of the same tasks.

    Attributes
    ----------
    columns
        For each target its values, then their permutations.
    demean
        Group of every task whose mean is taken off.
    ceilings
        Highest R2 that the uncertainty of each target's labels allows; missing where it is not known.
    """

    task_ids: list[str]
    targets: list[str]
    columns: Columns
    split: Split
    demean: Int[np.ndarray, " tasks"] | None
    bootstrap: Bootstrap
    ceilings: list[float]
    fitting: Fitting
    place: Place

    @classmethod
    def make(
        cls,
        labels: pd.DataFrame,
        split: Splitter,
        demean: Mapping[str, str] | None,
        choices: pd.DataFrame | None,
        *,
        fitting: Fitting,
        place: Place,
        permutations: int,
        resamples: int,
    ) -> "Block":
        """Of labels `(tasks, targets)`."""
        targets = list(dict.fromkeys(labels["target"]))
        task_ids = labels.loc[labels["target"] == targets[0], "task_id"].tolist()
        divided = split(task_ids)
        shuffles = _shuffles(divided.clusters, permutations, fitting.seed)
        columns, ceilings = [], []
        for target in targets:
            part = labels[labels["target"] == target].set_index("task_id").loc[task_ids]
            values = varying(part, str(target))
            noise = part["se"].to_numpy(dtype=float) ** 2  # missing where it is not known; so is the ceiling then
            ceilings.append(float(np.clip(1 - noise.mean() / values.var(ddof=1), 0, 1)))
            if fitting.tells_classes_apart:
                values, ceilings[-1] = upper_class(values), np.nan
                _check_classes(values, divided, str(target))
            columns.append(values[shuffles])
        return cls(
            task_ids,
            [str(target) for target in targets],
            Columns(
                np.concatenate(columns, axis=1),
                choices_between(choices, task_ids, np.tile(shuffles, len(targets)))
                if fitting.kind == "bradley_terry"
                else None,
                divided.clusters,
            ),
            divided,
            None if demean is None else np.unique([demean[task_id] for task_id in task_ids], return_inverse=True)[1],
            Bootstrap.of(divided.clusters[divided.tested], resamples, fitting.seed),
            ceilings,
            fitting,
            place,
        )

    def score(self, features: Float[np.ndarray, "tasks d"]) -> list[Scored]:
        """Probes from these features, one result a target."""
        table = FoldTable.of(features, self.split.folds, self.place, self.demean)
        predicted, chosen = self.fitting.predict(table, self.columns)
        (truth, baseline), tested, width = self._tested, self.split.tested, self._width
        error = (truth - predicted[tested]) ** 2
        r2 = 1 - error.sum(axis=0) / baseline.sum(axis=0)
        found = []
        for number in range(len(self.targets)):
            column, null = number * width, r2[number * width + 1 : (number + 1) * width]
            actual, guess = truth[:, column], predicted[tested, column]
            scores = {"n": float(len(tested))} | self.bootstrap.r2(error[:, column], baseline[:, column])
            scores |= self.bootstrap.correlations(actual, guess) | self._orders[number].pairwise_accuracy(guess)
            if self.columns.choices is not None:
                scores |= self._choice_accuracy(self.columns.choices, predicted[:, column])
            scores["alpha"] = float(np.median([each[column] for each in chosen]))
            scores["ceiling"] = self.ceilings[number]
            if len(null):
                scores["shuffled_r2"] = float(null.mean())
                scores["shuffled_r2_95"] = float(np.quantile(null, 0.95))
                scores["p_value"] = share_at_least(null, float(r2[column]))
            found.append(Scored(scores, guess, actual, error[:, column], baseline[:, column], null))
        return found

    @property
    def _width(self) -> int:
        return self.columns.values.shape[1] // len(self.targets)

    @cached_property
    def _tested(self) -> tuple[Float[np.ndarray, "tested columns"], Float[np.ndarray, "tested columns"]]:
        """What is predicted, and the squared error of predicting the training mean."""
        values, folds = self.columns.values, self.split.folds
        truth, mean = np.full(values.shape, np.nan), np.full(values.shape, np.nan)
        for fold in range(len(self.split.names)):
            test, train = folds == fold, folds != fold
            truth[test] = less_group_means(values, self.demean, test, train)
            mean[test] = less_group_means(values, self.demean, train, train).mean(axis=0)
        truth, mean = truth[self.split.tested], mean[self.split.tested]
        return truth, (truth - mean) ** 2

    @cached_property
    def _orders(self) -> list[Order]:
        truth, _ = self._tested
        return [self.bootstrap.order(truth[:, number * self._width]) for number in range(len(self.targets))]

    def gain(self, scored: Scored, over: Scored) -> dict[str, float]:
        """R2 above another set of features, with an interval paired over tasks."""
        return self.bootstrap.gain(over.error, scored.error, scored.baseline)

    def predictions(self, scored: Scored, where: Mapping[str, Any]) -> pd.DataFrame:
        """Held-out predictions as a table."""
        tested = self.split.tested
        return pd.DataFrame(
            {"task_id": [self.task_ids[number] for number in tested]}
            | dict(where)
            | {"fold": self.split.folds[tested], "value": scored.truth, "predicted": scored.predicted}
        )

    def _choice_accuracy(self, choices: Choices, predicted: Float[np.ndarray, " tasks"]) -> dict[str, float]:
        """Share of the choices between tested tasks, each predicted without itself, that go as predicted."""
        place = np.full(len(predicted), -1)
        place[self.split.tested] = np.arange(len(self.split.tested))
        both = (place[choices.pairs] >= 0).all(axis=1)
        first, second = choices.pairs[both].T
        side = np.sign(predicted[first] - predicted[second])
        right = (1 + side * (2 * choices.share[both] - 1)) / 2
        return self.bootstrap.pairs("choice_accuracy", place[first], place[second], right, choices.weight[both])


def varying(labels: pd.DataFrame, target: str) -> Float[np.ndarray, " n"]:
    """Values of one target.

    Raises
    ------
    ValueError
        There are fewer than three, or all are the same.
    """
    values = labels["value"].to_numpy(dtype=float)
    if len(values) < 3 or np.ptp(values) == 0:
        raise ValueError(
            f"Target {target!r} has {len(values)} tasks and values from {values.min(initial=np.inf):g} to "
            f"{values.max(initial=-np.inf):g}; a probe needs at least three tasks with different values."
        )
    return values


def _shuffles(clusters: Int[np.ndarray, " tasks"], permutations: int, seed: int) -> Int[np.ndarray, "tasks columns"]:
    """Which task's labels each task has: its own, then those of permutations that keep clusters together.

    Clusters are lined up in random order, with their tasks in random order, along the tasks in the order of their clusters;
    where all have one task these are all permutations, and where all have as many they are exchanged whole.
    """
    random = np.random.default_rng([seed, 1])
    home = np.argsort(clusters, kind="stable")
    shuffles = np.tile(np.arange(len(clusters))[:, None], 1 + permutations)
    for number in range(1, 1 + permutations):
        place = random.permutation(clusters.max() + 1)
        shuffles[home, number] = np.lexsort((random.random(len(clusters)), place[clusters]))
    return shuffles


def upper_class(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """1 for the greater of two values; of more values, for those above the median."""
    cut = values.min() if len(np.unique(values)) == 2 else np.median(values)
    return (values > cut).astype(float)


def _check_classes(classes: Float[np.ndarray, " n"], split: Split, target: str) -> None:
    for fold, name in enumerate(split.names):
        train = classes[split.folds != fold]
        n, size = len(train), int(train.sum())
        if not 2 <= size <= n - 2:
            raise ValueError(
                f"Without {name}, {size} of {n} tasks are in the upper class of {target!r}; a probe of classes needs two or "
                "more on either side. Use ridge, or another split."
            )


def choices_between(
    choices: pd.DataFrame | None, task_ids: Sequence[str], shuffles: Int[np.ndarray, "tasks columns"]
) -> Choices:
    """Choices between these tasks, of the pairs that were answered in both orders; a tie is half a win.

    Each order counts the same, so that a habit of taking what is shown first is no preference.

    Raises
    ------
    ValueError
        There are none.
    """
    if choices is None or not {"first", "second", "p_first"}.issubset(choices):
        found = "none are given" if choices is None else f"these have the columns {list(choices)}"
        raise ValueError(
            f"A Bradley-Terry probe is fitted to choices, and {found}; expected a table with first, second and p_first, as "
            "from choice.comparisons."
        )
    place = {task_id: number for number, task_id in enumerate(task_ids)}
    usable = choices["first"].isin(place) & choices["second"].isin(place)
    if "outcome" in choices:
        usable &= choices["outcome"] == "chose"
    part = choices[usable]
    first, second = (part[side].map(place).to_numpy(dtype=np.int64) for side in ("first", "second"))
    tied = part["p_tie"].to_numpy(dtype=float) if "p_tie" in part else 0.0
    counted = part["weight"].to_numpy(dtype=float) if "weight" in part else np.ones(len(part))
    won = part["p_first"].to_numpy(dtype=float) + tied / 2
    swapped = first > second
    pairs, number = np.unique(np.sort(np.stack([first, second], axis=1), axis=1), axis=0, return_inverse=True)
    cell = 2 * number.ravel() + swapped  # a pair in one of its orders
    answers = np.bincount(cell, counted, 2 * len(pairs)).reshape(-1, 2)
    wins = np.bincount(cell, counted * np.where(swapped, 1 - won, won), 2 * len(pairs)).reshape(-1, 2)
    both = (answers > 0).all(axis=1)
    if not both.any():
        raise ValueError(
            f"None of {len(choices)} choices is of a pair of the {len(task_ids)} labelled tasks that was answered in both "
            "orders; expected the choices that the labels were fitted to, each pair asked both ways round."
        )
    share = (wins[both] / answers[both]).mean(axis=1)
    return Choices(pairs[both], share, answers[both].sum(axis=1), np.argsort(shuffles, axis=0))
