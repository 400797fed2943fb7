"""Ratings of the same tasks crossed in two ways, such as who rates by who wrote: the complete cases, and their cells."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.figure import Figure

from elicit import rating
from experiments import figures as plots
from store import Estimate

LEAST_TASKS = 6
_LEAST_SHARE = 0.5


@dataclass(frozen=True)
class Crossed:
    """Ratings as shares of their scale's length, averaged over scales.

    Attributes
    ----------
    values
        Of the tasks that are rated on format in every cell.
    factors
        Columns that are crossed.
    names
        Levels of both.
    scales, dropped
        The scales that were averaged, and those left out because fewer than half of the tasks are on format everywhere.
    """

    values: Float[np.ndarray, "tasks rows columns"]
    factors: tuple[str, str]
    names: Sequence[str]
    scales: Sequence[str]
    dropped: Sequence[str]

    @classmethod
    def of(cls, ratings: pd.DataFrame, factors: tuple[str, str], names: Sequence[str]) -> "Crossed":
        """Cross the ratings of `rating.ratings`, with two more columns.

        Raises
        ------
        ValueError
            No scale, or fewer than six tasks, are on format in every cell.
        """
        shares = ratings.assign(share=rating.shares(ratings))
        wide = shares.pivot_table(index="task_id", columns=["scale", *factors], values="share", dropna=False)
        complete = wide.notna().T.groupby(level="scale").all().T
        kept = [str(scale) for scale in complete if complete[scale].mean() >= _LEAST_SHARE]
        dropped = [str(scale) for scale in complete if scale not in kept]
        whole = wide.loc[:, wide.columns.get_level_values("scale").isin(kept or dropped)].dropna()
        if len(whole) < LEAST_TASKS:
            shown = ", ".join(f"{scale} {int(complete[scale].sum())}" for scale in complete)
            raise ValueError(
                f"{len(whole)} of {len(wide)} tasks are rated on format in every cell; expected {LEAST_TASKS} (by scale: "
                f"{shown}). Choose scales that can be answered after doing: `penchant preflight --templates "
                "rating:stated_10,when=after`."
            )
        mean = whole.T.groupby(level=list(factors)).mean().T
        cells = [[mean[row, column].to_numpy() for column in names] for row in names]
        return cls(np.moveaxis(np.array(cells, dtype=float), -1, 0), factors, list(names), kept, dropped)

    @property
    def dropped_note(self) -> str:
        """What to add where a scale was left out."""
        return f" Left out, since too many answers are off format: {', '.join(self.dropped)}." if self.dropped else ""

    def cells(self) -> pd.DataFrame:
        """Mean rating of every cell, with Student's interval over tasks."""
        rows = [
            dict(zip(self.factors, (row, column), strict=True)) | Estimate.of_mean(self.values[:, i, j]).to_dict()
            for i, row in enumerate(self.names)
            for j, column in enumerate(self.names)
        ]
        return pd.DataFrame(rows).rename(columns={"value": "rating"})

    def figure(self) -> Figure:
        """Mean rating of every cell, less the mean of all."""
        means = self.values.mean(axis=0)
        rows, columns = ([f"{factor.replace('_', ' ')} {name}" for name in self.names] for factor in self.factors)
        title = f"Rating, less the mean of all (n={len(self.values)} tasks)"
        return plots.heatmap(means - means.mean(), rows, columns, title, "share of a scale's length", digits=3)


def effects_figure(effects: dict[str, Estimate], label: str, title: str) -> Figure:
    """Effects on ratings, the first on top."""
    rows = list(effects.items())[::-1]
    estimates = np.array([[each.value, each.low, each.high] for _, each in rows])
    return plots.forest([name for name, _ in rows], estimates, label, f"{title} (n={rows[0][1].n} tasks)")
