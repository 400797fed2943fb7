"""Comparisons as arrays: a table of answers checked, refusals left out, and equal cells added up, ready to be fitted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

_CHOSE = "chose"


class ComparisonError(ValueError):
    """Comparisons that cannot be fitted; the message names the row, what was expected, and the way out."""


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Every ordered pair that was answered, with its share of wins.

    All likelihoods here are linear in the shares, so that adding up the answers to one ordered pair loses nothing.

    Attributes
    ----------
    task_ids
        The tasks that have answers, sorted.
    first, second
        Places in `task_ids` of the task shown first and second, one entry a cell (an ordered pair).
    p_first, p_tie
        Mean probability that the first is chosen, and that neither is.
    weight
        Sum of the weights of the cell's answers (their number, unless the table has a column `weight`).
    pair
        Number of the unordered pair that the cell belongs to: the unit of the bootstrap.
    answers, outcomes
        Rows of the table, and how many of them have each outcome.
    unanswered
        Tasks that were asked about, or named, and have no usable answer.
    sampled
        Whether every answer is a win, a loss or a tie, as sampled ones are, and no probability.
    """

    task_ids: tuple[str, ...]
    first: Int[np.ndarray, " cells"]
    second: Int[np.ndarray, " cells"]
    p_first: Float[np.ndarray, " cells"]
    p_tie: Float[np.ndarray, " cells"]
    weight: Float[np.ndarray, " cells"]
    pair: Int[np.ndarray, " cells"]
    answers: int
    outcomes: dict[str, int]
    unanswered: tuple[str, ...]
    sampled: bool

    @classmethod
    def of(cls, table: pd.DataFrame, task_ids: Sequence[str] | None = None) -> Self:
        """Check a table of answers and add it up.

        Parameters
        ----------
        table
            Columns `first`, `second`, `p_first`; and, if there are any, `p_tie`, `weight`, and `outcome`: rows whose outcome
            is not `chose` are counted and left out.
        task_ids
            Every task there is. Another one in the table is then an error, and those without an answer are named.

        Raises
        ------
        ComparisonError
            A column is missing, there is no usable row, a task meets itself or is unknown, or a label or weight is not a
            number in its range.
        """
        missing = [name for name in ("first", "second", "p_first") if name not in table]
        if missing:
            raise ComparisonError(f"The comparisons lack the columns {missing}; expected first, second and p_first.")
        outcomes = table["outcome"].value_counts().to_dict() if "outcome" in table else {_CHOSE: len(table)}
        usable = table[table["outcome"] == _CHOSE] if "outcome" in table else table
        if usable.empty:
            raise ComparisonError(
                f"None of {len(table)} answers is a choice ({outcomes}), so there is nothing to fit. "
                "`penchant preflight` shows which templates this model can answer."
            )
        p_first = _numbers(usable, "p_first", 0, 1)
        p_tie = _numbers(usable, "p_tie", 0, 1) if "p_tie" in usable else np.zeros(len(usable))
        weight = _numbers(usable, "weight", 0, np.inf) if "weight" in usable else np.ones(len(usable))
        over = np.flatnonzero(p_first + p_tie > 1 + 1e-9)
        if len(over):
            raise ComparisonError(f"{_row(usable, over[0])}: p_first and p_tie add up to more than one.")
        names, first, second = _codes(usable, task_ids)
        itself = np.flatnonzero(first == second)
        if len(itself):
            raise ComparisonError(f"{_row(usable, itself[0])}: a task cannot be compared with itself.")
        counted = weight > 0
        met = np.zeros(len(names), dtype=bool)
        met[first[counted]] = met[second[counted]] = True
        if not met.any():
            raise ComparisonError("All comparisons have weight 0, so there is nothing to fit.")
        place = np.cumsum(met) - 1
        first, second = place[first[counted]], place[second[counted]]
        kept = [str(name) for name in names[met]]
        everyone = names if task_ids is not None else pd.concat([table["first"], table["second"]]).unique()
        unanswered = {str(name) for name in everyone}.difference(kept) if len(everyone) > len(kept) else set()
        return cls._added_up(
            tuple(kept),
            (first, second),
            (p_first[counted], p_tie[counted], weight[counted]),
            {
                "answers": len(table),
                "outcomes": {str(name): int(count) for name, count in outcomes.items()},
                "unanswered": tuple(sorted(unanswered)),
            },
        )

    @classmethod
    def _added_up(cls, task_ids: tuple[str, ...], ends: Any, values: Any, counts: dict[str, Any]) -> Self:
        (first, second), (p_first, p_tie, weight), n = ends, values, len(task_ids)
        won = p_first + p_tie / 2
        sampled = bool(np.all((won == 0) | (won == 1) | (p_tie == 1) | ((won == 0.5) & (p_tie == 0))))
        cell, ordered = pd.factorize(first.astype(np.int64) * n + second, sort=True)
        total = np.bincount(cell, weight)
        first, second = ordered // n, ordered % n
        pair, _ = pd.factorize(np.minimum(first, second) * n + np.maximum(first, second))
        mean_first, mean_tie = (np.bincount(cell, weight * each) / total for each in (p_first, p_tie))
        return cls(task_ids, first, second, mean_first, mean_tie, total, pair, sampled=sampled, **counts)

    @property
    def n_pairs(self) -> int:
        """Number of unordered pairs."""
        return int(self.pair.max()) + 1

    @property
    def won(self) -> Float[np.ndarray, " cells"]:
        """Share won by the task shown first, a tie being half a win to each."""
        return self.p_first + self.p_tie / 2

    def components(self) -> Int[np.ndarray, " tasks"]:
        """Number of the connected component of every task: utilities can be compared within one only."""
        return self._components(np.ones(len(self.first), dtype=bool), directed=False)

    def has_maximum(self, weight: Float[np.ndarray, " cells"] | None = None) -> bool:
        """Whether every component is finite without a prior: no group of tasks won all it had against the rest (Ford 1957).

        Parameters
        ----------
        weight
            Other weights of the cells, such as those of a resample; cells with weight 0 do not count.
        """
        counted = (self.weight if weight is None else weight) > 0
        beaten = np.concatenate([counted & (self.won < 1), counted & (self.won > 0)])
        strong = self._components(beaten, directed=True, both=True)
        return int(strong.max()) == int(self._components(counted, directed=False).max())

    def per_task(self) -> tuple[Float[np.ndarray, " tasks"], Float[np.ndarray, " tasks"]]:
        """Weight of the answers about every task, and the part of it that the task won."""
        n = len(self.task_ids)
        met = np.bincount(self.first, self.weight, n) + np.bincount(self.second, self.weight, n)
        won = self.weight * self.won
        return met, np.bincount(self.first, won, n) + np.bincount(self.second, self.weight - won, n)

    def _components(self, which: np.ndarray, directed: bool, both: bool = False) -> Int[np.ndarray, " tasks"]:
        n = len(self.task_ids)
        start, end = (self.first, self.second)
        if both:
            start, end = np.concatenate([start, end]), np.concatenate([end, start])
        graph = coo_matrix((np.ones(int(which.sum())), (start[which], end[which])), shape=(n, n))
        return connected_components(graph, directed=directed, connection="strong")[1]


def _numbers(table: pd.DataFrame, column: str, least: float, greatest: float) -> Float[np.ndarray, " rows"]:
    try:
        values = table[column].to_numpy(dtype=float)
    except (TypeError, ValueError) as error:
        raise ComparisonError(f"Column {column} is not numbers: {error}.") from error
    wrong = np.flatnonzero(~(np.isfinite(values) & (values >= least) & (values <= greatest)))
    if len(wrong):
        reach = f"from {least:g} to {greatest:g}" if np.isfinite(greatest) else f"of at least {least:g}"
        raise ComparisonError(
            f"{_row(table, wrong[0])}: {column} is {values[wrong[0]]}; expected a finite number {reach} ({len(wrong)} such "
            "rows). An answer that is no choice belongs in the column outcome, which leaves it out."
        )
    return values


def _codes(
    table: pd.DataFrame, task_ids: Sequence[str] | None
) -> tuple[np.ndarray, Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    half = len(table)
    ends = pd.concat([table["first"], table["second"]], ignore_index=True)
    if ends.isna().any():
        raise ComparisonError(f"{_row(table, int(ends.isna().to_numpy().argmax()) % half)}: a task id is missing.")
    if task_ids is None:
        codes, names = pd.factorize(ends, sort=True)
        return np.asarray(names, dtype=object), codes[:half], codes[half:]
    names = pd.Index(task_ids)
    if names.has_duplicates:
        raise ComparisonError(f"The task id {names[names.duplicated()][0]!r} is given twice; give each task once.")
    codes = names.get_indexer(pd.Index(ends))
    if (codes < 0).any():
        place = int((codes < 0).argmax())
        raise ComparisonError(f"{_row(table, place % half)}: {ends[place]!r} is not among the {len(names)} tasks given.")
    return np.asarray(names, dtype=object), codes[:half], codes[half:]


def _row(table: pd.DataFrame, place: int) -> str:
    row = table.iloc[place]
    return f"Row {table.index[place]} ({row['first']!r} against {row['second']!r})"
