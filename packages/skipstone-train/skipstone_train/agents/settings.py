"""Settings of the environment of real trajectories: samples, actions, observations, prices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np

from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.evaluation.utility import Utility
from skipstone.numerics.schedule import Schedule
from skipstone.policies.agent.actions import DEFAULT_ACTIONS, ActionSpace, BaseSchedule
from skipstone.policies.agent.addiffusion_observation import PublishedObservation
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.policies.agent.observation import BLOCKS, NO_IMAGES, Observation
from skipstone.policies.agent.policy import AgentCheckpoint
from skipstone.registry import spell
from skipstone.tuning.grids import even_times

from .environment import Environment
from .episodes import DecisionProcess, DenoisingEnv, SamplePool
from .logged_backbone import RecordedBackbone
from .trajectory_log import TrajectoryLog
from .vectorized_env import SOLVER, VectorizedEnv

Split = Literal["train", "validation"]


@dataclass(frozen=True)
class EnvironmentSettings:
    """The decision process of an agent.

    Args:
        log: Logged trajectories: a file of `skipstone train log`, or the name of a shipped one.
        live: Run on the network that was logged, not on its trajectories: exact, and some 20 times slower.
        share: Of the prompts that are used for validation, in (0, 1); all seeds of a prompt go together.
        guides_from: Base schedules, one for each price: the "logged" ones (searched by
            `skipstone tune`), or "even" steps of the angle, for an agent that has to find the grid by itself.
        prices: Of a call, in dB; episodes draw one. The base schedule of each has the highest mean utility.
        floor, cap: Of quality, in dB, see `Utility`; both finite.
        actions: See `ActionSpace`.
        first: Calls before which a run may not be stopped, 1 to 1000.
        calls: Calls that a run may make, for each call of its base schedule, 1 to 100.
        blocks: Of the observation, see `Observation`; leaving one out is an ablation.
        eyes: The image encoder, where `blocks` need one: "" the model's own, else the folder or id of a CLIP.
        fee: Cost of encoding a picture, in full calls, >= 0; null measures it in multiply-accumulates.
        axes: Directions of the mean text state that are observed: principal components over the training prompts,
            0 to 1000.
        relative: Reward an episode's utility less that of its base schedule on the same sample.
        swapped: Chance that errors of a training episode fade as on another sample, in [0, 1], see `VectorizedEnv`.
        judged: Evaluate the result on the network too: what is best on recorded trajectories may not be best there.

    Raises:
        SpecError: a setting out of range.
    """

    log: str = "pebble"
    live: bool = False
    share: float = 0.25
    guides_from: Literal["logged", "even"] = "even"
    prices: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0)
    floor: float = 10.0
    cap: float = 50.0
    actions: tuple[str, ...] = DEFAULT_ACTIONS
    first: int = 2
    calls: float = 2.0
    blocks: tuple[str, ...] = BLOCKS
    eyes: str = ""
    fee: float | None = None
    axes: int = 8
    relative: bool = True
    swapped: float = 0.5
    judged: bool = True

    def __post_init__(self) -> None:
        sound = self.prices and all(0 < price < math.inf for price in self.prices)
        if not sound or len(set(self.prices)) < len(self.prices):
            raise SpecError(f"prices: expected different prices > 0, in dB a call, got {self.prices}; try 0.5, 1, 2.")
        if self.guides_from not in ("logged", "even"):
            raise SpecError(f"guides_from: expected logged or even, got {self.guides_from!r}.")
        if not 0 < self.share < 1 or not 0 <= self.axes <= 1000 or not 0 <= self.swapped <= 1:
            raise SpecError(
                f"Expected a share in (0, 1), axes >= 0 and at most 1000, and swapped in [0, 1], got {self.share}, "
                f"{self.axes} and {self.swapped}."
            )
        if not (self.first <= 1000 and self.calls <= 100 and 0 <= (self.fee or 0.0) < math.inf):
            raise SpecError(
                f"Expected first <= 1000, calls <= 100 and a fee >= 0, got {self.first}, {self.calls:g} and {self.fee}."
            )
        if not (math.isfinite(self.floor) and math.isfinite(self.cap)):
            raise SpecError(f"Expected a finite floor and cap in dB, got {self.floor} and {self.cap}; try 10 and 50.")
        if Observation(self.blocks).published_blocks and not self.live:
            raise SpecError(
                f"blocks: {', '.join(self.blocks)} need pictures, and recorded runs have nothing to decode. Say "
                f"live: true, which runs on the network that was logged, or leave out the blocks that need pictures."
            )
        _ = self.action_space, Utility(1.0, self.floor, self.cap)

    @cached_property
    def action_space(self) -> ActionSpace:
        """The actions."""
        return ActionSpace(self.actions, self.first, self.calls)

    @cached_property
    def trajectory_log(self) -> TrajectoryLog:
        """The logged trajectories."""
        return TrajectoryLog.load(self.log)

    @cached_property
    def observation(self) -> Observation:
        """The observation; the axes are those of the training prompts alone."""
        train, _ = self.trajectory_log.split(self.share)
        states = np.unique(np.asarray(self.trajectory_log.states, np.float64)[train], axis=0)
        centre = states.mean(0)
        axes = np.linalg.svd(states - centre, full_matrices=False)[2][: self.axes]
        spread = np.maximum(((states - centre) @ axes.T).std(0), 1e-9)
        rows = tuple(tuple(row) for row in (axes / spread[:, None]).round(6).tolist())
        return Observation(self.blocks, tuple(centre.round(6).tolist()), rows, self._published_features)

    @cached_property
    def _published_features(self) -> PublishedObservation:
        from .feature_cost import build_published_observation

        if not Observation(self.blocks).published_blocks:
            return NO_IMAGES
        return build_published_observation(self.model, self.eyes, self.fee)

    @cached_property
    def base_schedules(self) -> tuple[tuple[float, BaseSchedule], ...]:
        """For each price, by falling price, the schedule of the highest mean utility on the training samples.

        Of those within one standard error of it (of paired differences) the one of the fewest calls.
        """
        known, made = self._candidate_schedules
        calls, train = np.array(list(known)), len(made)
        quality = np.clip(made, self.floor, self.cap)
        found = []
        for price in sorted(self.prices, reverse=True):
            utility = quality - price * calls
            lost = utility[:, [utility.mean(0).argmax()]] - utility
            error = lost.std(0) / train**0.5
            best = int(calls[lost.mean(0) <= error].min())  # the fewest calls within one standard error
            found.append((price, known[best]))
        return tuple(found)

    @cached_property
    def _candidate_schedules(self) -> tuple[Mapping[int, BaseSchedule], Any]:
        """Schedules by calls, and (training samples, schedules) their qualities: on the network where it was logged."""
        log = self.trajectory_log
        train, _ = log.split(self.share)
        if self.guides_from == "logged":
            return log.base_schedules, log.made[train]
        known = {n: BaseSchedule(even_times(self._schedule, log.grid[0], n)) for n in log.base_schedules}
        pool = log.pool(train, self._schedule)
        made = [
            run_base_schedules(self._build_env(pool, [(1.0, schedule)], len(train), True, blind=True))["quality"]
            for schedule in known.values()
        ]
        return known, np.stack(made, 1)

    @cached_property
    def model(self) -> Any:
        """The network that was logged, where it is needed."""
        from skipstone.evaluation.models import load_embedded

        return load_embedded(self.trajectory_log.model or "pebble")

    def build(self, split: Split, n: int | None = None, seed: int = 0) -> DenoisingEnv:
        """Episodes of the training or the validation samples.

        Args:
            split: Which.
            n: Slots, >= 1. None is one for each sample and price, gone through once, in order, which is what validation
                wants.
            seed: Of the draws.

        Raises:
            SpecError: a single validation sample.
        """
        pool = self.pool(split)
        if split == "validation" and len(pool) < 2:
            raise SpecError(
                f"share: {self.share:g} of the prompts is one sample for validation, which cannot both select and "
                f"evaluate. Draw more of them, or keep a larger share."
            )
        slots = len(pool) * len(self.prices) if n is None else n
        baseline = self._baseline_utilities(pool) if self.relative else None
        env = self._build_env(pool, self.base_schedules, slots, n is None, baseline)
        if isinstance(env, VectorizedEnv) and split == "train":
            env.swapped = self.swapped
        env.seed = seed
        return env

    def _build_env(
        self,
        pool: SamplePool,
        base_schedules: Sequence[tuple[float, BaseSchedule]],
        slots: int,
        in_order: bool,
        baseline: Any = None,
        blind: bool = False,
    ) -> DenoisingEnv:
        """Episodes of a pool, in a `VectorizedEnv` where it computes the same; `blind` does not observe pictures."""
        solver = self.trajectory_log.build_solver()
        same = (
            isinstance(pool.backbone, RecordedBackbone)
            and spell(solver) == SOLVER
            and not {"gate", "refine"} & {*self.actions}
        )
        observation = Observation(("place",)) if blind else self.observation
        utility = Utility(1.0, self.floor, self.cap)
        process = DecisionProcess(pool, solver, self.action_space, observation, base_schedules, utility, baseline)
        kind = VectorizedEnv if same else Environment
        return kind(process, slots, in_order)

    def build_live_validation(self) -> DenoisingEnv | None:
        """Episodes on the network itself, to evaluate the result there: every other validation sample.

        Each sample at each price, once, in order. None where `judged` is off, or what was trained on is the network.
        """
        if not self.judged or self.live:
            return None
        _, held = self.trajectory_log.split(self.share)
        pool = build_live_pool(self.model, self.trajectory_log, held[1::2])
        return self._build_env(pool, self.base_schedules, len(pool) * len(self.prices), True)

    def pool(self, split: Split) -> SamplePool:
        """The samples."""
        samples = dict(zip(("train", "validation"), self.trajectory_log.split(self.share), strict=True))[split]
        if self.live:
            return build_live_pool(self.model, self.trajectory_log, samples)
        return self.trajectory_log.pool(samples, self._schedule)

    @cached_property
    def _schedule(self) -> Schedule:
        schedule: Schedule = self.model.schedule
        return schedule

    def _baseline_utilities(self, pool: SamplePool) -> Any:
        """(samples, prices) utility of the base schedules, by running them."""
        found = [
            run_base_schedules(self._build_env(pool, [one], len(pool), True, blind=True))["utility"]
            for one in self.base_schedules
        ]
        return np.stack(found, 1).astype(np.float32)

    def agent(self, scorer: ActionScorer, learned: bool, notes: Mapping[str, Any]) -> AgentCheckpoint:
        """The agent with this action scorer; it runs the base schedules where it has not `learned` more."""
        return AgentCheckpoint(
            scorer, self.action_space, self.observation, self.base_schedules, learned, self.trajectory_log.solver, notes
        )


def run_base_schedules(env: DenoisingEnv) -> dict[str, Any]:
    """Figures of the first episode of each slot when every action is to continue: the base schedule itself."""
    go = env.actions.index("continue")
    found: dict[str, Any] = {}
    env.reset(seed=0)
    left = np.ones(env.num_envs, bool)
    while left.any():
        masks = env.action_masks()
        _, _, ended, _, info = env.step(np.where(masks[:, go], go, masks.argmax(1)))
        now = left & ended
        for name, values in info.get("final_info", {}).items():
            if not name.startswith("_"):
                found.setdefault(name, np.zeros(env.num_envs))[now] = values[now]
        left &= ~ended
    return found


def build_live_pool(model: Any, log: TrajectoryLog, samples: Sequence[int]) -> SamplePool:
    """The same samples on the network itself; the references are the ends of the logged runs."""
    problems: list[Problem] = [model.problem(log.prompts[i], log.seeds[i], grid=log.grid) for i in samples]
    ends = [p.x.new_tensor(log.ends[i].astype(np.float32)) for p, i in zip(problems, samples, strict=True)]
    recorded = log.pool(samples, model.schedule)
    return replace(recorded, backbone=model.backbone, problems=problems, ends=ends)
