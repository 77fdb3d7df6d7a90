"""Multistep steps whose weights follow from how clean estimates usually move (`numerics/kriging.py`)."""

from __future__ import annotations

import math
import operator
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..engine.requests import Node, Noise, Query, Solver, Step
from ..numerics.array import cast_like, from_view, host_view, quiet_arithmetic, rms_each, upcast, weighted_sum
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
    """A call: its level log(sigma / alpha), its clean estimate, and the share of its error that comes of the output.

    The clean estimate is a `host_view`.
    """

    level: float
    clean: Any
    error: float


def make_clean_node(node: Node, schedule: Schedule) -> CleanNode:
    """The clean estimate of a call, in float32 at least."""
    level = level_of(schedule, node.t)
    predicts_noise = node.estimate.output is not None and node.estimate.prediction == "eps"
    sigma, alpha = schedule.sigma(node.t), schedule.alpha(node.t)
    error = EPS_ERROR * min(1e3, sigma / max(alpha, 1e-9)) if predicts_noise else 0.0
    return CleanNode(level, host_view(upcast(node.estimate.x0)), error)


def find_clean_node(node: Node, schedule: Schedule) -> CleanNode:
    """`make_clean_node`, made once for each call."""
    found = node.estimate.memo.get("clean")
    if found is not None and found[0] is node.estimate.x0 and found[1] == node.t and found[2] is schedule:
        return found[3]  # type: ignore[no-any-return]
    made = make_clean_node(node, schedule)
    node.estimate.memo["clean"] = node.estimate.x0, node.t, schedule, made
    return made


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


class Shares(NamedTuple):
    """Shares of the three forecasts, and the rms by which the constant one missed: how far the clean estimate moved."""

    each: list[Any]
    moved: Any


def forecast_shares(nodes: Sequence[CleanNode], trust: float, like: Any, moved: Any = None) -> Shares | None:
    """Shares of the three forecasts, scalars that sum to 1; None before the third call, where kriging has all.

    The share is 1 / e^2, e being the mean square by which a forecast missed the last call. That of kriging is divided
    by 8 / (1 + (r / trust)^4), r being how much further than expected the clean estimate moved, the geometric mean of
    its last two changes.

    Args:
        nodes: Calls, oldest first.
        trust: As of `Kriging`.
        like: Array of the sample's own library.
        moved: rms of the change before the last, where it is known.
    """
    if len(nodes) < 3:
        return None
    here, earlier = nodes[-1], nodes[-1 - MAX_NODES : -1]
    weights = forecast_weights(tuple(n.level for n in earlier), here.level, here.level)
    cleans = [n.clean for n in earlier[-MAX_NODES:]]
    missing = [here.clean - weighted_sum(w, cleans) for w in weights]
    before = [] if moved is not None else [nodes[-2].clean - nodes[-3].clean]
    *misses, change = [*rms_each([*missing, *before], like), *([] if moved is None else [moved])]
    errors = [miss * miss for miss in misses]
    first, last = change * _expected(nodes[-3], nodes[-2]), misses[0] * _expected(nodes[-2], here)
    r = first * last * (1.0 / max(trust, 1e-3) ** 2)
    errors[2] = errors[2] * (1.0 + r * r) * (1.0 / ODDS)
    least = sum(errors) * (1.0 / len(errors)) + ROUNDING
    ratios = [error / least + ROUNDING for error in errors]
    inverse = [1.0 / (ratio * ratio) for ratio in ratios]
    whole = sum(inverse)
    return Shares([value / whole for value in inverse], misses[0])


def _expected(before: CleanNode, after: CleanNode) -> float:
    """What a change of the clean estimate is multiplied with to be relative to the expected one."""
    expected = (DATA_STD * expected_change(before.level, after.level)) ** 2 + before.error**2 + after.error**2
    return float(1.0 / expected**0.5)


def kriged_mean(nodes: Sequence[CleanNode], start: float, end: float) -> Any:
    """The mean clean estimate of a step between two levels, kriged."""
    nodes = nodes[-MAX_NODES:]
    return weighted_sum(kriging_weights(tuple(n.level for n in nodes), start, end), [n.clean for n in nodes])


def forecast_mean(nodes: Sequence[CleanNode], end: float, shares: Shares | None) -> Any:
    """The mean clean estimate of the step from the last call to a level, by the shares of the three forecasts."""
    start = nodes[-1].level
    if shares is None:
        return kriged_mean(nodes, start, end)
    nodes = nodes[-MAX_NODES:]
    weights = forecast_weights(tuple(n.level for n in nodes), start, end)
    constant, linear, kriged = (weighted_sum(w, [n.clean for n in nodes]) for w in weights)
    return constant + (linear - constant) * shares.each[1] + (kriged - constant) * shares.each[2]


@dataclass(eq=False, slots=True)
class _Start:
    """All that steps from one call have in common, which is made once though a step is taken again.

    Args:
        x: The sample there.
        nodes: The calls, this one last.
        trust: As of `Kriging`.
        shares: Of the forecasts.
        z: The sample, with the step that led here corrected.
        mean: The last forecast that was made, and its level.
    """

    x: Any
    nodes: list[CleanNode]
    trust: float
    shares: Shares | None
    z: Any = None
    mean: tuple[float, Any] | None = None

    def forecast(self, end: float) -> Any:
        """The mean clean estimate of the step to a level."""
        if self.mean is None or self.mean[0] != end:
            self.mean = end, forecast_mean(self.nodes, end, self.shares)
        return self.mean[1]

    def is_of(self, nodes: Sequence[CleanNode], trust: float, most: int) -> bool:
        """Whether it was made of these calls; of its own, the last `most` count."""
        mine = self.nodes[-most:]
        return self.trust == trust and len(mine) == len(nodes) and all(map(operator.is_, mine, nodes))


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
        with quiet_arithmetic(x):
            start = self._start([*earlier_nodes(past, t)[-MAX_NODES - 1 :], called], schedule)
            mean = start.forecast(level_of(schedule, t_next))
            made = weighted_sum(step_weights(schedule, t, t_next), [start.z, mean])
        return Step(cast_like(from_view(made, x), x))

    def _start(self, calls: Sequence[Node], schedule: Schedule) -> _Start:
        """What steps from the last of these calls have in common."""
        called, nodes = calls[-1], [find_clean_node(node, schedule) for node in calls]
        found = called.estimate.memo.get("kriging")
        if found is not None and found.x is called.x and found.is_of(nodes, self.trust, MAX_NODES + 2):
            return found  # type: ignore[no-any-return]
        before = self._start_before(calls, nodes) if len(calls) > 1 else None
        moved = before.shares.moved if before is not None and before.shares is not None else None
        start = _Start(called.x, nodes, self.trust, forecast_shares(nodes, self.trust, called.x, moved))
        start.z = host_view(upcast(called.x))
        if before is not None:  # the sample at the start of the step that led here cancels
            here = nodes[-1].level
            change = kriged_mean(nodes, before.nodes[-1].level, here) - before.forecast(here)
            start.z = start.z + change * step_weights(schedule, calls[-2].t, called.t)[1]
            before.x = before.z = None  # no step starts there any more
        called.estimate.memo["kriging"] = start
        return start

    def _start_before(self, calls: Sequence[Node], nodes: Sequence[CleanNode]) -> _Start:
        """The same of the call before, for its forecast of the step that led here."""
        found: _Start | None = calls[-2].estimate.memo.get("kriging")
        if found is not None and found.is_of(nodes[:-1], self.trust, MAX_NODES + 1):
            return found
        shares = forecast_shares(nodes[:-1], self.trust, calls[-2].x)
        return _Start(None, list(nodes[:-1]), self.trust, shares)


def step_weights(schedule: Schedule, t: float, t_next: float) -> tuple[float, float]:
    """Weights of x and of the mean clean estimate in the step from t to t_next."""
    ratio = schedule.sigma(t_next) / schedule.sigma(t)
    return ratio, schedule.alpha(t_next) - ratio * schedule.alpha(t)
