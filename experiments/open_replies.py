"""Open replies under steering: every push is answered in free text, which the untouched model judges and reads through.

The same direction is pushed on two scales: coefficients of its raw vector, and doses of the mean residual norm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import pandas as pd

from elicit import judge
from experiments.coherence import coherence_table, texts_of
from experiments.dose_response import DoseResponse
from experiments.setup import Setup
from interp import Intervention, LocalModel
from store import Question, SteeringVector

Scale = Literal["coefficient", "dose"]
CRITERION = "sentiment"
LEAST_TASKS = 6
"""Of fewer tasks a bootstrap's interval says too much."""
_UNTOUCHED = ("untouched", 0.0)


@dataclass(frozen=True)
class Condition:
    """What replies are written under: a direction pushed on all tokens, prompt and reply, by some amount of a scale.

    Attributes
    ----------
    unit
        The dose that one unit of the scale is: 1 on the scale of doses.
    """

    scale: Scale
    direction: str
    vector: SteeringVector
    amount: float
    unit: float = 1.0
    is_random: bool = False

    @property
    def name(self) -> str:
        """The scale and the direction; with the amount, it names the condition."""
        return f"{self.scale} {self.direction}"

    @property
    def dose(self) -> float:
        """In mean residual norms."""
        return self.amount * self.unit

    def view(self, model: LocalModel) -> LocalModel:
        """The model under it."""
        return model.steered(Intervention.everywhere(self.vector, self.dose))


@dataclass(frozen=True)
class OpenReplies:
    """What was replied, and what pushing did to it.

    Attributes
    ----------
    replies
        One row per condition and prompt, those of the untouched model repeated as amount 0 of every direction: `scale,
        direction, is_random, dose` (the amount on its scale), `pushed_by` (in mean residual norms), `task_id, draw, text,
        log_likelihood, repetition, sentiment, mass, outcome`.
    coefficients, doses
        Shifts of sentiment by task, of the directions under test, at every amount of either scale.
    ranked
        The same at the largest dose and its opposite, beside random directions.
    """

    replies: pd.DataFrame
    coefficients: DoseResponse
    doses: DoseResponse
    ranked: DoseResponse

    @classmethod
    def of(
        cls, setup: Setup, asked: Sequence[Question], conditions: Sequence[Condition], layer: int, *, resamples: int, seed: int
    ) -> Self:
        """Ask open questions under every condition, and judge the replies.

        Parameters
        ----------
        asked
            Of mode `completion`, with sampling.
        conditions
            None of amount zero, which is asked anyway; random ones on the scale of doses alone.
        """
        views = {_UNTOUCHED: setup.model} | {(each.name, each.amount): each.view(setup.model) for each in conditions}
        texts = texts_of(setup.model, asked, views, setup.run, "replies under steering")
        replies = _by_condition(judged(setup, asked, texts), conditions)
        units = units_of(replies, layer)
        coherence = pd.concat(
            [coherence_table(part).assign(layer=layer, mode=scale) for scale, part in replies.groupby("scale", sort=False)]
        )
        tested = units[~units["is_random"]]
        largest = max(abs(condition.amount) for condition in conditions if condition.scale == "dose")
        ends = units[(units["mode"] == "dose") & units["dose"].abs().isin([0.0, largest])]

        def response(part: pd.DataFrame) -> DoseResponse:
            return DoseResponse.of(part, coherence, resamples=resamples, seed=seed)

        by_scale = {scale: response(tested[tested["mode"] == scale]) for scale in ("coefficient", "dose")}
        return cls(replies, by_scale["coefficient"], by_scale["dose"], response(ends))


def judged(setup: Setup, asked: Sequence[Question], texts: pd.DataFrame) -> pd.DataFrame:
    """Add what the untouched model takes the sentiment of texts to be; that of an empty one is missing.

    Parameters
    ----------
    texts
        With columns `prompt`, the number of the question, and `text`.

    Returns
    -------
    The texts with `task_id, draw, task, sentiment` (-1 to 1), `mass` and `outcome`; the outcome of an empty text is `empty`.
    """
    facts = pd.DataFrame([_facts(question) for question in asked]).loc[texts["prompt"]].reset_index(drop=True)
    return judged_sentiment(setup, pd.concat([texts.reset_index(drop=True), facts], axis=1))


def judged_sentiment(setup: Setup, texts: pd.DataFrame) -> pd.DataFrame:
    """The same for texts that have `task_id, draw, task, text`."""
    said = texts["text"].str.strip() != ""
    questions = judge.questions(texts[said], criterion=CRITERION)
    found = judge.judgements(questions, setup.ask(questions, "judge"))[["value", "mass", "outcome"]]
    found = found.rename(columns={"value": CRITERION}).set_index(texts.index[said])
    return texts.join(found.astype({"mass": float})).fillna({"outcome": "empty"})


def _facts(question: Question) -> Mapping[str, object]:
    span = question.spans[-1]
    task = question.messages[span.message].content[span.start : span.end]
    return {"task_id": question.measures["task"], "draw": question.draw, "task": task}


def _by_condition(texts: pd.DataFrame, conditions: Sequence[Condition]) -> pd.DataFrame:
    """The texts by scale and direction, those of the untouched model with each."""
    untouched = texts[texts["direction"] == _UNTOUCHED[0]]
    own = {key: part for key, part in texts.groupby(["direction", "dose"], sort=False)}
    tables = []
    for first in {condition.name: condition for condition in conditions}.values():
        known = {"scale": first.scale, "direction": first.direction, "is_random": first.is_random}
        tables.append(untouched.assign(**known, pushed_by=0.0))
        for condition in conditions:
            if condition.name == first.name:
                tables.append(own[condition.name, condition.amount].assign(**known, pushed_by=condition.dose))
    return pd.concat(tables, ignore_index=True)


def units_of(replies: pd.DataFrame, layer: int) -> pd.DataFrame:
    """One row per condition and task, the mean over its replies, as `DoseResponse` takes them.

    `shift` is of the sentiment from that of the untouched reply, missing where the judge is off format about either, `mass` the
    judge's, and `on_format` the share of replies that are not empty. The mode is the scale.
    """
    keys = ["scale", "direction", "is_random", "dose", "task_id"]
    known = replies.assign(on_format=(replies["outcome"] != "empty").astype(float))
    means = known.groupby(keys, sort=False)[[CRITERION, "mass", "on_format"]].mean().reset_index()
    zero = means[means["dose"] == 0].set_index(["scale", "direction", "task_id"])[CRITERION]
    before = zero.reindex(pd.MultiIndex.from_frame(means[["scale", "direction", "task_id"]])).to_numpy()
    units = means.assign(shift=means[CRITERION] - before, probability=float("nan"), shuffled="", layer=layer)
    return units.rename(columns={"scale": "mode", "task_id": "unit"})
