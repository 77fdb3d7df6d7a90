"""Call every k-th step and forecast between: the blind mask that adaptivity has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import Clock, Forecast, Plan, Policy, PredictionType, Run
from ..registry import register
from ..settings import MAX_STEPS, Ranges, check_settings


@register("policy")
@dataclass(frozen=True)
class Interval(Policy):
    """Call every k-th step and forecast between, whatever the prompt.

    After `warmup` called steps, `every - 1` forecasts and one call take turns.

    Args:
        every: Steps from one call to the next, in 1..10,000. 1 calls every step.
        warmup: Steps at the start that are always called, in 1..10,000.
        tail: Steps at the end that are always called, in 0..10,000.
        order: Of the forecast, in 0..3.
        of: Prediction that is forecast: eps, x0, v or flow.
        clock: What it is forecast against: logsnr, t or angle.

    Raises:
        SpecError: a setting out of range.

    References: Liu et al. 2025, arXiv 2503.06923 (TaylorSeer: a fixed interval with polynomial forecasts).
    """

    every: int = 2
    warmup: int = 3
    tail: int = 1
    order: int = 1
    of: PredictionType = "eps"
    clock: Clock = "logsnr"
    name: ClassVar[str] = "interval"
    neutral: ClassVar[Mapping[str, Any]] = {"every": 1}
    ranges: ClassVar[Ranges] = {
        "every": (1, MAX_STEPS),
        "warmup": (1, MAX_STEPS),
        "tail": (0, MAX_STEPS),
        "order": (0, 3),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        bound = (
            len(run.accepted_attempts) < self.warmup
            or run.is_in_tail(proposal, self.tail)
            or run.num_consecutive_forecasts >= self.every - 1
        )
        return (
            proposal
            if bound or not proposal.is_unamended
            else replace(proposal, evaluate=Forecast(self.order, self.of, self.clock))
        )
