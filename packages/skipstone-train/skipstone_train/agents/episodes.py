"""Episodes of denoising as a vector environment: what is drawn, what is paid, what is told; not how it is computed."""

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
        ends: Where the converged run of each ends, to be held against.
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


class DenoisingEnv(VectorEnv[Any, Any, Any]):  # type: ignore[misc]
    """Episodes of denoising, one in each slot; an action decides how far a step goes.

    A slot that has ended begins another sample at once (`AutoresetMode.SAME_STEP`). The sample and the price of a
    slot's j-th episode depend on the seed, the slot and j alone, so that agents can be compared on the same luck.
    Calls are those of the network and, in units of them, what looking at pictures costs (`final_info["looks"]`). The
    reward is the utility, once, at the end; relative to that of the guide on the same sample, where `baseline` is
    given: a constant of the episode, which changes no ranking and takes out how hard the sample is.

    Args:
        pool: What is denoised.
        solver: How steps are made.
        moves: Actions.
        sight: Observations; the same code as in use.
        guides: By price, see `policies.agent.Mind`.
        utility: floor and cap of quality; its price is each episode's own.
        slots: Episodes at once, >= 1.
        every: Whether the slots go through all samples and prices in turn, each slot its own, rather than draw them.
        baseline: Utility of the guide: (samples, prices), or None.

    Raises:
        SpecError: fewer than one slot, or no guides.
    """

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def __init__(
        self,
        pool: SamplePool,
        solver: Solver,
        moves: ActionSpace,
        sight: Observation,
        guides: Sequence[tuple[float, BaseSchedule]],
        utility: Utility,
        slots: int,
        in_order: bool = False,
        baseline: FloatArray | None = None,
    ) -> None:
        if slots < 1 or not guides:
            raise SpecError(f"Expected at least one slot and one guide, got {slots} and {len(guides)}.")
        self.pool, self.solver, self.agent_actions, self.observation = pool, solver, moves, sight
        self.base_schedules, self.utility, self.in_order, self.baseline = tuple(guides), utility, in_order, baseline
        self.num_envs = slots
        width, count = len(sight.names), len(moves)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (slots, width), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(count)
        self.action_space = gymnasium.spaces.MultiDiscrete([count] * slots)
        self.seed = 0  # of the next reset, where none is given
        self._seed = 0
        self._num_begun = [0] * slots  # episodes of each slot
        self.set_sample_weights(np.ones(len(pool)))

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
        """The same episodes with nothing looked at, and nothing paid for it: how fixed schedules are to be judged."""
        if not self.observation.published_blocks:
            return self
        sight = replace(self.observation, blocks=("place",))
        given = (self.pool, self.solver, self.agent_actions, sight, self.base_schedules, self.utility, self.num_envs)
        other = type(self)(*given, self.in_order, self.baseline)
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
    looks: float = 0.0  # what was paid for looking, in calls
