"""Promises are kept where the truth is known; and the same simulation catches rules that break them."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from skipstone.calibration import Target, p_value
from skipstone.calibration.control import fixed_sequence

BENCHMARKS = Path(__file__).parents[2] / "research" / "calibration"
RUNS = 200


def load() -> ModuleType:
    """research/calibration/calibration_simulation.py, which is no package."""
    spec = importlib.util.spec_from_file_location("calibration_simulation", BENCHMARKS / "calibration_simulation.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


simulation = load()
SCENARIOS = {s.name: s for s in simulation.scenarios() if s.name != "the same by Holm"}
HARD = [  # the naive rule breaks these
    "shares, graded ladder, nested failures",
    "shares, a cliff of nine that just miss",
    "shares of 99 %, each just misses",
    "shares, NaN for failures",
    "means, beta losses, a cliff",
    "means, rare disasters (0.08 or 1), a cliff",
    "means, losses 0 or 1, a cliff",
    "three groups, one breaks where all together meet",
    "not monotone: a middle setting is worst",
    "ties: values at the level's edge, costs alike in pairs",
    "22 prompts: just enough for no failure",
    "`interval(every=k)` on Gaussian data, psnr, share",
    "`interval(every=k)` on Gaussian data, psnr, mean",
]


@pytest.mark.parametrize("name", HARD)
def test_promises_are_kept_and_the_naive_rule_breaks_them(name: str) -> None:
    scenario = SCENARIOS[name]
    assert simulation.outcome(scenario, RUNS).low <= scenario.delta
    assert simulation.outcome(scenario, 40, rule="naive").low > scenario.delta


@pytest.mark.parametrize(
    ("name", "accepted"), [("all fail", 0), ("all pass", 20), ("5 prompts: too few for anything", 0)]
)
def test_clear_cases_are_clear(name: str, accepted: int) -> None:
    found = simulation.outcome(SCENARIOS[name], 20)
    assert (found.accepted, found.num_broken) == (accepted, 0)
    if accepted:
        assert found.excess == 1.0  # the best there is


@pytest.mark.parametrize("scenario", list(simulation.expected()), ids=lambda s: f"{s.name}, {s.n}")
def test_conformal_keeps_the_mean_risk_though_not_every_promise(scenario: Any) -> None:
    found = simulation.outcome(scenario, RUNS)
    assert found.accepted > 0
    assert found.risk <= Target.parse(scenario.target).risk + 0.004  # three standard errors of the steepest ladder


# -- Mutants: what is left out, the simulation notices ----------------------------------------------


def broken(scenario: Any, rule: Callable[[Target, list[list[float]], list[str] | None], Sequence[int]]) -> float:
    """Lower limit of the rate of broken promises of another rule that names the accepted settings."""
    target, rng = Target.parse(scenario.target), np.random.default_rng(0)
    groups = scenario.groups(scenario.n) if scenario.groups else None
    count = 0
    for _ in range(60):
        accepted = rule(target, scenario.draw(rng, scenario.n).tolist(), groups)
        count += bool(accepted) and scenario.risks[max(accepted)] > target.risk  # all ladders get cheaper
    return float(simulation.SimulationOutcome(60, 60, count, math.nan, math.nan).low)


def test_testing_every_setting_without_a_correction_is_noticed() -> None:
    def mutant(target: Target, table: list[list[float]], groups: list[str] | None) -> list[int]:
        return [i for i, row in enumerate(table) if p_value(target, row) <= 0.1]

    assert broken(SCENARIOS["shares, a cliff of nine that just miss"], mutant) > 0.1
    assert broken(SCENARIOS["means, losses 0 or 1, a cliff"], mutant) > 0.1


def test_forgetting_the_groups_is_noticed() -> None:
    def mutant(target: Target, table: list[list[float]], groups: list[str] | None) -> tuple[int, ...]:
        return fixed_sequence([p_value(target, row) for row in table], 0.1)

    assert broken(SCENARIOS["three groups, one breaks where all together meet"], mutant) > 0.1


def test_dropping_nan_is_noticed() -> None:
    def mutant(target: Target, table: list[list[float]], groups: list[str] | None) -> tuple[int, ...]:
        p = [p_value(target, [v for v in row if not math.isnan(v)]) for row in table]
        return fixed_sequence(p, 0.1)

    assert broken(SCENARIOS["shares, NaN for failures"], mutant) > 0.1


# -- The audit and the page -------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_the_audit_looks_after_every_sample_and_still_seldom_errs(alpha: float) -> None:
    when = simulation.alarms(lambda rng, n: (rng.random(n) < alpha).astype(float), alpha, 600, RUNS)
    raised = int(np.isfinite(when).sum())
    assert simulation.SimulationOutcome(RUNS, 0, raised, math.nan, 0.0).low <= 0.05
    broken_twice = simulation.alarms(lambda rng, n: (rng.random(n) < 2 * alpha).astype(float), alpha, 600, 40)
    assert np.isfinite(broken_twice).mean() > 0.8


def test_stopping_a_plain_test_at_will_errs_far_too_often() -> None:
    """Testing anew after every sample, each time at 5 %: what the audit must not be."""
    rng, alarms = np.random.default_rng(0), 0
    for _ in range(40):
        failed = (rng.random(300) < 0.1).cumsum()
        looks = range(20, 300, 5)
        alarms += any(p_value(Target.parse("ssim >= 0.5 @ 10%"), _met(failed[n - 1], n)) <= 0.05 for n in looks)
    assert simulation.SimulationOutcome(40, 0, alarms, math.nan, 0.0).low > 0.05


def _met(failed: int, n: int) -> list[float]:
    """Failures as what meets: the p of "at least 10 % meet" is then that of the promise "at most 10 % fail"."""
    return [1.0] * int(failed) + [0.0] * (n - int(failed))


def test_the_theory_page_has_the_prices_that_the_code_says() -> None:
    assert simulation.prices() in (BENCHMARKS.parents[1] / "docs" / "calibration_theory.md").read_text(encoding="utf-8")


def test_the_committed_page_says_what_the_code_simulates() -> None:
    page = (BENCHMARKS / "calibration_simulation.md").read_text(encoding="utf-8")
    assert "1,000 calibrations of each scenario" in page
    assert "broken too often" not in page
    for scenario in simulation.scenarios():
        assert f"| {scenario.name} | {simulation.rounded(scenario.target)} | {scenario.n} |" in page
