"""Choose how skipped steps are forecast, whoever skipped them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import Clock, Forecast, Plan, Policy, PredictionType, Run
from ..engine.flow import FREEZE
from ..registry import register
from ..settings import MAX_STEPS, Ranges, check_settings


@register("policy")
@dataclass(frozen=True)
class ForecastKind(Policy):
    """Forecast skipped steps by a polynomial of this order, whoever before it in the chain skipped them.

    `third_order | forecast(order=1)` decides as published and extrapolates instead of repeating. Alone it
    changes nothing, whatever its settings: it decides how to skip, never when.

    Args:
        order: Of the polynomial, in 0..3. 0 repeats the last prediction.
        of: Prediction that is forecast: eps, x0, v or flow.
        clock: What it is forecast against: logsnr, t or angle.
        hold: Forecasts in a row after which the last prediction is repeated instead, in 0..10,000. 0 always repeats.

    Raises:
        SpecError: a setting out of range.

    References: Liu et al. 2025, arXiv 2503.06923 (order); Lu et al. 2022, arXiv 2206.00927 (the log-SNR clock).
    """

    order: int = 1
    of: PredictionType = "eps"
    clock: Clock = "logsnr"
    hold: int = 1000
    name: ClassVar[str] = "forecast"
    neutral: ClassVar[Mapping[str, Any]] = {"order": 1}
    ranges: ClassVar[Ranges] = {"order": (0, 3), "hold": (0, MAX_STEPS)}

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        skips = isinstance(proposal.evaluate, Forecast)
        if not skips or (proposal.evaluate == FREEZE and proposal.t_next <= run.t_end):
            return proposal
        how = Forecast(self.order, self.of, self.clock)
        return replace(proposal, evaluate=how if run.num_consecutive_forecasts < self.hold else replace(how, order=0))
