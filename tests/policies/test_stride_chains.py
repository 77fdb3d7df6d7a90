"""Stride with others: half calls are aimed too, and solvers that control their own steps are not argued with."""

from __future__ import annotations

import pytest

from skipstone import policy, registry
from skipstone.engine.drivers import denoise, replay
from skipstone.engine.requests import Result
from skipstone.testing.backbones.counting import CountingBackbone
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

GUIDED = Mixture(guidance=3.0)


def run(spec: str, solver: str = "adams") -> Result:
    """One sample; its cost is what entered the network, and the trace alone repeats it."""
    setup, counted = PolicySetup(registry.parse("solver", solver), GUIDED, 50), CountingBackbone(GUIDED)
    result = denoise(counted, setup.problem(), setup.solver, policy(spec))
    assert counted.calls == result.run.cost
    again = replay(GUIDED, setup.problem(), setup.solver, result.run)
    assert (again.x == result.x).all()
    assert again.run.cost == result.run.cost
    return result


@pytest.mark.parametrize("gate", ["guidance_gate", "guidance_gate(every=4)"])
def test_a_gate_behind_it_takes_half_calls_and_no_shorter_steps(gate: str) -> None:
    alone, gated = run("stride").run, run(f"stride | {gate}").run
    halves = [a for a in gated.display_attempts if a.cost == 0.5]
    assert len(halves) > 3
    assert len(gated.display_attempts) < 1.6 * len(
        alone.display_attempts
    )  # twice as many and more, were half calls not aimed
    assert all(a.accepted for a in gated.display_attempts)


def test_a_budget_behind_it_holds() -> None:
    assert run("stride | budget(calls=10)").run.cost <= 10


def test_a_solver_with_steps_of_its_own_reaches_the_end() -> None:
    found = run("stride", "dpm_adaptive").run
    assert found.t == found.t_end
    assert found.cost < 100
