"""The least calls with which a target is met on samples that nothing was searched on; not guaranteed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

from ..calibration.target import Target
from ..errors import TargetMissedError
from .cached_runs import RunScore
from .joint import JointResult, JointSearch


def least_calls(search: JointSearch, target: Target) -> tuple[list[JointResult], str]:
    """What was found with the least of the numbers of calls that meets a target, and a sentence about it.

    Numbers of calls are tried from the least: from the one before the first with which the grid of the dynamic
    programming meets the target on the tuning samples.

    Args:
        search: Its settings have the numbers of calls to try.
        target: Of psnr.

    Raises:
        TargetMissedError: none meets it.
    """
    search.check_budgets()
    calls = sorted(search.settings.calls)
    tried: list[str] = []
    for count in calls[_first(search, target, calls) :]:
        found = search.search(count)
        if not meets(target, found.row.scores) and meets(target, found.rows[0].scores):
            found = replace(found, policy=found.grid)
        value = _value(target, found.row.scores)
        if meets(target, found.row.scores):
            return [found], _words(target, found, value)
        tried.append(f"{count} calls: {_format(target, value)}")
    raise TargetMissedError(
        f"No number of calls tried meets {target.spell()} on the check ({'; '.join(tried)}). Name more of them by "
        f"--calls, or ask for less: what was drawn is kept."
    )


def meets(target: Target, scores: Sequence[RunScore]) -> bool:
    """Whether runs meet a target."""
    return statistics.fmean(target.loss(one.psnr) for one in scores) <= target.risk + 1e-12


def _first(search: JointSearch, target: Target, calls: Sequence[int]) -> int:
    met = (k for k, count in enumerate(calls) if meets(target, search.grid_scores(count)))
    return max(0, next(met, len(calls)) - 1)


def _value(target: Target, scores: Sequence[RunScore]) -> float:
    return target.value(statistics.fmean(target.loss(one.psnr) for one in scores))


def _format(target: Target, value: float) -> str:
    return f"{value:.0%} of samples" if target.fraction is not None else f"{value:.1f} dB in the mean"


def _words(target: Target, found: JointResult, value: float) -> str:
    return (
        f"{found.calls} calls are the least of those tried with which {target.spell()} holds on the check "
        f"({_format(target, value)}). That is no guarantee for other prompts: skipstone calibrate gives one."
    )
