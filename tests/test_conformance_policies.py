"""Every registered policy, listed nowhere, is held to the public checks; planted faults prove that they can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest

from skipstone import registry
from skipstone.engine.contracts import Forecast, Plan, Policy, Run
from skipstone.testing import check_id, policy_checks
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

SETUPS = {
    "ddim": PolicySetup(),
    "guided": PolicySetup(backbone=Mixture(guidance=3.0)),
    **{
        name: PolicySetup(registry.parse("solver", name))
        for name in ("heun", "dpmpp")
        if name in registry.names("solver")
    },
}
OURS = [n for n in registry.names("policy") if registry.find_class("policy", n).__module__.startswith("skipstone.")]
CHAINS = [
    "third_order | forecast",
    "guidance_gate(below=0.7) | error_control(tol=0.01) | early_stop",
    "interval | early_stop",
]
CASES = [
    pytest.param(check, id=f"{spec}-{where}-{check_id(check)}")
    for spec in [*OURS, *CHAINS]
    for where, setup in SETUPS.items()
    for check in policy_checks(registry.parse("policy", spec), setup)
    if where == "ddim" or len(check.args) > 1
    if "|" not in spec or len(check.args) > 1
]


@pytest.mark.parametrize("check", CASES)
def test_policy(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("name", OURS)
def test_every_policy_declares_settings_at_which_it_changes_nothing(name: str) -> None:
    assert name in ("fixed", "pid") or registry.find_class("policy", name).neutral


# -- Planted faults ------------------------------------------------------------------------------


def skipped(p: Plan) -> Plan:
    return replace(p, evaluate=Forecast())


@dataclass(frozen=True)
class Impure(Policy):
    """Counts its own calls.

    References: none.
    """

    log: list[int] = field(default_factory=list, compare=False)
    name: ClassVar[str] = "impure"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        self.log.append(0)
        return skipped(proposal) if len(self.log) % 3 == 0 else proposal


@dataclass(frozen=True)
class Undeclared(Policy):
    """Reads what it did not ask for.

    References: none.
    """

    name: ClassVar[str] = "undeclared"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return skipped(proposal) if run.pending and run.pending.signals.get("latent_change", 1.0) < 1e-9 else proposal


@dataclass(frozen=True)
class NotNeutral(Policy):
    """Is off by one at its neutral setting.

    References: none.
    """

    every: int = 2
    name: ClassVar[str] = "not_neutral"
    neutral: ClassVar[Mapping[str, Any]] = {"every": 1}

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return skipped(proposal) if len(run.attempts) % (self.every + 1) == 1 else proposal


@dataclass(frozen=True)
class Stuck(Policy):
    """Rejects for ever.

    References: none.
    """

    name: ClassVar[str] = "stuck"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if run.pending is None:
            return proposal
        return replace(proposal, accept=False, t_next=run.t - 0.5 * (run.pending.t - run.pending.t_next))


@dataclass
class Mutable(Policy):
    """Is not frozen.

    References: none.
    """

    name: ClassVar[str] = "mutable"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return proposal


@dataclass(frozen=True)
class Sociable(Policy):
    """Skips when others are there.

    References: none.
    """

    name: ClassVar[str] = "sociable"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return proposal

    def plan_batch(self, runs: Sequence[Run], proposals: Sequence[Plan]) -> list[Plan]:
        return [skipped(p) if len(runs) > 1 else p for p in proposals]


@dataclass(frozen=True)
class Wasteful(Policy):
    """Takes half steps, and so twice as many calls.

    References: none.
    """

    name: ClassVar[str] = "wasteful"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        half = 0.5 * (run.next_start + proposal.t_next)
        return (
            replace(proposal, t_next=half) if proposal.t_next in run.grid and run.next_start in run.grid else proposal
        )


@dataclass(frozen=True)
class Anonymous(Policy):
    name: ClassVar[str] = "anonymous"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return proposal


@dataclass(frozen=True)
class Unbounded(Policy):
    """Takes any number.

    References: none.
    """

    tol: float = 0.1
    name: ClassVar[str] = "unbounded"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return proposal


FAULTS = [
    (Impure(), "is_pure"),
    (Undeclared(), "declares_its_signals"),
    (NotNeutral(), "neutral_changes_nothing"),
    (Stuck(), "reaches_the_end"),
    (Mutable(), "is_frozen_dataclass"),
    (Sociable(), "ignores_company"),
    (Wasteful(), "spends_no_more"),
    (Anonymous(), "has_summary_and_reference"),
    (Unbounded(), "settings_are_bounded"),
]


@pytest.mark.parametrize(("policy", "expected"), FAULTS, ids=[p.name for p, _ in FAULTS])
def test_a_planted_fault_is_found_by_its_check(policy: Policy, expected: str) -> None:
    [check] = [c for c in policy_checks(policy) if check_id(c) == expected]
    with pytest.raises(AssertionError, match=type(policy).__name__):
        check()
