"""DPM-Solver++ for the reverse SDE, second-order multistep."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.schedule import Schedule
from ..registry import register
from .dpmpp import step_ratio, usable_history


@register("solver")
@dataclass(frozen=True)
class DPMppSDE(Solver):
    """Second-order multistep step of the reverse SDE, SDE-DPM-Solver++(2M); one call and one noise a step.

    With h the step of the half log-SNR, h0 the one before and d = x0 + h / (2 h0) (x0 - x0_before),
    x_next = sigma_next / sigma exp(-h) x + alpha_next (1 - exp(-2 h)) d + sigma_next sqrt(1 - exp(-2 h)) noise.
    First order on the first step and where sigma_next is 0, where no noise is added either.

    References: Lu et al. 2022, arXiv 2211.01095, appendix D.
    """

    name: ClassVar[str] = "dpmpp_sde"
    diffusers_class: ClassVar[str] = "DPMSolverMultistepScheduler"
    order: ClassVar[int] = 2

    @property
    def stochastic(self) -> bool:
        return True

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        nodes = [*usable_history(past, t, t_next, schedule, 1), (t, x0)]
        a_next, s_next, s = schedule.alpha(t_next), schedule.sigma(t_next), schedule.sigma(t)
        shrink = s_next / s * schedule.alpha(t) / a_next  # exp(-h), also where the clock is infinite
        fresh = 1.0 - shrink * shrink
        r = 0.5 * step_ratio([u for u, _ in nodes], t_next, schedule) if len(nodes) == 2 else 0.0
        estimates = [-r, 1.0 + r][-len(nodes) :]
        weights = [s_next / s * shrink, *(a_next * fresh * w for w in estimates)]
        mean = weighted_sum(weights, [x, *(v for _, v in nodes)])
        if s_next == 0.0:
            return Step(mean)
        noise = yield Noise(x)
        return Step(weighted_sum([1.0, s_next * math.sqrt(fresh)], [mean, noise]))
