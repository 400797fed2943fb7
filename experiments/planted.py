"""How a measurement stands up to known truth: planting that took, utilities recovered, and what was readable all along."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from elicit import LeastSquares, regular_pairs
from elicit.pairs import order_averages
from elicit.reliability.dyads import dyadic_estimate
from experiments.frozen import FrozenTable
from store import Estimate

SEEN, UNSEEN = "seen", "unseen"
UNTOUCHED = "untouched"


def planting_table(comparisons: Mapping[str, pd.DataFrame], truth: pd.Series, unseen: Sequence[str]) -> pd.DataFrame:
    """Choices beside the planted utilities, by condition (model and wording), for pairs of seen and of unseen topics.

    Columns: `pearson` of order-averaged log-odds with planted differences, `right`, the share of pairs with a planted
    difference whose choice goes its way; `slope`, log-odds by planted logit, one where all that was planted was learnt;
    `swapped`, the correlation of the log-odds for a task in the two orders: one where content alone decides, minus one where
    position does; `position`, what being shown first is worth in logits. Intervals allow for pairs that share tasks.
    """
    rows = []
    for condition, table in comparisons.items():
        pairs = order_averages(table)
        planted = truth[pairs["task_1"]].to_numpy() - truth[pairs["task_2"]].to_numpy()
        new = pairs["task_1"].isin(unseen).astype(int) + pairs["task_2"].isin(unseen)
        for topics, part in ((SEEN, new == 0), (UNSEEN, new == 2)):
            content, position = (pairs.loc[part, name].to_numpy() for name in ("content", "position"))
            difference, ends = planted[part.to_numpy()], (pairs.loc[part, "task_1"], pairs.loc[part, "task_2"])
            row = {"condition": condition, "topics": topics, "pairs": int(part.sum())}
            if part.sum() < 6:
                continue
            varied = np.flatnonzero(difference)
            if len(varied):
                row |= _row("pearson", _correlation(content, difference, ends))
                row |= _row("slope", dyadic_estimate(_slope(difference, content), *ends))
                right = (np.sign(content[varied]) == np.sign(difference[varied])).astype(float)
                one, other = (end.iloc[varied] for end in ends)
                row |= _row("right", _share(right, (one, other)))
            row |= _row("swapped", _correlation(content + position, content - position, ends))
            row |= _row("position", dyadic_estimate(lambda at, position=position: position[at].mean(axis=-1), *ends))
            rows.append(row | {"content_sd": float(content.std(ddof=1))})
    return pd.DataFrame(rows)


def _share(right: np.ndarray, ends: Sequence[pd.Series]) -> Estimate:
    """Share of pairs; where all are alike, with the exact interval for as many as have no task in common."""
    if 0 < right.sum() < len(right):
        return dyadic_estimate(lambda at: right[at].mean(axis=-1), ends[0], ends[1], (0, 1))
    disjoint = max(1, pd.concat(list(ends)).nunique() // 2)
    exact = Estimate.of_share([bool(right[0])] * disjoint)
    return Estimate(float(right.mean()), exact.low, exact.high, exact.se, len(right))


def _slope(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], float]:
    """Least-squares slope through the origin, as which of two tasks comes first is arbitrary."""
    return lambda at: float((x[at] * y[at]).sum() / (x[at] ** 2).sum())


def _correlation(x: np.ndarray, y: np.ndarray, ends: Sequence[pd.Series]) -> Estimate:
    return dyadic_estimate(lambda at: np.corrcoef(x[at], y[at])[0, 1], ends[0], ends[1], (-1, 1))


@dataclass(frozen=True)
class Recovery:
    """Rank correlations of utilities from few comparisons.

    Attributes
    ----------
    own, planted
        With the fit to all pairs, and with the planted utilities: mean over designs, and their 2.5th to 97.5th percentile.
    whole
        Of the fit to all pairs with the planted utilities, with its interval by bootstrap over tasks.
    ceiling
        Of an estimate that is right about every order with the planted utilities, where many are tied: the most that can be.
    """

    own: Estimate
    planted: Estimate | None
    whole: Estimate | None
    ceiling: float


def recovery(table: FrozenTable, truth: pd.Series, degree: int, designs: int, seed: int) -> Recovery:
    """Fit utilities to random designs of a table in which every task meets `degree` others, both orders."""
    estimator = LeastSquares(errors="none")
    whole = estimator.fit(table.comparisons)
    planted = truth[list(whole.task_ids)].to_numpy()
    random = np.random.default_rng([seed, 5])
    found = []
    for _ in range(designs):
        pairs = regular_pairs(table.task_ids, degree, int(random.integers(2**31)))
        fitted = estimator.fit(table.answers(pairs))
        found.append((_rank(fitted.values, whole.values), _rank(fitted.values, planted)))
    own, with_truth = np.array(found).T
    varies = np.ptp(planted) > 0
    untied = [_rank(planted + 1e-9 * random.permutation(len(planted)), planted) for _ in range(50)]
    return Recovery(
        Estimate.from_draws(own.mean(), own, len(own)),
        Estimate.from_draws(with_truth.mean(), with_truth, len(own)) if varies else None,
        _rank_estimate(whole.values, planted, random) if varies else None,
        float(np.mean(untied)) if varies else np.nan,
    )


def _rank_estimate(x: np.ndarray, y: np.ndarray, random: np.random.Generator) -> Estimate:
    rows = random.integers(len(x), size=(1000, len(x)))
    return Estimate.from_draws(_rank(x, y), [_rank(x[each], y[each]) for each in rows], len(x))


def _rank(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's correlation; of what does not vary, nothing."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan
    return float(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])


def chance_of_a_claim(slopes: pd.DataFrame, controls: int) -> Estimate:
    """How often a random direction would be said to exceed the others: the false positives of the steering test.

    Every random direction in turn takes the place of the one tested, with `controls` of the others as its controls.
    """
    random = slopes.loc[slopes["is_random"].astype(bool), "slope"].dropna().to_numpy()
    claims = []
    for number, slope in enumerate(random):
        others = np.abs(np.delete(random, number))[:controls]
        claims.append((1 + (others >= abs(slope)).sum()) / (1 + len(others)) <= 0.05)
    return Estimate.of_share(claims)


def slope_gaps(organism: pd.DataFrame, untouched: pd.DataFrame) -> pd.DataFrame:
    """By how much more every direction moves an organism than the model that it was made of.

    Random directions are the same ones in both, so how their slopes differ is what training alone does to pushes at large:
    `p_value` is the share of them, with the tested one, that differ by as much. The interval of `gap` takes the two slopes for
    independent, which is wide where they come from the same pairs.
    """
    keys = ["direction", "layer", "mode"]
    both = organism.merge(untouched, on=[*keys, "is_random"], suffixes=("_organism", "_untouched"))
    gap = both["slope_organism"] - both["slope_untouched"]
    se = np.hypot(both["slope_se_organism"], both["slope_se_untouched"])
    found = both[keys].assign(
        is_random=both["is_random"].astype(bool),
        organism=both["slope_organism"],
        untouched=both["slope_untouched"],
        gap=gap,
        gap_low=gap - 1.96 * se,
        gap_high=gap + 1.96 * se,
        n=both[["n_organism", "n_untouched"]].min(axis=1),
    )
    for _, part in found.groupby(["layer", "mode"]):
        random = part.loc[part["is_random"], "gap"]
        for place, row in part[~part["is_random"]].iterrows():
            found.loc[place, ["random_low", "random_high", "n_random"]] = random.min(), random.max(), len(random)
            found.loc[place, "p_value"] = (1 + (random.abs() >= abs(row["gap"])).sum()) / (1 + len(random))
    return found


def is_used(gap: pd.Series) -> bool:
    """Whether a row of `slope_gaps` shows that an organism uses a direction: more than its controls, and above zero."""
    return bool(gap["p_value"] <= 0.05 and gap["gap_low"] > 0)


def _row(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
