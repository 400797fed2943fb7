"""Splits: which tasks a probe is trained on and which it is tested on. Every probe and baseline of a sweep shares one."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from jaxtyping import Int

from interp.folds import TRAIN_ONLY, grouped_folds


@dataclass(frozen=True, eq=False)
class Split:
    """Tasks by fold: those of a fold are predicted by probes trained on all the others.

    Attributes
    ----------
    folds
        Fold of each task; `TRAIN_ONLY` for those that no fold tests.
    names
        What each fold is called: a number, or the group that it leaves out.
    clusters
        Group of each task; a bootstrap draws whole groups.
    """

    folds: Int[np.ndarray, " tasks"]
    names: tuple[str, ...]
    clusters: Int[np.ndarray, " tasks"]

    @classmethod
    def k_fold(cls, task_ids: Sequence[str], n_folds: int = 5, groups: Mapping[str, str] | None = None, seed: int = 0) -> Self:
        """Random folds; tasks of one group stay together.

        Raises
        ------
        ValueError
            There are fewer groups (or tasks) than folds.
        KeyError
            A task has no group.
        """
        members = list(task_ids) if groups is None else _groups(task_ids, groups)
        folds = grouped_folds(members, n_folds, seed)
        return cls(folds, tuple(f"fold {number}" for number in range(n_folds)), np.unique(members, return_inverse=True)[1])

    @classmethod
    def leave_one_out(cls, task_ids: Sequence[str], groups: Mapping[str, str]) -> Self:
        """Leave out one group at a time, an origin or a topic, to see whether a probe carries over to what it never saw.

        Raises
        ------
        ValueError
            All tasks are of one group.
        KeyError
            A task has no group.
        """
        names, folds = np.unique(_groups(task_ids, groups), return_inverse=True)
        if len(names) < 2:
            raise ValueError(
                f"All {len(task_ids)} tasks are of the group {str(names[0])!r}; leaving it out leaves nothing to train on."
            )
        # Within a fold every task is of one group, so resampling is of tasks.
        return cls(folds, tuple(map(str, names)), np.arange(len(task_ids)))

    @classmethod
    def held_out(cls, task_ids: Sequence[str], tested: Collection[str]) -> Self:
        """Train on some tasks and test on the others, once.

        Raises
        ------
        ValueError
            Nothing is left to train on, or to test.
        """
        chosen = set(tested)
        folds = np.array([0 if task_id in chosen else TRAIN_ONLY for task_id in task_ids])
        if not 0 < (folds == 0).sum() < len(folds):
            raise ValueError(
                f"{(folds == 0).sum()} of {len(folds)} tasks are held out; expected some to test on and some to train on."
            )
        return cls(folds, ("held out",), np.arange(len(folds)))

    @property
    def tested(self) -> Int[np.ndarray, " tested"]:
        """Which tasks are tested."""
        return np.flatnonzero(self.folds != TRAIN_ONLY)


def _groups(task_ids: Sequence[str], groups: Mapping[str, str]) -> list[str]:
    if missing := [task_id for task_id in task_ids if task_id not in groups]:
        raise KeyError(f"No group is known for {len(missing)} tasks, such as {missing[0]!r}; give every task one.")
    return [groups[task_id] for task_id in task_ids]
