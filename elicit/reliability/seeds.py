"""Seeds: the same tasks answered again by sampling, how far the answers agree, and whether that says anything of tasks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from elicit.rates import rate
from elicit.reliability.agreement import correlation, varying_values
from elicit.reliability.drawing import BLUE, GREY, ORANGE, estimate_table, new_axes
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SHUFFLES = 200


@dataclass(frozen=True, eq=False)
class SeedAgreement:
    """How far answers drawn under different seeds agree.

    Attributes
    ----------
    correlation
        Mean Pearson correlation over tasks between two seeds; interval by bootstrap over tasks.
    informative
        The same over the tasks whose answer is not the modal one under at least one of the two seeds: a model that says 7 to
        nearly everything agrees with itself without telling tasks apart. None where no answer occurs twice.
    informative_chance
        What `informative` is on average when the answers of one seed are shuffled over tasks. Leaving out the tasks that are
        modal twice makes it negative, much so where there are few answers: compare with this, not with zero.
    discrimination
        Share of answers that are not the modal one; Wilson interval over tasks. None where no answer occurs twice.
    discriminated_tasks
        Share of tasks with an answer off the mode under at least one seed; Wilson interval.
    mode
        The most frequent answer over all tasks and seeds, the least of them where several are; None as above.
    values
        The table of tasks by seeds.
    """

    correlation: Estimate
    informative: Estimate | None
    informative_chance: float | None
    discrimination: Estimate | None
    discriminated_tasks: Estimate | None
    mode: float | None
    values: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic: value, low, high, se, n, smallest_effect; those without a mode to speak of are left out."""
        names = ("correlation", "informative", "discrimination", "discriminated_tasks")
        found = {name: getattr(self, name) for name in names}
        return estimate_table({name: estimate for name, estimate in found.items() if estimate is not None})

    def plot(self) -> "Figure":
        """Answers under two seeds, for every pair of seeds; larger where more tasks share a point."""
        figure, axes = new_axes(5.0, 4.6)
        values = self.values.to_numpy(dtype=float)
        i, j = np.triu_indices(values.shape[1], 1)
        points = pd.DataFrame({"x": values[:, i].ravel(), "y": values[:, j].ravel()}).value_counts().reset_index()
        modal = (points["x"] == self.mode) & (points["y"] == self.mode)
        sizes = 14 + 500 * (points["count"] - 1) / len(values) / len(i)
        for mask, colour, label in ((~modal, BLUE, "informative"), (modal, ORANGE, "both modal")):
            if mask.any():
                axes.scatter(points["x"][mask], points["y"][mask], s=sizes[mask], color=colour, alpha=0.6, label=label)
        limits = float(np.min(values)), float(np.max(values))
        axes.plot(limits, limits, color=GREY, linewidth=0.8)
        axes.set(
            xlabel="answer under one seed",
            ylabel="answer under another",
            title=f"{len(values)} tasks, {values.shape[1]} seeds (r = {self.correlation})",
        )
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
        return figure


def seed_agreement(values: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> SeedAgreement:
    """Correlate the answers, or labels, of the same tasks between seeds.

    Parameters
    ----------
    values
        One row a task, one column a seed: ratings drawn, or utilities fitted to draws.
    seed
        Of the bootstrap and the shuffles.

    Raises
    ------
    ValueError
        Fewer than two seeds or four tasks, a value that is no number, or a seed under which all tasks have one answer.
    """
    if values.shape[1] < 2:
        raise ValueError(
            f"The table has {values.shape[1]} columns; agreement between seeds needs two or more, one a seed. Exact answers "
            "have no seeds (the distribution is read, not drawn): sample with `n_draws`, or vary the seed of the design."
        )
    values = varying_values(values, rows=4, columns=2, unit="seed")
    array = values.to_numpy(dtype=float)
    n = len(array)
    random = np.random.default_rng(seed)
    rows = random.integers(n, size=(resamples, n))
    whole = Estimate.of_correlation(float(_between(array)), _between(array[rows]), n)
    answers, counts = np.unique(array, return_counts=True)
    if counts.max() == 1:
        return SeedAgreement(whole, None, None, None, None, None, values)
    mode = float(answers[counts.argmax()])
    informative = Estimate.of_correlation(
        float(_between(array, mode)), _between(array[rows], mode), int((array != mode).any(axis=1).sum())
    )
    shuffled = random.permuted(np.broadcast_to(array, (_SHUFFLES, *array.shape)), axis=1)
    chance = _between(shuffled, mode)
    off_mode = array != mode
    return SeedAgreement(
        correlation=whole,
        informative=informative,
        informative_chance=float(chance[np.isfinite(chance)].mean()) if np.isfinite(chance).any() else float("nan"),
        discrimination=rate(float(off_mode.mean(axis=1).sum()), n),
        discriminated_tasks=rate(float(off_mode.any(axis=1).sum()), n),
        mode=mode,
        values=values,
    )


def _between(values: Float[np.ndarray, "... tasks seeds"], mode: float | None = None) -> Float[np.ndarray, "..."]:
    """Mean correlation between two seeds; over the tasks that are off the mode under either, where a mode is given."""
    columns = np.moveaxis(values, -1, 0)
    found = []
    for i, j in zip(*np.triu_indices(len(columns), 1), strict=True):
        x, y = columns[i], columns[j]
        weights = 1.0 if mode is None else ((x != mode) | (y != mode)).astype(float)
        found.append(correlation(x, y, weights))
    return np.mean(found, axis=0)
