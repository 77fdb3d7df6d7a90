"""PPO of Stable-Baselines3 as a search: an episode is one candidate."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from skipstone.tuning.evaluator import Evaluator

from ..agents.learners.scaling import temporary_seed

ROLLOUT = 8  # candidates between two updates
EPOCHS, RATE, ENTROPY = 10, 0.05, 0.01
SCALE = 10.0  # dB that are a reward of 1
ENDLESS = 10**9  # steps: the evaluator ends the search


class CandidateEnv(gymnasium.Env[Any, Any]):  # type: ignore[misc]  # gymnasium's types are not followed
    """Episodes of one step: the action is a value for each dimension, the reward the candidate's objective.

    One setting is searched for all prompts, so that there is nothing to observe and nothing to do after the first
    step. (The vectorised environment of `skipstone train agent` is another task: decisions for each sample along its
    run, on recorded runs, whose cost is not counted in calls of the network.)

    Args:
        evaluator: Answers.
    """

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gymnasium.spaces.MultiDiscrete([len(one.values) for one in evaluator.space.dimensions])
        self._zero = evaluator.objective(evaluator.trials[0]) if evaluator.trials else 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        space = self.evaluator.space
        point = {one.name: int(value) for one, value in zip(space.dimensions, action, strict=True)}
        trial = self.evaluator.ask(space.restricted(point))
        reward = (self.evaluator.objective(trial) - self._zero) / SCALE
        return np.ones(1, np.float32), reward, True, False, {}


def ppo(evaluator: Evaluator, seed: int) -> None:
    """PPO on `CandidateEnv`: a table of chances for each dimension, moved by the candidates' objectives.

    References: Schulman et al. 2017, arXiv 1707.06347; Raffin et al. 2021, Stable-Baselines3.
    """
    from stable_baselines3 import PPO

    with temporary_seed(seed):
        model = PPO(
            "MlpPolicy",
            CandidateEnv(evaluator),
            n_steps=ROLLOUT,
            batch_size=ROLLOUT,
            n_epochs=EPOCHS,
            learning_rate=RATE,
            ent_coef=ENTROPY,
            policy_kwargs={"net_arch": []},
            seed=seed,
            device="cpu",
        )
        model.learn(ENDLESS)
