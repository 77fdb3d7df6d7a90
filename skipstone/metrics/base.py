"""What a metric is and what it may look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from ..errors import SpecError


@dataclass(frozen=True, eq=False)
class Sample:
    """One finished sample: all that a metric may look at.

    Args:
        pixels: The picture, (height, width, 3) floats in [0, 1], not rounded to 8 bits.
        prompt: It was made for.
        calls: Spent on it: rows that entered the denoiser, over the branches of a full call.
        reference: The picture of the same prompt and seed by the full run, like `pixels`.
        judge: (pixels, prompt) -> the model's own judge's score; None where a model has no judge.
    """

    pixels: Any
    prompt: str = ""
    calls: float = 0.0
    reference: Any = None
    judge: Callable[[Any, str], float] | None = None


class Metric:
    """Base of metrics: frozen settings and one function from a sample to a number."""

    name: ClassVar[str]
    better: ClassVar[Literal["higher", "lower"]]
    unit: ClassVar[str] = ""

    def measure(self, sample: Sample) -> float:
        """The number; infinity is allowed, NaN is not."""
        raise NotImplementedError


def pair(metric: Metric, sample: Sample) -> tuple[Any, Any]:
    """The picture and its reference as float64. Raises SpecError where there is none or it is of another shape."""
    import numpy as np

    if sample.reference is None:
        raise SpecError(f"{metric.name} compares with the full run's picture; this sample has no reference.")
    ours, theirs = np.asarray(sample.pixels, np.float64), np.asarray(sample.reference, np.float64)
    if ours.shape != theirs.shape:
        raise SpecError(f"{metric.name}: the picture is {ours.shape}, its reference {theirs.shape}.")
    return ours, theirs


def worst(metric: Metric, values: list[float]) -> float:
    """The worst of several values in this metric's own direction."""
    return min(values) if metric.better == "higher" else max(values)
