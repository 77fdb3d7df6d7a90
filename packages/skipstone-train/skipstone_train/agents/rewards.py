"""Rewards: shaping that changes no ranking of policies, and the ranking of constant policies before any training.

The reward itself is `skipstone.evaluation.utility.Utility`, once, at the end of an episode. The rewards that an earlier
project published are in `published_rewards.py`, for study.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from skipstone.errors import SpecError

from .transitions import Behaviour, PolicyScore, constant_behaviour, evaluate

SIGNIFICANCE = 3.0  # standard errors of a paired difference, for it to count


@dataclass(frozen=True)
class Shaping:
    """F = gamma * Phi(s') - Phi(s), Phi being 0 where an episode has ended.

    Over an episode it adds up to -Phi(first state), whatever was done: no ranking of policies changes.

    Args:
        gamma: Discount of the learner, in (0, 1].

    References: Ng, Harada & Russell 1999, Policy invariance under reward transformations.
    """

    gamma: float = 1.0

    def __call__(self, before: Any, after: Any, ended: Any) -> Any:
        """Reward of a step between states of potential `before` and `after`; `after` counts as 0 where `ended`."""
        return self.gamma * np.where(ended, 0.0, after) - before


def cost_potential(price: Any, calls: Any) -> Any:
    """Potential -price * calls: with it, the cost of a call is in the reward of the step that makes it."""
    return -np.asarray(price) * np.asarray(calls)


# -- Ranking of constant policies ----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ConstantPolicyResult:
    """Scores of a constant policy: mean return, utility, quality (dB) and calls; error is the utility's."""

    name: str
    mean_return: float
    utility: float
    error: float
    quality: float
    calls: float
    score: PolicyScore


@dataclass(frozen=True)
class Ranking:
    """Constant policies, that of the highest utility first."""

    rows: tuple[ConstantPolicyResult, ...]

    @property
    def summary(self) -> str:
        """The table, in text."""
        width = max(len(r.name) for r in self.rows)
        head = f"{'policy':{width}}      pay  utility  quality   calls"
        return "\n".join(
            [head]
            + [
                f"{r.name:{width}} {r.mean_return:8.3f} {r.utility:8.3f} {r.quality:8.2f} {r.calls:7.2f}"
                for r in self.rows
            ]
        )

    @property
    def inversions(self) -> tuple[tuple[ConstantPolicyResult, ConstantPolicyResult], ...]:
        """Pairs (better, worse) by utility where the worse has a significantly higher return; largest error first."""
        found = []
        for i, a in enumerate(self.rows):
            for b in self.rows[i + 1 :]:
                if _is_significant(a.score.utilities - b.score.utilities) and _is_significant(
                    b.score.episode_returns - a.score.episode_returns
                ):
                    found.append((a, b))
        return tuple(sorted(found, key=lambda ab: ab[0].mean_return - ab[1].mean_return))

    def check(self) -> None:
        """Raise SpecError where the reward ranks a worse policy above a better one."""
        if self.inversions:
            better, worse = self.inversions[0]
            raise SpecError(
                f"The reward pays {worse.name!r} {worse.mean_return:.3f} and {better.name!r} "
                f"{better.mean_return:.3f}, but their "
                f"utilities are {worse.utility:.3f} and {better.utility:.3f}: an agent would learn the wrong one. "
                f"Pay the utility itself (reward: utility).\n{self.summary}"
            )


def constant_policies(env: Any, episodes: int = 64, seed: int = 0) -> dict[str, Behaviour]:
    """The constant policies of an environment: each action always, and stopping early, midway and late."""
    stops = [a for a in env.actions if a.split()[0] == "stop"]
    found = {f"always {a}": constant_behaviour(env.actions, a) for a in env.actions if a not in stops}
    if stops:
        length = evaluate(env, constant_behaviour(env.actions, "continue"), episodes, seed).lengths.mean()
        for stop, k in itertools.product(stops, (1, 2, 3, 4, 5)):
            name = f"{stop} at {max(1, round(length * k / 6))}"
            found[name] = constant_behaviour(env.actions, name)
    return found


def rank_constant_policies(
    env: Any, episodes: int = 64, seed: int = 0, policies: Mapping[str, Behaviour] | None = None
) -> Ranking:
    """Score constant policies on the same episodes, before any training. `Ranking.check` then checks the reward."""
    rows = []
    for name, behaviour in (policies or constant_policies(env, episodes, seed)).items():
        s = evaluate(env, behaviour, episodes, seed)
        rows.append(
            ConstantPolicyResult(name, float(s.episode_returns.mean()), s.utility, s.error, s.quality, s.calls, s)
        )
    return Ranking(tuple(sorted(rows, key=lambda r: -r.utility)))


def _is_significant(difference: Any) -> bool:
    """Whether the mean of paired differences is above 0 by more than chance."""
    spread = difference.std(ddof=1) / len(difference) ** 0.5 if len(difference) > 1 else 0.0
    return bool(difference.mean() > SIGNIFICANCE * spread + 1e-9)
