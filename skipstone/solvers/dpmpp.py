"""DPM-Solver++, multistep: one call a step, and the estimates of the steps before."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.exponential import exponential_weights
from ..numerics.schedule import CLOCK_LIMIT, Schedule
from ..registry import register
from ..settings import Ranges, check_settings
from .ddim import ddim_update, x0_weight


def earlier_estimates(past: Sequence[Node], t: float, schedule: Schedule) -> list[tuple[float, Any]]:
    """(time, clean estimate) of what came before t at finite, distinct clocks, oldest first."""
    nodes: list[tuple[float, Any]] = []
    later = schedule.clock(t)
    for node in reversed(past):
        clock = schedule.clock(node.t)
        if node.t > t and clock < later - 1e-9 and abs(clock) < CLOCK_LIMIT:
            nodes.append((node.t, node.estimate.x0))
            later = clock
    return nodes[::-1]


def usable_history(
    past: Sequence[Node], t: float, t_next: float, schedule: Schedule, count: int
) -> list[tuple[float, Any]]:
    """The last `count` of `earlier_estimates`, or none where a polynomial would be wanted at an infinite clock."""
    if count < 1 or schedule.sigma(t_next) == 0.0 or abs(schedule.clock(t)) >= CLOCK_LIMIT:
        return []
    return earlier_estimates(past, t, schedule)[-count:]


def step_ratio(times: Sequence[float], t_next: float, schedule: Schedule) -> float:
    """h / h0: how much longer this step is on the clock than the one before; `times` end before and here."""
    earlier, now, later = (schedule.clock(s) for s in (*times[-2:], t_next))
    return (later - now) / (now - earlier)


def multistep_weights(times: Sequence[float], t_next: float, schedule: Schedule) -> list[float]:
    """What each clean estimate at `times`, the last of them here, adds to x in a step of order len(times)."""
    t = times[-1]
    w = x0_weight(t, t_next, schedule)
    if len(times) == 1:
        return [w]
    if len(times) == 2:  # the published midpoint form; exact integration differs by a third-order term
        r = 0.5 * step_ratio(times, t_next, schedule)
        return [-w * r, w * (1.0 + r)]
    return exponential_weights(times, t, t_next, schedule)


def released_weights(times: Sequence[float], t_next: float, schedule: Schedule) -> list[float]:
    """The third-order step of the released code, whose second-difference term is half of Taylor's."""
    c2, c1, c0 = (schedule.clock(s) for s in times)
    h, h0, h1 = schedule.clock(t_next) - c0, c0 - c1, c1 - c2
    a = schedule.alpha(t_next)
    phi1, phi2 = a * (math.expm1(-h) / h + 1.0), a * (0.5 - (math.expm1(-h) + h) / h**2)
    first, second = h / h0, h / h1  # D1_0 = first (m0 - m1), D1_1 = second (m1 - m2)
    bend = (phi1 * h0 + phi2 * h) / (h0 + h1)  # weight of D1_0 - D1_1
    steep = (phi1 + bend) * first
    return [bend * second, -steep - bend * second, x0_weight(times[-1], t_next, schedule) + steep]


@register("solver")
@dataclass(frozen=True)
class DPMpp(Solver):
    """Multistep exponential integrator of the clean estimate, DPM-Solver++ (1, 2M, 3M); one call a step.

    With h the step of the half log-SNR, x_next = sigma_next / sigma x + alpha_next int_0^h exp(u - h) p(u) du,
    p the polynomial through the last `order` clean estimates (order 2 in the published midpoint form). Of lower
    order while there is no history, and first order where sigma_next is 0. `Step.error` is the difference from
    the step of one order less. diffusers also lowers the order near the end of runs of less than 15 steps,
    which a solver that may be stopped anywhere cannot.

    Args:
        order: In 1..3; 1 is `ddim`.
        released: With order 3, take the coefficients of the authors' code and of diffusers, which give the second
            difference half its weight and converge at order 2 only. No effect otherwise.

    Raises:
        SpecError: order out of range.

    References: Lu et al. 2022, arXiv 2211.01095.
    """

    order: int = 2
    released: bool = False
    name: ClassVar[str] = "dpmpp"
    diffusers_class: ClassVar[str] = "DPMSolverMultistepScheduler"
    variants: ClassVar[tuple[str, ...]] = ("dpmpp(order=1)", "dpmpp(order=3)", "dpmpp(order=3, released=True)")
    ranges: ClassVar[Ranges] = {"order": (1, 3)}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def convergence_order(self) -> int:
        return 2 if self.released and self.order == 3 else self.order

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        nodes = [*usable_history(past, t, t_next, schedule, self.order - 1), (t, x0)]
        if len(nodes) == 1:
            return Step(ddim_update(x, x0, t, t_next, schedule))
        times, values = [s for s, _ in nodes], [v for _, v in nodes]
        rule = released_weights if self.released and len(nodes) == 3 else multistep_weights
        weights = rule(times, t_next, schedule)
        lower = [0.0, *multistep_weights(times[1:], t_next, schedule)]
        high = weighted_sum([schedule.sigma(t_next) / schedule.sigma(t), *weights], [x, *values])
        return Step(high, weighted_sum([w - v for w, v in zip(weights, lower, strict=True)], values))
