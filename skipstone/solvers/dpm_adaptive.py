"""Embedded pairs of DPM-Solver++, for runs that choose their own steps."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.exponential import exponential_step
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import RTOL_RANGE, Ranges, check_settings
from .ddim import ddim_update


@register("solver")
@dataclass(frozen=True)
class DPMAdaptive(Solver):
    """Singlestep DPM-Solver++ with an embedded error, its steps chosen by `pid` for each sample.

    Order 2 asks for the estimate at half the step of the half log-SNR, order 3 at one and two thirds. The step
    is taken with the higher order; `Step.error` is its difference from the one below. Comes with its
    controller, `pid(rtol)`, which decides where steps land; the grid only says where they may not go beyond. The
    step to sigma = 0 is a midpoint step in sigma / alpha, of order 2 and two calls.

    Args:
        order: In 2..3, DPM-Solver-12 or DPM-Solver-23: also the calls of a step.
        rtol: Local error of a step allowed, relative to the sample (rms), in [1e-6, 1000].

    Raises:
        SpecError: a setting out of range.

    References: Lu et al. 2022, arXiv 2206.00927, appendix C, and arXiv 2211.01095.
    """

    order: int = 3
    rtol: float = 0.01
    name: ClassVar[str] = "dpm_adaptive"
    variants: ClassVar[tuple[str, ...]] = ("dpm_adaptive(order=2)",)
    ranges: ClassVar[Ranges] = {"order": (2, 3), "rtol": RTOL_RANGE}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def stages(self) -> int:
        return self.order

    @property
    def controller(self) -> str:
        return f"pid(rtol={self.rtol!r}, order={self.order})"

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        first = (yield Query(x, t)).x0
        clock, h = schedule.clock(t), schedule.clock(t_next) - schedule.clock(t)
        if schedule.sigma(t_next) == 0.0:
            return (yield from self._last(x, first, t, t_next, schedule))
        if h <= 0.0:  # beyond what log-SNR can tell apart
            return Step(ddim_update(x, first, t, t_next, schedule))
        t1 = schedule.time(clock + h / self.order)
        second = (yield Query(ddim_update(x, first, t, t1, schedule), t1)).x0
        low = self._second_order(x, [first, second], t, t1, t_next, schedule)
        if self.order == 2:
            return Step(low, low - ddim_update(x, first, t, t_next, schedule))
        t2 = schedule.time(clock + 2 * h / 3)
        x2 = exponential_step(x, t, t2, schedule, [(t1, second), (t, first)])
        third = (yield Query(x2, t2)).x0
        high = exponential_step(x, t, t_next, schedule, [(t2, third), (t, first)])
        return Step(high, high - low)

    def _last(
        self, x: Any, first: Any, t: float, t_next: float, schedule: Schedule
    ) -> Generator[Query | Noise, Any, Step]:
        """The step to sigma = 0, where the clock is infinite: midpoint rule in sigma / alpha, in place of the clock."""
        middle = schedule.time(schedule.clock(t) + math.log(2.0))
        second = (yield Query(ddim_update(x, first, t, middle, schedule), middle)).x0
        a = schedule.alpha(t_next)
        return Step(weighted_sum([2.0 * a, -a], [second, first]), weighted_sum([2.0 * a, -2.0 * a], [second, first]))

    def _second_order(
        self, x: Any, estimates: Sequence[Any], t: float, t1: float, t_next: float, schedule: Schedule
    ) -> Any:
        """DPM-Solver++(2S): the estimates extrapolated to the middle of the step."""
        r = (schedule.clock(t1) - schedule.clock(t)) / (schedule.clock(t_next) - schedule.clock(t))
        middle = weighted_sum([1.0 - 0.5 / r, 0.5 / r], list(estimates))
        return ddim_update(x, middle, t, t_next, schedule)
