"""Designs: what every one must keep to, parity with naive versions, and active learning of planted utilities."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, special, stats

from elicit.active import Stop, learn
from elicit.adaptive import (
    Brackets,
    DOptimal,
    InformationGain,
    PercentileRule,
    RandomMatching,
    State,
    choice_information,
    matched,
    noise_of,
)
from elicit.comparisons import ComparisonError
from elicit.designs import all_pairs, balanced_orders, regular_pairs
from elicit.estimators import BradleyTerry, LeastSquares
from elicit.online import elo, openskill
from experiments.frozen import FrozenTable

DESIGNS = [RandomMatching(), Brackets(), PercentileRule(), DOptimal(), InformationGain()]
MATCHINGS = [design for design in DESIGNS if not isinstance(design, PercentileRule)]
each_design = pytest.mark.parametrize("design", DESIGNS, ids=repr)
NEVER = Stop(rank_correlation=None)


def ids(n):
    return [f"t{number:03}" for number in range(n)]


def unordered(pairs):
    return {frozenset(pair) for pair in pairs}


# ---- balanced orders


@st.composite
def graphs(draw):
    """Pairs of up to ten tasks, some of them more than once, each in any order."""
    tasks = ids(draw(st.integers(2, 10)))
    pair = st.sampled_from(all_pairs(tasks)).flatmap(lambda ends: st.sampled_from([ends, ends[::-1]]))
    return draw(st.lists(pair, max_size=40))


@given(graphs(), st.dictionaries(st.sampled_from(ids(10)), st.integers(-5, 5)))
def test_balanced_orders_show_every_task_first_as_often_as_second_to_within_one(pairs, ahead):
    ordered = balanced_orders(pairs, ahead)
    assert list(map(frozenset, ordered)) == list(map(frozenset, pairs))
    first, second = (Counter(pair[end] for pair in ordered) for end in (0, 1))
    degree = first + second
    assert all(abs(first[task] - second[task]) == degree[task] % 2 for task in degree)


@given(graphs())
def test_balanced_orders_depend_on_nothing_but_the_pairs(pairs):
    assert balanced_orders(pairs) == balanced_orders(list(pairs)) == balanced_orders(pairs, {})


def test_a_task_that_was_first_too_often_is_shown_second_next():
    assert balanced_orders([("a", "b")], {"a": 1}) == balanced_orders([("b", "a")], {"a": 1}) == [("b", "a")]
    assert balanced_orders([("a", "b")], {"b": 1}) == balanced_orders([("a", "b")], {"a": -1}) == [("a", "b")]
    trail = [("a", "b"), ("b", "c"), ("c", "d")]
    assert balanced_orders(trail, {"a": 2}) == [("b", "a"), ("c", "b"), ("d", "c")]
    assert balanced_orders(trail, {"d": 2}) == trail


def test_balance_lasts_over_batches():
    ahead, tasks = Counter(), ids(20)
    for seed in range(60):
        shuffled = np.random.default_rng(seed).permutation(tasks).tolist()
        for first, second in balanced_orders(list(zip(shuffled[::2], shuffled[1::2], strict=True)), ahead):
            ahead[first] += 1
            ahead[second] -= 1
    assert max(map(abs, ahead.values())) <= 5


# ---- matchings


def greedy(pairs, worth, size):
    """The best pair again and again; then the same with the rest."""
    rest = [tuple(pairs[place]) for place in np.argsort(-worth, kind="stable")]
    chosen = []
    while rest and len(chosen) < size:
        taken, left = set(), []
        for pair in rest:
            if taken.isdisjoint(pair):
                chosen.append(pair)
                taken.update(pair)
            else:
                left.append(pair)
        rest = left
    return chosen[:size]


@given(st.integers(2, 12), st.integers(0, 60), st.integers(1, 30), st.booleans(), st.integers(0, 2**31))
def test_a_matching_is_the_greedy_one_taken_pair_by_pair(n, count, size, tied, seed):
    random = np.random.default_rng(seed)
    every = np.argwhere(np.triu(np.ones((n, n)), 1))
    pairs = every[random.permutation(len(every))[:count]]
    worth = random.integers(3, size=len(pairs)).astype(float) if tied else random.normal(size=len(pairs))
    assert [tuple(pair) for pair in matched(pairs, worth, size)] == greedy(pairs, worth, size)


# ---- information


def information(mean, sd):
    """Expected information of a choice (Houlsby et al. 2011, equation 2), by adaptive quadrature."""

    def entropy(p):
        return special.entr(p) + special.entr(1 - p)

    def expected(value):
        return integrate.quad(lambda z: stats.norm.pdf(z) * value(special.expit(mean + sd * z)), -9, 9, limit=400)[0]

    return entropy(expected(lambda p: p)) - expected(entropy)


MEANS, SDS = (grid.ravel() for grid in np.meshgrid([-6.0, -1.3, 0.0, 0.4, 2.2, 9.0], [0.1, 0.45, 1.0, 2.3, 4.0, 5.9]))


def test_the_information_of_a_choice_is_that_of_its_definition():
    expected = [information(mean, sd) for mean, sd in zip(MEANS, SDS, strict=True)]
    np.testing.assert_allclose(choice_information(MEANS, SDS), expected, atol=0.003)


def test_the_information_of_a_choice_is_that_of_a_simulation():
    """As the mean divergence of what is believed after the answer from what was believed before."""
    differences = 0.7 + 1.6 * np.random.default_rng(0).normal(size=200_000)
    p = special.expit(differences)
    gain = p * np.log(p / p.mean()) + (1 - p) * np.log((1 - p) / (1 - p.mean()))
    assert choice_information(np.array([0.7]), np.array([1.6]))[0] == pytest.approx(gain.mean(), abs=0.003)


def test_closer_and_less_certain_pairs_say_more_and_no_choice_says_more_than_one_bit():
    mean, sd = np.meshgrid(np.linspace(0, 10, 30), np.linspace(0.2, 5.8, 30), indexing="ij")
    table = choice_information(mean.ravel(), sd.ravel()).reshape(mean.shape)
    assert (np.diff(table, axis=0) < 0).all() and (np.diff(table[:12], axis=1) > 0).all()
    assert (table > 0).all() and (table < np.log(2)).all()
    np.testing.assert_allclose(choice_information(-mean.ravel(), sd.ravel()), table.ravel())


def test_the_information_beyond_the_table_is_that_of_its_definition():
    for mean, sd in ((0.0, 20.0), (10.0, 20.0)):
        assert choice_information(np.array([mean]), np.array([sd]))[0] == pytest.approx(information(mean, sd), abs=0.02)


# ---- designs


def state_of(n, *, met_share=0.2, noise=None, seed=0):
    random = np.random.default_rng(seed)
    met = np.triu(random.random((n, n)) < met_share, 1)
    first, second = np.nonzero(met)
    met = met | met.T | np.eye(n, dtype=bool)
    return State.of((first, second), np.full(len(first), 0.2 if noise is None else 1.0), random.normal(size=n), met, noise)


@each_design
@given(st.integers(3, 14), st.floats(0, 1), st.integers(1, 40), st.sampled_from([None, 0.5]), st.integers(0, 99))
@settings(max_examples=40)
def test_every_design_proposes_as_many_pairs_as_are_left_none_met_and_none_twice(design, n, met_share, size, noise, seed):
    state = state_of(n, met_share=met_share, noise=noise, seed=seed)
    pairs = design.propose(state, size, np.random.default_rng(seed))
    left = int((~state.met).sum()) // 2
    assert pairs.shape == (min(size, left), 2)
    assert not state.met[pairs[:, 0], pairs[:, 1]].any()  # the diagonal counts as met
    assert len(unordered(pairs.tolist())) == len(pairs)
    again = design.propose(state, size, np.random.default_rng(seed))
    assert (pairs == again).all()


@pytest.mark.parametrize("design", MATCHINGS, ids=repr)
def test_a_batch_of_half_as_many_pairs_as_tasks_has_every_task_once(design):
    state = state_of(16, met_share=0)
    pairs = design.propose(state, 8, np.random.default_rng(0))
    assert sorted(pairs.ravel().tolist()) == list(range(16))


def test_designs_that_draw_depend_on_the_random_numbers():
    state = state_of(30)
    for design in (RandomMatching(), PercentileRule(), Brackets()):
        one, other = (design.propose(state, 15, np.random.default_rng(seed)) for seed in (0, 1))
        assert unordered(one.tolist()) != unordered(other.tolist())


def test_brackets_are_adjacent_ranks_and_then_the_nearest_that_have_not_met():
    means = np.random.default_rng(0).permutation(12).astype(float)
    met = np.eye(12, dtype=bool)
    for seed in range(5):
        pairs = Brackets().propose(State(means, met, np.eye(12)), 6, np.random.default_rng(seed))
        apart = np.abs(means[pairs[:, 0]] - means[pairs[:, 1]])
        assert len(np.unique(pairs)) == 12
        assert (apart == 1).sum() >= 4  # the least that a matching of neighbours has to which none can be added
        assert (apart == 1).tolist() == sorted(apart == 1, reverse=True)
    neighbours = np.abs(means[:, None] - means[None, :]) == 1
    pairs = Brackets().propose(State(means, met | neighbours, np.eye(12)), 4, np.random.default_rng(0))
    assert (np.abs(means[pairs[:, 0]] - means[pairs[:, 1]]) == 2).all()


def test_the_percentile_rule_takes_pairs_that_are_close_and_little_asked():
    state = state_of(40, met_share=0.3, seed=3)
    pairs = state.candidates(np.random.default_rng(0))
    apart = np.abs(state.means[pairs[:, 0]] - state.means[pairs[:, 1]])
    degrees = state.met.sum(axis=1)[pairs].sum(axis=1)
    eligible = (apart <= np.percentile(apart, 30)) & (degrees <= np.percentile(degrees, 30))
    assert 10 < eligible.sum() < len(pairs) / 3
    proposed = PercentileRule().propose(state, 10, np.random.default_rng(0))
    assert len(proposed) == 10 and unordered(proposed.tolist()) <= unordered(pairs[eligible].tolist())


def test_the_percentile_rule_relaxes_by_half_until_there_are_enough():
    state = state_of(40, met_share=0.3, seed=3)
    pairs = state.candidates(np.random.default_rng(0))
    apart = np.abs(state.means[pairs[:, 0]] - state.means[pairs[:, 1]])
    degrees = state.met.sum(axis=1)[pairs].sum(axis=1)

    def within(percentile):
        return (apart <= np.percentile(apart, percentile)) & (degrees <= np.percentile(degrees, percentile))

    size = int(within(30).sum()) + 5
    assert within(45).sum() >= size
    proposed = PercentileRule().propose(state, size, np.random.default_rng(0))
    assert len(proposed) == size
    assert unordered(proposed.tolist()) <= unordered(pairs[within(45)].tolist())
    assert not unordered(proposed.tolist()) <= unordered(pairs[within(30)].tolist())
    everything = PercentileRule(percentile=1).propose(state, 10_000, np.random.default_rng(0))
    assert unordered(everything.tolist()) == unordered(pairs.tolist())


def test_information_gain_asks_the_closest_pairs_of_equal_uncertainty():
    means = np.array([0.0, 0.1, 3.0, 3.1, 7.0, 7.1, -4.0, -4.1])
    state = State(means, np.eye(8, dtype=bool), np.eye(8))
    pairs = InformationGain().propose(state, 4, np.random.default_rng(0))
    assert unordered(pairs.tolist()) == unordered([(0, 1), (2, 3), (4, 5), (6, 7)])


@pytest.mark.parametrize("design", [InformationGain(), DOptimal()], ids=repr)
def test_uncertain_pairs_are_asked_before_certain_ones_of_the_same_distance(design):
    precision = np.diag([0.2, 0.2, 50.0, 50.0])
    state = State(np.zeros(4), np.eye(4, dtype=bool), precision)
    (first,) = design.propose(state, 1, np.random.default_rng(0)).tolist()
    assert set(first) == {0, 1}


def test_d_optimal_gains_most_in_the_determinant_of_the_information():
    state = state_of(10, met_share=0.3, seed=1)
    (pair,) = DOptimal().propose(state, 1, np.random.default_rng(0))
    gains = {}
    for one, other in state.candidates(np.random.default_rng(0)).tolist():
        contrast = np.eye(10)[one] - np.eye(10)[other]
        p = special.expit(contrast @ state.means)
        gains[one, other] = np.linalg.slogdet(state.precision + p * (1 - p) * np.outer(contrast, contrast))[1]
    assert tuple(pair.tolist()) == max(gains, key=gains.__getitem__)


def test_the_precision_of_a_state_is_the_hessian_of_the_fit_with_its_prior():
    first, second, weight = np.array([0, 1, 0]), np.array([1, 2, 1]), np.array([0.25, 0.1, 0.2])
    state = State.of((first, second), weight, np.zeros(4), np.eye(4, dtype=bool), None)
    contrasts = np.eye(4)[first] - np.eye(4)[second]
    np.testing.assert_allclose(state.precision, contrasts.T @ np.diag(weight) @ contrasts + 0.25 * np.eye(4))
    covariance = np.linalg.inv(state.precision)
    contrast = np.array([1.0, 0, -1, 0])
    assert state.variances[0, 2] == pytest.approx(contrast @ covariance @ contrast)
    assert state.variances[3, 3] == 0


def test_the_noise_of_exact_answers_is_the_residual_or_half_of_all_variance():
    assert noise_of(0.4, np.array([1.0, 2.0])) == 0.4
    for nothing in (None, np.nan, 0.0):
        assert noise_of(nothing, np.array([1.0, -1.0])) == pytest.approx(np.sqrt(0.5))
    assert noise_of(None, np.zeros(3)) > 0


# ---- active learning


def planted(n, seed=0, sd=1.5):
    values = sd * np.random.default_rng(seed).normal(size=n)
    return pd.Series(values - values.mean(), ids(n))


class ExactJudge:
    """Answers pairs in both orders, and notes them; what a pair owes to itself alone does not depend on when it is asked."""

    def __init__(self, utilities, own=0.0, position=0.4, seed=0):
        self.utilities, self.own, self.position, self.seed = utilities, own, position, seed
        self.batches = []

    def __call__(self, pairs):
        self.batches.append(list(pairs))
        rows = []
        for pair in pairs:
            low, high = sorted(pair)
            itself = self.own * np.random.default_rng([self.seed, int(low[1:]), int(high[1:])]).normal()
            for first, second, sign in ((low, high, 1), (high, low, -1)):
                logit = self.utilities[first] - self.utilities[second] + self.position + sign * itself
                rows.append((first, second, "w", "chose", logit, special.expit(logit)))
        return pd.DataFrame(rows, columns=["first", "second", "template", "outcome", "logit", "p_first"])

    @property
    def asked(self):
        return [pair for batch in self.batches for pair in batch]


class SamplingJudge(ExactJudge):
    """Draws one choice in each order."""

    def __call__(self, pairs):
        exact = super().__call__(pairs)
        random = np.random.default_rng([len(self.batches)])
        chosen = (random.random(len(exact)) < exact["p_first"]).astype(float)
        return exact.assign(p_first=chosen, logit=np.nan)


def pairs_of(table):
    return unordered(zip(table["first"], table["second"], strict=True))


@each_design
def test_active_learning_recovers_planted_utilities(design):
    utilities = planted(24)
    judge = ExactJudge(utilities, own=0.2)
    learned = learn(judge, ids(24), design=design, stop=Stop(rank_correlation=None, pairs=150))
    assert np.corrcoef(learned.utilities.values, utilities)[0, 1] > 0.99
    assert learned.utilities.position.value == pytest.approx(0.4, abs=0.01)
    assert learned.history["accuracy"].iloc[-1] > 0.75
    assert learned.trajectory.shape == (len(learned.history), 24)
    np.testing.assert_array_equal(learned.trajectory[-1], learned.utilities.values)


def test_intervals_of_the_default_hold_where_nothing_is_preferred_and_those_of_a_rule_that_asks_what_looks_close_do_not():
    def coverage(design):
        held = []
        for seed in range(6):
            judge = ExactJudge(planted(60, sd=0), own=1.0, seed=seed)
            stop = Stop(rank_correlation=None, pairs=300)
            table = learn(judge, ids(60), stop=stop, seed=seed, **({"design": design} if design else {})).utilities.labels()
            held.append(((table["low"] <= 0) & (table["high"] >= 0)).mean())
        return np.mean(held)

    assert coverage(None) > 0.92
    assert coverage(InformationGain()) < 0.75


@each_design
def test_active_learning_never_asks_a_pair_twice_nor_fits_what_it_holds_out(design):
    judge = ExactJudge(planted(20), own=0.3)
    learned = learn(judge, ids(20), design=design, stop=Stop(rank_correlation=None, pairs=120), hold_out=0.2)
    asked = unordered(judge.asked)
    assert len(asked) == len(judge.asked) == learned.history["pairs"].iloc[-1]
    fitted, held = pairs_of(learned.comparisons), pairs_of(learned.held_out)
    assert fitted.isdisjoint(held) and fitted | held == asked
    assert len(held) / len(asked) == pytest.approx(0.2, abs=0.03)
    assert learned.utilities.report.pairs == len(fitted)
    refitted = LeastSquares(resamples=200).fit(learned.comparisons)
    np.testing.assert_array_equal(refitted.values, learned.utilities.values)
    assert [len(batch) for batch in judge.batches[1:]] == [25] * (len(judge.batches) - 1)


def test_a_batch_has_as_many_pairs_as_was_asked_for():
    judge = ExactJudge(planted(20), own=0.3)
    learn(judge, ids(20), batch=9, stop=Stop(rank_correlation=None, pairs=60))
    assert [len(batch) for batch in judge.batches[1:]] == [10] * (len(judge.batches) - 1)


def test_learning_stops_when_the_ranking_is_stable():
    learned = learn(ExactJudge(planted(20)), ids(20), stop=Stop(rank_correlation=0.95))
    correlation = learned.history["rank_correlation"]
    assert learned.reason == f"the ranking is stable (rank correlation {correlation.iloc[-1]:.3f} with the fit before)"
    assert correlation.iloc[-1] >= 0.95 and not (correlation.iloc[:-1] >= 0.95).any() and np.isnan(correlation.iloc[0])
    expected = [stats.spearmanr(one, other).statistic for one, other in pairwise(learned.trajectory)]
    np.testing.assert_allclose(correlation.iloc[1:], expected)


def test_learning_stops_at_the_target_error():
    learned = learn(ExactJudge(planted(20), own=0.5), ids(20), stop=Stop(rank_correlation=None, se=0.18), seed=5)
    errors = learned.history["mean_se"]
    assert learned.reason == f"the target error is reached (mean standard error {errors.iloc[-1]:.3f})"
    assert errors.iloc[-1] <= 0.18 < errors.iloc[:-1].min() and len(errors) > 2
    assert learned.utilities.labels()["se"].mean() == pytest.approx(errors.iloc[-1])


def test_one_degree_of_freedom_is_not_enough_to_reach_a_target_error():
    """The errors of a circle of 20 are some .6; a target of .18 takes several batches."""
    for seed in range(8):
        learned = learn(ExactJudge(planted(20), own=0.5), ids(20), stop=Stop(rank_correlation=None, se=0.18), seed=seed)
        assert len(learned.history) > 1


def test_learning_stops_when_the_budget_is_spent():
    learned = learn(ExactJudge(planted(20), own=0.5), ids(20), stop=Stop(rank_correlation=None, pairs=70))
    assert learned.reason == "the budget of 70 pairs is spent"
    asked = learned.history["pairs"]
    assert asked.iloc[-1] >= 70 > asked.iloc[-2]


def test_learning_stops_when_every_pair_was_asked():
    judge = ExactJudge(planted(7), own=0.5)
    learned = learn(judge, ids(7), stop=NEVER, seed=1)
    assert learned.reason == "every pair was asked"
    assert unordered(judge.asked) == unordered(all_pairs(ids(7))) and len(judge.asked) == 21


def test_every_pair_was_asked_whatever_the_seed_when_that_is_the_reason():
    for seed in range(8):
        judge = ExactJudge(planted(10), own=0.5)
        learned = learn(judge, ids(10), stop=NEVER, hold_out=0.3, seed=seed)
        assert learned.reason == "every pair was asked"
        assert len(judge.asked) == 45


def test_the_first_batch_joins_all_tasks_whatever_is_held_out():
    for seed in range(20):
        learned = learn(ExactJudge(planted(10), own=0.5), ids(10), stop=Stop(pairs=1), hold_out=0.3, seed=seed)
        assert learned.utilities.report.components == 1 and learned.utilities.report.unanswered == ()


@each_design
def test_learning_depends_on_the_seed_and_the_answers_alone(design):
    runs = [ExactJudge(planted(16), own=0.3) for _ in range(3)]
    one, again, other = (
        learn(judge, ids(16), design=design, stop=Stop(rank_correlation=None, pairs=60), seed=seed)
        for judge, seed in zip(runs, (0, 0, 1), strict=True)
    )
    assert runs[0].batches == runs[1].batches != runs[2].batches
    pd.testing.assert_frame_equal(one.history, again.history)
    assert (one.utilities.draws == again.utilities.draws).all() and one.reason == again.reason
    assert not np.array_equal(one.utilities.values, other.utilities.values)


class Remembering:
    """Asks a judge what it has not asked yet, and breaks down once, halfway through a batch."""

    def __init__(self, judge, breaks_at):
        self.judge, self.left, self.known = judge, breaks_at, {}

    def __call__(self, pairs):
        for pair in pairs:
            if frozenset(pair) in self.known:
                continue
            self.left -= 1
            if self.left == 0:
                raise ConnectionError("the server is gone")
            self.known[frozenset(pair)] = self.judge([pair])
        return pd.concat([self.known[frozenset(pair)] for pair in pairs], ignore_index=True)


@pytest.mark.parametrize("breaks_at", [3, 30, 55])
def test_an_interrupted_run_goes_on_where_it_stopped_and_asks_nothing_twice(breaks_at):
    settings = {"stop": Stop(rank_correlation=None, pairs=70), "hold_out": 0.2}
    whole, judge = ExactJudge(planted(16), own=0.3), ExactJudge(planted(16), own=0.3)
    expected = learn(whole, ids(16), **settings)
    ask = Remembering(judge, breaks_at)
    with pytest.raises(ConnectionError):
        learn(ask, ids(16), **settings)
    assert len(judge.asked) == breaks_at - 1
    found = learn(ask, ids(16), **settings)
    assert len(judge.asked) == len(unordered(judge.asked)) and judge.asked == whole.asked
    pd.testing.assert_frame_equal(found.history, expected.history)
    np.testing.assert_array_equal(found.utilities.values, expected.utilities.values)


def test_learning_from_sampled_answers_ranks_planted_strengths():
    utilities = planted(16, sd=2.5)
    judge = SamplingJudge(utilities)
    estimator = BradleyTerry(resamples=20)
    until = Stop(rank_correlation=None, pairs=100)
    learned = learn(judge, ids(16), estimator=estimator, stop=until, hold_out=0.2)
    at_random = SamplingJudge(utilities)
    learn(at_random, ids(16), estimator=estimator, design=RandomMatching(), stop=until, hold_out=0.2)
    assert judge.asked == at_random.asked
    assert learned.utilities.method == "bradley-terry" and learned.reason == "the budget of 100 pairs is spent"
    assert stats.spearmanr(learned.utilities.values, utilities).statistic > 0.85
    assert set(learned.comparisons["p_first"]) == {0.0, 1.0}
    assert learned.history["accuracy"].iloc[-1] > 0.65 and learned.history["mean_se"].notna().all()


def test_tasks_without_a_usable_answer_are_no_obstacle():
    """A task that is always refused stays without a utility, in the report and in the trajectory."""
    judge = ExactJudge(planted(12), own=0.2)

    def ask(pairs):
        table = judge(pairs)
        refused = (table["first"] == "t003") | (table["second"] == "t003")
        return table.assign(
            outcome=np.where(refused, "refused", "chose"),
            logit=table["logit"].mask(refused),
            p_first=table["p_first"].mask(refused),
        )

    learned = learn(ask, ids(12), stop=Stop(rank_correlation=None, pairs=45))
    assert learned.utilities.report.unanswered == ("t003",) and len(learned.utilities.values) == 11
    assert np.isnan(learned.trajectory[:, 3]).all() and np.isfinite(learned.trajectory[-1, 4:]).all()
    with pytest.raises(ComparisonError, match=r"None of .* answers is a choice"):
        learn(lambda pairs: judge(pairs).assign(outcome="refused", logit=np.nan, p_first=np.nan), ids(12))


def test_learning_refuses_what_it_cannot_do():
    judge = ExactJudge(planted(5))
    with pytest.raises(ValueError, match="this design 3; got 2"):
        learn(judge, ids(2))
    with pytest.raises(ValueError, match="occurs twice"):
        learn(judge, ["a", "b", "a"])
    for share in (0, 1, -0.1):
        with pytest.raises(ValueError, match="hold-out share is"):
            learn(judge, ids(5), hold_out=share)
    with pytest.raises(ValueError, match="A batch of 0 pairs"):
        learn(judge, ids(5), batch=0)
    assert judge.asked == []


def test_a_third_of_a_frozen_table_ranks_its_tasks_as_all_of_it_does():
    frozen = FrozenTable.read()
    everything = LeastSquares(errors="none").fit(frozen.comparisons)
    learned = learn(frozen.answers, frozen.task_ids, stop=Stop(rank_correlation=None, pairs=600), seed=0)
    assert learned.utilities.task_ids == everything.task_ids
    assert stats.spearmanr(learned.utilities.values, everything.values).statistic > 0.95
    assert learned.history["rank_correlation"].iloc[-1] > learned.history["rank_correlation"].iloc[1]


# ---- online ratings


def chosen(utilities, pairs, seed=0):
    random = np.random.default_rng(seed)
    first, second = (list(each) for each in zip(*pairs, strict=True))
    p = special.expit(utilities[first].to_numpy() - utilities[second].to_numpy())
    return pd.DataFrame({"first": first, "second": second, "p_first": (random.random(len(p)) < p).astype(float)})


PAIRS = [pair for seed in range(20) for pair in regular_pairs(ids(12), 4, seed)]


@pytest.mark.parametrize("rate", [elo, openskill])
def test_online_ratings_rank_planted_strengths(rate):
    utilities = planted(12, sd=2.0)
    table = rate(chosen(utilities, PAIRS))
    assert table["rating"].is_monotonic_decreasing and set(table["task_id"]) == set(ids(12))
    assert stats.spearmanr(table["rating"], utilities[table["task_id"]]).statistic > 0.9
    assert (table["n"] == 80).all()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30), st.floats(1, 64), st.integers(0, 99))
def test_elo_takes_from_one_what_it_gives_to_the_other(shares, k, seed):
    pairs = np.random.default_rng(seed).permutation(PAIRS)[: len(shares)]
    table = pd.DataFrame(pairs, columns=["first", "second"]).assign(p_first=shares)
    ratings = elo(table, initial=1500, k=k)
    assert ratings["rating"].mean() == pytest.approx(1500)
    swapped = table.rename(columns={"first": "second", "second": "first"}).assign(p_first=1 - table["p_first"])
    other = elo(swapped, initial=1500, k=k).set_index("task_id")["rating"]
    np.testing.assert_allclose(ratings["rating"], other[ratings["task_id"]], atol=1e-8)


def test_elo_by_hand():
    table = pd.DataFrame([("a", "b", 1.0), ("a", "b", 0.0)], columns=["first", "second", "p_first"])
    after_one = 1500 + 32 / 2
    expected = 1 / (1 + 10 ** ((1500 - 16 - after_one) / 400))
    assert elo(table).set_index("task_id")["rating"]["a"] == pytest.approx(after_one - 32 * expected)


@pytest.mark.parametrize("rate", [elo, openskill])
def test_online_ratings_pass_over_answers_that_are_no_choice(rate):
    table = chosen(planted(12), PAIRS[:60])
    refused = table.head(9).assign(p_first=np.nan, outcome="refused")
    pd.testing.assert_frame_equal(rate(table), rate(pd.concat([table.assign(outcome="chose"), refused])))
    with pytest.raises(ComparisonError, match="No answer is a choice"):
        rate(refused)


def test_a_draw_moves_equal_players_nowhere():
    table = pd.DataFrame([("a", "b", 0.5)], columns=["first", "second", "p_first"])
    assert (elo(table)["rating"] == 1500).all()
    assert openskill(table)["mu"].nunique() == 1


@pytest.mark.parametrize("rate", [elo, openskill])
def test_online_ratings_read_outcomes_and_ties_as_the_estimators_do(rate):
    table = chosen(planted(12), PAIRS[:60]).assign(outcome="chose", p_tie=0.0)
    refused = table.head(9).assign(p_first=1.0, outcome="refused")
    pd.testing.assert_frame_equal(rate(table), rate(pd.concat([table, refused])))
    halves, ties = table.assign(p_first=0.5), table.assign(p_first=0.0, p_tie=1.0)
    pd.testing.assert_frame_equal(rate(halves), rate(ties))
