"""Proximal policy optimisation with masks inside the distribution, by Stable-Baselines3's contrib package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from .base import Learner, Session, check


@dataclass(frozen=True)
class PPO(Learner):
    """Policy gradient: learns from its own episodes, action by action.

    Args:
        hidden: Units of the layers between, tanh; of the policy and of the value.
        rate: Learning rate at the start, falling linearly to `last` of itself.
        start: Lead of "continue" over the other actions at the start, in logits: the first episodes are the fixed
            schedule with a few exceptions. From even chances long runs are never seen, and never learnt.
        last: Share of the learning rate that is left in the end, in [0, 1].
        entropy: Bonus for undecidedness at the start, falling linearly to 0.
        gamma: Discount, in (0, 1]. 1 wants the utility itself.
        trace: lambda of the advantages, in [0, 1].
        clip: Of the ratio of new to old chances.
        kl: Divergence after which an update ends early, > 0.
        epochs: Passes over a rollout.
        batch: Decisions in a minibatch.
        rollout: Decisions of each episode slot between updates.
        rollouts: Between two scores.
        warm: Episodes of random behaviour, from which observations and pay are standardised.

    Raises:
        SpecError: a setting out of range.

    References: Schulman et al. 2017, arXiv 1707.06347; Huang & Ontanon 2020, arXiv 2006.14171 (masks).
    """

    hidden: tuple[int, ...] = (64, 64)
    rate: float = 2e-3
    start: float = 2.0
    last: float = 0.1
    entropy: float = 0.05
    gamma: float = 1.0
    trace: float = 0.97
    clip: float = 0.2
    kl: float = 0.06
    epochs: int = 6
    batch: int = 512
    rollout: int = 16
    rollouts: int = 8
    warm: int = 512
    name: ClassVar[str] = "ppo"

    def __post_init__(self) -> None:
        least = {"epochs": 1, "batch": 2, "rollout": 2, "rollouts": 1, "warm": 1, "entropy": 0}
        check(self, least, ("rate", "clip", "kl", "gamma"), ("last", "trace", "gamma"))

    def begin(self, env: Any, seed: int) -> Session:
        from .sb3 import Maskable

        return Maskable(self, env, seed)
