"""The token budget of a batch, found by trial: the smallest that is as fast as any on this device and fits its memory."""

from collections.abc import Callable

LARGEST = 1 << 17
_WORTH_MORE = 1.05
"""A larger batch must be this much faster to be worth its memory."""


def find_token_budget(tokens_per_second: Callable[[int], float | None], smallest: int) -> int:
    """Double the budget until two doublings in a row bring nothing, or memory runs out.

    Parameters
    ----------
    tokens_per_second
        Speed of a batch of so many tokens; None where it does not fit in memory.
    smallest
        Where to begin.
    """
    best, best_speed, useless = smallest, tokens_per_second(smallest) or 0.0, 0
    budget = smallest
    while useless < 2 and budget < LARGEST:
        budget *= 2
        speed = tokens_per_second(budget)
        if speed is None:
            break
        if speed > _WORTH_MORE * best_speed:
            best, best_speed, useless = budget, speed, 0
        else:
            useless += 1
    return best
