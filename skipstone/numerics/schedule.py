"""Noise schedules: signal scale alpha(t) and noise scale sigma(t), t from 1 (noise) to 0 (data)."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from ..errors import SpecError
from ..registry import register

CLOCK_LIMIT = 12.0  # half log-SNR beyond which a picture is pure noise or pure data in float32


class Schedule:
    """x_t = alpha(t) x0 + sigma(t) noise, with alpha/sigma falling as t goes from 0 to 1."""

    name: ClassVar[str]

    def alpha(self, t: float) -> float:
        """Scale of the picture at t."""
        raise NotImplementedError

    def sigma(self, t: float) -> float:
        """Scale of the noise at t."""
        raise NotImplementedError

    def timestep(self, t: float) -> float:
        """What the network is told at t: 1000 t, unless the schedule is a table."""
        return 1000.0 * t

    def clock(self, t: float) -> float:
        """Half log-SNR, log(alpha/sigma), kept within +-CLOCK_LIMIT: the natural clock of denoising."""
        a, s = self.alpha(t), self.sigma(t)
        if a <= 0.0 or s <= 0.0:
            return -CLOCK_LIMIT if a <= 0.0 else CLOCK_LIMIT
        return min(CLOCK_LIMIT, max(-CLOCK_LIMIT, math.log(a / s)))

    def time(self, clock: float) -> float:
        """The t in [0, 1] at which `clock(t)` has this value (by bisection; clipped at the ends)."""
        low, high = 0.0, 1.0  # clock falls as t grows
        for _ in range(60):
            middle = 0.5 * (low + high)
            if self.clock(middle) > clock:
                low = middle
            else:
                high = middle
        return 0.5 * (low + high)


@register("schedule")
@dataclass(frozen=True)
class VPLinear(Schedule):
    """Variance preserving, beta linear in t: log alpha = -(b1 - b0) t^2 / 4 - b0 t / 2.

    References: Song et al. 2021, arXiv 2011.13456.
    """

    b0: float = 0.1
    b1: float = 20.0
    name: ClassVar[str] = "vp_linear"

    def _log_alpha(self, t: float) -> float:
        return -0.25 * (self.b1 - self.b0) * t * t - 0.5 * self.b0 * t

    def alpha(self, t: float) -> float:
        return math.exp(self._log_alpha(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(-math.expm1(2.0 * self._log_alpha(t)))


@register("schedule")
@dataclass(frozen=True)
class Cosine(Schedule):
    """Variance preserving, alpha = cos(pi u / 2) with u = eps + (1 - 2 eps) t.

    Args:
        eps: Distance kept from both ends, in (0, 0.1); 0 would reach pure data and pure noise.

    References: Nichol & Dhariwal 2021, arXiv 2102.09672 (without their offset).
    """

    eps: float = 1e-3
    name: ClassVar[str] = "cosine"

    def _angle(self, t: float) -> float:
        return 0.5 * math.pi * (self.eps + (1 - 2 * self.eps) * t)

    def alpha(self, t: float) -> float:
        return math.cos(self._angle(t))

    def sigma(self, t: float) -> float:
        return math.sin(self._angle(t))


@register("schedule")
@dataclass(frozen=True)
class FlowMatching(Schedule):
    """Straight path, alpha = 1 - sigma, sigma = shift t / (1 + (shift - 1) t).

    Args:
        shift: 1 is rectified flow; above 1 spends more time at high noise (Stable Diffusion 3 uses 3).

    References: Lipman et al. 2022, arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206.
    """

    shift: float = 1.0
    name: ClassVar[str] = "flow"

    def sigma(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t: float) -> float:
        return 1.0 - self.sigma(t)

    def timestep(self, t: float) -> float:
        return 1000.0 * self.sigma(t)


@register("schedule")
@dataclass(frozen=True)
class Table(Schedule):
    """A table of cumulative alpha-bars, one per training timestep, as diffusers schedulers keep.

    Training timestep k (0-based, of N) lies at t = (k + 1) / N; t = 0 is `end`. Between entries the
    half log-SNR is linear in t, as in DPM-Solver (Lu et al. 2022, arXiv 2206.00927).

    Args:
        alpha_bars: N values in [0, 1), falling; a last value of 0 is zero terminal SNR.
        end: alpha-bar at t = 0; 1 is pure data (`set_alpha_to_one=True` in diffusers).
    """

    alpha_bars: tuple[float, ...] = field(repr=False)
    end: float = 1.0
    name: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        bars = self.alpha_bars
        if len(bars) < 2 or any(b <= c for b, c in itertools.pairwise(bars)):
            raise SpecError("A table needs at least two alpha-bars that fall from data to noise.")

    @classmethod
    def from_betas(cls, betas: Sequence[float], end: float = 1.0, zero_terminal_snr: bool = False) -> Table:
        """The table of a list of betas; `zero_terminal_snr` rescales it (Lin et al. 2023, arXiv 2305.08891)."""
        bars: list[float] = []
        for beta in betas:
            bars.append((bars[-1] if bars else 1.0) * (1.0 - beta))
        if zero_terminal_snr:
            first, last = math.sqrt(bars[0]), math.sqrt(bars[-1])
            bars = [((math.sqrt(b) - last) * first / (first - last)) ** 2 for b in bars]
        return cls(tuple(bars), end)

    @classmethod
    def of(cls, scheduler: Any) -> Table:
        """The table of a diffusers scheduler that has `alphas_cumprod`."""
        bars = tuple(float(b) for b in scheduler.alphas_cumprod)
        return cls(bars, float(getattr(scheduler, "final_alpha_cumprod", 1.0)))

    @cached_property
    def _clocks(self) -> tuple[float, ...]:
        def clock(bar: float) -> float:
            if bar <= 0.0 or bar >= 1.0:
                return math.copysign(CLOCK_LIMIT, bar - 0.5)
            return 0.5 * math.log(bar / (1.0 - bar))

        return (clock(self.end), *map(clock, self.alpha_bars))

    def _bar(self, t: float) -> float:
        position = t * len(self.alpha_bars)
        k = round(position)
        if abs(position - k) < 1e-9:  # on an entry: exactly the table's value
            return self.end if k == 0 else self.alpha_bars[k - 1]
        return 1.0 / (1.0 + math.exp(-2.0 * self._between(position)))

    def _between(self, position: float) -> float:
        k = min(int(position), len(self.alpha_bars) - 1)
        w = position - k
        return (1 - w) * self._clocks[k] + w * self._clocks[k + 1]

    def alpha(self, t: float) -> float:
        return math.sqrt(self._bar(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(1.0 - self._bar(t))

    def timestep(self, t: float) -> float:
        return t * len(self.alpha_bars) - 1.0

    def time(self, clock: float) -> float:
        clocks = self._clocks
        k = bisect_left(clocks, -clock, key=lambda c: -c)
        if k <= 0 or k >= len(clocks):
            return 0.0 if k <= 0 else 1.0
        w = (clocks[k - 1] - clock) / (clocks[k - 1] - clocks[k])
        return (k - 1 + w) / len(self.alpha_bars)


def linear_table(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Table:
    """DDPM's table: beta linear from `first` to `last` (Ho et al. 2020, arXiv 2006.11239)."""
    return Table.from_betas([first + (last - first) * k / (steps - 1) for k in range(steps)])


def scaled_linear(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Table:
    """Stable Diffusion's table: sqrt(beta) linear (Rombach et al. 2022, arXiv 2112.10752)."""
    a, b = math.sqrt(first), math.sqrt(last)
    return Table.from_betas([(a + (b - a) * k / (steps - 1)) ** 2 for k in range(steps)])


def zero_terminal_snr(steps: int = 1000, first: float = 0.00085, last: float = 0.012) -> Table:
    """Stable Diffusion's table rescaled to end in pure noise (Lin et al. 2023, arXiv 2305.08891)."""
    a, b = math.sqrt(first), math.sqrt(last)
    betas = [(a + (b - a) * k / (steps - 1)) ** 2 for k in range(steps)]
    return Table.from_betas(betas, zero_terminal_snr=True)


def cosine_table(steps: int = 1000, offset: float = 0.008, cap: float = 0.999) -> Table:
    """The cosine table with its offset and cap (Nichol & Dhariwal 2021, arXiv 2102.09672)."""

    def bar(u: float) -> float:
        return math.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2

    return Table.from_betas([min(cap, 1 - bar((k + 1) / steps) / bar(k / steps)) for k in range(steps)])
