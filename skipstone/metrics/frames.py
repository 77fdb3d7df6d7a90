"""Videos frame by frame: closeness to the full run, in the mean and at the worst frame, and flicker."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from ..errors import MetricError
from ..registry import register
from .base import Metric, Sample, get_image_pair
from .closeness import PSNR, SSIM

MAX_PSNR = 99.0  # dB that one frame counts at most, so that an identical one does not make a mean infinite


def measure_frames(metric: Metric, of_one: Metric, sample: Sample) -> list[float]:
    """`of_one` for each frame. Raises MetricError where the sample is a picture."""
    ours, theirs = get_image_pair(metric, sample)
    if ours.ndim != 4:
        raise MetricError(f"{metric.name}: expected a video (frames, height, width, 3), got {ours.shape}.")
    return [
        of_one.measure(replace(sample, pixels=one, reference=other)) for one, other in zip(ours, theirs, strict=True)
    ]


@register("metric")
@dataclass(frozen=True)
class FramePSNR(Metric):
    """Mean over a video's frames of the PSNR to the full run, in dB.

    A frame counts at most 99 dB; infinite where all frames are identical. The mean of decibels, as papers on video
    report it: `psnr` itself takes the mean of squared errors over the whole video.

    Raises:
        MetricError: a picture.
    """

    name: ClassVar[str] = "frame_psnr"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    unit: ClassVar[str] = "dB"
    span: ClassVar[tuple[float, float]] = (0.0, MAX_PSNR)
    of: ClassVar[Literal["any", "picture", "video"]] = "video"

    def measure(self, sample: Sample) -> float:
        frames = measure_frames(self, PSNR(), sample)
        return math.inf if min(frames) == math.inf else statistics.fmean(min(f, MAX_PSNR) for f in frames)


@register("metric")
@dataclass(frozen=True)
class WorstFramePSNR(FramePSNR):
    """PSNR to the full run of the frame where it is lowest, in dB: a flash that the mean hides.

    Raises:
        MetricError: a picture.
    """

    name: ClassVar[str] = "frame_psnr_worst"
    by_default: ClassVar[bool] = False

    def measure(self, sample: Sample) -> float:
        return min(measure_frames(self, PSNR(), sample))


@register("metric")
@dataclass(frozen=True)
class FrameSSIM(Metric):
    """Mean over a video's frames of the SSIM to the full run.

    Raises:
        MetricError: a picture, or frames smaller than the window of `ssim`.
    """

    name: ClassVar[str] = "frame_ssim"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    span: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    of: ClassVar[Literal["any", "picture", "video"]] = "video"

    def measure(self, sample: Sample) -> float:
        return statistics.fmean(measure_frames(self, SSIM(), sample))


@register("metric")
@dataclass(frozen=True)
class WorstFrameSSIM(FrameSSIM):
    """SSIM to the full run of the frame where it is lowest.

    Raises:
        MetricError: a picture, or frames smaller than the window of `ssim`.
    """

    name: ClassVar[str] = "frame_ssim_worst"
    by_default: ClassVar[bool] = False

    def measure(self, sample: Sample) -> float:
        return min(measure_frames(self, SSIM(), sample))


@register("metric")
@dataclass(frozen=True)
class Flicker(Metric):
    """Mean absolute change, from frame to frame, of the difference to the full run; in levels of 255.

    0 where every frame is off by the same picture. The full run's own motion counts nothing, unlike in VBench's
    temporal flickering, which takes this mean of the video alone.

    Raises:
        MetricError: a picture, or a video of one frame.

    References: after Huang et al. 2024, arXiv 2311.17982 (VBench), temporal flickering.
    """

    name: ClassVar[str] = "flicker"
    better: ClassVar[Literal["higher", "lower"]] = "lower"
    unit: ClassVar[str] = "levels"
    span: ClassVar[tuple[float, float]] = (0.0, 510.0)
    of: ClassVar[Literal["any", "picture", "video"]] = "video"

    def format(self, value: float) -> str:
        return f"{value:.2f}"

    def measure(self, sample: Sample) -> float:
        import numpy as np

        ours, theirs = get_image_pair(self, sample)
        if ours.ndim != 4 or len(ours) < 2:
            raise MetricError(
                f"flicker: expected a video (frames, height, width, 3) of two or more frames, got {ours.shape}."
            )
        return float(255 * np.abs(np.diff(ours - theirs, axis=0)).mean())
