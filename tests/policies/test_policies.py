"""What each policy decides, on runs made of numbers and on exact backbones."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.contracts import Attempt, Forecast, Full, Plan, Run
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem, Query, Result
from skipstone.errors import SpecError
from skipstone.policies import Budget, EarlyStop, ErrorControl, Fixed, GuidanceGate, Interval, ThirdOrder
from skipstone.policies.budget import calls_within
from skipstone.policies.error_control import eps_per_unit, eps_weight_clock
from skipstone.solvers import DDIM
from skipstone.testing import letters
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

GUIDED = Mixture(guidance=3.0)
BACKBONE = Mixture()


def run(spec: str, steps: int = 24, backbone: Mixture = BACKBONE, seed: int = 0, solver: str = "ddim") -> Result:
    setup = PolicySetup(registry.parse("solver", solver), backbone, steps)
    return setup.run(registry.parse("policy", spec), setup.problem(seed))


def history(changes: list[float], steps: int = 20, pattern: str = "") -> Run:
    """A run whose latent changed by these amounts so far."""
    grid = (*(1 - i / steps for i in range(steps)), 0.0)
    attempts = []
    for i, d in enumerate(changes):
        kind = Forecast() if pattern[i : i + 1] == "." else Full()
        attempts.append(Attempt(grid[i], grid[i + 1], Plan(kind, grid[i + 1]), 1.0, {"latent_change": d}, True))
    here = grid[len(changes) - 1]
    pending = replace(attempts[-1], accepted=None)
    return Run(here, 0.0, grid, tuple(10 - 20 * t for t in grid), past=tuple(attempts[:-1]), pending=pending)


# -- third_order ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "pattern", "skips"),
    [
        ([9, 1.0, 1.0, 1.0], "", True),  # even: skip
        ([9, 1.0, 1.1, 1.2], "", True),  # a straight line has no third difference
        ([9, 1.0, 1.0, 1.019], "", True),  # bend of 0.0095
        ([9, 1.0, 1.0, 1.021], "", False),  # bend of 0.0105
        ([1.0, 1.0, 1.0], "", False),  # still warming up
        ([1.0] * 8, "CCCC....", False),  # four forecasts in a row are the cap
        ([1.0] * 8, "CCCCC...", True),
        ([1.0] * 19, "", False),  # the last step is the tail
        ([1.0] * 18, "", True),
    ],
)
def test_third_order_decides_by_its_formula(changes: list[float], pattern: str, skips: bool) -> None:
    state = history(changes, pattern=pattern)
    assert isinstance(ThirdOrder(tol=0.01).plan(state, state.proposal()).evaluate, Forecast) is skips


def test_third_order_leaves_the_retry_of_a_rejected_step_alone() -> None:
    state = history([1.0] * 6)
    retry = replace(state.proposal(), accept=False)
    assert ThirdOrder().plan(state, retry) == retry


# -- interval and forecast -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("interval", "CCC.C.C.C.CC"),
        ("interval(every=3)", "CCC..C..C..C"),
        ("interval(every=4, warmup=1, tail=0)", "C...C...C..."),
        ("interval(every=99)", "CCC........C"),
    ],
)
def test_interval_takes_turns(spec: str, expected: str) -> None:
    assert letters(run(spec, steps=12).run) == expected


def test_forecast_changes_how_and_never_when() -> None:
    plain = run("interval(every=4, order=0)")
    amended = run("interval(every=4, order=0) | forecast(order=2, of='x0', clock='t', hold=2)")
    assert letters(amended.run) == letters(plain.run)
    gap = [a.plan.evaluate for a in amended.run.past[3:6]]
    assert gap == [Forecast(2, "x0", "t"), Forecast(2, "x0", "t"), Forecast(0, "x0", "t")]


def test_a_forecast_of_higher_order_is_closer() -> None:
    exact = run("fixed", 50).x
    errors = [np.abs(run(f"interval(every=3, order={k})", 50).x - exact).mean() for k in (0, 1)]
    assert errors[0] > 3 * errors[1] > 0


# -- error_control -------------------------------------------------------------------------------


def test_error_control_calls_more_at_a_smaller_tolerance_and_errs_less() -> None:
    exact = run("fixed", 50).x
    runs = [run(f"error_control(tol={tol})", 50) for tol in (1e-5, 1e-4, 1e-3, 1e-2)]
    costs = [r.run.cost for r in runs]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1] + 10
    assert np.abs(runs[0].x - exact).mean() < 0.1 * np.abs(runs[-1].x - exact).mean()


def test_error_control_predicts_the_disagreement_that_is_then_measured() -> None:
    """On the exact backbone the error expected of a gap agrees with what the next call shows, within a factor."""
    result = run("error_control(tol=1e-3, max_skip=4, of='eps', clock='logsnr')", 80)
    ratios = []
    for before, now in itertools.pairwise(result.run.past):
        if before.is_forecast and not now.is_forecast:
            expected = before.plan.memo["expected_error"]
            weight = eps_weight_clock(result.run.clock(before.t)) - eps_weight_clock(result.run.clock(before.t_next))
            ratios.append(expected / (now.signals["disagreement"] * weight))
    assert len(ratios) > 5
    assert 0.2 < float(np.median(ratios)) < 5


def test_error_control_never_skips_before_it_can_measure() -> None:
    for order in (0, 1, 2, 3):
        text = letters(run(f"error_control(tol=1e9, warmup=0, order={order})").run)
        assert text.startswith("C" * (order + 2) + ".")


def test_progress_is_the_integral_of_sigma_over_the_clock() -> None:
    clocks = np.linspace(-3, 2, 20001)
    sigma = 1 / np.sqrt(1 + np.exp(2 * clocks))
    integral = np.sum(0.5 * (sigma[1:] + sigma[:-1]) * np.diff(clocks))
    assert eps_weight_clock(-3) - eps_weight_clock(2) == pytest.approx(integral, rel=1e-6)


@pytest.mark.parametrize("of", ["eps", "x0", "v", "flow"])
def test_errors_of_every_view_are_brought_to_eps(of: str) -> None:
    from skipstone.numerics.parametrize import from_x0, to_x0

    backbone = Gaussian()
    t, x = 0.4, np.ones(3)
    a, s = backbone.schedule.alpha(t), backbone.schedule.sigma(t)
    x0 = to_x0(of, np.zeros(3), x, a, s), to_x0(of, np.full(3, 0.1), x, a, s)
    moved = abs(from_x0("eps", x0[1], x, a, s) - from_x0("eps", x0[0], x, a, s))[0]
    assert eps_per_unit(of, backbone.schedule.clock(t)) * 0.1 == pytest.approx(moved)  # type: ignore[arg-type]


# -- guidance_gate -------------------------------------------------------------------------------


def test_the_gate_shuts_below_its_time_and_halves_the_calls() -> None:
    result = run("guidance_gate(below=0.5)", backbone=GUIDED)
    assert letters(result.run) == "C" * 13 + "c" * 11
    assert result.run.cost == 13 + 11 / 2


def test_the_gate_opens_every_kth_step() -> None:
    result = run("guidance_gate(below=0.5, every=4, order=1)", backbone=GUIDED)
    assert letters(result.run)[12:] == "CcccCcccCccc"
    held = run("guidance_gate(below=0.5)", backbone=GUIDED)
    exact = run("fixed", backbone=GUIDED)
    assert np.abs(result.x - exact.x).mean() < 0.5 * np.abs(held.x - exact.x).mean()


def test_the_gate_refuses_a_polynomial_that_is_never_renewed() -> None:
    with pytest.raises(SpecError, match="every >= 2"):
        GuidanceGate(order=1)


def test_the_gate_changes_nothing_without_guidance() -> None:
    assert letters(run("guidance_gate(below=1.0)").run) == "C" * 24


# -- early_stop ----------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_early_stop_finishes_in_charged_steps(steps: int) -> None:
    result = run(f"early_stop(tol=0.5, steps={steps})", 40)
    text = letters(result.run)
    assert text == "C" * (len(text) - steps) + "F" * steps
    assert result.run.cost == len(text) < 36
    marks = {a.plan.memo["early_stop"] for a in result.run.past[-steps:]}
    assert marks == {float(len(text) - steps)}


def test_early_stop_comes_closer_than_freezing() -> None:
    """Finishing in charged steps costs little of the picture; taking the present x0 for it costs more."""
    exact = Gaussian()
    setup = PolicySetup(backbone=exact, steps=40)
    problem = setup.problem()
    result = setup.run(EarlyStop(tol=0.5, above=0.5), problem)
    stopped = result.run.past[-1].plan.memo["early_stop"]
    truth = exact.exact(problem.x, 1.0, 0.0)
    t = problem.grid[int(stopped)]
    frozen = exact.predict([Query(exact.exact(problem.x, 1.0, t), t)])[0].x0
    assert np.abs(result.x - truth).mean() < 0.3 * np.abs(frozen - truth).mean()


def test_early_stop_waits_for_the_picture_to_show() -> None:
    late = run("early_stop(tol=1e9, above=1.0)", 40).run
    first = next(a for a in late.past if "early_stop" in a.plan.memo)
    assert late.clock(first.t) >= 1.0
    assert len(late.past) < 40


# -- budget --------------------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [1, 2, 5, 10, 20, 39, 40, 60])
def test_budget_spends_all_it_may_and_evenly(calls: int) -> None:
    text = letters(run(f"budget(calls={calls}, ahead=0.0)", 40).run)
    assert text.count("C") == min(calls, 40)
    gaps = [len(g) for g in text.lstrip("C").rstrip(".").split("C")[:-1]]
    if calls >= 5 and gaps:
        assert max(gaps) - min(gaps) <= 1


def test_budget_lets_a_policy_spend_early_but_not_all() -> None:
    even, early, all_at_once = (letters(run(f"budget(calls=20, ahead={a})", 50).run) for a in (0.0, 0.25, 1.0))
    assert even.startswith("C.")
    assert early.startswith("CCCCCC")
    assert early.count("C") == 20
    assert "C" in early[-3:]
    assert all_at_once == "C" * 20 + "." * 30


@pytest.mark.skipif("heun" not in registry.names("solver"), reason="no two-stage solver")
@pytest.mark.parametrize(("calls", "text"), [(1, "F"), (2, "C"), (4, "C"), (7, "C"), (20, "C")])
def test_budget_charges_both_stages(calls: int, text: str) -> None:
    """Where not even one two-stage step can be paid, the one call goes to a step of the flow's own."""
    result = run(f"budget(calls={calls})", 40, solver="heun")
    assert calls - 1 <= result.run.cost <= calls
    assert letters(result.run).startswith(text)


def test_budget_overrules_a_rejection_that_cannot_be_paid() -> None:
    state = replace(history([1.0] * 3), stages=2)
    retry = Plan(Full(), 0.5 * (state.t + state.next_start), accept=False)
    assert Budget(calls=5).plan(state, retry) == retry
    overruled = Budget(calls=4).plan(state, retry)
    assert overruled.accept
    assert isinstance(overruled.evaluate, Forecast)
    assert overruled.t_next == state.proposal().t_next


def test_seconds_become_calls() -> None:
    class Timed:
        """A backbone whose clock is ours."""

        schedule, sites, branches = BACKBONE.schedule, (), 1
        asked = 0

        def predict(self, queries: list[Query]) -> list[object]:
            Timed.asked += len(queries)
            return list(BACKBONE.predict(queries))

    query = Query(np.ones((4, 8, 8)), 0.5)
    assert calls_within(3600.0, Timed(), query, batch=2, repeats=3) > 100  # type: ignore[arg-type]
    assert Timed.asked == 8
    with pytest.raises(SpecError, match="the time of one call"):
        calls_within(1e-12, Timed(), query)  # type: ignore[arg-type]


# -- chains --------------------------------------------------------------------------------------


def test_a_chain_signs_who_amended() -> None:
    result = run("interval(every=2) | forecast(order=2) | budget(calls=8)")
    assert {a.plan.why for a in result.run.past if a.is_forecast} >= {("interval", "forecast"), ("budget",)}
    assert all(a.plan.why == () for a in result.run.past if a.is_full_call)


def test_chains_flatten_and_fixed_is_their_identity() -> None:
    chain = (Interval() | Fixed()) | (ErrorControl() | Budget())
    assert registry.spell(chain) == "interval | fixed | error_control | budget"
    setup = PolicySetup()
    assert np.array_equal(setup.run(Interval() | Fixed()).x, setup.run(Interval()).x)


def test_samples_of_a_batch_go_their_own_ways() -> None:
    setup = PolicySetup(steps=50)
    texts = {letters(setup.run(ThirdOrder(), setup.problem(i, scale=s)).run) for i, s in enumerate((0.3, 1.0, 3.0))}
    assert len(texts) > 1


def test_an_exactly_even_run_ends_finite_on_every_library_type() -> None:
    x = np.zeros((1, 2, 2))
    flat = denoise(
        Gaussian(0.0), Problem(Gaussian().schedule, x, (1.0, 0.7, 0.5, 0.3, 0.1, 0.05, 0.0)), DDIM(), ThirdOrder()
    )
    assert letters(flat.run) == "CCCC.C"
    assert not flat.x.any()
