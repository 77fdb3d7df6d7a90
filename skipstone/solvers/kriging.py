"""Multistep steps whose weights follow from how clean estimates usually move (`numerics/kriging.py`)."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import cast_like, rms, upcast, weighted_sum
from ..numerics.kriging import MAX_NODES, QUIETEST, expected_change, kriging_weights
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import Ranges, check_settings
from .adams import (
    AdamsNode,
    correction_share,
    earlier_nodes,
    integrate_nodes,
    make_pair_node,
    predictor_increment,
    sample_norm,
)

SHORT = 0.2  # mean distance of calls, in units of the level, at which Adams gets half of the weight
DATA_STD = 0.5  # standard deviation of the data within a picture that amplitudes are in units of
EPS_ERROR = 0.015  # rms error of a network that predicts noise: its clean estimate errs by sigma / alpha times that


class CleanNode(NamedTuple):
    """A call: its level log(sigma / alpha), its clean estimate, and the share of its error that comes of the output."""

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


def adams_share(nodes: Sequence[CleanNode], trust: float) -> Any:
    """Share of Adams' step, a 0-d array in [0, 1]: 1 - h^4 / (h^4 + SHORT^4) / (1 + (r / trust)^8).

    r is how much further than expected the clean estimate moved, the geometric mean of its last two changes; h is the
    mean distance of calls.
    """
    changes = [_relative_change(a, b) for a, b in itertools.pairwise(nodes[-3:])]
    if not changes:
        return 0.0
    square = changes[0] * changes[-1] * (1.0 / max(trust, 1e-6) ** 2)
    h = (nodes[0].level - nodes[-1].level) / (len(nodes) - 1)
    return 1.0 - (h**4 / (h**4 + SHORT**4)) / (1.0 + square**4)


def _relative_change(before: CleanNode, after: CleanNode) -> Any:
    expected = (DATA_STD * expected_change(before.level, after.level)) ** 2 + before.error**2 + after.error**2
    return rms(after.clean - before.clean) * (1.0 / expected**0.5)


def mean_clean(nodes: Sequence[CleanNode], start: float, end: float) -> Any:
    """The kriged mean clean estimate of a step between two levels."""
    return weighted_sum(kriging_weights(tuple(n.level for n in nodes), start, end), [n.clean for n in nodes])


@register("solver")
@dataclass(frozen=True)
class Kriging(Solver):
    """Multistep in the clean estimate, weighted by kriging: predict, call, correct the step that led here.

    The exact step is x_next = sigma_next / sigma x + (alpha_next - sigma_next / sigma alpha) D, with D the mean clean
    estimate of the step. D is kriged from the last four calls, under a prior of how clean estimates move along
    log(sigma / alpha). Where they move `trust` times as far as the prior expects (high guidance), and where calls are
    close, the step is that of `adams` instead. Once the network has been asked where a step led, the step is taken
    again with that call. Made for long and uneven steps, as `adaptive_grid` takes them.

    Args:
        trust: Change over expected change at which kriging and Adams are blended in equal parts, in [0, 1e9].
            0 is `adams`.

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
        called = Node(t, x, (yield Query(x, t)))
        calls = [*earlier_nodes(past, t)[-MAX_NODES:], called]
        nodes = [make_clean_node(node, schedule) for node in calls]
        pairs = [make_pair_node(node, schedule) for node in calls]
        z = upcast(x)
        correction = self._correction(nodes, pairs, calls[-2].t, t, schedule) if len(calls) > 1 else 0.0
        kriged = self._kriged(z + correction, nodes[-MAX_NODES:], t, t_next, schedule)
        end = schedule.angle(t_next)
        kept = 1.0 if end > 0.0 else correction_share(pairs[-1].angle)
        scaled = (z + correction * kept) * (1.0 / sample_norm(schedule, t))
        stepped = (scaled + predictor_increment(pairs[-MAX_NODES:], end)) * sample_norm(schedule, t_next)
        share = adams_share(nodes[-MAX_NODES:], self.trust)
        return Step(cast_like(kriged + (stepped - kriged) * share, x))

    def _kriged(self, z: Any, nodes: Sequence[CleanNode], t: float, t_next: float, schedule: Schedule) -> Any:
        ratio, weight = step_weights(schedule, t, t_next)
        return weighted_sum([ratio, weight], [z, mean_clean(nodes, nodes[-1].level, level_of(schedule, t_next))])

    def _correction(
        self, nodes: Sequence[CleanNode], pairs: Sequence[AdamsNode], t_before: float, t: float, schedule: Schedule
    ) -> Any:
        """What the step that led here would have added, had it known this estimate, less what it did add.

        The share is that of the step that was made, so that the sample at its start cancels.
        """
        before, here = nodes[:-1], nodes[-1]
        start = before[-1].level
        change = mean_clean(nodes[-MAX_NODES:], start, here.level) - mean_clean(before, start, here.level)
        kriged = change * step_weights(schedule, t_before, t)[1]
        known = integrate_nodes(pairs[-3:], pairs[-2].angle, pairs[-1].angle)
        stepped = (known - predictor_increment(pairs[:-1], pairs[-1].angle)) * sample_norm(schedule, t)
        return kriged + (stepped - kriged) * adams_share(before, self.trust)


def step_weights(schedule: Schedule, t: float, t_next: float) -> tuple[float, float]:
    """Weights of x and of the mean clean estimate in the step from t to t_next."""
    ratio = schedule.sigma(t_next) / schedule.sigma(t)
    return ratio, schedule.alpha(t_next) - ratio * schedule.alpha(t)
