"""Active learning: ask a batch, fit, choose the next batch, until the ranking is stable, sure enough, or paid for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special, stats

from elicit.adaptive import Design, DOptimal, Places, RandomMatching, State, noise_of
from elicit.comparisons import Comparisons
from elicit.designs import Pair, checked_tasks, regular_pairs
from elicit.estimators import Estimator, LeastSquares
from elicit.reliability import hold_out_accuracy
from elicit.utilities import Utilities

Ask = Callable[[Sequence[Pair]], pd.DataFrame]
"""Asks pairs, in whatever orders, and returns their comparisons (see `choice.comparisons`)."""

_LEAST_FREEDOM = 10


@dataclass(frozen=True)
class Stop:
    """When to stop; whichever comes first. Without any of them, when every pair was asked.

    Attributes
    ----------
    rank_correlation
        Spearman's between the utilities of two successive fits.
    se
        Mean standard error of the utilities, in logits, once ten degrees of freedom are left to judge it by.
    pairs
        Pairs asked in all, those held out included.
    """

    rank_correlation: float | None = 0.99
    se: float | None = None
    pairs: int | None = None

    def reason(self, row: dict[str, Any]) -> str | None:
        """Why to stop after a batch, or None."""
        if self.rank_correlation is not None and row["rank_correlation"] >= self.rank_correlation:
            return f"the ranking is stable (rank correlation {row['rank_correlation']:.3f} with the fit before)"
        if self.se is not None and row["mean_se"] <= self.se and row["freedom"] >= _LEAST_FREEDOM:
            return f"the target error is reached (mean standard error {row['mean_se']:.3f})"
        if self.pairs is not None and row["pairs"] >= self.pairs:
            return f"the budget of {self.pairs} pairs is spent"
        return None


@dataclass(frozen=True, eq=False)
class Learned:
    """What active learning found.

    Attributes
    ----------
    utilities
        Fitted to all pairs but those held out.
    history
        One row a batch: pairs asked, rank correlation with the fit before, mean standard error, hold-out accuracy and log
        loss.
    trajectory
        Utilities after every batch, `(batches, tasks)`, in the order of the tasks given; not a number without an answer.
    comparisons, held_out
        Answers fitted, and those to the pairs that were set aside at random.
    reason
        Why it stopped.
    """

    utilities: Utilities
    history: pd.DataFrame
    trajectory: Float[np.ndarray, "batches tasks"]
    comparisons: pd.DataFrame
    held_out: pd.DataFrame
    reason: str


def learn(
    ask: Ask,
    task_ids: Sequence[str],
    *,
    design: Design | None = None,
    estimator: Estimator | None = None,
    batch: int | None = None,
    stop: Stop = Stop(),
    hold_out: float = 0.1,
    seed: int = 0,
) -> Learned:
    """Ask pairs batch by batch.

    The first batch joins all tasks in a random circle. Every further one has `batch` pairs of the design and, beside them, a
    share of pairs drawn at random that are never fitted. A batch depends on the answers before it and the seed alone: with an
    `ask` that remembers, such as the runner with its log, the same call goes on where an interrupted one stopped.

    Parameters
    ----------
    ask
        From pairs to comparisons, each pair in both orders where answers are exact.
    design
        Rule for the next pairs. By default `DOptimal`, which does not look at exact answers, so that their intervals hold, and
        `RandomMatching` for the estimators of sampled ones: a rule that asks what looks close, as all others then do, gives
        intervals that are too narrow where preferences are weak.
    estimator
        By default LeastSquares, for exact answers; BradleyTerry for sampled ones.
    batch
        Pairs a batch; by default as many as there are tasks, so that each meets two others.
    stop
        When to stop.
    hold_out
        Share of the pairs of every batch that is set aside.

    Raises
    ------
    ValueError
        There are fewer than three tasks, one occurs twice, or the hold-out share is not between 0 and 1.
    ComparisonError
        No answer is usable.
    """
    n = checked_tasks(task_ids, least=3)
    if not 0 < hold_out < 1:
        raise ValueError(f"The hold-out share is {hold_out}; expected a number between 0 and 1.")
    estimator = estimator or LeastSquares(resamples=200, seed=seed)
    design = design or (DOptimal() if isinstance(estimator, LeastSquares) else RandomMatching())
    size = n if batch is None else batch
    if size < 1:
        raise ValueError(f"A batch of {size} pairs; expected at least 1.")
    place = {task: number for number, task in enumerate(task_ids)}
    met, aside = np.eye(n, dtype=bool), np.zeros((n, n), dtype=bool)
    answers: list[pd.DataFrame] = []
    held: list[pd.DataFrame] = []
    rows: list[dict[str, Any]] = []
    trajectory: list[np.ndarray] = []
    utilities: Utilities | None = None
    pairs, reason = np.empty((0, 2), dtype=int), None
    while reason is None:
        random = np.random.default_rng([seed, len(rows)])
        if utilities is None:
            pairs = np.array([[place[one], place[other]] for one, other in regular_pairs(task_ids, 2, seed)])
            _mark(met, pairs)
        left = (met.size - int(met.sum())) // 2
        kept_aside = _random_pairs(met, min(round(size * hold_out / (1 - hold_out)), int(hold_out * left)), random)
        _mark(met, kept_aside)
        _mark(aside, kept_aside)
        if utilities is not None:
            pairs = design.propose(_state(utilities, pd.concat(answers), met, place), size, random)
        if not len(pairs):
            reason = "every pair was asked"
            break
        _mark(met, pairs)
        chosen = np.concatenate([pairs, kept_aside]).tolist()
        both = ask([(str(task_ids[one]), str(task_ids[other])) for one, other in chosen])
        is_held = aside[both["first"].map(place), both["second"].map(place)]
        answers.append(both[~is_held])
        held.append(both[is_held])
        fitted = utilities = estimator.fit(pd.concat(answers, ignore_index=True), task_ids)
        trajectory.append(_aligned(fitted, task_ids))
        rows.append(_row(fitted, pd.concat(held, ignore_index=True), trajectory, met, seed))
        reason = stop.reason(rows[-1])
    if utilities is None:
        raise ValueError("There was no pair to ask.")
    return Learned(
        utilities,
        pd.DataFrame(rows),
        np.stack(trajectory),
        pd.concat(answers, ignore_index=True),
        pd.concat(held, ignore_index=True),
        reason or "",
    )


def _row(utilities: Utilities, held: pd.DataFrame, trajectory: list[np.ndarray], met: np.ndarray, seed: int) -> dict[str, Any]:
    before, now = (trajectory[-2] if len(trajectory) > 1 else np.full_like(trajectory[-1], np.nan)), trajectory[-1]
    known = np.isfinite(before) & np.isfinite(now)
    ranks = stats.rankdata(np.stack([before[known], now[known]]), axis=1)
    with np.errstate(invalid="ignore"):  # a fit in which all tasks are alike has no ranking
        rank_correlation = float(np.corrcoef(ranks)[0, 1]) if known.sum() > 2 else float("nan")
    report = utilities.report
    row: dict[str, Any] = {
        "batch": len(trajectory),
        "pairs": (int(met.sum()) - len(met)) // 2,
        "rank_correlation": rank_correlation,
        "mean_se": float(utilities.labels()["se"].mean()),
        "freedom": report.pairs - len(utilities.values) + report.components,
        "sd": float(utilities.values.std()),
    }
    try:
        score = hold_out_accuracy(utilities, held, seed=seed)
    except ValueError:  # nothing held out yet can be predicted
        return row
    for name, estimate in (("accuracy", score.accuracy), ("log_loss", score.log_loss)):
        row |= {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}
    return row | {"held_out_pairs": score.accuracy.n}


def _state(utilities: Utilities, answers: pd.DataFrame, met: np.ndarray, place: dict[str, int]) -> State:
    cells = Comparisons.of(answers)
    where = np.array([place[task] for task in cells.task_ids])
    first, second = where[cells.first], where[cells.second]
    means = np.nan_to_num(_aligned(utilities, list(place)))
    if cells.sampled:
        p = special.expit(means[first] - means[second])
        weight = cells.weight * p * (1 - p)
    else:  # a pair is one reading, in however many orders and templates
        weight = 1 / np.bincount(cells.pair)[cells.pair]
    noise = None if cells.sampled else noise_of(utilities.report.residual_sd, special.logit(cells.won))
    return State.of((first, second), weight, means, met, noise)


def _aligned(utilities: Utilities, task_ids: Sequence[str]) -> Float[np.ndarray, " tasks"]:
    values = dict(zip(utilities.task_ids, utilities.values, strict=True))
    return np.array([values.get(task, np.nan) for task in task_ids])


def _random_pairs(met: np.ndarray, count: int, random: np.random.Generator) -> Places:
    pairs = np.argwhere(np.triu(~met, 1))
    return pairs[random.permutation(len(pairs))[:count]]


def _mark(which: np.ndarray, pairs: Places) -> None:
    which[pairs[:, 0], pairs[:, 1]] = which[pairs[:, 1], pairs[:, 0]] = True
