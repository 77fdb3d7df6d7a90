"""Euler's method on the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.schedule import Schedule
from ..registry import register


@register("solver")
@dataclass(frozen=True)
class Euler(Solver):
    """Euler step of dy/ds = (y - x0) / s, with y = x / alpha and s = sigma / alpha.

    y_next = y + (s_next - s) (y - x0) / s, written so that alpha = 0 divides nothing. On a flow-matching
    schedule it is x + (sigma_next - sigma) (eps - x0). Equals `ddim` to rounding, on every schedule; the name is
    kept because pipelines are configured with it.

    References: Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn.
    """

    name: ClassVar[str] = "euler"
    diffusers_class: ClassVar[str] = "EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler"

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        shrink = schedule.sigma(t_next) / schedule.sigma(t)
        return Step(weighted_sum([shrink, schedule.alpha(t_next) - shrink * schedule.alpha(t)], [x, x0]))
