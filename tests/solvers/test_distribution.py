"""Stochastic solvers draw from the right distribution: mean, deviation and a Kolmogorov-Smirnov test."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem, Solver
from skipstone.numerics.noise import standard_normal
from skipstone.numerics.schedule import Cosine, FlowMatching, Schedule, VPLinear
from skipstone.policies.fixed import Fixed
from skipstone.solvers.ddpm import DDPM
from skipstone.testing.backbones import Gaussian, Mixture
from skipstone.testing.orders import list_solver_specs

COUNT = 20_000
STOCHASTIC = [spec for spec in list_solver_specs() if registry.parse("solver", spec).stochastic]
SCHEDULES: list[Schedule] = [VPLinear(), Cosine(), FlowMatching()]


def draw(backbone: Any, solver: Solver, steps: int) -> Any:
    """That many samples of the data, as one array: elements are independent."""
    schedule = backbone.schedule
    grid = tuple(schedule.time(-4.5 + 9.0 * i / steps) for i in range(steps))
    x = standard_normal(3, 0, np.empty(COUNT)) * schedule.sigma(grid[0])
    return denoise(backbone, Problem(schedule, x, (*grid, 0.0), seed=3), solver, Fixed()).x


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("spec", STOCHASTIC)
def test_gaussian_data(spec: str, schedule: Schedule) -> None:
    data = Gaussian(0.3, 0.5, schedule)
    x = draw(data, registry.parse("solver", spec), 200)
    assert x.mean() == pytest.approx(0.3, abs=5 * 0.5 / math.sqrt(COUNT))
    assert x.std() == pytest.approx(0.5, rel=0.03)
    assert stats.kstest(x, stats.norm(0.3, 0.5).cdf).statistic < 0.015


@pytest.mark.parametrize("spec", STOCHASTIC)
def test_mixed_data(spec: str) -> None:
    data = Mixture(schedule=VPLinear(), prediction="x0")

    def cdf(x: Any) -> Any:
        parts = zip(data.weights, data.means, data.stds, strict=True)
        return sum(w * stats.norm(m, s).cdf(x) for w, m, s in parts)

    assert stats.kstest(draw(data, registry.parse("solver", spec), 200), cdf).statistic < 0.015


def test_too_much_noise_fails_the_test() -> None:
    """The posterior that adds its noise on top of the DDIM direction, as a known package did, is caught."""

    class Twice(DDPM):
        def step(self, x: Any, *rest: Any) -> Any:
            step = yield from DDPM.step(self, x, *rest)
            return type(step)(step.x + 0.02 * standard_normal(11, 0, x))

    data = Gaussian(0.3, 0.5, VPLinear())
    assert stats.kstest(draw(data, Twice(), 200), stats.norm(0.3, 0.5).cdf).statistic > 0.015


@pytest.mark.parametrize("variance", ["small", "large"])
def test_a_ddpm_step_is_the_posterior(variance: str) -> None:
    """Step by step, by Bayes: q(x_next | x, x0) is the product of two Gaussians."""
    data, t, t_next = Gaussian(0.3, 1e-6, VPLinear()), 0.6, 0.4
    x = standard_normal(5, 0, np.empty(16, dtype="float64"))
    a, s, a1, s1 = (f(u) for u in (t, t_next) for f in (data.schedule.alpha, data.schedule.sigma))
    scale = a / a1
    forward = s * s - scale * scale * s1 * s1
    precision = 1 / (s1 * s1) + scale * scale / forward
    mean = (a1 * 0.3 / (s1 * s1) + scale * x / forward) / precision
    std = math.sqrt(1 / precision if variance == "small" else forward)
    solver = DDPM(variance)  # type: ignore[arg-type]
    out = denoise(data, Problem(data.schedule, x, (t, t_next), seed=5), solver, Fixed()).x
    assert np.allclose(out, mean + std * standard_normal(5, 1, x), atol=1e-9)
