"""The bare run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..engine.contracts import Plan, Policy, Run
from ..registry import register


@register("policy")
@dataclass(frozen=True)
class Fixed(Policy):
    """Amend nothing: every step of the grid is a full call.

    References: none needed; this is the sampler by itself.
    """

    name: ClassVar[str] = "fixed"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return proposal
