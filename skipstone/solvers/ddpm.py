"""The ancestral step: a draw from the true posterior."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import check_settings


def forward_variance(t_next: float, t: float, schedule: Schedule) -> float:
    """Variance of the noise that the forward process adds between t_next and t: the beta of that stretch."""
    scale = schedule.alpha(t) / schedule.alpha(t_next)
    return max(0.0, schedule.sigma(t) ** 2 - (scale * schedule.sigma(t_next)) ** 2)


@register("solver")
@dataclass(frozen=True)
class DDPM(Solver):
    """Ancestral step: a draw from the posterior q(x_next | x, x0) at the clean estimate.

    With a = alpha / alpha_next and beta = sigma^2 - a^2 sigma_next^2,
    x_next = (a sigma_next^2 x + alpha_next beta x0) / sigma^2 + std noise.

    Args:
        variance: "small" takes std^2 = beta sigma_next^2 / sigma^2, the true posterior of a known x0 (`fixed_small`
            of diffusers); "large" takes std^2 = beta, right when the data are noise themselves. No noise is
            added where sigma_next is 0.

    Raises:
        SpecError: another variance.

    References: Ho et al. 2020, arXiv 2006.11239.
    """

    variance: Literal["small", "large"] = "small"
    name: ClassVar[str] = "ddpm"
    diffusers_class: ClassVar[str] = "DDPMScheduler"
    variants: ClassVar[tuple[str, ...]] = ("ddpm(variance='large')",)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        beta, now, after = forward_variance(t_next, t, schedule), schedule.sigma(t) ** 2, schedule.sigma(t_next) ** 2
        scale = schedule.alpha(t) / schedule.alpha(t_next)
        mean = weighted_sum([scale * after / now, schedule.alpha(t_next) * beta / now], [x, x0])
        if after == 0.0:
            return Step(mean)
        noise = yield Noise(x)
        return Step(
            weighted_sum([1.0, math.sqrt(beta if self.variance == "large" else beta * after / now)], [mean, noise])
        )
