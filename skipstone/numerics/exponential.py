"""Exact integration of a polynomial clean estimate along the probability-flow ODE.

With l the half log-SNR and h = l(t_next) - l(t), the solution of the ODE is
    x(t_next) = sigma_next / sigma x(t) + alpha_next int_0^h exp(u - h) x0(l + u) du,
so a polynomial x0 through known nodes integrates in closed form: exponential Adams-Bashforth in the data
prediction (Lu et al. 2022, arXiv 2211.01095; Zhang & Chen 2022, arXiv 2204.13902).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .array import weighted_sum
from .schedule import Schedule


def exponential_moments(h: float, count: int) -> list[float]:
    """int_0^h exp(u - h) u^k du for k < count; a series for small h, where the recursion cancels."""
    if h > 1.0:
        values = [-math.expm1(-h)]
        for k in range(1, count):
            values.append(h**k - k * values[-1])
        return values
    return [
        math.fsum((-1) ** m * math.factorial(k) * h ** (k + 1 + m) / math.factorial(k + 1 + m) for m in range(18))
        for k in range(count)
    ]


def lagrange_integrals(offsets: Sequence[float], h: float) -> list[float]:
    """int_0^h exp(u - h) L_j(u) du for the Lagrange polynomials L_j of the nodes at `offsets`."""
    m = exponential_moments(h, len(offsets))
    integrals = []
    for j, node in enumerate(offsets):
        coefficients = [1.0]  # of L_j, lowest power first
        for k, other in enumerate(offsets):
            if k != j:
                scale = 1.0 / (node - other)
                shifted = [0.0, *coefficients]
                coefficients = [scale * (s - other * c) for s, c in zip(shifted, [*coefficients, 0.0], strict=True)]
        integrals.append(sum(c * i for c, i in zip(coefficients, m, strict=True)))
    return integrals


def exponential_step(x: Any, t: float, t_next: float, schedule: Schedule, nodes: Sequence[tuple[float, Any]]) -> Any:
    """The sample at t_next, its clean estimate being the polynomial on the clock through `nodes`.

    Args:
        x: The sample at t.
        t, t_next: Times with t_next < t.
        nodes: (time, clean estimate), oldest first, at distinct clock values; the newest at t. Where
            sigma(t_next) is 0 only the newest counts: a polynomial says nothing at an infinite clock.
    """
    ratio = schedule.sigma(t_next) / schedule.sigma(t)
    if len(nodes) == 1 or schedule.sigma(t_next) == 0.0:
        return weighted_sum([ratio, schedule.alpha(t_next) - ratio * schedule.alpha(t)], [x, nodes[-1][1]])
    weights = exponential_weights([s for s, _ in nodes], t, t_next, schedule)
    return weighted_sum([ratio, *weights], [x, *(value for _, value in nodes)])


def exponential_weights(times: Sequence[float], t: float, t_next: float, schedule: Schedule) -> list[float]:
    """What each clean estimate at `times` adds to x on the way from t to t_next; the times may lie anywhere."""
    clock, alpha = schedule.clock(t), schedule.alpha(t_next)
    offsets = [schedule.clock(s) - clock for s in times]
    return [alpha * w for w in lagrange_integrals(offsets, schedule.clock(t_next) - clock)]
