"""Settings of proximal policy optimisation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PPOSettings:
    """How `PPO` learns.

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
