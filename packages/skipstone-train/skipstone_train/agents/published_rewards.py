"""The three rewards that AdDiffusion published, with their constants: for study, not for training.

Each rewards changes of scores and charges calls per step, and rewards the picture at the end; they differ at the end.
`additive` and `multiplicative` also reward refining. The surrogate in `surrogate.py` shows what goes wrong.

References: github.com/d3v-26/addiffusion, rewards of February, April 8 and April 28, 2026, with the repairs of May 7.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

SCALES = (0.05, 0.3, 0.2)  # of changes of CLIP, aesthetic and ImageReward scores in a step
MIN_SCORE_RANGE = 1e-6
FULL_RUN_CALLS = 50  # calls of the full run


@dataclass(frozen=True)
class RewardWeights:
    """Weights of a published reward, in the order of its paper: alpha 1..4, c_nfe, beta 1..3, c_save, c_refine."""

    clip: float
    aesthetic: float
    likeness: float
    preference: float
    calls: float
    end_clip: float
    end_aesthetic: float
    end_preference: float
    saved: float = 0.0
    refine: float = 0.0


RESEARCH = RewardWeights(1.0, 0.5, 0.2, 0.8, 0.01, 2.0, 1.0, 1.5)
OPTUNA = RewardWeights(2.977, 1.430, 0.791, 0.870, 0.01355, 3.105, 1.349, 0.643)
ADDITIVE = RewardWeights(2.977, 1.430, 0.791, 0.870, 0.01355, 3.105, 1.349, 0.643, 1.0, 0.2)
MULTIPLICATIVE = RewardWeights(0.5, 0.3, 0.0, 0.4, 0.02, 1.0, 0.4, 0.6, 1.5, 0.2)


@dataclass(frozen=True)
class StepScores:
    """One step of an episode: what was done, and the scores of the clean estimate after it.

    Args:
        action: What was done: continue, stop or refine.
        calls: Made by it: 1, and 1 + 2 to refine.
        clip, aesthetic, preference: CLIP cosine, LAION aesthetic, ImageReward.
        likeness: DINO cosine to the estimate of the step before, in [0, 1].
        entropy: Of the attention, in [0, 1]; see `entropy`.
    """

    action: str
    calls: int
    clip: float
    aesthetic: float
    preference: float
    likeness: float = 0.0
    entropy: float = 0.0

    @property
    def scores(self) -> tuple[float, float, float]:
        """CLIP, aesthetic, ImageReward."""
        return self.clip, self.aesthetic, self.preference


@dataclass(frozen=True)
class Baseline:
    """Scores of the same prompt's fixed runs of 20 and of 50 steps, which are 0 and 1 of its scale."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]


FALLBACK = Baseline((0.0, 0.0, -2.0), (1.0, 10.0, 2.0))  # of a prompt without one, since May 7
Rewards: TypeAlias = tuple[float, ...]
RewardVariant: TypeAlias = Literal["absolute", "additive", "multiplicative"]
PRESETS: dict[RewardVariant, RewardWeights] = {
    "absolute": OPTUNA,
    "additive": ADDITIVE,
    "multiplicative": MULTIPLICATIVE,
}


def step_reward(before: StepScores | None, now: StepScores, weights: RewardWeights) -> float:
    """R of one step: quality and calls, and the bonus of a refine. Quality is not paid for at the first step."""
    paid = -weights.calls * now.calls + (weights.refine * now.entropy if now.action == "refine" else 0.0)
    if before is None:
        return paid
    change = [(b - a) / scale for a, b, scale in zip(before.scores, now.scores, SCALES, strict=True)]
    kinds = (weights.clip, weights.aesthetic, weights.preference)
    return paid + weights.likeness * now.likeness + sum(w * d for w, d in zip(kinds, change, strict=True))


def final_reward(
    last: StepScores,
    calls: int,
    weights: RewardWeights,
    kind: RewardVariant,
    baseline: Baseline | None,
    most: int = FULL_RUN_CALLS,
) -> float:
    """R of the finished picture.

    absolute: sum beta s. additive: sum beta (s - low) / max(high - low, 1e-6) + c_save (most - calls) / most; where the
    prompt has no baseline, sum beta s takes the place of the sum. multiplicative: sum beta (s - low) / (high - low),
    scores with high - low <= 1e-6 left out, times 1 + c_save max(0, (most - calls) / most).
    """
    betas = (weights.end_clip, weights.end_aesthetic, weights.end_preference)
    saved = (most - calls) / most
    if kind == "absolute" or (kind == "additive" and baseline is None):
        total = sum(b * s for b, s in zip(betas, last.scores, strict=True))
        return total if kind == "absolute" else total + weights.saved * saved
    fixed = baseline or FALLBACK
    rows = list(zip(betas, last.scores, fixed.low, fixed.high, strict=True))
    if kind == "additive":
        return sum(b * (s - low) / max(high - low, MIN_SCORE_RANGE) for b, s, low, high in rows) + weights.saved * saved
    quality = sum(b * (s - low) / (high - low) for b, s, low, high in rows if high - low > MIN_SCORE_RANGE)
    return quality * (1 + weights.saved * max(0.0, saved))


def episode_rewards(
    records: Sequence[StepScores],
    kind: RewardVariant,
    baseline: Baseline | None = None,
    weights: RewardWeights | None = None,
    most: int = FULL_RUN_CALLS,
) -> Rewards:
    """The reward of each step of a finished episode; the last includes that of the picture."""
    own = weights or PRESETS[kind]
    steps = [step_reward(a, b, own) for a, b in zip((None, *records[:-1]), records, strict=True)]
    steps[-1] += final_reward(records[-1], sum(r.calls for r in records), own, kind, baseline, most)
    return tuple(steps)


def entropy(attention: Any) -> float:
    """Normalised entropy of a map over its places, in [0, 1]: 1 where it is even.

    Summed over all tokens of a softmax, a map is even whatever the picture: the bonus is then a constant.
    """
    p = np.asarray(attention, float).ravel()
    p = p / p.sum()
    p = p[p > 0]
    return float(-(p * np.log(p)).sum() / math.log(max(2, np.size(attention))))
