"""What a sceptic checks first: pictures that share nothing, noise of known size, latents, frames."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skipstone.errors import MetricError, SpecError
from skipstone.metrics import (
    PSNR,
    SSIM,
    Flicker,
    FramePSNR,
    FrameSSIM,
    LatentError,
    Sample,
    WorstFramePSNR,
    WorstFrameSSIM,
)

RNG = np.random.default_rng(8)
ONE, OTHER = RNG.integers(0, 256, (2, 128, 128, 3)) / 255


def test_pictures_that_share_nothing_score_as_such() -> None:
    """A benchmark in this field reports 27.9 dB here: its pictures wrap around in 8 bits."""
    psnr = PSNR().measure(Sample(ONE, reference=OTHER))
    assert psnr == pytest.approx(-10 * math.log10(1 / 6), abs=0.1)  # E(u - v)^2 of uniform u, v
    assert psnr < 10
    assert abs(SSIM().measure(Sample(ONE, reference=OTHER))) < 0.05


@pytest.mark.parametrize("size", [0.3, 0.01, 1e-4])
def test_psnr_of_noise_is_its_size(size: float) -> None:
    noise = RNG.standard_normal(ONE.shape)
    assert PSNR().measure(Sample(ONE + size * noise, reference=ONE)) == pytest.approx(-20 * math.log10(size), abs=0.1)


def test_latent_error_is_relative_and_takes_tensors() -> None:
    torch = pytest.importorskip("torch")
    metric, latent = LatentError(), RNG.standard_normal((4, 64, 64))

    def error(ours: object, theirs: object) -> float:
        return metric.measure(Sample(None, latent=ours, reference_latent=theirs))

    assert error(latent, latent) == 0.0
    assert error(latent * 1.01, latent) == pytest.approx(0.01)
    assert error(1000 * latent * 1.01, 1000 * latent) == pytest.approx(0.01)
    assert error(RNG.standard_normal(latent.shape), latent) == pytest.approx(math.sqrt(2), rel=0.05)
    halves = torch.from_numpy(latent).to(torch.bfloat16).requires_grad_()
    assert error(halves, latent) == pytest.approx(2**-9, rel=0.5)  # what bfloat16 rounds away
    assert error(np.ones(3), np.zeros(3)) == math.inf
    with pytest.raises(SpecError, match="lacks one"):
        metric.measure(Sample(ONE, latent=latent))
    with pytest.raises(SpecError, match="its reference"):
        error(latent, latent[:2])


def test_frames_are_measured_one_by_one() -> None:
    video = np.stack([ONE] * 4)
    shaken = video.copy()
    shaken[2] = OTHER
    shaken[3] += 0.1
    sample, same = Sample(shaken, reference=video), Sample(video, reference=video.copy())
    lowest = PSNR().measure(Sample(OTHER, reference=ONE))
    assert WorstFramePSNR().measure(sample) == pytest.approx(lowest)
    assert FramePSNR().measure(sample) == pytest.approx((99 + 99 + lowest + 20) / 4)
    assert FramePSNR().measure(same) == WorstFramePSNR().measure(same) == math.inf
    each = [SSIM().measure(Sample(a, reference=b)) for a, b in zip(shaken, video, strict=True)]
    assert FrameSSIM().measure(sample) == pytest.approx(np.mean(each))
    assert WorstFrameSSIM().measure(sample) == pytest.approx(min(each))
    with pytest.raises(MetricError, match="expected a video"):
        FramePSNR().measure(Sample(ONE, reference=ONE))


def test_flicker_sees_what_changes_from_frame_to_frame_and_nothing_else() -> None:
    moving = RNG.random((5, 8, 8, 3))
    assert Flicker().measure(Sample(moving + RNG.random((8, 8, 3)), reference=moving)) == pytest.approx(0, abs=1e-9)
    flash = moving.copy()
    flash[2] += 10 / 255  # in and out: two of the four changes
    assert Flicker().measure(Sample(flash, reference=moving)) == pytest.approx(5.0)
    assert Flicker().measure(Sample(moving[::-1], reference=moving)) > 5.0
    for picture in (ONE, ONE[None]):
        with pytest.raises(MetricError, match="two or more frames"):
            Flicker().measure(Sample(picture, reference=picture))
