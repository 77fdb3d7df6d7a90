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
from ..registry import register
from .schedule import CLOCK_LIMIT, Schedule
from .tables import TableSchedule

NUM_TRAIN_TIMESTEPS = 1000  # timesteps that a schedule without a table counts as having
LOG_SIGMA_MAX = math.log(80.0)  # log of the noise level that stands for an infinite one, as in Karras et al.


class Grid:
    """Base of grids: frozen settings and one function from a schedule and a number of steps to times."""

    name: ClassVar[str]

    def times(self, schedule: Schedule, steps: int) -> tuple[float, ...]:
        """`steps + 1` strictly falling times, the last 0. Raises SpecError where that is impossible."""
        if steps < 1:
            raise SpecError(f"{self.name}: expected at least 1 step, got {steps}.")
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
        offset: Added to every timestep, >= 0: `steps_offset` of diffusers, 1 for Stable Diffusion.
        open: Leave out the cleanest timestep, as DPMSolverMultistepScheduler and UniPCMultistepScheduler do.

    Raises:
        SpecError: a negative offset; more steps than fit above it.

    References: Lin et al. 2023, arXiv 2305.08891, table 2.
    """

    offset: int = 0
    open: bool = False
    name: ClassVar[str] = "leading"

    def __post_init__(self) -> None:
        if self.offset < 0:
            raise SpecError(f"leading: expected offset >= 0, got {self.offset}.")

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        n = num_train_timesteps(schedule)
        stride = n // (steps + self.open)
        return _times_from_timesteps(
            [k * stride + self.offset for k in range(steps - (not self.open), self.open - 1, -1)], n
        )


@dataclass(frozen=True)
class _SigmaGrid(Grid):
    """Base of grids of noise levels: from the noisiest to the cleanest timestep, then to the data."""

    def _times(self, schedule: Schedule, steps: int) -> Sequence[float]:
        top, bottom = schedule.clock(1.0), schedule.clock(1.0 / num_train_timesteps(schedule))
        log_sigma_start = -top if top > -CLOCK_LIMIT else LOG_SIGMA_MAX
        if log_sigma_start <= -bottom:
            raise SpecError(f"{self.name}: the schedule's noise does not fall from t=1 to its first timestep.")
        levels = [self._level(log_sigma_start, -bottom, i / max(1, steps - 1)) for i in range(steps)]
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
    DPMSolverMultistepScheduler and UniPCMultistepScheduler round. A schedule that starts in pure noise has its
    second level counted from sigma / alpha = 80.

    Args:
        rho: Exponent, >= 1; 7 as published, towards infinity it becomes `logsnr`.

    Raises:
        SpecError: rho below 1.

    References: Karras et al. 2022, arXiv 2206.00364, equation 5.
    """

    rho: float = 7.0
    name: ClassVar[str] = "karras"

    def __post_init__(self) -> None:
        if not self.rho >= 1.0:
            raise SpecError(f"karras: expected rho >= 1, got {self.rho}.")

    def _level(self, log_sigma_start: float, log_sigma_end: float, fraction: float) -> float:
        a, b = math.exp(log_sigma_start / self.rho), math.exp(log_sigma_end / self.rho)
        return self.rho * math.log(a + fraction * (b - a))


@register("grid")
@dataclass(frozen=True)
class LogSNR(_SigmaGrid):
    """Equal steps of the half log-SNR, then one to the data.

    On a table `use_exponential_sigmas=True` (also `use_lu_lambdas`) of DPMSolverMultistepScheduler. A schedule
    that starts in pure noise has its second level counted from sigma / alpha = 80.

    References: Lu et al. 2022, arXiv 2206.00927.
    """

    name: ClassVar[str] = "logsnr"

    def _level(self, log_sigma_start: float, log_sigma_end: float, fraction: float) -> float:
        return log_sigma_start + fraction * (log_sigma_end - log_sigma_start)
