"""Skip steps at random: what any rule that calls as often has to beat."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from ..engine.contracts import Clock, Plan, Policy, PredictionType, Run
from ..engine.greedy import StepMask
from ..registry import register
from .ranges import build_forecast, check_integer


@register("policy")
@dataclass(frozen=True)
class RandomSkip(Policy):
    """Call a given number of steps, drawn at random but alike for every sample, and forecast the others.

    Args:
        calls: Steps that are called, >= 1; all of them where the grid has no more. `warmup` and `tail` are
            among them, and are called even where they alone are more.
        seed: Of the draw, >= 0.
        warmup: Steps at the start that are always called, >= 1.
        tail: Steps at the end that are always called, >= 0.
        order: Of the forecast, 0..3.
        of: Prediction that is forecast: eps, x0, v or flow.
        clock: What it is forecast against: logsnr, t or angle.

    Raises:
        SpecError: a setting out of range.

    References: none needed; the control of every skipping rule.
    """

    calls: int = 20
    seed: int = 0
    warmup: int = 3
    tail: int = 1
    order: int = 1
    of: PredictionType = "v"
    clock: Clock = "t"
    name: ClassVar[str] = "random_skip"
    neutral: ClassVar[Mapping[str, Any]] = {"calls": 10**6}

    def __post_init__(self) -> None:
        check_integer(self, "calls", 1)
        check_integer(self, "seed", 0)
        check_integer(self, "warmup", 1)
        check_integer(self, "tail", 0)
        build_forecast(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        skips = draw_skips(len(run.grid) - 1, self.calls, self.seed, self.warmup, self.tail)
        return StepMask(skips, build_forecast(self)).plan(run, proposal)


@lru_cache(maxsize=256)
def draw_skips(steps: int, calls: int, seed: int, warmup: int, tail: int) -> frozenset[int]:
    """The numbers of the steps that are skipped."""
    free = range(warmup, max(warmup, steps - tail))
    count = min(len(free), max(0, steps - calls))
    return frozenset(random.Random(seed).sample(free, count))
