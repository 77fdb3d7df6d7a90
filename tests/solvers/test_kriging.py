"""The shares of the forecasts of `kriging`."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.solvers.kriging import CleanNode, forecast_mean, forecast_shares, forecast_weights, mean_level

LEVELS = (2.0, 1.0, 0.2, -0.5)


def nodes(*values):
    return [CleanNode(level, np.full(4, value), 0.0) for level, value in zip(LEVELS, values, strict=False)]


def shares(*values, trust=1.0):
    return [float(share) for share in forecast_shares(nodes(*values), trust, np.empty(4)).each]


def test_kriging_has_all_before_the_third_call():
    assert forecast_shares(nodes(0.0, 1.0), 1.0, np.empty(4)) is None


@given(values=st.lists(st.floats(-2.0, 2.0), min_size=3, max_size=4), trust=st.floats(0.0, 1e9))
def test_shares_sum_to_one(values, trust):
    found = shares(*values, trust=trust)
    assert sum(found) == pytest.approx(1.0)
    assert min(found) >= 0.0


def test_the_forecast_that_was_right_has_the_largest_share():
    constant, _, _ = shares(1.0, 0.2, 0.2)
    assert constant > 0.9
    _, linear, _ = shares(2.0, 1.0, 0.2, trust=1e-3)  # on a line through the levels
    assert linear > 0.9


def test_kriging_is_preferred_less_where_a_sample_moves_further_than_trusted():
    assert shares(0.0, 1.0, 1.5, trust=10.0)[2] > shares(0.0, 1.0, 1.5, trust=0.1)[2]


@given(start=st.floats(-4.0, 4.0), step=st.floats(1e-3, 4.0))
def test_all_forecasts_keep_a_constant(start, step):
    levels = (start + 2.0, start + 1.0, start)
    for weights in forecast_weights(levels, start, start - step):
        assert sum(weights) == pytest.approx(1.0)


@given(start=st.floats(-4.0, 4.0), step=st.floats(1e-6, 9.0))
def test_the_mean_level_lies_within_the_step(start, step):
    assert start - step <= mean_level(start, start - step) <= start - 0.49 * step


def test_the_linear_forecast_is_exact_on_a_line():
    start, end = LEVELS[2], -1.0
    points, weights = np.polynomial.legendre.leggauss(32)
    levels = end + 0.5 * (start - end) * (1 - points)
    weights = weights * np.exp(end - levels)
    linear = forecast_weights(LEVELS[:3], start, end)[1]
    line = [3.0 * level + 1.0 for level in LEVELS[:3]]
    assert np.dot(linear, line) == pytest.approx(np.dot(weights, 3.0 * levels + 1.0) / weights.sum())


def test_the_last_step_ends_at_a_finite_estimate():
    calls = nodes(0.0, 1.0, 1.5)
    assert np.all(np.isfinite(forecast_mean(calls, -10.0, forecast_shares(calls, 1.0, np.empty(4)))))
