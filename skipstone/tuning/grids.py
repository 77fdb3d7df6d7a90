"""Times of fine runs, and of grids chosen among them, as `path` spells them."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from .. import registry
from ..engine.contracts import Policy
from ..numerics.schedule import Schedule

DIGITS = 9  # of a time, where it is no whole timestep
HALVED = 2  # times that the last step of a confirming run is halved
HALVINGS = 52  # by which a time is found, to the precision of a float
MOST_ASKED = 64  # places, for each that is wanted, that are asked for where several fall on one timestep


def even_times(schedule: Schedule, start: float, steps: int) -> tuple[float, ...]:
    """Times of so many steps of the same angle, from `start` to 0, both included.

    Where the schedule is a table they are whole timesteps: networks taught at these alone are noisy between them.
    Places that fall on the same timestep are one, so that there may be fewer steps.
    """
    first = schedule.angle(start)
    angles = (first * (1 - i / steps) for i in range(1, steps))
    return _falling(start, (schedule.time(-math.log(math.tan(angle))) for angle in angles), _num_timesteps(schedule))


def confirming_times(schedule: Schedule, start: float, steps: int) -> tuple[float, ...]:
    """Times of about so many equal steps of t, the last of them halved twice, for runs that confirm fine ones.

    On a table whole timesteps, and at most every second of them: a run that confirms another must not be on the same
    places. Halved, because the last step of a multistep solver is of first order, and must not be that of the fine run.
    """
    table = _num_timesteps(schedule)
    if table:
        ticks = round(start * table)
        stride = max(2, round(ticks / steps))
        equal: Iterable[float] = (k / table for k in reversed(range(stride, ticks, stride)))
        last = stride / table
    else:
        equal, last = (start * k / steps for k in reversed(range(1, steps))), start / steps
    return _falling(start, (*equal, *(last / 2**k for k in range(1, HALVED + 1))), table)


def fine_times(schedule: Schedule, start: float, steps: int) -> tuple[float, ...]:
    """Times of at most so many steps from `start` to 0, for runs that are taken for exact, whatever the network.

    Even in the sum of three clocks, each as a share of its whole way, so that a third of the steps follows each of
    them: t, in which the network was trained; the angle, for networks whose errors are alike at all angles; and
    asinh(sigma / alpha), for networks that predict noise, whose errors the loud end multiplies by sigma / alpha. Where
    the schedule is a table they are whole timesteps, and fewer only where the table has fewer.
    """
    clocks: tuple[Callable[[float], float], ...] = (float, schedule.angle, lambda t: asinh_ratio(schedule, t))
    ends = [(clock(start), clock(0.0)) for clock in clocks]

    def gone(t: float) -> float:
        shares = [(first - clock(t)) / (first - last) for clock, (first, last) in zip(clocks, ends, strict=True)]
        return sum(shares) / len(shares)

    table = _num_timesteps(schedule)
    if table:
        return _fine_timesteps([gone(k / table) for k in range(round(start * table), -1, -1)], start, steps, table)
    return _falling(start, (_time_when(gone, i / steps, start) for i in range(1, steps)), 0)


def _time_when(gone: Callable[[float], float], share: float, start: float) -> float:
    """The time at which this share of the way is gone, by bisection."""
    low, high = 0.0, start
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if gone(middle) < share else (middle, high)
    return high


def _fine_timesteps(gone: Sequence[float], start: float, steps: int, table: int) -> tuple[float, ...]:
    """At most so many steps between whole timesteps, of each of which it is known what share of the way is gone."""
    import numpy as np

    last = len(gone) - 1

    def even(count: int) -> tuple[float, ...]:
        inner = np.interp(np.arange(1, count) / count, gone, np.arange(last, -1, -1))
        return _falling(start, (float(k) / table for k in inner), table)

    if last <= steps:
        return _falling(start, (k / table for k in range(last - 1, 0, -1)), table)
    # Several places may fall on one timestep: ask for as many as leave `steps` of them.
    counts = range(steps, MOST_ASKED * steps)
    found = bisect.bisect_right(counts, steps, key=lambda count: len(even(count)) - 1)
    return even(counts[max(0, found - 1)])


def asinh_ratio(schedule: Schedule, t: float) -> float:
    """asinh(sigma / alpha) at t, at most that of pure noise as `Schedule.clock` bounds it; 0 at pure data."""
    return math.asinh(math.exp(-schedule.clock(t))) if schedule.sigma(t) > 0.0 else 0.0


def _num_timesteps(schedule: Schedule) -> int:
    """Timesteps of the schedule's table; 0 where it is none."""
    return len(getattr(getattr(schedule, "base", schedule), "alpha_bars", ()))  # a pipeline's schedule has a base


def _falling(start: float, inner: Iterable[float], table: int) -> tuple[float, ...]:
    """Times as `path` takes them: whole timesteps of a table, each once, between the start and 0."""
    falling = [start]
    for t in inner:
        snapped = _snap_time(t, table)
        if 0.0 < snapped < falling[-1]:
            falling.append(snapped)
    return (*falling, 0.0)


def _snap_time(t: float, table: int) -> float:
    return round(t * table) / table if table else float(f"{t:.{DIGITS}g}")


def path_policy(times: Sequence[float], of: str = "pair", by: str = "adams") -> Policy:
    """The policy that lands on these times, by this solver; the first and the last go without saying."""
    listed = " ".join(f"{t:.{DIGITS}g}" for t in times[1:-1])
    policy: Policy = registry.parse("policy", f"path(times={listed!r}, of={of!r}, by={by!r})")
    return policy


class Beginning(NamedTuple):
    """Where the runs of a model begin: its schedule, and the time of the first step."""

    schedule: Schedule
    start: float

    def fine(self, steps: int) -> FineGrid:
        """The places of a fine run of at most so many steps; see `fine_times`."""
        return self._grid(fine_times(self.schedule, self.start, steps))

    def confirming(self, steps: int) -> FineGrid:
        """Places of nearly equal steps of t; see `confirming_times`."""
        return self._grid(confirming_times(self.schedule, self.start, steps))

    def grid(self, inner: Iterable[float]) -> FineGrid:
        """The places of a run at these falling times, each once; whole timesteps where the schedule is a table."""
        return self._grid(_falling(self.start, inner, _num_timesteps(self.schedule)))

    def _grid(self, times: tuple[float, ...]) -> FineGrid:
        return FineGrid(times, tuple(self.schedule.angle(t) for t in times))


@dataclass(frozen=True)
class FineGrid:
    """The places of a fine run, which all others choose from.

    Args:
        times: From the start to 0.
        angles: Of the times.
    """

    times: tuple[float, ...]
    angles: tuple[float, ...]

    @property
    def steps(self) -> int:
        """Number of steps of the fine run."""
        return len(self.times) - 1

    def policy(self, path: Sequence[int], of: str = "pair") -> Policy:
        """The policy of a path, given by places."""
        return path_policy([self.times[i] for i in path], of)

    def even_path(self, steps: int) -> tuple[int, ...]:
        """The path of so many steps that are as even on the angle as these places allow."""
        wanted = (self.angles[0] * (1 - i / steps) for i in range(1, steps))
        near = [min(range(len(self.angles)), key=lambda k: abs(self.angles[k] - u)) for u in wanted]
        path = (0, *near, self.steps)
        return tuple(k for k, _ in itertools.groupby(path))

    def every(self, stride: int) -> tuple[int, ...]:
        """The path of every so-many-th place."""
        return (*range(0, self.steps, stride), self.steps)


def mse_to_psnr(error: Any) -> float:
    """PSNR of a mean square error of pixels in [0, 1], at most that of identical pictures in tables; NaN of NaN."""
    from ..evaluation.files import IDENTICAL_PSNR

    if math.isnan(error):
        return math.nan
    return min(IDENTICAL_PSNR, -10.0 * math.log10(error)) if error > 0 else IDENTICAL_PSNR
