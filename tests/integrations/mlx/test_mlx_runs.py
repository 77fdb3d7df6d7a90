"""Whole runs of the models that ship, on MLX and on torch from one noise: latents, every decision, half precision.

Guidance 1, which is half the rows; `benchmarks/mlx_parity.md` has all policies on both models, more prompts, guidance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import numpy as np

import skipstone
from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Result
from skipstone.testing import compare_decisions
from skipstone_pebble.model import Pebble

PROMPT, STEPS = "a cat on a red background", 50
PATH = "path(times='0.95 0.85 0.7 0.55 0.4 0.2 0.05')"
POLICIES = {"pebble": ("third_order", "error_control", "stride", PATH), "pebble-dit": ("third_order", PATH)}
LATENTS = 1e-3  # of the largest value, after all steps
DECIBELS = 35.0  # of half precision


@dataclass(frozen=True)
class Runs:
    """Runs on MLX and on torch by policy, and what they are decoded by."""

    pipe: Any
    pebble: Any
    ours: dict[str, Result]
    theirs: dict[str, Result]


def run(model: Any, specs: tuple[str, ...]) -> dict[str, Result]:
    """One run under each policy; those of one solver in one batch."""
    policies = {spec: registry.parse("policy", spec) for spec in specs}
    found: dict[str, Result] = {}
    for solver in {policy.solver or "unipc" for policy in policies.values()}:
        some = [spec for spec, policy in policies.items() if (policy.solver or "unipc") == solver]
        problems = [model.problem(PROMPT, 0, STEPS)] * len(some)
        chosen = [policies[spec] for spec in some]
        found |= dict(
            zip(some, denoise_many(model.backbone, problems, registry.parse("solver", solver), chosen), strict=True)
        )
    return found


@cache
def runs(model: str) -> Runs:
    pipe, pebble = skipstone.mlx.load(model, dtype="float32", guidance=1.0), Pebble.load(model, 1.0)
    return Runs(pipe, pebble, run(pipe, POLICIES[model]), run(pebble, POLICIES[model]))


@pytest.mark.parametrize(("model", "spec"), [(model, spec) for model in POLICIES for spec in POLICIES[model]])
def test_a_run_of_fifty_steps_is_that_of_torch(model: str, spec: str) -> None:
    """Every decision is equal, or lies within 1e-4 of its threshold: then runs part, and are not compared further."""
    found = runs(model)
    ours, theirs = found.ours[spec], found.theirs[spec]
    compared = compare_decisions(registry.parse("policy", spec), [theirs], [ours])
    assert compared.agree
    if compared.tie:
        print(f"{model}, {spec}: a tie at attempt {compared.at}.")
        return
    assert ours.run.cost == theirs.run.cost
    x = theirs.x.numpy()
    assert np.abs(np.array(ours.x) - x).max() <= LATENTS * np.abs(x).max()
    assert [a.t_next for a in ours.run.attempts] == [a.t_next for a in theirs.run.attempts]


@pytest.mark.parametrize("model", POLICIES)
def test_pictures_are_those_of_torch(model: str) -> None:
    found = runs(model)
    (ours,) = found.pipe.decode([found.ours["third_order"].x])
    (theirs,) = found.pebble.decode([found.theirs["third_order"].x])
    assert ours.shape == theirs.shape == (64, 64, 3)
    assert np.abs(ours - theirs).max() <= 1e-3


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_draws_the_picture(dtype: str) -> None:
    found = runs("pebble")
    half = skipstone.mlx.load("pebble", dtype=dtype, guidance=1.0)
    made = run(half, (PATH,))[PATH]
    (exact,), (picture,) = found.pipe.decode([found.ours[PATH].x]), half.decode([made.x])
    assert 0 < ((picture - exact) ** 2).mean() <= 10 ** (-DECIBELS / 10)
