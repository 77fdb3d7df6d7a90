"""Skip steps by their numbers: a mask from a search, or one given by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from ..engine.contracts import Clock, Forecast, Plan, Policy, PredictionType, Run
from ..engine.greedy import StepMask
from ..errors import SpecError
from ..registry import register
from ..settings import MAX_STEPS, Ranges, check_settings, shorten

RANGE_PATTERN = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?", re.ASCII)


@register("policy")
@dataclass(frozen=True)
class Mask(Policy):
    """Forecast exactly the steps of these numbers, whatever the prompt.

    Args:
        skips: Numbers of steps and ranges of them, in 0..9,999, the first step being 0: "3,4,6-8". The first step is
            always called, as is every step where nothing was called before; numbers past the last step do nothing.
        order: Of the forecast, in 0..3.
        of: Prediction that is forecast: eps, x0, v or flow.
        clock: What it is forecast against: logsnr, t or angle.

    Raises:
        SpecError: a setting out of range, or numbers that cannot be read.

    References: none needed; a mask is the plainest schedule of skips.
    """

    skips: str = ""
    order: int = 1
    of: PredictionType = "v"
    clock: Clock = "t"
    name: ClassVar[str] = "mask"
    neutral: ClassVar[Mapping[str, Any]] = {"skips": ""}
    ranges: ClassVar[Ranges] = {"order": (0, 3)}

    def __post_init__(self) -> None:
        check_settings(self)
        _ = self.steps

    @cached_property
    def steps(self) -> frozenset[int]:
        """The numbers."""
        return parse_steps(self.skips)

    @cached_property
    def step_mask(self) -> StepMask:
        """The mask and its forecast."""
        return StepMask(self.steps, Forecast(self.order, self.of, self.clock))

    def plan(self, run: Run, proposal: Plan) -> Plan:
        return self.step_mask.plan(run, proposal)


def parse_steps(text: str) -> frozenset[int]:
    """The numbers of "3,4,6-8"; `format_steps` inverts it. Raises SpecError."""
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in str(text).split(","))):
        match = RANGE_PATTERN.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < MAX_STEPS:
            raise SpecError(
                f"mask: expected skips to be numbers of steps, the first being 0, the last below {MAX_STEPS:,}, "
                f"got {shorten(part)}; try '3,4,6-8'."
            )
        found |= set(range(first, last + 1))
    return frozenset(found)


def format_steps(steps: frozenset[int]) -> str:
    """The shortest text that says these numbers: runs of three or more as ranges."""
    parts: list[list[int]] = []
    for step in sorted(steps):
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    said = [f"{p[0]}-{p[-1]}" if len(p) > 2 else ",".join(map(str, p)) for p in parts]
    return ",".join(said)
