"""Heun's method on the probability-flow ODE."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.parametrize import FLOOR
from ..numerics.schedule import Schedule
from ..registry import register
from .ddim import ddim_update


@register("solver")
@dataclass(frozen=True)
class Heun(Solver):
    """Heun's second-order step of dy/ds = (y - x0) / s, y = x / alpha, s = sigma / alpha; two calls.

    With x' the Euler step and x0' the estimate there, x_next = x' + alpha_next (s / s_next - 1) (x0' - x0) / 2.
    On a flow-matching schedule y = x and s = sigma. `Step.error` is the difference from Euler. First order, with
    one call, where s is infinite (pure noise) or s_next vanishes (the data): no query is made there.

    References: Karras et al. 2022, arXiv 2206.00364, algorithm 1 without churn.
    """

    name: ClassVar[str] = "heun"
    diffusers_class: ClassVar[str] = "HeunDiscreteScheduler, FlowMatchHeunDiscreteScheduler"
    order: ClassVar[int] = 2
    stages: ClassVar[int] = 2

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        low = ddim_update(x, x0, t, t_next, schedule)
        if schedule.sigma(t_next) < FLOOR or schedule.sample_scale(t) < FLOOR:
            return Step(low)
        ahead = (yield Query(low, t_next)).x0
        level = schedule.sigma(t) / schedule.sample_scale(t)
        level_next = schedule.sigma(t_next) / schedule.sample_scale(t_next)
        weight = 0.5 * schedule.sample_scale(t_next) * (level / level_next - 1.0)
        error = weighted_sum([weight, -weight], [ahead, x0])
        return Step(low + error, error)
