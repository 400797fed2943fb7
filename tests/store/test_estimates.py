"""Estimates of shares: exact intervals, against the distribution that they are made of."""

import pytest
from scipy import stats

from store import Estimate


@pytest.mark.parametrize(("made", "n"), [(0, 24), (3, 40), (40, 40), (13, 400)])
def test_the_interval_of_a_share_leaves_out_what_would_hardly_have_given_it(made, n):
    found = Estimate.of_share([True] * made + [False] * (n - made))
    assert found.value == made / n and found.n == n
    if made > 0:
        assert stats.binom.sf(made - 1, n, found.low) == pytest.approx(0.025)
    else:
        assert found.low == 0
    if made < n:
        assert stats.binom.cdf(made, n, found.high) == pytest.approx(0.025)
    else:
        assert found.high == 1
