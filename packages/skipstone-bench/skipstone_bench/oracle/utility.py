"""The best of several schedules that were run on a sample, by their utility."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from skipstone.evaluation.utility import Utility


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
    chosen = max(range(len(listed)), key=lambda k: (utility(listed[k].psnr, listed[k].calls), -listed[k].calls, -k))
    one = listed[chosen]
    return ScheduleChoice(sample, float(utility(one.psnr, one.calls)), one)
