"""Videos are given to judges, and to metrics that take frames, as frames; to others as one tall picture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skipstone.calibration.scores import PictureMeasure
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.pixels import as_read_by
from skipstone.evaluation.prompts import Prompt
from skipstone.evaluation.references import EvaluationSample, References, RunOutput
from skipstone.evaluation.subject import GeneratedSample
from skipstone.metrics import LPIPS, PSNR, SSIM, Flicker, FramePSNR, JudgeScore, Sample
from skipstone_bench.runner import BenchRunner

FULL = parse_column("fixed @ ddim / trailing / 10", None, None, 10)
VIDEO = np.random.default_rng(0).random((3, 12, 16, 3))


@pytest.mark.parametrize("metric", [JudgeScore(), LPIPS(), FramePSNR(), Flicker()])
def test_what_takes_frames_is_given_frames(metric: Any) -> None:
    assert as_read_by(metric, Sample(VIDEO, reference=VIDEO)).pixels.shape == (3, 12, 16, 3)


def test_others_are_given_one_tall_picture() -> None:
    read = as_read_by(SSIM(), Sample(VIDEO, reference=VIDEO))
    assert read.pixels.shape == read.reference.shape == (36, 16, 3)
    assert (read.pixels[12:24] == VIDEO[1]).all()
    assert as_read_by(SSIM(), Sample(VIDEO)).reference is None


def test_the_bench_measures_videos_by_their_frames(tmp_path: Path) -> None:
    judged: list[tuple[int, ...]] = []

    def judge(pixels: Any, prompt: str) -> float:
        judged.append(pixels.shape)
        return 0.5

    subject: Any = SimpleNamespace(judge=judge)
    runner = BenchRunner(
        subject, References(tmp_path, FULL, ()), {"psnr": PSNR(), "frame_psnr": FramePSNR()}, {"judge": JudgeScore()}
    )
    sample = EvaluationSample(Prompt("p", "a ghost moving left"), 0)
    moved = RunOutput(np.clip(VIDEO + 0.1, 0, 1), None)
    found = runner.values(moved, sample, GeneratedSample(None, None, 5.0, 10.0), {"full": RunOutput(VIDEO, None)})
    assert set(found) == {"judge", "psnr_full", "frame_psnr_full"}
    assert 19.9 < found["frame_psnr_full"] < 25
    assert judged == [(3, 12, 16, 3)]


def test_a_users_function_is_given_frames_in_a_calibration() -> None:
    subject: Any = SimpleNamespace(judge=None, is_video=True)
    assert PictureMeasure.of("mine", subject, lambda a, b: float(a.shape == b.shape == (3, 12, 16, 3))).takes_frames
    assert PictureMeasure.of("frame_psnr", subject).takes_frames
    assert not PictureMeasure.of("psnr", subject).takes_frames
