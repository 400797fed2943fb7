"""Designs: which pairs of tasks to compare. Every pair is later shown in both orders."""

from collections.abc import Mapping, Sequence

import numpy as np

Pair = tuple[str, str]


def regular_pairs(task_ids: Sequence[str], degree: int, seed: int = 0) -> list[Pair]:
    """Pairs in which every task meets `degree` others, all connected.

    Tasks are put in a random circle and joined at `degree / 2` random distances, one of which is 1.

    Raises
    ------
    ValueError
        The degree is not between 2 and the number of other tasks, or is odd with an odd number of tasks.
    """
    n = checked_tasks(task_ids)
    if not 2 <= degree <= n - 1 or (degree % 2 and n % 2):
        raise ValueError(
            f"Degree {degree} for {n} tasks; expected 2 to {n - 1}"
            + (", and even for an odd number of tasks." if n % 2 else ".")
        )
    random = np.random.default_rng(seed)
    circle = [task_ids[int(place)] for place in random.permutation(n)]
    distances = [1, *(2 + random.permutation((n - 1) // 2 - 1)[: degree // 2 - 1]).tolist()]
    pairs = [(circle[place], circle[(place + distance) % n]) for distance in distances for place in range(n)]
    if degree % 2:
        pairs += [(circle[place], circle[place + n // 2]) for place in range(n // 2)]
    return pairs


def all_pairs(task_ids: Sequence[str]) -> list[Pair]:
    """Every pair once."""
    n = checked_tasks(task_ids)
    return [(task_ids[i], task_ids[j]) for i in range(n) for j in range(i + 1, n)]


def disjoint_pairs(task_ids: Sequence[str], seed: int = 0) -> list[Pair]:
    """Random pairs with no task in two of them, so that results of different pairs are independent."""
    n = checked_tasks(task_ids)
    shuffled = [task_ids[int(place)] for place in np.random.default_rng(seed).permutation(n)]
    return list(zip(shuffled[0::2], shuffled[1::2], strict=False))


def hold_out(pairs: Sequence[Pair], share: float, seed: int = 0) -> tuple[list[Pair], list[Pair]]:
    """Split unordered pairs into those to fit on and those held out; both orders of a pair stay together.

    Raises
    ------
    ValueError
        The share is not in (0, 1), or a pair occurs twice.
    """
    if not 0 < share < 1:
        raise ValueError(f"The hold-out share is {share}; expected a number between 0 and 1.")
    unordered = [frozenset(pair) for pair in pairs]
    if len(set(unordered)) != len(unordered):
        raise ValueError("A pair occurs twice among the pairs to split; give each unordered pair once.")
    held = set(np.random.default_rng(seed).permutation(len(pairs))[: round(share * len(pairs))].tolist())
    fitted = [pair for place, pair in enumerate(pairs) if place not in held]
    return fitted, [pair for place, pair in enumerate(pairs) if place in held]


def checked_tasks(task_ids: Sequence[str], least: int = 2) -> int:
    """Number of tasks to compare.

    Raises
    ------
    ValueError
        There are fewer than `least`, or one occurs twice.
    """
    if len(task_ids) < least:
        raise ValueError(f"A comparison needs two tasks, this design {least}; got {len(task_ids)}.")
    if len(set(task_ids)) != len(task_ids):
        raise ValueError("A task id occurs twice; give each task once.")
    return len(task_ids)


def balanced_orders(pairs: Sequence[Pair], ahead: Mapping[str, int] | None = None) -> list[Pair]:
    """Show every pair in one order such that each task is first as often as second, to within one.

    Pairs are the edges of a graph whose trails alternate first and second (an Eulerian orientation), so that only a task
    in an odd number of pairs can be one off. Asking both orders needs none of this.

    Parameters
    ----------
    ahead
        How much oftener each task was first than second before; trails start at the tasks that are most behind.
    """
    ahead = dict(ahead or {})
    partners: dict[str, list[tuple[int, str]]] = {}
    for number, (one, other) in enumerate(pairs):
        partners.setdefault(one, []).append((number, other))
        partners.setdefault(other, []).append((number, one))
    oriented: list[Pair | None] = [None] * len(pairs)
    odd = sorted((task for task, met in partners.items() if len(met) % 2), key=lambda task: (ahead.get(task, 0), task))
    # Trails from odd tasks end at odd tasks; what is left then are circuits.
    for start in [*odd, *sorted(partners)]:  # a task whose pairs are all walked is passed over
        task = start
        while True:
            while partners[task] and oriented[partners[task][-1][0]] is not None:
                partners[task].pop()
            if not partners[task]:
                break
            number, other = partners[task].pop()
            oriented[number] = (task, other)
            task = other
    return [pair for pair in oriented if pair is not None]
