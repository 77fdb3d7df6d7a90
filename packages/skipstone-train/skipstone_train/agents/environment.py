"""Denoising as a decision process: one more driver of the flow, many samples at once on one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipstone.engine.contracts import Run
from skipstone.engine.drivers import answer
from skipstone.engine.flow import flow
from skipstone.engine.requests import Flow
from skipstone.policies.agent.actions import carry, due, refined

from .episodes import Ended, Episodes, Floats


@dataclass
class _Slot:
    """One episode on its way."""

    sample: int = 0
    level: int = 0
    flow: Flow | None = None
    run: Run | None = None  # at which a decision is due
    drawn: int = 0  # noises so far


class Environment(Episodes):
    """Episodes on any backbone: the network itself, or recorded runs."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[Floats, dict[str, Any]]:
        self._reseed(seed)
        self._slots = [_Slot() for _ in range(self.num_envs)]
        for i in range(self.num_envs):
            self._begin(i)
        self._go(dict.fromkeys(range(self.num_envs)))
        return self._observe(), {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions each slot may take now."""
        runs, guides = [_run(s) for s in self._slots], [self.guides[s.level][1] for s in self._slots]
        left = [len(g.places) - 1 - g.index(r.pending.t) for r, g in zip(runs, guides, strict=True) if r.pending]
        calls = [sum(not a.skipped for a in r.kept) for r in runs]
        fresh = [refined(r) < self.moves.refines for r in runs]
        return self.moves.masks(left, calls, [g.steps for g in guides], runs[0].branches > 1, fresh)  # type: ignore[no-any-return]

    def step(self, actions: Any) -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        self._check(actions, self.action_masks())
        plans = {
            i: carry(_run(slot), self.guides[slot.level][1], self.moves, int(action))
            for i, (slot, action) in enumerate(zip(self._slots, actions, strict=True))
        }
        before = self._observe()
        rewards, done, info = self._told(before, self._go(plans))
        return self._observe(), rewards, done, np.zeros(self.num_envs, bool), info

    def _observe(self) -> Floats:
        rows = [self.sight.observe(_run(s), self.guides[s.level][1], self.guides[s.level][0]) for s in self._slots]
        return np.stack(rows)

    def _begin(self, i: int) -> None:
        """The next episode of a slot."""
        sample, level = self._drawn(i)
        denoising = flow(self.pool.problems[sample], self.solver, self.sight.needs, self.moves.sites)
        self._slots[i] = _Slot(sample, level, denoising)

    def _go(self, inbox: Mapping[int, Any]) -> list[Ended]:
        """Send the answers, and go on until every slot is about to decide; the episodes that ended on the way."""
        ended: list[Ended] = []
        waiting: dict[int, Any] = {}
        inbox = dict(inbox)
        while inbox:
            for i, said in inbox.items():
                waiting.pop(i, None)
                if (asked := self._send(i, said, ended)) is not None:
                    waiting[i] = asked
            problems = {i: self.pool.problems[self._slots[i].sample] for i in waiting}
            drawn = {i: self._slots[i].drawn for i in waiting}
            inbox = answer(waiting, self.pool.backbone, problems, drawn)
            for i in waiting:
                self._slots[i].drawn = drawn[i]
        return ended

    def _send(self, i: int, said: Any, ended: list[Ended]) -> Any:
        """What a slot asks for next; None where a decision is due."""
        while True:
            slot = self._slots[i]
            assert slot.flow is not None
            try:
                asked = slot.flow.send(said)
            except StopIteration as end:
                quality = self.pool.quality(slot.sample, end.value.x)
                run = end.value.run
                ended.append(Ended(i, slot.sample, slot.level, quality, run.cost, self.sight.fee(run)))
                self._begin(i)
                said = None
                continue
            if not isinstance(asked, Run):
                return asked
            if due(asked):
                slot.run = asked
                return None
            said = carry(asked, self.guides[slot.level][1], self.moves)


def _run(slot: _Slot) -> Run:
    assert slot.run is not None
    return slot.run
