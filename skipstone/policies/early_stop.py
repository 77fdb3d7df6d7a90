"""Finish in a few long steps once the clean estimate has settled."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import Finish, Plan, Policy, Run
from ..numerics.schedule import CLOCK_LIMIT
from ..registry import register
from ..settings import MAX_STEPS, MAX_TOLERANCE, Ranges, check_settings

CHANGE = "prediction_change"
FINISH_MEMO = "early_stop"


@register("policy")
@dataclass(frozen=True)
class EarlyStop(Policy):
    """Finish in one to four long steps once the clean estimate has settled.

    Settled: at each of the last `patience` calls rms(x0 - x0_before) < tol * rms(x0) * (l - l_before), with
    l the half log-SNR, at l >= `above` (at high noise x0 hardly moves because hardly anything can be
    seen). The rate is about what x0 would still change by, so tol means the same on every grid. What is
    left of the grid is then divided into `steps` long steps, each charged one call: no half-made estimate
    is taken for the picture. The step that settled it is the plan's memo `early_stop`.

    Args:
        tol: Relative change of the clean estimate still to come, dimensionless, in [0, 1e9]. 0 never stops.
        patience: Consecutive calls that must agree, in 1..10,000.
        above: Half log-SNR from which it may stop, in [-12, 12]; at 0 picture and noise are equally strong.
        steps: Steps of the finish, in 1..4.
        order: Of the finish, in 1..4.

    Raises:
        SpecError: a setting out of range.

    References: Lu et al. 2022, arXiv 2211.01095 (exponential integrators, of which the finish is one).
    """

    tol: float = 0.1
    patience: int = 2
    above: float = 0.0
    steps: int = 2
    order: int = 2
    name: ClassVar[str] = "early_stop"
    needs: ClassVar[frozenset[str]] = frozenset({CHANGE})
    neutral: ClassVar[Mapping[str, Any]] = {"tol": 0.0}
    ranges: ClassVar[Ranges] = {
        "tol": (0, MAX_TOLERANCE),
        "patience": (1, MAX_STEPS),
        "above": (-CLOCK_LIMIT, CLOCK_LIMIT),
        "steps": (1, 4),
        "order": (1, 4),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if not proposal.accept:
            return proposal
        taken = sum(FINISH_MEMO in a.plan.memo for a in run.accepted_attempts)
        if taken == 0 and not self._is_settled(run):
            return proposal
        left = run.remaining_times
        rest = max(1, self.steps - taken)
        t_next = left[-(-len(left) // rest) - 1] if left else run.t_end
        first = next(
            (a.plan.memo[FINISH_MEMO] for a in run.accepted_attempts if FINISH_MEMO in a.plan.memo),
            float(len(run.accepted_attempts)),
        )
        return replace(proposal, evaluate=Finish(self.order), t_next=t_next, memo={**proposal.memo, FINISH_MEMO: first})

    def _is_settled(self, run: Run) -> bool:
        if run.clock(run.next_start) < self.above or len(run.remaining_times) <= self.steps:
            return False
        calls = [a for a in run.accepted_attempts if not a.is_forecast]
        rates = [
            now.signals[CHANGE] / max(1e-9, run.clock(now.t) - run.clock(before.t))
            for before, now in itertools.pairwise(calls)
            if CHANGE in now.signals
        ][-self.patience :]
        return len(rates) == self.patience and max(rates) < self.tol
