"""The same decision process on logged trajectories, all slots in one array program: some thirty times as fast.

What `Environment` computes there by the engine, sample by sample, with `adams(of='x0')`: the tests hold the two equal,
observation by observation. Learners that need a million decisions learn here; whatever they learn is judged there, and
on the network.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipstone.errors import SpecError
from skipstone.policies.agent.actions import PARTS
from skipstone.policies.agent.observation import BLOCKS, LOOKS, View, angle, bend
from skipstone.registry import spell
from skipstone.solvers.adams import clean_weights, lasting

from .episodes import Ended, Episodes, Floats
from .logged_backbone import Logged

SOLVER = "adams(of='x0')"
SEEN = LOOKS + 2


class Twin(Episodes):
    """Episodes on recorded runs, many at once.

    Args:
        swapped: Chance that in an episode errors fade as on another sample than its own, in [0, 1]: how they do depends
            on their direction, which recorded runs do not know, and an agent should not count on more than that.

    Raises:
        SpecError: another backbone, solver or kind of action than it computes.
    """

    def __init__(self, *args: Any, swapped: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.swapped = swapped
        if not isinstance(self.pool.backbone, Logged) or spell(self.solver) != SOLVER:
            raise SpecError(f"The twin runs {SOLVER} on logged trajectories; run others in `Environment`.")
        if wrong := [name for name in self.actions if name in ("gate", "refine")]:
            raise SpecError(f"The twin knows no {wrong[0]}: leave the action out, or run `Environment`.")
        if self.sight.looking:
            raise SpecError(
                f"Recorded runs have no pictures to look at, and {', '.join(sorted(self.sight.looking))} do: say live: "
                f"true, which runs on the network, or see {', '.join(BLOCKS)} alone."
            )
        runs, n = self.pool.backbone, self.num_envs
        own = np.array([p.cond for p in self.pool.problems])
        longest = max(len(guide.places) for _, guide in self.guides)
        self._lengths = np.array(self.moves.lengths)
        self._steps = np.array([guide.steps for _, guide in self.guides])
        self._places = np.array([len(guide.places) for _, guide in self.guides])
        self._prices = np.array([price for price, _ in self.guides])
        self._angles, self._told_angles = (np.zeros((len(self.guides), longest)) for _ in range(2))
        grid = self.pool.problems[0].grid
        clocks = tuple(runs.schedule.clock(t) for t in grid)
        width = runs.runs.z.shape[1]
        self._v = np.zeros((len(self.guides), longest, len(own), width), np.float32)
        self._z, self._bend = np.zeros_like(self._v), np.zeros((len(self.guides), longest, len(own)), np.float32)
        for g, (_, guide) in enumerate(self.guides):
            for k, t in enumerate(guide.places):
                self._angles[g, k], self._told_angles[g, k] = runs.schedule.angle(t), angle(grid, clocks, t)
                v, z, fade = runs.at(t)
                self._v[g, k], self._z[g, k], self._bend[g, k] = v[own], z[own], fade[own]
        self._ends = np.stack(list(self.pool.ends))
        self._prompts = np.array([p.prompt for p in self.pool.problems])
        self._start = np.stack([p.x for p in self.pool.problems])
        self.sample, self.level, self.place, self.calls, self.rest = (np.zeros(n, int) for _ in range(5))
        self.fading = np.zeros(n, int)  # the sample as whose errors fade
        self.z = np.zeros((n, width), np.float32)
        self.added = np.zeros_like(self.z)  # what the predictor added to arrive here
        self.cleans, self.vs = (np.zeros((n, 3, width), np.float32) for _ in range(2))  # newest first
        self.exact, self.seen, self.lines, self.lasts = (np.full((n, SEEN), np.nan) for _ in range(4))
        self.made = np.zeros(n)

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        self._reseed(seed)
        self._begin(np.arange(self.num_envs))
        return self._observe(), {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions each slot may take now."""
        left = self._places[self.level] - 1 - self.place
        return self.moves.masks(left, self.calls, self._steps[self.level])  # type: ignore[no-any-return]

    def step(self, actions: Any) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        actions = np.asarray(actions, int)
        masks = self.action_masks()
        if not masks[np.arange(self.num_envs), actions].all():
            self._check(actions, masks)
        before, lengths = self._observe(), self._lengths[actions]
        self.rest = np.where(lengths < 0, -lengths - 1, 0)
        self._land(np.arange(self.num_envs), np.where(lengths < 0, self._share(-lengths), lengths))
        while len(going := np.flatnonzero((self.rest > 0) & ~self._over)):
            share = self._share(np.maximum(self.rest, 1))
            self.rest[going] -= 1
            self._land(going, share)
        over = np.flatnonzero(self._over)
        rewards, done, info = self._told(before, [self._ended(int(i)) for i in over])
        if len(over):
            self._begin(over)
        return self._observe(), rewards, done, np.zeros(self.num_envs, bool), info

    @property
    def _over(self) -> NDArray[np.bool_]:
        return self.place >= self._places[self.level] - 1

    def _share(self, steps: Any) -> Any:
        """Places of one of so many even steps to the end."""
        return -(-(self._places[self.level] - 1 - self.place) // steps)

    def _observe(self) -> Floats:
        last = self._places[self.level] - 1
        ahead = self._told_angles[self.level, np.minimum(self.place + PARTS, last)]
        price = self._prices[self.level]
        seen = View(
            self.place, last + 1, self.calls, price, self.seen, self.lines, self.lasts, ahead, self.made,
            self._prompts[self.sample],
        )  # fmt: skip
        return np.asarray(self.sight.features(seen), np.float32)

    def _begin(self, slots: Any) -> None:
        for i in slots:
            self.sample[i], self.level[i] = self._drawn(int(i))
            self.fading[i] = self._other(int(i)) if self.swapped else self.sample[i]
        self.place[slots] = self.calls[slots] = self.rest[slots] = 0
        self.made[slots] = 0.0
        self.z[slots] = self._start[self.sample[slots]]
        for values in (self.exact, self.seen, self.lines, self.lasts):
            values[slots] = np.nan
        self._call(slots)

    def _other(self, slot: int) -> int:
        """The sample as whose errors fade in the episode that begins."""
        rng = np.random.default_rng((self._seed, slot, self._begun[slot], 1))
        return int(rng.integers(len(self.pool))) if rng.random() < self.swapped else int(self.sample[slot])

    def _call(self, slots: Any) -> None:
        """Ask the runs where these slots are, and note what the answer shows."""
        g, k, s = self.level[slots], self.place[slots], self.sample[slots]
        here = self._angles[g, k]
        z = self.z[slots]
        v = self._v[g, k, s] + self._bend[g, k, self.fading[slots]][:, None] * (z - self._z[g, k, s])
        before = self.exact[slots]
        last = _rms(v - self.vs[slots, 0])
        slope = ((here - before[:, 0]) / (before[:, 0] - before[:, 1]))[:, None]
        line = _rms(v - self.vs[slots, 0] - slope * (self.vs[slots, 0] - self.vs[slots, 1]))
        calls = self.calls[slots]
        for values, new in (
            (self.exact, here),
            (self.seen, self._told_angles[g, k]),
            (self.lines, np.where(calls >= 2, line, np.nan)),
            (self.lasts, np.where(calls >= 1, last, np.nan)),
        ):
            values[slots] = np.concatenate([new[:, None], values[slots, :-1]], 1)
        clean = np.cos(here)[:, None] * z - np.sin(here)[:, None] * v
        for kept, now in ((self.vs, v), (self.cleans, clean)):
            kept[slots] = np.concatenate([now[:, None], kept[slots, :-1]], 1)
        self.calls[slots] += 1
        spoilt = bend(self.seen[slots], self.lines[slots], self.lasts[slots], 0)
        spoilt = (spoilt * (self.seen[slots, 1] - self.seen[slots, 0]) ** 3) ** 2
        self.made[slots] += np.nan_to_num(spoilt)

    def _land(self, slots: Any, lengths: Any) -> None:
        """Take a step of so many places, and call where it leads."""
        g = self.level[slots]
        there = np.minimum(self.place + lengths, self._places[self.level] - 1)[slots]
        start, end = self.exact[slots, 0], self._angles[g, there]
        cleans, seen, calls = self.cleans[slots], self.exact[slots], self.calls[slots]
        correction = self._weighed(cleans, seen, np.minimum(calls, 3), seen[:, 1], start) - self.added[slots]
        correction[calls < 2] = 0.0
        with np.errstate(invalid="ignore", divide="ignore"):
            shrunk = (self.z[slots] + correction) * (np.sin(end) / np.sin(start))[:, None]
        kept = correction * np.array([lasting(u) for u in start])[:, None]
        added = self._predicted(cleans, seen, calls, start, end)
        self.added[slots] = added
        self.z[slots] = np.where((end > 0)[:, None], shrunk, kept) + added
        self.place[slots] = there
        on = ~self._over[slots]
        if on.any():
            self._call(slots[on])

    def _predicted(self, cleans: Any, seen: Any, calls: Any, start: Any, end: Any) -> Any:
        """What the predictor adds from the last call to an angle, see `adams.predictor`."""
        constant = self._weighed(cleans, seen, np.ones(len(calls), int), start, end)
        linear = self._weighed(cleans, seen, np.minimum(calls, 2), start, end)
        here, last, before = (cleans[:, k] for k in range(3))
        with np.errstate(invalid="ignore", divide="ignore"):
            r = (end - seen[:, 1]) / (seen[:, 0] - seen[:, 2])
            stretch = ((seen[:, 0] - seen[:, 1]) / (seen[:, 1] - seen[:, 2]))[:, None]
            wrong, change = here - last, last - before
            a, b = _rms(wrong) ** 2, _rms(wrong - change * stretch) ** 2
            trust = np.where(calls >= 3, a / (a + b * r * r + 1e-20), 0.0)
        return constant + (linear - constant) * trust[:, None]

    def _weighed(self, cleans: Any, seen: Any, nodes: Any, start: Any, end: Any) -> Any:
        """Integral from angle to angle of the polynomial through the last so many clean estimates."""
        weights = np.zeros((len(nodes), 3), np.float32)
        for i, (count, a, b) in enumerate(zip(nodes.tolist(), start.tolist(), end.tolist(), strict=True)):
            if not math.isnan(a):
                angles = tuple(seen[i, :count][::-1].tolist())
                weights[i, :count] = clean_weights(angles, a, b)[::-1]
        return np.einsum("nk,nkd->nd", weights, np.where(weights[:, :, None] == 0, 0, cleans))

    def _ended(self, i: int) -> Ended:
        quality = self.pool.quality(self.sample[i], self.z[i])
        return Ended(i, int(self.sample[i]), int(self.level[i]), quality, float(self.calls[i]))


def _rms(a: Any) -> Any:
    return np.sqrt((a * a).mean(-1))
