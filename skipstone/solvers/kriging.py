"""Multistep steps whose weights follow from how clean estimates usually move (`numerics/kriging.py`)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import cast_like, rms, upcast, weighted_sum
from ..numerics.extrapolate import lagrange_weights
from ..numerics.kriging import MAX_NODES, QUIETEST, expected_change, kriging_weights
from ..numerics.schedule import Schedule
from ..registry import register
from ..settings import Ranges, check_settings
from .adams import earlier_nodes

ODDS = 8.0  # by which kriging's mean square error is divided before forecasts are weighed, where samples move as usual
DATA_STD = 0.5  # standard deviation of the data within a picture that amplitudes are in units of
EPS_ERROR = 0.015  # rms error of a network that predicts noise: its clean estimate errs by sigma / alpha times that
ROUNDING = 1e-16  # added to mean square errors


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


def forecast_weights(levels: tuple[float, ...], start: float, end: float) -> tuple[tuple[float, ...], ...]:
    """Weights of the last calls in three forecasts of the mean clean estimate of a step: constant, linear, kriged.

    With `start` equal to `end`, of the clean estimate there.
    """
    levels = levels[-MAX_NODES:]
    before = (0.0,) * (len(levels) - 2)
    constant, kriged = (*before, 0.0, 1.0), kriging_weights(levels, start, end)
    if end <= QUIETEST:  # a line through log(sigma / alpha) does not end
        return constant, (*before, *kriging_weights(levels[-2:], start, end)), kriged
    return constant, (*before, *lagrange_weights(levels[-2:], mean_level(start, end))), kriged


def mean_level(start: float, end: float) -> float:
    """Mean level of a step: its clean estimates have the weight s_end / s^2 ds, s = exp(level)."""
    span = max(start - end, 0.0)
    return end + (1.0 - span / math.expm1(span) if span > 1e-6 else 0.5 * span)


def forecast_shares(nodes: Sequence[CleanNode], trust: float) -> list[Any] | None:
    """Shares of the three forecasts, 0-d arrays that sum to 1; None before the third call, where kriging has all.

    The share is 1 / e^2, e being the mean square by which a forecast missed the last call. That of kriging is divided
    by 8 / (1 + (r / trust)^4), r being how much further than expected the clean estimate moved, the geometric mean of
    its last two changes.
    """
    if len(nodes) < 3:
        return None
    here, earlier = nodes[-1], nodes[-1 - MAX_NODES : -1]
    weights = forecast_weights(tuple(n.level for n in earlier), here.level, here.level)
    cleans = [n.clean for n in earlier[-MAX_NODES:]]
    misses = [rms(here.clean - weighted_sum(w, cleans)) for w in weights]
    errors = [miss * miss for miss in misses]
    first, last = (_relative_change(a, b) for a, b in itertools.pairwise(nodes[-3:]))
    moved = first * last * (1.0 / max(trust, 1e-3) ** 2)
    errors[2] = errors[2] * (1.0 + moved * moved) * (1.0 / ODDS)
    least = sum(errors) * (1.0 / len(errors)) + ROUNDING
    ratios = [error / least + ROUNDING for error in errors]
    inverse = [1.0 / (ratio * ratio) for ratio in ratios]
    return [value / sum(inverse) for value in inverse]


def _relative_change(before: CleanNode, after: CleanNode) -> Any:
    expected = (DATA_STD * expected_change(before.level, after.level)) ** 2 + before.error**2 + after.error**2
    return rms(after.clean - before.clean) * (1.0 / expected**0.5)


def kriged_mean(nodes: Sequence[CleanNode], start: float, end: float) -> Any:
    """The mean clean estimate of a step between two levels, kriged."""
    nodes = nodes[-MAX_NODES:]
    return weighted_sum(kriging_weights(tuple(n.level for n in nodes), start, end), [n.clean for n in nodes])


def forecast_mean(nodes: Sequence[CleanNode], end: float, trust: float) -> Any:
    """The mean clean estimate of the step from the last call to a level, by the shares of the three forecasts."""
    start, shares = nodes[-1].level, forecast_shares(nodes, trust)
    if shares is None:
        return kriged_mean(nodes, start, end)
    nodes = nodes[-MAX_NODES:]
    weights = forecast_weights(tuple(n.level for n in nodes), start, end)
    constant, linear, kriged = (weighted_sum(w, [n.clean for n in nodes]) for w in weights)
    return constant + (linear - constant) * shares[1] + (kriged - constant) * shares[2]


@register("solver")
@dataclass(frozen=True)
class Kriging(Solver):
    """Multistep in the clean estimate, weighted by kriging: predict, call, correct the step that led here.

    The exact step is x_next = sigma_next / sigma x + (alpha_next - sigma_next / sigma alpha) D, with D the mean clean
    estimate of the step. Three forecasts of D are blended: constant, linear in log(sigma / alpha), and kriged from the
    last four calls, under a prior of how clean estimates move. Each has the share 1 / e^2, with e the mean square by
    which it missed the last call; kriging's e is divided by 8 / (1 + (r / trust)^4) first, with r how far the clean
    estimate moved, over what the prior expects. Once the network has been asked where a step led, the step is taken
    again, kriged with that call. Made for long and uneven steps, as `adaptive_grid` takes them.

    Args:
        trust: Change over expected change up to which kriging is preferred, in [0, 1e9]. High guidance moves clean
            estimates further.

    Raises:
        SpecError: trust out of range.

    References: Zhao et al. 2023, arXiv 2302.04867 (predict and correct in the clean estimate); O'Hagan 1991,
    doi 10.1016/0378-3758(91)90002-V (weights from a Gaussian process); ours as a whole.
    """

    trust: float = 1.0
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
        calls = [*earlier_nodes(past, t)[-MAX_NODES - 1 :], called]
        nodes = [make_clean_node(node, schedule) for node in calls]
        z = upcast(x)
        if len(calls) > 1:  # the sample at the start of the step that led here cancels
            before, here = nodes[:-1], nodes[-1].level
            change = kriged_mean(nodes, before[-1].level, here) - forecast_mean(before, here, self.trust)
            z = z + change * step_weights(schedule, calls[-2].t, t)[1]
        mean = forecast_mean(nodes, level_of(schedule, t_next), self.trust)
        return Step(cast_like(weighted_sum(step_weights(schedule, t, t_next), [z, mean]), x))


def step_weights(schedule: Schedule, t: float, t_next: float) -> tuple[float, float]:
    """Weights of x and of the mean clean estimate in the step from t to t_next."""
    ratio = schedule.sigma(t_next) / schedule.sigma(t)
    return ratio, schedule.alpha(t_next) - ratio * schedule.alpha(t)
