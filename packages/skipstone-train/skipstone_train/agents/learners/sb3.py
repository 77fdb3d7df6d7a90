"""Our environments as Stable-Baselines3 sees them, and its maskable PPO as a session of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from sb3_contrib import MaskablePPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from skipstone.policies.agent.checkpoint import ActionScorer

from .ppo_settings import PPOSettings
from .scaling import StandardScaler, temporary_seed

LOGGED_METRICS = ("approx_kl", "clip_fraction", "entropy_loss", "explained_variance", "value_loss")


class VecEnvAdapter(VecEnv):  # type: ignore[misc]  # its types are not followed
    """A gymnasium `VectorEnv` with masks, as a `VecEnv`; observations and rewards standardised.

    The mean return is subtracted at the end of an episode: a constant that changes no policy's rank.
    """

    def __init__(self, env: Any, standard: StandardScaler) -> None:
        self.env, self.standard, self.next_seed = env, standard, 0
        size = (len(env.names),)
        super().__init__(
            env.num_envs,
            gymnasium.spaces.Box(-np.inf, np.inf, size, np.float32),
            gymnasium.spaces.Discrete(len(env.actions)),
        )
        self._empty_info: dict[str, Any] = {}

    def reset(self) -> Any:
        observations, _ = self.env.reset(seed=self.next_seed)
        return self.standard(observations)

    def step_async(self, actions: Any) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        done = np.asarray(terminated) | np.asarray(truncated)
        paid = (np.asarray(rewards, float) - np.where(done, self.standard.shift, 0.0)) / self.standard.scale
        slot_infos = [self._empty_info] * self.num_envs
        for i in np.flatnonzero(np.asarray(truncated) & ~np.asarray(terminated)):
            last = self.standard(np.asarray(infos["final_obs"][i], np.float32))
            slot_infos[i] = {"TimeLimit.truncated": True, "terminal_observation": last}
        return self.standard(observations), paid.astype(np.float32), done, slot_infos

    def action_masks(self) -> Any:
        """(n, actions) of the observation just given."""
        return self.env.action_masks()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return list(getattr(self, method_name)(*args, **kwargs))  # the masks, a row for each episode

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        return [None if attr_name == "render_mode" else getattr(self, attr_name)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        return [False] * self.num_envs

    def close(self) -> None:
        pass


class PPOSession:
    """PPO under way."""

    def __init__(self, settings: PPOSettings, env: Any, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.standard = StandardScaler.of(env, settings.warm, seed)
        self.adapter = VecEnvAdapter(env, self.standard)
        size = settings.rollout * env.num_envs
        with temporary_seed(seed, 2):
            self.model = MaskablePPO(
                "MlpPolicy",
                self.adapter,
                n_steps=settings.rollout,
                batch_size=min(settings.batch, size),
                n_epochs=settings.epochs,
                gamma=settings.gamma,
                gae_lambda=settings.trace,
                clip_range=settings.clip,
                target_kl=settings.kl,
                policy_kwargs={"net_arch": list(settings.hidden)},
                seed=None,
                device="cpu",
            )
        if "continue" in env.actions:
            self.model.policy.action_net.bias.data[env.actions.index("continue")] += settings.start
        self.model.set_logger(Logger(folder=None, output_formats=[]))

    def action_scorer(self) -> ActionScorer:
        """The policy network, the standardisation before it."""
        return export_policy(self.model.policy, self.standard)

    def advance(self, index: int, share: float) -> Mapping[str, float]:
        own, model = self.settings, self.model
        model.lr_schedule = FloatSchedule(own.rate * (1 - (1 - own.last) * min(1.0, share)))
        model.ent_coef = own.entropy * (1 - min(1.0, share))
        self.adapter.next_seed = int(np.random.SeedSequence((self.seed, 3, index)).generate_state(1)[0])
        with temporary_seed(self.seed, 4, index):
            model.set_env(self.adapter, force_reset=True)
            model.learn(
                own.rollouts * own.rollout * self.adapter.num_envs, reset_num_timesteps=False, log_interval=10**9
            )
        values = model.logger.name_to_value
        return {f"ppo/{k}": float(values[f"train/{k}"]) for k in LOGGED_METRICS if f"train/{k}" in values}

    def state_dict(self) -> dict[str, Any]:
        """Parameters and optimiser."""
        return {"parameters": self.model.get_parameters(), "timesteps": self.model.num_timesteps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.model.set_parameters(dict(state["parameters"]))
        self.model.num_timesteps = state["timesteps"]


def export_policy(policy: Any, standard: StandardScaler) -> ActionScorer:
    """A policy of Stable-Baselines3 (tanh between its layers) as an action scorer: it makes the same choices."""
    linear = [m for m in policy.mlp_extractor.policy_net if hasattr(m, "weight")] + [policy.action_net]
    arrays: Sequence[Any] = [(m.weight.detach().numpy().copy(), m.bias.detach().numpy().copy()) for m in linear]
    return ActionScorer(standard.centre, standard.spread, tuple(arrays), "tanh")
