"""Metrics against values known on paper and an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from skipstone import registry
from skipstone.errors import MetricError, SpecError
from skipstone.metrics import PSNR, SSIM, Cost, JudgeScore, Sample
from skipstone.metrics.base import worst

RNG = np.random.default_rng(0)
PICTURE = RNG.random((64, 64, 3)).astype(np.float32)
CLOSE = np.clip(PICTURE + 0.05 * RNG.standard_normal(PICTURE.shape), 0, 1).astype(np.float32)


def test_psnr_of_a_known_error() -> None:
    black = np.zeros((8, 8, 3))
    assert PSNR().measure(Sample(black + 0.1, reference=black)) == pytest.approx(20.0)


def test_psnr_sees_what_eight_bits_would_hide() -> None:
    assert 100 < PSNR().measure(Sample(PICTURE + 1e-6, reference=PICTURE)) < math.inf


def test_identical_pictures_are_infinitely_close() -> None:
    sample = Sample(PICTURE, reference=PICTURE.copy())
    assert PSNR().measure(sample) == math.inf
    assert SSIM().measure(sample) == pytest.approx(1.0)


def test_both_agree_with_torchmetrics() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("torchmetrics.functional.image")
    sample = Sample(CLOSE, reference=PICTURE)
    ours, theirs = (torch.from_numpy(a).permute(2, 0, 1)[None].double() for a in (CLOSE, PICTURE))
    psnr = functional.peak_signal_noise_ratio(ours, theirs, data_range=1.0)
    assert PSNR().measure(sample) == pytest.approx(float(psnr), abs=1e-5)
    ssim = functional.structural_similarity_index_measure(ours, theirs, data_range=1.0)
    assert SSIM().measure(sample) == pytest.approx(float(ssim), abs=2e-3)  # they treat the border otherwise


@pytest.mark.parametrize("metric", [PSNR(), SSIM()], ids=lambda m: m.name)
def test_closeness_falls_with_the_error_and_wants_a_fitting_reference(metric: PSNR | SSIM) -> None:
    far = np.clip(PICTURE + 3 * (CLOSE - PICTURE), 0, 1)
    near = metric.measure(Sample(CLOSE, reference=PICTURE))
    assert metric.measure(Sample(far, reference=PICTURE)) < near
    with pytest.raises(SpecError, match="no reference"):
        metric.measure(Sample(PICTURE))
    with pytest.raises(SpecError, match="its reference"):
        metric.measure(Sample(PICTURE, reference=PICTURE[:32]))


def test_cost_and_judge_pass_on_what_the_sample_says() -> None:
    seen = []

    def judge(pixels: np.ndarray, prompt: str) -> float:
        seen.append((pixels, prompt))
        return 0.75

    sample = Sample(PICTURE, "a red apple", 21.5, judge=judge)
    assert Cost().measure(sample) == 21.5
    assert JudgeScore().measure(sample) == 0.75
    assert seen[0][0] is PICTURE
    assert seen[0][1] == "a red apple"
    with pytest.raises(SpecError, match="no judge"):
        JudgeScore().measure(Sample(PICTURE))


def test_worst_follows_the_direction_of_the_metric() -> None:
    assert worst(PSNR(), [30.0, math.inf, 20.0]) == 20.0
    assert worst(Cost(), [10.0, 12.0]) == 12.0


def test_every_metric_is_registered_and_knows_its_direction() -> None:
    assert {"psnr", "ssim", "judge", "cost"} <= set(registry.names("metric"))
    for name in registry.names("metric"):
        assert registry.parse("metric", name).better in ("higher", "lower")


def test_ssim_says_that_a_picture_is_too_small() -> None:
    tiny = np.zeros((8, 8, 3), dtype=np.float32)
    with pytest.raises(MetricError, match="at least 11 x 11"):
        SSIM().measure(Sample(tiny, reference=tiny))
