"""Times that a policy may land on: those of the grid and even places between them."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right

from ..engine.contracts import AngleAxis


def nearest_place(axis: AngleAxis, start: float, angle: float, places: int) -> float:
    """The place that is nearest to an angle, after `start`; there are `places` of them for each step of the grid."""
    grid = axis.grid
    behind = bisect_right(axis.negated, -start)  # the first time of the grid after `start`
    k = min(max(behind, bisect_left(axis.falling, -angle)), len(grid) - 1)
    a, b = grid[k - 1], grid[k]
    before, after = axis.angles[k - 1], axis.angles[k]
    nearest, least = b, math.inf
    for t in (b, *(b + (a - b) * j / places for j in range(1, places)), a):
        w = min(1.0, (a - t) / (a - b))  # b + (a - b) may round to beside a
        miss = abs((1 - w) * before + w * after - angle)
        if t < start and miss < least:
            nearest, least = t, miss
    return nearest
