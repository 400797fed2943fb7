"""Hard cycles: counts against going through all triads one by one, and expectations against what was planted."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import special

from elicit.comparisons import ComparisonError
from elicit.reliability import hard_cycles


def exact(content: dict[tuple[str, str], float], position: dict[tuple[str, str], float] | float = 0.0) -> pd.DataFrame:
    """Exact answers to pairs in both orders, with their content and position."""
    rows = []
    for (a, b), worth in content.items():
        bias = position if isinstance(position, float) else position[a, b]
        for first, second, sign in ((a, b, 1), (b, a, -1)):
            logit = sign * worth + bias
            rows.append((first, second, "w", 0, "chose", logit, special.expit(logit)))
    return pd.DataFrame(rows, columns=["first", "second", "template", "draw", "outcome", "logit", "p_first"])


def planted(n: int, spread: float, seed: int, bias: float = 0.0) -> pd.DataFrame:
    """Utilities of standard deviation 1 and independent residuals of pairs; a position bias of every pair's own."""
    random = np.random.default_rng(seed)
    ids = [f"t{number:02}" for number in range(n)]
    utility = dict(zip(ids, random.normal(size=n), strict=True))
    pairs = list(itertools.combinations(ids, 2))
    content = {(a, b): utility[a] - utility[b] + spread * random.normal() for a, b in pairs}
    return exact(content, {pair: bias * random.normal() for pair in pairs})


def cycles_one_by_one(content: dict[tuple[str, str], float]) -> dict[str, int]:
    """Hard cycles that every task is in, by going through the triads."""
    found = dict.fromkeys({task for pair in content for task in pair}, 0)
    for triad in itertools.combinations(sorted(found), 3):
        a, b, c = triad
        if (content[a, b] > 0) == (content[b, c] > 0) != (content[a, c] > 0):
            for task in triad:
                found[task] += 1
    return found


def test_counts_are_those_of_going_through_all_triads():
    random = np.random.default_rng(1)
    content = {pair: float(random.normal()) for pair in itertools.combinations("abcdefghi", 2)}
    found = hard_cycles(exact(content), simulations=2, resamples=20)
    by_task = cycles_one_by_one(content)
    assert found.pooled.triads == found.pooled.decided == 84 and found.pooled.hard == sum(by_task.values()) / 3
    assert dict(zip(found.tasks["task_id"], found.tasks["hard"], strict=True)) == by_task
    assert found.pairs["hard"].sum() == 3 * found.pooled.hard and found.tasks["triads"].eq(28).all()


def test_one_cycle_and_its_opposite_are_each_one():
    for sign in (1, -1):
        found = hard_cycles(exact({("a", "b"): sign, ("b", "c"): sign, ("a", "c"): -sign}), simulations=2, resamples=5)
        assert (found.pooled.hard, found.pooled.rate.value, found.pooled.of_decided) == (1, 1.0, 1.0)


def test_transitive_preferences_have_no_cycle_and_the_interval_still_has_a_width():
    found = hard_cycles(planted(12, 0.0, 0), simulations=20, resamples=50)
    assert found.pooled.hard == found.pooled.expected.value == 0 and found.flips.value == 0
    # None in the four triads that share no task: (1 - high)^4 = 2.5 %.
    assert found.pooled.rate.low == 0 and (1 - found.pooled.rate.high) ** 4 == pytest.approx(0.025)


def test_a_constant_bias_listed_along_an_order_looks_transitive_and_a_coin_shows_that_it_is_not():
    ids = [f"t{number:02}" for number in range(20)]
    table = exact(dict.fromkeys(itertools.combinations(ids, 2), 0.0), position=1.0)
    listed = hard_cycles(table, one_order="listed", simulations=2, resamples=20)
    coin = hard_cycles(table, simulations=2, resamples=200)
    assert listed.one_order.hard == 0
    assert coin.one_order.rate.low < 0.25 < coin.one_order.rate.high and coin.one_order.chance == 0.25
    assert coin.pooled.decided == coin.pooled.hard == 0 and np.isnan(coin.pooled.of_decided)  # all pairs are ties
    assert coin.flips.value == 1.0


@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_the_expectation_under_noise_contains_the_rate_of_answers_with_independent_residuals(spread):
    inside = 0
    for seed in range(20):
        rate = hard_cycles(planted(20, spread, seed), simulations=60, resamples=2).pooled
        inside += rate.expected.low <= rate.rate.value <= rate.expected.high
        assert 0 < rate.expected.value < 0.25
    assert inside >= 16  # 95 % are expected; so few happen with a probability of .003


def test_the_expectation_of_one_order_allows_for_the_bias_of_pairs():
    found = hard_cycles(planted(24, 0.2, 3, bias=1.5), simulations=100, resamples=200)
    alone = found.one_order
    assert alone.rate.value > 3 * found.pooled.rate.value and alone.p > 0.01
    assert alone.expected.low <= alone.rate.value <= alone.expected.high


def test_three_groups_in_a_circle_make_a_cycle_of_every_triad_across_them():
    ids = [f"t{number:02}" for number in range(18)]
    group = {task: number % 3 for number, task in enumerate(ids)}  # rock, paper, scissors; within a group, by number
    content = {(a, b): (0.01, 1.0, -1.0)[(group[a] - group[b]) % 3] for a, b in itertools.combinations(ids, 2)}
    found = hard_cycles(exact(content), simulations=50, resamples=20)
    assert found.pooled.hard == 6**3 and found.tasks["hard"].eq(36).all()


def test_sampled_answers_of_a_transitive_model_are_what_noise_gives():
    inside = 0
    for seed in range(10):
        random, table = np.random.default_rng(seed), planted(16, 0.0, seed)
        drawn = random.binomial(5, table["p_first"]) / 5
        sampled = table.drop(columns="logit").assign(p_first=drawn, weight=5)
        rate = hard_cycles(sampled, simulations=60, resamples=2).pooled
        assert rate.decided < rate.triads  # ten votes tie now and then
        inside += rate.expected.low <= rate.rate.value <= rate.expected.high
    assert inside >= 7


def test_a_pair_answered_in_one_order_is_undecided_unless_it_is_to_be_read():
    table = exact({("a", "b"): 1.0, ("b", "c"): 1.0, ("a", "c"): -1.0})
    table.loc[0, ["outcome", "logit", "p_first"]] = ["off_format", np.nan, np.nan]
    left, read = (hard_cycles(table, incomplete=how, simulations=2, resamples=5).pooled for how in ("leave", "read"))
    assert (left.triads, left.decided, left.hard) == (1, 0, 0) and (read.decided, read.hard) == (1, 1)


def test_pairs_asked_in_one_order_are_read_as_they_are_and_have_no_second_reading():
    table = exact({("a", "b"): 1.0, ("b", "c"): 1.0, ("a", "c"): -1.0}).iloc[::2]
    found = hard_cycles(table, simulations=2, resamples=5)
    assert found.pooled.hard == 1 and found.one_order is None and found.flips is None
    assert len(found.table) == 1 and found.to_dict()["one_order"] is None


def test_results_do_not_depend_on_the_order_of_rows_and_repeat_under_a_seed():
    table = planted(12, 1.0, 5, bias=1.0)
    once, again = (hard_cycles(each, simulations=20, resamples=30, seed=4) for each in (table, table.sample(frac=1.0)))
    pd.testing.assert_frame_equal(once.table, again.table)
    assert not once.table.equals(hard_cycles(table, simulations=20, resamples=30, seed=5).table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"one_order": "first"}, "one_order is 'first'; expected 'coin' or 'listed'"),
        ({"incomplete": "drop"}, "incomplete is 'drop'; expected 'leave' or 'read'"),
        ({"simulations": 1}, "simulations is 1; expected at least 2"),
    ],
)
def test_wrong_arguments_are_named_with_what_was_expected(change, message):
    with pytest.raises(ValueError, match=message):
        hard_cycles(planted(4, 1.0, 0), **change)


def test_pairs_without_a_triad_and_infinite_log_odds_are_errors():
    with pytest.raises(ComparisonError, match="No three of the 2 pairs form a triad"):
        hard_cycles(exact({("a", "b"): 1.0, ("b", "c"): 1.0}))
    table = exact({("a", "b"): 1.0, ("b", "c"): np.inf, ("a", "c"): 1.0})
    with pytest.raises(ComparisonError, match=r"log-odds of the pair .* are inf; expected a finite number"):
        hard_cycles(table)


def test_the_figure_has_a_row_a_reading_and_says_how_many():
    figure = hard_cycles(planted(9, 1.0, 0), simulations=10, resamples=10).plot()
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert len(labels) == 2 and "of 84" in labels[0]
