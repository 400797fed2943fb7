"""Distances: whether two matrices of distances between the same items, such as tasks or templates, go together."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import stats

from elicit.reliability.drawing import BLUE, estimate_table, new_axes
from store.estimates import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LEAST_ITEMS = 5


@dataclass(frozen=True, eq=False)
class MantelTest:
    """Correlation of two distance matrices; pairs that share an item are dependent, so p is by permuting items.

    Attributes
    ----------
    correlation
        Over pairs of items; the interval is by leaving out one item after the other (jackknife, Student's t), n is of items.
    p
        Two-sided, by scikit-bio; never less than 1 / (permutations + 1).
    permutations
        Behind p.
    method
        `pearson` or `spearman`.
    pairs
        `first, second` and their two distances, `distance_1, distance_2`.
    """

    correlation: Estimate
    p: float
    permutations: int
    method: str
    pairs: pd.DataFrame

    @property
    def table(self) -> pd.DataFrame:
        """One row: value, low, high, se, n (items), smallest_effect; p and permutations."""
        return estimate_table({"correlation": self.correlation}).assign(p=self.p, permutations=self.permutations)

    def plot(self) -> "Figure":
        """One distance of every pair against the other."""
        figure, axes = new_axes(5.4, 4.4)
        axes.scatter(self.pairs["distance_1"], self.pairs["distance_2"], s=10, color=BLUE, alpha=0.4, linewidths=0)
        axes.set(
            xlabel="first distance",
            ylabel="second distance",
            title=f"{self.correlation.n} items (Mantel r = {self.correlation}, p = {self.p:.2g})",
        )
        axes.title.set_fontsize(10)
        return figure


def mantel_test(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    method: Literal["pearson", "spearman"] = "pearson",
    permutations: int = 999,
    seed: int = 0,
) -> MantelTest:
    """Test whether items that are far apart by one distance are so by another (Mantel 1967), by scikit-bio.

    Parameters
    ----------
    first, second
        Square, symmetric, zero on the diagonal; index and columns name the items, in any order. A matrix of correlations r is
        one of similarities: pass 1 - r.

    Raises
    ------
    ValueError
        A matrix is not square, not symmetric, not zero on the diagonal, not finite or all one distance; the two have other
        items; fewer than five items; fewer than one permutation.
    ModuleNotFoundError
        scikit-bio is not installed.
    """
    if permutations < 1:
        raise ValueError(f"permutations is {permutations}; expected at least one, and 999 for a p as small as .001.")
    items = _items(first, second)
    x, y = (_checked(each, items, name) for each, name in ((first, "first"), (second, "second")))
    try:
        from skbio.stats.distance import mantel
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("The Mantel test needs scikit-bio: pip install 'penchant[statistics]'.") from error

    value, p, n = mantel(x, y, method=method, permutations=permutations, seed=seed)
    i, j = np.triu_indices(n, 1)
    pairs = pd.DataFrame(
        {
            "first": [items[place] for place in i],
            "second": [items[place] for place in j],
            "distance_1": x[i, j],
            "distance_2": y[i, j],
        }
    )
    left_out = _without_each(*(_ranked(each) if method == "spearman" else each for each in (x, y)))
    return MantelTest(_jackknife(float(value), left_out), float(p), permutations, method, pairs)


def _items(first: pd.DataFrame, second: pd.DataFrame) -> list[str]:
    for matrix, name in ((first, "first"), (second, "second")):
        square = matrix.shape[0] == matrix.shape[1] and set(matrix.index) == set(matrix.columns)
        if not square or matrix.index.has_duplicates:
            raise ValueError(
                f"The {name} matrix is {matrix.shape[0]} by {matrix.shape[1]}; expected a square one whose index and columns "
                "name the same items, each once."
            )
    odd = sorted(map(str, set(first.index) ^ set(second.index)))
    if odd:
        raise ValueError(
            f"{len(odd)} items are in one matrix only, such as {odd[:3]}; expected the same items in both: take those that are "
            "shared with `.loc[shared, shared]`."
        )
    if len(first) < _LEAST_ITEMS:
        raise ValueError(f"{len(first)} items; the Mantel test needs at least {_LEAST_ITEMS}, since it permutes them.")
    return list(first.index)


def _checked(matrix: pd.DataFrame, items: list[str], name: str) -> Float[np.ndarray, "items items"]:
    values = matrix.loc[items, items].to_numpy(dtype=float)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise ValueError(
            f"The {name} distance of {items[row]!r} and {items[column]!r} is {values[row, column]} ({len(bad)} such); expected "
            "finite numbers: leave those items out."
        )
    if not np.allclose(values, values.T, atol=1e-8):
        row, column = np.unravel_index(np.abs(values - values.T).argmax(), values.shape)
        raise ValueError(
            f"The {name} matrix is not symmetric: {values[row, column]} from {items[row]!r} to {items[column]!r} and "
            f"{values[column, row]} back; expected distances. Average the two."
        )
    if not np.allclose(np.diag(values), 0, atol=1e-8):
        raise ValueError(
            f"The {name} distance of {items[0]!r} from itself is {values[0, 0]}; expected 0. A matrix of correlations r is one "
            "of similarities: pass 1 - r."
        )
    if np.ptp(values[np.triu_indices(len(values), 1)]) == 0:
        raise ValueError(f"All items have the {name} distance {values[0, 1]} of each other, so nothing can go with it.")
    values = (values + values.T) / 2
    np.fill_diagonal(values, 0.0)
    return values


def _ranked(matrix: Float[np.ndarray, "items items"]) -> Float[np.ndarray, "items items"]:
    i, j = np.triu_indices(len(matrix), 1)
    ranked = np.zeros_like(matrix)
    ranked[i, j] = ranked[j, i] = stats.rankdata(matrix[i, j])
    return ranked


def _without_each(x: Float[np.ndarray, "items items"], y: Float[np.ndarray, "items items"]) -> Float[np.ndarray, " items"]:
    """Correlation over pairs without each item, from sums: those of all pairs less those of the item's own."""
    n = len(x)
    i, j = np.triu_indices(n, 1)
    x, y = ((each - each[i, j].mean()) * (1 - np.eye(n)) for each in (x, y))  # centred, so that sums lose no digits
    sx, sy, sxx, syy, sxy = (each.sum() / 2 - each.sum(axis=1) for each in (x, y, x * x, y * y, x * y))
    pairs = (n - 1) * (n - 2) / 2
    with np.errstate(invalid="ignore", divide="ignore"):
        return (sxy - sx * sy / pairs) / np.sqrt((sxx - sx**2 / pairs) * (syy - sy**2 / pairs))


def _jackknife(value: float, left_out: Float[np.ndarray, " items"]) -> Estimate:
    n = len(left_out)
    se = float(np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum()))
    margin = float(stats.t.ppf(0.975, n - 1)) * se
    return Estimate(value, max(value - margin, -1.0), min(value + margin, 1.0), se, n)
