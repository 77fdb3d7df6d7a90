"""The greedy search against brute force, even masks and tables worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from skipstone.engine.contracts import Forecast
from skipstone.engine.drivers import denoise
from skipstone.engine.greedy import StepMask, compare_paths, get_called_steps, greedy_path
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.policies import ThirdOrder
from skipstone.solvers import DDIM
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

BACKBONE = Mixture()


def problem(steps: int) -> Problem:
    return PolicySetup(steps=steps).problem()


def cost(p: Problem, skips: tuple[int, ...], how: Forecast) -> float:
    full = denoise(BACKBONE, p, DDIM(), StepMask(frozenset())).x
    return float(np.abs(denoise(BACKBONE, p, DDIM(), StepMask(frozenset(skips), how)).x - full).mean())


@pytest.mark.parametrize("how", [Forecast(), Forecast(1)])
def test_the_first_choice_is_the_best_of_all(how: Forecast) -> None:
    p = problem(9)
    path = greedy_path(BACKBONE, p, DDIM(), 1, how)
    everything = {i: cost(p, (i,), how) for i in range(4, 9)}
    assert path.skips == (min(everything, key=everything.__getitem__),)
    assert path.costs[0] == pytest.approx(min(everything.values()), rel=1e-12)


def test_each_choice_is_the_best_given_those_before() -> None:
    p, how = problem(10), Forecast(1)
    path = greedy_path(BACKBONE, p, DDIM(), 3, how)
    for k in range(3):
        done = path.skips[:k]
        best = min(cost(p, (*done, i), how) for i in range(4, 10) if i not in done)
        assert path.costs[k] == pytest.approx(best, rel=1e-12)


def test_it_is_no_worse_than_an_even_mask_and_each_skip_costs() -> None:
    p, how = problem(24), Forecast(1)
    even = tuple(range(5, 24, 2))
    path = greedy_path(BACKBONE, p, DDIM(), len(even), how)
    assert path.costs[-1] <= cost(p, even, how)
    assert all(a <= b for a, b in itertools.pairwise(path.costs))
    assert sum(not c for c in path.calls) == len(even)


def test_the_cap_is_kept_and_progress_told() -> None:
    told: list[tuple[int, int]] = []
    path = greedy_path(BACKBONE, problem(14), DDIM(), 6, max_skip=2, progress=lambda n, of: told.append((n, of)))
    runs = [len(list(group)) for called, group in itertools.groupby(path.calls) if not called]
    assert max(runs) <= 2
    assert told == [(k, 6) for k in range(1, 7)]


def test_too_many_skips_are_refused() -> None:
    with pytest.raises(SpecError, match="at most 2 skips on 6 steps"):
        greedy_path(BACKBONE, problem(6), DDIM(), 3)


def test_chi_square_worked_by_hand() -> None:
    mine = (True,) * 4 + (True,) * 10 + (False,) * 10
    other = (True,) * 4 + (True,) * 8 + (False,) * 2 + (True,) * 2 + (False,) * 8
    found = compare_paths(mine, other)
    assert found is not None
    assert found.statistic == pytest.approx(20 * (8 * 8 - 2 * 2) ** 2 / 10**4)  # n (ad - bc)^2 / product of sums
    assert found.p_value == pytest.approx(0.00729, abs=1e-5)
    assert compare_paths((True,) * 24, other) is None


def test_a_policy_is_compared_with_the_search() -> None:
    p = problem(24)
    mine = get_called_steps(denoise(BACKBONE, p, DDIM(), ThirdOrder(tol=0.02)).run)
    path = greedy_path(BACKBONE, p, DDIM(), sum(not c for c in mine))
    found = compare_paths(mine, path.calls)
    assert found is not None
    assert 0 <= found.p_value <= 1
