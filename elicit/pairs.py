"""Both orders of a pair, put together: what the model prefers, and what it owes to the order of showing."""

import numpy as np
import pandas as pd
from jaxtyping import Float

PAIR_COLUMNS = ("task_1", "task_2", "content", "position", "n_templates")


def order_averages(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Split the choice on every unordered pair into content and position.

    With l12 the log-odds of the task shown first when task 1 is first, and l21 when task 2 is first, content is
    (l12 - l21) / 2, the log-odds for task 1, and position is (l12 + l21) / 2, the log-odds for whatever is shown first.

    Parameters
    ----------
    comparisons
        From `choice.comparisons`, exact answers; those that are no choice are left out. Several templates are averaged, each
        in both orders; without a column `template` all answers are of one.

    Returns
    -------
    Columns `task_1, task_2, content, position, n_templates` for the pairs with a usable answer in both orders of at
    least one template; `task_1 < task_2`.
    """
    usable = comparisons.dropna(subset=["logit"])
    if "outcome" in usable:
        usable = usable[usable["outcome"] == "chose"]
    swapped = usable["first"] > usable["second"]
    pair = pd.DataFrame(
        {
            "task_1": np.where(swapped, usable["second"], usable["first"]),
            "task_2": np.where(swapped, usable["first"], usable["second"]),
            "template": usable["template"].astype(str) if "template" in usable else "",
            "order": np.where(swapped, "l21", "l12"),
            "logit": usable["logit"],
        }
    )
    wide = pair.pivot_table(index=["task_1", "task_2", "template"], columns="order", values="logit", aggfunc="mean")
    wide = wide.reindex(columns=["l12", "l21"]).dropna()
    split = pd.DataFrame({"content": (wide["l12"] - wide["l21"]) / 2, "position": (wide["l12"] + wide["l21"]) / 2})
    averaged = split.groupby(level=["task_1", "task_2"]).agg(
        content=("content", "mean"), position=("position", "mean"), n_templates=("content", "size")
    )
    return averaged.reset_index()[list(PAIR_COLUMNS)]


def uncentred_correlation(x: Float[np.ndarray, "... pairs"], y: Float[np.ndarray, "... pairs"]) -> Float[np.ndarray, "..."]:
    """Correlation about zero: which task of a pair comes first is arbitrary, so preferences have no meaningful mean."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
