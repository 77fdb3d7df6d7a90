"""Dynamic thresholding: the numbers of diffusers, on every array library, as a filter of a run."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.numerics.threshold import DynamicThreshold
from skipstone.policies.fixed import Fixed
from skipstone.solvers.ddim import DDIM
from skipstone.testing.backbones.mixture import Mixture

PICTURES = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype("float32") * np.float32(1.4)
PICTURES[3] *= np.float32(0.1)  # one that needs none


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("limit", [1.0, 1.5, 100.0])
def test_parity_with_diffusers(quantile: float, limit: float) -> None:
    scheduler = diffusers.DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=quantile, sample_max_value=limit, clip_sample=False
    )
    theirs = scheduler._threshold_sample(torch.from_numpy(PICTURES))
    threshold = DynamicThreshold(quantile, limit)
    ours = torch.stack([threshold(picture) for picture in torch.from_numpy(PICTURES)])
    assert torch.allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_every_library_agrees(dtype: str) -> None:
    mx = pytest.importorskip("mlx.core")
    picture = PICTURES[0].astype(dtype)
    expected = DynamicThreshold()(picture.astype("float64"))
    arrays: list[Any] = [picture, torch.from_numpy(picture)]
    if dtype != "float64":  # which MLX has on no accelerator
        arrays.append(mx.array(picture))
    for array in arrays:
        out = DynamicThreshold()(array)
        assert type(out) is type(array)
        assert out.dtype == array.dtype
        assert np.allclose(np.asarray(out.tolist()), expected, atol=2e-3 if dtype == "float16" else 1e-5)


def test_bfloat16_is_kept() -> None:
    assert DynamicThreshold()(torch.from_numpy(PICTURES[0]).bfloat16()).dtype == torch.bfloat16


def test_a_quiet_picture_is_left_alone_and_a_loud_one_fills_the_range() -> None:
    quiet, loud = DynamicThreshold()(PICTURES[3]), DynamicThreshold()(PICTURES[0])
    assert np.array_equal(quiet, PICTURES[3])
    assert abs(loud).max() == 1.0
    assert (abs(loud) == 1.0).sum() == 1  # of 192: the values above the 99.5th percentile


def test_as_a_filter_every_estimate_is_thresholded() -> None:
    loud = Mixture(means=(-3.0, 3.0), stds=(0.5, 0.5), weights=(0.5, 0.5))
    x = np.random.default_rng(1).standard_normal((3, 8, 8))
    problem = Problem(loud.schedule, x, (1.0, 0.75, 0.5, 0.25, 0.0))
    bare = denoise(loud, problem, DDIM(), Fixed()).x
    kept = denoise(loud, replace(problem, x0_filter=DynamicThreshold()), DDIM(), Fixed()).x
    assert abs(bare).max() > 2.0
    assert abs(kept).max() <= 1.01  # sigma at the end of the cosine schedule is 1.6e-3


@pytest.mark.parametrize("settings", [{"quantile": 0.0}, {"quantile": 1.5}, {"limit": 0.5}])
def test_settings_out_of_range(settings: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="quantile in"):
        DynamicThreshold(**settings)
