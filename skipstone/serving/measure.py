"""How many rows a network takes at once on this machine, and in which memory format, found by a few calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..engine.requests import Backbone, Problem, Query

REPEATS = 3  # calls of each size, of which the fastest counts: others are held up by what else runs
WORTH = 1.05  # a batch twice as large must make so many times more rows a second, or the smaller one is taken
FORMAT_WORTH = 1.05  # and another memory format, too


@dataclass(frozen=True)
class RowTime:
    """Seconds of one call of a network.

    Args:
        rows: That entered it.
        seconds: It took.
    """

    rows: int
    seconds: float

    @property
    def speed(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds


def measure_rows(
    backbone: Backbone, problem: Problem, most: int, clock: Callable[[], float] = time.perf_counter
) -> list[RowTime]:
    """Times of calls with 1, 2, 4 ... samples, up to `most` rows; ends where memory runs out.

    Args:
        backbone: The denoiser.
        problem: A sample like those to come.
        most: Rows, >= 1.
        clock: Seconds.
    """
    found: list[RowTime] = []
    samples = 1
    while samples == 1 or samples * backbone.branches <= most:
        queries = [Query(problem.x, problem.grid[0], problem.cond)] * samples
        try:
            seconds = min(_time(backbone, queries, clock) for _ in range(REPEATS))
        except Exception:
            if not found:
                raise  # one sample alone fails: that is no matter of rows
            break
        found.append(RowTime(samples * backbone.branches, seconds))
        samples *= 2
    return found


def _time(backbone: Backbone, queries: Sequence[Query], clock: Callable[[], float]) -> float:
    began = clock()
    answers = backbone.predict(queries)
    float(abs(answers[-1].x0).max())  # waits for the device
    return clock() - began


def choose_rows(times: Sequence[RowTime]) -> int:
    """The rows after which twice as many do not pay: as few as possible, since a call holds up who comes meanwhile."""
    chosen = times[0]
    for larger in times[1:]:
        if larger.speed < WORTH * chosen.speed:
            break
        chosen = larger
    return chosen.rows


def choose_memory_format(module: Any, backbone: Backbone, problem: Problem, rows: int) -> str:
    """Put a network into the faster of torch's two memory formats, its pictures the same to rounding.

    Args:
        module: The network, whose weights are laid out anew.
        backbone: That calls it.
        problem, rows: Of the calls that are timed.

    Returns:
        "channels_last" or "contiguous".
    """
    import torch

    queries = [Query(problem.x, problem.grid[0], problem.cond)] * max(1, rows // backbone.branches)
    _time(backbone, queries, time.perf_counter)
    plain = min(_time(backbone, queries, time.perf_counter) for _ in range(REPEATS))
    module.to(memory_format=torch.channels_last)
    _time(backbone, queries, time.perf_counter)
    other = min(_time(backbone, queries, time.perf_counter) for _ in range(REPEATS))
    if plain > FORMAT_WORTH * other:
        return "channels_last"
    module.to(memory_format=torch.contiguous_format)
    return "contiguous"
