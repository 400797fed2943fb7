"""Prompt search: prompts are rewritten generation by generation, and the rewritings that are best in two scores are parents.

The search knows neither models nor tasks. It is given a function that rewrites and one that scores, and calls each once a
generation for all its lines, so that several replicates, and the controls beside them, share their batches.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from elicit.pareto import best_first, finite, front, hypervolume

Rule = Literal["front", "starts", "any"]
"""Where parents come from: the best so far, the starting prompts, or any prompt that has scores."""
Point = tuple[float, float]
NO_POINT: Point = (float("nan"), float("nan"))
REPEATED, NO_SCORE = "repeated", "no score"
_PATIENCE = 10
"""A line gives up after so many rewritings for each that it may have scored."""


@dataclass(frozen=True)
class Proposal:
    """One rewriting that is to be made: of the text of a candidate, by an operator, for the nth time.

    Attributes
    ----------
    text, start
        The text to rewrite, and the starting prompt that it comes from.
    replicate
        Which replicate of the search asks.
    """

    text: str
    start: str
    operator: str
    draw: int
    replicate: int


@dataclass(frozen=True)
class Rewriting:
    """What came back: a text, and why it is not to be scored (empty: it is)."""

    text: str
    dropped: str = ""


@dataclass(frozen=True)
class Candidate:
    """One prompt of a line.

    Attributes
    ----------
    number, parent, start
        Its place in the line, that of the one it was rewritten from (None for a starting prompt), and that of the starting
        prompt that it comes from.
    dropped
        Why it has no point; empty if it has one.
    point
        Two scores, better the larger they are; not numbers where there are none.
    """

    number: int
    text: str
    parent: int | None
    start: int
    generation: int
    operator: str
    draw: int
    dropped: str
    point: Point


@dataclass
class Line:
    """One arm of one replicate: its candidates, in the order in which they were made.

    Attributes
    ----------
    rule
        Where parents come from. `front` makes it a search, the others make it a control.
    budget
        How many prompts are scored, the starting ones included.
    batch
        Rewritings of a generation.
    survivors
        How many of the best may be parents, where the rule is `front`.
    """

    name: str
    replicate: int
    rule: Rule
    starts: Sequence[str]
    operators: Sequence[str]
    budget: int
    batch: int
    survivors: int
    seed: Sequence[int]
    candidates: list[Candidate] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.starts:
            raise ValueError(f"The line {self.name!r} has no starting prompts; expected one or more.")
        if len(set(self.starts)) < len(self.starts):
            raise ValueError(f"Two of the {len(self.starts)} starting prompts of the line {self.name!r} are the same text.")
        if self.budget < len(self.starts):
            raise ValueError(
                f"The budget is {self.budget} scored prompts; expected at least the {len(self.starts)} starting prompts, which "
                "are scored too."
            )
        if not self.operators:
            raise ValueError("There are no operators to rewrite by; expected one or more.")
        self._random = np.random.default_rng(list(self.seed))
        self._draws: Counter[tuple[str, str]] = Counter()

    @property
    def scored(self) -> list[Candidate]:
        """Those that a score was asked for, in order: what the budget counts."""
        return [each for each in self.candidates if each.dropped in ("", NO_SCORE)]

    @property
    def points(self) -> Float[np.ndarray, "candidates 2"]:
        """Scores of all candidates, not numbers where there are none."""
        return np.array([each.point for each in self.candidates], dtype=float).reshape(-1, 2)

    @property
    def on_front(self) -> Bool[np.ndarray, " candidates"]:
        """Which candidates are above the origin in both scores, and dominated by none."""
        return front(self.points) & (self.points > 0).all(axis=1)

    @property
    def growth(self) -> Float[np.ndarray, " scored"]:
        """Hypervolume above the origin after each scored prompt."""
        points = np.array([each.point for each in self.scored]).reshape(-1, 2)
        return np.array([hypervolume(points[: n + 1]) for n in range(len(points))])

    @property
    def is_open(self) -> bool:
        """Whether there is budget left, somebody to be a parent, and a hope of further rewritings."""
        made = len(self.candidates) - len(self.starts)
        return len(self.pool()) > 0 and len(self.scored) < self.budget and made < _PATIENCE * self.budget

    def pool(self) -> Int[np.ndarray, " pool"]:
        """Places of the candidates that may be parents, the best first where that matters."""
        if self.rule == "front":
            return best_first(self.points)[: self.survivors]
        known = np.flatnonzero(finite(self.points))
        return known[known < len(self.starts)] if self.rule == "starts" else known

    def parents(self, n: int) -> list[Candidate]:
        """Draw parents from the pool: evenly, or the better of two where the rule is `front`."""
        pool = self.pool()
        drawn = self._random.integers(len(pool), size=(n, 2))
        chosen = pool[drawn.min(axis=1) if self.rule == "front" else drawn[:, 0]]
        return [self.candidates[place] for place in chosen]

    def propose(self) -> list[tuple[Candidate, Proposal]]:
        """The next generation: at most a batch, and no more than the budget has room for."""
        n = min(self.batch, self.budget - len(self.scored))
        parents = self.parents(n)
        operators = [str(self.operators[place]) for place in self._random.integers(len(self.operators), size=n).tolist()]
        made = []
        for parent, operator in zip(parents, operators, strict=True):
            draw = self._draws[parent.text, operator]
            self._draws[parent.text, operator] += 1
            start = self.candidates[parent.start].text
            made.append((parent, Proposal(parent.text, start, operator, draw, self.replicate)))
        return made

    def add(self, text: str, dropped: str, parent: Candidate | None = None, proposal: Proposal | None = None) -> Candidate:
        """Take a candidate in, without scores yet. A text that the line has had is dropped as repeated."""
        if not dropped and any(each.text == text for each in self.candidates):
            dropped = REPEATED
        number = len(self.candidates)
        self.candidates.append(
            Candidate(
                number,
                text,
                None if parent is None else parent.number,
                number if parent is None else parent.start,
                0 if parent is None else parent.generation + 1,
                "" if proposal is None else proposal.operator,
                0 if proposal is None else proposal.draw,
                dropped,
                NO_POINT,
            )
        )
        return self.candidates[-1]

    def give(self, candidate: Candidate, point: Point) -> None:
        """Write down the scores of a candidate."""
        known = bool(np.isfinite(point).all())
        self.candidates[candidate.number] = Candidate(
            **(vars(candidate) | {"dropped": "" if known else NO_SCORE, "point": point if known else NO_POINT})
        )


def search(
    lines: Sequence[Line],
    rewrite: Callable[[Sequence[Proposal]], Sequence[Rewriting]],
    score: Callable[[Sequence[str]], Sequence[Point]],
) -> None:
    """Let all lines spend their budgets, generation by generation.

    Parameters
    ----------
    lines
        Searches and controls; their candidates grow.
    rewrite
        Makes the rewritings of one generation of all lines.
    score
        Two scores of every text; not numbers where it has none. It spends budget all the same.
    """
    fresh = [(line, line.add(text, "")) for line in lines if not line.candidates for text in line.starts]
    while fresh:
        wanted = [(line, candidate) for line, candidate in fresh if not candidate.dropped]
        points = score([candidate.text for _, candidate in wanted])
        for (line, candidate), point in zip(wanted, points, strict=True):
            line.give(candidate, point)
        asked = [(line, parent, proposal) for line in lines if line.is_open for parent, proposal in line.propose()]
        made = rewrite([proposal for _, _, proposal in asked]) if asked else []
        fresh = [
            (line, line.add(each.text, each.dropped, parent, proposal))
            for (line, parent, proposal), each in zip(asked, made, strict=True)
        ]


def shared_budget(lines: Sequence[Line]) -> int:
    """How many scored prompts all of the lines have reached: at this they can be compared."""
    return min(len(line.scored) for line in lines)
