"""Online ratings, for display: Elo and OpenSkill move two ratings after every answer.

They depend on the order of the answers and state no usable uncertainty for a fixed respondent; results are made of utilities.
"""

import numpy as np
import pandas as pd
from jaxtyping import Float

from elicit.comparisons import ComparisonError


def elo(comparisons: pd.DataFrame, *, initial: float = 1500.0, k: float = 32.0, scale: float = 400.0) -> pd.DataFrame:
    """Elo ratings (Elo 1978): r += k (won - 1 / (1 + 10^((r_other - r) / scale))) for both, answer by answer.

    Parameters
    ----------
    comparisons
        Columns `first`, `second`, `p_first`, and `p_tie` and `outcome` if there are any, in the order of asking; answers that
        are no choice are passed over, and a tie is half a win.

    Returns
    -------
    Columns `task_id, rating, n`, best first.
    """
    names, first, second, won = _answers(comparisons)
    ratings = [initial] * len(names)
    for one, other, share in zip(first.tolist(), second.tolist(), won.tolist(), strict=True):
        expected = 1 / (1 + 10 ** ((ratings[other] - ratings[one]) / scale))
        ratings[one] += k * (share - expected)
        ratings[other] -= k * (share - expected)
    return _table(names, np.asarray(ratings), first, second)


def openskill(comparisons: pd.DataFrame) -> pd.DataFrame:
    """OpenSkill ratings (Plackett-Luce model; Weng & Lin 2011), shown as mu - 3 sigma, answer by answer.

    A probability counts for the likelier side; exactly one half is a draw.

    Returns
    -------
    Columns `task_id, rating, n, mu, sigma`, best first.
    """
    from openskill.models import PlackettLuce

    names, first, second, won = _answers(comparisons)
    model = PlackettLuce()
    players = [model.rating() for _ in names]
    for one, other, share in zip(first.tolist(), second.tolist(), won.tolist(), strict=True):
        ranks = [0.0, 0.0] if share == 0.5 else [0.0, 1.0] if share > 0.5 else [1.0, 0.0]
        [[players[one]], [players[other]]] = model.rate([[players[one]], [players[other]]], ranks=ranks)
    rated = np.array([player.ordinal() for player in players])
    columns = {"mu": [player.mu for player in players], "sigma": [player.sigma for player in players]}
    return _table(names, rated, first, second, columns)


def _answers(comparisons: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray, Float[np.ndarray, " answers"]]:
    usable = comparisons.dropna(subset=["p_first"])
    if "outcome" in usable:
        usable = usable[usable["outcome"] == "chose"]
    if usable.empty:
        raise ComparisonError("No answer is a choice, so there is nothing to rate.")
    codes, names = pd.factorize(pd.concat([usable["first"], usable["second"]], ignore_index=True), sort=True)
    half, won = len(usable), usable["p_first"].to_numpy(dtype=float)
    if "p_tie" in usable:
        won = won + usable["p_tie"].to_numpy(dtype=float) / 2
    return np.asarray(names), codes[:half], codes[half:], won


def _table(
    names: np.ndarray,
    ratings: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    columns: dict[str, list[float]] | None = None,
) -> pd.DataFrame:
    n = np.bincount(first, minlength=len(names)) + np.bincount(second, minlength=len(names))
    table = pd.DataFrame({"task_id": names, "rating": ratings, "n": n} | (columns or {}))
    return table.sort_values("rating", ascending=False, ignore_index=True)
