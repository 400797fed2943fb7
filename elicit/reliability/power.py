"""Power: how many comparisons show an effect, and the smallest effect that a number of them could have shown.

Of three kinds: a preference probability against one half, a correlation, a mean shift. All tests are two-sided, and n counts
independent units: answers of one pair, or pairs that share a task, are worth less than as many independent ones.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import optimize, stats

from elicit.reliability.drawing import CYCLE, new_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Kind = Literal["preference", "correlation", "shift"]
_MOST = 10**9
_LARGEST_SHIFT = 100.0
"""In standard deviations: beyond, nothing needs a test."""


def power_of_preference(probability: float, n: int, *, alpha: float = 0.05) -> float:
    """Power of `n` independent choices to tell a preference probability from one half.

    Normal test on the arcsine scale (Cohen 1988, chapter 6), by statsmodels. The exact binomial test goes up and down with n
    around it.

    Raises
    ------
    ValueError
        A probability outside [0, 1], fewer than one choice, or alpha outside (0, 1).
    """
    from statsmodels.stats.power import NormalIndPower
    from statsmodels.stats.proportion import proportion_effectsize

    _check(0 <= probability <= 1, "probability", probability, "a preference probability from 0 to 1")
    _check_test(n, 1, alpha)
    return float(NormalIndPower().power(abs(proportion_effectsize(probability, 0.5)), n, alpha, ratio=0))


def power_of_correlation(r: float, n: int, *, alpha: float = 0.05) -> float:
    """Power of `n` independent units to tell a correlation from zero: Fisher's z with variance 1 / (n - 3), by statsmodels.

    Raises
    ------
    ValueError
        A correlation outside (-1, 1), fewer than four units, or alpha outside (0, 1).
    """
    from statsmodels.stats.power import NormalIndPower

    _check(-1 < r < 1, "r", r, "a correlation above -1 and below 1")
    _check_test(n, 4, alpha)
    return float(NormalIndPower(ddof=3).power(abs(math.atanh(r)), n, alpha, ratio=0))


def power_of_shift(shift: float, n: int, *, sd: float = 1.0, alpha: float = 0.05) -> float:
    """Power of `n` independent differences with standard deviation `sd` to tell their mean from zero, by the t test.

    From scipy's noncentral F, of which t² is a case: its noncentral t, and so statsmodels, gives NaN for some large effects.

    Raises
    ------
    ValueError
        A shift that is not finite, a standard deviation not above zero, fewer than two units, or alpha outside (0, 1).
    """
    _check(math.isfinite(shift), "shift", shift, "a finite number")
    _check(0 < sd < math.inf, "sd", sd, "a standard deviation above 0")
    _check_test(n, 2, alpha)
    return float(stats.ncf.sf(stats.t.isf(alpha / 2, n - 1) ** 2, 1, n - 1, n * (shift / sd) ** 2))


def needed_for_preference(probability: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Least number of independent choices that tell a preference probability from one half.

    Raises
    ------
    ValueError
        The probability is one half or outside [0, 1], or alpha and power are not 0 < alpha < power < 1.
    """
    _check(probability != 0.5, "probability", probability, "one that differs from .5")
    return _needed(lambda n: power_of_preference(probability, n, alpha=alpha), 1, alpha, power)


def needed_for_correlation(r: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Least number of independent units that tell a correlation from zero.

    Raises
    ------
    ValueError
        The correlation is zero or outside (-1, 1), or alpha and power are not 0 < alpha < power < 1.
    """
    _check(r != 0, "r", r, "one that differs from 0")
    return _needed(lambda n: power_of_correlation(r, n, alpha=alpha), 4, alpha, power)


def needed_for_shift(shift: float, *, sd: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> int:
    """Least number of independent differences that tell a mean shift, in the unit of `sd`, from zero.

    Raises
    ------
    ValueError
        The shift is zero or not finite, `sd` is not above zero, or alpha and power are not 0 < alpha < power < 1.
    """
    _check(shift != 0, "shift", shift, "one that differs from 0")
    return _needed(lambda n: power_of_shift(shift, n, sd=sd, alpha=alpha), 2, alpha, power)


def smallest_preference(n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest preference probability above one half that `n` independent choices show; as far below it is the same.

    Raises
    ------
    ValueError
        So few choices show none at all, or alpha and power are not 0 < alpha < power < 1.
    """
    # On the arcsine scale a probability of 1 is pi / 2 away from one half.
    found = _smallest(lambda size: power_of_preference(_of_arcsine(size), n, alpha=alpha), n, math.pi / 2, alpha, power)
    return _of_arcsine(found)


def smallest_correlation(n: int, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest correlation, of either sign, that `n` independent units show.

    Raises
    ------
    ValueError
        Fewer than four units, or alpha and power are not 0 < alpha < power < 1.
    """
    return math.tanh(_smallest(lambda z: power_of_correlation(math.tanh(z), n, alpha=alpha), n, 15.0, alpha, power))


def smallest_shift(n: int, *, sd: float = 1.0, alpha: float = 0.05, power: float = 0.8) -> float:
    """Smallest mean shift, of either sign and in the unit of `sd`, that `n` independent differences show.

    Raises
    ------
    ValueError
        Fewer than two units, `sd` is not above zero, or alpha and power are not 0 < alpha < power < 1.
    """
    _check(0 < sd < math.inf, "sd", sd, "a standard deviation above 0")
    return sd * _smallest(lambda size: power_of_shift(size, n, alpha=alpha), n, _LARGEST_SHIFT, alpha, power)


@dataclass(frozen=True, eq=False)
class PowerTable:
    """Number of independent units needed, by effect and power.

    Attributes
    ----------
    table
        One row an effect (index), one column a power: the least n.
    kind, alpha
        What the effects are, and the level of the two-sided test.
    """

    table: pd.DataFrame
    kind: str
    alpha: float

    def plot(self) -> "Figure":
        """Number needed against effect, one line a power."""
        figure, axes = new_axes(5.6, 4.0)
        for colour, power in zip(CYCLE, self.table.columns, strict=False):
            axes.plot(self.table.index, self.table[power], "-o", color=colour, markersize=3, label=f"power {power:g}")
        names = {"preference": "preference probability", "correlation": "correlation", "shift": "mean shift (unit of sd)"}
        axes.set(
            yscale="log",
            xlabel=names[self.kind],
            ylabel="independent units needed",
            title=f"Two-sided tests at {self.alpha:g}",
        )
        axes.legend(fontsize=8, frameon=False)
        return figure


def power_table(
    kind: Kind, effects: Sequence[float], *, powers: Sequence[float] = (0.5, 0.8, 0.95), alpha: float = 0.05, sd: float = 1.0
) -> PowerTable:
    """Number of independent units needed for every effect and power.

    Raises
    ------
    ValueError
        An unknown kind, or what `needed_for_...` raises.
    """

    def shift(effect: float, *, alpha: float, power: float) -> int:
        return needed_for_shift(effect, sd=sd, alpha=alpha, power=power)

    kinds: dict[str, Callable[..., int]] = {
        "preference": needed_for_preference,
        "correlation": needed_for_correlation,
        "shift": shift,
    }
    _check(kind in kinds, "kind", kind, f"one of {list(kinds)}")
    columns = {power: [kinds[kind](effect, alpha=alpha, power=power) for effect in effects] for power in powers}
    return PowerTable(pd.DataFrame(columns, index=pd.Index(list(effects), name=kind)), kind, alpha)


def _needed(power_at: Callable[[int], float], least: int, alpha: float, power: float) -> int:
    """Least n with the power, by doubling and halving.

    statsmodels' own `solve_power` gives 3 for n of a correlation of .3 (it is 85), and NaN for large effects.
    """
    _check_levels(alpha, power)
    above = least
    while power_at(above) < power:
        _check(above < _MOST, "the effect", "so small", f"one that {_MOST:.0e} units would show")
        above *= 2
    below = max(least - 1, above // 2)
    while above - below > 1:
        middle = (above + below) // 2
        below, above = (below, middle) if power_at(middle) >= power else (middle, above)
    return above


def _smallest(power_at: Callable[[float], float], n: int, largest: float, alpha: float, power: float) -> float:
    _check_levels(alpha, power)
    if power_at(largest) < power:
        raise ValueError(f"{n} units show no effect at all at alpha {alpha:g} with power {power:g}; expected more units.")
    found = optimize.root_scalar(lambda size: power_at(size) - power, bracket=(0.0, largest), xtol=1e-13, method="brentq")
    return float(found.root)


def _of_arcsine(size: float) -> float:
    """Probability that is `size` above one half on the arcsine scale: the inverse of `proportion_effectsize(p, .5)`."""
    return float(np.sin(math.pi / 4 + size / 2) ** 2)


def _check_test(n: float, least: int, alpha: float) -> None:
    _check(n >= least, "n", n, f"at least {least} independent units")
    _check(0 < alpha < 1, "alpha", alpha, "a level above 0 and below 1, such as .05")


def _check_levels(alpha: float, power: float) -> None:
    _check(0 < alpha < power < 1, "alpha, power", (alpha, power), "0 < alpha < power < 1, such as .05 and .8")


def _check(holds: bool, name: str, value: object, expected: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; expected {expected}.")
