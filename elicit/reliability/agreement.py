"""Agreement: two measures of the same tasks, and several scales."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from store.estimates import Estimate


@dataclass(frozen=True)
class Agreement:
    """How far two measures of the same tasks agree; intervals by bootstrap over tasks.

    Attributes
    ----------
    pearson, spearman
        Correlation over tasks.
    partial
        Pearson's of what the controls leave of both; None without controls.
    """

    pearson: Estimate
    spearman: Estimate
    partial: Estimate | None
    tasks: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain values for summaries."""
        return {
            "pearson": self.pearson.to_dict(),
            "spearman": self.spearman.to_dict(),
            "partial": self.partial.to_dict() if self.partial else None,
        }


def agreement(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    controls: pd.DataFrame | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Correlate two tables of labels, each of one target, over the tasks that both have.

    Parameters
    ----------
    controls
        What both may owe to something else, such as length and origin: numbers, indexed by task id.

    Raises
    ------
    ValueError
        A table has several targets, or fewer than four tasks have both labels.
    """
    for labels in (first, second):
        if "target" in labels and labels["target"].nunique() > 1:
            raise ValueError(f"Labels have the targets {sorted(labels['target'].unique())}; agreement is of one target each.")
    tasks = first[["task_id", "value"]].merge(second[["task_id", "value"]], on="task_id", suffixes=("_1", "_2"))
    if len(tasks) < 4:
        raise ValueError(f"{len(tasks)} tasks have both labels; agreement needs at least four.")
    x, y = tasks["value_1"].to_numpy(dtype=float), tasks["value_2"].to_numpy(dtype=float)
    rows = np.random.default_rng(seed).integers(len(tasks), size=(resamples, len(tasks)))

    def spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return _correlation(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))

    partial = None
    if controls is not None:
        design = np.column_stack([np.ones(len(tasks)), controls.loc[tasks["task_id"]].to_numpy(dtype=float)])
        draws = [_partial_correlation(x[row], y[row], design[row]) for row in rows]
        partial = Estimate.from_draws(_partial_correlation(x, y, design), draws, len(tasks))
    return Agreement(
        Estimate.from_draws(float(_correlation(x, y)), _correlation(x[rows], y[rows]), len(tasks)),
        Estimate.from_draws(float(spearman(x, y)), spearman(x[rows], y[rows]), len(tasks)),
        partial,
        tasks,
    )


def _partial_correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n controls"]
) -> float:
    both = np.column_stack([x, y])
    rest = both - design @ np.linalg.lstsq(design, both, rcond=None)[0]
    return float(_correlation(rest[:, 0], rest[:, 1]))


def scale_agreement(labels: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> Estimate:
    """Mean correlation over tasks between all pairs of scales; interval by bootstrap over tasks.

    Parameters
    ----------
    labels
        Labels of two or more targets, for instance of the scales of self-report.

    Raises
    ------
    ValueError
        Fewer than two targets, or fewer than four tasks that have them all.
    """
    wide = labels.pivot(index="task_id", columns="target", values="value").dropna().to_numpy(dtype=float)
    if wide.shape[1] < 2 or len(wide) < 4:
        raise ValueError(f"{wide.shape[1]} scales over {len(wide)} tasks; agreement needs two scales and four tasks.")
    upper = np.triu_indices(wide.shape[1], 1)

    def statistic(values: np.ndarray) -> np.ndarray:
        columns = np.moveaxis(values, -1, 0)
        return np.mean([_correlation(columns[i], columns[j]) for i, j in zip(*upper, strict=True)], axis=0)

    rows = np.random.default_rng(seed).integers(len(wide), size=(resamples, len(wide)))
    return Estimate.from_draws(float(statistic(wide)), statistic(wide[rows]), len(wide))


def _correlation(x: Float[np.ndarray, "... n"], y: Float[np.ndarray, "... n"]) -> Float[np.ndarray, "..."]:
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
