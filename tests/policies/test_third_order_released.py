"""The preset against an independent transcription of the released control flow, in plain NumPy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Problem
from skipstone.policies import ThirdOrderReleased
from skipstone.solvers import DDIM
from skipstone.testing import letters
from skipstone.testing.backbones.mixture import Mixture

BACKBONE = Mixture()


def alpha_sigma(t: float) -> tuple[float, float]:
    angle = 0.5 * math.pi * (1e-3 + (1 - 2e-3) * t)
    return math.cos(angle), math.sin(angle)


def released(x: np.ndarray, grid: tuple[float, ...], tol: float, cap: int) -> tuple[np.ndarray, list[bool], list[bool]]:
    """The published loop on a whole batch: final batch, which steps called the network, and its mask."""
    latents, differences, mask, called = [], [], [], []
    noise = None
    for t, t_next in itertools.pairwise(grid):
        a, s = alpha_sigma(t)
        warm = len(latents) <= 3
        if warm or mask[-1]:
            noise = (x - a * np.stack([BACKBONE._clean(row, a, s, range(3)) for row in x])) / s
            called.append(True)
        else:
            called.append(False)
        if warm and len(latents) > 1:
            differences.append(np.abs(latents[-1] - latents[-2]).mean())
        a_next, s_next = alpha_sigma(t_next)
        x = a_next * (x - s * noise) / a + s_next * noise
        if len(latents) >= 3:
            now, before, older = np.abs(x - latents[-1]).mean(), differences[-1], differences[-2]
            differences.append(now)
            if len(mask) > 4 and not any(mask[-cap:]):
                mask.append(True)
            else:
                mask.append(bool(abs((now + older) / 2 - before) > tol * before))
        latents.append(x)
    return x, called, mask


@pytest.mark.parametrize("steps", [5, 12, 25, 50])
@pytest.mark.parametrize("tol", [0.0, 0.003, 0.01, 0.03, 1e9])
@pytest.mark.parametrize("cap", [0, 1, 3, 4, 7])
@pytest.mark.parametrize("batch", [1, 3])
def test_decides_and_denoises_as_released(steps: int, tol: float, cap: int, batch: int) -> None:
    x = np.random.default_rng(steps + batch).standard_normal((batch, 4, 6, 6))
    x[0] *= 2.0
    grid = (*(1 - i / steps for i in range(steps)), 0.0)
    final, called, mask = released(x, grid, tol, cap)
    problems = [Problem(BACKBONE.schedule, row, grid) for row in x]
    results = denoise_many(BACKBONE, problems, DDIM(), ThirdOrderReleased(tol, cap))
    for result, expected in zip(results, final, strict=True):
        assert letters(result.run) == "".join("C" if c else "." for c in called)
        assert result.run.cost == 4 + sum(mask[: steps - 4])
        np.testing.assert_allclose(result.x, expected, atol=1e-9)


@pytest.mark.parametrize(
    ("cap", "runs"), [(4, [5, 4, 4, 4]), (1, [5, 1, 1, 1]), (7, [5, 7, 7]), (0, [5])], ids=["4", "1", "7", "0"]
)
def test_the_quirk_of_the_cap(cap: int, runs: list[int]) -> None:
    """Where the criterion always says skip, the first run is 5 long whatever the cap; cap 0 forces one call."""
    x = np.random.default_rng(0).standard_normal((4, 6, 6))
    grid = (*(1 - i / 60 for i in range(60)), 0.0)
    result = denoise_many(BACKBONE, [Problem(BACKBONE.schedule, x, grid)], DDIM(), ThirdOrderReleased(1e9, cap))[0]
    found = [len(part) for part in letters(result.run)[4:].split("C")]
    assert found[: len(runs)] == runs
    if cap == 0:
        assert found == [5, 50]


def test_one_decision_for_the_whole_batch() -> None:
    x = np.random.default_rng(3).standard_normal((3, 4, 6, 6)) * np.array([0.3, 1.0, 3.0])[:, None, None, None]
    grid = (*(1 - i / 50 for i in range(50)), 0.0)
    problems = [Problem(BACKBONE.schedule, row, grid) for row in x]
    together = {letters(r.run) for r in denoise_many(BACKBONE, problems, DDIM(), ThirdOrderReleased())}
    alone = {letters(denoise_many(BACKBONE, [p], DDIM(), ThirdOrderReleased())[0].run) for p in problems}
    assert len(together) == 1
    assert len(alone) > 1
