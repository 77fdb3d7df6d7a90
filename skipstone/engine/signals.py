"""The numbers a policy may ask for: computed only when declared, and fetched once a step for a batch.

A policy lists spelt signals in `needs` and finds their values in `attempt.signals` under that spelling:
`"latent_change"`, `"disagreement(order=1, of='eps')"`. A signal that cannot be known yet is absent; one of several
values is found under `"look[0]"`, `"look[1]"` and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..numerics.array import mean_abs, rms, rms_each, upcast, weighted_sum
from ..numerics.extrapolate import lagrange_weights
from ..numerics.parametrize import PREDICTION_TYPES, to_x0
from ..numerics.schedule import CLOCK_LIMIT, Schedule
from ..registry import first_doc_line, register
from ..settings import Ranges, check_settings
from .contracts import Clock, Forecast, ForecastClock, PredictionType
from .requests import Estimate, FeatureExtractor, Node, Step, get_prediction, view_clean, view_prediction
from .sada_slopes import extrapolate_latent, repeated_calls, slopes

# What a forecast of each order is made of; of higher orders it is a curve as well.
FORECASTS = ("its last answer", "the line through its last two answers", "the curve through its last answers")


@dataclass(frozen=True, slots=True)
class StepContext:
    """Data that a signal may read: one step that has just been computed."""

    schedule: Schedule
    x: Any
    t: float
    t_next: float
    step: Step
    nodes: Sequence[Node]  # real estimates before this step, oldest first
    timeline: Sequence[Node]  # the same with forecasts between them
    fresh: Sequence[Node]  # estimates of this step, real or forecast
    feature_extractors: Callable[[str], FeatureExtractor] | None = None  # see `Problem`

    @property
    def first_new_call(self) -> Node | None:
        """The first call that was made for this step, and not already for one that was rejected."""
        return next((n for n in self.fresh if n.real and n.estimate.cost > 0.0), None)


class Norms(NamedTuple):
    """A number that is a function of the rms of some arrays, which are computed together with those of others.

    Args:
        arrays: `host_view`s, or arrays of the sample's own library.
        combine: From their rms to the number.
    """

    arrays: tuple[Any, ...]
    combine: Callable[..., Any]


class Signal:
    """Base of signals: frozen settings and one function from a `StepContext` to a 0-d or 1-d array.

    `of_call` says that a value depends on the calls alone, not on where the step leads: it is not measured again where
    a step is taken again.
    """

    name: ClassVar[str]
    of_call: ClassVar[bool] = False

    @property
    def meaning(self) -> str:
        """What a value says, in words for `explain`; the docstring's first line by default."""
        return first_doc_line(type(self))

    def measure(self, context: StepContext) -> Any | None:
        """The value as a 0-d array, or several as a 1-d array; None where it cannot be known."""
        raise NotImplementedError

    def norms(self, context: StepContext) -> Norms | None:
        """The value as a function of norms, of signals that `NormSignal` is the base of."""
        raise NotImplementedError


class NormSignal(Signal):
    """Base of signals that are made of the rms of arrays."""

    def measure(self, context: StepContext) -> Any | None:
        found = self.norms(context)
        return None if found is None else found.combine(*rms_each(found.arrays, context.x))


def signal_key(spec: str, k: int) -> str:
    """Key in `attempt.signals` of the k-th value of a signal with several values."""
    return f"{spec}[{k}]"


def clock_value(schedule: Schedule, clock: Clock, t: float) -> float:
    """The time t on the chosen clock."""
    if clock == "angle":
        return schedule.angle(t)
    return t if clock == "t" else schedule.clock(t)


def usable_indices(times: Sequence[float], clock: Clock, schedule: Schedule) -> list[int]:
    """Indices of times that can carry a polynomial: the newest of those alike, infinite log-SNR dropped."""
    keep: list[int] = []
    for i, t in enumerate(times):
        c = clock_value(schedule, clock, t)
        if clock == "logsnr" and abs(c) >= CLOCK_LIMIT:
            continue
        if keep and abs(c - clock_value(schedule, clock, times[keep[-1]])) <= 1e-9:
            keep.pop()  # the corrector of a two-stage solver and the step after it meet at one time
        keep.append(i)
    return keep or [len(times) - 1]


def extrapolate(
    points: Sequence[tuple[float, Any]], order: int, clock: ForecastClock, schedule: Schedule, t: float
) -> Any:
    """Value at t of the polynomial through the last `order + 1` usable (time, value) points."""
    if clock == "calls" or clock == "sada":
        numbered = points[-(order + 1) :]
        return weighted_sum(lagrange_weights(range(len(numbered)), len(numbered)), [v for _, v in numbered])
    usable = [points[i] for i in usable_indices([p[0] for p in points], clock, schedule)][-(order + 1) :]
    if len(usable) == 1:
        return usable[0][1]
    places = [clock_value(schedule, clock, s) for s, _ in usable]
    return weighted_sum(lagrange_weights(places, clock_value(schedule, clock, t)), [v for _, v in usable])


def forecast(
    nodes: Sequence[Node], how: Forecast, schedule: Schedule, x: Any, t: float, timeline: Sequence[Node] = ()
) -> Estimate:
    """The estimate at (x, t) that `how` makes of the real nodes, without a call; `timeline` has forecasts between."""
    recent = nodes[-(how.order + 2) :]  # one to spare, should one lie at infinite log-SNR
    points = [(n.t, get_prediction(n, how.of, schedule)) for n in recent]
    output = extrapolate(points, how.order, how.clock, schedule, t)
    if how.clock == "sada" and len(timeline) >= 3:
        ahead = extrapolate_latent(timeline, nodes, how.of, schedule)
        return Estimate(to_x0(how.of, output, ahead, schedule.alpha(t), schedule.sigma(t)), 0.0)
    x0 = to_x0(how.of, output, x, schedule.alpha(t), schedule.sigma(t))
    return Estimate(x0, 0.0, output, how.of)


@register("signal")
@dataclass(frozen=True)
class LatentChange(Signal):
    """Mean |x_next - x| over the step: the d of the third-order criterion, in units of the latent."""

    name: ClassVar[str] = "latent_change"

    @property
    def meaning(self) -> str:
        return "How far the step has moved the sample: the mean absolute change."

    def measure(self, context: StepContext) -> Any:
        return mean_abs(context.step.x - context.x)


@register("signal")
@dataclass(frozen=True)
class PredictionChange(NormSignal):
    """rms(x0 - x0_before) / rms(x0) between this real estimate and the last at an earlier time; dimensionless."""

    name: ClassVar[str] = "prediction_change"
    of_call: ClassVar[bool] = True

    @property
    def meaning(self) -> str:
        return (
            "How much the network's picture of the end has changed since its last call: 0.1 is a tenth of the picture."
        )

    def norms(self, context: StepContext) -> Norms | None:
        real = [n for n in context.fresh if n.real]
        earlier = [n for n in context.nodes if n.t > context.t]
        if not real or not earlier:
            return None
        now, before = (view_clean(n) for n in (real[0], earlier[-1]))
        return Norms((now - before, now), lambda change, size: change / (size + 1e-12))


@register("signal")
@dataclass(frozen=True)
class DraftChange(NormSignal):
    """rms(x0_last - x0_first) of a student's clean estimates in one drawing, in units of the latent."""

    name: ClassVar[str] = "draft_change"

    @property
    def meaning(self) -> str:
        return "How far the student's picture moved between its first and its last step: rms, in units of the latent."

    def norms(self, context: StepContext) -> Norms | None:
        drawn = [n for n in context.fresh if n.by_student]
        if len(drawn) < 2:
            return None
        return Norms((view_clean(drawn[-1]) - view_clean(drawn[0]),), lambda change: change)


@register("signal")
@dataclass(frozen=True)
class NetworkOutput(NormSignal):
    """What the network's output is: 0 eps, 1 x0, 2 v, 3 flow; unknown where only a clean estimate is given."""

    name: ClassVar[str] = "network_output"
    of_call: ClassVar[bool] = True

    @property
    def meaning(self) -> str:
        return "What the network puts out: 0 the noise, 1 the clean sample, 2 v, 3 a flow's velocity."

    def norms(self, context: StepContext) -> Norms | None:
        node = next((n for n in context.fresh if n.real), None)
        if node is None or node.estimate.output is None:
            return None
        number = float(PREDICTION_TYPES.index(node.estimate.prediction))
        return Norms(
            (view_prediction(node, node.estimate.prediction, context.schedule),), lambda size: 0.0 * size + number
        )


@register("signal")
@dataclass(frozen=True)
class LocalError(Signal):
    """rms(error) / rms(x_next), the solver's embedded error estimate of the step; dimensionless."""

    name: ClassVar[str] = "error"

    @property
    def meaning(self) -> str:
        return "The solver's own estimate of the error of this step: 0.01 is a hundredth of the sample."

    def measure(self, context: StepContext) -> Any | None:
        if context.step.error is None:
            return None
        return rms(context.step.error) / (rms(context.step.x) + 1e-12)


@register("signal")
@dataclass(frozen=True)
class Disagreement(NormSignal):
    """The error that a forecast would have had at this real call: rms(forecast - call), in units of `of`.

    Args:
        order, of, clock: The forecast, as in `Forecast`, from the real estimates before this one; order in 0..3.

    Raises:
        SpecError: a setting out of range.
    """

    order: int = 1
    of: PredictionType = "eps"
    clock: Clock = "logsnr"
    name: ClassVar[str] = "disagreement"
    of_call: ClassVar[bool] = True
    ranges: ClassVar[Ranges] = {"order": (0, 3)}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def meaning(self) -> str:
        return (
            f"How far the network's answer ({self.of}) was from what {FORECASTS[min(self.order, 2)]} had predicted: "
            f"the error of leaving this call out. Small where the run goes on evenly."
        )

    def norms(self, context: StepContext) -> Norms | None:
        real = [n for n in context.fresh if n.real]
        if not real or len(context.nodes) <= self.order:
            return None
        node, schedule = real[0], context.schedule
        recent = context.nodes[-(self.order + 2) :]  # as of `forecast`
        points = [(n.t, view_prediction(n, self.of, schedule)) for n in recent]
        guess = extrapolate(points, self.order, self.clock, schedule, node.t)
        return Norms((guess - view_prediction(node, self.of, schedule),), lambda miss: miss)


@register("signal")
@dataclass(frozen=True)
class Stability(Signal):
    """SADA's criterion: mean of (x_next - x^) * D2, where it is <= 0 the run counts as stable; units of latent squared.

    With y the slope dx / dt of the flow, x^ is the latent that y extrapolates and D2 = y - 2 y_1 + y_2 its second
    difference over the last three steps. A skipped step's y is made of the last prediction, repeated. Of a flow the
    mean of -D2 alone, and 0 at a skipped step, as released; see `sada.py`.

    Args:
        of: What the network predicts: eps, v or x0 (a diffusion), or flow.
    """

    of: PredictionType = "eps"
    name: ClassVar[str] = "stability"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def meaning(self) -> str:
        return "Whether the sample moves evenly: at 0 or below the next call may be left out."

    def measure(self, context: StepContext) -> Any | None:
        nodes = [*context.timeline, *context.fresh[:1]][-3:]
        if len(nodes) < 3 or not context.fresh:
            return None
        real = [n for n in (*context.nodes, nodes[-1]) if n.real]
        if self.of == "flow":
            if not nodes[-1].real:
                return 0.0 * mean_abs(nodes[-1].x)
            y2, y1, y0 = (upcast(get_prediction(n, "flow", context.schedule)) for n in repeated_calls(nodes, real))
            return (2.0 * y1 - y0 - y2).mean()
        y2, y1, y0 = slopes(nodes, real, self.of, context.schedule)
        ahead = extrapolate_latent(nodes, real, self.of, context.schedule)
        return ((upcast(context.step.x) - upcast(ahead)) * (y0 - 2.0 * y1 + y2)).mean()


@register("signal")
@dataclass(frozen=True)
class ImageFeatures(Signal):
    """Features of the picture that the clean estimate of a call decodes to, one value after another.

    Each costs a decoding and a pass through an image encoder, which is far from free: see `PublishedObservation.fee`.
    Known once for each call: not again for a step that is taken again. Unknown where no call was made, and where the
    sample cannot be decoded.

    Args:
        by: Name of the weights, for `Problem.feature_extractors`; "" is the model's own feature extractor.
    """

    by: str = ""
    name: ClassVar[str] = "look"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def meaning(self) -> str:
        return "What an image encoder sees in the network's picture of the end: one number after another."

    def measure(self, context: StepContext) -> Any | None:
        node = context.first_new_call
        return (
            None
            if node is None or context.feature_extractors is None
            else context.feature_extractors(self.by).image_features(node.estimate.x0)
        )


@register("signal")
@dataclass(frozen=True)
class PromptFeatures(Signal):
    """Features of the prompt, one value after another; known once, at the first call.

    Args:
        by: Name of the weights, as of `look`.
    """

    by: str = ""
    name: ClassVar[str] = "words"

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def meaning(self) -> str:
        return "What the prompt says, by a text encoder: one number after another."

    def measure(self, context: StepContext) -> Any | None:
        if context.nodes or context.first_new_call is None or context.feature_extractors is None:
            return None
        return context.feature_extractors(self.by).prompt_features()
