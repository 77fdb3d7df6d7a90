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
from skipstone.policies.agent.actions import Guide, Moves
from skipstone.policies.agent.observation import Sight

from .rewards import Utility

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Pool:
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
    complexity: Floats

    def __len__(self) -> int:
        return len(self.problems)

    def quality(self, sample: int, x: Any) -> float:
        """PSNR to the converged run, in dB; -inf of a sample that is not finite."""
        error = float(((x - self.ends[sample]) ** 2).mean()) ** 0.5
        return 20.0 * math.log10(self.peak / max(error, 1e-9)) if math.isfinite(error) else -math.inf


class Episodes(VectorEnv[Any, Any, Any]):  # type: ignore[misc]
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
        pool: Pool,
        solver: Solver,
        moves: Moves,
        sight: Sight,
        guides: Sequence[tuple[float, Guide]],
        utility: Utility,
        slots: int,
        every: bool = False,
        baseline: Floats | None = None,
    ) -> None:
        if slots < 1 or not guides:
            raise SpecError(f"Expected at least one slot and one guide, got {slots} and {len(guides)}.")
        self.pool, self.solver, self.moves, self.sight = pool, solver, moves, sight
        self.guides, self.utility, self.every, self.baseline = tuple(guides), utility, every, baseline
        self.num_envs = slots
        width, count = len(sight.names), len(moves)
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (slots, width), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(count)
        self.action_space = gymnasium.spaces.MultiDiscrete([count] * slots)
        self.seed = 0  # of the next reset, where none is given
        self._seed = 0
        self._begun = [0] * slots  # episodes of each slot
        self.weigh(np.ones(len(pool)))

    @property
    def actions(self) -> tuple[str, ...]:
        """Names of the actions."""
        return self.moves.names

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the entries of an observation."""
        return self.sight.names

    @property
    def complexity(self) -> Floats:
        """Of each sample's prompt."""
        return self.pool.complexity

    @property
    def blind(self) -> Episodes:
        """The same episodes with nothing looked at, and nothing paid for it: how fixed schedules are to be judged."""
        if not self.sight.looking:
            return self
        sight = replace(self.sight, blocks=("place",))
        given = (self.pool, self.solver, self.moves, sight, self.guides, self.utility, self.num_envs)
        other = type(self)(*given, self.every, self.baseline)
        other.seed, other._shares = self.seed, self._shares
        return other

    def weigh(self, weights: Any) -> None:
        """Set the chance of each sample at later draws."""
        shares = np.asarray(weights, np.float64)
        self._shares = np.cumsum(shares / shares.sum())

    def _reseed(self, seed: int | None) -> None:
        self._seed = self.seed if seed is None else seed
        self.seed = self._seed + 1
        self._begun = [0] * self.num_envs

    def _drawn(self, slot: int) -> tuple[int, int]:
        """Sample and price (by number) of the next episode of a slot."""
        k = self._begun[slot]
        self._begun[slot] += 1
        if self.every:
            number = slot + k * self.num_envs
            return number % len(self.pool), (number // len(self.pool)) % len(self.guides)
        first, second = np.random.default_rng((self._seed, slot, k)).random(2)
        sample = int(np.searchsorted(self._shares, first, side="right"))
        return min(sample, len(self.pool) - 1), int(second * len(self.guides))

    def _check(self, actions: Any, masks: NDArray[np.bool_]) -> None:
        for slot, (action, mask) in enumerate(zip(actions, masks, strict=True)):
            if not mask[int(action)]:
                raise SpecError(
                    f"Action {self.actions[int(action)]!r} is not allowed in slot {slot}: choose one of action_masks()."
                )

    def _told(self, before: Floats, ended: Sequence[Ended]) -> tuple[Floats, NDArray[np.bool_], dict[str, Any]]:
        """Rewards, ends and infos of a step."""
        rewards, done = np.zeros(self.num_envs, np.float32), np.zeros(self.num_envs, bool)
        if not ended:
            return rewards, done, {}
        names = ("quality", "calls", "looks", "utility", "reward", "price", "sample")
        final: dict[str, Any] = {name: np.zeros(self.num_envs) for name in names}
        for e in ended:
            price = self.guides[e.level][0]
            utility = float(replace(self.utility, price=price)(e.quality, e.calls + e.looks))
            base = 0.0 if self.baseline is None else float(self.baseline[e.sample, e.level])
            found = (e.quality, e.calls, e.looks, utility, utility - base, price, e.sample)
            for name, value in zip(names, found, strict=True):
                final[name][e.slot] = value
            rewards[e.slot], done[e.slot] = utility - base, True
        mask = done.copy()
        final |= {f"_{name}": mask for name in names}
        return rewards, done, {"final_obs": before, "_final_obs": mask, "final_info": final, "_final_info": mask}


@dataclass(frozen=True)
class Ended:
    """An episode that has ended."""

    slot: int
    sample: int
    level: int
    quality: float
    calls: float
    looks: float = 0.0  # what was paid for looking, in calls
