"""Hard cycles: triads of tasks whose three majority winners go round in a circle, beside what noise and chance would give.

From a table of comparisons to one rate a reading (both orders pooled, one order alone). Every count is the trace of a cube of
a matrix over tasks, so that nothing runs over triads.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int
from scipy import special
from scipy.sparse import csr_matrix

from elicit.comparisons import ComparisonError, Comparisons
from elicit.estimators import BradleyTerry
from elicit.newton import PairLoss, squared
from elicit.reliability import drawing
from store.estimates import POWER_FACTOR, Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHANCE = 0.25
"""Share of triads that are cycles where every pair is decided by a fair coin (Kendall & Babington Smith 1940)."""
BOTH, COIN, LISTED = "both orders", "one order, by a coin", "one order, as listed"
_CHUNK_ELEMENTS = 10_000_000


@dataclass(frozen=True)
class CycleRate:
    """How often triads are hard cycles, for one reading of the answers.

    Attributes
    ----------
    orders
        Which presentations of a pair decide its winner.
    triads, decided, hard
        Triads all of whose pairs were asked; those of them without a tied or unanswered pair; those that are cycles.
    rate
        Hard cycles as a share of all triads; interval by bootstrap over tasks. Where there is no cycle the bootstrap sees no
        spread, and the upper end is the exact binomial one for as many triads as have no task in common.
    expected
        What independent answers around the fitted, transitive utilities would give: mean of the simulations, and where 95 %
        of them lie.
    chance
        What fair coins would give: a quarter of the decided triads.
    p
        Share of simulations at least as far out, on the nearer side, doubled.
    """

    orders: str
    triads: int
    decided: int
    hard: int
    rate: Estimate
    expected: Estimate
    chance: float
    p: float

    @property
    def of_decided(self) -> float:
        """Hard cycles as a share of the triads without a tie: a quarter by chance."""
        return self.hard / self.decided if self.decided else math.nan

    @property
    def smallest_excess(self) -> float:
        """Smallest distance from the expectation under noise that is found with 80 % power, by the spread of simulations."""
        return POWER_FACTOR * self.expected.se

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries and tables."""
        counts = {"orders": self.orders, "triads": self.triads, "decided": self.decided, "hard": self.hard}
        ranges = {"rate": self.rate, "expected": self.expected}
        spread = {
            f"{name}{end}": value
            for name, each in ranges.items()
            for end, value in (("", each.value), ("_low", each.low), ("_high", each.high))
        }
        return counts | spread | {"chance": self.chance, "p": self.p, "of_decided": self.of_decided}


@dataclass(frozen=True, eq=False)
class HardCycles:
    """Hard cycles with both orders pooled and with one order alone.

    Attributes
    ----------
    pooled
        Both presentations of every pair decide its winner together.
    one_order
        One presentation of every pair alone; None where no pair was shown in two orders.
    flips
        Share of the pairs decided in both orders whose winner is another one when the order changes; None likewise.
    tasks
        One row a task: `task_id, triads, decided, hard, rate`, of the triads that it is in, orders pooled.
    pairs
        One row a pair that was asked: `task_1, task_2` (sorted), `shown_first` and `shown_second` (probability or share of
        task 1, by where it is shown; missing without an answer), and `hard`, the cycles that the pair is in.
    """

    pooled: CycleRate
    one_order: CycleRate | None
    flips: Estimate | None
    tasks: pd.DataFrame
    pairs: pd.DataFrame

    @property
    def rates(self) -> list[CycleRate]:
        """The readings there are."""
        return [self.pooled, *([self.one_order] if self.one_order else [])]

    @property
    def table(self) -> pd.DataFrame:
        """One row a reading; rates are shares of all triads, `of_decided` that of the triads without a tie."""
        return pd.DataFrame([each.to_dict() for each in self.rates])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return {
            "pooled": self.pooled.to_dict(),
            "one_order": self.one_order.to_dict() if self.one_order else None,
            "flips": self.flips.to_dict() if self.flips else None,
        }

    def plot(self) -> "Figure":
        """Rate of every reading with its interval, over what noise would give; the dashed line is chance."""
        rates = self.rates
        figure, axes = drawing.new_axes(7.0, 1.7 + 0.6 * len(rates))
        # Half a triad stands for none, which a logarithmic axis cannot show.
        least = min(0.5 / each.triads for each in rates)

        def percent(*shares: float) -> list[float]:
            return [100 * max(share, least) for share in shares]

        for row, each in enumerate(rates):
            label = (lambda text: text) if row == 0 else (lambda _text: "_hidden")
            rows, (low, high) = [row - 0.32, row + 0.32], percent(each.expected.low, each.expected.high)
            axes.fill_betweenx(rows, low, high, color=drawing.GREY, alpha=0.35, linewidth=0, label=label("noise, 95 % of it"))
            axes.plot(percent(each.rate.low, each.rate.high), [row, row], color=drawing.BLUE, linewidth=2)
            axes.scatter(percent(each.rate.value), [row], color=drawing.BLUE, s=30, zorder=3, label=label("measured"))
            axes.plot(percent(each.chance) * 2, rows, color=drawing.ORANGE, linewidth=2, label=label("fair coins"))
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _place: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda _value, _place: "")
        axes.set(
            xlim=(10 ** math.floor(math.log10(axes.get_xlim()[0])), 100),
            yticks=range(len(rates)),
            yticklabels=[f"{each.orders}\n{each.hard:,} of {each.triads:,}" for each in rates],
            ylim=(len(rates) - 0.4, -0.6),
            xlabel="hard cycles, % of triads (log scale; line: 95 % interval over tasks)",
            title=f"Triads whose winners go round in a circle ({self.pooled.rate.n} tasks)",
        )
        figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
        return figure


def hard_cycles(
    comparisons: pd.DataFrame,
    *,
    one_order: Literal["coin", "listed"] = "coin",
    incomplete: Literal["leave", "read"] = "leave",
    simulations: int = 400,
    resamples: int = 500,
    seed: int = 0,
) -> HardCycles:
    """Count the triads whose three winners form a cycle, and what noise around a transitive fit would give.

    The winner of a pair is the task with the larger log-odds, or with more of the votes, over the presentations that are read.

    The expectation under noise comes from utilities fitted to the same presentations. Exact answers: least squares on the
    log-odds of pairs, and normal residuals of the spread that is left; such answers have no noise of their own, so what is
    asked is whether pairs depart from the utilities independently of each other. Sampled answers: Bradley-Terry with a position
    term, and as many binomial draws as there were answers. Both take the fitted utilities for the true ones.

    Parameters
    ----------
    comparisons
        From `choice.comparisons`, or columns `first, second, p_first` and, if there are any, `weight` (answers behind a
        share), `outcome` and `logit`. All pairs of the tasks, or at least some triads of pairs.
    one_order
        Which presentation stands alone. `coin`: drawn for each pair; `listed`: the one that is first in the table. Where the
        listing follows an order of the tasks, a bias for the first is itself transitive, and hides cycles.
    incomplete
        What becomes of a pair that was asked in two orders and has a usable answer in one. `leave`: it is undecided, like a
        tie; `read`: the one order decides.
    simulations, resamples
        Of the expectation under noise, and of the bootstrap over tasks.
    seed
        Of the coin and of both.

    Returns
    -------
    Rates as shares from 0 to 1.

    Raises
    ------
    ComparisonError
        See `Comparisons.of`; or no three pairs that were asked form a triad; or some log-odds are not finite.
    ValueError
        A number of draws is below 2, or `one_order` or `incomplete` is not what it can be.

    References
    ----------
    Kendall, M. G. & Babington Smith, B. (1940). On the method of paired comparisons. Biometrika 31.
    """
    for name, given, known in (("one_order", one_order, ("coin", "listed")), ("incomplete", incomplete, ("leave", "read"))):
        if given not in known:
            raise ValueError(f"{name} is {given!r}; expected {known[0]!r} or {known[1]!r}.")
    for name, number in (("simulations", simulations), ("resamples", resamples)):
        if number < 2:
            raise ValueError(f"{name} is {number}; expected at least 2.")
    shown = _Shown.of(comparisons, incomplete == "read")
    pairs = shown.either(shown.asked)
    if not _cubes(pairs)[0]:
        raise ComparisonError(
            f"No three of the {round(float(pairs.sum()) / 2)} pairs form a triad; hard cycles need pairs that do, such as "
            "those of elicit.all_pairs."
        )
    n = len(shown.task_ids)
    counts = np.random.default_rng([seed, 0]).multinomial(n, np.full(n, 1 / n), size=resamples)
    pooled = _rate(BOTH, shown, shown.asked, counts, simulations, seed)
    alone = flips = None
    if (shown.asked & shown.asked.T).any():
        by_coin = one_order == "coin"
        kept = shown.by_coin(seed) if by_coin else shown.listed
        alone = _rate(COIN if by_coin else LISTED, shown, kept, counts, simulations, seed)
        flips = _flips(shown, counts)
    return HardCycles(pooled, alone, flips, _of_tasks(shown), _of_pairs(shown))


@dataclass(frozen=True, eq=False)
class _Shown:
    """What was shown, and what came of it: matrices over tasks, the one shown first by the one shown second.

    `margin` is the log-odds of the first (exact answers), or its votes less the other's; `share` its probability or share.
    """

    task_ids: tuple[str, ...]
    asked: Bool[np.ndarray, "tasks tasks"]
    answered: Bool[np.ndarray, "tasks tasks"]
    listed: Bool[np.ndarray, "tasks tasks"]
    margin: Float[np.ndarray, "tasks tasks"]
    share: Float[np.ndarray, "tasks tasks"]
    votes: Float[np.ndarray, "tasks tasks"]
    exact: bool
    read_incomplete: bool

    @classmethod
    def of(cls, table: pd.DataFrame, read_incomplete: bool) -> Self:
        """Check the table and lay it out."""
        cells = Comparisons.of(table)
        ids = sorted({*table["first"], *table["second"]})
        place, n = pd.Index(ids), len(ids)
        shown = tuple(place.get_indexer(pd.Index(table[end])) for end in ("first", "second"))
        asked, answered, listed = (np.zeros((n, n), dtype=bool) for _ in range(3))
        asked[shown] = True
        pair = np.minimum(*shown) * n + np.maximum(*shown)
        once = ~pd.Series(pair).duplicated().to_numpy()
        listed[shown[0][once], shown[1][once]] = True
        to_all = place.get_indexer(pd.Index(cells.task_ids))
        at = (to_all[cells.first], to_all[cells.second])
        answered[at] = True
        margin, share, votes = np.zeros((n, n)), np.full((n, n), np.nan), np.zeros((n, n))
        share[at], votes[at] = cells.won, cells.weight
        wins = cells.weight * cells.won
        has_logits = "logit" in table and bool(table["logit"].notna().any())
        exact = has_logits or not np.allclose(2 * wins, np.round(2 * wins), atol=1e-6)
        margin[at] = _log_odds(table, cells, has_logits) if exact else 2 * wins - cells.weight
        return cls(tuple(map(str, ids)), asked, answered, listed, margin, share, votes, exact, read_incomplete)

    @staticmethod
    def either(matrix: np.ndarray) -> Float[np.ndarray, "1 tasks tasks"]:
        """Pairs marked in at least one order, as a symmetric matrix of a stack of one."""
        return (matrix | matrix.T)[None].astype(np.float32)

    def by_coin(self, seed: int) -> Bool[np.ndarray, "tasks tasks"]:
        """One presentation of every pair, drawn where there are two."""
        heads = np.triu(np.random.default_rng([seed, 1]).random(self.asked.shape) < 0.5, 1)
        drawn = heads | np.tril(~heads.T, -1)
        return self.asked & (drawn | ~self.asked.T)

    def usable(self, kept: Bool[np.ndarray, "tasks tasks"]) -> Bool[np.ndarray, "tasks tasks"]:
        """Presentations among those kept that can be read."""
        found = kept & self.answered
        missing = kept & ~self.answered
        return found if self.read_incomplete else found & ~missing.T

    def net(self, kept: Bool[np.ndarray, "tasks tasks"]) -> Float[np.ndarray, "tasks tasks"]:
        """By how much a task leads another over the presentations that are kept; 0 where the pair is undecided."""
        margin = np.where(self.usable(kept), self.margin, 0.0)
        return margin - margin.T


def _log_odds(table: pd.DataFrame, cells: Comparisons, has_logits: bool) -> Float[np.ndarray, " cells"]:
    """Mean log-odds of the first in every cell, from the column `logit`, or from the probabilities where there is none."""
    if has_logits:
        usable = table[table["outcome"] == "chose"] if "outcome" in table else table
        by_cell = usable.groupby(["first", "second"])["logit"].mean()
        ids = np.asarray(cells.task_ids, dtype=object)
        found = by_cell.reindex(pd.MultiIndex.from_arrays([ids[cells.first], ids[cells.second]])).to_numpy(dtype=float)
    else:
        found = special.logit(cells.won)
    wrong = np.flatnonzero(~np.isfinite(found))
    if len(wrong):
        pair = tuple(cells.task_ids[int(end[wrong[0]])] for end in (cells.first, cells.second))
        raise ComparisonError(
            f"The log-odds of the pair {pair} are {found[wrong[0]]}; expected a finite number. Counts of sampled answers "
            "belong in p_first (a share) and weight (their number)."
        )
    return found


def _rate(
    orders: str,
    shown: _Shown,
    kept: Bool[np.ndarray, "tasks tasks"],
    counts: Int[np.ndarray, "resamples tasks"],
    simulations: int,
    seed: int,
) -> CycleRate:
    beats = shown.net(kept) > 0
    triads, decided, hard = _census(beats, shown.either(kept)[0])
    drawn = _over_tasks(beats, shown.either(kept)[0], counts)
    rate = _with_interval(hard / triads, drawn, len(shown.task_ids))
    simulated = _simulated(shown, kept, simulations, seed) / triads
    expected = Estimate.from_draws(float(simulated.mean()), simulated, len(shown.task_ids))
    more, fewer = (float((1 + each.sum()) / (1 + simulations)) for each in (simulated >= rate.value, simulated <= rate.value))
    p = min(1.0, 2 * min(more, fewer)) if np.isfinite(simulated).all() else math.nan
    return CycleRate(orders, triads, decided, hard, rate, expected, CHANCE * decided / triads, p)


def _census(beats: Bool[np.ndarray, "tasks tasks"], asked: Float[np.ndarray, "tasks tasks"]) -> tuple[int, int, int]:
    """Triads, those without a tie, and those that are cycles."""
    stack = np.stack([asked, beats | beats.T, beats]).astype(np.float32)
    triads, decided, hard = _cubes(stack)
    return round(triads / 6), round(decided / 6), round(hard / 3)


def _cubes(matrices: Float[np.ndarray, "stack tasks tasks"]) -> Float[np.ndarray, " stack"]:
    """Trace of the cube of every matrix: closed walks of three steps. Exact in float32 for entries that are small integers."""
    squares = matrices @ matrices
    return np.einsum("bij,bji->b", squares, matrices, dtype=np.float64)


def _over_tasks(
    beats: Bool[np.ndarray, "tasks tasks"], asked: Float[np.ndarray, "tasks tasks"], counts: Int[np.ndarray, "resamples tasks"]
) -> Float[np.ndarray, " resamples"]:
    """Rate in every resample of tasks; a triad counts as often as its three tasks were drawn together."""
    found = np.empty(len(counts))
    size = max(1, _CHUNK_ELEMENTS // beats.size)
    for begin in range(0, len(counts), size):
        weights = counts[begin : begin + size, :, None].astype(np.float32)
        triads = _cubes(weights * asked)
        with np.errstate(invalid="ignore", divide="ignore"):
            found[begin : begin + size] = 2 * _cubes(weights * beats.astype(np.float32)) / triads
    return found


def _with_interval(value: float, draws: Float[np.ndarray, " resamples"], n: int) -> Estimate:
    estimate = Estimate.from_draws(value, draws, n)
    if value > 0:
        return estimate
    apart = max(1, n // 3)  # triads that share no task are independent
    return Estimate(0.0, 0.0, 1 - 0.025 ** (1 / apart), math.nan, n)


def _simulated(
    shown: _Shown, kept: Bool[np.ndarray, "tasks tasks"], simulations: int, seed: int
) -> Float[np.ndarray, " simulations"]:
    """Hard cycles in every simulation of independent answers around the fitted utilities."""
    random = np.random.default_rng([seed, 2])
    noise = _exact_noise if shown.exact else _sampled_noise
    ends, draw = noise(shown, kept, random)
    n, size = len(shown.task_ids), max(1, _CHUNK_ELEMENTS // shown.asked.size)
    found = np.empty(simulations)
    for begin in range(0, simulations, size):
        margins = draw(min(size, simulations - begin))
        net = np.zeros((len(margins), n, n), dtype=np.float32)
        net[:, ends[0], ends[1]] = margins
        net -= net.transpose(0, 2, 1)
        found[begin : begin + len(margins)] = _cubes((net > 0).astype(np.float32)) / 3
        if np.isnan(margins).any():
            found[begin : begin + len(margins)] = math.nan
    return found


def _exact_noise(shown: _Shown, kept: Bool[np.ndarray, "tasks tasks"], random: np.random.Generator) -> tuple[Any, Any]:
    """Pairs, and a function that draws their log-odds: least squares, and normal residuals of what it leaves."""
    usable = shown.usable(kept)
    twice = usable & usable.T
    ends = np.nonzero(np.where(twice, np.triu(usable), usable))
    content = np.where(twice, (shown.margin - shown.margin.T) / 2, shown.margin)[ends]
    once = (~twice[ends]).astype(float)  # what being shown first is worth cancels where both orders are read
    n, pairs = len(shown.task_ids), np.arange(len(content))
    rows = np.concatenate([pairs, pairs, pairs])
    columns = np.concatenate([*ends, np.full(len(pairs), n)])
    entries = np.concatenate([np.ones(len(pairs)), -np.ones(len(pairs)), once])
    design = csr_matrix((entries, (rows, columns)), shape=(len(pairs), n + 1))
    loss = PairLoss(design, content, squared, np.zeros(n + 1), n)
    fitted = loss.minimise(np.ones((len(pairs), 1)), np.zeros(n + 1), 1e-11)[0][:, 0]
    centre = design @ fitted
    freedom = len(pairs) - int(np.linalg.matrix_rank(loss.dense_hessian(np.ones(len(pairs)))))
    spread = math.sqrt(float((content - centre) @ (content - centre)) / freedom) if freedom > 0 else math.nan
    return ends, lambda size: centre + spread * random.normal(size=(size, len(centre)))


def _sampled_noise(shown: _Shown, kept: Bool[np.ndarray, "tasks tasks"], random: np.random.Generator) -> tuple[Any, Any]:
    """Presentations, and a function that draws votes for the first less those for the second: Bradley-Terry, and binomials."""
    ends = np.nonzero(shown.usable(kept))
    ids = np.asarray(shown.task_ids, dtype=object)
    votes = shown.votes[ends]
    cells = {"first": ids[ends[0]], "second": ids[ends[1]], "p_first": shown.share[ends], "weight": votes}
    fit = BradleyTerry(errors="none").fit(pd.DataFrame(cells))
    p = fit.probability(fit.eta(*(pd.Series(ids[end]) for end in ends), with_position=True))
    n = np.round(votes).astype(int)
    return ends, lambda size: 2.0 * random.binomial(n, p, size=(size, len(n))) - n


def _flips(shown: _Shown, counts: Int[np.ndarray, "resamples tasks"]) -> Estimate:
    """Share of pairs decided in both orders whose winner changes; margins of a pair have one sign where it does."""
    signs = np.triu(np.sign(shown.margin) * np.sign(shown.margin.T), 1)
    decided, changed = (signs != 0).astype(float), (signs > 0).astype(float)
    weights = counts.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        draws = ((weights @ changed) * weights).sum(axis=1) / ((weights @ decided) * weights).sum(axis=1)
    n = int(decided.sum())
    return Estimate.from_draws(float(changed.sum() / n) if n else math.nan, draws, n)


def _of_tasks(shown: _Shown) -> pd.DataFrame:
    beats = shown.net(shown.asked) > 0
    stack = np.stack([shown.either(shown.asked)[0], beats | beats.T, beats]).astype(np.float32)
    triads, decided, hard = np.einsum("bij,bji->bi", stack @ stack, stack, dtype=np.float64) / np.array([[2], [2], [1]])
    with np.errstate(invalid="ignore"):
        columns = {
            "triads": triads.astype(int),
            "decided": decided.astype(int),
            "hard": hard.astype(int),
            "rate": hard / triads,
        }
    return pd.DataFrame({"task_id": shown.task_ids} | columns)


def _of_pairs(shown: _Shown) -> pd.DataFrame:
    beats = (shown.net(shown.asked) > 0).astype(np.float32)
    through = beats.T * (beats @ beats)  # of j beaten by i: tasks k with j over k over i
    ends = np.nonzero(np.triu(shown.either(shown.asked)[0]))
    ids = np.asarray(shown.task_ids, dtype=object)
    return pd.DataFrame(
        {
            "task_1": ids[ends[0]],
            "task_2": ids[ends[1]],
            "shown_first": shown.share[ends],
            "shown_second": 1 - shown.share.T[ends],
            "hard": (through + through.T)[ends].astype(int),
        }
    )
