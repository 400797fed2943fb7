"""Ranking methods on judges whose truth is known: which pairs each asks, and what ranking it makes of the answers.

Everything is arrays of places, so that thousands of fits take minutes. A comparison is one prompt: asking a pair exactly, in
both orders, costs two.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import special, stats

from elicit.adaptive import Brackets, Design, DOptimal, InformationGain, PercentileRule, Places, RandomMatching, State, noise_of
from elicit.designs import balanced_orders
from elicit.newton import PairLoss, logistic, squared

_PRIOR_SD = 2.0
_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class Judge:
    """Answers comparisons from a table of log-odds.

    Attributes
    ----------
    name
        What kind it is.
    truth
        Utility of every task: what a ranking is compared with.
    logits
        Log-odds of the task shown first, `(first, second)`; the diagonal is not used.
    """

    name: str
    truth: Float[np.ndarray, " tasks"]
    logits: Float[np.ndarray, "first second"]

    def choose(self, pairs: Places, random: np.random.Generator) -> Float[np.ndarray, " pairs"]:
        """One choice for each ordered pair: 1 where the first is chosen."""
        p = special.expit(self.logits[pairs[:, 0], pairs[:, 1]])
        return (random.random(len(pairs)) < p).astype(float)

    def content(self, pairs: Places) -> Float[np.ndarray, " pairs"]:
        """Order-averaged log-odds of the first of each pair."""
        first, second = pairs.T
        return (self.logits[first, second] - self.logits[second, first]) / 2


@dataclass(frozen=True)
class Simulation:
    """How a judge is simulated; all in logits.

    Attributes
    ----------
    name
        What kind it is.
    sd
        Standard deviation of the normal utilities.
    bias, bias_sd
        Position bias: mean, and spread over pairs.
    own_sd
        Spread over pairs of what a pair owes to itself alone, whichever way round it is shown.
    """

    name: str
    sd: float
    bias: float
    bias_sd: float = 0.0
    own_sd: float = 0.0

    def judge(self, n: int, random: np.random.Generator) -> Judge:
        """Draw a judge of `n` tasks."""
        truth = random.normal(size=n) * self.sd
        by_position, by_pair = (np.triu(random.normal(size=(n, n)), 1) * spread for spread in (self.bias_sd, self.own_sd))
        logits = truth[:, None] - truth[None, :] + self.bias + by_position + by_position.T + by_pair - by_pair.T
        return Judge(self.name, truth, logits)


class Method(ABC):
    """Chooses comparisons and makes a ranking, batch by batch.

    Parameters
    ----------
    judge
        What answers.
    exact
        Whether a pair is asked exactly in both orders (two comparisons) or one choice is drawn in one order (one).
    random
        For everything that is drawn.
    """

    def __init__(self, judge: Judge, exact: bool, random: np.random.Generator) -> None:
        self.judge, self.exact, self.random = judge, exact, random
        self.n = len(judge.truth)
        self.spent = 0
        self._ahead: dict[str, int] = {}

    @abstractmethod
    def step(self) -> bool:
        """Ask one more batch; False if there is nothing left to ask."""

    @abstractmethod
    def scores(self) -> Float[np.ndarray, " tasks"]:
        """What the tasks are ranked by."""

    def ask(self, pairs: Places) -> tuple[Places, Float[np.ndarray, " pairs"]]:
        """Answers to pairs, with the order in which each was shown: choices, or order-averaged log-odds."""
        if self.exact:
            self.spent += 2 * len(pairs)
            return pairs, self.judge.content(pairs)
        self.spent += len(pairs)
        ordered = balanced_orders([(str(one), str(other)) for one, other in pairs.tolist()], self._ahead)
        for one, other in ordered:
            self._ahead[one] = self._ahead.get(one, 0) + 1
            self._ahead[other] = self._ahead.get(other, 0) - 1
        shown = np.array(ordered, dtype=int)
        return shown, self.judge.choose(shown, self.random)


class Designed(Method):
    """Pairs by a design, utilities by the default estimator of the kind of answer."""

    def __init__(self, judge: Judge, exact: bool, random: np.random.Generator, design: Design) -> None:
        super().__init__(judge, exact, random)
        self.design = design
        self.shown: list[Places] = []
        self.answers: list[np.ndarray] = []
        self.met = np.eye(self.n, dtype=bool)
        self.parameters = np.zeros(self.n + (not exact))

    def step(self) -> bool:
        """See `Method`; a batch is half as many pairs as tasks at first, and later as many."""
        size = self.n // 2 if sum(map(len, self.shown)) < 4 * self.n else self.n
        pairs = self.design.propose(self._state(), size, self.random)
        if not len(pairs):
            return False
        self.met[pairs[:, 0], pairs[:, 1]] = self.met[pairs[:, 1], pairs[:, 0]] = True
        shown, answers = self.ask(pairs)
        self.shown.append(shown)
        self.answers.append(answers)
        self._fit()
        return True

    def scores(self) -> Float[np.ndarray, " tasks"]:
        """Utilities."""
        return self.parameters[: self.n]

    def _fit(self) -> None:
        ends, answers = np.concatenate(self.shown).T, np.concatenate(self.answers)
        loss = PairLoss.of(
            (ends[0], ends[1]),
            answers,
            self.n,
            cell_loss=squared if self.exact else logistic,
            precision=_TOLERANCE if self.exact else 1 / _PRIOR_SD**2,
            position=not self.exact,
        )
        self.parameters = loss.minimise(np.ones((len(answers), 1)), self.parameters, _TOLERANCE)[0][:, 0]

    def _state(self) -> State:
        means, n = self.scores(), self.n
        if not self.shown:
            return State(means, self.met, np.eye(n))
        first, second = np.concatenate(self.shown).T
        p = special.expit(means[first] - means[second])
        weight = np.ones(len(first)) if self.exact else p * (1 - p)
        return State.of((first, second), weight, means, self.met, self._noise() if self.exact else None)

    def _noise(self) -> float:
        """Of exact answers, from the residuals of the fit."""
        (first, second), answers = np.concatenate(self.shown).T, np.concatenate(self.answers)
        left = answers - (self.parameters[first] - self.parameters[second])
        freedom = len(answers) - self.n + 1
        return noise_of(float(np.sqrt(left @ left / freedom)) if freedom > 0 else None, answers)


class Elo(Method):
    """Random matchings, Elo ratings with K = 32."""

    def __init__(self, judge: Judge, exact: bool, random: np.random.Generator) -> None:
        super().__init__(judge, exact, random)
        self.ratings = np.zeros(self.n)

    def step(self) -> bool:
        """See `Method`."""
        shown, answers = self.ask(_matching(self.n, self.random))
        first, second = shown.T
        won = special.expit(answers) if self.exact else answers
        # No task is in two pairs of a matching, so all of it is one update.
        change = 32 * (won - 1 / (1 + 10 ** ((self.ratings[second] - self.ratings[first]) / 400)))
        self.ratings[first] += change
        self.ratings[second] -= change
        return True

    def scores(self) -> Float[np.ndarray, " tasks"]:
        """Ratings."""
        return self.ratings


class OpenSkill(Method):
    """Random matchings, OpenSkill's Plackett-Luce ratings."""

    def __init__(self, judge: Judge, exact: bool, random: np.random.Generator) -> None:
        from openskill.models import PlackettLuce

        super().__init__(judge, exact, random)
        self.model = PlackettLuce()
        self.players = [self.model.rating() for _ in range(self.n)]

    def step(self) -> bool:
        """See `Method`."""
        shown, answers = self.ask(_matching(self.n, self.random))
        won = answers > (0 if self.exact else 0.5)
        for (one, other), first_won in zip(shown.tolist(), won.tolist(), strict=True):
            ranks = [0.0, 1.0] if first_won else [1.0, 0.0]
            [[self.players[one]], [self.players[other]]] = self.model.rate([[self.players[one]], [self.players[other]]], ranks)
        return True

    def scores(self) -> Float[np.ndarray, " tasks"]:
        """Mean skill."""
        return np.array([player.mu for player in self.players])


class Quicksort(Method):
    """Quicksort again and again; tasks are ranked by their mean rank over the sorts, an unfinished one by its brackets."""

    def __init__(self, judge: Judge, exact: bool, random: np.random.Generator) -> None:
        super().__init__(judge, exact, random)
        self.total, self.sorts = np.zeros(self.n), 0
        self.segments = [random.permutation(self.n)]

    def step(self) -> bool:
        """See `Method`: every segment is split by one pivot."""
        open_ = [segment for segment in self.segments if len(segment) > 1]
        if not open_:
            self.total += self._ranks()
            self.sorts += 1
            self.segments = open_ = [self.random.permutation(self.n)]
        pairs = np.concatenate([np.stack([segment[1:], np.full(len(segment) - 1, segment[0])], axis=1) for segment in open_])
        shown, answers = self.ask(pairs)
        chosen = answers > (0 if self.exact else 0.5)
        beats = np.where(shown[:, 0] == pairs[:, 0], chosen, ~chosen)
        above = dict(zip(pairs[:, 0].tolist(), beats.tolist(), strict=True))
        split: list[np.ndarray] = []
        for segment in self.segments:
            if len(segment) == 1:
                split.append(segment)
                continue
            up = np.array([above[task] for task in segment[1:].tolist()])
            split += [part for part in (segment[1:][~up], segment[:1], segment[1:][up]) if len(part)]
        self.segments = split
        return True

    def scores(self) -> Float[np.ndarray, " tasks"]:
        """Mean rank; the sort at work counts by how far it has come."""
        done = np.mean([len(segment) == 1 for segment in self.segments])
        return (self.total + done * self._ranks()) / max(self.sorts + done, 1e-9)

    def _ranks(self) -> Float[np.ndarray, " tasks"]:
        ranks, start = np.empty(self.n), 0
        for segment in self.segments:
            ranks[segment] = start + (len(segment) - 1) / 2
            start += len(segment)
        return ranks


def _designed(design: Design) -> Callable[[Judge, bool, np.random.Generator], Method]:
    return lambda judge, exact, random: Designed(judge, exact, random, design)


FAVOURITE = "information gain"
"""The rule that was made for ranks; all others are held against it."""
METHODS: Mapping[str, Callable[[Judge, bool, np.random.Generator], Method]] = {
    FAVOURITE: _designed(InformationGain()),
    "D-optimal": _designed(DOptimal()),
    "brackets": _designed(Brackets()),
    "percentile rule": _designed(PercentileRule()),
    "random": _designed(RandomMatching()),
    "quicksort": Quicksort,
    "Elo": Elo,
    "OpenSkill": OpenSkill,
}


@dataclass
class Path:
    """Kendall's tau with the truth, by comparisons asked per task."""

    per_task: list[float] = field(default_factory=list)
    tau: list[float] = field(default_factory=list)

    def at(self, per_task: float) -> float:
        """Tau after so many comparisons per task, linear between batches."""
        return float(np.interp(per_task, self.per_task, self.tau, right=self.tau[-1] if self.exhausted(per_task) else np.nan))

    def reaches(self, tau: float) -> float:
        """Comparisons per task after which tau is first reached, linear between batches; not a number if never."""
        reached = np.flatnonzero(np.asarray(self.tau) >= tau)
        if not len(reached):
            return float("nan")
        place = int(reached[0])
        if place == 0:
            return self.per_task[0]
        share = (tau - self.tau[place - 1]) / (self.tau[place] - self.tau[place - 1])
        return self.per_task[place - 1] + share * (self.per_task[place] - self.per_task[place - 1])

    def exhausted(self, per_task: float) -> bool:
        """Whether the method had asked all it could before."""
        return bool(self.per_task) and per_task > self.per_task[-1]


def follow(method: Method, budget: float, enough: float = 1.1) -> Path:
    """Run a method until its comparisons per task reach the budget, or tau is enough."""
    path = Path()
    for _ in _steps(method, budget):
        tau = kendall_tau(method.scores(), method.judge.truth)
        path.per_task.append(method.spent / method.n)
        path.tau.append(0.0 if np.isnan(tau) else tau)
        if tau >= enough:
            break
    return path


def kendall_tau(x: Float[np.ndarray, " tasks"], y: Float[np.ndarray, " tasks"]) -> float:
    """Kendall's tau-b; not a number where one of them is constant."""
    result: Any = stats.kendalltau(x, y)
    return float(result.statistic)


def _steps(method: Method, budget: float) -> Iterator[None]:
    while method.spent < budget * method.n and method.step():
        yield


def _matching(n: int, random: np.random.Generator) -> Int[np.ndarray, "pairs 2"]:
    return random.permutation(n)[: n - n % 2].reshape(-1, 2)
