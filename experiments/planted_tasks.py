"""Which tasks an organism is measured on, and which others its choices are steered between."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from elicit import Task, builtin_tasks, disjoint_pairs, sample_tasks
from elicit.designs import Pair
from experiments.organisms import Organism, balanced
from experiments.settings import Settings


def measured_tasks(settings: Settings, organism: Organism) -> list[Task]:
    """Sample as many tasks from every origin; where utilities are made of features, as many in all from every cell of them.

    Raises
    ------
    ValueError
        An origin is unknown, or an origin or a cell has too few tasks.
    """
    if not organism.rule.features:
        return settings.load_tasks()
    tasks = settings.available_tasks(builtin_tasks)
    known = sorted({task.origin for task in tasks})
    origins = settings.origins or known
    if unknown := sorted(set(origins).difference(known)):
        raise ValueError(f"There are no tasks of the origins {unknown}; expected some of {known}.")
    kept = [task for task in tasks if task.origin in origins]
    per_cell = settings.per_origin * len(origins) // 2 ** len(organism.rule.features)
    return balanced(kept, organism.rule, organism.unseen, per_cell, settings.seed)


@dataclass(frozen=True)
class Fresh:
    """Tasks that were not measured, and the pairs of them that are asked under steering: what directions are tested on."""

    tasks: Sequence[Task]
    pairs: Sequence[Pair]

    @classmethod
    def of(cls, settings: Settings, organism: Organism, measured: Sequence[Task], n_pairs: int) -> Self:
        """Sample from the same sources; where utilities are made of features, every pair differs in what was planted.

        Raises
        ------
        ValueError
            Too few tasks are left.
        """
        used = {task.id for task in measured}
        others = [task for task in settings.available_tasks(builtin_tasks) if task.id not in used]
        if len(others) < 2 * n_pairs:
            raise _too_few(len(others), n_pairs)
        if not organism.rule.features:
            each = -(-2 * n_pairs // len({task.origin for task in others}))
            tasks = sample_tasks(others, each, settings.seed + 1)[: 2 * n_pairs]
            return cls(tasks, disjoint_pairs([task.id for task in tasks], settings.seed))
        per_cell = -(-2 * n_pairs // 2 ** len(organism.rule.features))
        tasks = balanced(others, organism.rule, organism.unseen, per_cell, settings.seed + 1)
        pairs = differing_pairs(organism.utilities(tasks), settings.seed)[:n_pairs]
        if len(pairs) < n_pairs:
            raise _too_few(len(tasks), n_pairs, " in equal numbers from every cell of the rule's features")
        paired = {task_id for pair in pairs for task_id in pair}
        return cls([task for task in tasks if task.id in paired], pairs)


def differing_pairs(utilities: pd.Series, seed: int) -> list[Pair]:
    """Random pairs of a task above the middle of the planted utilities and one below, in turn one and the other first."""
    random = np.random.default_rng([seed, 8])
    above = utilities > (utilities.max() + utilities.min()) / 2
    sides = (random.permutation(utilities.index[side].to_numpy(dtype=str)) for side in (above, ~above))
    pairs = [(str(one), str(other)) for one, other in zip(*sides, strict=False)]
    return [(other, one) if number % 2 else (one, other) for number, (one, other) in enumerate(pairs)]


def _too_few(n: int, n_pairs: int, how: str = "") -> ValueError:
    return ValueError(
        f"{n} tasks are left to steer choices between{how}, for {n_pairs} pairs; expected twice as many. Measure fewer "
        "(per_origin), or steer fewer pairs."
    )
