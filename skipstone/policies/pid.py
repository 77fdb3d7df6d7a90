"""Step sizes that keep the solver's own estimate of its error at a tolerance."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from ..engine.contracts import Attempt, Plan, Policy, Run
from ..registry import register
from ..settings import RTOL_RANGE, Ranges, check_settings

SHORTEST = 1e-3  # step of the half log-SNR that is kept whatever its error
SLACK = 0.25  # share of a step by which the end may be farther off and still be landed on; none after a rejection


@register("policy")
@dataclass(frozen=True)
class PID(Policy):
    """Choose every step from the solver's local error, and take again those that exceed the tolerance.

    With e_n the solver's error of step n relative to the sample (rms) over `rtol`, a step is kept if e_n <= 1,
    and the next is longer on the half log-SNR by
    safety (1/e_n)^((p + i + d) / order) (1/e_{n-1})^(-(p + 2 d) / order) (1/e_{n-2})^(d / order),
    within [0.2, 2.5]. Lands anywhere, not only on the grid, and on the end. Controls solvers that give
    `Step.error` (dpm_adaptive, heun, dpmpp of order 2 or 3); others take the grid after the first step.
    May cost more calls than the grid.

    Args:
        rtol: Local error of a step allowed, relative to the sample (rms), in [1e-6, 1000]: float32 measures no
            smaller one.
        order: Power of the step that the error falls with, in 1..4: the solver's order.
        p: Proportional gain, in [0, 10].
        i: Integral gain, in [1e-6, 10]; 1 alone is the classical controller.
        d: Derivative gain, in [0, 10].
        safety: Aim below the longest step allowed, in [0.001, 1].
        first: Longest first step, in half log-SNR, in [0.001, 24].

    Raises:
        SpecError: a setting out of range.

    References: Soderlind 2003, ACM TOMS 29(1); Jolicoeur-Martineau et al. 2021, arXiv 2105.14080.
    """

    rtol: float = 0.01
    order: int = 2
    p: float = 0.0
    i: float = 1.0
    d: float = 0.0
    safety: float = 0.9
    first: float = 0.5
    name: ClassVar[str] = "pid"
    needs: ClassVar[frozenset[str]] = frozenset({"error"})
    may_spend_more: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {
        "rtol": RTOL_RANGE,
        "order": (1, 4),
        "p": (0, 10),
        "i": (1e-6, 10),
        "d": (0, 10),
        "safety": (1e-3, 1),
        "first": (SHORTEST, 24),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        last = run.pending
        if last is None:
            return replace(proposal, t_next=max(proposal.t_next, self._landing(run, run.next_start, self.first)))
        if "error" not in last.signals or not last.is_full_call or not proposal.accept:
            return proposal
        length = run.clock(last.t_next) - run.clock(last.t)
        accept = last.signals["error"] <= self.rtol or length <= SHORTEST
        start = last.t_next if accept else last.t
        if start <= run.t_end:
            return proposal
        step = max(SHORTEST, length * self._factor(run))
        return replace(proposal, accept=accept, t_next=self._landing(run, start, step, SLACK if accept else 0.0))

    def _landing(self, run: Run, start: float, step: float, slack: float = 0.0) -> float:
        """Where a step of this length on the clock ends: on the end, if it comes close but for this share of it."""
        here = run.clock(start)
        if here + (1 + slack) * step >= run.clock(run.t_end):
            return run.t_end
        return min(run.time(here + step), math.nextafter(start, 0.0))

    def _factor(self, run: Run) -> float:
        """By how much the next step is longer than the pending one."""
        accepted = [a for a in run.past if a.accepted]
        recent = [run.pending, *reversed(accepted)]
        gains = (self.p + self.i + self.d, -(self.p + 2 * self.d), self.d)
        factor = self.safety
        for attempt, gain in zip(recent, gains, strict=False):
            factor *= self._ease(attempt) ** (gain / self.order)
        return min(2.5, max(0.2, factor)) if math.isfinite(factor) else 0.2

    def _ease(self, attempt: Attempt | None) -> float:
        """Ratio of the tolerance to the error of an attempt; 1 if the error is not known."""
        if attempt is None or "error" not in attempt.signals:
            return 1.0
        return self.rtol / max(attempt.signals["error"], 1e-12 * self.rtol)
