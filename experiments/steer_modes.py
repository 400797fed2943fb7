"""What is asked under steering, mode by mode: the questions, where a push acts, and what it moved.

Choices between two tasks are steered apart: +v on one task and -v on the other, in both orders, so that what a push does to
position cancels. What concerns one task is steered on all tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd
from scipy import special

from elicit import Task, bail, choice, null_tasks, opt_out, rating
from elicit.templates import template
from interp import Intervention, Push
from store import Answer, Question, SteeringVector

Mode = Literal["choice", "rating", "opt_out", "bail", "choice_both_alike"]
"""`choice`: between two tasks, steered apart. `rating`: of one task. `opt_out`: one task against not doing anything. `bail`:
not leaving the conversation. `choice_both_alike`: between two tasks, every token pushed, which cannot move it: a control."""

UNITS: Mapping[str, str] = {
    "choice": "logits",
    "rating": "scale lengths",
    "opt_out": "logits",
    "bail": "raw probability",
    "choice_both_alike": "logits",
}
"""What shifts are measured in."""
MOVED: Mapping[str, str] = {
    "choice": "choice of the task pushed up",
    "rating": "rating",
    "opt_out": "choice of the task over not doing it",
    "bail": "not leaving",
    "choice_both_alike": "choice of the first task",
}
"""What shifts are of."""
_SPANS = ("task_a", "task_b")


def questions_of(
    mode: Mode, tasks: Sequence[Task], pairs: Sequence[tuple[str, str]], wording: str, scale: str
) -> list[Question]:
    """What is asked: about pairs of the tasks, or about every task."""
    match mode:
        case "rating":
            return rating.questions(tasks, scale=scale)
        case "opt_out":
            return opt_out.questions(tasks, null_tasks()[:1], wording=wording)
        case "bail":
            return bail.questions(tasks, method="string")
        case _:
            return choice.questions(tasks, pairs, wording=wording)


def positions_of(mode: Mode) -> tuple[str, ...]:
    """Where a push acts."""
    return _SPANS if mode == "choice" else ("all",)


def intervention_of(mode: Mode, vector: SteeringVector, dose: float) -> Intervention:
    """A push as the mode has it."""
    if mode == "choice":
        return Intervention.apart(vector, dose, toward=_SPANS[0], away_from=_SPANS[1])
    return Intervention((Push(vector, "all"),), dose)


def units_of(
    mode: Mode, asked: Sequence[Question], answers: Mapping[tuple[str, float], Sequence[Answer]], scale: str
) -> pd.DataFrame:
    """One row per direction, dose and pair (or task): by how much it moved from dose 0, and the answers' format.

    Parameters
    ----------
    answers
        By direction and dose; every dose with its opposite, and with zero.

    Returns
    -------
    Columns `direction, dose, unit, shift, probability, mass, on_format`; `probability` is missing where there is none.
    """
    match mode:
        case "rating":
            frames = _ratings({at: rating.ratings(asked, own) for at, own in answers.items()}, scale)
        case "bail":
            frames = _staying({at: bail.turns(asked, own) for at, own in answers.items()})
        case _:
            tables = {at: choice.comparisons(asked, own) for at, own in answers.items()}
            frames = _choices(tables, mirrored=mode == "choice")
    return pd.concat(frames, ignore_index=True)


def _choices(tables: Mapping[tuple[str, float], pd.DataFrame], mirrored: bool) -> list[pd.DataFrame]:
    """One row per pair: the log-odds for its first task X, averaged over both orders, as X is pushed up by the dose.

    Questions alternate X first, X second. A view pushes the task shown first by +dose; where X is shown second, pushing X
    up is the view of the opposite dose (`mirrored`). Pushes on all tokens are the same in both orders.
    """
    frames = []
    for (name, dose), table in tables.items():
        opposite = tables[name, -dose if mirrored else dose]
        zero = tables[name, 0.0]
        shown_first, shown_second = table.iloc[0::2].reset_index(drop=True), opposite.iloc[1::2].reset_index(drop=True)
        before = (zero["logit"].to_numpy()[0::2] - zero["logit"].to_numpy()[1::2]) / 2
        after = (shown_first["logit"].to_numpy() - shown_second["logit"].to_numpy()) / 2
        chosen = (special.expit(shown_first["logit"].to_numpy()) + special.expit(-shown_second["logit"].to_numpy())) / 2
        on_format = [(frame["outcome"] == "chose").to_numpy(dtype=float) for frame in (shown_first, shown_second)]
        frames.append(
            pd.DataFrame(
                {
                    "direction": name,
                    "dose": dose,
                    "unit": shown_first["first"] + " / " + shown_first["second"],
                    "shift": after - before,
                    "probability": chosen,
                    "mass": (shown_first["mass"] + shown_second["mass"]) / 2,
                    "on_format": (on_format[0] + on_format[1]) / 2,
                }
            )
        )
    return frames


def _ratings(tables: Mapping[tuple[str, float], pd.DataFrame], scale: str) -> list[pd.DataFrame]:
    """One row per task: the change of its rating, as a share of the scale's length."""
    values = template("rating", scale).scale.values()
    length = max(values) - min(values)
    return [
        pd.DataFrame(
            {
                "direction": name,
                "dose": dose,
                "unit": table["task_id"],
                "shift": (table["mean"] - tables[name, 0.0]["mean"]) / length,
                "probability": np.nan,
                "mass": table["mass"],
                "on_format": (table["outcome"] == "chose").astype(float),
            }
        )
        for (name, dose), table in tables.items()
    ]


def _staying(tables: Mapping[tuple[str, float], pd.DataFrame]) -> list[pd.DataFrame]:
    """One row per conversation: by how much the raw probability of leaving falls, both orders averaged."""
    return [
        pd.DataFrame(
            {
                "direction": name,
                "dose": dose,
                "unit": table["task_id"],
                "shift": tables[name, 0.0]["p_leave"] - table["p_leave"],
                "probability": 1 - table["p_leave"],
                "mass": table["p_leave"] + table["p_stay"],
                "on_format": (table["outcome"] == "chose").astype(float),
            }
        )
        for (name, dose), table in tables.items()
    ]
