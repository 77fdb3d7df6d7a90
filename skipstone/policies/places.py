"""Times that a policy may land on: those of the grid and even places between them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right

from ..engine.contracts import Run


def nearest_place(run: Run, start: float, angle: float, places: int) -> float:
    """The place that is nearest to an angle, after `start`; there are `places` of them for each step of the grid."""
    grid = run.grid
    behind = bisect_right(grid, -start, key=lambda t: -t)  # the first time of the grid after `start`
    k = min(max(behind, bisect_left(grid, -angle, key=lambda t: -run.angle(t))), len(grid) - 1)
    a, b = grid[k - 1], grid[k]
    inside = (b + (a - b) * j / places for j in range(1, places))  # b + (a - b) may round to beside a
    return min((t for t in (b, *inside, a) if t < start), key=lambda t: abs(run.angle(t) - angle))
