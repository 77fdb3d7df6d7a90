"""Closeness of a picture to the full run's: PSNR and SSIM on unquantised pixels in [0, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from ..errors import MetricError
from ..registry import register
from ..satellites import require_module
from .base import Metric, Sample, get_image_pair


def format_decibels(value: float) -> str:
    """Format a PSNR; for identical pictures, say so."""
    return "identical" if math.isinf(value) else f"{value:.1f}"


@register("metric")
@dataclass(frozen=True)
class PSNR(Metric):
    """Peak signal-to-noise ratio to the full run: -10 log10 of the mean squared error, in dB.

    Infinite for identical pictures. 8 bits would round everything above about 59 dB away, so pixels are
    compared before rounding.
    """

    name: ClassVar[str] = "psnr"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    unit: ClassVar[str] = "dB"
    span: ClassVar[tuple[float, float]] = (0.0, 99.0)  # identical pictures count as 99 dB in a mean
    title: ClassVar[str] = "PSNR"

    def format(self, value: float) -> str:
        return format_decibels(value)

    def measure(self, sample: Sample) -> float:
        ours, theirs = get_image_pair(self, sample)
        error = float(((ours - theirs) ** 2).mean())
        return math.inf if error == 0.0 else -10.0 * math.log10(error)


WINDOW = 11  # pixels that a Gaussian of deviation 1.5 is cut off at


@register("metric")
@dataclass(frozen=True)
class SSIM(Metric):
    """Structural similarity to the full run, 1 for identical pictures, by scikit-image.

    The published settings: Gaussian window of deviation 1.5, K1 = 0.01, K2 = 0.03, population covariance; the
    mean over the three colour channels.

    Raises:
        MetricError: pictures smaller than its window of 11 pixels.
        MissingPackage: scikit-image is not installed.

    References: Wang et al. 2004, doi 10.1109/TIP.2003.819861.
    """

    name: ClassVar[str] = "ssim"
    better: ClassVar[Literal["higher", "lower"]] = "higher"
    span: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    title: ClassVar[str] = "SSIM"

    def format(self, value: float) -> str:
        return f"{value:.3f}"

    def measure(self, sample: Sample) -> float:
        require_module("skimage", "metrics")
        from skimage.metrics import structural_similarity

        ours, theirs = get_image_pair(self, sample)
        if min(ours.shape[:2]) < WINDOW:
            raise MetricError(f"ssim: expected pictures of at least {WINDOW} x {WINDOW}, got {ours.shape[:2]}.")
        return float(
            structural_similarity(
                theirs,
                ours,
                data_range=1.0,
                channel_axis=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
        )
