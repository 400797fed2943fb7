"""Searched: what a search for prompts measures by and starts from, its arms carried out, and their fronts scored again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from elicit import Endpoint, LeastSquares, Task, ask, choice, regular_pairs
from elicit.prompt_search import Line, Proposal, Rewriting, Rule, search
from elicit.rephrasing import Filters, Originals, dropped, operators, question, read
from experiments.prompt_scores import Measure, Scorer, Yardstick, spread_anchors
from experiments.prompt_search_tables import candidate_table, joint_front
from experiments.setup import Setup
from interp import LocalModel
from store import Answer, Question, Sampling

if TYPE_CHECKING:
    from experiments.prompt_search import PromptSearchSettings

ARMS: Mapping[str, Rule] = {"search": "front", "random": "starts", "walk": "any"}
"""Arms by name, and where each takes its parents from."""
HELD_OUT_FRAME = "passed_on"
_DRAWS = 100_000
"""Draws of one replicate are numbered apart from those of the next."""


@dataclass(frozen=True, eq=False)
class Searched:
    """What a search tried.

    Attributes
    ----------
    anchors, held_out_anchors
        Tasks that prompts were compared with, in the search and again afterwards.
    starts
        Texts of all starting prompts.
    lines
        Of every arm in every replicate.
    candidates
        See `candidate_table`; `joint_front` marks those that no other one surpasses in both scores.
    yardstick
        Of the scores in the search.
    """

    anchors: Sequence[Task]
    held_out_anchors: Sequence[Task]
    starts: Sequence[str]
    lines: Sequence[Line]
    candidates: pd.DataFrame
    yardstick: Yardstick


def carry_out(setup: Setup, rewriter: LocalModel | Endpoint, settings: "PromptSearchSettings") -> Searched:
    """Search in every arm, and score the fronts again against held-out anchors."""
    anchors, held_out_anchors = _anchors(setup, settings)
    used = {task.id for task in (*anchors, *held_out_anchors)}
    starts = _starts([task for task in setup.tasks if task.id not in used], settings)
    texts = list(dict.fromkeys(task.text for own in starts for task in own))
    originals = Originals(texts)

    def asks(description: str) -> Callable[[Sequence[Question]], list[Answer]]:
        return lambda questions: setup.ask(questions, description)

    scorer = Scorer.of(Measure(anchors, settings.wording, "alone"), texts, settings.goal, asks("scores"))
    lines = _lines(starts, settings)
    search(lines, _rewrite(setup, rewriter, originals, settings), scorer)
    held_out = Scorer.of(
        Measure(held_out_anchors, settings.held_out_wording, HELD_OUT_FRAME), texts, settings.goal, asks("held-out scores")
    )
    held_out([line.candidates[place].text for line in lines for place in np.flatnonzero(line.on_front)])
    candidates = candidate_table(lines, starts, originals, scorer, held_out)
    candidates["joint_front"] = joint_front(candidates)
    return Searched(anchors, held_out_anchors, texts, lines, candidates, scorer.yardstick)


def _anchors(setup: Setup, settings: "PromptSearchSettings") -> tuple[list[Task], list[Task]]:
    """Anchors and held-out anchors: spread over origins and utilities, which a few comparisons of all tasks tell."""
    pairs = regular_pairs([task.id for task in setup.tasks], settings.degree, settings.seed)
    asked = choice.questions(setup.tasks, pairs, wording=settings.wording)
    fitted = LeastSquares(resamples=2, seed=settings.seed).fit(choice.comparisons(asked, setup.ask(asked, "utilities")))
    utilities = dict(zip(fitted.task_ids, fitted.values.tolist(), strict=True))
    first = spread_anchors(utilities, setup.origins, settings.anchors)
    left = {task: value for task, value in utilities.items() if task not in first}
    by_id = {task.id: task for task in setup.tasks}
    second = spread_anchors(left, setup.origins, settings.anchors)
    return [by_id[task] for task in first], [by_id[task] for task in second]


def _starts(tasks: Sequence[Task], settings: "PromptSearchSettings") -> list[list[Task]]:
    """Starting prompts of every replicate: origins take turns; no two replicates share one while there are others left."""
    random = np.random.default_rng([settings.seed, 1])
    unique = list({task.text: task for task in tasks}.values())
    shuffled = [unique[place] for place in random.permutation(len(unique))]
    turn: dict[str, int] = {}
    ranked = []
    for task in shuffled:
        turn[task.origin] = turn.get(task.origin, 0) + 1
        ranked.append((turn[task.origin], task))
    ordered = [task for _, task in sorted(ranked, key=lambda each: each[0])]
    n = settings.n_starts
    return [[ordered[(replicate * n + place) % len(ordered)] for place in range(n)] for replicate in range(settings.replicates)]


def _lines(starts: Sequence[Sequence[Task]], settings: "PromptSearchSettings") -> list[Line]:
    wanted = [name for name, rule in ARMS.items() if rule == "front" or rule in settings.controls]
    return [
        Line(
            name,
            replicate,
            ARMS[name],
            [task.text for task in own],
            settings.operators or list(operators()),
            settings.budget,
            settings.batch,
            settings.survivors,
            (settings.seed, replicate, list(ARMS).index(name)),
        )
        for replicate, own in enumerate(starts)
        for name in wanted
    ]


def _rewrite(
    setup: Setup, rewriter: LocalModel | Endpoint, originals: Originals, settings: "PromptSearchSettings"
) -> Callable[[Sequence[Proposal]], list[Rewriting]]:
    sampling = Sampling(settings.temperature, max_new_tokens=settings.max_new_tokens, seed=settings.seed)
    filters = Filters(settings.least_words, settings.most_words)

    def rewrite(proposals: Sequence[Proposal]) -> list[Rewriting]:
        asked = [question(each.text, each.operator, sampling, each.replicate * _DRAWS + each.draw) for each in proposals]
        made = []
        for each, answer in zip(proposals, ask(asked, rewriter, setup.run.log, description="rewritings"), strict=True):
            text, why = read(answer)[0], dropped(answer, each.text, each.operator, filters)
            if not why and originals.kept(text, each.start) < settings.minimum_kept:
                why = "drifted"
            made.append(Rewriting(text, why))
        return made

    return rewrite
