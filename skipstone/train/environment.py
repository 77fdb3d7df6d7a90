"""Denoising as a decision process: one more driver of the flow, many samples at once on one model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from ..engine.contracts import Run
from ..engine.drivers import answer
from ..engine.flow import flow
from ..engine.requests import Backbone, Flow, Problem, Result, Solver
from ..errors import SpecError
from ..policies.moves import Guide, Moves, carry, due
from ..policies.sight import Sight
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


@dataclass
class _Slot:
    """One episode on its way."""

    sample: int = 0
    price: float = 1.0
    flow: Flow | None = None
    run: Run | None = None  # at which a decision is due
    drawn: int = 0  # noises so far
    episodes: int = 0


class Environment(VectorEnv[Any, Any, Any]):  # type: ignore[misc]
    """Episodes of denoising, one in each slot; an action decides how far a step goes.

    A slot that has ended begins another sample at once (`AutoresetMode.SAME_STEP`). The sample and the price of a
    slot's j-th episode depend on the seed, the slot and j alone, so that agents can be compared on the same luck.
    The reward is the utility, once, at the end; relative to that of the guide on the same sample, where `baseline` is
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
        self.weights: Floats = np.full(len(pool), 1 / len(pool), np.float32)
        self._slots = [_Slot() for _ in range(slots)]
        self.seed = 0  # of the next reset, where none is given
        self._seed = 0

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

    def weigh(self, weights: Any) -> None:
        """Set the chance of each sample at later draws."""
        weights = np.asarray(weights, np.float64)
        self.weights = (weights / weights.sum()).astype(np.float32)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        self._seed = self.seed if seed is None else seed
        self.seed = self._seed + 1
        self._slots = [_Slot() for _ in range(self.num_envs)]
        waiting = dict.fromkeys(range(self.num_envs))
        for i in waiting:
            self._begin(i)
        self._go(waiting)
        return self._observe(), {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions each slot may take now."""
        return np.array([self.moves.allowed(s.run, self._guide(s)) for s in self._slots if s.run is not None])

    def step(self, actions: Any) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        plans: dict[int, Any] = {}
        for i, (slot, action) in enumerate(zip(self._slots, actions, strict=True)):
            assert slot.run is not None
            if not self.moves.allowed(slot.run, self._guide(slot))[int(action)]:
                raise SpecError(
                    f"Action {self.actions[int(action)]!r} is not allowed in slot {i}: choose one of action_masks()."
                )
            plans[i] = carry(slot.run, self._guide(slot), self.moves, int(action))
        before = self._observe()
        ended = self._go(plans)
        rewards = np.zeros(self.num_envs, np.float32)
        done = np.zeros(self.num_envs, bool)
        info: dict[str, Any] = {}
        if ended:
            final = self._final(ended)
            done[list(ended)] = True
            rewards = np.where(done, final["reward"], 0.0).astype(np.float32)
            mask = done.copy()
            info = {"final_obs": before, "_final_obs": mask, "_final_info": mask}
            info["final_info"] = {**final, **{f"_{name}": mask for name in final}}
        return self._observe(), rewards, done, np.zeros(self.num_envs, bool), info

    def _guide(self, slot: _Slot) -> Guide:
        return min(self.guides, key=lambda g: max(g[0] / slot.price, slot.price / g[0]))[1]

    def _observe(self) -> Floats:
        rows = [self.sight.observe(s.run, self._guide(s), s.price) for s in self._slots if s.run is not None]
        return np.stack(rows)

    def _begin(self, i: int) -> None:
        """The next episode of a slot."""
        slot = self._slots[i]
        if self.every:
            number = i + slot.episodes * self.num_envs
            slot.sample = number % len(self.pool)
            slot.price = self.guides[(number // len(self.pool)) % len(self.guides)][0]
        else:
            rng = np.random.default_rng((self._seed, i, slot.episodes))
            slot.sample = int(
                rng.choice(
                    len(self.pool), p=self.weights.astype(np.float64) / float(self.weights.sum(dtype=np.float64))
                )
            )
            slot.price = self.guides[int(rng.integers(len(self.guides)))][0]
        slot.episodes += 1
        slot.drawn, slot.run = 0, None
        slot.flow = flow(self.pool.problems[slot.sample], self.solver, self.sight.needs, self._sites)

    @property
    def _sites(self) -> frozenset[str]:
        return frozenset({"uncond"}) if "gate" in self.actions else frozenset()

    def _go(self, inbox: Mapping[int, Any]) -> dict[int, tuple[_Slot, Result]]:
        """Send the answers, and go on until every slot is about to decide; the episodes that ended on the way."""
        ended: dict[int, tuple[_Slot, Result]] = {}
        waiting: dict[int, Any] = {}
        inbox = dict(inbox)
        problems = {i: self.pool.problems[s.sample] for i, s in enumerate(self._slots)}
        drawn = {i: s.drawn for i, s in enumerate(self._slots)}
        while inbox:
            for i, said in inbox.items():
                waiting.pop(i, None)
                asked = self._send(i, said, ended)
                problems[i] = self.pool.problems[self._slots[i].sample]
                drawn[i] = self._slots[i].drawn
                if asked is not None:
                    waiting[i] = asked
            inbox = answer(waiting, self.pool.backbone, problems, drawn)
            for i in inbox:
                self._slots[i].drawn = drawn[i]
        return ended

    def _send(self, i: int, said: Any, ended: dict[int, tuple[_Slot, Result]]) -> Any:
        """What a slot asks for next; None where a decision is due."""
        slot = self._slots[i]
        while True:
            assert slot.flow is not None
            try:
                asked = slot.flow.send(said)
            except StopIteration as end:
                ended[i] = (_Slot(slot.sample, slot.price), end.value)
                self._begin(i)
                said = None
                continue
            if not isinstance(asked, Run):
                return asked
            if due(asked):
                slot.run = asked
                return None
            said = carry(asked, self._guide(slot), self.moves)

    def _final(self, ended: Mapping[int, tuple[_Slot, Result]]) -> dict[str, Any]:
        """Figures of the episodes that ended, in arrays of all slots."""
        names = ("quality", "calls", "utility", "reward", "price", "sample")
        final = {name: np.zeros(self.num_envs, np.float64) for name in names}
        for i, (slot, result) in ended.items():
            quality = self.pool.quality(slot.sample, result.x)
            utility = float(replace(self.utility, price=slot.price)(quality, result.run.cost))
            level = [price for price, _ in self.guides].index(slot.price)
            base = 0.0 if self.baseline is None else float(self.baseline[slot.sample, level])
            found = (quality, result.run.cost, utility, utility - base, slot.price, slot.sample)
            for name, value in zip(names, found, strict=True):
                final[name][i] = value
        return final
