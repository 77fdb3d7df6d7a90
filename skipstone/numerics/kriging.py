"""Where a clean estimate goes between calls: kriging with a prior that holds for denoisers in general.

On a run from noise to data the clean estimate moves most where the noise is a few times as large as the data, and ever
less towards both ends. The prior is a Gaussian process in the level l = log(sigma / alpha): dD / dl has the amplitude
A(l) = 0.42 / cosh(0.9 (l - peak)) and, over a distance d, the correlation (1 + q) exp(-q), q = sqrt(3) d / 2. Its mean
is unknown. The weights of the calls made so far follow by kriging (Gaussian process regression), for any uneven levels.

References: Matheron 1963 (kriging); O'Hagan 1991 (integrals by Gaussian processes); ours for denoising.
"""

from __future__ import annotations

import functools
import math
import operator
from functools import lru_cache
from typing import Any, NamedTuple

PEAK = 1.6 + math.log(0.5)  # level of the fastest change, for data of standard deviation 0.5
RATE = 0.9  # at which the amplitude falls to both sides, per unit of the level
LENGTH = 2.0  # of the correlation, in units of the level
SCALE = 0.42  # standard deviation of dD / dl at the peak, over that of the data
LOUDEST, QUIETEST, SPACING = 8.0, -9.0, 0.05  # levels of the table; beyond them nothing changes
JITTER = 1e-9  # variance of rounding, over that of the data
MAX_NODES = 4  # calls that weights are spread over
SHORT = 0.15  # mean distance of calls at which a parabola has half of the weight: the table is too coarse below


def amplitude(level: float) -> float:
    """Standard deviation of dD / dl at a level, over that of the data."""
    return SCALE / math.cosh(min(30.0, RATE * abs(level - PEAK)))


@functools.cache
def _table() -> Any:
    """Covariances of D(l) - D(data) at the levels of the table, loudest first."""
    import numpy as np

    levels = np.arange(LOUDEST, QUIETEST - 1e-9, -SPACING)
    distance = math.sqrt(3.0) / LENGTH * np.abs(levels[:, None] - levels[None, :])
    speed = np.array([amplitude(level) for level in levels]) * SPACING
    steps = np.outer(speed, speed) * (1.0 + distance) * np.exp(-distance)
    return np.cumsum(np.cumsum(steps[::-1, ::-1], 0), 1)[::-1, ::-1].copy()


class _Place(NamedTuple):
    """Where a level lies in the table: after entry `below`, by a share of the way to the next."""

    below: int
    share: float


def _place(level: float) -> _Place:
    at = min(max((LOUDEST - level) / SPACING, 0.0), len(_table()) - 1.001)
    return _Place(int(at), at - int(at))


@lru_cache(maxsize=1024)
def _table_row(level: float) -> Any:
    """Covariances of D at a level with D at the levels of the table, by linear interpolation."""
    table, (i, f) = _table(), _place(level)
    return table[i] * (1.0 - f) + table[i + 1] * f


def _covariance(nodes: tuple[float, ...], levels: Any) -> Any:
    """Covariance of D at the nodes (n,) and at levels (m,), by linear interpolation in the table: (n, m)."""
    import numpy as np

    rows = np.array([_table_row(level) for level in nodes])
    at = ((LOUDEST - np.asarray(levels)) / SPACING).clip(0.0, rows.shape[1] - 1.001)
    j = at.astype(int)
    g = at - j
    return rows[:, j] * (1.0 - g) + rows[:, j + 1] * g


@lru_cache(maxsize=65536)
def _covariance_of_two(a: float, b: float) -> float:
    """One entry of `_covariance`, with the same bits."""
    table, (i, f), (j, g) = _table_view(), _place(a), _place(b)
    left = table[i, j] * (1.0 - f) + table[i + 1, j] * f
    right = table[i, j + 1] * (1.0 - f) + table[i + 1, j + 1] * f
    return float(left * (1.0 - g) + right * g)


@functools.cache
def _table_view() -> Any:
    """The table for single entries, which numpy gives slowly."""
    return memoryview(_table())


@lru_cache(maxsize=65536)
def expected_change(start: float, end: float) -> float:
    """Standard deviation of D(end) - D(start), over that of the data."""
    both = _covariance_of_two(start, start) + _covariance_of_two(end, end)
    return math.sqrt(max(1e-12, both - 2.0 * _covariance_of_two(start, end)))


@functools.cache
def _quadrature() -> tuple[Any, Any]:
    import numpy as np

    return np.polynomial.legendre.leggauss(12)


def _mean_covariance(nodes: tuple[float, ...], start: float, end: float) -> Any:
    """Covariance of D at the nodes with its mean over a step, of weight s_end / s^2 ds (s = exp(l)) on [end, start]."""
    if end <= QUIETEST:  # at the data the weight is all at the end
        return _covariance(nodes, [QUIETEST])[:, 0]
    levels, shares = _step_quadrature(start, end)
    return _covariance(nodes, levels) @ shares


@lru_cache(maxsize=256)
def _step_quadrature(start: float, end: float) -> tuple[Any, Any]:
    """Levels of a step and their shares of its mean, which sum to 1."""
    import numpy as np

    points, weights = _quadrature()
    span = min(start - end, 30.0)  # beyond it the weight is below 1e-13
    levels = end + 0.5 * span * (1.0 - points)
    weights = weights * np.exp(end - levels)
    return levels, weights / weights.sum()


@lru_cache(maxsize=65536)
def kriging_weights(nodes: tuple[float, ...], start: float, end: float) -> tuple[float, ...]:
    """Weights of the clean estimates at `nodes` in the mean clean estimate of a step; they sum to 1.

    Where calls are close they go over into those of the parabola through the last three calls, so that steps are of
    third order.

    Args:
        nodes: Levels log(sigma / alpha) of the calls, falling, at most `MAX_NODES`.
        start, end: Levels of the step; `end` is -infinity, or below `QUIETEST`, for a step to the data.

    Raises:
        ValueError: no nodes.
    """
    import numpy as np

    count = len(nodes)
    if count == 0:
        raise ValueError("kriging_weights: expected at least one node, got none.")
    right = np.ones(count + 1)
    right[:count] = _mean_covariance(nodes, start, end)
    kriged = np.linalg.solve(_kriging_system(nodes), right)[:count]
    if count == 1 or end <= QUIETEST:  # a parabola in log(sigma / alpha) does not end
        return tuple(kriged.tolist())
    close = 1.0 / (1.0 + ((nodes[0] - nodes[-1]) / (count - 1) / SHORT) ** 8)
    return tuple((kriged + (_parabola_weights(nodes, start, end) - kriged) * close).tolist())


@lru_cache(maxsize=256)
def _kriging_system(nodes: tuple[float, ...]) -> Any:
    """The matrix of the equations for the weights and the multiplier that makes them sum to 1."""
    import numpy as np

    rows = [[*(_covariance_of_two(a, b) for b in nodes), 1.0] for a in nodes]
    for i, row in enumerate(rows):
        row[i] += JITTER
    return np.array([*rows, [1.0] * len(nodes) + [0.0]])  # the mean is unknown: weights sum to 1


def _parabola_weights(nodes: tuple[float, ...], start: float, end: float) -> Any:
    """The same by the parabola through the last three calls, or the line through two."""
    import numpy as np

    last = nodes[-3:]
    levels, shares = _step_quadrature(start, end)
    basis = np.empty((len(levels), len(last)))
    away = [levels - node for node in last]
    for j, node in enumerate(last):  # `lagrange_weights`, of all levels at once
        factors = [away[k] / (node - other) for k, other in enumerate(last) if k != j]
        basis[:, j] = functools.reduce(operator.mul, factors, 1.0)
    weights = np.zeros(len(nodes))
    weights[len(nodes) - len(last) :] = shares @ basis
    return weights
