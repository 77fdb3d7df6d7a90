"""Adams' predictor and corrector on the angle of the path, in rotating coordinates."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

from ..engine.requests import Node, Noise, Query, Solver, Step, get_prediction
from ..numerics.array import cast_like, rms, weighted_sum
from ..numerics.extrapolate import lagrange_weights
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import check_settings

CORRECTION_HALF_ANGLE = 0.03  # angle at which half of the last correction is kept


@functools.cache
def _quadrature() -> tuple[tuple[float, float], ...]:
    """Gauss-Legendre nodes and weights: exact to rounding for steps of a quarter turn."""
    import numpy as np

    nodes, weights = np.polynomial.legendre.leggauss(8)
    return tuple(zip(nodes.tolist(), weights.tolist(), strict=True))


class PairNode(NamedTuple):
    """What an estimate says the sample is made of: z = cos(u) clean + sin(u) noise at the angle u."""

    angle: float
    clean: Any
    noise: Any

    def slope(self, angle: float) -> Any:
        """dz / du at another angle, were the pair constant."""
        return weighted_sum([math.cos(angle), -math.sin(angle)], [self.noise, self.clean])


class CleanNode(NamedTuple):
    """The clean estimate alone: z keeps its share of noise, which shrinks as sin(u)."""

    angle: float
    clean: Any

    def slope(self, angle: float) -> Any:
        """What its forecasts are held against."""
        return self.clean


AdamsNode: TypeAlias = PairNode | CleanNode


def make_pair_node(node: Node, schedule: Schedule) -> PairNode:
    """The pair of a node, by way of v = dz / du: nothing is divided by sigma or alpha."""
    angle, scale = schedule.angle(node.t), 1.0 / sample_norm(schedule, node.t)
    cos, sin, both = math.cos(angle), math.sin(angle), [node.x, get_prediction(node, "v", schedule)]
    return PairNode(
        angle, weighted_sum([cos * scale, -sin * scale], both), weighted_sum([sin * scale, cos * scale], both)
    )


def clean(node: Node, schedule: Schedule) -> CleanNode:
    """The clean estimate of a node."""
    return CleanNode(schedule.angle(node.t), node.estimate.x0)


def sample_norm(schedule: Schedule, t: float) -> float:
    """hypot(alpha, sigma): 1 where variance is preserved."""
    return math.hypot(schedule.alpha(t), schedule.sigma(t))


def decay_factor(here: AdamsNode, end: float) -> float:
    """Factor by which a step to the angle `end` multiplies z itself."""
    return math.sin(end) / math.sin(here.angle) if isinstance(here, CleanNode) else 1.0


def integrate_nodes(nodes: Sequence[AdamsNode], start: float, end: float) -> Any:
    """What a step adds to `decay_factor` of z, the estimate being the polynomial through all nodes."""
    angles = tuple(n.angle for n in nodes)
    cleans = [n.clean for n in nodes]
    noises = [n.noise for n in nodes if isinstance(n, PairNode)]
    if not noises:
        return weighted_sum(clean_weights(angles, start, end), cleans)
    return weighted_sum(pair_weights(angles, start, end), [*cleans, *noises])


# Weights depend on angles alone, which samples on one grid share.
@lru_cache(maxsize=65536)
def pair_weights(angles: tuple[float, ...], start: float, end: float) -> tuple[float, ...]:
    """-int L_j(u) sin(u) du and int L_j(u) cos(u) du from start to end: of the clean estimates, then of the noises."""
    clean, noise = [0.0] * len(angles), [0.0] * len(angles)
    for u, w in quadrature(start, end):
        for j, lagrange in enumerate(lagrange_weights(angles, u)):
            clean[j] -= w * lagrange * math.sin(u)
            noise[j] += w * lagrange * math.cos(u)
    return (*clean, *noise)


@lru_cache(maxsize=65536)
def clean_weights(angles: tuple[float, ...], start: float, end: float) -> tuple[float, ...]:
    """`clean_weight` of each angle."""
    return tuple(clean_weight(angles, j, start, end) for j in range(len(angles)))


def quadrature(start: float, end: float) -> list[tuple[float, float]]:
    """(angle, weight) from angle to angle."""
    half = 0.5 * (end - start)
    return [(start + half * (p + 1.0), w * half) for p, w in _quadrature()]


def clean_weight(angles: Sequence[float], j: int, start: float, end: float) -> float:
    """-sin(end) int L_j(u) / sin(u)^2 du from start to end, L_j being 1 at the j-th of at most three angles.

    By parts, so that nothing is singular at u = 0: u cot(u) is smooth, and sin(u) log(sin(u)) ends at 0.
    """
    at = {u: lagrange_weights(angles, u)[j] for u in (start, end, 0.0)}
    bend = lagrange_weights(angles, 1.0)[j] + lagrange_weights(angles, -1.0)[j] - 2.0 * at[0.0]  # L'' of a parabola
    tilt = 0.5 * (lagrange_weights(angles, 1.0)[j] - lagrange_weights(angles, -1.0)[j])  # L' at 0
    sin = math.sin(end)
    log = sin * math.log(sin / math.sin(start)) if sin > 0.0 else 0.0
    smooth = sum(w * u / math.tan(u) for u, w in quadrature(start, end))
    return math.cos(end) * at[end] - sin / math.tan(start) * at[start] - tilt * log - bend * sin * smooth


def linear_share(nodes: Sequence[AdamsNode], end: float) -> Any:
    """Share of the linear forecast in the next step, a 0-d array in [0, 1]: A / (A + r^2 B).

    At the last call the constant forecast was wrong by A (mean square; of a pair, as a slope) and the linear one by
    B; over a step of h, after k and k_1, they grow by h / k and by r h / k, r = (h + k) / (k + k_1).
    """
    before, last, here = nodes[-3:]
    r = (end - last.angle) / (here.angle - before.angle)
    stretch = (here.angle - last.angle) / (last.angle - before.angle)
    wrong = here.slope(here.angle) - last.slope(here.angle)
    change = last.slope(here.angle) - before.slope(here.angle)
    constant, linear = rms(wrong), rms(wrong - change * stretch)
    return constant * constant / (constant * constant + linear * linear * (r * r) + 1e-20)


def predictor_increment(nodes: Sequence[AdamsNode], end: float) -> Any:
    """Increment of z in the predictor's step from the last node to the angle `end`."""
    here = nodes[-1].angle
    constant = integrate_nodes(nodes[-1:], here, end)
    if len(nodes) < 3:
        return constant
    linear = integrate_nodes(nodes[-2:], here, end)
    return constant + (linear - constant) * linear_share(nodes, end)


def correction_share(angle: float) -> float:
    """Weight of the corrector in the last step, which starts at this angle; smaller where the sample is noisier.

    The network's clean estimate is mostly free of the last step's error already, the more so the noisier the sample.
    The network is not called at the end of the run, so this weight is a heuristic.
    """
    return 1.0 / (1.0 + (angle / CORRECTION_HALF_ANGLE) ** 2)


@register("solver")
@dataclass(frozen=True)
class Adams(Solver):
    """Adams-Bashforth-Moulton on the angle: predict, call, correct the step that led here; one call a step.

    With u = atan(sigma / alpha), z = x / hypot(alpha, sigma) is cos(u) x0 + sin(u) eps and obeys dz / du = v, whatever
    the schedule. Every call gives the pair (x0, eps). The predictor blends its constant forecast, which is `ddim`,
    and its linear one by how wrong each was at the last call (`linear_share`); once the network has been asked where a
    step led, the step is taken again by the parabola through its pairs. Both ends are steps like any
    other. Made for long and uneven steps, as `stride` takes them.

    Args:
        of: What forecasts hold: the "pair" (x0, eps), made for short steps, or "x0" alone with the exact decay of the
            noise, sin(u_next) / sin(u), made for runs of some ten calls.

    Raises:
        SpecError: of something else.

    References: Hairer, Norsett & Wanner 1993, Solving ODEs I, III.1; Salimans & Ho 2022, arXiv 2202.00512 (v and the
    angle); the frame and the blend are ours.
    """

    of: Literal["pair", "x0"] = "pair"
    name: ClassVar[str] = "adams"
    variants: ClassVar[tuple[str, ...]] = ("adams(of='x0')",)

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def convergence_order(self) -> int:
        return 3

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        make_node = make_pair_node if self.of == "pair" else clean
        here = make_node(Node(t, x, (yield Query(x, t))), schedule)
        nodes = [make_node(node, schedule) for node in earlier_nodes(past, t)[-3:]]
        end = schedule.angle(t_next)
        z = x * (1.0 / sample_norm(schedule, t))
        correction = self._correction(nodes, here) if nodes else 0.0
        z = (
            (z + correction) * decay_factor(here, end)
            if end > 0.0
            else z * decay_factor(here, end) + correction * correction_share(here.angle)
        )
        z = z + predictor_increment([*nodes, here], end)
        return Step(cast_like(z * sample_norm(schedule, t_next), x))

    def _correction(self, nodes: list[AdamsNode], here: AdamsNode) -> Any:
        """What the step that led here would have added, had it known this estimate, less what it did add."""
        corrected = integrate_nodes([*nodes, here][-3:], nodes[-1].angle, here.angle)
        return corrected - predictor_increment(nodes, here.angle)


def earlier_nodes(past: Sequence[Node], t: float) -> list[Node]:
    """The last estimate at each time before this one, oldest first."""
    last = {n.t: n for n in past if n.t > t}
    return [last[time] for time in sorted(last, reverse=True)]
