"""The same decision process on logged trajectories, all slots in one array program: some thirty times as fast.

What `Environment` computes there by the engine, sample by sample, with `adams(of='x0')`: tests check that the two are
equal, observation by observation. Learners need a million decisions and train here; results are evaluated there, and on
the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipstone.errors import SpecError
from skipstone.policies.agent.actions import PLACES_PER_STEP
from skipstone.policies.agent.observation import BLOCKS, HISTORY_LENGTH, ObservationBatch, grid_angle, path_curvature
from skipstone.registry import spell
from skipstone.solvers.adams import clean_weights, correction_share

from .episodes import DecisionProcess, DenoisingEnv, EpisodeResult, FloatArray
from .logged_backbone import RecordedBackbone

SOLVER = "adams(of='x0')"
WINDOW_LENGTH = HISTORY_LENGTH + 2


class VectorizedEnv(DenoisingEnv):
    """Episodes on recorded runs, many at once.

    Args:
        swapped: Chance that in an episode errors fade as on another sample than its own, in [0, 1]: how they do depends
            on their direction, which recorded runs do not know, and an agent should not count on more than that.

    Raises:
        SpecError: another backbone, solver or kind of action than it computes.
    """

    def __init__(self, process: DecisionProcess, slots: int, in_order: bool = False, *, swapped: float = 0.0) -> None:
        super().__init__(process, slots, in_order)
        self.swapped = swapped
        if not isinstance(self.pool.backbone, RecordedBackbone) or spell(self.solver) != SOLVER:
            raise SpecError(f"VectorizedEnv runs {SOLVER} on logged trajectories; run others in `Environment`.")
        if wrong := [name for name in self.actions if name in ("gate", "refine")]:
            raise SpecError(f"VectorizedEnv has no action {wrong[0]}: leave it out, or run `Environment`.")
        if self.observation.published_blocks:
            raise SpecError(
                f"Recorded runs have no pictures, and "
                f"{', '.join(sorted(self.observation.published_blocks))} need them: say live: "
                f"true, which runs on the network, or use the blocks {', '.join(BLOCKS)} alone."
            )
        runs, n = self.pool.backbone, self.num_envs
        own = np.array([p.cond for p in self.pool.problems])
        longest = max(len(schedule.places) for _, schedule in self.base_schedules)
        self._lengths = np.array(self.agent_actions.lengths)
        self._steps = np.array([schedule.steps for _, schedule in self.base_schedules])
        self._places = np.array([len(schedule.places) for _, schedule in self.base_schedules])
        self._prices = np.array([price for price, _ in self.base_schedules])
        self._angles, self._observed_angles = (np.zeros((len(self.base_schedules), longest)) for _ in range(2))
        grid = self.pool.problems[0].grid
        clocks = tuple(runs.schedule.clock(t) for t in grid)
        width = runs.runs.z.shape[1]
        self._v = np.zeros((len(self.base_schedules), longest, len(own), width), np.float32)
        self._z, self._error_gain = (
            np.zeros_like(self._v),
            np.zeros((len(self.base_schedules), longest, len(own)), np.float32),
        )
        for g, (_, schedule) in enumerate(self.base_schedules):
            for k, t in enumerate(schedule.places):
                self._angles[g, k], self._observed_angles[g, k] = runs.schedule.angle(t), grid_angle(grid, clocks, t)
                v, z, fade = runs.at(t)
                self._v[g, k], self._z[g, k], self._error_gain[g, k] = v[own], z[own], fade[own]
        self._ends = np.stack(list(self.pool.ends))
        self._prompts = np.array([p.prompt for p in self.pool.problems])
        self._start = np.stack([p.x for p in self.pool.problems])
        self.sample, self.price_index, self.place_index, self.calls, self.remaining_steps = (
            np.zeros(n, int) for _ in range(5)
        )
        self.error_sample = np.zeros(n, int)  # the sample as whose errors fade
        self.z = np.zeros((n, width), np.float32)
        self.added = np.zeros_like(self.z)  # what the predictor added to arrive here
        self.x0_history, self.v_history = (np.zeros((n, 3, width), np.float32) for _ in range(2))  # newest first
        self.angle_history, self.observed_angle_history, self.linear_errors, self.repeat_errors = (
            np.full((n, WINDOW_LENGTH), np.nan) for _ in range(4)
        )
        self.accumulated_error = np.zeros(n)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        self._reseed(seed)
        self._begin(np.arange(self.num_envs))
        return self._observe(), {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions each slot may take now."""
        left = self._places[self.price_index] - 1 - self.place_index
        return self.agent_actions.action_masks(left, self.calls, self._steps[self.price_index])  # type: ignore[no-any-return]

    def step(self, actions: Any) -> tuple[FloatArray, FloatArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        actions = np.asarray(actions, int)
        masks = self.action_masks()
        if not masks[np.arange(self.num_envs), actions].all():
            self._check(actions, masks)
        before, lengths = self._observe(), self._lengths[actions]
        self.remaining_steps = np.where(lengths < 0, -lengths - 1, 0)
        self._take_step(np.arange(self.num_envs), np.where(lengths < 0, self._even_step_length(-lengths), lengths))
        while len(going := np.flatnonzero((self.remaining_steps > 0) & ~self._is_done)):
            share = self._even_step_length(np.maximum(self.remaining_steps, 1))
            self.remaining_steps[going] -= 1
            self._take_step(going, share)
        over = np.flatnonzero(self._is_done)
        rewards, done, info = self._finish_step(before, [self._episode_result(int(i)) for i in over])
        if len(over):
            self._begin(over)
        return self._observe(), rewards, done, np.zeros(self.num_envs, bool), info

    @property
    def _is_done(self) -> NDArray[np.bool_]:
        return self.place_index >= self._places[self.price_index] - 1

    def _even_step_length(self, steps: Any) -> Any:
        """Places of one of so many even steps to the end."""
        return -(-(self._places[self.price_index] - 1 - self.place_index) // steps)

    def _observe(self) -> FloatArray:
        last = self._places[self.price_index] - 1
        ahead = self._observed_angles[self.price_index, np.minimum(self.place_index + PLACES_PER_STEP, last)]
        price = self._prices[self.price_index]
        seen = ObservationBatch(
            self.place_index,
            last + 1,
            self.calls,
            price,
            self.observed_angle_history,
            self.linear_errors,
            self.repeat_errors,
            ahead,
            self.accumulated_error,
            self._prompts[self.sample],
        )
        return np.asarray(self.observation.features(seen), np.float32)

    def _begin(self, slots: Any) -> None:
        for i in slots:
            self.sample[i], self.price_index[i] = self._next_sample(int(i))
            self.error_sample[i] = self._draw_error_sample(int(i)) if self.swapped else self.sample[i]
        self.place_index[slots] = self.calls[slots] = self.remaining_steps[slots] = 0
        self.accumulated_error[slots] = 0.0
        self.z[slots] = self._start[self.sample[slots]]
        for values in (self.angle_history, self.observed_angle_history, self.linear_errors, self.repeat_errors):
            values[slots] = np.nan
        self._call_network(slots)

    def _draw_error_sample(self, slot: int) -> int:
        """The sample as whose errors fade in the episode that begins."""
        rng = np.random.default_rng((self._seed, slot, self._num_begun[slot], 1))
        return int(rng.integers(len(self.pool))) if rng.random() < self.swapped else int(self.sample[slot])

    def _call_network(self, slots: Any) -> None:
        """Ask the runs where these slots are, and note what the answer shows."""
        g, k, s = self.price_index[slots], self.place_index[slots], self.sample[slots]
        here = self._angles[g, k]
        z = self.z[slots]
        v = self._v[g, k, s] + self._error_gain[g, k, self.error_sample[slots]][:, None] * (z - self._z[g, k, s])
        before = self.angle_history[slots]
        last = _rms(v - self.v_history[slots, 0])
        slope = ((here - before[:, 0]) / (before[:, 0] - before[:, 1]))[:, None]
        line = _rms(v - self.v_history[slots, 0] - slope * (self.v_history[slots, 0] - self.v_history[slots, 1]))
        calls = self.calls[slots]
        for values, new in (
            (self.angle_history, here),
            (self.observed_angle_history, self._observed_angles[g, k]),
            (self.linear_errors, np.where(calls >= 2, line, np.nan)),
            (self.repeat_errors, np.where(calls >= 1, last, np.nan)),
        ):
            values[slots] = np.concatenate([new[:, None], values[slots, :-1]], 1)
        clean = np.cos(here)[:, None] * z - np.sin(here)[:, None] * v
        for kept, now in ((self.v_history, v), (self.x0_history, clean)):
            kept[slots] = np.concatenate([now[:, None], kept[slots, :-1]], 1)
        self.calls[slots] += 1
        spoilt = path_curvature(
            self.observed_angle_history[slots], self.linear_errors[slots], self.repeat_errors[slots], 0
        )
        spoilt = (spoilt * (self.observed_angle_history[slots, 1] - self.observed_angle_history[slots, 0]) ** 3) ** 2
        self.accumulated_error[slots] += np.nan_to_num(spoilt)

    def _take_step(self, slots: Any, lengths: Any) -> None:
        """Take a step of so many places, and call where it leads."""
        g = self.price_index[slots]
        there = np.minimum(self.place_index + lengths, self._places[self.price_index] - 1)[slots]
        start, end = self.angle_history[slots, 0], self._angles[g, there]
        cleans, seen, calls = self.x0_history[slots], self.angle_history[slots], self.calls[slots]
        correction = (
            self._integrate_polynomial(cleans, seen, np.minimum(calls, 3), seen[:, 1], start) - self.added[slots]
        )
        correction[calls < 2] = 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            shrunk = (self.z[slots] + correction) * (np.sin(end) / np.sin(start))[:, None]
        kept = correction * np.array([correction_share(u) for u in start])[:, None]
        added = self._predictor_increment(cleans, seen, calls, start, end)
        self.added[slots] = added
        self.z[slots] = np.where((end > 0)[:, None], shrunk, kept) + added
        self.place_index[slots] = there
        on = ~self._is_done[slots]
        if on.any():
            self._call_network(slots[on])

    def _predictor_increment(self, cleans: Any, seen: Any, calls: Any, start: Any, end: Any) -> Any:
        """What the predictor adds from the last call to an angle, see `adams.predictor`."""
        constant = self._integrate_polynomial(cleans, seen, np.ones(len(calls), int), start, end)
        linear = self._integrate_polynomial(cleans, seen, np.minimum(calls, 2), start, end)
        here, last, before = (cleans[:, k] for k in range(3))
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (end - seen[:, 1]) / (seen[:, 0] - seen[:, 2])
            stretch = ((seen[:, 0] - seen[:, 1]) / (seen[:, 1] - seen[:, 2]))[:, None]
            wrong, change = here - last, last - before
            a, b = _rms(wrong) ** 2, _rms(wrong - change * stretch) ** 2
            trust = np.where(calls >= 3, a / (a + b * r * r + 1e-20), 0.0)
        return constant + (linear - constant) * trust[:, None]

    def _integrate_polynomial(self, cleans: Any, seen: Any, nodes: Any, start: Any, end: Any) -> Any:
        """Integral from angle to angle of the polynomial through the last so many clean estimates."""
        weights = np.zeros((len(nodes), 3), np.float32)
        for i, (count, a, b) in enumerate(zip(nodes.tolist(), start.tolist(), end.tolist(), strict=True)):
            if not math.isnan(a):
                angles = tuple(seen[i, :count][::-1].tolist())
                weights[i, :count] = clean_weights(angles, a, b)[::-1]
        return np.einsum("nk,nkd->nd", weights, np.where(weights[:, :, None] == 0, 0, cleans))

    def _episode_result(self, i: int) -> EpisodeResult:
        quality = self.pool.quality(self.sample[i], self.z[i])
        return EpisodeResult(i, int(self.sample[i]), int(self.price_index[i]), quality, float(self.calls[i]))


def _rms(a: Any) -> Any:
    return np.sqrt((a * a).mean(-1))
