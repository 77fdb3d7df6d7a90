"""First-order exponential step, deterministic or stochastic."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.contracts import Node, Noise, Query, Solver, Step
from ..errors import SpecError
from ..numerics.array import combine
from ..numerics.schedule import Schedule
from ..registry import register


def ddim_update(x: Any, x0: Any, t: float, t_next: float, schedule: Schedule) -> Any:
    """x moved from t to t_next along a constant clean estimate."""
    ratio = schedule.sigma(t_next) / schedule.sigma(t)
    return combine([ratio, schedule.alpha(t_next) - ratio * schedule.alpha(t)], [x, x0])


@register("solver")
@dataclass(frozen=True)
class DDIM(Solver):
    """First-order step along a constant clean estimate (DDIM).

    Args:
        eta: Share of the ancestral noise, in [0, 1]. 0 is deterministic, 1 is `ddpm` on this grid.

    References: Song et al. 2020, arXiv 2010.02502.
    """

    eta: float = 0.0
    name: ClassVar[str] = "ddim"
    order: ClassVar[int] = 1
    counterpart: ClassVar[str] = "DDIMScheduler"

    def __post_init__(self) -> None:
        if not 0.0 <= self.eta <= 1.0:
            raise SpecError(f"ddim: expected eta in [0, 1], got {self.eta}.")

    @property
    def stochastic(self) -> bool:
        return self.eta > 0.0

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        if self.eta == 0.0:
            return Step(ddim_update(x, x0, t, t_next, schedule))
        a, s, a_next, s_next = schedule.alpha(t), schedule.sigma(t), schedule.alpha(t_next), schedule.sigma(t_next)
        fresh = self.eta * (s_next / s) * math.sqrt(max(0.0, 1.0 - (a / a_next) ** 2))
        kept = math.sqrt(max(0.0, s_next * s_next - fresh * fresh))
        mean = combine([kept / s, a_next - kept / s * a], [x, x0])
        noise = yield Noise(x)
        return Step(combine([1.0, fresh], [mean, noise]))
