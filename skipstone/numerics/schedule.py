"""Noise schedules: signal scale alpha(t) and noise scale sigma(t), t from 1 (noise) to 0 (data)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..errors import SpecError
from ..registry import register
from ..settings import Ranges, check_settings

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
        """The timestep that the network is given at t: 1000 t, unless the schedule is a table."""
        return 1000.0 * t

    def sample_scale(self, t: float) -> float:
        """Scale of x in which samplers of the sigma kind (Heun) integrate: x / alpha, whose noise is sigma / alpha."""
        return self.alpha(t)

    def clock(self, t: float) -> float:
        """Half log-SNR, log(alpha/sigma), kept within +-CLOCK_LIMIT: the natural clock of denoising."""
        a, s = self.alpha(t), self.sigma(t)
        if a <= 0.0 or s <= 0.0:
            return -CLOCK_LIMIT if a <= 0.0 else CLOCK_LIMIT
        return min(CLOCK_LIMIT, max(-CLOCK_LIMIT, math.log(a / s)))

    def angle(self, t: float) -> float:
        """atan(sigma / alpha), from pi / 2 (noise) to 0 (data)."""
        return math.atan2(self.sigma(t), self.alpha(t))

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

    Args:
        b0: beta at t = 0, in [0, 5].
        b1: beta at t = 1, in [0.01, 40], not below b0.

    Raises:
        SpecError: a setting out of range.

    References: Song et al. 2021, arXiv 2011.13456.
    """

    b0: float = 0.1
    b1: float = 20.0
    name: ClassVar[str] = "vp_linear"
    ranges: ClassVar[Ranges] = {"b0": (0, 5), "b1": (0.01, 40)}

    def __post_init__(self) -> None:
        check_settings(self)
        if self.b0 > self.b1:
            raise SpecError(f"vp_linear: expected b0 <= b1, got b0={self.b0} and b1={self.b1}.")

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
        eps: Distance kept from both ends, in [1e-9, 0.1]; 0 would reach pure data and pure noise.

    Raises:
        SpecError: eps out of range.

    References: Nichol & Dhariwal 2021, arXiv 2102.09672 (without their offset).
    """

    eps: float = 1e-3
    name: ClassVar[str] = "cosine"
    ranges: ClassVar[Ranges] = {"eps": (1e-9, 0.1)}

    def __post_init__(self) -> None:
        check_settings(self)

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
        shift: In [0.001, 1000]. 1 is rectified flow; above 1 spends more time at high noise (Stable Diffusion 3: 3).

    Raises:
        SpecError: shift out of range.

    References: Lipman et al. 2022, arXiv 2210.02747; Esser et al. 2024, arXiv 2403.03206.
    """

    shift: float = 1.0
    name: ClassVar[str] = "flow"
    ranges: ClassVar[Ranges] = {"shift": (1e-3, 1e3)}

    def __post_init__(self) -> None:
        check_settings(self)

    def sigma(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)

    def alpha(self, t: float) -> float:
        return 1.0 - self.sigma(t)

    def timestep(self, t: float) -> float:
        return 1000.0 * self.sigma(t)

    def sample_scale(self, t: float) -> float:
        return 1.0  # a flow is integrated as it is
