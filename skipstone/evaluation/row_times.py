"""How many rows a network takes at once on this machine, found by a few calls."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..engine.requests import Backbone, Problem, Query

REPEATS = 3  # calls of each size, of which the fastest counts: others are held up by what else runs
WORTH = 1.05  # a batch twice as large must make so many times more rows a second, or the smaller one is taken


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
    query = Query(problem.x, problem.grid[0], problem.cond)
    return measure_samples(lambda samples: time_call(backbone, [query] * samples, clock), backbone.branches, most)


def measure_samples(seconds: Callable[[int], float], branches: int, most: int) -> list[RowTime]:
    """Times of calls with 1, 2, 4 ... samples, the fastest of three each, up to `most` rows; ends where memory does.

    Args:
        seconds: Makes one call of so many samples, and says how long it took.
        branches: Rows of a sample.
        most: Rows, >= 1.
    """
    found: list[RowTime] = []
    samples = 1
    while samples == 1 or samples * branches <= most:
        try:
            fastest = min(seconds(samples) for _ in range(REPEATS))
        except Exception:
            if not found:
                raise  # one sample alone fails: that is no matter of rows
            break
        found.append(RowTime(samples * branches, fastest))
        samples *= 2
    return found


def time_call(backbone: Backbone, queries: Sequence[Query], clock: Callable[[], float]) -> float:
    """Seconds of one call."""
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
