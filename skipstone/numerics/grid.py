"""Time grids: where the steps of a run go without a policy.

Times fall from noise (1, or the last timestep of a table) to data (0). On a table the grids reproduce the
timesteps of diffusers schedulers, so that results can be compared number by number.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from ..errors import SpecError
from ..registry import parse, register
from ..settings import MAX_STEPS, Ranges, check_settings, shorten
from .schedule import Schedule
from .tables import TableSchedule

NUM_TRAIN_TIMESTEPS = 1000  # timesteps that a schedule without a table counts as having
LOG_SIGMA_MAX = math.log(80.0)  # log of the loudest level that grids of noise levels count from, as in Karras et al.


class Grid:
    """Base of grids: frozen settings and one function from a schedule and a number of steps to times."""

    name: ClassVar[str]

    def times(self, schedule: Schedule, steps: int) -> tuple[float, ...]:
        """`steps + 1` strictly falling times, the last 0. Raises SpecError where that is impossible."""
        if not 1 <= steps <= MAX_STEPS:
            raise SpecError(f"{self.name}: expected at least 1 step and at most {MAX_STEPS:,}, got {shorten(steps)}.")
        times = (*self._times(schedule, steps), 0.0)
        falls = all(a > b for a, b in itertools.pairwise(times))
        if len(times) != steps + 1 or times[0] > 1.0 + 1e-9 or not falls:
            raise SpecError(
                f"{self.name}: cannot place {steps} distinct steps on a schedule of {num_train_timesteps(schedule)} "
                f"timesteps; "
                f"ask for fewer steps."
            )
        return times

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        raise NotImplementedError


def resolve_times(grid: str | Sequence[float] | Grid, schedule: Schedule, steps: int) -> tuple[float, ...]:
    """The times of a run from noise to data.

    Args:
        grid: A grid, its spec ("karras"), or the times themselves (then `steps` is not used).
        schedule: Of the model.
        steps: Of the grid, >= 1.

    Raises:
        SpecError: a spec that is none, fewer than one step, or a grid that cannot have as many.
    """
    found = parse("grid", grid) if isinstance(grid, str) else grid
    return tuple(found.times(schedule, steps) if hasattr(found, "times") else found)


def num_train_timesteps(schedule: Schedule) -> int:
    """Timesteps of the schedule: those of its table, or 1000."""
    return len(schedule.alpha_bars) if isinstance(schedule, TableSchedule) else NUM_TRAIN_TIMESTEPS


def _times_from_timesteps(timesteps: Sequence[float], count: int) -> list[float]:
    """Times of whole training timesteps, rounded half to even as NumPy does."""
    return [(round(k) + 1) / count for k in timesteps]


@register("grid")
@dataclass(frozen=True)
class Uniform(Grid):
    """Equal steps of t; on a table `timestep_spacing="linspace"` of diffusers, rounded to whole timesteps.

    Args:
        open: Leave out timestep 0, as DPMSolverMultistepScheduler and UniPCMultistepScheduler do, in place of
            including it as DDPMScheduler and DDIMScheduler do. No effect without a table.

    Raises:
        SpecError: more steps than the table has timesteps.

    References: Lin et al. 2023, arXiv 2305.08891, table 2.
    """

    open: bool = False
    name: ClassVar[str] = "uniform"

    def __post_init__(self) -> None:
        check_settings(self)

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        if not isinstance(schedule, TableSchedule):
            return [1 - i / steps for i in range(steps)]
        n = num_train_timesteps(schedule)
        gaps = steps if self.open else max(1, steps - 1)  # one step starts at the noisy end, not at timestep 0
        return _times_from_timesteps([(n - 1) * (1 - i / gaps) for i in range(steps)], n)


@register("grid")
@dataclass(frozen=True)
class Trailing(Grid):
    """Equal steps counted from the noisy end: `timestep_spacing="trailing"` of every diffusers scheduler.

    Without a table the same as `uniform`. The grid to take with zero terminal SNR and with few steps.

    Raises:
        SpecError: more steps than the table has timesteps.

    References: Lin et al. 2023, arXiv 2305.08891, table 2.
    """

    name: ClassVar[str] = "trailing"

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        if not isinstance(schedule, TableSchedule):
            return [1 - i / steps for i in range(steps)]
        n = num_train_timesteps(schedule)
        return _times_from_timesteps([round(n - i * (n / steps)) - 1 for i in range(steps)], n)


@register("grid")
@dataclass(frozen=True)
class Leading(Grid):
    """Equal steps counted from the clean end: `timestep_spacing="leading"`, the habit of Stable Diffusion 1.5.

    Starts short of pure noise. Without a table, timesteps are thousandths.

    Args:
        offset: Added to every timestep, in 0..10,000: `steps_offset` of diffusers, 1 for Stable Diffusion.
        open: Leave out the cleanest timestep, as DPMSolverMultistepScheduler and UniPCMultistepScheduler do.

    Raises:
        SpecError: offset out of range; more steps than fit above it.

    References: Lin et al. 2023, arXiv 2305.08891, table 2.
    """

    offset: int = 0
    open: bool = False
    name: ClassVar[str] = "leading"
    ranges: ClassVar[Ranges] = {"offset": (0, MAX_STEPS)}

    def __post_init__(self) -> None:
        check_settings(self)

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        n = num_train_timesteps(schedule)
        stride = n // (steps + self.open)
        return _times_from_timesteps(
            [k * stride + self.offset for k in range(steps - (not self.open), self.open - 1, -1)], n
        )


def _loudest_level(schedule: Schedule) -> float:
    """log(sigma / alpha) from which levels are counted: that of t = 1, at most log(80).

    Between 80 and pure noise a sample hardly changes, however many steps it takes; but a table may end at 20,000.
    """
    return min(LOG_SIGMA_MAX, -schedule.clock(1.0))


@dataclass(frozen=True)
class _SigmaGrid(Grid):
    """Base of grids of noise levels: from the noisiest to the cleanest timestep, then to the data."""

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        log_sigma_start, bottom = _loudest_level(schedule), schedule.clock(1.0 / num_train_timesteps(schedule))
        if log_sigma_start <= -bottom:
            raise SpecError(f"{self.name}: the schedule's noise does not fall from t=1 to its first timestep.")
        ends_there = schedule.clock(0.0) <= bottom  # some tables end at their first timestep, not at the data
        gaps = steps if ends_there else max(1, steps - 1)
        levels = [self._level(log_sigma_start, -bottom, i / gaps) for i in range(steps)]
        return [1.0, *(schedule.time(-level) for level in levels[1:])]

    def _level(self, log_sigma_start: float, log_sigma_end: float, fraction: float) -> float:
        """log(sigma / alpha) this share of the way."""
        raise NotImplementedError


@register("grid")
@dataclass(frozen=True)
class Karras(_SigmaGrid):
    """Equal steps of (sigma / alpha)^(1 / rho): more of them where there is little noise.

    On a table `use_karras_sigmas=True` of DPMSolverMultistepScheduler, and of EulerDiscreteScheduler and
    HeunDiscreteScheduler with linspace spacing; the network is given fractional timesteps, which
    DPMSolverMultistepScheduler and UniPCMultistepScheduler round. Where a schedule starts above sigma / alpha = 80
    (a cosine table, pure noise), the first step leads from there to the second level counted from 80; diffusers counts
    from the start, and places 8 to 13 of 20 steps in the first hundredth of a cosine table.

    Args:
        rho: Exponent, in [1, 1000]; 7 as published, towards infinity it becomes `logsnr`.

    Raises:
        SpecError: rho out of range.

    References: Karras et al. 2022, arXiv 2206.00364, equation 5.
    """

    rho: float = 7.0
    name: ClassVar[str] = "karras"
    ranges: ClassVar[Ranges] = {"rho": (1, 1e3)}

    def __post_init__(self) -> None:
        check_settings(self)

    def _level(self, log_sigma_start: float, log_sigma_end: float, fraction: float) -> float:
        a, b = math.exp(log_sigma_start / self.rho), math.exp(log_sigma_end / self.rho)
        return self.rho * math.log(a + fraction * (b - a))


@register("grid")
@dataclass(frozen=True)
class LogSNR(_SigmaGrid):
    """Equal steps of the half log-SNR, then one to the data.

    On a table `use_exponential_sigmas=True` (also `use_lu_lambdas`) of DPMSolverMultistepScheduler. Where a schedule
    starts above sigma / alpha = 80, levels are counted from 80, as of `karras`.

    References: Lu et al. 2022, arXiv 2206.00927.
    """

    name: ClassVar[str] = "logsnr"

    def _level(self, log_sigma_start: float, log_sigma_end: float, fraction: float) -> float:
        return log_sigma_start + fraction * (log_sigma_end - log_sigma_start)


@dataclass(frozen=True)
class _EvenGrid(Grid):
    """Base of grids that are even in a function of sigma / alpha, from the start to the end of the schedule."""

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        start, end = self._place(schedule, 1.0), self._place(schedule, 0.0)
        places = (start + (end - start) * i / steps for i in range(1, steps))
        return [1.0, *(schedule.time(-math.log(self._level(place))) for place in places)]

    def _place(self, schedule: Schedule, t: float) -> float:
        """The function at t."""
        raise NotImplementedError

    def _level(self, place: float) -> float:
        """sigma / alpha at this value of the function."""
        raise NotImplementedError


@register("grid")
@dataclass(frozen=True)
class Angle(_EvenGrid):
    """Equal steps of u = atan(sigma / alpha), the angle of the path from noise (pi / 2) to data (0).

    On a schedule that preserves variance x = cos(u) x0 + sin(u) noise, and dx / du = v: equal steps of what `adams`
    and `stride` measure steps in. A first grid for networks that predict v.

    References: Salimans & Ho 2022, arXiv 2202.00512 (the angle).
    """

    name: ClassVar[str] = "angle"

    def _place(self, schedule: Schedule, t: float) -> float:
        return schedule.angle(t)

    def _level(self, place: float) -> float:
        return math.tan(place)


@register("grid")
@dataclass(frozen=True)
class Asinh(_EvenGrid):
    """Equal steps of w = asinh(sigma / alpha), from noise to data.

    At little noise these are equal steps of sigma / alpha, at much noise of its logarithm.
    On a schedule that preserves variance an error e of the network's eps moves a sample by e dw, so that equal steps
    weigh it equally. A first grid for networks that predict eps. Where a schedule starts above sigma / alpha = 80, the
    second place is counted from 80, as of `karras`.

    References: Zhang & Chen 2022, arXiv 2204.13902 (errors of eps); ours as a grid.
    """

    name: ClassVar[str] = "asinh"

    def _place(self, schedule: Schedule, t: float) -> float:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        loudest = math.exp(_loudest_level(schedule))
        return math.asinh(min(loudest, sigma / alpha) if alpha > 0.0 else loudest)

    def _level(self, place: float) -> float:
        return math.sinh(place)
