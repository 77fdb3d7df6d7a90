"""A run in which every number of rows enters the network once, so that a compiler has seen them all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ...engine.contracts import COND, UNCOND, Cached, Plan, Policy, Run
from ...engine.flow import FREEZE


@dataclass(frozen=True)
class EveryRowCount(Policy):
    """Call the network twice for all samples, then for one fewer, and so on to one.

    A sample that is done lands on its clean estimate. Ending is all that takes rows away in a takeover, where samples
    that are forecast run ahead to their next call.

    Args:
        branches: Guidance branches that may be forecast; each number of samples also enters without them.
    """

    branches: frozenset[str] = frozenset()
    name: ClassVar[str] = "every_row_count"
    scope: ClassVar[Literal["sample", "batch"]] = "batch"

    @property
    def sites(self) -> frozenset[str]:
        return self.branches

    @property
    def calls_each(self) -> int:
        """Calls with each number of samples."""
        return 2 if self.branches else 1

    def steps(self, samples: int) -> int:
        """Steps that it takes with so many samples."""
        return 1 + samples * self.calls_each

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        step, last = len(runs[0].attempts), len(runs) - 1
        ends = step > self.calls_each and (step - 1) % self.calls_each == 0  # after all calls with this number
        single = self.branches and step and (step - 1) % self.calls_each == 1
        plans = [replace(p, evaluate=Cached(self.branches)) if single else p for p in proposals]
        if ends:
            plans[last] = replace(proposals[last], evaluate=FREEZE, t_next=runs[last].t_end)
        return plans


def every_row_count(policy: Policy) -> EveryRowCount:
    """The warm-up for a policy: with single branches where it may forecast the others."""
    return EveryRowCount(policy.sites & {COND, UNCOND})
