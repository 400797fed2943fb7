"""Agreement: two measures of the same tasks, several scales, and several templates."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from elicit.reliability.drawing import BLUE, estimate_row, estimate_table, heatmap, new_axes
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
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

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic: value, low, high, se, n, smallest_effect."""
        found = {"pearson": self.pearson, "spearman": self.spearman, "partial": self.partial}
        return estimate_table({name: estimate for name, estimate in found.items() if estimate is not None})

    def plot(self) -> "Figure":
        """One measure of every task against the other."""
        figure, axes = new_axes(5.2, 4.4)
        axes.scatter(self.tasks["value_1"], self.tasks["value_2"], s=16, color=BLUE, alpha=0.7, linewidths=0)
        axes.set(
            xlabel="first measure",
            ylabel="second measure",
            title=f"Two measures of {len(self.tasks)} tasks (r = {self.pearson})",
        )
        return figure

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
        return correlation(stats.rankdata(a, axis=-1), stats.rankdata(b, axis=-1))

    partial = None
    if controls is not None:
        design = np.column_stack([np.ones(len(tasks)), controls.loc[tasks["task_id"]].to_numpy(dtype=float)])
        draws = [_partial_correlation(x[row], y[row], design[row]) for row in rows]
        partial = Estimate.of_correlation(_partial_correlation(x, y, design), draws, len(tasks))
    return Agreement(
        Estimate.of_correlation(float(correlation(x, y)), correlation(x[rows], y[rows]), len(tasks)),
        Estimate.of_correlation(float(spearman(x, y)), spearman(x[rows], y[rows]), len(tasks)),
        partial,
        tasks,
    )


def _partial_correlation(
    x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], design: Float[np.ndarray, "n controls"]
) -> float:
    both = np.column_stack([x, y])
    rest = both - design @ np.linalg.lstsq(design, both, rcond=None)[0]
    return float(correlation(rest[:, 0], rest[:, 1]))


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
        return np.mean([correlation(columns[i], columns[j]) for i, j in zip(*upper, strict=True)], axis=0)

    rows = np.random.default_rng(seed).integers(len(wide), size=(resamples, len(wide)))
    return Estimate.of_correlation(float(statistic(wide)), statistic(wide[rows]), len(wide))


@dataclass(frozen=True, eq=False)
class TemplateAgreement:
    """How far templates agree about the same tasks; intervals by bootstrap over tasks.

    Attributes
    ----------
    plain
        Mean correlation over tasks between two templates.
    weighted
        The same with every task weighted by its precision; None where labels have no standard errors.
    pairs
        One row a pair of templates: `first, second`, then the plain correlation with its interval, then the weighted one
        (`weighted, weighted_low, weighted_high`).
    """

    plain: Estimate
    weighted: Estimate | None
    pairs: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row a statistic: value, low, high, se, n, smallest_effect."""
        return estimate_table({"plain": self.plain} | ({"weighted": self.weighted} if self.weighted else {}))

    def plot(self) -> "Figure":
        """Correlation of every two templates: plain above the diagonal, weighted below."""
        names = list(dict.fromkeys([*self.pairs["first"], *self.pairs["second"]]))
        r = np.full((len(names), len(names)), np.nan)
        i, j = self.pairs["first"].map(names.index).to_numpy(), self.pairs["second"].map(names.index).to_numpy()
        r[i, j] = self.pairs["value"]
        r[j, i] = self.pairs["weighted"] if self.weighted else self.pairs["value"]
        title = f"Agreement of templates over {self.plain.n} tasks" + (" (below: weighted)" if self.weighted else "")
        return heatmap(r, names, names, title, "correlation over tasks")


def template_agreement(labels: pd.DataFrame, *, resamples: int = 1000, seed: int = 0) -> TemplateAgreement:
    """Correlate labels between templates, plainly and with every task weighted by its precision.

    For two templates the weight of a task is 1 / (se_1² + se_2²), the inverse variance of the difference of its two labels.
    Weighting does not undo attenuation; it keeps the tasks of which little is known from drowning the rest.

    Parameters
    ----------
    labels
        Labels with one target a template: `task_id, target, value` and, for the weights, `se`.

    Raises
    ------
    ValueError
        A column is missing, a task has two labels of one template, fewer than two templates or four tasks that have them
        all, a template that gives all tasks one value, or standard
        errors of which only some are there, or are not above zero.
    """
    require_columns(labels, ("task_id", "target", "value"))
    repeated = labels[labels.duplicated(["task_id", "target"])]
    if len(repeated):
        raise ValueError(
            f"Task {repeated['task_id'].iloc[0]!r} has two labels of template {repeated['target'].iloc[0]!r} ({len(repeated)} "
            "such); expected one row a task and template."
        )
    wide = varying_values(
        labels.pivot(index="task_id", columns="target", values="value").dropna(), rows=4, columns=2, unit="template"
    )
    values = wide.to_numpy(dtype=float)
    i, j = np.triu_indices(values.shape[1], 1)
    # A resample is how often each task was drawn, so that all pairs share one product of matrices.
    rows = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    drawn = np.zeros((resamples + 1, len(values)))
    drawn[0] = 1  # the first "resample" is the sample itself
    np.add.at(drawn, (np.arange(1, resamples + 1)[:, None], rows), 1)
    errors = _standard_errors(labels, wide)
    found = {"plain": _pair_correlations(values[:, i], values[:, j], drawn, np.ones((len(values), len(i))))}
    if errors is not None:
        found["weighted"] = _pair_correlations(values[:, i], values[:, j], drawn, 1 / (errors[:, i] ** 2 + errors[:, j] ** 2))
    names = [str(name) for name in wide.columns]
    table = pd.DataFrame({"first": [names[place] for place in i], "second": [names[place] for place in j]})
    plain = [Estimate.of_correlation(float(each[0]), each[1:], len(values)) for each in found["plain"].T]
    table = table.join(pd.DataFrame([estimate_row(each) for each in plain]))
    if errors is not None:
        weighted = [Estimate.of_correlation(float(each[0]), each[1:], len(values)) for each in found["weighted"].T]
        columns = {"weighted": "value", "weighted_low": "low", "weighted_high": "high"}
        table = table.assign(**{name: [getattr(each, of) for each in weighted] for name, of in columns.items()})
    means = {
        name: Estimate.of_correlation(float(each[0].mean()), each[1:].mean(axis=1), len(values)) for name, each in found.items()
    }
    return TemplateAgreement(means["plain"], means.get("weighted"), table)


def _standard_errors(labels: pd.DataFrame, wide: pd.DataFrame) -> Float[np.ndarray, "tasks templates"] | None:
    if "se" not in labels or labels["se"].isna().all():
        return None
    errors = labels.pivot(index="task_id", columns="target", values="se").loc[wide.index, wide.columns].astype(float)
    bad = ~(errors.to_numpy() > 0)
    if bad.any():
        task, template = (int(place) for place in np.argwhere(bad)[0])
        raise ValueError(
            f"The standard error of task {wide.index[task]!r} under {wide.columns[template]!r} is "
            f"{errors.iat[task, template]} ({bad.sum()} such); precision weights need one above zero for every label. Leave "
            "such tasks out, or drop the column `se` for plain correlations."
        )
    return errors.to_numpy()


def _pair_correlations(
    x: Float[np.ndarray, "tasks pairs"],
    y: Float[np.ndarray, "tasks pairs"],
    drawn: Float[np.ndarray, "resamples tasks"],
    weights: Float[np.ndarray, "tasks pairs"],
) -> Float[np.ndarray, "resamples pairs"]:
    """Weighted correlation of every pair of columns in every resample, from sums of products."""
    x, y = ((each - np.average(each, axis=0, weights=weights)) for each in (x, y))  # sums of squares then lose no digits
    weight, sx, sy, sxx, syy, sxy = (drawn @ (weights * each) for each in (1, x, y, x * x, y * y, x * y))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sxy - sx * sy / weight) / np.sqrt((sxx - sx**2 / weight) * (syy - sy**2 / weight))


def require_columns(table: pd.DataFrame, columns: tuple[str, ...]) -> None:
    """Raise a ValueError that names the columns which a table lacks."""
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"The table lacks the columns {missing}; expected {list(columns)}, and it has {list(table.columns)}.")


def complete_values(wide: pd.DataFrame, *, rows: int, columns: int, unit: str) -> pd.DataFrame:
    """Return a wide table of values (tasks, conditions) as numbers, or say what is wrong with it.

    Parameters
    ----------
    rows, columns
        The least that are needed.
    unit
        What a column is of: seed, run, context.

    Raises
    ------
    ValueError
        Too few rows or columns, a task or condition given twice, or a value that is no finite number.
    """
    if wide.shape[0] < rows or wide.shape[1] < columns:
        raise ValueError(
            f"{wide.shape[0]} tasks by {wide.shape[1]} {unit}s (one column a {unit}); expected at least {rows} tasks and "
            f"{columns} {unit}s."
        )
    for what, names in (("task", wide.index), (unit, wide.columns)):
        if names.has_duplicates:
            raise ValueError(f"The {what} {names[names.duplicated()][0]!r} is given twice; expected each {what} once.")
    bad = ~np.isfinite(wide.to_numpy(dtype=float))
    if bad.any():
        task, column = (int(place) for place in np.argwhere(bad)[0])
        raise ValueError(
            f"The value of task {wide.index[task]!r} under {unit} {wide.columns[column]!r} is {wide.iat[task, column]} "
            f"({bad.sum()} such values); expected finite numbers. Leave those tasks out, as `.dropna()` does."
        )
    return wide.astype(float)


def varying_values(wide: pd.DataFrame, *, rows: int, columns: int, unit: str) -> pd.DataFrame:
    """Return the same as `complete_values`, of columns that can correlate.

    Raises
    ------
    ValueError
        As there, or a column is constant over tasks.
    """
    wide = complete_values(wide, rows=rows, columns=columns, unit=unit)
    constant = wide.columns[(wide.nunique() == 1).to_numpy()]
    if len(constant):
        raise ValueError(
            f"All tasks have the value {wide[constant[0]].iloc[0]} under {unit} {constant[0]!r}, so nothing can correlate with "
            f"it; leave that {unit} out."
        )
    return wide


def correlation(
    x: Float[np.ndarray, "... n"], y: Float[np.ndarray, "... n"], weights: Float[np.ndarray, "... n"] | float = 1.0
) -> Float[np.ndarray, "..."]:
    """Pearson's correlation over the last axis, weighted where weights are given; missing where one side is constant."""
    weights = np.broadcast_to(np.asarray(weights, dtype=float), np.broadcast_shapes(x.shape, y.shape, np.shape(weights)))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = weights.sum(-1, keepdims=True)
        x, y = (each - (weights * each).sum(-1, keepdims=True) / total for each in (x, y))
        return (weights * x * y).sum(-1) / np.sqrt((weights * x**2).sum(-1) * (weights * y**2).sum(-1))
