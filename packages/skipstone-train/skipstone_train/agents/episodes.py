"""Episodes of denoising as a vector environment: samples, rewards and infos; subclasses compute the steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from skipstone.engine.requests import Backbone, Problem, Solver
from skipstone.errors import SpecError
from skipstone.evaluation.utility import Utility
from skipstone.policies.agent.actions import ActionSpace, BaseSchedule
from skipstone.policies.agent.observation import Observation

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SamplePool:
    """Samples that episodes are made of, on one model.

    Args:
        backbone: Of all of them: a network, or recorded runs.
        problems: One for each sample.
        ends: Latents of the converged run of each, the reference of its quality.
        peak: Of the latent, so that -20 log10(rms / peak) is about the PSNR of the picture, in dB.
        names: Of the samples, prompt and seed.
        complexity: Of the prompts, any unit.
    """

    backbone: Backbone
    problems: Sequence[Problem]
    ends: Sequence[Any]
    peak: float
    names: Sequence[str]
    complexity: FloatArray

    def __len__(self) -> int:
        return len(self.problems)

    def quality(self, sample: int, x: Any) -> float:
        """PSNR to the converged run, in dB; -inf of a sample that is not finite."""
        error = float(((x - self.ends[sample]) ** 2).mean()) ** 0.5
        return 20.0 * math.log10(self.peak / max(error, 1e-9)) if math.isfinite(error) else -math.inf


@dataclass(frozen=True, eq=False)
class DecisionProcess:
    """What the decisions of an episode are about.

    Args:
        pool: The samples.
        solver: How steps are made.
        action_space: The actions.
        observation: What an agent sees, by the same code as in use.
        base_schedules: By price, see `skipstone.policies.agent.policy.AgentCheckpoint`.
        utility: `floor` and `cap` of quality; its price is replaced by each episode's own.
        baseline: Utility of the base schedules, (samples, prices): rewards are relative to it. None is 0.

    Raises:
        SpecError: no base schedules.
    """

    pool: SamplePool
    solver: Solver
    action_space: ActionSpace
    observation: Observation
    base_schedules: Sequence[tuple[float, BaseSchedule]]
    utility: Utility
    baseline: FloatArray | None = None

    def __post_init__(self) -> None:
        if not self.base_schedules:
            raise SpecError("Expected at least one base schedule, got none.")


class DenoisingEnv(VectorEnv[Any, Any, Any]):  # type: ignore[misc]
    """Episodes of denoising, one in each slot; an action decides how far a step goes.

    A slot whose episode has ended begins another sample at once (`AutoresetMode.SAME_STEP`). The sample and the price
    of a slot's j-th episode depend on the seed, the slot and j alone, so that agents are compared on the same samples.
    Calls are those of the network and, in units of them, what feature extraction costs (`final_info["looks"]`). The
    reward is the utility, once, at the end, less the baseline of the sample and price, where one is given: a constant
    of the episode, which changes no ranking and takes out how hard the sample is.

    Args:
        process: What is decided.
        slots: Episodes at once, >= 1.
        in_order: Whether the slots go through all samples and prices in turn, each slot its own, rather than draw them.

    Raises:
        SpecError: fewer than one slot.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(self, process: DecisionProcess, slots: int, in_order: bool = False) -> None:
        if slots < 1:
            raise SpecError(f"Expected at least one slot, got {slots}.")
        self.pool, self.solver, self.utility, self.baseline = (
            process.pool, process.solver, process.utility, process.baseline
        )  # fmt: skip
        self.agent_actions, self.observation = process.action_space, process.observation
        self.base_schedules, self.in_order = tuple(process.base_schedules), in_order
        self.num_envs = slots
        width, count = len(self.observation.names), len(self.agent_actions)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (slots, width), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(count)
        self.action_space = gymnasium.spaces.MultiDiscrete([count] * slots)
        self.seed = 0  # of the next reset, where none is given
        self._seed = 0
        self._num_begun = [0] * slots  # episodes of each slot
        self.set_sample_weights(np.ones(len(self.pool)))

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions."""
        return self.agent_actions.names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries of an observation."""
        return self.observation.names

    @property
    def complexity(self) -> FloatArray:
        """Of each sample's prompt."""
        return self.pool.complexity

    @property
    def blind(self) -> DenoisingEnv:
        """The same episodes without observing pictures, and without its cost: fixed schedules are evaluated here."""
        if not self.observation.published_blocks:
            return self
        observation = replace(self.observation, blocks=("place",))
        process = DecisionProcess(
            self.pool, self.solver, self.agent_actions, observation, self.base_schedules, self.utility, self.baseline
        )
        other = type(self)(process, self.num_envs, self.in_order)
        other.seed, other._cumulative_weights = self.seed, self._cumulative_weights
        return other

    def set_sample_weights(self, weights: Any) -> None:
        """Set the chance of each sample at later draws."""
        shares = np.asarray(weights, np.float64)
        self._cumulative_weights = np.cumsum(shares / shares.sum())

    def _reseed(self, seed: int | None) -> None:
        self._seed = self.seed if seed is None else seed
        self.seed = self._seed + 1
        self._num_begun = [0] * self.num_envs

    def _next_sample(self, slot: int) -> tuple[int, int]:
        """Sample and price (by number) of the next episode of a slot."""
        k = self._num_begun[slot]
        self._num_begun[slot] += 1
        if self.in_order:
            number = slot + k * self.num_envs
            return number % len(self.pool), (number // len(self.pool)) % len(self.base_schedules)
        first, second = np.random.default_rng((self._seed, slot, k)).random(2)
        sample = int(np.searchsorted(self._cumulative_weights, first, side="right"))
        return min(sample, len(self.pool) - 1), int(second * len(self.base_schedules))

    def _check(self, actions: Any, masks: NDArray[np.bool_]) -> None:
        for slot, (action, mask) in enumerate(zip(actions, masks, strict=True)):
            if not mask[int(action)]:
                raise SpecError(
                    f"Action {self.actions[int(action)]!r} is not allowed in slot {slot}: choose one of action_masks()."
                )

    def _finish_step(
        self, before: FloatArray, ended: Sequence[EpisodeResult]
    ) -> tuple[FloatArray, NDArray[np.bool_], dict[str, Any]]:
        """Rewards, ends and infos of a step."""
        rewards, done = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        if not ended:
            return rewards, done, {}
        names = ("quality", "calls", "looks", "utility", "reward", "price", "sample")
        final: dict[str, Any] = {name: np.zeros(self.num_envs) for name in names}
        for e in ended:
            price = self.base_schedules[e.price_index][0]
            utility = float(replace(self.utility, price=price)(e.quality, e.calls + e.looks))
            base = 0.0 if self.baseline is None else float(self.baseline[e.sample, e.price_index])
            found = (e.quality, e.calls, e.looks, utility, utility - base, price, e.sample)
            for name, value in zip(names, found, strict=True):
                final[name][e.slot] = value
            rewards[e.slot], done[e.slot] = utility - base, True
        mask = done.copy()
        final |= {f"_{name}": mask for name in names}
        return rewards, done, {"final_obs": before, "_final_obs": mask, "final_info": final, "_final_info": mask}


@dataclass(frozen=True)
class EpisodeResult:
    """An episode that has ended."""

    slot: int
    sample: int
    price_index: int
    quality: float
    calls: float
    looks: float = 0.0  # cost of feature extraction, in calls
