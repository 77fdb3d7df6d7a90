"""SADA: skip steps while SADA's stability criterion holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from ..engine.contracts import Forecast, Plan, Policy, PredictionType, Run
from ..engine.signals import Stability
from ..registry import register, spell
from ..settings import MAX_STEPS, Ranges, check_settings


@register("policy")
@dataclass(frozen=True)
class Sada(Policy):
    """Skip while the flow is stable: SADA's criterion and step-wise skips as released, without its token pruning.

    With x^ the latent that the slopes y = dx/dt of the last three steps extrapolate, the next step is skipped when the
    mean of (x - x^) (y - 2 y_1 + y_2) is <= 0 over the whole batch. It repeats the last prediction, at x^ in
    place of x. Of a flow the criterion is the mean of -(y - 2 y_1 + y_2) alone, and the first skip of a run takes
    twice the last prediction less the one before, the others repeat the last: as released, too.

    From step `lagrange_step` on, where `lagrange` is not 0, every `lagrange_every`-th step is called whatever the
    criterion, and the others take the polynomial of the clean estimates through the last `lagrange` calls. The released
    code takes it through the steps numbered 1 mod `lagrange_every`, called or not: the same where all of these lie
    behind `lagrange_step` on a grid even in t, a little older before (of a flow it repeats, as above).

    The released x^ looks ahead by one entry of the noise table, not by the whole step; this is kept. Right after a skip
    the mean may lie within rounding of 0, where another machine may decide otherwise. What is left out:
    where the criterion fails, SADA computes attention for the unstable tokens alone, which spares a part of such calls.
    Steps are numbers for a grid of 50, as published. Of the paper only the abstract was read; this follows its code.

    Args:
        first, last: Steps after which skipping begins and ends, in 0..10,000 (3 at least is used).
        max_skip: Longest run of skips, in 0..10,000 steps. 0 never skips.
        lagrange: Calls that the late polynomial goes through, in 0..4. 0 keeps the criterion to the end.
        lagrange_step: Step from which it is used, in 0..10,000.
        lagrange_every: Steps from one call to the next there, in 1..10,000.
        of: What the network predicts: eps, v, x0 or flow.
        scope: "batch" decides by the mean of the batch, as released; "sample" for each sample by itself.

    Raises:
        SpecError: a setting out of range.

    References: Jiang et al. 2025, arXiv 2507.17135 (ICML 2025); github.com/Ting-Justin-Jiang/sada-icml.
    """

    first: int = 10
    last: int = 47
    max_skip: int = 4
    lagrange: int = 0
    lagrange_step: int = 24
    lagrange_every: int = 4
    of: PredictionType = "eps"
    scope: Literal["sample", "batch"] = "batch"
    name: ClassVar[str] = "sada"
    neutral: ClassVar[Mapping[str, Any]] = {"max_skip": 0}
    ranges: ClassVar[Ranges] = {
        **dict.fromkeys(("first", "last", "max_skip", "lagrange_step"), (0, MAX_STEPS)),
        "lagrange": (0, 4),
        "lagrange_every": (1, MAX_STEPS),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    @cached_property
    def signal(self) -> str:
        """Spec of the signal that the policy reads."""
        return spell(Stability(self.of))

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({self.signal})

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return self._plans([run], [proposal])[0]

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        if self.scope == "batch":
            return self._plans(runs, proposals)
        return [self.plan(run, proposal) for run, proposal in zip(runs, proposals, strict=True)]

    def _plans(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        """Plans for these runs, which share one decision."""
        last = [run.accepted_attempts[-1].signals for run in runs if run.accepted_attempts]
        values = [signals[self.signal] for signals in last if self.signal in signals]
        stable = len(values) == len(runs) and sum(values) / len(values) <= 0.0
        plans = []
        for run, proposal in zip(runs, proposals, strict=True):
            how = (
                self._how(len(run.accepted_attempts) - 1, run.num_consecutive_forecasts, stable)
                if proposal.is_unamended
                else None
            )
            plans.append(proposal if how is None else replace(proposal, evaluate=how))
        return plans

    def _how(self, step: int, streak: int, stable: bool) -> Forecast | None:
        """How the next step is predicted without a call; None if it needs one."""
        if streak >= self.max_skip or not max(self.first, 3) <= step < self.last:
            return None
        late = self.lagrange > 0 and step >= self.lagrange_step
        if step % self.lagrange_every == 0 if late else not stable:
            return None
        if self.of == "flow":
            return Forecast(1 if streak == 0 else 0, "flow", "calls")
        return Forecast(self.lagrange - 1, "x0", "t") if late else Forecast(0, self.of, "sada")
