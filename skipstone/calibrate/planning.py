"""How many prompts a promise costs, said before any is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .target import Target


@dataclass(frozen=True, slots=True)
class Needed:
    """Prompts of the final test.

    Args:
        fewest: With which a setting that never fails is accepted, over all groups: with fewer, none ever is.
        likely: With which a setting that is better than the target by `slack` is accepted in `power` of all
            calibrations.
        slack: How much better it is: of fractions a share of prompts, of means in the metric's unit.
        deviation: Of the metric between prompts, which means take; None of fractions.
        power: Chance of being accepted.
        groups: Equally many prompts are needed in each.
    """

    fewest: int
    likely: int
    slack: float
    deviation: float | None
    power: float
    groups: int


def prompts_needed(
    target: Target,
    confidence: float,
    slack: float | None = None,
    deviation: float | None = None,
    groups: int = 1,
    power: float = 0.8,
) -> Needed:
    """Prompts that the final test needs."""
    raise NotImplementedError


def enough(target: Target, confidence: float, n: int, groups: Sequence[str] | None = None) -> None:
    """Raises SpecError, which says how many are needed, where n prompts can never be enough."""
    raise NotImplementedError
