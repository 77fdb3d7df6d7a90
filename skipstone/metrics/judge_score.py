"""The score that the model's own judge gives to a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import SpecError
from ..registry import register
from .base import Metric, Sample


@register("metric")
@dataclass(frozen=True)
class JudgeScore(Metric):
    """Share of what the prompt asks for that the model's own judge sees in the picture, in [0, 1].

    Pebble's judge is a small classifier of Pebble's own scenes: it cannot judge other models. A judge of videos gets
    (frames, height, width, 3).
    """

    name: ClassVar[str] = "judge"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    span: ClassVar[tuple[float, float]] = (0.0, 1.0)
    requires: ClassVar[tuple[Literal["judge", "latent"], ...]] = ("judge",)
    takes_frames: ClassVar[bool] = True
    compares: ClassVar[bool] = False
    summary: ClassVar[Literal["median", "mean"]] = "mean"

    def format(self, value: float) -> str:
        return f"{value:.2f}"

    def measure(self, sample: Sample) -> float:
        if sample.judge is None:
            raise SpecError("judge: this model has no judge of its own.")
        return float(sample.judge(sample.pixels, sample.prompt))
