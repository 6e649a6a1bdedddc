"""The percentile bootstrap of a ratio of sums."""

import numpy as np
import pytest

from diverseevol_fast._common import statistics
from diverseevol_fast._common.statistics import ratio_interval


def test_the_interval_is_that_of_a_mean():
    """Of denominators of one: mean plus or minus 1.96 standard errors, as near as resampling comes."""
    values = np.random.default_rng(1).standard_normal(400) + 5
    low, high = ratio_interval(values, np.ones(400), 2000, 0)
    error = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - error, abs=0.2 * error)
    assert high == pytest.approx(values.mean() + error, abs=0.2 * error)


def test_pairs_stay_together():
    below = np.random.default_rng(2).uniform(1, 9, 50)
    assert ratio_interval(3 * below, below, 500, 0) == pytest.approx((3.0, 3.0))


def test_drawn_in_parts(monkeypatch):
    """The same numbers are drawn however many at once, and 501 resamples do not fill the last part."""
    above, below = np.random.default_rng(3).uniform(1, 9, (2, 30))
    whole = ratio_interval(above, below, 501, 4)
    monkeypatch.setattr(statistics, "DRAWN_AT_ONCE", 70)  # 2 resamples at a time
    assert ratio_interval(above, below, 501, 4) == whole
    assert ratio_interval(above, below, 501, 5) != whole


def test_one_pair_and_no_ratio():
    assert ratio_interval(np.array([6.0]), np.array([2.0]), 10, 0) == (3.0, 3.0)
    assert ratio_interval(np.array([6.0, 1.0]), np.array([2.0, 0.0]), 100, 0) is None
