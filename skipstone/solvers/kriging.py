"""Multistep steps whose weights follow from how clean estimates usually move (`numerics/kriging.py`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import cast_like, rms, upcast, weighted_sum
from ..numerics.exponential import lagrange_integrals
from ..numerics.kriging import MAX_NODES, QUIETEST, expected_change, kriging_weights
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import Ranges, check_settings
from .adams import earlier_nodes

SHORT = 0.1  # mean distance of calls, in units of the level, at which polynomials get half of the weight
DATA_STD = 0.5  # standard deviation of the data within a picture that amplitudes are in units of
MAX_DISTANCE = 8.0  # of a step in units of the level, over which a polynomial says nothing
EPS_ERROR = 0.015  # rms error of a network that predicts noise: its clean estimate errs by sigma / alpha times that


class CleanNode(NamedTuple):
    """A call: its level log(sigma / alpha), its clean estimate, and the error of that which the level explains."""

    level: float
    clean: Any
    error: float


def make_clean_node(node: Node, schedule: Schedule) -> CleanNode:
    """The clean estimate of a call, in float32 at least."""
    level = level_of(schedule, node.t)
    predicts_noise = node.estimate.output is not None and node.estimate.prediction == "eps"
    sigma, alpha = schedule.sigma(node.t), schedule.alpha(node.t)
    error = EPS_ERROR * min(1e3, sigma / max(alpha, 1e-9)) if predicts_noise else 0.0
    return CleanNode(level, upcast(node.estimate.x0), error)


def level_of(schedule: Schedule, t: float) -> float:
    """log(sigma / alpha), within the limits of `Schedule.clock`; at the data below all levels."""
    return -schedule.clock(t) if schedule.sigma(t) > 0.0 else QUIETEST - 1.0


def polynomial_share(nodes: Sequence[CleanNode], trust: float) -> Any:
    """Share of the polynomial in a step, a 0-d array in [0, 1]: 1 - h^2 / (h^2 + SHORT^2) trust^4 / (r^4 + trust^4).

    r is how much further than expected the clean estimate moved, the geometric mean of its last two changes; h is the
    mean distance of calls.
    """
    changes = [_relative_change(a, b) for a, b in itertools.pairwise(nodes[-3:])]
    if not changes:
        return 0.0
    fourth = (changes[0] * changes[-1]) ** 2
    h = (nodes[0].level - nodes[-1].level) / (len(nodes) - 1)
    return 1.0 - (h * h / (h * h + SHORT**2) * trust**4) / (fourth + trust**4 + 1e-20)


def _relative_change(before: CleanNode, after: CleanNode) -> Any:
    expected = (DATA_STD * expected_change(before.level, after.level)) ** 2 + before.error**2 + after.error**2
    return rms(after.clean - before.clean) * (1.0 / expected**0.5)


def mean_clean(nodes: Sequence[CleanNode], start: float, end: float, share: Any) -> Any:
    """Mean clean estimate of a step between two levels: kriged, and of a polynomial, blended by `share`."""
    levels, values = tuple(n.level for n in nodes), [n.clean for n in nodes]
    kriged = weighted_sum(kriging_weights(levels, start, end), values)
    if len(nodes) == 1:
        return kriged
    count = 3 if levels[-1] < start else 2  # a corrector has the end of its step
    polynomial = weighted_sum(polynomial_weights(levels[-count:], start, end), values[-count:])
    return kriged + (polynomial - kriged) * share


def polynomial_weights(levels: Sequence[float], start: float, end: float) -> list[float]:
    """Weights of clean estimates that a polynomial in the level is drawn through; of the last alone to the data."""
    distance = start - end
    if end <= QUIETEST or distance > MAX_DISTANCE:
        return [0.0] * (len(levels) - 1) + [1.0]
    weights = lagrange_integrals([start - level for level in levels], distance)
    total = math.fsum(weights)
    return [w / total for w in weights]


@register("solver")
@dataclass(frozen=True)
class Kriging(Solver):
    """Multistep in the clean estimate, weighted by kriging: predict, call, correct the step that led here.

    The exact step is x_next = sigma_next / sigma x + (alpha_next - sigma_next / sigma alpha) D, with D the mean clean
    estimate of the step. D is kriged from the last four calls, under a prior of how clean estimates move along
    log(sigma / alpha). Where they move `trust` times as far as the prior expects (high guidance), and where calls are
    close, D is that of a polynomial in log(sigma / alpha) instead, as in `unipc`. Once the network has been asked where
    a step led, the step is taken again with that call. Made for long and uneven steps, as `adaptive_grid` takes them.

    Args:
        trust: Change over expected change at which kriging and polynomial are blended in equal parts, in [0, 1e9].
            0 always takes the polynomial.

    Raises:
        SpecError: trust out of range.

    References: Zhao et al. 2023, arXiv 2302.04867 (predict and correct in the clean estimate); O'Hagan 1991,
    doi 10.1016/0378-3758(91)90002-V (weights from a Gaussian process); ours as a whole.
    """

    trust: float = 1.5
    name: ClassVar[str] = "kriging"
    ranges: ClassVar[Ranges] = {"trust": (0, 1e9)}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def convergence_order(self) -> int:
        return 3

    def step(
        self, x: Any, t: float, t_next: float, schedule: Schedule, past: Sequence[Node]
    ) -> Generator[Query | Noise, Any, Step]:
        here = make_clean_node(Node(t, x, (yield Query(x, t))), schedule)
        nodes = [make_clean_node(node, schedule) for node in earlier_nodes(past, t)[-MAX_NODES:]]
        z = upcast(x)
        if nodes:
            z = z + self._correction(nodes, here, earlier_nodes(past, t)[-1].t, t, schedule)
        ratio, weight = step_weights(schedule, t, t_next)
        recent = [*nodes, here][-MAX_NODES:]
        mean = mean_clean(recent, here.level, level_of(schedule, t_next), polynomial_share(recent, self.trust))
        return Step(cast_like(weighted_sum([ratio, weight], [z, mean]), x))

    def _correction(
        self, nodes: list[CleanNode], here: CleanNode, t_before: float, t: float, schedule: Schedule
    ) -> Any:
        """What the step that led here would have added, had it known this estimate, less what it did add."""
        start, share = nodes[-1].level, polynomial_share(nodes, self.trust)
        predicted = mean_clean(nodes, start, here.level, share)
        known = [*nodes, here][-MAX_NODES:]
        corrected = mean_clean(known, start, here.level, polynomial_share(known, self.trust))
        return (corrected - predicted) * step_weights(schedule, t_before, t)[1]


def step_weights(schedule: Schedule, t: float, t_next: float) -> tuple[float, float]:
    """Weights of x and of the mean clean estimate in the step from t to t_next."""
    ratio = schedule.sigma(t_next) / schedule.sigma(t)
    return ratio, schedule.alpha(t_next) - ratio * schedule.alpha(t)
