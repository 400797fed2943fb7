"""Self-report before or after doing: one task is rated; the whole distribution over the scale is read."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from elicit.context import Context
from elicit.tasks import Task
from elicit.templates import template, templates
from store.labels import LABEL_COLUMNS
from store.records import Answer, Outcome, Question


def questions(
    tasks: Sequence[Task],
    *,
    scale: str,
    completions: Mapping[str, str] | None = None,
    context: Context = Context(),
) -> list[Question]:
    """One question per task (and draw) on a scale.

    Parameters
    ----------
    scale
        Template of mode `rating`: `likert_5`, `fruits`, `stated_10,format=xml`.
    completions
        What was answered to each task, by task id: the tasks are then rated after doing.
    context
        System prompt, earlier messages, and how answers are read.

    Raises
    ------
    KeyError
        A task has no completion.
    """
    wordings = templates("rating")
    chosen = wordings.template(wordings.name(wordings.levels(scale) | {"when": "before" if completions is None else "after"}))
    made = []
    for task in tasks:
        values = {"task": task.text}
        if completions is not None:
            if task.id not in completions:
                raise KeyError(f"Task {task.id!r} has no completion; tasks rated after doing need one each.")
            values["completion"] = completions[task.id]
        made += context.questions(chosen, values, {"task": task.id})
    return made


def ratings(asked: Sequence[Question], answers: Sequence[Answer]) -> pd.DataFrame:
    """One row per answer: mean, standard deviation and entropy of the rating.

    Returns
    -------
    Columns `task_id, scale, draw, outcome, mass, refusal, mean, sd, entropy`; `refusal` is the raw probability of opening
    with a refusal. The last three, of the distribution given that the
    answer is on the scale (entropy in nats), are missing unless the outcome is `chose`.
    """
    rows = []
    for question, answer in zip(asked, answers, strict=True):
        scale = template("rating", question.measures["template"]).scale
        mean = sd = entropy = math.nan
        if answer.outcome is Outcome.CHOSE:
            distribution = answer.distribution() if answer.log_probs else {str(answer.choice): 1.0}
            values = np.array([scale[label] for label in distribution])
            weights = np.array(list(distribution.values()))
            mean = float(weights @ values)
            sd = math.sqrt(max(0.0, float(weights @ (values - mean) ** 2)))
            entropy = float(-sum(weight * math.log(weight) for weight in weights if weight > 0))
        read = {"outcome": answer.outcome.value, "mass": answer.mass, "refusal": answer.refusal_mass}
        read |= {"mean": mean, "sd": sd, "entropy": entropy}
        rows.append(
            {"task_id": question.measures["task"], "scale": question.measures["template"], "draw": question.draw} | read
        )
    return pd.DataFrame(rows)


def shares(table: pd.DataFrame) -> pd.Series:
    """The means of `ratings` as shares of their scale's length, 0 at one end and 1 at the other."""
    ends = {name: template("rating", str(name)).scale.values() for name in table["scale"].unique()}
    low, high = (table["scale"].map({name: end(values) for name, values in ends.items()}) for end in (min, max))
    return (table["mean"] - low) / (high - low)


def labels(table: pd.DataFrame) -> pd.DataFrame:
    """Ratings as labels: one target a scale (`likert_5`), and `self_report`, the mean of the standardised scales.

    Errors are those of sampling: the spread of a task's draws, and missing for exact answers, which have none. How far the
    scales disagree is another matter (see `elicit.reliability.scale_agreement`).
    """
    usable = table.dropna(subset=["mean"])
    single = usable.groupby(["scale", "task_id"], sort=False)["mean"].agg(value="mean", sd="std", n="count").reset_index()
    single = single.rename(columns={"scale": "target"}).assign(method="rating")
    single["se"] = single["sd"] / np.sqrt(single["n"])
    margin = single["se"] * stats.t.ppf(0.975, (single["n"] - 1).clip(lower=1))
    single["low"], single["high"] = single["value"] - margin, single["value"] + margin
    wide = single.pivot(index="task_id", columns="target", values="value").dropna()
    standard = (wide - wide.mean()) / wide.std(ddof=0).replace(0, np.nan)
    combined = pd.DataFrame({"task_id": standard.index, "target": "self_report", "value": standard.mean(axis=1).to_numpy()})
    combined = combined.assign(se=np.nan, low=np.nan, high=np.nan, n=standard.shape[1], method="mean of scales")
    return pd.concat([single, combined], ignore_index=True)[list(LABEL_COLUMNS)]
