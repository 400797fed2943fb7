"""Other people's utilities, fitted again: published coefficients, golden scores and objectives, to the digits given there."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats

from elicit.comparisons import Comparisons
from elicit.estimators import BradleyTerry, Thurstone, ThurstoneSigmas
from elicit.extended import Sigmas
from elicit.online import elo

# ---- baseball, Agresti 2002, p. 438


@pytest.fixture(scope="module")
def games(reference):
    """Counts of every ordered pair as one row with a share and a weight; home is first."""
    counts = pd.read_csv(reference / "baseball1987.csv")
    played = counts["home.wins"] + counts["away.wins"]
    return pd.DataFrame(
        {"first": counts["home.team"], "second": counts["away.team"], "p_first": counts["home.wins"] / played, "weight": played}
    )


@pytest.fixture(scope="module")
def single_games(games):
    """The same, one row a game, so that answers are sampled ones."""
    wins = (games["p_first"] * games["weight"]).round().astype(int)
    won = games.loc[games.index.repeat(wins), ["first", "second"]].assign(p_first=1.0)
    lost = games.loc[games.index.repeat(games["weight"] - wins), ["first", "second"]].assign(p_first=0.0)
    return pd.concat([won, lost], ignore_index=True)


def against_baltimore(fitted):
    return {team: round(fitted.difference(team, "Baltimore").value, 4) for team in fitted.task_ids}


def deviance(fitted, games):
    """Of binomial counts: twice the log-likelihood between a probability for every ordered pair and the model."""
    share, weight = games["p_first"].to_numpy(), games["weight"].to_numpy()
    eta = fitted.eta(games["first"], games["second"], with_position=True)
    saturated = special.entr(share) + special.entr(1 - share)
    return 2 * float(weight @ (fitted.cross_entropy(eta, share) - saturated))


def test_baseball_without_an_order_effect_is_as_published(games):
    fitted = BradleyTerry(prior_sd=None, position=False, errors="none").fit(games)
    assert against_baltimore(fitted) == {
        "Baltimore": 0.0,
        "Boston": 1.1077,
        "Cleveland": 0.6839,
        "Detroit": 1.4364,
        "Milwaukee": 1.5814,
        "New York": 1.2476,
        "Toronto": 1.2945,
    }
    assert round(deviance(fitted, games), 3) == 44.053


def test_baseball_with_an_order_effect_is_as_published(games):
    fitted = BradleyTerry(prior_sd=None, errors="none").fit(games)
    teams = against_baltimore(fitted)
    assert (teams["Cleveland"], teams["Milwaukee"]) == (0.7047, 1.6196)
    assert sorted(teams, key=teams.__getitem__) == [
        "Baltimore",
        "Cleveland",
        "Boston",
        "New York",
        "Toronto",
        "Detroit",
        "Milwaukee",
    ]
    assert round(fitted.position.value, 4) == 0.3023
    assert round(deviance(fitted, games), 3) == 38.643


def test_the_home_advantage_of_baseball_has_the_published_error_and_test(single_games):
    fitted = BradleyTerry(prior_sd=None, errors="hessian", resamples=2).fit(single_games)
    assert (round(fitted.position.value, 4), round(fitted.position.se, 4)) == (0.3023, 0.1309)
    test = fitted.report.position_test
    assert (round(test.statistic, 2), round(test.p, 3)) == (5.41, 0.020)


# ---- food, of evalica: ties


@pytest.fixture(scope="module")
def food(reference):
    table = pd.read_csv(reference / "evalica_food.csv")
    shares = table["winner"].map({"left": 1.0, "tie": 0.5, "right": 0.0})
    return pd.DataFrame({"first": table["left"], "second": table["right"], "p_first": shares})


def golden(reference, algorithm):
    table = pd.read_csv(reference / "evalica_food_golden.csv")
    return table[table["algorithm"] == algorithm].set_index("item")["score"]


def test_bradley_terry_with_ties_as_half_wins_equals_evalica(reference, food):
    fitted = BradleyTerry(prior_sd=None, position=False, errors="none").fit(food)
    scores = golden(reference, "bradley_terry")[list(fitted.task_ids)]
    np.testing.assert_allclose(special.softmax(fitted.values), scores, rtol=1e-6)


def test_ties_in_a_column_of_their_own_are_the_same_half_wins(reference, food):
    tied = food["p_first"] == 0.5
    table = food.assign(p_first=food["p_first"].where(~tied, 0.0), p_tie=tied.astype(float))
    fitted = BradleyTerry(prior_sd=None, position=False, errors="none").fit(table)
    scores = golden(reference, "bradley_terry")[list(fitted.task_ids)]
    np.testing.assert_allclose(special.softmax(fitted.values), scores, rtol=1e-6)


def test_elo_equals_evalica(reference, food):
    ratings = elo(food, initial=1000, k=4, scale=400).set_index("task_id")["rating"]
    expected = golden(reference, "elo")
    np.testing.assert_allclose(ratings[expected.index], expected, rtol=1e-12)
    assert ratings.index.tolist() == expected.index.tolist()


# ---- video quality, of sureal: five contents that are never compared with one another


def test_thurstone_on_five_disconnected_components_is_as_published(reference):
    """Z-scored by the population's standard deviation; the kurtosis is the population's too, in excess of the normal's."""
    votes = pd.read_csv(reference / "sureal_lukas_pc.csv", dtype=str)
    assert (len(votes), votes["observer"].nunique()) == (2128, 31)
    table = pd.DataFrame({"first": votes["winner"], "second": votes["loser"], "p_first": 1.0})
    fitted = Thurstone(prior_sd=1000, position=False, errors="none").fit(table)
    assert fitted.report.components == 5 and len(fitted.task_ids) == 40 and fitted.report.convergence.converged
    assert "fall into 5 components" in str(fitted.report)
    content = pd.Series(fitted.component, fitted.task_ids).groupby(fitted.component).size()
    assert content.tolist() == [8] * 5
    scores = stats.zscore([fitted.values[fitted.task_ids.index(str(item))] for item in range(40)])
    assert round(float(stats.kurtosis(scores)), 5) == -0.34118
    assert (round(scores[0], 5), round(scores[-1], 5)) == (0.37914, -0.41006)


# ---- choices of a model under a persona: a spread for every task


@lru_cache
def villain(reference):
    """The choices, and their table with refusals marked, of which a reader that ignores `outcome` makes losses of the first."""
    choices = pd.read_csv(reference / "villain_choices.csv")
    outcome = np.where(choices["choice"] == "refusal", "refused", "chose")
    return choices[["first", "second"]].assign(p_first=(choices["choice"] == "first").astype(float), outcome=outcome)


def penalised(table, mu, sigma):
    """Negative log-likelihood plus the sum of squared log sigmas, of values by task."""
    cells = Comparisons.of(table)
    tasks = list(cells.task_ids)
    assert set(tasks) == set(mu.index)
    means, log_sigmas = mu[tasks].to_numpy(), np.log(sigma[tasks].to_numpy())
    model = Sigmas(cells, precision=0.0, position=False, penalty=1.0)
    return model.cell_loss(means[cells.first] - means[cells.second], log_sigmas, cells.weight)[0]


def test_the_published_objective_is_met_with_refusals_dropped_and_only_wrongly_without(reference):
    published = pd.read_csv(reference / "villain_published_fit.csv", index_col="task")
    table = villain(reference)
    assert len(table) == 32_330
    assert round(penalised(table, published["mu"], published["sigma"]), 3) == 9504.641
    refusals_as_losses = table.drop(columns="outcome")
    assert round(penalised(refusals_as_losses, published["mu"], published["sigma"]), 3) == 9634.564


def test_our_sigmas_are_no_worse_than_the_published_ones_on_their_objective(reference):
    published = pd.read_csv(reference / "villain_published_fit.csv", index_col="task")
    table = villain(reference)
    fitted = ThurstoneSigmas(penalty=1, position=False, errors="none").fit(table)
    assert fitted.report.convergence.converged
    assert fitted.report.outcomes == {"chose": 32_111, "refused": 219}
    mu, sigma = (pd.Series(each, fitted.task_ids) for each in (fitted.values, fitted.sigmas))
    assert np.ptp(mu) <= 20 and (np.abs(np.log(sigma)) <= 2).all()
    assert penalised(table, mu, sigma) <= 9504.641
    assert mu.corr(published["mu"]) > 0.99


# ---- all pairs of 100 tasks, both orders, ten draws each


@lru_cache
def dense(reference):
    """Draws of every presentation; the first presentation of each pair that is listed; and the published utilities."""
    counts = pd.read_csv(reference / "dense_pairs.csv")
    votes = counts["chose_first"] + counts["chose_second"]
    table = counts.assign(p_first=counts["chose_first"] / votes, weight=votes, outcome=np.where(votes > 0, "chose", "unparsed"))
    pair = [frozenset(ends) for ends in zip(counts["first"], counts["second"], strict=True)]
    listed_first = ~pd.Series(pair).duplicated()
    published = pd.read_csv(reference / "dense_tasks.csv", index_col="task")["published_mu"]
    return table, listed_first.to_numpy(), published


DENSE_FITS = [
    BradleyTerry(prior_sd=2, errors="none"),
    BradleyTerry(prior_sd=5, errors="none"),
    BradleyTerry(prior_sd=2, position=False, errors="none"),
    BradleyTerry(prior_sd=5, position=False, errors="none"),
    Thurstone(prior_sd=2, position=False, errors="none"),
]


@pytest.mark.parametrize("estimator", DENSE_FITS, ids=repr)
def test_one_presentation_of_each_pair_agrees_with_the_other_as_published(reference, estimator):
    table, listed_first, _ = dense(reference)
    one, other = (estimator.fit(table[which]) for which in (listed_first, ~listed_first))
    assert one.report.pairs < 4950 and one.task_ids == other.task_ids and len(one.task_ids) == 100
    assert 0.90 <= round(float(np.corrcoef(one.values, other.values)[0, 1]), 2) <= 0.93


@pytest.mark.parametrize("estimator", DENSE_FITS, ids=repr)
def test_a_dense_fit_agrees_with_the_published_utilities_as_published(reference, estimator):
    table, _, published = dense(reference)
    fitted = estimator.fit(table)
    assert 0.94 <= round(float(np.corrcoef(fitted.values, published[list(fitted.task_ids)])[0, 1]), 2) <= 0.95
