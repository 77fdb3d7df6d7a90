"""Skip until the expected error of the forecasts reaches a tolerance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from ..engine.contracts import Clock, Forecast, Plan, Policy, PredictionType, Run
from ..engine.signals import Disagreement
from ..registry import register, spell
from ..settings import MAX_STEPS, MAX_TOLERANCE, Ranges, check_settings


def eps_weight_clock(clock: float) -> float:
    """asinh(sigma / alpha): what an error of eps weighs in the sample is how far this moves."""
    return math.asinh(math.exp(-clock))


def eps_per_unit(of: PredictionType, clock: float) -> float:
    """Change of eps per unit of `of`, at this half log-SNR."""
    if of == "eps":
        return 1.0
    ratio = math.exp(-clock)  # sigma / alpha
    return {"x0": 1.0 / ratio, "v": 1.0 / math.hypot(1.0, ratio), "flow": 1.0 / (1.0 + ratio)}[of]


@register("policy")
@dataclass(frozen=True)
class ErrorControl(Policy):
    """Forecast until the error expected of it exceeds a tolerance, measured at every call.

    Each call shows by how much a forecast would have been wrong there: e = rms(forecast - call). A
    polynomial through the nodes l_j errs by c * prod_j |l - l_j| on its clock, so e gives c, and c the
    error of every step ahead. An error e of eps over one step moves the sample by e * (u - u_next) with
    u = asinh(sigma / alpha), in units of a sample of variance 1. Steps are forecast while
    sum (u - u_next) * c * prod_j |l - l_j| since the last call stays below `tol`.

    Args:
        tol: Expected error of one run of forecasts, in units of the sample (rms), in [0, 1e9]. 0 never skips.
        max_skip: Longest run of consecutive forecasts, in 0..10,000 steps. 0 never skips.
        warmup: Steps at the start that are always called, in 0..10,000; it never skips before it can measure.
        tail: Steps at the end that are always called, in 0..10,000.
        order: Of the forecast, in 0..3.
        of: Prediction that is forecast: eps, x0, v or flow.
        clock: What it is forecast against: logsnr, t or angle.

    Raises:
        SpecError: a setting out of range.

    References: Zhang & Chen 2022, arXiv 2204.13902 (errors of an extrapolated eps); ours as a whole.
    """

    tol: float = 0.003
    max_skip: int = 3
    warmup: int = 3
    tail: int = 1
    order: int = 1
    of: PredictionType = "v"
    clock: Clock = "t"
    name: ClassVar[str] = "error_control"
    neutral: ClassVar[Mapping[str, Any]] = {"tol": 0.0}
    ranges: ClassVar[Ranges] = {
        "tol": (0, MAX_TOLERANCE),
        **dict.fromkeys(("max_skip", "warmup", "tail"), (0, MAX_STEPS)),
        "order": (0, 3),
    }
    calibration_settings: ClassVar[Sequence[Mapping[str, Any]]] = tuple(
        {"tol": tol, "max_skip": skips}
        for tol, skips in (
            (0.0002, 1), (0.0005, 1), (0.001, 2), (0.0015, 2), (0.002, 3), (0.003, 3), (0.0045, 4), (0.006, 4),
            (0.009, 5), (0.013, 6), (0.02, 7), (0.03, 8),
        )
    )  # fmt: skip

    def __post_init__(self) -> None:
        check_settings(self)

    @cached_property
    def signal(self) -> str:
        """Spec of the signal that the policy reads."""
        return spell(Disagreement(self.order, self.of, self.clock))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def plan(self, run: Run, proposal: Plan) -> Plan:
        bound = (
            len(run.accepted_attempts) < self.warmup
            or run.is_in_tail(proposal, self.tail)
            or run.num_consecutive_forecasts >= self.max_skip
        )
        if bound or not proposal.is_unamended:
            return proposal
        expected = self._expected(run, proposal.t_next)
        if not expected < self.tol:
            return proposal
        return replace(
            proposal,
            evaluate=Forecast(self.order, self.of, self.clock),
            memo={**proposal.memo, "expected_error": expected},
        )

    def _expected(self, run: Run, t_next: float) -> float:
        """Error of all forecasts since the last call, were the next step one of them."""
        accepted = run.accepted_attempts
        last = len(accepted) - 1 - run.num_consecutive_forecasts
        if last < 0 or self.signal not in accepted[last].signals:
            return math.inf
        nodes = self._nodes(run)
        before = [n for n in nodes if n > accepted[last].t]
        spread = self._spread(run, before, accepted[last].t)
        if spread == 0.0:
            return math.inf
        c = accepted[last].signals[self.signal] / spread
        steps = [(a.t, a.t_next) for a in accepted[last + 1 :]] + [(run.next_start, t_next)]
        return sum(c * self._spread(run, nodes, t) * self._weight(run, t, t_end) for t, t_end in steps)

    def _nodes(self, run: Run) -> list[float]:
        """Times at which the network has been called, oldest first."""
        ends = ((a.t, a.t_next) if run.stages > 1 else (a.t,) for a in run.accepted_attempts if not a.is_forecast)
        return sorted({t for times in ends for t in times}, reverse=True)

    def _spread(self, run: Run, nodes: list[float], t: float) -> float:
        """prod_j |l(t) - l(t_j)| over the nodes that a forecast uses; 0 where they are too few."""
        used = nodes[-(self.order + 1) :]
        if len(used) <= self.order:
            return 0.0
        return math.prod(abs(self._place(run, t) - self._place(run, n)) for n in used)

    def _place(self, run: Run, t: float) -> float:
        if self.clock == "angle":
            return run.angle(t)
        return t if self.clock == "t" else run.clock(t)

    def _weight(self, run: Run, t: float, t_end: float) -> float:
        """By how much an error of 1 in `of`, made over a step, moves the sample."""
        here = run.clock(t)
        return eps_per_unit(self.of, here) * abs(eps_weight_clock(here) - eps_weight_clock(run.clock(t_end)))
