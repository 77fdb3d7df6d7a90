"""A picture that gets better by a known curve, to compare the best policies of the published rewards and of ours.

Actions, warm-up, charges and observation of step and calls are those of AdDiffusion; scores follow one saturating
curve, and a refine gains nothing, as its authors measured. All is deterministic, so that the best policy is exact.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from skipstone.errors import SpecError
from skipstone.evaluation.utility import Utility

from .published_rewards import PRESETS, Baseline, RewardWeights, StepScores, final_reward, step_reward

ACTIONS = ("continue", "stop", "refine")
SCORES_OF_NOISE, SCORES_OF_PICTURE = (
    (0.10, 3.5, -2.0),
    (0.30, 5.5, 0.5),
)  # CLIP, aesthetic and ImageReward of noise and of the picture
SHORT_RUN_PROGRESS = 0.9  # of the way, where a run of 20 steps ends
REFINE_CALLS = 2
WARMUP_STEPS = 3  # steps that are continued, whatever is wanted


@dataclass(frozen=True)
class SurrogateSettings:
    """The surrogate; `SurrogateEnv(settings, n)` is its environment.

    The clean estimate after step i has the share q(i) = 1 - exp(-(i + 1) / pace) of the way to the picture, and is
    worth 10 + 30 q dB; it is as like the one before as 0.95 min(1, 2 q).

    Args:
        reward: "absolute", "additive" or "multiplicative" as published, or "utility": ours.
        steps: Of the grid, 4 to 10,000.
        pace: Steps in which the picture comes to 63 %, > 0.
        price: Of a call for ours, in dB.
        entropy: Of the attention, which the published rewards give for a refine.
        weights: Of a published reward; None takes its own.
    """

    reward: str = "utility"
    steps: int = 50
    pace: float = 8.0
    price: float = 0.2
    entropy: float = 0.97
    weights: RewardWeights | None = None

    def __post_init__(self) -> None:
        sound = WARMUP_STEPS < self.steps <= 10_000 and 0 < self.pace < math.inf
        sound = sound and math.isfinite(self.price) and math.isfinite(self.entropy)
        if self.reward not in (*PRESETS, "utility") or not sound:
            raise SpecError(
                f"Expected reward utility, {', '.join(PRESETS)}, steps > {WARMUP_STEPS} and at most 10,000, pace > 0, "
                f"and finite numbers, got {self!r}."
            )

    def build(self, split: str = "train", n: int | None = None, seed: int = 0) -> SurrogateEnv:
        """The environment; all of its episodes are alike."""
        return SurrogateEnv(self, 16 if n is None else n)

    def progress(self, step: int) -> float:
        """q after the step of this number."""
        return 1 - math.exp(-(step + 1) / self.pace)

    def step_scores(self, step: int, action: str) -> StepScores:
        """What a step leaves."""
        q = self.progress(step)
        clip, aesthetic, preference = (a + q * (b - a) for a, b in zip(SCORES_OF_NOISE, SCORES_OF_PICTURE, strict=True))
        calls = 1 + REFINE_CALLS if action == "refine" else 1
        return StepScores(action, calls, clip, aesthetic, preference, 0.95 * min(1.0, 2 * q), self.entropy)

    @functools.cached_property
    def baseline(self) -> Baseline:
        """Of a fixed run of 20 steps, which comes 90 % of the way, and of all steps."""
        clip, aesthetic, preference = (
            a + SHORT_RUN_PROGRESS * (b - a) for a, b in zip(SCORES_OF_NOISE, SCORES_OF_PICTURE, strict=True)
        )
        return Baseline((clip, aesthetic, preference), self.step_scores(self.steps - 1, "continue").scores)

    def quality(self, step: int) -> float:
        """In dB, of the picture finished at this step."""
        return 10 + 30 * self.progress(step)

    def reward_for(self, step: int, before: str, calls: int, action: str) -> tuple[float, bool]:
        """Reward of an action at a step, `calls` having been made before, and whether it ends the episode."""
        now = self.step_scores(step, action)
        total, ended = calls + now.calls, action == "stop" or step == self.steps - 1
        if self.reward == "utility":
            return (float(Utility(self.price)(self.quality(step), total)) if ended else 0.0), ended
        kind: Any = self.reward
        weights = self.weights or PRESETS[kind]
        paid = step_reward(self.step_scores(step - 1, before) if step else None, now, weights)
        return (paid + final_reward(now, total, weights, kind, self.baseline, self.steps) if ended else paid), ended

    def optimum(self) -> tuple[float, tuple[str, ...]]:
        """The highest return there is, and the actions that earn it: exactly, by dynamic programming."""

        @functools.cache
        def value(step: int, calls: int) -> tuple[float, str]:
            options = []
            for action in ACTIONS if step >= WARMUP_STEPS else ACTIONS[:1]:
                paid, ended = self.reward_for(
                    step, "continue", calls, action
                )  # scores do not depend on what was done before
                made = 1 + REFINE_CALLS if action == "refine" else 1
                options.append((paid + (0.0 if ended else value(step + 1, calls + made)[0]), action))
            return max(options, key=lambda o: o[0])

        actions: list[str] = []
        step, calls = 0, 0
        while True:
            action = value(step, calls)[1]
            actions.append(action)
            if self.reward_for(step, "continue", calls, action)[1]:
                return value(0, 0)[0], tuple(actions)
            step, calls = step + 1, calls + (1 + REFINE_CALLS if action == "refine" else 1)


class SurrogateEnv(VectorEnv[Any, Any, Any]):  # type: ignore[misc]  # gymnasium's types are not followed
    """`n` episodes of the surrogate side by side; `final_info` has our utility, whatever the reward is."""

    def __init__(self, settings: SurrogateSettings, n: int = 16) -> None:
        self.settings, self.num_envs = settings, n
        self.actions, self.names = ACTIONS, ("progress", "calls")
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(len(ACTIONS))
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, n)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, n)
        self._step_index, self._calls = np.zeros(n, int), np.zeros(n, int)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin all episodes anew."""
        self._step_index, self._calls = np.zeros(self.num_envs, int), np.zeros(self.num_envs, int)
        return self._observations(), {}

    def action_masks(self) -> Any:
        """(n, actions) true where allowed: only "continue" in the warm-up."""
        masks = np.ones((self.num_envs, len(ACTIONS)), bool)
        masks[self._step_index < WARMUP_STEPS, 1:] = False
        return masks

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One decision of each episode."""
        own, n = self.settings, self.num_envs
        rewards, ended = np.zeros(n), np.zeros(n, bool)
        final = {k: np.zeros(n) for k in ("quality", "calls", "utility", "sample")}
        last = np.full(n, None, object)
        for i, action in enumerate(np.asarray(actions).tolist()):
            rewards[i], ended[i] = own.reward_for(self._step_index[i], "continue", self._calls[i], ACTIONS[action])
            self._calls[i] += 1 + REFINE_CALLS if ACTIONS[action] == "refine" else 1
            if ended[i]:
                quality = own.quality(self._step_index[i])
                utility = float(Utility(own.price)(quality, self._calls[i]))
                for key, found in zip(final, (quality, self._calls[i], utility, 0), strict=True):
                    final[key][i] = found
                last[i] = self._observations()[i]
            self._step_index[i] += 1
        self._step_index[ended] = self._calls[ended] = 0
        infos: dict[str, Any] = {}
        if ended.any():
            marked = final | {f"_{k}": ended.copy() for k in final}
            infos = {"final_obs": last, "_final_obs": ended.copy(), "final_info": marked, "_final_info": ended.copy()}
        return self._observations(), rewards, ended, np.zeros(n, bool), infos

    def _observations(self) -> Any:
        return np.stack([self._step_index / self.settings.steps, self._calls / self.settings.steps], 1).astype(
            np.float32
        )
