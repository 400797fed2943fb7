"""Measuring preferences: choices in both orders and self-reports, and what they say about every task."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from elicit import (
    LeastSquares,
    Task,
    Utilities,
    ask,
    choice,
    hold_out,
    hold_out_accuracy,
    position_bias,
    rating,
    regular_pairs,
)
from elicit.reliability import Agreement, HoldOut, PositionBias, agreement, scale_agreement
from experiments.run_directory import RunDirectory
from interp import LocalModel
from store import Estimate


class ElicitSettings(BaseModel):
    """What is asked about the tasks."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    wording: str = Field(
        default="would_rather", description="Template of the choices, such as enjoy_more or would_rather,labels=12,language=fr."
    )
    degree: int = Field(default=8, ge=2, description="Number of other tasks that each task is compared with.")
    hold_out: float = Field(default=0.25, gt=0, lt=1, description="Share of pairs set aside to test the fit.")
    scales: tuple[str, ...] = Field(
        default=("yes_somewhat_no", "likert_5", "stated_10"), min_length=1, description="Templates of the self-reports."
    )
    resamples: int = Field(default=500, ge=50, description="Bootstrap resamples of pairs.")


@dataclass(frozen=True)
class Preferences:
    """What was found out about the tasks.

    Attributes
    ----------
    comparisons
        One row per choice question.
    utilities
        Fitted to all pairs.
    held_out
        How utilities fitted to the other pairs predict those set aside.
    bias
        Position bias of the choices.
    ratings
        One row per self-report question.
    rating_labels
        Labels of each scale, and `self_report`.
    scales_agree
        Mean correlation between the scales; None for a single scale.
    agreement
        Of utilities with `self_report`.
    """

    comparisons: pd.DataFrame
    utilities: Utilities
    held_out: HoldOut
    bias: PositionBias
    ratings: pd.DataFrame
    rating_labels: pd.DataFrame
    scales_agree: Estimate | None
    agreement: Agreement

    def labels(self) -> pd.DataFrame:
        """Utilities and ratings together."""
        return pd.concat([self.utilities.labels(), self.rating_labels], ignore_index=True)


def measure_preferences(model: LocalModel, tasks: Sequence[Task], settings: ElicitSettings, run: RunDirectory) -> Preferences:
    """Ask for choices and self-reports (or find them in the run's log), and fit utilities."""
    seed = run.settings.seed
    pairs = regular_pairs([task.id for task in tasks], settings.degree, seed)
    asked = choice.questions(tasks, pairs, wording=settings.wording)
    comparisons = choice.comparisons(asked, ask(asked, model, run.log, description="choices"))
    rated = [question for scale in settings.scales for question in rating.questions(tasks, scale=scale)]
    ratings = rating.ratings(rated, ask(rated, model, run.log, description="self-reports"))
    _, held = hold_out(pairs, settings.hold_out, seed)
    is_held = _are_among(comparisons, held)
    fitted = LeastSquares(resamples=settings.resamples, seed=seed).fit(comparisons[~is_held])
    utilities = LeastSquares(resamples=settings.resamples, seed=seed).fit(comparisons)
    rating_labels = rating.labels(ratings)
    is_scale = rating_labels["target"] != "self_report"
    preferences = Preferences(
        comparisons=comparisons,
        utilities=utilities,
        held_out=hold_out_accuracy(fitted, comparisons[is_held], seed=seed),
        bias=position_bias(comparisons),
        ratings=ratings,
        rating_labels=rating_labels,
        scales_agree=scale_agreement(rating_labels[is_scale], seed=seed) if len(settings.scales) > 1 else None,
        agreement=agreement(utilities.labels(), rating_labels[~is_scale], controls=length_and_origin(tasks), seed=seed),
    )
    run.save_table("comparisons", comparisons)
    run.save_table("ratings", ratings)
    run.save_table("labels", preferences.labels())
    return preferences


def length_and_origin(tasks: Sequence[Task]) -> pd.DataFrame:
    """What preferences may owe to the mere shape of tasks: the logarithm of their length, and where they come from."""
    origins = pd.get_dummies(pd.Series([task.origin for task in tasks]), drop_first=True, dtype=float)
    lengths = [float(np.log(len(task.text))) for task in tasks]
    return origins.assign(length=lengths).set_axis([task.id for task in tasks], axis=0)


def restricted(comparisons: pd.DataFrame, task_ids: Sequence[str]) -> pd.DataFrame:
    """Comparisons in which both tasks are among the given ones."""
    return comparisons[comparisons["first"].isin(task_ids) & comparisons["second"].isin(task_ids)]


def _are_among(comparisons: pd.DataFrame, pairs: Sequence[tuple[str, str]]) -> pd.Series:
    unordered = {frozenset(pair) for pair in pairs}
    return pd.Series(
        [frozenset(pair) in unordered for pair in zip(comparisons["first"], comparisons["second"], strict=True)],
        index=comparisons.index,
    )
