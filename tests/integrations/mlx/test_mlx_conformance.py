"""Policies on a network of MLX pass the checks that packages of others run, as they do on every other backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from skipstone import registry
from skipstone.engine.requests import Backbone, Problem
from skipstone.integrations.mlx.backbone import MlxBackbone
from skipstone.integrations.mlx.denoiser import Denoiser
from skipstone.numerics.schedule import Cosine
from skipstone.testing import check_id, policy_checks
from skipstone.testing.policies import PolicySetup

SCHEDULE = Cosine()


class Shrinks(nn.Module):
    """The eps of pictures around a mean that the prompt moves, and a little attention between cells."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 3, padding=1)
        self.mix.weight = 0.05 * mx.random.normal(self.mix.weight.shape, key=mx.random.key(0))
        self.read = nn.Linear(3, 4)
        self.read.weight = mx.random.normal(self.read.weight.shape, key=mx.random.key(1))

    def __call__(self, x: Any, timesteps: Any, words: Any) -> Any:
        angle = 0.5 * np.pi * timesteps[:, None, None, None] / 1000
        alpha, sigma = mx.cos(angle), mx.sin(angle)
        mean = self.read(words)[:, None, None] + mx.tanh(self.mix(x))
        return sigma * (x - alpha * mean) / (sigma * sigma + 0.25 * alpha * alpha)


def call(network: Any, x: Any, timesteps: Any, condition: Mapping[str, Any]) -> Any:
    return network(x, timesteps, condition["words"])


def make_backbone() -> MlxBackbone:
    network = Shrinks()
    return MlxBackbone(Denoiser(lambda: network, call, compiled=False), SCHEDULE, "eps", 2.0)


@dataclass(frozen=True)
class MlxSetup(PolicySetup):
    """The setup of the checks, with arrays and a network of MLX."""

    backbone: Backbone = field(default_factory=make_backbone)

    def problem(self, seed: int = 0, steps: int | None = None, scale: float = 1.0) -> Problem:
        own = super().problem(seed, steps, scale)
        words = mx.array(np.eye(3, dtype=np.float32)[seed % 3])
        cond = {"cond": {"words": words}, "uncond": {"words": mx.zeros((3,))}}
        return replace(own, x=mx.array(own.x.astype(np.float32)), cond=cond)


def is_checked(name: str) -> bool:
    """Whether a policy runs on MLX without files: `refine` reads a map of attention, which networks there lack."""
    policy = registry.parse("policy", name)
    return not policy.network and name not in ("agent", "certified", "refine")


NAMES = [name for name in registry.names("policy") if is_checked(name)]
SETUP = MlxSetup()
CHECKS = [
    pytest.param(check, id=f"{name}-{check_id(check)}")
    for name in NAMES
    for check in policy_checks(registry.parse("policy", name), SETUP)
    if len(check.args) == 2  # those about the policy alone are made without a backbone
]


@pytest.mark.parametrize("check", CHECKS)
def test_policies_conform_on_mlx(check: Any) -> None:
    check()


def test_the_policies_that_save_calls_are_among_them() -> None:
    assert {"third_order", "error_control", "stride", "path", "guidance_gate", "early_stop"} <= set(NAMES)
