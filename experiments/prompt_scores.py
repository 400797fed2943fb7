"""Two exact scores of a prompt: how far it is preferred to fixed anchor tasks, and how likely it is declined when it is given.

Both are read from probabilities. They are held against those of the starting prompts, which set the origin and the unit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.optimize import linear_sum_assignment

from elicit import Task, choice, order_averages, refusal
from elicit.pareto import finite
from store import Answer, Question
from store.provenance import digest

Goal = Literal["preferred_yet_refused", "dispreferred_yet_accepted"]
SIGN: Mapping[Goal, float] = {"preferred_yet_refused": 1.0, "dispreferred_yet_accepted": -1.0}
SCORE_COLUMNS = ("text_id", "preference", "preference_se", "anchors", "choice_mass", "refusal", "refusal_p", "refusal_most")
_LEAST = 1e-9
"""A probability of declining below this counts as this, so that its log-odds are finite."""


def text_id(text: str) -> str:
    """Name of a text by what it says, so that the same text is the same task wherever it turns up."""
    return f"text-{digest(text)[:12]}"


@dataclass(frozen=True)
class Measure:
    """One way of measuring both scores.

    Attributes
    ----------
    anchors
        Tasks that every prompt is compared with.
    wording
        Template of the choices.
    frame
        How the prompt is put when its refusal is read, see `elicit.refusal.FRAMES`.
    """

    anchors: Sequence[Task]
    wording: str
    frame: str

    def read(self, texts: Sequence[str], ask: Callable[[Sequence[Question]], Sequence[Answer]]) -> pd.DataFrame:
        """Ask about texts, all at once.

        Returns
        -------
        One row per text, indexed by `text_id`: the log-odds against every anchor, averaged over both orders and missing where
        either is off format (columns named by the anchors' ids), `choice_mass` (raw, mean over choices), `refusal_least` and
        `refusal_most`.
        """
        texts = list(dict.fromkeys(texts))
        tasks = [Task(text_id(text), text) for text in texts]
        pairs = [(task.id, anchor.id) for task in tasks for anchor in self.anchors]
        choices = choice.questions([*tasks, *self.anchors], pairs, wording=self.wording)
        declined = refusal.questions(tasks, frame=self.frame)
        answers = list(ask([*choices, *declined]))
        compared = choice.comparisons(choices, answers[: len(choices)])
        opened = refusal.openings(declined, answers[len(choices) :]).set_index("task_id")
        names = [task.id for task in tasks]
        found = self._contents(compared).reindex(index=names, columns=[anchor.id for anchor in self.anchors])
        masses = compared.assign(task=np.where(compared["first"].isin(names), compared["first"], compared["second"]))
        found["choice_mass"] = masses.groupby("task")["mass"].mean().reindex(names)
        found["refusal_least"], found["refusal_most"] = opened["probability"], opened["most"]
        return found

    def _contents(self, compared: pd.DataFrame) -> pd.DataFrame:
        """Log-odds for each text (rows) against each anchor (columns)."""
        pairs = order_averages(compared)
        anchors = {anchor.id for anchor in self.anchors}
        swapped = pairs["task_1"].isin(anchors)
        rows = {
            "text": pairs["task_2"].where(swapped, pairs["task_1"]),
            "anchor": pairs["task_1"].where(swapped, pairs["task_2"]),
            "content": pairs["content"].where(~swapped, -pairs["content"]),
        }
        return pd.DataFrame(rows).pivot(index="text", columns="anchor", values="content")


@dataclass(frozen=True)
class Yardstick:
    """What the starting prompts say is average, and how far they differ.

    Attributes
    ----------
    goal
        Which way is better.
    level
        Mean log-odds of the starting prompts against every anchor; taken out, so that a missing anchor moves nothing.
    centre, unit
        Mean and standard deviation over starting prompts of the two scores.
    """

    goal: Goal
    level: pd.Series
    centre: tuple[float, float]
    unit: tuple[float, float]

    @classmethod
    def of(cls, read: pd.DataFrame, goal: Goal, anchors: Sequence[Task]) -> "Yardstick":
        """From what was read of the starting prompts.

        Raises
        ------
        ValueError
            None of them has both scores.
        """
        level = read[[anchor.id for anchor in anchors]].mean()
        unscaled = cls(goal, level, (0.0, 0.0), (1.0, 1.0))
        known = unscaled.scores(read).dropna(subset=["preference", "refusal"])
        if known.empty:
            raise ValueError(
                f"None of the {len(read)} starting prompts has both scores: its choices are off format, or a server lists no "
                "opening that declines. `penchant preflight` shows which templates this model can answer."
            )
        values = known[["preference", "refusal"]].to_numpy(dtype=float)
        spread = values.std(axis=0, ddof=1) if len(values) > 1 else np.ones(2)
        # Where the starting prompts do not differ, a unit is one logit.
        unit = np.where(spread > 1e-9, spread, 1.0)
        return cls(goal, level, tuple(values.mean(axis=0).tolist()), tuple(unit.tolist()))

    def scores(self, read: pd.DataFrame) -> pd.DataFrame:
        """Scores of texts, one row each with `SCORE_COLUMNS`.

        `preference` is the mean over anchors of the log-odds of the text, less those of the average starting prompt, and
        missing where fewer than half of the anchors have choices on format; `preference_se` its standard error over
        anchors. `refusal` is the log-odds of opening with a phrase of declining; of what a server did not list, the end that
        speaks against the goal.
        """
        over = read[self.level.index] - self.level
        n = over.notna().sum(axis=1)
        enough = n >= len(self.level) / 2
        least, most = (read[f"refusal_{end}"].astype(float) for end in ("least", "most"))
        chance = (least if SIGN[self.goal] > 0 else most).clip(_LEAST, 1 - _LEAST)
        found = {
            "preference": over.mean(axis=1).where(enough),
            "preference_se": (over.std(axis=1, ddof=1) / np.sqrt(n)).where(enough),
            "anchors": n,
            "choice_mass": read["choice_mass"],
            "refusal": np.log(chance / (1 - chance)),
            "refusal_p": least,
            "refusal_most": most,
        }
        return pd.DataFrame(found).rename_axis("text_id").reset_index()[list(SCORE_COLUMNS)]

    def points(self, scores: pd.DataFrame) -> Float[np.ndarray, "texts 2"]:
        """Scores in standard deviations above the average starting prompt, the larger the better for the goal."""
        values = scores[["preference", "refusal"]].to_numpy(dtype=float)
        found = SIGN[self.goal] * (values - np.array(self.centre)) / np.array(self.unit)
        return np.where(finite(found)[:, None], found, np.nan)


@dataclass
class Scorer:
    """Scores texts by one measure, and remembers all that it read.

    Attributes
    ----------
    read
        What was read so far, by `text_id`.
    """

    measure: Measure
    ask: Callable[[Sequence[Question]], Sequence[Answer]]
    read: pd.DataFrame
    yardstick: Yardstick

    @classmethod
    def of(
        cls, measure: Measure, starts: Sequence[str], goal: Goal, ask: Callable[[Sequence[Question]], Sequence[Answer]]
    ) -> "Scorer":
        """Score the starting prompts, and take them as the yardstick."""
        read = measure.read(starts, ask)
        return cls(measure, ask, read, Yardstick.of(read, goal, measure.anchors))

    def __call__(self, texts: Sequence[str]) -> list[tuple[float, float]]:
        """Points of texts, see `Yardstick.points`."""
        names = [text_id(text) for text in texts]
        known = set(self.read.index)
        if new := [text for text, name in zip(texts, names, strict=True) if name not in known]:
            self.read = pd.concat([self.read, self.measure.read(new, self.ask)])
        points = self.yardstick.points(self.yardstick.scores(self.read.loc[names])) if names else np.empty((0, 2))
        return [(float(x), float(y)) for x, y in points]

    @property
    def table(self) -> pd.DataFrame:
        """Scores of all texts so far, with their points in the columns `x` and `y`."""
        scores = self.yardstick.scores(self.read)
        scores[["x", "y"]] = self.yardstick.points(scores)
        return scores


def spread_anchors(utilities: Mapping[str, float], origins: Mapping[str, str], n: int) -> list[str]:
    """Choose tasks that are spread over origins and over utilities.

    Parameters
    ----------
    utilities
        Of the tasks to choose from.
    n
        How many. The origins take turns; each is given that part of the utilities' range which suits its tasks best.

    Raises
    ------
    ValueError
        There are fewer tasks.
    """
    if len(utilities) < n:
        raise ValueError(f"{n} anchors were asked for; there are {len(utilities)} tasks with utilities.")
    ranks = pd.Series(utilities).rank(pct=True)
    by_origin = {name: list(part.index) for name, part in ranks.groupby(ranks.index.map(origins))}
    slots: list[str] = []
    room = {name: len(members) for name, members in by_origin.items()}
    while len(slots) < n:
        for name in sorted(room):
            if room[name] and len(slots) < n:
                slots.append(name)
                room[name] -= 1
    wanted = (np.arange(n) + 0.5) / n
    cost = np.array([[min(abs(ranks[task] - rank) for task in by_origin[name]) for rank in wanted] for name in slots])
    chosen: list[str] = []
    for slot, target in zip(*linear_sum_assignment(cost), strict=True):
        left = [task for task in by_origin[slots[slot]] if task not in chosen]
        chosen.append(min(left, key=lambda task: (abs(ranks[task] - wanted[target]), task)))
    return chosen
