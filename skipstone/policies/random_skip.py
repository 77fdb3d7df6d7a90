"""Skip steps at random: what any rule that calls as often has to beat."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from ..engine.contracts import Clock, Forecast, Plan, Policy, PredictionType, Run
from ..engine.greedy import StepMask
from ..registry import register
from ..settings import MAX_STEPS, Ranges, check_settings


@register("policy")
@dataclass(frozen=True)
class RandomSkip(Policy):
    """Call a given number of steps, drawn at random but alike for every sample, and forecast the others.

    Args:
        calls: Steps that are called, in 1..10,000; all of them where the grid has no more. `warmup` and `tail`
            are among them, and are called even where they alone are more.
        seed: Of the draw, in 0..4,294,967,295.
        warmup: Steps at the start that are always called, in 1..10,000.
        tail: Steps at the end that are always called, in 0..10,000.
        order: Of the forecast, in 0..3.
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
    neutral: ClassVar[Mapping[str, Any]] = {"calls": MAX_STEPS}
    ranges: ClassVar[Ranges] = {
        "calls": (1, MAX_STEPS),
        "seed": (0, 2**32 - 1),
        "warmup": (1, MAX_STEPS),
        "tail": (0, MAX_STEPS),
        "order": (0, 3),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    def plan(self, run: Run, proposal: Plan) -> Plan:
        skips = draw_skips(len(run.grid) - 1, self.calls, self.seed, self.warmup, self.tail)
        return StepMask(skips, Forecast(self.order, self.of, self.clock)).plan(run, proposal)


@lru_cache(maxsize=256)
def draw_skips(steps: int, calls: int, seed: int, warmup: int, tail: int) -> frozenset[int]:
    """The numbers of the steps that are skipped."""
    free = range(warmup, max(warmup, steps - tail))
    count = min(len(free), max(0, steps - calls))
    return frozenset(random.Random(seed).sample(free, count))
