"""Denoising as a decision process: one more driver of the flow, many samples at once on one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skipstone.engine.contracts import Run
from skipstone.engine.drivers import answer_requests
from skipstone.engine.flow import flow
from skipstone.engine.requests import Flow
from skipstone.policies.agent.actions import count_refinements, is_decision_due, plan_action

from .episodes import DenoisingEnv, EpisodeResult, FloatArray


@dataclass
class _Slot:
    """One episode on its way."""

    sample: int = 0
    price_index: int = 0
    flow: Flow | None = None
    run: Run | None = None  # at which a decision is due
    num_noises: int = 0  # noises so far


class Environment(DenoisingEnv):
    """Episodes on any backbone: the network itself, or recorded runs."""

    def reset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        self._reseed(seed)
        self._slots = [_Slot() for _ in range(self.num_envs)]
        for i in range(self.num_envs):
            self._begin(i)
        self._run_to_decisions(dict.fromkeys(range(self.num_envs)))
        return self._observe(), {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions each slot may take now."""
        runs, schedules = (
            [_pending_run(s) for s in self._slots],
            [self.base_schedules[s.price_index][1] for s in self._slots],
        )
        left = [len(g.places) - 1 - g.index(r.pending.t) for r, g in zip(runs, schedules, strict=True) if r.pending]
        calls = [sum(not a.is_forecast for a in r.accepted_attempts) for r in runs]
        fresh = [count_refinements(r) < self.agent_actions.refines for r in runs]
        return self.agent_actions.action_masks(left, calls, [g.steps for g in schedules], runs[0].branches > 1, fresh)  # type: ignore[no-any-return]

    def step(self, actions: Any) -> tuple[FloatArray, FloatArray, NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        self._check(actions, self.action_masks())
        plans = {
            i: plan_action(
                _pending_run(slot), self.base_schedules[slot.price_index][1], self.agent_actions, int(action)
            )
            for i, (slot, action) in enumerate(zip(self._slots, actions, strict=True))
        }
        before = self._observe()
        rewards, done, info = self._finish_step(before, self._run_to_decisions(plans))
        return self._observe(), rewards, done, np.zeros(self.num_envs, bool), info

    def _observe(self) -> FloatArray:
        rows = [
            self.observation.observe(
                _pending_run(s), self.base_schedules[s.price_index][1], self.base_schedules[s.price_index][0]
            )
            for s in self._slots
        ]
        return np.stack(rows)

    def _begin(self, i: int) -> None:
        """The next episode of a slot."""
        sample, level = self._next_sample(i)
        denoising = flow(self.pool.problems[sample], self.solver, self.observation.needs, self.agent_actions.sites)
        self._slots[i] = _Slot(sample, level, denoising)

    def _run_to_decisions(self, inbox: Mapping[int, Any]) -> list[EpisodeResult]:
        """Send the answers, and go on until every slot is about to decide; the episodes that ended on the way."""
        ended: list[EpisodeResult] = []
        waiting: dict[int, Any] = {}
        inbox = dict(inbox)
        while inbox:
            for i, reply in inbox.items():
                waiting.pop(i, None)
                if (request := self._send(i, reply, ended)) is not None:
                    waiting[i] = request
            problems = {i: self.pool.problems[self._slots[i].sample] for i in waiting}
            drawn = {i: self._slots[i].num_noises for i in waiting}
            inbox = answer_requests(waiting, self.pool.backbone, problems, drawn)
            for i in waiting:
                self._slots[i].num_noises = drawn[i]
        return ended

    def _send(self, i: int, reply: Any, ended: list[EpisodeResult]) -> Any:
        """What a slot asks for next; None where a decision is due."""
        while True:
            slot = self._slots[i]
            assert slot.flow is not None
            try:
                request = slot.flow.send(reply)
            except StopIteration as end:
                quality = self.pool.quality(slot.sample, end.value.x)
                run = end.value.run
                ended.append(
                    EpisodeResult(i, slot.sample, slot.price_index, quality, run.cost, self.observation.fee(run))
                )
                self._begin(i)
                reply = None
                continue
            if not isinstance(request, Run):
                return request
            if is_decision_due(request):
                slot.run = request
                return None
            reply = plan_action(request, self.base_schedules[slot.price_index][1], self.agent_actions)


def _pending_run(slot: _Slot) -> Run:
    assert slot.run is not None
    return slot.run
