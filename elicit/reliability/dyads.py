"""Statistics of pairs, where pairs that share a task are not independent."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from store.estimates import Estimate


def dyadic_estimate(
    statistic: Callable[[np.ndarray], Any],
    first: pd.Series,
    second: pd.Series,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Estimate:
    """Estimate a statistic of pairs where pairs that share a task are dependent.

    The variance is the dyadic cluster-robust one (Aronow, Samii & Assenova 2015, equation 3) of the statistic's empirical
    influence values, never less than if pairs were independent; the interval is that of Student's t with as many degrees
    of freedom as there are tasks, less one.

    Parameters
    ----------
    statistic
        From the numbers of pairs (an array of them, with repetition) to a value; the last axis is reduced.
    first, second
        The two tasks of every pair.
    bounds
        Least and greatest possible value; the interval is cut there.
    """
    n = len(first)
    codes, names = pd.factorize(np.concatenate([np.asarray(first), np.asarray(second)]))
    value = float(statistic(np.arange(n)))
    left_out = np.array([float(statistic(np.delete(np.arange(n), pair))) for pair in range(n)])
    influence = (n - 1) * (value - left_out)
    by_task = np.bincount(codes[:n], influence, len(names)) + np.bincount(codes[n:], influence, len(names))
    own = float((influence**2).sum())
    variance = max(float((by_task**2).sum()) - own, own) / n**2 * len(names) / (len(names) - 1)
    se = float(np.sqrt(variance))
    margin = float(stats.t.ppf(0.975, len(names) - 1)) * se
    return Estimate(value, max(value - margin, bounds[0]), min(value + margin, bounds[1]), se, n)
