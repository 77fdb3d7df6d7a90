"""Base classes of metrics, and the sample that they may read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import SpecError

if TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, eq=False)
class Sample:
    """One finished sample: all that a metric may look at.

    Args:
        pixels: The picture, (height, width, 3) floats in [0, 1], not rounded to 8 bits. The frames of a video are one
            tall picture, or (frames, height, width, 3) for metrics that take frames.
        prompt: It was made for.
        calls: Spent on it: rows that entered the denoiser, over the branches of a full call.
        reference: The picture of the same prompt and seed by the full run, like `pixels`.
        judge: (pixels, prompt) -> the model's own judge's score; None where a model has no judge.
        latent: What the decoder was given; a tensor or an array of any shape.
        reference_latent: The same of the full run.
    """

    pixels: Any
    prompt: str = ""
    calls: float = 0.0
    reference: Any = None
    judge: Callable[[Any, str], float] | None = None
    latent: Any = None
    reference_latent: Any = None


class BaseMetric:
    """Base of metrics of one sample and of many: frozen settings, all with defaults, and these attributes."""

    name: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]]
    unit: ClassVar[str] = ""
    span: ClassVar[tuple[float, float]] = (-math.inf, math.inf)  # least and greatest value that a guarantee counts
    of: ClassVar[Literal["any", "picture", "video"]] = "any"  # what it can be measured of
    takes_frames: ClassVar[bool] = False  # whether it is given a video as frames, as those `of` videos always are
    requires: ClassVar[tuple[Literal["judge", "latent"], ...]] = ()  # what not every model has
    compares: ClassVar[bool] = True  # with the full run; False where it looks at the picture alone
    counts_calls: ClassVar[bool] = False  # whether it is what every record and table has as `calls`
    by_default: ClassVar[bool] = True  # whether `skipstone compare` takes it
    title: ClassVar[str] = ""  # of its column in a table; its name where it is empty
    summary: ClassVar[Literal["median", "mean"]] = "median"  # in a table: the median and the worst sample, or the mean

    def format(self, value: float) -> str:
        """A value as tables show it."""
        return f"{value:.4g}"

    def missing(self) -> str:
        """The file or package that this machine lacks, and where to get it; empty where the metric can be measured."""
        return ""

    @classmethod
    def variants(cls) -> tuple[Self, ...]:
        """Settings to try in turn until one of them is not missing anything."""
        return (cls(),)


class Metric(BaseMetric):
    """Base of metrics: frozen settings and one function from a sample to a number."""

    def measure(self, sample: Sample) -> float:
        """The number; infinity is allowed, NaN is not."""
        raise NotImplementedError


class SetMetric(BaseMetric):
    """Base of metrics that are one number for many samples.

    Few samples bias such numbers: compare only those of equally many.
    """

    def measure(self, pictures: Sequence[Any], prompts: Sequence[str], references: Sequence[Any]) -> float:
        """The number.

        Args:
            pictures: Pictures or videos as in `Sample.pixels`.
            prompts: Of each.
            references: What they are compared with: the full run's, or real ones; as many or another number.

        Raises:
            MetricError: `missing` is not empty, or these pictures cannot be measured.
        """
        raise NotImplementedError


def get_image_pair(metric: Metric, sample: Sample) -> tuple[Any, Any]:
    """The picture and its reference as float64. Raises SpecError where there is none or it is of another shape."""
    import numpy as np

    if sample.reference is None:
        raise SpecError(f"{metric.name} compares with the full run's picture; this sample has no reference.")
    ours, theirs = np.asarray(sample.pixels, np.float64), np.asarray(sample.reference, np.float64)
    if ours.shape != theirs.shape:
        raise SpecError(f"{metric.name}: the picture is {ours.shape}, its reference {theirs.shape}.")
    return ours, theirs


def worst(metric: BaseMetric, values: list[float]) -> float:
    """The worst of several values in this metric's own direction."""
    return min(values) if metric.better == "higher" else max(values)
