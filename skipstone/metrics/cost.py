"""Metrics of the cost of a sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..registry import register
from .base import Metric, Sample


@register("metric")
@dataclass(frozen=True)
class Cost(Metric):
    """Network calls: rows that entered the denoiser, over the branches of a full call.

    A guided call is 1 and one branch of it a half; rejected attempts count.
    """

    name: ClassVar[str] = "cost"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    span: ClassVar[tuple[float, float]] = (0.0, math.inf)
    unit: ClassVar[str] = "calls"
    compares: ClassVar[bool] = False
    counts_calls: ClassVar[bool] = True

    def measure(self, sample: Sample) -> float:
        return float(sample.calls)
