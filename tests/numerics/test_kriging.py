"""The weights of kriging: what must hold for any levels."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone.numerics import kriging

LEVELS = st.lists(st.floats(-6.0, 6.0), min_size=1, max_size=kriging.MAX_NODES, unique=True)


@given(LEVELS, st.floats(0.01, 5.0), st.booleans())
def test_a_constant_estimate_is_its_own_mean(levels, step, to_data):
    nodes = tuple(sorted((round(level, 2) for level in set(levels)), reverse=True))
    nodes = tuple(dict.fromkeys(nodes))
    end = -math.inf if to_data else nodes[-1] - step
    weights = kriging.kriging_weights(nodes, nodes[-1], end)
    assert len(weights) == len(nodes)
    assert sum(weights) == pytest.approx(1.0, abs=1e-9)


def test_a_short_step_at_a_call_takes_that_call():
    weights = kriging.kriging_weights((1.0, 0.5, 0.0), 0.0, -1e-4)
    assert weights == pytest.approx((0.0, 0.0, 1.0), abs=1e-3)


def test_a_corrected_step_weighs_both_of_its_ends():
    start, end = kriging.kriging_weights((0.2, 0.0), 0.2, 0.0)
    assert 0.4 < start < 0.6
    assert 0.4 < end < 0.6


def test_a_forecast_goes_on_as_the_last_calls_did():
    before, last = kriging.kriging_weights((0.5, 0.0), 0.0, -0.5)
    assert before < 0.0 < 1.0 < last


@given(st.floats(-6.0, 6.0), st.floats(0.0, 3.0), st.floats(0.0, 3.0))
def test_more_is_expected_to_change_over_a_longer_way(level, step, more):
    assert kriging.expected_change(level, level - step) <= kriging.expected_change(level, level - step - more) + 1e-6


def test_the_amplitude_is_largest_at_its_peak_and_even_around_it():
    assert kriging.amplitude(kriging.PEAK) == kriging.SCALE
    assert kriging.amplitude(kriging.PEAK + 2.0) == pytest.approx(kriging.amplitude(kriging.PEAK - 2.0))


def test_no_nodes_are_refused():
    with pytest.raises(ValueError, match="at least one node"):
        kriging.kriging_weights((), 0.0, -1.0)


def test_close_calls_are_weighted_by_a_parabola():
    levels, start, end = (0.02, 0.01, 0.0), 0.0, -0.01
    values = [(level - 0.3) ** 2 for level in levels]
    points, shares = kriging._step_quadrature(start, end)
    found = np.dot(kriging.kriging_weights(levels, start, end), values)
    assert found == pytest.approx(float(shares @ (points - 0.3) ** 2), rel=1e-6)
