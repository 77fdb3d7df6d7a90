"""The ruler itself: the references are right, and the table that benchmarks/orders.md shows is what is measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from skipstone import registry
from skipstone.engine.requests import Query
from skipstone.testing import orders
from skipstone.testing.backbones import Gaussian, Mixture

PAGE = Path(__file__).parents[2] / "benchmarks" / "orders.md"


def test_runge_kutta_agrees_with_the_closed_form() -> None:
    assert np.allclose(orders.reference(Gaussian()), orders.gaussian_truth(Gaussian()), atol=1e-8)


def test_runge_kutta_agrees_with_scipy() -> None:
    mixture = Mixture()
    schedule = mixture.schedule

    def velocity(clock: float, y: np.ndarray) -> np.ndarray:
        t = schedule.time(clock)
        velocity: np.ndarray = mixture.predict([Query(y * schedule.sigma(t), t)])[0].x0 * np.exp(clock)
        return velocity

    begin = orders.initial_latent() / schedule.sigma(schedule.time(orders.FIRST_CLOCK))
    end = solve_ivp(velocity, (orders.FIRST_CLOCK, orders.LAST_CLOCK), begin, rtol=1e-9, atol=1e-9).y[:, -1]
    assert np.allclose(orders.reference(mixture), end * schedule.sigma(schedule.time(orders.LAST_CLOCK)), atol=1e-6)


def test_the_released_third_order_is_second() -> None:
    """What diffusers calls order 3 converges at 2; with the full second difference it is 3, and more accurate."""
    mixture = Mixture()
    truth = orders.reference(mixture)
    full, released = (registry.parse("solver", f"dpmpp(order=3, released={r})") for r in (False, True))
    assert orders.measured_order(full, mixture, truth) == pytest.approx(3.0, abs=0.25)
    assert orders.measured_order(released, mixture, truth) == pytest.approx(2.0, abs=0.25)
    errors = [orders.step_errors(solver, mixture, [orders.FINE], truth)[0] for solver in (full, released)]
    assert errors[0] < errors[1] / 5


def test_the_page_has_every_solver() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for spec in orders.list_solver_specs():
        assert f"| `{spec}` | {registry.parse('solver', spec).convergence_order} |" in page, "run `make bench`"
