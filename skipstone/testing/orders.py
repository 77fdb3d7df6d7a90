"""Measured orders of convergence of solvers, on exact scores whose answer is known.

python -m skipstone.testing.orders        # the table of benchmarks/orders.md
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..engine.contracts import Run
from ..engine.flow import flow
from ..engine.requests import Backbone, Noise, Problem, Query, ScalarsRequest, Solver
from ..numerics.array import rms, weighted_sum
from .backbones.gaussian import Gaussian
from .backbones.mixture import Mixture

FIRST_CLOCK, LAST_CLOCK = (
    -5.0,
    1.5,
)  # half log-SNR: so loud that the low-order start of a multistep solver costs nothing
COARSE, FINE = 96, 192  # steps between which the order is read off


def run_without_noise(backbone: Backbone, problem: Problem, solver: Solver) -> Any:
    """Result of running every step of the grid in full with zero noise: a solver's deterministic part."""
    loop = flow(problem, solver)
    answer: Any = None
    while True:
        try:
            request = loop.send(answer)
        except StopIteration as end:
            return end.value.x
        if isinstance(request, Run):
            answer = request.proposal()
        elif isinstance(request, Noise):
            answer = request.like * 0.0
        elif isinstance(request, Query):
            [answer] = backbone.predict([request])
        else:
            assert isinstance(request, ScalarsRequest)
            answer = [float(v) for v in request.values]


def clock_grid(backbone: Backbone, steps: int) -> tuple[float, ...]:
    """Equal steps of the half log-SNR, from noise to short of the data."""
    return tuple(backbone.schedule.time(FIRST_CLOCK + (LAST_CLOCK - FIRST_CLOCK) * i / steps) for i in range(steps + 1))


def initial_latent() -> Any:
    """Initial latent of every measurement: 33 values of noise, in float64."""
    import numpy as np

    return np.linspace(-2.0, 2.0, 33)


def reference(backbone: Backbone, steps: int = 800) -> Any:
    """The end of the probability-flow ODE, d(x / sigma) / dl = exp(l) x0, by classical Runge-Kutta."""
    schedule, h = backbone.schedule, (LAST_CLOCK - FIRST_CLOCK) / steps

    def velocity(clock: float, y: Any) -> Any:
        t = schedule.time(clock)
        [estimate] = backbone.predict([Query(y * schedule.sigma(t), t)])
        return estimate.x0 * math.exp(clock)

    first = schedule.time(FIRST_CLOCK)
    y = initial_latent() / schedule.sigma(first)
    for i in range(steps):
        clock = FIRST_CLOCK + i * h
        k1 = velocity(clock, y)
        k2 = velocity(clock + h / 2, y + k1 * (h / 2))
        k3 = velocity(clock + h / 2, y + k2 * (h / 2))
        k4 = velocity(clock + h, y + k3 * h)
        y = weighted_sum([1.0, h / 6, h / 3, h / 3, h / 6], [y, k1, k2, k3, k4])
    return y * schedule.sigma(schedule.time(LAST_CLOCK))


def step_errors(solver: Solver, backbone: Backbone, counts: Sequence[int], truth: Any | None) -> list[float]:
    """rms distance to `truth` with that many steps; without a truth, to the result with twice as many."""

    def end(steps: int) -> Any:
        grid = clock_grid(backbone, steps)
        return run_without_noise(
            backbone, Problem(backbone.schedule, initial_latent(), grid, branches=backbone.branches), solver
        )

    ends = [end(n) for n in counts]
    goals = [truth] * len(ends) if truth is not None else [end(2 * n) for n in counts]
    return [float(rms(e - g)) for e, g in zip(ends, goals, strict=True)]


def measured_order(solver: Solver, backbone: Backbone, truth: Any | None = None) -> float:
    """log2 of how much halving the step shrinks the error."""
    coarse, fine = step_errors(solver, backbone, (COARSE, FINE), None if solver.stochastic else truth)
    return math.log2(coarse / fine)


def gaussian_truth(backbone: Gaussian) -> Any:
    """The closed-form end of the measurement on Gaussian data."""
    return backbone.exact(initial_latent(), backbone.schedule.time(FIRST_CLOCK), backbone.schedule.time(LAST_CLOCK))


@dataclass(frozen=True)
class OrderRow:
    """One line of the table."""

    spec: str
    declared: int
    gaussian: float  # nan for stochastic solvers: without noise they contract to a point, and rounding is measured
    mixture: float
    error: float  # rms on the mixture with FINE steps; to twice as many steps for stochastic solvers


def list_solver_specs() -> list[str]:
    """Every registered solver with its variants."""
    listed = []
    for name in registry.names("solver"):
        listed += [name, *registry.find_class("solver", name).variants]  # type: ignore[attr-defined]
    return listed


def measure_orders() -> list[OrderRow]:
    """The measured order of every registered solver."""
    gaussian, mixture = Gaussian(), Mixture()
    exact, fine = gaussian_truth(gaussian), reference(mixture)
    rows = []
    for spec in list_solver_specs():
        solver: Solver = registry.parse("solver", spec)
        [error] = step_errors(solver, mixture, (FINE,), None if solver.stochastic else fine)
        smooth = math.nan if solver.stochastic else measured_order(solver, gaussian, exact)
        rows.append(OrderRow(spec, solver.convergence_order, smooth, measured_order(solver, mixture, fine), error))
    return rows


def format_markdown(rows: Sequence[OrderRow]) -> str:
    """The table as text."""
    lines = [f"| solver | declared | Gaussian | mixture | error, {FINE} steps |", "|---|---|---|---|---|"]
    for r in rows:
        smooth = "" if math.isnan(r.gaussian) else f"{r.gaussian:.2f}"
        lines.append(f"| `{r.spec}` | {r.declared} | {smooth} | {r.mixture:.2f} | {r.error:.1e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(format_markdown(measure_orders()))
