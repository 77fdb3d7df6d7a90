"""A mask from evidence: finite support, no dimming at the borders, an absolute threshold, any array library."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skipstone.numerics.region import soft_mask

MAPS = hnp.arrays(np.float64, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=st.floats(0, 1))


def distance(marks: np.ndarray) -> np.ndarray:
    """Of every cell to the nearest mark, as the larger of rows and columns."""
    found = np.full(marks.shape, np.inf)
    for i, j in np.argwhere(marks):
        rows, columns = np.indices(marks.shape)
        found = np.minimum(found, np.maximum(abs(rows - i), abs(columns - j)))
    return found


@settings(max_examples=80, deadline=None)
@given(MAPS, st.floats(0, 1), st.integers(0, 3), st.booleans())
def test_it_is_one_on_the_marks_and_zero_beyond_twice_the_edge(
    evidence: np.ndarray, threshold: float, edge: int, below: bool
) -> None:
    mask = soft_mask(evidence, threshold, edge, below)
    marks = evidence < threshold if below else evidence > threshold
    away = distance(marks)
    assert mask.min() >= 0.0
    assert mask.max() <= 1.0
    assert (mask[away <= 0] == 1.0).all()
    assert (mask[away > 2 * edge] == 0.0).all()
    if marks.any():
        assert (mask[(away > 0) & (away <= 2 * edge)] > 0.0).all()
    else:
        assert not mask.any()


@pytest.mark.parametrize("edge", [0, 1, 2, 3])
def test_borders_are_not_dimmed(edge: int) -> None:
    """A plain convolution with zeros outside would leave a quarter of a corner."""
    assert (soft_mask(np.ones((5, 7)), 0.5, edge) == 1.0).all()
    stripe = np.zeros((9, 12))
    stripe[:, 6] = 1.0
    mask = soft_mask(stripe, 0.5, edge)
    np.testing.assert_allclose(mask, np.broadcast_to(mask[4], mask.shape), atol=1e-12)


def test_it_falls_monotonically_and_moves_with_its_mark() -> None:
    evidence = np.zeros((15, 17))
    evidence[7, 8] = 1.0
    mask = soft_mask(evidence, 0.5, 2)
    assert (np.diff(mask[7, 8:]) <= 0).all()
    assert 0 < mask[7, 11] < 1
    np.testing.assert_allclose(soft_mask(np.roll(evidence, (1, -2), (0, 1)), 0.5, 2), np.roll(mask, (1, -2), (0, 1)))
    np.testing.assert_allclose(mask, mask[::-1, ::-1])


def test_the_threshold_is_absolute() -> None:
    """A quantile would mark half of every map; here a map that is low everywhere has no region at all."""
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    assert soft_mask(0.4 * ramp, 0.5).sum() == 0.0
    assert (soft_mask(0.6 + 0.4 * ramp, 0.5) == 1.0).all()
    assert soft_mask(ramp, 0.5, 0).sum() == 32


def test_what_is_not_a_number_marks_nothing() -> None:
    assert soft_mask(np.full((4, 4), np.nan), 0.5).sum() == 0.0
    assert soft_mask(np.full((4, 4), np.nan), 0.5, below=True).sum() == 0.0


def test_a_stack_of_maps_is_one_mask_each_and_torch_agrees() -> None:
    torch = pytest.importorskip("torch")
    maps = np.random.default_rng(0).random((3, 6, 9)).astype(np.float32)
    mask = soft_mask(maps, 0.9, 1)
    for k in range(3):
        np.testing.assert_array_equal(mask[k], soft_mask(maps[k], 0.9, 1))
    theirs = soft_mask(torch.from_numpy(maps), 0.9, 1)
    assert theirs.dtype == torch.float32
    assert mask.dtype == np.float32
    np.testing.assert_allclose(theirs.numpy(), mask, atol=1e-6)
    np.testing.assert_array_equal(theirs.numpy() == 0, mask == 0)
