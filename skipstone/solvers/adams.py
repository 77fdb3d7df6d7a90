"""Adams' predictor and corrector on the angle of the path, in a frame that turns with it."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from ..engine.requests import Node, Noise, Query, Solver, Step, view
from ..numerics.array import combine, narrow, rms
from ..numerics.extrapolate import lagrange_weights
from ..numerics.schedule import Schedule
from ..registry import register

PLACES, SHARES = np.polynomial.legendre.leggauss(8)  # quadrature: exact to rounding for steps of a quarter turn


class Pair(NamedTuple):
    """What an estimate says the sample is made of: z = cos(u) clean + sin(u) noise at the angle u."""

    angle: float
    clean: Any
    noise: Any

    def slope(self, angle: float) -> Any:
        """dz / du at another angle, were the pair constant."""
        return combine([math.cos(angle), -math.sin(angle)], [self.noise, self.clean])


def pair(node: Node, schedule: Schedule) -> Pair:
    """The pair of a node, by way of v = dz / du: nothing is divided by sigma or alpha."""
    angle, scale = schedule.angle(node.t), 1.0 / size(schedule, node.t)
    cos, sin, both = math.cos(angle), math.sin(angle), [node.x, view(node, "v", schedule)]
    return Pair(angle, combine([cos * scale, -sin * scale], both), combine([sin * scale, cos * scale], both))


def size(schedule: Schedule, t: float) -> float:
    """hypot(alpha, sigma): 1 where variance is preserved."""
    return math.hypot(schedule.alpha(t), schedule.sigma(t))


def integral(nodes: Sequence[Pair], start: float, end: float) -> Any:
    """What the way from angle to angle adds to z, the pair being the polynomial through those of all nodes."""
    angles = [n.angle for n in nodes]
    clean, noise = [0.0] * len(nodes), [0.0] * len(nodes)
    for place, share in zip(PLACES.tolist(), SHARES.tolist(), strict=True):
        u, w = start + (end - start) * 0.5 * (place + 1.0), share * 0.5 * (end - start)
        for j, lagrange in enumerate(lagrange_weights(angles, u)):
            clean[j] -= w * lagrange * math.sin(u)
            noise[j] += w * lagrange * math.cos(u)
    return combine([*clean, *noise], [*(n.clean for n in nodes), *(n.noise for n in nodes)])


def trust(nodes: Sequence[Pair], end: float) -> Any:
    """Share of the linear forecast in the next step, a 0-d array in [0, 1]: A / (A + r^2 B).

    At the last call the constant forecast of the pair was wrong by A (mean square, as a slope) and the linear one by
    B; over a step of h, after k and k_1, they grow by h / k and by r h / k, r = (h + k) / (k + k_1).
    """
    before, last, here = nodes[-3:]
    r = (end - last.angle) / (here.angle - before.angle)
    stretch = (here.angle - last.angle) / (last.angle - before.angle)
    wrong = here.slope(here.angle) - last.slope(here.angle)
    change = last.slope(here.angle) - before.slope(here.angle)
    constant, linear = rms(wrong), rms(wrong - change * stretch)
    return constant * constant / (constant * constant + linear * linear * (r * r) + 1e-20)


def predictor(nodes: Sequence[Pair], end: float) -> Any:
    """What the step from the last node to the angle `end` adds to z."""
    here = nodes[-1].angle
    constant = integral(nodes[-1:], here, end)
    if len(nodes) < 3:
        return constant
    linear = integral(nodes[-2:], here, end)
    return constant + (linear - constant) * trust(nodes, end)


@register("solver")
@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth-Moulton on the angle: predict, call, correct the step that led here; one call a step.

    With u = atan(sigma / alpha), z = x / hypot(alpha, sigma) is cos(u) x0 + sin(u) eps and obeys dz / du = v, whatever
    the schedule. Every call tells the pair (x0, eps). The predictor blends its constant forecast, which is `ddim`,
    and its linear one by how wrong each was at the last call (`trust`); once the network has been asked where a
    step led, the step is taken again by the parabola through its pairs. Both ends are steps like any
    other. Made for long and uneven steps, as `stride` takes them.

    References: Hairer, Norsett & Wanner 1993, Solving ODEs I, III.1; Salimans & Ho 2022, arXiv 2202.00512 (v and the
    angle); the frame and the blend are ours.
    """

    name: ClassVar[str] = "adams"

    @property
    def convergence(self) -> int:
        return 3

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        here = pair(Node(t, x, (yield Query(x, t))), schedule)
        nodes = [pair(node, schedule) for node in _before(past, t)[-3:]]
        z = x * (1.0 / size(schedule, t))
        if nodes:
            z = z + self._correction(nodes, here)
        z = z + predictor([*nodes, here], schedule.angle(t_next))
        return Step(narrow(z * size(schedule, t_next), x))

    def _correction(self, nodes: list[Pair], here: Pair) -> Any:
        """What the step that led here would have added, had it known this pair, less what it did add."""
        corrected = integral([*nodes, here][-3:], nodes[-1].angle, here.angle)
        return corrected - predictor(nodes, here.angle)


def _before(past: Sequence[Node], t: float) -> list[Node]:
    """The last estimate at each time before this one, oldest first."""
    last = {n.t: n for n in past if n.t > t}
    return [last[time] for time in sorted(last, reverse=True)]
