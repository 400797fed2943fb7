"""An estimate never travels alone: a number with its interval, its standard error, and what it could have seen."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from scipy import stats

POWER_FACTOR = 1.959964 + 0.841621
"""Standard errors between zero and the smallest effect seen with 80 % power at the two-sided 5 % level."""


@dataclass(frozen=True)
class Estimate:
    """A number with a 95 % interval.

    Attributes
    ----------
    value, low, high
        Point and interval.
    se
        Standard error.
    n
        Number of units behind it (pairs, tasks).
    """

    value: float
    low: float
    high: float
    se: float
    n: int

    @classmethod
    def unknown(cls, n: int) -> Self:
        """Of something that cannot be estimated from these units."""
        return cls(math.nan, math.nan, math.nan, math.nan, n)

    @classmethod
    def from_draws(cls, value: float, draws: Float[np.ndarray, " resamples"] | Sequence[float], n: int) -> Self:
        """Percentile interval from bootstrap draws; those that are undefined (a resample of one task) are left out."""
        kept = np.asarray(draws, dtype=float)
        kept = kept[np.isfinite(kept)]
        if len(kept) < 2 or not math.isfinite(value):
            return cls(float(value), math.nan, math.nan, math.nan, n)
        low, high = np.quantile(kept, [0.025, 0.975])
        return cls(float(value), float(low), float(high), float(kept.std(ddof=1)), n)

    @classmethod
    def of_correlation(cls, value: float, draws: Float[np.ndarray, " resamples"] | Sequence[float], n: int) -> Self:
        """Interval of a correlation from bootstrap draws: Student's on Fisher's scale, where they are symmetric.

        Their percentiles are too narrow: without any correlation they leave out zero in 7 of 100 samples of 60 tasks.
        """
        kept = np.asarray(draws, dtype=float)
        kept = kept[np.isfinite(kept)]
        if len(kept) < 2 or not math.isfinite(value) or n < 4:
            return cls(float(value), math.nan, math.nan, math.nan, n)
        most = 1 - 1e-12
        centre, se = np.arctanh(np.clip(value, -most, most)), np.arctanh(np.clip(kept, -most, most)).std(ddof=1)
        margin = float(stats.t.ppf(0.975, n - 2)) * se
        return cls(float(value), float(np.tanh(centre - margin)), float(np.tanh(centre + margin)), float(kept.std(ddof=1)), n)

    @classmethod
    def of_mean(cls, values: Float[np.ndarray, " units"]) -> Self:
        """Mean of independent units, with Student's interval: that of a bootstrap is too narrow for a dozen of them."""
        n, value = len(values), float(np.mean(values))
        if n < 2:
            return cls(value, math.nan, math.nan, math.nan, n)
        se = float(np.std(values, ddof=1)) / math.sqrt(n)
        margin = float(stats.t.ppf(0.975, n - 1)) * se
        return cls(value, value - margin, value + margin, se, n)

    @classmethod
    def of_share(cls, cases: Sequence[bool]) -> Self:
        """Share of independent cases, with the exact interval (Clopper-Pearson), which is right for few and rare ones too."""
        n, value = len(cases), float(np.mean(cases))
        low, high = stats.binomtest(int(np.sum(cases)), n).proportion_ci(method="exact")
        return cls(value, float(low), float(high), math.sqrt(value * (1 - value) / n), n)

    @property
    def known(self) -> bool:
        """Whether there is a value."""
        return not math.isnan(self.value)

    def differs_from(self, null: float = 0.0) -> bool:
        """Whether the interval leaves out `null`."""
        return not (math.isnan(self.low) or self.low <= null <= self.high)

    @property
    def smallest_effect(self) -> float:
        """Smallest true distance from the null that such an experiment finds with 80 % power."""
        return POWER_FACTOR * self.se

    def __str__(self) -> str:
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return asdict(self)
