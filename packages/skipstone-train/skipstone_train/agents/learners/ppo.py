"""Proximal policy optimisation with masks inside the distribution, by Stable-Baselines3's contrib package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Learner, TrainingSession, check_settings
from .ppo_settings import PPOSettings


@dataclass(frozen=True)
class PPO(PPOSettings, Learner):
    """Policy gradient: learns from its own episodes, action by action.

    Args:
        See `PPOSettings`.

    Raises:
        SpecError: a setting out of range.

    References: Schulman et al. 2017, arXiv 1707.06347; Huang & Ontanon 2020, arXiv 2006.14171 (masks).
    """

    name: ClassVar[str] = "ppo"

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch": 2, "rollout": 2, "rollouts": 1, "warm": 1, "entropy": 0}
        check_settings(self, least, ("rate", "clip", "kl", "gamma"), ("last", "trace", "gamma"))

    def begin(self, env: Any, seed: int) -> TrainingSession:
        from .sb3 import PPOSession

        return PPOSession(self, env, seed)
