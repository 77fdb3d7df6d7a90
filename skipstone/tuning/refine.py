"""Moves of single places, accepted by what they really do."""

from __future__ import annotations

from collections.abc import Callable

MOVE_SIZES = (8, 4)  # fine places that a place is moved by, in one sweep after another


def refine_path(
    score: Callable[[tuple[int, ...]], float],
    path: tuple[int, ...],
    sweeps: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[int, ...]:
    """A path that scores at least as well: every place in turn is moved both ways, and stays where that is better.

    Args:
        score: Of a path, higher is better.
        path: (0, ..., n); its ends stay.
        sweeps: Over all places, >= 0; the first moves by 8 fine places, those that follow by 4.
        on_progress: Called with (moves tried, moves in all).
    """
    best = score(path) if sweeps else 0.0
    total = sweeps * (len(path) - 2)
    for sweep in range(sweeps):
        move = MOVE_SIZES[min(sweep, len(MOVE_SIZES) - 1)]
        for k in range(1, len(path) - 1):
            on_progress(sweep * (len(path) - 2) + k - 1, total)
            for step in (-move, move):
                moved = (*path[:k], path[k] + step, *path[k + 1 :])
                if not moved[k - 1] < moved[k] < moved[k + 1]:
                    continue
                value = score(moved)
                if value > best:
                    best, path = value, moved
                    break
    return path
