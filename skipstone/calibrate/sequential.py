"""Whether a promise still holds: a test that may be looked at after every sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..bench.resampling import Span
from .target import Target


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found.

    Args:
        e_value: Capital of a gambler who started with 1 and bets that the promise is broken.
        peak: The most it ever was.
        alarm: Whether peak >= 1 / false_alarm: once raised, it stays.
        n: Samples audited so far.
        interval: Share of prompts that meets, or mean of the metric: holds at all n at once.
        state: Losses of all samples so far, which `Watchdog` goes on from.
    """

    e_value: float
    peak: float
    alarm: bool
    n: int
    interval: Span
    state: tuple[float, ...]


@dataclass(frozen=True)
class Watchdog:
    """Audit of a promise by betting that it is broken; looking often costs nothing.

    Args:
        target: What was promised.
        false_alarm: Chance that it ever raises the alarm although the promise holds, in (0, 1).
        state: Losses seen before, as `Audit.state` has them; () starts.
    """

    target: Target
    false_alarm: float = 0.05
    state: tuple[float, ...] = ()

    def update(self, values: Sequence[float | None]) -> Audit:
        """Look at more values of the metric, in the order they came; NaN and None are failures."""
        raise NotImplementedError
