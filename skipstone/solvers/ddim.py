"""First-order exponential step, deterministic or stochastic."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import Ranges, check_settings
from .ddpm import forward_variance


def x0_weight(t: float, t_next: float, schedule: Schedule) -> float:
    """What a constant clean estimate adds to x on the way from t to t_next: alpha_next (1 - exp(-h))."""
    return schedule.alpha(t_next) - schedule.sigma(t_next) / schedule.sigma(t) * schedule.alpha(t)


def ddim_update(x: Any, x0: Any, t: float, t_next: float, schedule: Schedule) -> Any:
    """x moved from t to t_next along a constant clean estimate."""
    return weighted_sum([schedule.sigma(t_next) / schedule.sigma(t), x0_weight(t, t_next, schedule)], [x, x0])


@register("solver")
@dataclass(frozen=True)
class DDIM(Solver):
    """First-order step along a constant clean estimate, with a share of the ancestral noise (DDIM).

    x_next = alpha_next x0 + sqrt(sigma_next^2 - std^2) eps + std noise, eps = (x - alpha x0) / sigma,
    std = eta times that of `ddpm`.

    Args:
        eta: Share of the ancestral noise, in [0, 1]. 0 is deterministic, 1 equals `ddpm`.

    Raises:
        SpecError: eta out of range.

    References: Song et al. 2020, arXiv 2010.02502.
    """

    eta: float = 0.0
    name: ClassVar[str] = "ddim"
    diffusers_class: ClassVar[str] = "DDIMScheduler"
    variants: ClassVar[tuple[str, ...]] = ("ddim(eta=0.7)",)
    ranges: ClassVar[Ranges] = {"eta": (0, 1)}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        s, s_next = schedule.sigma(t), schedule.sigma(t_next)
        if self.eta == 0.0 or s_next == 0.0:
            return Step(ddim_update(x, x0, t, t_next, schedule))
        fresh = self.eta * s_next / s * math.sqrt(forward_variance(t_next, t, schedule))
        kept = math.sqrt(max(0.0, s_next * s_next - fresh * fresh)) / s
        noise = yield Noise(x)
        return Step(weighted_sum([kept, schedule.alpha(t_next) - kept * schedule.alpha(t), fresh], [x, x0, noise]))
