"""Places on the angle as times, as `path` spells them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..engine.contracts import Policy
from ..numerics.schedule import Schedule

DIGITS = 9  # of a time, where it is no whole timestep


def even_times(schedule: Schedule, start: float, steps: int) -> tuple[float, ...]:
    """Times of so many steps of the same angle, from `start` to 0, both included.

    Where the schedule is a table they are whole timesteps: networks taught at these alone are noisy between them.
    Places that fall on the same timestep are one, so that there may be fewer steps.
    """
    first = schedule.angle(start)
    table = len(getattr(getattr(schedule, "base", schedule), "alpha_bars", ()))  # a pipeline's schedule has a base
    angles = (first * (1 - i / steps) for i in range(1, steps))
    inner = (_snap_time(schedule.time(-math.log(math.tan(angle))), table) for angle in angles)
    falling = [start]
    for t in inner:
        if 0.0 < t < falling[-1]:
            falling.append(t)
    return (*falling, 0.0)


def _snap_time(t: float, table: int) -> float:
    return round(t * table) / table if table else float(f"{t:.{DIGITS}g}")


def path_policy(times: Sequence[float], of: str = "pair") -> Policy:
    """The policy that lands on these times; the first and the last go without saying."""
    listed = " ".join(f"{t:.{DIGITS}g}" for t in times[1:-1])
    policy: Policy = registry.parse("policy", f"path(times={listed!r}, of={of!r})")
    return policy


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
    """PSNR of a mean square error of pixels in [0, 1], at most that of identical pictures in tables."""
    from ..evaluation.files import IDENTICAL_PSNR

    return min(IDENTICAL_PSNR, -10.0 * math.log10(error)) if error > 0 else IDENTICAL_PSNR
