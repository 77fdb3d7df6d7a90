"""What a run is worth: closeness to the converged picture, less what its calls cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from skipstone.errors import SpecError


@dataclass(frozen=True)
class Utility:
    """U = clip(psnr, floor, cap) - price * calls.

    Args:
        price: Of a call, in dB, >= 0.
        floor: PSNR in dB below which a picture is as bad as any.
        cap: PSNR in dB above which it is as good as any, > floor.

    Raises:
        SpecError: a setting out of range.
    """

    price: float = 1.0
    floor: float = 20.0
    cap: float = 60.0

    def __post_init__(self) -> None:
        if not self.price >= 0:
            raise SpecError(f"Expected a price >= 0 dB a call, got {self.price}.")
        if not self.floor < self.cap:
            raise SpecError(f"Expected a floor below the cap, got {self.floor} and {self.cap} dB.")

    def evaluate(self, psnr: float, calls: float) -> float:
        """In dB."""
        return min(max(psnr, self.floor), self.cap) - self.price * calls


class TrialResult(NamedTuple):
    """One schedule, as it really ran on one sample.

    Args:
        spec: The column in full: what it takes to run it again.
        kind: "guide", which all samples share; "own", of this sample alone; "moved", an own one improved by trials.
        calls: As the hook has counted them.
        psnr: To the converged picture, dB.
    """

    spec: str
    kind: str
    calls: float
    psnr: float


class ScheduleChoice(NamedTuple):
    """What is best for one sample."""

    sample: str
    utility: float
    result: TrialResult


def best_choice(sample: str, tried: Iterable[TrialResult], utility: Utility) -> ScheduleChoice:
    """Of the highest utility; of equals the cheapest, and of these the first."""
    listed = list(tried)
    chosen = max(
        range(len(listed)), key=lambda k: (utility.evaluate(listed[k].psnr, listed[k].calls), -listed[k].calls, -k)
    )
    one = listed[chosen]
    return ScheduleChoice(sample, utility.evaluate(one.psnr, one.calls), one)
