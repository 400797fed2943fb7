"""Rates: a share of independent units with its Wilson interval."""

import math

import numpy as np
import pandas as pd

from store.estimates import Estimate


def rate(successes: float, n: int) -> Estimate:
    """Share of `n` independent units, with Wilson's interval.

    Raises
    ------
    ValueError
        There are no units, or more successes than units.
    """
    from statsmodels.stats.proportion import proportion_confint

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes:g} successes of {n}; expected at least one unit and no more successes than units.")
    low, high = (float(np.asarray(bound)) for bound in proportion_confint(successes, n, method="wilson"))
    share = successes / n
    low, high = min(low, share), max(high, share)  # rounding leaves out a share of all
    return Estimate(share, low, high, math.sqrt(share * (1 - share) / n), n)


def clustered_rate(happened: pd.Series, clusters: pd.Series) -> Estimate:
    """Share over clusters, such as prompts with several draws each: a cluster counts once, with the mean of its units.

    Ten draws of one prompt are not ten independent units: the Wilson interval is of the number of clusters.
    """
    means = happened.astype(float).groupby(np.asarray(clusters)).mean().dropna()
    return rate(float(means.sum()), len(means))
