"""What refining was measured to be worth, sample by sample, in the two figures that H4 asks about."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from skipstone.errors import BenchError
from skipstone.evaluation.resampling import SampleValues

from .scores import refuse_summary

MORE_STEPS_ARM = "more steps"  # the arm that spends the same calls without refining
KNOWN_DEFECT_MARK = "told"  # in the name of an arm that knows where the defect is: a bound, no method
PLANTED_PREFIX = "planted"  # how conditions with a defect begin
DEFECT_METRIC, JUDGE_METRIC = "planted defects, PSNR in dB", "judge's score"

ArmScores: TypeAlias = Mapping[str, Mapping[str, tuple[SampleValues, SampleValues]]]


def load_refine_scores(path: Path) -> ArmScores:
    """Arm -> figure -> (with refine, with more steps), of a file {condition: {arm: {measure: {sample: score}}}}.

    A sample's score is its mean over conditions: over those with a planted defect of "psnr", to the undamaged picture;
    over all conditions of "judge".

    Raises:
        BenchError: a file that cannot be read, is a summary, or has no arm "more steps".
    """
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        conditions = {name: arms for name, arms in found.items() if isinstance(arms, dict) and MORE_STEPS_ARM in arms}
    except (OSError, ValueError, AttributeError):
        raise BenchError(f"--refine: {path} cannot be read: expected what research/agents/refine.py writes.") from None
    if not conditions:
        raise BenchError(f"--refine: {path} has no condition with an arm {MORE_STEPS_ARM!r} to compare with.")
    names = dict.fromkeys(arm for arms in conditions.values() for arm in arms if arm != MORE_STEPS_ARM)
    defects = [arms for name, arms in conditions.items() if name.startswith(PLANTED_PREFIX)]
    made: dict[str, dict[str, tuple[SampleValues, SampleValues]]] = {}
    for arm in names:
        both = {
            DEFECT_METRIC: _pool_conditions(defects, arm, "psnr", path),
            JUDGE_METRIC: _pool_conditions(conditions.values(), arm, "judge", path),
        }
        made[arm] = {what: pair for what, pair in both.items() if pair[0]}
    return made


def _pool_conditions(
    conditions: Iterable[Mapping[str, Any]], arm: str, measure: str, path: Path
) -> tuple[SampleValues, SampleValues]:
    """Means over the conditions that have the arm; samples that any of them lacks are left out."""
    mine: list[Mapping[str, float]] = []
    steps: list[Mapping[str, float]] = []
    for arms in conditions:
        if arm in arms and measure in arms[arm] and measure in arms[MORE_STEPS_ARM]:
            mine.append(_samples(arms[arm][measure], path))
            steps.append(_samples(arms[MORE_STEPS_ARM][measure], path))
    shared = sorted(set.intersection(*(set(v) for v in (*mine, *steps)))) if mine else []
    return _means(mine, shared), _means(steps, shared)


def _samples(values: Any, path: Path) -> dict[str, float]:
    if not isinstance(values, Mapping):
        raise BenchError(f"--refine: {path}: expected sample -> score, got {values!r}: a summary cannot be tested.")
    refuse_summary(values, f"--refine: {path}")
    return {sample: float(v) for sample, v in values.items() if v is not None and math.isfinite(v)}


def _means(rows: list[Mapping[str, float]], samples: Iterable[str]) -> dict[str, float]:
    return {sample: sum(row[sample] for row in rows) / len(rows) for sample in samples}
