"""Utilities: one number per task whose differences are the log-odds of choosing one over the other."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from scipy import optimize, special
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from elicit.pairs import order_averages
from store.estimates import Estimate
from store.labels import LABEL_COLUMNS

_TIE = 1e-9
"""Weight of the pull towards zero that fixes the origin of every component; too small to be seen in a utility."""


@dataclass(frozen=True, eq=False)
class Utilities:
    """Fitted utilities with their uncertainty.

    Attributes
    ----------
    task_ids
        The tasks, in the order of `values`.
    values
        Utilities in logits, with mean zero over the tasks.
    draws
        The same from every bootstrap resample of whole pairs, `(resamples, tasks)`.
    position
        Log-odds of the task shown first at equal utilities.
    method
        `least squares` or `bradley-terry`.
    report
        Counts behind the fit: pairs and answers used and left out, tasks without any, connected components.
    """

    task_ids: tuple[str, ...]
    values: Float[np.ndarray, " tasks"]
    draws: Float[np.ndarray, "resamples tasks"]
    position: Estimate
    method: str
    report: dict[str, Any] = field(default_factory=dict)

    def labels(self, target: str = "utility") -> pd.DataFrame:
        """Utilities as labels."""
        low, high = np.quantile(self.draws, [0.025, 0.975], axis=0)
        return pd.DataFrame(
            {
                "task_id": self.task_ids,
                "target": target,
                "value": self.values,
                "se": self.draws.std(axis=0, ddof=1),
                "low": low,
                "high": high,
                "n": [self.report["comparisons_per_task"][task] for task in self.task_ids],
                "method": self.method,
            }
        )[list(LABEL_COLUMNS)]

    def difference(self, first: str, second: str) -> Estimate:
        """Utility of one task minus another's: the log-odds of choosing it, order effects aside."""
        i, j = self.task_ids.index(first), self.task_ids.index(second)
        draws = self.draws[:, i] - self.draws[:, j]
        return Estimate.from_draws(self.values[i] - self.values[j], draws, self.report["pairs_used"])


def fit_least_squares(comparisons: pd.DataFrame, *, resamples: int = 500, seed: int = 0) -> Utilities:
    """Least squares on order-averaged log-odds: the estimator for exact answers.

    Minimises the squared distance of u_1 - u_2 from the content of every pair. What remains is pair-specific: bias that
    averaging two orders did not remove, and intransitivity. Uncertainty is a bootstrap over whole pairs.

    Parameters
    ----------
    comparisons
        From `choice.comparisons`; pairs answered on format in only one order are left out and counted.

    Raises
    ------
    ValueError
        No pair was answered on format in both orders.
    """
    pairs = order_averages(comparisons)
    if pairs.empty:
        raise ValueError(
            "No pair has an answer on format in both orders, so there is nothing to fit. "
            "`penchant preflight` shows which templates this model can answer."
        )
    task_ids, first, second = _indices(pairs["task_1"], pairs["task_2"])
    content, position = pairs["content"].to_numpy(), pairs["position"].to_numpy()
    n = len(task_ids)
    counts = _bootstrap_counts(len(pairs), resamples, seed)
    values = _solve_laplacian(first, second, content, np.ones((1, len(pairs))), n)[0]
    draws = _solve_laplacian(first, second, content, counts, n)
    position_draws = counts @ position / counts.sum(axis=1)
    report = _report(comparisons, task_ids, first, second, {"pairs_used": len(pairs)})
    report["residual_sd"] = float(np.std(content - values[first] + values[second], ddof=1)) if len(pairs) > 1 else float("nan")
    position_estimate = Estimate.from_draws(position.mean(), position_draws, len(pairs))
    return Utilities(task_ids, values, draws, position_estimate, "least squares", report)


def fit_bradley_terry(comparisons: pd.DataFrame, *, prior_sd: float = 2.0, resamples: int = 200, seed: int = 0) -> Utilities:
    """Bradley-Terry with a position term, by maximum a posteriori: the estimator for sampled answers.

    P(first is chosen) = sigmoid(u_first - u_second + b), with independent normal priors of `prior_sd` logits on the
    utilities (Bradley & Terry 1952; the prior keeps tasks that always win or lose finite). Probabilities are accepted as
    soft outcomes. Uncertainty is a bootstrap over unordered pairs, with all their draws and both orders.

    Raises
    ------
    ValueError
        There is no usable answer, or the prior is not positive.
    """
    if not prior_sd > 0:
        raise ValueError(f"prior_sd is {prior_sd}; expected a positive number of logits.")
    usable = comparisons.dropna(subset=["p_first"])
    if usable.empty:
        raise ValueError("No answer is a choice (all are refusals, off format or failed), so there is nothing to fit.")
    task_ids, first, second = _indices(usable["first"], usable["second"])
    p_first = usable["p_first"].to_numpy(dtype=float)
    unordered = [tuple(sorted(pair)) for pair in zip(first.tolist(), second.tolist(), strict=True)]
    _, pair = np.unique(unordered, axis=0, return_inverse=True)
    pair = pair.reshape(-1)
    n, n_pairs = len(task_ids), int(pair.max()) + 1
    start = np.zeros(n + 1)
    fitted = _maximise(first, second, p_first, np.ones(len(usable)), prior_sd, start)
    counts = _bootstrap_counts(n_pairs, resamples, seed)
    draws = np.stack([_maximise(first, second, p_first, count[pair], prior_sd, fitted) for count in counts])
    position = Estimate.from_draws(fitted[n], draws[:, n], n_pairs)
    report = _report(comparisons, task_ids, first, second, {"pairs_used": n_pairs})
    centred = draws[:, :n] - draws[:, :n].mean(axis=1, keepdims=True)
    return Utilities(task_ids, fitted[:n] - fitted[:n].mean(), centred, position, "bradley-terry", report)


def _solve_laplacian(
    first: Int[np.ndarray, " pairs"],
    second: Int[np.ndarray, " pairs"],
    difference: Float[np.ndarray, " pairs"],
    weights: Float[np.ndarray, "fits pairs"],
    n: int,
) -> Float[np.ndarray, "fits tasks"]:
    """Weighted least squares of u_first - u_second on `difference`, with mean zero."""
    solutions = np.empty((len(weights), n))
    for number, weight in enumerate(weights):
        laplacian = np.zeros((n, n))
        np.add.at(laplacian, (first, second), -weight)
        np.add.at(laplacian, (second, first), -weight)
        laplacian[np.diag_indices(n)] = _TIE - laplacian.sum(axis=1)
        pull = np.bincount(first, weight * difference, n) - np.bincount(second, weight * difference, n)
        solutions[number] = np.linalg.solve(laplacian, pull)
    return solutions - solutions.mean(axis=1, keepdims=True)


def _maximise(
    first: Int[np.ndarray, " rows"],
    second: Int[np.ndarray, " rows"],
    p_first: Float[np.ndarray, " rows"],
    weights: Float[np.ndarray, " rows"],
    prior_sd: float,
    start: Float[np.ndarray, " parameters"],
) -> Float[np.ndarray, " parameters"]:
    """Utilities and, last, the position term, by L-BFGS with the analytic gradient."""
    n = len(start) - 1

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        utilities, position = parameters[:n], parameters[n]
        logit = utilities[first] - utilities[second] + position
        # Cross-entropy of sigmoid(logit) against p: log(1 + e^logit) - p * logit.
        value = weights @ (np.logaddexp(0, logit) - p_first * logit) + (utilities @ utilities) / (2 * prior_sd**2)
        slope = weights * (special.expit(logit) - p_first)
        gradient = np.bincount(first, slope, n) - np.bincount(second, slope, n) + utilities / prior_sd**2
        return float(value), np.append(gradient, slope.sum())

    return optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-12, "gtol": 1e-8}).x


def _indices(
    first: Sequence[str] | pd.Series, second: Sequence[str] | pd.Series
) -> tuple[tuple[str, ...], Int[np.ndarray, " rows"], Int[np.ndarray, " rows"]]:
    names, codes = np.unique(np.concatenate([np.asarray(first, dtype=str), np.asarray(second, dtype=str)]), return_inverse=True)
    half = len(codes) // 2
    return tuple(names.tolist()), codes[:half], codes[half:]


def _bootstrap_counts(n_pairs: int, resamples: int, seed: int) -> Float[np.ndarray, "resamples pairs"]:
    """How often each pair is in each resample of pairs."""
    return np.random.default_rng(seed).multinomial(n_pairs, np.full(n_pairs, 1 / n_pairs), size=resamples).astype(float)


def _report(
    comparisons: pd.DataFrame,
    task_ids: Sequence[str],
    first: Int[np.ndarray, " rows"],
    second: Int[np.ndarray, " rows"],
    counts: dict[str, Any],
) -> dict[str, Any]:
    n = len(task_ids)
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(n, n))
    asked = set(comparisons["first"]) | set(comparisons["second"])
    per_task = np.bincount(first, minlength=n) + np.bincount(second, minlength=n)
    return counts | {
        "answers": len(comparisons),
        "outcomes": comparisons["outcome"].value_counts().to_dict(),
        "components": int(connected_components(graph, directed=False)[0]),
        "tasks_without_answers": sorted(asked - set(task_ids)),
        "comparisons_per_task": dict(zip(task_ids, per_task.tolist(), strict=True)),
    }
