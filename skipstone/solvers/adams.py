"""Adams' predictor and corrector on the angle of the path: the simplest ODE that denoising can be written as."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..engine.sada import view
from ..numerics.array import combine, narrow, rms
from ..numerics.exponential import lagrange_integrals
from ..numerics.schedule import Schedule
from ..registry import register


class Slope(NamedTuple):
    """dz / d angle where the network was asked."""

    angle: float
    value: Any


def slope(node: Node, schedule: Schedule) -> Slope:
    """The slope of z = x / hypot(alpha, sigma) that an estimate means."""
    return Slope(schedule.angle(node.t), view(node, "v", schedule) * (1.0 / size(schedule, node.t)))


def size(schedule: Schedule, t: float) -> float:
    """hypot(alpha, sigma): 1 where variance is preserved."""
    return math.hypot(schedule.alpha(t), schedule.sigma(t))


def weights(nodes: Sequence[Slope], start: float, end: float) -> list[float]:
    """What each slope adds to z on the way from angle to angle, the slope being the polynomial through all of them."""
    h = end - start
    powers = [h ** (k + 1) / (k + 1) for k in range(len(nodes))]
    return lagrange_integrals([n.angle - start for n in nodes], powers)


def trust(nodes: Sequence[Slope], end: float) -> Any:
    """Share of the linear forecast in the next step, a 0-d array in [0, 1]: A / (A + r^2 B).

    At the last call the constant forecast was wrong by A = mean (y - y_1)^2 and the linear one by
    B = mean (y - line)^2; over a step of h, after k and k_1, they grow by h / k and by r h / k, r = (h + k) / (k + k_1).
    """
    (a2, y2), (a1, y1), (a, y) = nodes[-3:]
    r = (end - a1) / (a - a2)
    constant = rms(y - y1)
    linear = rms(y - y1 - (y1 - y2) * ((a - a1) / (a1 - a2)))
    return constant * constant / (constant * constant + linear * linear * (r * r) + 1e-20)


def predictor(nodes: Sequence[Slope], end: float) -> Any:
    """What the step from the last node to the angle `end` adds to z."""
    here = nodes[-1].angle
    euler = nodes[-1].value * (end - here)
    if len(nodes) < 3:
        return euler
    linear = combine(weights(nodes[-2:], here, end), [n.value for n in nodes[-2:]])
    return euler + (linear - euler) * trust(nodes, end)


@register("solver")
@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth-Moulton on the angle: predict, call, correct the step that led here; one call a step.

    With u = atan(sigma / alpha), z = x / hypot(alpha, sigma) obeys dz / du = v, plainly, for every schedule. The predictor
    blends the constant and the linear forecast of v by how wrong each was at the last call (`trust`); where the
    network has been asked, the step that led there is taken again by the parabola through its slopes. Nothing
    is divided by sigma or alpha, so both ends are steps like any other. Made for long and uneven steps, as
    `stride` takes them.

    References: Hairer, Norsett & Wanner 1993, Solving ODEs I, III.1; Salimans & Ho 2022, arXiv 2202.00512 (v and the
    angle); the blend is ours.
    """

    name: ClassVar[str] = "adams"

    @property
    def convergence(self) -> int:
        return 3

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        here = slope(Node(t, x, (yield Query(x, t))), schedule)
        nodes = [slope(node, schedule) for node in _before(past, t)[-3:]]
        z = x * (1.0 / size(schedule, t))
        if nodes:
            z = z + self._correction(nodes, here)
        z = z + predictor([*nodes, here], schedule.angle(t_next))
        return Step(narrow(z * size(schedule, t_next), x))

    def _correction(self, nodes: list[Slope], here: Slope) -> Any:
        """What the step that led here would have added, had it known this slope, less what it did add."""
        known = [*nodes, here][-3:]
        corrected = combine(weights(known, nodes[-1].angle, here.angle), [n.value for n in known])
        return corrected - predictor(nodes, here.angle)


def _before(past: Sequence[Node], t: float) -> list[Node]:
    """The last estimate at each time before this one, oldest first."""
    last = {n.t: n for n in past if n.t > t}
    return [last[time] for time in sorted(last, reverse=True)]
