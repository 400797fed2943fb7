"""Template sensitivity: which fields of a template two runs must share to agree about the same tasks."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import stats

from elicit.reliability.agreement import varying_values
from elicit.reliability.drawing import estimate_row, forest
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_RUNS = 5
_CELLS_AT_ONCE = 4_000_000
"""Numbers in one block of permutations: 32 MB."""


@dataclass(frozen=True, eq=False)
class TemplateSensitivity:
    """Correlation of two runs, regressed on which fields of their templates match.

    Attributes
    ----------
    intercept
        Expected correlation of two runs that match in no field.
    r_squared
        Share of the variance of correlations over pairs of runs that matching explains.
    fields
        One row a field: `value` (beta, the gain in correlation from matching) with its interval, `p` by permuting runs, and
        `match_rate`, the share of pairs that match. Fields that never vary apart are one row, named `a = b`.
    aliased
        What a field cannot be told apart from, for every field that is not on its own: those in its row, or those whose
        combination it is (it then has no row).
    constant
        Fields in which all pairs match, or none: nothing can be said of them.
    permutations
        Behind each p; the least p is 1 / (permutations + 1).
    runs, pairs
        Number of runs, and of pairs of them.
    """

    intercept: Estimate
    r_squared: Estimate
    fields: pd.DataFrame
    aliased: dict[str, tuple[str, ...]]
    constant: tuple[str, ...]
    permutations: int
    runs: int
    pairs: int

    @property
    def table(self) -> pd.DataFrame:
        """Intercept, fields and R²: value, low, high, se, n (pairs), smallest_effect; p and match_rate of the fields."""
        ends = [
            pd.DataFrame([estimate_row(estimate)], index=[name])
            for name, estimate in (("intercept", self.intercept), ("r_squared", self.r_squared))
        ]
        return pd.concat([ends[0], self.fields, ends[1]]).rename_axis("field")

    def warnings(self) -> list[str]:
        """What a reader of the betas must know."""
        found = []
        for row in self.fields.index[self.fields.index.str.contains(" = ", regex=False)]:
            found.append(f"{row} never vary apart: their one beta is of them together.")
        for name, others in self.aliased.items():
            if not any(name in row.split(" = ") for row in self.fields.index):
                found.append(f"{name} follows from {', '.join(others)} and is left out: vary it apart from them.")
        if self.constant:
            found.append(f"{', '.join(self.constant)} match in all pairs or in none, so nothing is said of them.")
        return found

    def plot(self) -> "Figure":
        """Beta of every field with its interval."""
        known = self.fields.sort_values("value")
        return forest(
            [f"{name} (p = {row['p']:.2g})" for name, row in known.iterrows()],
            known[["value", "low", "high"]].to_numpy(dtype=float),
            "gain in correlation where two runs match",
            f"{self.runs} runs, {self.pairs} pairs (R² = {self.r_squared.value:.2f})",
        )


def template_sensitivity(
    values: pd.DataFrame, fields: pd.DataFrame, *, permutations: int = 999, seed: int = 0
) -> TemplateSensitivity:
    """Regress the correlation of every two runs on which fields of their templates match, by least squares.

    Pairs that share a run are dependent. Intervals are dyadic cluster-robust (Aronow, Samii & Assenova 2015, equation 3, on
    influence by leaving out pairs), with Student's t of as many degrees of freedom as there are runs, less one. p is that of
    MRQAP by double semi-partialling (Dekker, Krackhardt & Snijders 2007): what the other fields leave of a field is permuted
    over runs, and the t statistic compared, two-sided. The interval is of runs as a sample of others, p of these runs if the
    field were given to them by lot: with few runs the former says less. Both are for these very tasks.

    Parameters
    ----------
    values
        One row a task, one column a run: utilities or ratings.
    fields
        One row a run (its index names the columns of `values`), one column a field of the template.
    seed
        Of the permutations.

    Raises
    ------
    ValueError
        Runs of the two tables differ, fewer than five runs or four tasks, a value that is missing, a field that is missing
        for a run, no field that varies, or as many fields as pairs of runs.
    """
    values = varying_values(values, rows=4, columns=_LEAST_RUNS, unit="run")
    fields = _matched(values, fields)
    n = values.shape[1]
    i, j = np.triu_indices(n, 1)
    y = np.corrcoef(values.to_numpy(dtype=float).T)[i, j]
    match = pd.DataFrame({str(name): _equal(column)[i, j] for name, column in fields.items()}, dtype=float)
    kept, aliased, constant = _told_apart(match)
    x = match[list(kept)].to_numpy()
    if len(y) <= x.shape[1] + 2:
        raise ValueError(
            f"{len(y)} pairs of {n} runs cannot tell {x.shape[1]} fields apart; expected more pairs than fields: ask "
            "more runs, or pass fewer fields."
        )
    betas, r_squared = _least_squares(x, y, i, j, n)
    p = [_permutation_p(x, y, place, n, permutations, [seed, place]) for place in range(x.shape[1])]
    table = pd.DataFrame(
        [
            estimate_row(beta) | {"p": chance, "match_rate": float(column.mean())}
            for beta, chance, column in zip(betas[1:], p, x.T, strict=True)
        ],
        index=pd.Index(kept.values(), name="field"),
    )
    return TemplateSensitivity(betas[0], r_squared, table, aliased, constant, permutations, n, len(y))


def _matched(values: pd.DataFrame, fields: pd.DataFrame) -> pd.DataFrame:
    if set(values.columns) != set(fields.index) or fields.index.has_duplicates:
        odd = sorted(map(str, set(values.columns) ^ set(fields.index)))
        raise ValueError(
            f"The runs of values and fields differ ({len(odd)} are in one only, such as {odd[:3]}); expected every run once, "
            "as a column of values and in the index of fields."
        )
    fields = fields.loc[values.columns]
    if fields.isna().any(axis=None):
        run, field = (int(place) for place in np.argwhere(fields.isna().to_numpy())[0])
        raise ValueError(
            f"Field {fields.columns[field]!r} of run {fields.index[run]!r} is missing; expected a level for every run. Give "
            "the absence of one a name, such as 'none'."
        )
    return fields


def _equal(column: pd.Series) -> np.ndarray:
    codes = pd.factorize(column)[0]
    return codes[:, None] == codes[None, :]


def _told_apart(match: pd.DataFrame) -> tuple[dict[str, str], dict[str, tuple[str, ...]], tuple[str, ...]]:
    """Fields that can be told apart with the names of their rows, those that cannot, and those that never vary."""
    constant = tuple(match.columns[(match.nunique() == 1).to_numpy()])
    groups: dict[bytes, list[str]] = {}
    for name in match.columns.drop(list(constant)):
        groups.setdefault(match[name].to_numpy().tobytes(), []).append(name)
    if not groups:
        raise ValueError(
            f"In none of the fields {list(match.columns)} do some pairs of runs match and others not; expected a field that "
            "varies, with a level that two runs share."
        )
    aliased = {name: tuple(other for other in group if other != name) for group in groups.values() for name in group}
    kept: dict[str, str] = {}
    for group in groups.values():
        design = np.column_stack([np.ones(len(match)), match[list(kept)]])
        column = match[group[0]].to_numpy()
        weights = np.linalg.lstsq(design, column, rcond=None)[0]
        if np.abs(column - design @ weights).max() > 1e-8:
            kept[group[0]] = " = ".join(group)
        else:
            others = tuple(name for name, weight in zip(kept, weights[1:], strict=True) if abs(weight) > 1e-8)
            aliased |= {name: (*aliased[name], *others) for name in group}
    return kept, {name: others for name, others in aliased.items() if others}, constant


def _least_squares(
    x: Float[np.ndarray, "pairs fields"],
    y: Float[np.ndarray, " pairs"],
    i: Int[np.ndarray, " pairs"],
    j: Int[np.ndarray, " pairs"],
    n_runs: int,
) -> tuple[list[Estimate], Estimate]:
    """Intercept and betas, and R²; as `dyadic_estimate` would have them, with the fits that leave a pair out in closed form."""
    import statsmodels.api as sm

    fit = sm.OLS(y, sm.add_constant(x, has_constant="add")).fit()
    leverage, n = np.asarray(fit.get_influence().hat_matrix_diag), len(y)
    # Left out, a pair moves the fit by its residual / (1 - leverage); one that alone decides a beta cannot be left out.
    own = np.where(leverage < 1 - 1e-9, fit.resid / np.maximum(1 - leverage, 1e-9), 0.0)
    left_out = fit.params - own[:, None] * (fit.model.exog @ fit.normalized_cov_params)
    rest = (fit.ssr - own * fit.resid) / (fit.centered_tss - n / (n - 1) * (y - y.mean()) ** 2)
    value = np.append(fit.params, fit.rsquared)
    influence = (n - 1) * (value - np.column_stack([left_out, 1 - rest]))
    by_run = np.stack([np.bincount(i, each, n_runs) + np.bincount(j, each, n_runs) for each in influence.T])
    alone = (influence**2).sum(axis=0)
    variance = np.maximum((by_run**2).sum(axis=1) - alone, alone) / n**2 * n_runs / (n_runs - 1)
    se = np.sqrt(variance)
    margin = float(stats.t.ppf(0.975, n_runs - 1)) * se
    low, high = value - margin, value + margin
    low[-1], high[-1] = max(low[-1], 0.0), min(high[-1], 1.0)
    found = [
        Estimate(float(each), float(bottom), float(top), float(error), n)
        for each, bottom, top, error in zip(value, low, high, se, strict=True)
    ]
    return found[:-1], found[-1]


def _permutation_p(
    x: Float[np.ndarray, "pairs fields"],
    y: Float[np.ndarray, " pairs"],
    place: int,
    n_runs: int,
    permutations: int,
    seed: list[int],
) -> float:
    """Two-sided p of one beta: its t statistic against those after permuting over runs what the others leave of the field."""
    i, j = np.triu_indices(n_runs, 1)
    basis = np.linalg.qr(np.column_stack([np.ones(len(y)), np.delete(x, place, axis=1)]))[0]

    def rest(of: Float[np.ndarray, "... pairs"]) -> Float[np.ndarray, "... pairs"]:
        return of - (of @ basis) @ basis.T

    unexplained = rest(y)
    own = np.zeros((n_runs, n_runs))
    own[i, j] = own[j, i] = rest(x[:, place])

    def statistic(columns: Float[np.ndarray, "permutations pairs"]) -> Float[np.ndarray, " permutations"]:
        columns = rest(columns)
        squares, products = (columns**2).sum(axis=1), columns @ unexplained
        degrees = len(y) - x.shape[1] - 1
        error = (unexplained @ unexplained - products**2 / squares) / degrees
        return np.abs(products) / np.sqrt(error * squares)

    observed = float(statistic(own[i, j][None])[0])
    random = np.random.default_rng(seed)
    orders = random.permuted(np.broadcast_to(np.arange(n_runs), (permutations, n_runs)), axis=1)
    blocks = np.array_split(orders, max(1, -(-permutations * len(y) // _CELLS_AT_ONCE)))
    as_large = sum(int((statistic(own[block[:, i], block[:, j]]) >= observed * (1 - 1e-9)).sum()) for block in blocks)
    return (1 + as_large) / (1 + permutations)
