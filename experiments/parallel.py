"""Work spread over processes, with results in order and a progress bar."""

from collections.abc import Callable, Sequence
from typing import Any

from joblib import Parallel, delayed
from tqdm import tqdm


def spread_out(function: Callable[..., Any], work: Sequence[tuple[Any, ...]], n_jobs: int, description: str) -> list[Any]:
    """Results of a function for every tuple of arguments, in their order; they must not depend on one another."""
    found = Parallel(n_jobs=n_jobs, return_as="generator")(delayed(function)(*each) for each in work)
    return list(tqdm(found, total=len(work), desc=description, disable=None))
