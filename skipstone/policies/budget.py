"""A hard limit on the number of calls."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import INFINITY, Clock, Draft, Finish, Forecast, Full, Plan, Policy, PredictionType, Refine, Run
from ..engine.requests import Backbone, Query
from ..errors import SpecError
from ..numerics.array import rms, to_floats
from ..registry import register
from ..settings import Ranges, check_settings


@register("policy")
@dataclass(frozen=True)
class Budget(Policy):
    """Never spend more than this many calls, and spread them over the run.

    A step is called while (s + 1) * m >= n + s, with m calls affordable, n steps left and s forecasts since
    the last call, or while the run is no further ahead of even spending than `ahead` allows: the first steps
    shape the picture. Else it is forecast. Both stages of a two-stage solver and the calls of rejected
    attempts are charged; where one stage is all that is left, it is spent on a step of the flow's own
    (`Finish`). A rejection that cannot be paid for is overruled. Put it last in a chain: of what comes
    behind it, only `forecast` adds no calls.

    Args:
        calls: Upper bound of the run's cost, in calls, in [1, 1e9]. At steps * stages or more, nothing changes.
        ahead: Share of the budget by which spending may run ahead of an even one at the start, in [0, 1],
            less and less later. 0 spreads evenly from the first step, 1 allows to spend it all at once.
        order: Of the forecast, in 0..3.
        of: Prediction that is forecast: eps, x0, v or flow.
        clock: What it is forecast against: logsnr, t or angle.

    Raises:
        SpecError: a setting out of range.

    References: ours. For a limit in seconds see `calls_within`.
    """

    calls: float = 25
    ahead: float = 0.25
    order: int = 1
    of: PredictionType = "eps"
    clock: Clock = "logsnr"
    name: ClassVar[str] = "budget"
    neutral: ClassVar[Mapping[str, Any]] = {"calls": 1e9}
    ranges: ClassVar[Ranges] = {"calls": (1, 1e9), "ahead": (0, 1), "order": (0, 3)}

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if isinstance(proposal.evaluate, Forecast) and proposal.accept and any(not a.is_forecast for a in run.attempts):
            return proposal
        left = self.calls - run.cost
        if isinstance(proposal.evaluate, Refine) and left < run.stages + proposal.evaluate.steps:
            proposal = replace(proposal, evaluate=Full())
        if isinstance(proposal.evaluate, Draft) and proposal.evaluate.steps / run.branches > left:
            proposal = replace(run.proposal(), accept=proposal.accept)
        if isinstance(proposal.evaluate, Finish) and left >= 1.0:
            return proposal
        if not proposal.accept:
            return proposal if left >= run.stages else self._forecast(run, run.proposal())
        if not self._due(run, left):
            return self._forecast(run, proposal)
        if left >= run.stages:
            return proposal
        return replace(proposal, evaluate=Finish(1)) if left >= 1.0 else self._forecast(run, proposal)

    def _due(self, run: Run, left: float) -> bool:
        """Whether calls spread evenly over what is left would have one here."""
        steps, affordable = len(run.remaining_times), max(left // run.stages, min(left, 1.0) // 1.0)
        total = len(run.grid) - 1
        done = (total - steps + 1) / total
        early = run.cost + run.stages <= self.calls * (done + self.ahead * (1 - done))
        return (
            early
            or not run.attempts
            or (run.num_consecutive_forecasts + 1) * affordable >= steps + run.num_consecutive_forecasts
        )

    def _forecast(self, run: Run, proposal: Plan) -> Plan:
        return replace(proposal, evaluate=Forecast(self.order, self.of, self.clock))


def calls_within(seconds: float, backbone: Backbone, query: Query, batch: int = 1, repeats: int = 3) -> int:
    """Calls that fit into a time limit, from the median time of one call measured here and now.

    Args:
        seconds: Wall-clock limit of the denoising of one batch, > 0 and finite.
        backbone: The denoiser.
        query: A request like those of the run.
        batch: Samples denoised together, >= 1.
        repeats: Timed calls, >= 1, after one that is not timed.

    Raises:
        SpecError: not even one call fits, or a limit that is no number.
    """
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        to_floats([rms(e.x0) for e in backbone.predict([query] * batch)])  # waits for the device
        times.append(time.perf_counter() - start)
    one = sorted(times[1:])[repeats // 2]
    if not one <= seconds < INFINITY:
        raise SpecError(f"Expected seconds to be finite and at least {one:.3g}, the time of one call, got {seconds:g}.")
    return int(seconds / max(one, 1e-9))
