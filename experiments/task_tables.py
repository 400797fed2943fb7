"""Tables of tasks that want a look: where order decides, where the preferred is refused, where saying and choosing part."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from elicit.pairs import order_averages
from elicit.reliability import Agreement, agreement
from elicit.reliability.dyads import dyadic_estimate
from experiments.hand_labels import TaskLabel
from experiments.side_by_side import LEVEL, on_one_scale, task_differences
from store import Estimate

_LEAST_PAIRS = 3


# ---- order flips


@dataclass(frozen=True, eq=False)
class OrderFlips:
    """Pairs that were asked in both orders, and in which the order decides.

    Attributes
    ----------
    pairs
        One row a pair: `task_1, task_2, when_first, when_second` (how far the answers lean to task 1 when it is shown first and
        second), `flips`, `expected`.
    tasks
        One row a task: `task_id, pairs, flips, rate, low, high, expected, p, p_corrected`.
    rate
        Share of pairs that flip; the interval allows for pairs that share a task.
    expected
        The share if position were worth what it is on average, and varied alike, in all pairs.
    unit
        Of `when_first` and `when_second`.
    positions
        By template, what being shown first is worth on average, in the unit. Pairs are averaged over templates.
    """

    pairs: pd.DataFrame
    tasks: pd.DataFrame
    rate: Estimate
    expected: float
    unit: str
    positions: Mapping[str, float]


def order_flips(comparisons: pd.DataFrame) -> OrderFlips | None:
    """Find the pairs in which what is shown first (or second) is chosen in both orders; None with fewer than three pairs.

    With c the content of a pair and p its position (see `elicit.pairs.order_averages`) the order decides where |p| > |c|. It is
    expected to, given c, as often as a normal p with the mean and spread of all pairs exceeds |c|. The flips of a task are
    held against the sum over its pairs (a Poisson binomial distribution, two-sided, twice the smaller tail), corrected by
    Benjamini and Hochberg over tasks.
    """
    exact = "logit" in comparisons and bool(np.isfinite(comparisons["logit"].dropna().astype(float)).any())
    # Sampled choices have no log-odds; the share of wins less one half has the same sign, which is what flips are about.
    table = comparisons if exact else comparisons.assign(logit=comparisons["p_first"].astype(float) - 0.5)
    pairs = order_averages(table)
    if len(pairs) < _LEAST_PAIRS:
        return None
    content, position = pairs["content"].to_numpy(), pairs["position"].to_numpy()
    flips = np.abs(position) > np.abs(content)
    mean, spread = position.mean(), position.std(ddof=1)
    if spread > 0:
        expected = stats.norm.sf(np.abs(content), mean, spread) + stats.norm.cdf(-np.abs(content), mean, spread)
    else:
        expected = (np.abs(mean) > np.abs(content)).astype(float)
    listed = pd.DataFrame(
        {
            "task_1": pairs["task_1"].astype(str),
            "task_2": pairs["task_2"].astype(str),
            "when_first": content + position,
            "when_second": content - position,
            "flips": flips,
            "expected": expected,
        }
    )
    share = dyadic_estimate(lambda rows: flips[rows].mean(-1), listed["task_1"], listed["task_2"], (0.0, 1.0))
    said = "logits" if exact else "share of wins less one half"
    return OrderFlips(listed, _flips_of_tasks(listed), share, float(expected.mean()), said, _positions(table))


def _positions(table: pd.DataFrame) -> dict[str, float]:
    """By template, mean position over its pairs in both orders; templates without such pairs are left out."""
    if "template" not in table:
        return {}
    means = {str(name): order_averages(part)["position"].mean() for name, part in table.groupby("template", sort=False)}
    return {name: float(mean) for name, mean in means.items() if np.isfinite(mean)}


def _flips_of_tasks(pairs: pd.DataFrame) -> pd.DataFrame:
    ends = pd.concat([pairs.rename(columns={name: "task_id"}) for name in ("task_1", "task_2")], ignore_index=True)
    rows, shares = [], {}  # exact intervals take a millisecond each, and few are different
    for task, part in ends.groupby("task_id"):
        n, observed = len(part), int(part["flips"].sum())
        if (observed, n) not in shares:
            shares[observed, n] = Estimate.of_share(part["flips"].tolist())
        share = shares[observed, n]
        chances = np.clip(part["expected"].to_numpy(), 0, 1)
        tails = (stats.poisson_binom.cdf(observed, chances), stats.poisson_binom.sf(observed - 1, chances))
        p = float(min(1.0, 2 * min(tails)))
        rows.append((task, n, observed, share.value, share.low, share.high, float(chances.mean()), p))
    columns = ["task_id", "pairs", "flips", "rate", "low", "high", "expected", "p"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(p_corrected=stats.false_discovery_control(table["p"]))


# ---- preferred, and yet refused


@dataclass(frozen=True, eq=False)
class PreferredRefused:
    """Preferred or not by refused or not.

    Attributes
    ----------
    counts
        Rows: preferred, not preferred; columns: refused, not refused.
    odds_ratio
        Of being refused, preferred against not: the conditional estimate with its exact interval. Not a number where a margin
        is zero.
    p
        Fisher's exact, two-sided.
    tasks
        One row a task: `task_id, preference, refusal, preferred, refused, sure`; sure where neither interval reaches over its
        threshold.
    """

    preference: str
    refusal: str
    preferred_above: float
    refused_above: float
    counts: pd.DataFrame
    odds_ratio: Estimate
    p: float
    tasks: pd.DataFrame


def preferred_refused(
    preference: TaskLabel, refusal: TaskLabel, *, preferred_above: float | None = None, refused_above: float = 0.5
) -> PreferredRefused | None:
    """Count the tasks that are preferred or not, and refused or not; None where no task has both labels.

    Parameters
    ----------
    preferred_above
        What preferred tasks are above; None is the median over these tasks.
    refused_above
        What refused tasks are above.
    """
    both = preference.table.join(refusal.table, how="inner", lsuffix="_1", rsuffix="_2")
    if both.empty:
        return None
    threshold = float(both["value_1"].median()) if preferred_above is None else preferred_above
    preferred, refused = both["value_1"] > threshold, both["value_2"] > refused_above
    sure = pd.Series(True, index=both.index)
    for number, edge in ((1, threshold), (2, refused_above)):
        sure &= (both[f"low_{number}"] > edge) | (both[f"high_{number}"] < edge)  # false without an interval
    counts = np.array([[int((row & column).sum()) for column in (refused, ~refused)] for row in (preferred, ~preferred)])
    ratio, p = Estimate.unknown(len(both)), 1.0
    if counts.sum(axis=0).all() and counts.sum(axis=1).all():
        found = stats.contingency.odds_ratio(counts)
        ends = found.confidence_interval(0.95)
        ratio = Estimate(float(found.statistic), float(ends.low), float(ends.high), np.nan, len(both))
        _, p = (float(each) for each in tuple(stats.fisher_exact(counts)))
    tasks = pd.DataFrame(
        {
            "task_id": both.index,
            "preference": both["value_1"].to_numpy(),
            "refusal": both["value_2"].to_numpy(),
            "preferred": preferred.to_numpy(),
            "refused": refused.to_numpy(),
            "sure": sure.to_numpy(),
        }
    )
    return PreferredRefused(
        preference.name,
        refusal.name,
        threshold,
        refused_above,
        pd.DataFrame(counts, index=["preferred", "not preferred"], columns=["refused", "not refused"]),
        ratio,
        p,
        tasks,
    )


# ---- saying and choosing


@dataclass(frozen=True, eq=False)
class SaidAndChosen:
    """Self-report against choice, both standardised over the tasks that have both.

    Attributes
    ----------
    tasks
        One row a task: `task_id, chosen, said` (standardised), `difference` (said minus chosen), `se, low, high, p,
        p_corrected` (missing without errors), `rank_difference` (of shares of tasks below, from -1 to 1), `apart`: told from
        zero after correction.
    agreement
        Correlations of the two, with intervals by bootstrap over tasks.
    """

    choice: str
    report: str
    tasks: pd.DataFrame
    agreement: Agreement

    @property
    def tested(self) -> bool:
        """Whether differences have errors."""
        return bool(self.tasks["p"].notna().any())


def said_and_chosen(choice: TaskLabel, report: TaskLabel, *, seed: int = 0) -> SaidAndChosen:
    """Hold what is said of every task against what is chosen.

    Raises
    ------
    ValueError
        See `experiments.side_by_side.on_one_scale`.
    """
    names = (choice.name, report.name)
    tables = {label.name: label.table.rename_axis("task_id").reset_index() for label in (choice, report)}
    scaled = on_one_scale(tables, "standardised", "standard deviations over tasks")
    found = task_differences(scaled)
    ranks = scaled.values.rank(pct=True)
    tasks = pd.DataFrame(
        {
            "task_id": scaled.values.index.astype(str),
            "chosen": scaled.values[names[0]].to_numpy(),
            "said": scaled.values[names[1]].to_numpy(),
            **{column: found[column].to_numpy() for column in ("difference", "se", "low", "high", "p", "p_corrected")},
            "rank_difference": (ranks[names[1]] - ranks[names[0]]).to_numpy(),
        }
    )
    return SaidAndChosen(*names, tasks.assign(apart=tasks["p_corrected"] <= LEVEL), agreement(*tables.values(), seed=seed))


# ---- ends


def top_and_bottom(label: TaskLabel, n: int) -> pd.DataFrame:
    """The `n` tasks with the greatest values and the `n` with the least: `end, task_id, value, low, high`."""
    ordered = label.table.sort_values("value", ascending=False, kind="stable")
    n = min(n, len(ordered) // 2)
    parts = [ordered.head(n).assign(end="top"), ordered.tail(n).iloc[::-1].assign(end="bottom")]
    table = pd.concat(parts).rename_axis("task_id").reset_index()
    return table[["end", "task_id", "value", "low", "high"]]
