"""Side by side: labels of several runs on one scale, how far they agree, and by how much tasks and origins differ.

Pure functions over tables; `compare` reads the runs and writes the report. Utilities have no zero of their own, so a difference
between two runs is one from what all tasks that both have do on average.
"""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import optimize, stats

from elicit.reliability import Agreement, agreement, dyadic_estimate
from elicit.reliability.agreement import correlation
from elicit.utilities import NORMAL_REACH
from store import Estimate

Scale = Literal["centred", "standardised", "as_is"]

LEVEL = 0.05
LEAST_TASKS = 4
_POWER = 0.8
_QUANTILES = (np.arange(2000) + 0.5) / 2000
_LEAST_RELIABLE = 0.1
"""With less, a correlation is divided by next to nothing."""
_LOGITS, _PROBITS = ("least squares", "bradley-terry"), ("thurstone", "thurstone sigmas")


@dataclass(frozen=True, eq=False)
class OnOneScale:
    """Labels of several runs, of the tasks that all have.

    Attributes
    ----------
    values, errors
        Tasks by runs; standard errors are missing where a run has none.
    scale
        What was done to make values comparable.
    unit
        Of the values, after that.
    """

    values: pd.DataFrame
    errors: pd.DataFrame
    scale: Scale
    unit: str

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every two runs."""
        return list(itertools.combinations(self.values.columns, 2))


def natural_scale(methods: Mapping[str, str]) -> tuple[Scale, str]:
    """How labels that were obtained by these methods are made comparable, and the unit that they then have.

    Utilities of one link are in its unit and lack only a zero. Ratings have both. Of anything else the unit is not known, or
    differs.
    """
    found = set(methods.values())
    if found <= set(_LOGITS):
        return "centred", "logits"
    if found <= set(_PROBITS):
        return "centred", "standard deviations of a difference"
    if found <= {"rating", "mean of scales"} and len(found) == 1:
        return "as_is", "points of the scale"
    return "standardised", "standard deviations over tasks"


def on_one_scale(labels: Mapping[str, pd.DataFrame], scale: Scale, unit: str) -> OnOneScale:
    """Put labels of several runs on one scale, over the tasks that all of them have.

    Parameters
    ----------
    labels
        By the run's name, labels of one target each.
    scale
        `centred`: every run's mean over these tasks is zero. `standardised`: and its standard deviation one. `as_is`.

    Raises
    ------
    ValueError
        Fewer than four tasks are in all runs, or all tasks of a run have one value.
    """
    values, errors = (
        pd.DataFrame({name: table.set_index("task_id")[column] for name, table in labels.items()}).astype(float)
        for column in ("value", "se")
    )
    kept = values.dropna().index
    if len(kept) < LEAST_TASKS:
        counts = ", ".join(f"{name} has {len(table)}" for name, table in labels.items())
        samples = "; ".join(f"{name}: {', '.join(table['task_id'].head(2))}" for name, table in labels.items())
        raise ValueError(
            f"{len(kept)} tasks are in all runs, and at least {LEAST_TASKS} are needed ({counts}). Tasks are joined by id; "
            f"those here are called like {samples}."
        )
    values, errors = values.loc[kept], errors.loc[kept]
    spread = values.std(ddof=1)
    if (constant := spread.index[~(spread > 0)]).size:
        raise ValueError(
            f"All {len(kept)} tasks have one value in {constant[0]}, so there is nothing to compare; leave it out."
        )
    if scale != "as_is":
        values = values - values.mean()
    if scale == "standardised":
        values, errors = values / spread, errors / spread
    return OnOneScale(values, errors, scale, unit)


# ---- what agrees


@dataclass(frozen=True, eq=False)
class PairOfRuns:
    """How two runs agree; intervals by bootstrap over tasks.

    Attributes
    ----------
    agreement
        Pearson's and Spearman's correlation.
    corrected
        Pearson's, divided by the root of both reliabilities (attenuation, Spearman 1904): what it would be without errors of
        measurement, as far as standard errors tell. Not cut at one. None where a run has no errors, or is mostly error.
    spread
        Standard deviation over tasks in the second by that in the first, before anything was scaled.
    """

    first: str
    second: str
    agreement: Agreement
    corrected: Estimate | None
    spread: Estimate


def agree(
    first: pd.DataFrame, second: pd.DataFrame, names: tuple[str, str], *, resamples: int = 1000, seed: int = 0
) -> PairOfRuns:
    """Hold the labels of two runs against each other, over the tasks that both have.

    Raises
    ------
    ValueError
        See `elicit.agreement`.
    """
    found = agreement(first, second, resamples=resamples, seed=seed)
    tasks = found.tasks["task_id"]
    one, other = (table.set_index("task_id").loc[tasks] for table in (first, second))
    x, y = (table["value"].to_numpy(dtype=float) for table in (one, other))
    variances = [table["se"].to_numpy(dtype=float) ** 2 for table in (one, other)]
    rows = np.random.default_rng([seed, 1]).integers(len(tasks), size=(resamples, len(tasks)))
    spread = Estimate.from_draws(float(y.std() / x.std()), _ratio(y[rows].std(-1), x[rows].std(-1)), len(tasks))
    corrected = None
    if all(np.isfinite(each).all() for each in variances):
        shares = [reliability(values, each) for values, each in zip((x, y), variances, strict=True)]
        if min(map(float, shares)) >= _LEAST_RELIABLE:
            drawn = [reliability(values[rows], each[rows]) for values, each in zip((x, y), variances, strict=True)]
            usable = np.where(np.minimum(*drawn) > 0, drawn[0] * drawn[1], np.nan)
            draws = correlation(x[rows], y[rows]) / np.sqrt(usable)
            value = found.pearson.value / float(np.sqrt(shares[0] * shares[1]))
            corrected = Estimate.from_draws(value, draws, len(tasks))
    return PairOfRuns(*names, found, corrected, spread)


def reliability(values: Float[np.ndarray, "... tasks"], variances: Float[np.ndarray, "... tasks"]) -> Float[np.ndarray, "..."]:
    """Share of the variance of values that is not error: 1 - mean(se²) / variance."""
    return 1 - _ratio(variances.mean(-1), values.var(-1, ddof=1))


def same_choices(first: pd.DataFrame, second: pd.DataFrame) -> Estimate | None:
    """Share of the pairs that both runs decided, over all their answers and orders, in which both prefer the same task.

    The interval allows for pairs that share a task. None where fewer than three pairs were decided by both.
    """
    one, other = (_net_preferences(table) for table in (first, second))
    both = one.index.intersection(other.index)
    agreed = (np.sign(one[both]) == np.sign(other[both])).to_numpy(dtype=float)
    if len(agreed) < 3:
        return None
    ends = both.to_frame(index=False)
    return dyadic_estimate(lambda rows: agreed[rows].mean(-1), ends.iloc[:, 0], ends.iloc[:, 1], (0.0, 1.0))


def _net_preferences(table: pd.DataFrame) -> pd.Series:
    """By pair (sorted ids), how far it leans to its first; each order counts the same, and ties are left out."""
    known = table[table["outcome"] == "chose"] if "outcome" in table else table
    by_order = known.groupby(["first", "second"])["p_first"].mean() - 0.5
    ends = by_order.index.to_frame(index=False)
    swapped = (ends["first"] > ends["second"]).to_numpy()
    lean = np.where(swapped, -1.0, 1.0) * by_order.to_numpy()
    low, high = ends.min(axis=1), ends.max(axis=1)
    net = pd.Series(lean).groupby([low.to_numpy(), high.to_numpy()]).mean()
    return net[net != 0]


# ---- what differs


def task_differences(scaled: OnOneScale) -> pd.DataFrame:
    """By how much every task differs between every two runs, second minus first.

    Returns
    -------
    Columns `first, second, task_id, difference, se, low, high, p, p_corrected`. Errors of two runs are independent; p is that
    of a normal error, two-sided, and `p_corrected` is by Benjamini and Hochberg over all rows that have one. Without errors
    there is neither.
    """
    parts = []
    for first, second in scaled.pairs:
        difference = scaled.values[second] - scaled.values[first]
        se = np.hypot(scaled.errors[first], scaled.errors[second])
        parts.append(
            pd.DataFrame(
                {
                    "first": first,
                    "second": second,
                    "task_id": scaled.values.index,
                    "difference": difference.to_numpy(),
                    "se": np.asarray(se),
                    "low": (difference - NORMAL_REACH * se).to_numpy(),
                    "high": (difference + NORMAL_REACH * se).to_numpy(),
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    return table.assign(p=2 * stats.norm.sf(_ratio(table["difference"].abs(), table["se"]))).pipe(_corrected)


def origin_differences(scaled: OnOneScale, origins: Mapping[str, str], *, resamples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """By how much the tasks of every origin differ on average between every two runs, second minus first.

    The error is that of a bootstrap over the tasks of every origin, in which runs are centred anew each time, made as large as
    so few tasks ask for: times n / (n - 1) in variance, and Student's t with n - 1 degrees of freedom.

    Returns
    -------
    Columns `first, second, origin, n, difference, se, low, high, p, p_corrected`, corrected as in `task_differences`. Origins
    with fewer than three tasks have no error.
    """
    of_task = np.array([origins[str(task)] for task in scaled.values.index])
    names = sorted(set(of_task))
    members = [np.flatnonzero(of_task == name) for name in names]
    random = np.random.default_rng(seed)
    counts = np.zeros((resamples, len(of_task)))
    for rows in members:
        counts[:, rows] = random.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=resamples)
    parts = []
    for first, second in scaled.pairs:
        values = (scaled.values[second] - scaled.values[first]).to_numpy()
        overall = 0.0 if scaled.scale == "as_is" else counts @ values / len(values)
        for name, rows in zip(names, members, strict=True):
            n, difference = len(rows), float(values[rows].mean())
            row = {"first": first, "second": second, "origin": name, "n": n, "difference": difference}
            se = margin = p = np.nan
            if n >= 3:
                drawn = counts[:, rows] @ values[rows] / n - overall
                se = float(drawn.std(ddof=1) * np.sqrt(n / (n - 1)))
                margin = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * se
                p = float(2 * stats.t.sf(abs(difference) / se, n - 1)) if se > 0 else np.nan
            parts.append(row | {"se": se, "low": difference - margin, "high": difference + margin, "p": p})
    return pd.DataFrame(parts).pipe(_corrected)


def smallest_origin_difference(by_origin: pd.DataFrame) -> float:
    """Difference that one origin alone shows four times in five at the corrected level, the median over what is tested.

    The level is Bonferroni's over all tests: Benjamini and Hochberg's where nothing else differs. The power is that of
    Student's t with the degrees of freedom of each origin.
    """
    tested = by_origin.dropna(subset=["p"])
    reach = {n: _reach(n - 1, LEVEL / len(tested)) for n in tested["n"].astype(int).unique()}
    return float((tested["n"].astype(int).map(reach) * tested["se"]).median())


def _reach(df: int, level: float) -> float:
    """Standard errors from zero at which a two-sided t test finds an effect four times in five."""
    critical = float(stats.t.isf(level / 2, df))
    most = critical * float(np.sqrt(stats.chi2.ppf(0.95, df) / df)) + 3
    found: Any = optimize.brentq(lambda shift: _power(shift, critical, df) - _POWER, 0.0, most)
    return float(found)


def _power(shift: float, critical: float, df: int) -> float:
    """Chance that (z + shift) / sqrt(chi² / df) exceeds the critical value, over quantiles of chi²."""
    chi = np.sqrt(stats.chi2.ppf(_QUANTILES, df) / df)
    return float(stats.norm.sf(critical * chi - shift).mean())


def _corrected(table: pd.DataFrame) -> pd.DataFrame:
    """With `p_corrected`: Benjamini-Hochberg over the rows that have a p."""
    known = table["p"].notna()
    corrected = np.full(len(table), np.nan)
    if known.any():
        corrected[known] = stats.false_discovery_control(table.loc[known, "p"])
    return table.assign(p_corrected=corrected)


def _ratio(part: Float[np.ndarray, "..."] | pd.Series, whole: Float[np.ndarray, "..."] | pd.Series) -> np.ndarray:
    """Part by whole; missing, without a warning, where there is no whole."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, part / whole, np.nan)
