"""Estimators of utilities: one interface, `Estimator(parameters).fit(comparisons) -> Utilities`.

Exact answers are fitted by least squares on order-averaged log-odds, sampled ones by Bradley-Terry with a position term;
Thurstone's models and what extends either are beside them. Intervals are a bootstrap over whole pairs unless said otherwise.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy import special, stats
from sklearn.base import BaseEstimator

from elicit.comparisons import ComparisonError, Comparisons
from elicit.extended import Davidson, Extended, Lapse, Sigmas
from elicit.newton import CellLoss, PairLoss, bootstrap_counts, logistic, probit, resampled, squared
from elicit.pairs import order_averages
from elicit.utilities import NORMAL_REACH, FitReport, LikelihoodRatio, Link, Utilities
from store.estimates import Estimate

_DENSE = 3000
"""Up to so many parameters, standard errors come from a dense inverse; beyond, from draws."""
_TEST_TOLERANCE = 1e-7
"""Of the gradient, for a likelihood: its error is the square of that."""
_LARGE_POSITION = 10.0
"""Standard deviation of a prior on the position term, in logits, where one place always wins and it has no finite value."""
_NULL = 1e-10
"""Share of the largest eigenvalue below which one is an origin's zero and rounding; numpy's own 1e-15 takes some for more."""


class Estimator(Protocol):
    """Anything that turns comparisons into utilities."""

    def fit(self, comparisons: pd.DataFrame, task_ids: Sequence[str] | None = None) -> Utilities:
        """Fit utilities."""
        ...


@dataclass(eq=False, repr=False)
class LeastSquares(BaseEstimator):
    """Least squares on order-averaged log-odds: the estimator for exact answers.

    Minimises the squared distance of u_1 - u_2 from the content of every pair. What remains is pair-specific: bias that
    averaging two orders did not remove, and intransitivity.

    Parameters
    ----------
    errors
        `residual`: the residuals of pairs, taken as independent and of one variance, with Student's t for the degrees of
        freedom that are left; `bootstrap`: over whole pairs; `none`.
    resamples
        Draws of either kind.
    seed
        Of the draws.
    n_jobs
        Workers; -1 for all cores. Results do not depend on it.
    """

    errors: Literal["residual", "bootstrap", "none"] = "residual"
    resamples: int = 500
    seed: int = 0
    n_jobs: int = -1

    def fit(self, comparisons: pd.DataFrame, task_ids: Sequence[str] | None = None) -> Utilities:
        """Fit utilities to exact answers.

        Parameters
        ----------
        comparisons
            From `choice.comparisons`. Pairs answered on format in only one order are left out and counted.
        task_ids
            Every task there is, to be told of those without an answer.

        Raises
        ------
        ComparisonError
            No pair was answered on format in both orders, or see `Comparisons.of`.
        """
        _check(self, ("residual", "bootstrap", "none"))
        asked = Comparisons.of(comparisons, task_ids)
        if "weight" in comparisons:
            comparisons = comparisons[comparisons["weight"] > 0]
        if "logit" not in comparisons:
            raise ComparisonError(
                "The comparisons have no column logit; least squares is for exact answers. Use BradleyTerry for sampled ones."
            )
        pairs = order_averages(comparisons)
        if pairs.empty:
            raise ComparisonError(
                "No pair has an answer on format in both orders, so there is nothing to fit. "
                "`penchant preflight` shows which templates this model can answer."
            )
        content, position = pairs["content"].to_numpy(dtype=float), pairs["position"].to_numpy(dtype=float)
        bad = np.flatnonzero(~np.isfinite(content))
        if len(bad):
            names = (pairs["task_1"].iloc[bad[0]], pairs["task_2"].iloc[bad[0]])
            raise ComparisonError(f"The log-odds of the pair {names} are {content[bad[0]]}; expected a finite number.")
        # One cell a pair, in the order of the pairs: both are sorted by their ids.
        once = pairs.rename(columns={"task_1": "first", "task_2": "second"}).assign(p_first=special.expit(content))
        cells = Comparisons.of(once.assign(weight=_pair_weights(comparisons, pairs)))
        weights = cells.weight
        n = len(cells.task_ids)
        loss = PairLoss.of((cells.first, cells.second), content, n, cell_loss=squared, precision=0.0, position=False)
        fitted, (convergence,) = loss.minimise(weights[:, None], np.zeros(n), 1e-11)
        values = fitted[:, 0]
        component = cells.components()
        log_loss = float(logistic((values[cells.first] - values[cells.second])[:, None], cells.won[:, None])[0].mean())
        residual = content - (values[cells.first] - values[cells.second])
        freedom = len(content) - n + int(component.max()) + 1
        variance = float(weights @ residual**2) / freedom if freedom > 0 else math.nan
        draws, failed = self._draws(loss, cells, values, variance, freedom)
        exact = self.errors == "residual" and freedom > 0 and n <= _DENSE
        se = (
            np.sqrt(variance * np.diag(np.linalg.pinv(loss.dense_hessian(weights), rcond=_NULL, hermitian=True)))
            if exact
            else None
        )
        random = np.random.default_rng([self.seed, 1])
        position_draws = [position[random.integers(len(position), size=len(position))].mean() for _ in range(self.resamples)]
        return Utilities(
            task_ids=cells.task_ids,
            values=values - values.mean(),
            draws=_centred(draws),
            position=Estimate.from_draws(position.mean(), position_draws, len(position)),
            method="least squares",
            link="logistic",
            component=component,
            report=replace(
                FitReport.of(cells, convergence, log_loss),
                answers=asked.answers,
                outcomes=asked.outcomes,
                unanswered=tuple(sorted({*asked.unanswered, *set(asked.task_ids).difference(cells.task_ids)})),
                unconverged_resamples=failed,
                residual_sd=math.sqrt(variance) if freedom > 0 else math.nan,
            ),
            se=se,
            reach=float(stats.t.ppf(0.975, freedom)) if exact else NORMAL_REACH,
        )

    def _draws(
        self, loss: PairLoss, cells: Comparisons, values: np.ndarray, variance: float, freedom: int
    ) -> tuple[np.ndarray, int]:
        if self.errors == "none" or (self.errors == "residual" and freedom < 1):
            return np.empty((0, len(values))), 0
        if self.errors == "bootstrap":
            return resampled(
                loss, cells.weight, cells.pair, values, resamples=self.resamples, seed=self.seed, n_jobs=self.n_jobs
            )
        random = np.random.default_rng(self.seed)
        noise = random.normal(size=(len(loss.target), self.resamples)) * math.sqrt(variance)
        noise *= np.sqrt(freedom / random.chisquare(freedom, size=self.resamples)) * np.sqrt(cells.weight)[:, None]
        return (values[:, None] + loss.solve_at(cells.weight, loss.design.T @ noise)).T, 0


@dataclass(eq=False, repr=False)
class BradleyTerry(BaseEstimator):
    """Bradley-Terry with a position term, by maximum a posteriori: the estimator for sampled answers.

    P(first is chosen) = sigmoid(u_first - u_second + position). Probabilities are accepted as soft outcomes.

    Parameters
    ----------
    prior_sd
        Standard deviation, in logits, of independent normal priors on the utilities, which keep tasks that always win or
        lose finite; None for maximum likelihood. Where utilities turn out about as wide, the report says to raise it.
    position
        Whether there is a position term; it has no prior.
    ties
        `half`: a tie is half a win to each; `davidson`: a third outcome with a parameter of its own (Davidson 1970).
    lapse
        Whether a share of the answers is a fair coin, to be fitted.
    errors
        `bootstrap` over whole pairs; `hessian`, for independent sampled answers alone (on probabilities, or on several draws
        of a pair with a bias of its own, it is far too narrow or too wide); `none`.
    resamples, seed, n_jobs
        As in `LeastSquares`.
    """

    prior_sd: float | None = 2.0
    position: bool = True
    ties: Literal["half", "davidson"] = "half"
    lapse: bool = False
    errors: Literal["bootstrap", "hessian", "none"] = "bootstrap"
    resamples: int = 200
    seed: int = 0
    n_jobs: int = -1

    def fit(self, comparisons: pd.DataFrame, task_ids: Sequence[str] | None = None) -> Utilities:
        """Fit utilities.

        Parameters
        ----------
        comparisons
            From `choice.comparisons`, or any table with columns `first`, `second`, `p_first`; see `Comparisons.of`.
        task_ids
            Every task there is, to be told of those without an answer.

        Raises
        ------
        ComparisonError
            See `Comparisons.of`; or there is no prior and no finite maximum; or Hessian errors are asked for of
            probabilities.
        ValueError
            A parameter is not what it can be.
        """
        _check(self, ("bootstrap", "hessian", "none"))
        if self.ties not in ("half", "davidson"):
            raise ValueError(f"ties is {self.ties!r}; expected 'half' or 'davidson'.")
        if self.ties == "davidson" and self.lapse:
            raise ValueError("Davidson's ties and a lapse rate cannot be fitted together; choose one.")
        cells = Comparisons.of(comparisons, task_ids)
        if self.ties == "half" and not self.lapse:
            return _fit_curve(self, cells, logistic, "logistic", "bradley-terry")
        model = (Lapse if self.lapse else Davidson)(cells, _precision(self.prior_sd, cells), self.position)
        return _fit_extended(self, model, "logistic", "bradley-terry", {"lapse rate" if self.lapse else "log nu of ties": 0})


@dataclass(eq=False, repr=False)
class Thurstone(BaseEstimator):
    """Thurstone's case V, by maximum a posteriori: P(first is chosen) = Phi(u_first - u_second + position).

    The unit of the utilities is one standard deviation of a difference. For the parameters see `BradleyTerry`.
    """

    prior_sd: float | None = 2.0
    position: bool = True
    errors: Literal["bootstrap", "hessian", "none"] = "bootstrap"
    resamples: int = 200
    seed: int = 0
    n_jobs: int = -1

    def fit(self, comparisons: pd.DataFrame, task_ids: Sequence[str] | None = None) -> Utilities:
        """Fit utilities; see `BradleyTerry.fit`."""
        _check(self, ("bootstrap", "hessian", "none"))
        return _fit_curve(self, Comparisons.of(comparisons, task_ids), probit, "probit", "thurstone")


@dataclass(eq=False, repr=False)
class ThurstoneSigmas(BaseEstimator):
    """Thurstone with a spread per task, as in the utility-engineering literature (Mazeika et al. 2025).

    P(first is chosen) = Phi((mu_first - mu_second + position) / sqrt(s_first^2 + s_second^2)), with mu in [-10, 10] and
    log s in [-2, 2]. With few judgements per pair, free spreads overfit badly: compare hold-out losses over `penalty`.

    Parameters
    ----------
    penalty
        Weight of sum (log s)^2, in nats.
    position, errors, resamples, seed, n_jobs
        As in `BradleyTerry`; there are no Hessian errors.
    """

    penalty: float = 1.0
    position: bool = True
    errors: Literal["bootstrap", "none"] = "bootstrap"
    resamples: int = 200
    seed: int = 0
    n_jobs: int = -1

    def fit(self, comparisons: pd.DataFrame, task_ids: Sequence[str] | None = None) -> Utilities:
        """Fit utilities and spreads; see `BradleyTerry.fit`."""
        _check(self, ("bootstrap", "none"))
        if not self.penalty >= 0:
            raise ValueError(f"penalty is {self.penalty}; expected a number of at least 0.")
        model = Sigmas(Comparisons.of(comparisons, task_ids), 0.0, self.position, self.penalty)
        return _fit_extended(self, model, "probit", "thurstone sigmas", {})


def _pair_weights(comparisons: pd.DataFrame, pairs: pd.DataFrame) -> Float[np.ndarray, " pairs"] | float:
    """Mean weight of the answers to every pair; 1 without weights."""
    if "weight" not in comparisons:
        return 1.0
    usable = comparisons.dropna(subset=["logit"])
    ends = np.sort(usable[["first", "second"]].to_numpy(dtype=str), axis=1)
    mean = usable.assign(task_1=ends[:, 0], task_2=ends[:, 1]).groupby(["task_1", "task_2"])["weight"].mean()
    return mean.loc[pd.MultiIndex.from_frame(pairs[["task_1", "task_2"]])].to_numpy()


def _resample_weights(cells: Comparisons, estimator: Any) -> Iterator[Float[np.ndarray, " cells"]]:
    """Weights of the cells in every bootstrap resample."""
    for number in range(estimator.resamples):
        yield cells.weight * bootstrap_counts(cells.n_pairs, estimator.seed, number)[cells.pair]


def _fit_curve(estimator: Any, cells: Comparisons, cell_loss: CellLoss, link: Link, method: str) -> Utilities:
    """Fit a model whose probability is one curve of u_first - u_second + position."""
    n, weights = len(cells.task_ids), cells.weight

    one_sided = estimator.position and (cells.won.min() == 1 or cells.won.max() == 0)

    def loss_of(position: bool, precision: float) -> PairLoss:
        ends = (cells.first, cells.second)
        loss = PairLoss.of(ends, cells.won, n, cell_loss=cell_loss, precision=precision, position=position)
        if position and one_sided:
            loss.precision[-1] = 1 / _LARGE_POSITION**2
        return loss

    precision = _precision(estimator.prior_sd, cells)
    loss = loss_of(estimator.position, precision)
    fitted, (convergence,) = loss.minimise(weights[:, None], np.zeros(n + estimator.position))
    parameters, se, failed = fitted[:, 0], None, 0
    draws = np.empty((0, len(parameters)))
    if estimator.errors == "bootstrap":
        draws, failed = resampled(
            loss, weights, cells.pair, parameters, resamples=estimator.resamples, seed=estimator.seed, n_jobs=estimator.n_jobs
        )
        if not precision:
            known = [cells.has_maximum(counts) for counts in _resample_weights(cells, estimator)]
            draws, failed = draws[known], failed + known.count(False)
        # Refits are pulled in once more than the fit itself: their spread is taken, not their place.
        draws = draws + (parameters - draws.mean(axis=0)) if len(draws) else draws
        draws = draws + _bias_draws(loss, parameters, weights, len(draws), estimator.seed)
    elif estimator.errors == "hessian":
        draws, se = _hessian_draws(estimator, loss, cells, parameters)
    position = _nothing(cells)
    test = None
    if estimator.position:
        position = Estimate.from_draws(parameters[n], draws[:, n], cells.n_pairs)
        if se is not None:
            margin = NORMAL_REACH * se[n]
            position = Estimate(parameters[n], parameters[n] - margin, parameters[n] + margin, float(se[n]), cells.n_pairs)
        if cells.sampled:
            without = loss_of(False, precision)
            reduced, _ = without.minimise(weights[:, None], parameters[:n], _TEST_TOLERANCE)
            gain = without.value(reduced[:, 0], weights) - loss.value(parameters, weights)
            test = LikelihoodRatio.of(gain)
    eta = loss.design @ parameters
    mean_loss = float(weights @ cell_loss(eta[:, None], cells.won[:, None])[0][:, 0] / weights.sum())
    return Utilities(
        task_ids=cells.task_ids,
        values=parameters[:n] - parameters[:n].mean(),
        draws=_centred(draws[:, :n]),
        position=position,
        method=method,
        link=link,
        component=cells.components(),
        report=FitReport.of(
            cells,
            convergence,
            mean_loss,
            position_test=test,
            unconverged_resamples=failed,
            prior_sd=estimator.prior_sd,
            sd=float(parameters[:n].std()),
            always_one_place=("first" if cells.won.min() == 1 else "second") if one_sided else None,
        ),
        se=None if se is None else se[:n],
    )


def _fit_extended(estimator: Any, model: Extended, link: Link, method: str, named: dict[str, int]) -> Utilities:
    """Fit a model with further parameters; those that are `named` go to the report."""
    cells, n = model.cells, model.n_tasks
    if estimator.errors == "hessian":
        raise ValueError("Hessian errors are for the plain model alone; use errors='bootstrap' with ties='davidson' or lapse.")
    parameters, convergence = model.minimise(cells.weight)
    draws, failed = np.empty((0, len(parameters))), 0
    if estimator.errors == "bootstrap":
        draws, failed = model.resampled(parameters, resamples=estimator.resamples, seed=estimator.seed, n_jobs=estimator.n_jobs)
    further = parameters[n + 1 :]
    position = parameters[n] if model.position else 0.0
    eta = parameters[cells.first] - parameters[cells.second] + position
    plain = replace(model, penalty=0.0) if isinstance(model, Sigmas) else model
    mean_loss = plain.cell_loss(eta, further, cells.weight)[0] / float(cells.weight.sum())
    has_sigmas = isinstance(model, Sigmas)
    return Utilities(
        task_ids=cells.task_ids,
        values=parameters[:n] - parameters[:n].mean(),
        draws=_centred(draws[:, :n]),
        position=Estimate.from_draws(parameters[n], draws[:, n], cells.n_pairs) if model.position else _nothing(cells),
        method=method,
        link=link,
        component=cells.components(),
        report=FitReport.of(
            cells,
            convergence,
            mean_loss,
            unconverged_resamples=failed,
            prior_sd=getattr(estimator, "prior_sd", None),
            sd=float(parameters[:n].std()),
            parameters={
                name: Estimate.from_draws(further[place], draws[:, n + 1 + place], cells.n_pairs)
                for name, place in named.items()
            },
        ),
        sigmas=np.exp(further) if has_sigmas else None,
        sigma_draws=np.exp(draws[:, n + 1 :]) if has_sigmas else None,
    )


def _hessian_draws(
    estimator: Any, loss: PairLoss, cells: Comparisons, parameters: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draws from the normal distribution with the Hessian's inverse as covariance, origin fixed, and exact errors if small."""
    if not cells.sampled:
        raise ComparisonError(
            "Hessian errors are for independent sampled answers; these are probabilities, which have no sampling error of that "
            "kind. Use errors='bootstrap'."
        )
    n, curvature = len(cells.task_ids), loss.curvature(parameters, cells.weight)
    random = np.random.default_rng(estimator.seed)
    noise = np.sqrt(loss.precision)[:, None] * random.normal(size=(len(parameters), estimator.resamples))
    for column in range(estimator.resamples):  # one at a time: cells by resamples may not fit in memory
        noise[:, column] += loss.design.T @ (np.sqrt(curvature) * random.normal(size=len(curvature)))
    draws = (parameters[:, None] + loss.solve_at(curvature, noise)).T
    if len(parameters) > _DENSE:
        return draws, None
    centring = np.eye(len(parameters))
    centring[:n, :n] -= 1 / n
    covariance = centring @ np.linalg.pinv(loss.dense_hessian(curvature), rcond=_NULL, hermitian=True) @ centring.T
    return draws, np.sqrt(np.maximum(np.diag(covariance), 0))


def _bias_draws(
    loss: PairLoss, parameters: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> Float[np.ndarray, "resamples parameters"]:
    """What the prior's pull may be off by, as draws.

    The bootstrap sees the spread of the fit and not that the prior pulls it in, by H^-1 P u with P the prior's precision. That
    is drawn for utilities u as wide as the fitted ones; were they as wide as the prior, and answers independent, both would
    add up to the posterior's H^-1.
    """
    if not loss.precision.any():
        return np.zeros((resamples, len(loss.precision)))
    random = np.random.default_rng([seed, 2])
    utilities = parameters[: loss.n_tasks].std() * random.normal(size=(len(loss.precision), resamples))
    return loss.solve_at(loss.curvature(parameters, weights), loss.precision[:, None] * utilities, 1e-6).T


def _precision(prior_sd: float | None, cells: Comparisons) -> float:
    if prior_sd is not None:
        if not (prior_sd > 0 and math.isfinite(prior_sd)):
            raise ValueError(f"prior_sd is {prior_sd}; expected a positive number, or None for no prior.")
        return 1 / prior_sd**2
    if not cells.has_maximum():
        met, won = cells.per_task()
        extreme = [name for name, of, got in zip(cells.task_ids, met, won, strict=True) if got in (0, of)]
        raise ComparisonError(
            "Some tasks won, or lost, all their comparisons with the rest"
            + (f" ({', '.join(extreme[:5])})" if extreme else "")
            + ", so without a prior the utilities have no finite maximum. Set prior_sd, for instance to 2."
        )
    return 0.0


def _check(estimator: Any, errors: Sequence[str]) -> None:
    if estimator.errors not in errors:
        raise ValueError(f"errors is {estimator.errors!r}; expected one of {list(errors)}.")
    if estimator.resamples < 2:
        raise ValueError(f"resamples is {estimator.resamples}; expected at least 2.")


def _centred(draws: Float[np.ndarray, "resamples tasks"]) -> Float[np.ndarray, "resamples tasks"]:
    return draws - draws.mean(axis=1, keepdims=True) if len(draws) else draws


def _nothing(cells: Comparisons) -> Estimate:
    """The position term of a model without one."""
    return Estimate(0.0, math.nan, math.nan, math.nan, cells.n_pairs)
