"""Hard cycles in someone else's dense table: all pairs of 100 tasks, both orders, ten draws each."""

from functools import lru_cache

import numpy as np
import pandas as pd
import pytest

from elicit.reliability import hard_cycles


@pytest.fixture
def cycles(reference):
    return counted(reference)


@lru_cache
def counted(reference):
    counts = pd.read_csv(reference / "dense_pairs.csv")
    votes = counts["chose_first"] + counts["chose_second"]
    outcome = np.where(votes > 0, "chose", "off_format")
    table = counts.assign(p_first=counts["chose_first"] / votes, weight=votes, outcome=outcome)
    return hard_cycles(table, one_order="listed", incomplete="read", simulations=40, resamples=100)


def test_cycles_with_both_orders_pooled_are_as_published(cycles):
    pooled = cycles.pooled
    assert (pooled.hard, pooled.triads, pooled.decided) == (96, 161_700, 94_177)
    assert pooled.rate.low < 96 / 161_700 < pooled.rate.high


def test_cycles_of_one_presentation_alone_are_as_published_and_are_more_than_noise_gives(cycles):
    alone = cycles.one_order
    assert (alone.hard, alone.triads) == (5_958, 161_700)
    assert round(100 * alone.rate.value, 1) == 3.7
    assert alone.expected.high < alone.rate.low and alone.rate.high < alone.chance


def test_the_order_changes_the_winner_of_a_fifth_of_the_pairs(cycles):
    """The published count calls a tie in one order (22 pairs) a win of task 2; without these pairs 972 of 4,867 change."""
    pairs = cycles.pairs.dropna()
    published = (pairs["shown_first"] > 0.5) != (pairs["shown_second"] > 0.5)
    assert (published.sum(), len(pairs)) == (978, 4_889)
    assert cycles.flips.n == 4_867 and cycles.flips.value == pytest.approx(972 / 4_867)
    assert round(100 * cycles.flips.value, 1) == round(100 * published.mean(), 1) == 20.0
