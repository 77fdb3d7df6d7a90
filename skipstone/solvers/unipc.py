"""UniPC: a multistep predictor whose every step is corrected once the next estimate is known."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import weighted_sum
from ..numerics.exponential import exponential_weights
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import Ranges, check_settings
from .ddim import x0_weight
from .dpmpp import earlier_estimates, multistep_weights, usable_history


def corrector_weights(times: Sequence[float], t_next: float, schedule: Schedule) -> list[float]:
    """What each clean estimate at `times` and at t_next adds to x in a corrected step from times[-1] to t_next."""
    t = times[-1]
    if len(times) == 1:  # the published simplification: a trapezium
        half = 0.5 * x0_weight(t, t_next, schedule)
        return [half, half]
    return exponential_weights([*times, t_next], t, t_next, schedule)


@register("solver")
@dataclass(frozen=True)
class UniPC(Solver):
    """Unified predictor-corrector of B2(h) form; one call a step, converging one order above its name.

    Predicts like `dpmpp` of the same order. Once the estimate at the place it reached is known, that step is
    taken again with it, one order higher, before the next one starts; predictor and corrector share
    the start of the step, so only the difference of their weights is added to x, and nothing but the estimates
    needs remembering. First order where sigma_next is 0. diffusers also takes order 2 in place of 3 on
    the last step but one (`lower_order_final`), which a solver that may be stopped anywhere cannot.

    Args:
        order: Of the predictor, in 2..3. 2 for guided sampling, 3 for unconditional, say its authors.

    Raises:
        SpecError: order out of range.

    References: Zhao et al. 2023, arXiv 2302.04867.
    """

    order: int = 2
    name: ClassVar[str] = "unipc"
    diffusers_class: ClassVar[str] = "UniPCMultistepScheduler"
    variants: ClassVar[tuple[str, ...]] = ("unipc(order=3)",)
    ranges: ClassVar[Ranges] = {"order": (2, 3)}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def convergence_order(self) -> int:
        return self.order + 1

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        x0 = (yield Query(x, t)).x0
        x = self._corrected(x, x0, t, schedule, earlier_estimates(past, t, schedule)[-self.order :])
        nodes = [*usable_history(past, t, t_next, schedule, self.order - 1), (t, x0)]
        weights = multistep_weights([s for s, _ in nodes], t_next, schedule)
        return Step(weighted_sum([schedule.sigma(t_next) / schedule.sigma(t), *weights], [x, *(v for _, v in nodes)]))

    def _corrected(self, x: Any, x0: Any, t: float, schedule: Schedule, nodes: list[tuple[float, Any]]) -> Any:
        """x as the step that led here would have made it, had it known x0."""
        if not nodes or schedule.sigma(t) == 0.0:
            return x
        times = [s for s, _ in nodes]
        predicted = [*multistep_weights(times, t, schedule), 0.0]
        corrected = corrector_weights(times, t, schedule)
        change = [c - p for c, p in zip(corrected, predicted, strict=True)]
        return weighted_sum([1.0, *change], [x, *(v for _, v in nodes), x0])
