"""Adams beyond its conformance: its order on uneven steps, what its blend trusts, and who runs it in a benchmark."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.engine.requests import Problem
from skipstone.evaluation.columns import Sampler, parse_column
from skipstone.evaluation.samplers import takeover_solver
from skipstone.numerics.array import rms
from skipstone.solvers.adams import (
    Adams,
    CleanNode,
    PairNode,
    correction_share,
    decay_factor,
    integrate_nodes,
    linear_share,
)
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.orders import FIRST_CLOCK, LAST_CLOCK, initial_latent, reference, run_without_noise

MIXTURE = Mixture()


@cache
def truth() -> Any:
    return reference(MIXTURE)


def bisected(grid: list[float]) -> list[float]:
    """Every step in two halves."""
    return [*(t for a, b in itertools.pairwise(grid) for t in (a, (a + b) / 2)), grid[-1]]


def error(grid: list[float]) -> float:
    end = run_without_noise(MIXTURE, Problem(MIXTURE.schedule, initial_latent(), tuple(grid)), Adams())
    return float(rms(end - truth()))


@settings(max_examples=10, deadline=None)
@given(st.lists(st.floats(1.0, 4.0), min_size=8, max_size=10))
def test_the_order_holds_on_uneven_steps(gaps: list[float]) -> None:
    """Order 1 would gain 4 in two bisections, order 3 gains up to 64; on fine grids, order 2 gains 4 in one."""
    noise, data = (MIXTURE.schedule.time(clock) for clock in (FIRST_CLOCK, LAST_CLOCK))
    shares = np.concatenate([[0.0], np.cumsum(gaps) / np.sum(gaps)])
    grid = [float(noise + (data - noise) * share) for share in shares]
    coarse, fine, finest = error(grid), error(bisected(bisected(grid))), error(bisected(bisected(bisected(grid))))
    assert coarse > 6 * fine
    assert fine > 4.5 * finest


def pairs(angles: list[float], values: list[Any]) -> list[PairNode]:
    """Estimates at falling angles whose clean part and noise both move by the same values."""
    return [PairNode(u, 0.3 + v, -0.2 + 0.5 * v) for u, v in zip(angles, values, strict=True)]


steps = st.floats(0.02, 0.4)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), steps, steps, steps, st.sampled_from([0.0, 1e-12, 1.0, 1e6]))
def test_trust_is_a_share(seed: int, first: float, second: float, ahead: float, size: float) -> None:
    values = size * np.random.default_rng(seed).standard_normal((3, 16))
    angles = [1.4, 1.4 - first, 1.4 - first - second]
    share = float(linear_share(pairs(angles, list(values)), angles[-1] - ahead))
    assert 0.0 <= share <= 1.0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), steps, steps, steps)
def test_trust_believes_a_line_and_not_a_jump(seed: int, first: float, second: float, ahead: float) -> None:
    way = np.random.default_rng(seed).standard_normal(16)
    angles = [1.4, 1.4 - first, 1.4 - first - second]
    straight = pairs(angles, [way * u for u in angles])
    assert float(linear_share(straight, angles[-1] - ahead)) == pytest.approx(1.0, abs=1e-6)
    jumped = pairs(angles, [0.0 * way, way, way + 1e-4 * way[::-1]])  # once, and then no further
    assert float(linear_share(jumped, angles[-1] - ahead)) < 1e-3


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("fixed @ adams / trailing / 12", "adams"),
        ("stride @ 50", "adams"),  # the solver that the policy brings
        ("path(times='0.6 0.3') @ 50", "adams"),
        ("stride @ dpmpp / own / 50", "dpmpp"),  # a diffusers scheduler cannot step where it says
        ("fixed @ dpmpp / trailing / 12", None),
        ("error_control @ dpmpp / trailing / 12", None),
        ("error_control @ own", None),
    ],
)
def test_a_benchmark_takes_over_what_diffusers_cannot_run(spec: str, wanted: str | None) -> None:
    solver = takeover_solver(parse_column(spec, *Sampler()))
    assert (solver.name if solver else None) == wanted


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=3),
    st.floats(0.05, 1.5),
    st.lists(st.floats(0.05, 0.5), min_size=2, max_size=2),
    st.one_of(st.just(0.0), st.floats(0.05, 1.0)),
)
def test_a_clean_estimate_that_is_a_polynomial_is_integrated_exactly(
    coefficients: list[float], angle: float, gaps: list[float], share: float
) -> None:
    """d(z / sin u) = -x0 / sin(u)^2 du, integrated by brute force; at u = 0 nothing of z is left but x0 there."""
    angles = [angle + gaps[0] + gaps[1], angle + gaps[0], angle][-len(coefficients) :]
    clean = np.polynomial.Polynomial(coefficients)
    nodes = [CleanNode(u, np.float64(clean(u))) for u in angles]
    end = share * angle
    cot = np.linspace(1 / np.tan(angle), 1 / np.tan(end or 1.0), 400_001)
    expected = np.sin(end) * np.trapezoid(clean(np.arctan2(1.0, cot)), cot) if end else clean(0.0)
    assert float(integrate_nodes(nodes, angle, end)) == pytest.approx(float(expected), abs=1e-5)
    assert decay_factor(nodes[-1], end) == np.sin(end) / np.sin(angle)


def test_what_the_last_correction_leaves_behind() -> None:
    """All of it where the sample is clean already, none of it far from there."""
    assert correction_share(0.0) == 1.0
    assert correction_share(0.03) == pytest.approx(0.5)
    assert correction_share(1.0) < 1e-3
