"""Noise schedules that are tables, as diffusion models trained in discrete timesteps have them."""

from __future__ import annotations

import itertools
import math
import operator
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from ..deprecation import warn_renamed
from ..errors import SpecError
from ..registry import register
from ..settings import Ranges, check_settings, shorten
from .schedule import CLOCK_LIMIT, FlowMatching, Schedule

MAX_KNOWN = 65_536  # times whose alpha-bars are remembered
MAX_TIMESTEPS = 100_000  # of a table that is computed from its settings
LEAST_BAR = math.exp(-2.0 * CLOCK_LIMIT)  # alpha-bar below which times of a table cannot be told apart by log-SNR


class TableSchedule(Schedule):
    """A schedule kept as cumulative alpha-bars, one per training timestep, as diffusers schedulers keep it.

    Training timestep k (0-based, of N) lies at t = (k + 1) / N; t = 0 is `end`. Between entries the
    half log-SNR is linear in t, as in DPM-Solver (Lu et al. 2022, arXiv 2206.00927).
    """

    alpha_bars: tuple[float, ...]  # N values in [0, 1), falling
    end: float  # alpha-bar at t = 0

    def _check_falls(self, advice: str) -> None:
        """Raise SpecError unless the table falls from data to noise, and reaches neither before its ends."""
        bars = self.alpha_bars
        falls = len(bars) > 1 and self.end >= bars[0] and all(b > c for b, c in itertools.pairwise(bars))
        if not falls or bars[0] > 1.0 - LEAST_BAR or bars[-2] < LEAST_BAR:
            raise SpecError(
                f"{self.name}: expected at least two alpha-bars that fall from data (below 1) to noise (above "
                f"{LEAST_BAR:.0e}, but for the last) and an end not below them, got {len(bars):,}, {shorten(bars)} "
                f"and end={self.end}; {advice}."
            )

    @cached_property
    def _clocks(self) -> tuple[float, ...]:
        def clock(bar: float) -> float:
            if bar <= 0.0 or bar >= 1.0:
                return math.copysign(CLOCK_LIMIT, bar - 0.5)
            return 0.5 * math.log(bar / (1.0 - bar))

        return (clock(self.end), *map(clock, self.alpha_bars))

    @cached_property
    def _known_bars(self) -> dict[float, float]:
        """Alpha-bars by their times, which policies, signals and solvers ask for again and again."""
        return {}

    def _bar(self, t: float) -> float:
        known = self._known_bars
        bar = known.get(t)
        if bar is None:
            if len(known) >= MAX_KNOWN:
                known.clear()
            bar = known[t] = self._compute_bar(t)
        return bar

    def _compute_bar(self, t: float) -> float:
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


@register("schedule")
@dataclass(frozen=True)
class Table(TableSchedule):
    """A table given in full: that of any diffusers scheduler, by `Table.from_scheduler(scheduler)`.

    Args:
        alpha_bars: N values in [0, 1], 2..10,000 of them, falling from below 1; all but the last at least 4e-11 away
            from 0 and 1. A last value of 0 is zero terminal SNR.
        end: alpha-bar at t = 0, in [0, 1], not below the first of these; 1 is pure data (`set_alpha_to_one=True` in
            diffusers).

    Raises:
        SpecError: fewer than two values, values that do not fall, or that are no numbers.
    """

    alpha_bars: tuple[float, ...] = field(repr=False)
    end: float = 1.0
    name: ClassVar[str] = "table"
    ranges: ClassVar[Ranges] = {"alpha_bars": (0, 1), "end": (0, 1)}

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_falls("take fewer steps, a smaller cap or end=1.0")
        self._check_falls("see Table.from_scheduler(scheduler)")

    @staticmethod
    def of(scheduler: Any, mu: float | None = None) -> Schedule:
        """The old name of `from_scheduler`."""
        warn_renamed("skipstone.numerics.tables.Table.of", "Table.from_scheduler", stacklevel=3)
        return Table.from_scheduler(scheduler, mu)

    @staticmethod
    def from_scheduler(scheduler: Any, mu: float | None = None) -> Schedule:
        """The schedule of a diffusers scheduler: its table, or FlowMatching where it is a flow-match scheduler.

        Args:
            scheduler: Anything with `alphas_cumprod`, or with a `shift` (flow matching).
            mu: Log of the shift, for flow matching with `use_dynamic_shifting`, whose shift depends on the picture.
        """
        config = getattr(scheduler, "config", None)
        kind = type(scheduler).__name__
        if getattr(config, "use_flow_sigmas", False):
            return FlowMatching(float(config.flow_shift))  # type: ignore[union-attr]
        if hasattr(scheduler, "alphas_cumprod"):
            bars = tuple(float(b) for b in scheduler.alphas_cumprod)
            return Table(bars, float(getattr(scheduler, "final_alpha_cumprod", 1.0)))
        settable = isinstance(getattr(type(scheduler), "shift", None), property)  # by `set_shift`
        shift = scheduler.shift if settable else getattr(config, "shift", None)
        if shift is None:
            raise SpecError(f"Expected a scheduler with alphas_cumprod or a flow-matching shift, got {kind}.")
        if not getattr(config, "use_dynamic_shifting", False):
            return FlowMatching(float(shift))
        if mu is None:
            raise SpecError(
                f"{kind} shifts by the size of the picture: pass the pipeline's mu, Table.from_scheduler(it, mu=...)."
            )
        linear = getattr(config, "time_shift_type", "exponential") == "linear"
        return FlowMatching(mu if linear else math.exp(mu))


def alphas_cumprod_from_betas(betas: Sequence[float], zero_terminal_snr: bool = False) -> tuple[float, ...]:
    """Cumulative products of 1 - beta; `zero_terminal_snr` rescales them to end in pure noise."""
    bars = list(itertools.accumulate((1.0 - beta for beta in betas), operator.mul))
    if zero_terminal_snr:
        first, last = math.sqrt(bars[0]), math.sqrt(bars[-1])
        bars = [((math.sqrt(b) - last) * first / (first - last)) ** 2 for b in bars]
    return tuple(bars)


@dataclass(frozen=True)
class _BetaTable(TableSchedule):
    """Base of the tables of linear betas: their settings and checks."""

    steps: int = 1000
    first: float = 0.00085
    last: float = 0.012
    end: float = 1.0
    power: ClassVar[float] = 2.0  # beta^(1/power) is linear
    rescaled: ClassVar[bool] = False
    ranges: ClassVar[Ranges] = {
        "steps": (2, MAX_TIMESTEPS),
        "first": (1e-9, 0.999),
        "last": (1e-9, 0.999),
        "end": (0, 1),
    }

    def __post_init__(self) -> None:
        check_settings(self)
        if self.first > self.last:
            raise SpecError(f"{self.name}: expected first <= last, got first={self.first} and last={self.last}.")
        self._check_falls("take fewer steps, smaller betas or end=1.0")

    @cached_property
    def alpha_bars(self) -> tuple[float, ...]:  # type: ignore[override]  # computed once
        a, b, n = self.first ** (1 / self.power), self.last ** (1 / self.power), self.steps - 1
        return alphas_cumprod_from_betas(
            [(a + (b - a) * k / n) ** self.power for k in range(self.steps)], self.rescaled
        )


@register("schedule")
@dataclass(frozen=True)
class LinearTable(_BetaTable):
    """DDPM's table: beta linear from `first` to `last` over `steps` timesteps.

    Args:
        steps: Timesteps, in 2..100,000.
        first, last: beta of the first and of the last, in [1e-9, 0.999], not falling.
        end: alpha-bar at t = 0, in [0, 1]; 1 is pure data.

    Raises:
        SpecError: a setting out of range.

    References: Ho et al. 2020, arXiv 2006.11239.
    """

    first: float = 1e-4
    last: float = 0.02
    power: ClassVar[float] = 1.0
    name: ClassVar[str] = "linear_table"


@register("schedule")
@dataclass(frozen=True)
class ScaledLinear(_BetaTable):
    """Stable Diffusion's table: sqrt(beta) linear from sqrt(first) to sqrt(last).

    Args:
        steps: Timesteps, in 2..100,000.
        first, last: beta of the first and of the last, in [1e-9, 0.999], not falling.
        end: alpha-bar at t = 0, in [0, 1]; 1 is pure data.

    Raises:
        SpecError: a setting out of range.

    References: Rombach et al. 2022, arXiv 2112.10752.
    """

    name: ClassVar[str] = "scaled_linear"


@register("schedule")
@dataclass(frozen=True)
class ZeroTerminalSNR(_BetaTable):
    """Stable Diffusion's table rescaled to end in pure noise: alpha(1) = 0. Wants a v or x0 prediction.

    Args:
        steps: Timesteps, in 2..100,000.
        first, last: beta of the first and of the last, in [1e-9, 0.999], not falling.
        end: alpha-bar at t = 0, in [0, 1]; 1 is pure data.

    Raises:
        SpecError: a setting out of range.

    References: Lin et al. 2023, arXiv 2305.08891.
    """

    rescaled: ClassVar[bool] = True
    name: ClassVar[str] = "zero_terminal_snr"


@register("schedule")
@dataclass(frozen=True)
class CosineTable(TableSchedule):
    """The cosine table with its offset and its cap on beta (`squaredcos_cap_v2` in diffusers).

    Args:
        steps: Timesteps, in 2..100,000.
        offset: Of the cosine's argument, in [0, 1].
        cap: Of beta, in [1e-9, 0.9999].
        end: alpha-bar at t = 0, in [0, 1]; 1 is pure data.

    Raises:
        SpecError: a setting out of range.

    References: Nichol & Dhariwal 2021, arXiv 2102.09672.
    """

    steps: int = 1000
    offset: float = 0.008
    cap: float = 0.999
    end: float = 1.0
    name: ClassVar[str] = "cosine_table"
    ranges: ClassVar[Ranges] = {"steps": (2, MAX_TIMESTEPS), "offset": (0, 1), "cap": (1e-9, 0.9999), "end": (0, 1)}

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_falls("take fewer steps, a smaller cap or end=1.0")

    @cached_property
    def alpha_bars(self) -> tuple[float, ...]:  # type: ignore[override]  # computed once
        def bar(k: int) -> float:
            return math.cos((k / self.steps + self.offset) / (1 + self.offset) * math.pi / 2) ** 2

        return alphas_cumprod_from_betas([min(self.cap, 1 - bar(k + 1) / bar(k)) for k in range(self.steps)])
