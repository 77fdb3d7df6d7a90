"""A run has a bound on its work: whatever rejects for ever, or takes steps without length, ends with a sentence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.contracts import Plan, Policy, Run
from skipstone.engine.drivers import denoise
from skipstone.engine.flow import MAX_ATTEMPTS_PER_STEP, MAX_EXTRA_ATTEMPTS
from skipstone.engine.requests import Problem
from skipstone.errors import PlanError
from skipstone.numerics.schedule import Cosine
from skipstone.policies.fixed import Fixed
from skipstone.testing.backbones.counting import CountingBackbone
from skipstone.testing.backbones.gaussian import Gaussian

STEPS = 6


def problem(dtype: str = "float64") -> Problem:
    x = np.random.default_rng(0).standard_normal((1, 4, 4)).astype(dtype)
    return Problem(Cosine(), x, (*(1 - i / STEPS for i in range(STEPS)), 0.0))


@dataclass(frozen=True)
class Rejecting(Policy):
    """Rejects every step, and takes a shorter one."""

    name: ClassVar[str] = "rejecting"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if run.pending is None:
            return proposal
        return replace(proposal, accept=False, t_next=0.5 * (run.t + proposal.t_next))


@dataclass(frozen=True)
class Creeping(Policy):
    """Takes a millionth of every step."""

    name: ClassVar[str] = "creeping"

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return replace(proposal, t_next=run.next_start - 1e-6 * (run.next_start - proposal.t_next))


@pytest.mark.parametrize("policy", [Rejecting(), Creeping(), Creeping() | Fixed()], ids=registry.spell)
def test_a_policy_that_does_not_come_to_the_end_is_named(policy: Policy) -> None:
    counted = CountingBackbone(Gaussian())
    name = getattr(policy, "parts", (policy,))[0].name
    with pytest.raises(PlanError, match=f"attempts on a grid of {STEPS} steps .* planned by: {name}"):
        denoise(counted, problem(), registry.parse("solver", "ddim"), policy)
    assert counted.calls <= MAX_ATTEMPTS_PER_STEP * STEPS + MAX_EXTRA_ATTEMPTS


@pytest.mark.parametrize(
    ("solver", "policy", "advice"),
    [
        ("heun", "pid(rtol=1e-6)", r"pid\(rtol=0.01\)"),
        ("dpm_adaptive(rtol=1e-6)", "fixed", r"dpm_adaptive\(rtol=0.01\)"),
    ],
)
def test_a_tolerance_below_what_a_dtype_can_show_is_named_with_another(solver: str, policy: str, advice: str) -> None:
    """In half precision a step's error is rounding, however short the step."""
    with pytest.raises(PlanError, match=rf"planned by: pid. Allow a larger error, e\.g\. {advice}"):
        denoise(Gaussian(), problem("float16"), registry.parse("solver", solver), registry.parse("policy", policy))


def test_the_smallest_tolerance_ends_in_double_precision() -> None:
    run = denoise(Gaussian(), problem(), registry.parse("solver", "dpm_adaptive(rtol=1e-6)"), Fixed()).run
    assert run.t == 0.0
