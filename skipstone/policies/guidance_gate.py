"""Stop computing the unconditional branch where guidance has done its work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..engine.contracts import UNCOND, Cached, Clock, Plan, Policy, Run
from ..errors import SpecError
from ..registry import register
from ..settings import MAX_STEPS, Ranges, check_settings

UNCOND_BRANCH = frozenset({UNCOND})


@register("policy")
@dataclass(frozen=True)
class GuidanceGate(Policy):
    """Compute only the conditional branch below a time, and forecast the unconditional one: half a call.

    Without guidance (one branch) it changes nothing.

    Args:
        below: Time under which the unconditional branch is forecast, in [0, 1], 1 being pure noise. 0 never.
        every: Steps from one full call to the next below that time, in 0..10,000. 1 makes every call full, 0 makes none
            so.
        order: Of the branch's forecast, in 0..3. 0 repeats its last output; more needs `every` >= 2, because
            a polynomial that is never renewed runs away.
        clock: What it is forecast against: logsnr, t or angle.

    Raises:
        SpecError: a setting out of range.

    References: Zhang et al. 2024, arXiv 2404.02747 (T-GATE).
    """

    below: float = 0.5
    every: int = 0
    order: int = 0
    clock: Clock = "logsnr"
    name: ClassVar[str] = "guidance_gate"
    sites: ClassVar[frozenset[str]] = UNCOND_BRANCH
    neutral: ClassVar[Mapping[str, Any]] = {"below": 0.0}
    ranges: ClassVar[Ranges] = {"below": (0, 1), "every": (0, MAX_STEPS), "order": (0, 3)}

    def __post_init__(self) -> None:
        check_settings(self)
        if self.order > 0 and self.every == 0:
            raise SpecError(
                f"guidance_gate: expected every >= 2 with order={self.order}, got every=0; try every=4 or order=0."
            )

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if run.branches < 2 or run.next_start >= self.below or not proposal.is_unamended:
            return proposal
        since = next(
            (i for i, a in enumerate(reversed(run.accepted_attempts), 1) if a.is_full_call), 1
        )  # steps since a full call
        if self.every and since >= self.every:
            return proposal
        return replace(proposal, evaluate=Cached(UNCOND_BRANCH, self.order, self.clock))
