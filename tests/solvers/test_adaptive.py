"""Runs that choose their own steps: the tolerance is kept, each sample goes its own way, the end is reached."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.contracts import Attempt, Full, Plan, Run
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.numerics.schedule import Cosine, FlowMatching, Schedule, VPLinear
from skipstone.numerics.tables import ScaledLinear, ZeroTerminalSNR
from skipstone.policies.fixed import Fixed
from skipstone.policies.pid import PID
from skipstone.solvers import DDIM, DPMAdaptive, DPMpp, Heun
from skipstone.testing.backbones import Gaussian, Mixture

GRID = (*(1 - i / 20 for i in range(20)), 0.0)
SCHEDULES: list[Schedule] = [Cosine(), VPLinear(), FlowMatching(), ScaledLinear(), ZeroTerminalSNR()]


def problem(schedule: Schedule, grid: tuple[float, ...] = GRID, seed: int = 0, loud: float = 1.0) -> Problem:
    x = loud * np.random.default_rng(seed).standard_normal((2, 4, 4))
    return Problem(schedule, x, grid, seed=seed)


def rms(x: Any) -> float:
    return float(np.sqrt((x * x).mean()))


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_the_error_follows_the_tolerance(schedule: Schedule, order: int) -> None:
    data = Gaussian(schedule=schedule)
    start = problem(schedule)
    exact = data.exact(start.x, 1.0, 0.0)
    errors, costs = [], []
    for rtol in (0.03, 0.003, 0.0003):
        result = denoise(data, start, DPMAdaptive(order, rtol), Fixed())
        assert result.run.t == 0.0
        errors.append(rms(result.x - exact))
        costs.append(result.run.cost)
        assert errors[-1] < 3 * rtol
    assert errors[2] < errors[0] / 2
    assert costs[0] < costs[1] < costs[2]


@pytest.mark.parametrize("grid", [(1.0, 0.0), (1.0, 0.001), (0.9, 0.5, 0.2), GRID])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_it_ends_on_the_end_of_any_grid(schedule: Schedule, grid: tuple[float, ...]) -> None:
    result = denoise(Mixture(schedule=schedule, prediction="x0"), problem(schedule, grid), DPMAdaptive(), Fixed())
    times = [a.t_next for a in result.run.accepted_attempts]
    assert result.run.t == grid[-1]
    assert times == sorted(times, reverse=True)
    assert np.isfinite(result.x).all()


def test_steps_that_exceed_the_tolerance_are_taken_again_shorter() -> None:
    run = denoise(Mixture(), problem(Cosine()), DPMAdaptive(rtol=0.002), Fixed()).run
    rejected = [(a, b) for a, b in zip(run.past, run.past[1:], strict=False) if not a.accepted]
    assert rejected
    for bad, again in rejected:
        assert bad.signals["error"] > 0.002
        assert again.t == bad.t
        assert again.t_next > bad.t_next
    assert all(a.signals["error"] <= 0.002 for a in run.past if a.accepted)
    assert any(a.t_next not in GRID for a in run.past)


def test_each_sample_goes_its_own_way() -> None:
    data = Mixture()
    problems = [problem(Cosine(), seed=i, loud=1.0 + i) for i in range(3)]
    together = denoise_many(data, problems, DPMAdaptive(), Fixed())
    assert len({tuple(a.t_next for a in r.run.past) for r in together}) == 3
    for p, r in zip(problems, together, strict=True):
        alone = denoise(data, p, DPMAdaptive(), Fixed())
        assert np.array_equal(alone.x, r.x)
        assert alone.run == r.run


@pytest.mark.parametrize("solver", [Heun(), DPMpp(2), DPMpp(3)], ids=registry.spell)
def test_other_solvers_with_an_error_can_be_controlled(solver: Any) -> None:
    data, start = Gaussian(), problem(Cosine())
    exact = data.exact(start.x, 1.0, 0.0)
    errors = [rms(denoise(data, start, solver, PID(rtol, solver.order)).x - exact) for rtol in (0.01, 0.0001)]
    assert errors[1] < 0.1 * errors[0]


def test_a_solver_without_an_error_takes_the_grid_after_the_first_step() -> None:
    run = denoise(Gaussian(), problem(Cosine()), DDIM(), PID()).run
    assert {a.t_next for a in run.past[1:]} <= set(GRID)


def test_the_controller_is_spelt_from_the_solver() -> None:
    solver = DPMAdaptive(2, 0.05)
    assert registry.parse("policy", solver.controller) == PID(rtol=0.05, order=2)


def run_with(errors: list[float], pending: float) -> Run:
    """A run of equal accepted steps of half a unit of the clock, and a pending one."""
    schedule = Cosine()
    times = [schedule.time(-3.0 + 0.5 * i) for i in range(len(errors) + 2)]
    plan = Plan(Full(), 0.0)

    def attempt(i: int, error: float, accepted: bool | None) -> Attempt:
        return Attempt(times[i], times[i + 1], replace(plan, t_next=times[i + 1]), 1.0, {"error": error}, accepted)

    grid = tuple(schedule.time(-4.0 + 0.01 * i) for i in range(801))
    clocks = tuple(schedule.clock(t) for t in grid)
    past = tuple(attempt(i, e, True) for i, e in enumerate(errors))
    return Run(times[len(errors)], grid[-1], grid, clocks, past=past, pending=attempt(len(errors), pending, None))


def length(run: Run, policy: PID) -> float:
    plan = policy.plan(run, run.proposal())
    assert run.pending is not None
    start = run.pending.t_next if plan.accept else run.pending.t
    return run.clock(plan.t_next) - run.clock(start)


def test_the_formula() -> None:
    """safety (1/e_n)^((p+i+d)/k) (1/e_{n-1})^(-(p+2d)/k) (1/e_{n-2})^(d/k) half units of the clock."""
    policy = PID(rtol=0.1, order=2, p=0.2, i=0.5, d=0.1, safety=0.8)
    ratios = (0.05 / 0.1, 0.04 / 0.1, 0.03 / 0.1)  # e_{n-2}, e_{n-1}, e_n
    expected = 0.8 * ratios[2] ** (-0.8 / 2) * ratios[1] ** (0.4 / 2) * ratios[0] ** (-0.1 / 2)
    assert length(run_with([0.05, 0.04], 0.03), policy) == pytest.approx(0.5 * expected, rel=1e-3)


def test_growth_and_shrinkage_are_limited() -> None:
    assert length(run_with([], 1e-9), PID()) == pytest.approx(0.5 * 2.5, rel=1e-3)
    rejected = run_with([], 1e9)
    assert not PID().plan(rejected, rejected.proposal()).accept
    assert length(rejected, PID()) == pytest.approx(0.5 * 0.2, rel=1e-3)


def test_a_step_that_is_not_finite_is_taken_again() -> None:
    run = run_with([], float("nan"))
    assert not PID().plan(run, run.proposal()).accept


def test_a_clock_inverts() -> None:
    run = run_with([], 0.1)
    for clock in (-3.9, -1.0, 0.123, 3.9):
        assert run.clock(run.time(clock)) == pytest.approx(clock, abs=1e-9)
    assert run.time(-100.0) == run.grid[0]
    assert run.time(100.0) == run.grid[-1]


@pytest.mark.parametrize("spec", ["pid(rtol=0.0)", "pid(order=0)", "pid(safety=1.5)", "pid(first=0.0)", "pid(i=0.0)"])
def test_policy_settings_out_of_range(spec: str) -> None:
    with pytest.raises(SpecError, match="expected"):
        registry.parse("policy", spec)


@pytest.mark.parametrize(
    "spec",
    ["ddim(eta=1.5)", "ddpm(variance='big')", "dpmpp(order=4)", "unipc(order=1)", "dpm_adaptive(rtol=0.0)"],
)
def test_solver_settings_out_of_range(spec: str) -> None:
    with pytest.raises(SpecError, match="expected"):
        registry.parse("solver", spec)
