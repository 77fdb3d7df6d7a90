"""Shedding of load by quality: it begins when many wait, ends when none does, and shortens the wait."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from analytic import served

from skipstone.engine.requests import Estimate, Query
from skipstone.errors import SpecError
from skipstone.serving import Engine, Shedding
from skipstone.serving.settings import make_setting
from skipstone.testing.backbones import Mixture

FULL, FAST = 16, 8  # calls of a picture


def simulate(rules: Shedding, arrivals: Sequence[int], calls_a_second: int = 32) -> tuple[list[int], list[bool]]:
    """Seconds that each picture waits, and whether each was drawn faster; all calls of a second go to the oldest."""
    queue: deque[tuple[int, int]] = deque()
    waits, modes, on = [], [], False
    for second in range(len(arrivals) + 400):
        for _ in range(arrivals[second] if second < len(arrivals) else 0):
            on = rules.is_on(on, len(queue))
            modes.append(on)
            queue.append((second, FAST if on else FULL))
        left = calls_a_second
        while queue and queue[0][1] <= left:
            left -= queue[0][1]
            waits.append(second - queue.popleft()[0])
        if queue and left:
            queue[0] = (queue[0][0], queue[0][1] - left)
    assert not queue
    return waits, modes


def test_a_burst_is_drawn_faster_until_nobody_waits() -> None:
    """Two pictures a second can be drawn in full; for a while three come, and then one."""
    arrivals = [1] * 20 + [3] * 60 + [1] * 100
    waits, modes = simulate(Shedding("low", 10), arrivals)
    without, never = simulate(Shedding(), arrivals)
    assert not any(never)
    assert any(modes)
    assert max(waits) <= 8 < 20 < max(without)
    assert not any(modes[:40])
    assert not any(modes[-60:])  # it went back
    switches = sum(a != b for a, b in itertools.pairwise(modes))
    assert switches <= 8  # and does not change its mind at every request


def test_light_load_is_never_shed() -> None:
    _, modes = simulate(Shedding("low", 10), list(np.random.default_rng(0).poisson(0.8, 500)))
    assert sum(modes) == 0


def test_what_names_how_it_is_drawn_is_drawn_so() -> None:
    rules = Shedding("low", 1)
    assert rules.covers("", "", 1)
    assert not rules.covers("balanced", "", 1)
    assert not rules.covers("", "high", 1)
    assert not rules.covers("", "", 0)
    with pytest.raises(SpecError, match="start"):
        Shedding("low", 0)


class Held(Mixture):
    """Mixture scores that are not answered before `answering` is open."""

    answering = threading.Event()

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        assert Held.answering.wait(60)
        return super().predict(queries)


def test_the_engine_says_what_it_has_shed() -> None:
    model = served(backbone=Held(guidance=2.0))
    fast = replace(make_setting(model.choices.subject, "fixed @ ddim / trailing / 3"), certificate="low", promise="p")
    model.choices = replace(model.choices, certificates={"low": fast})
    with Engine({"analytic": model}, shedding=Shedding("low", 3)) as engine:
        first = engine.submit("a")
        while engine.load[1] == 0:
            pass
        futures = [engine.submit("a", seed=k) for k in range(5)]
        asked, urgent = engine.submit("a", policy="fixed @ ddim / trailing / 4"), engine.submit("a", priority=0)
        Held.answering.set()
        assert [future.result().shed for future in futures] == [False] * 3 + [True] * 2
        assert [future.result().calls for future in (first, *futures, asked, urgent)] == [6, 6, 6, 6, 3, 3, 4, 6]
        assert futures[4].result().certificate == "low"
        assert not engine.submit("a").result().shed
