"""A certificate: what calibration has measured, what is promised of it, and for which model and configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FIXED_POLICY = "fixed"  # the policy that changes nothing


@dataclass(frozen=True)
class CalibrationPoint:
    """One setting as calibration has measured it.

    Args:
        setting: Spec of the policy.
        way: Solver, grid and steps that it ran on, "adams / trailing / 50".
        steps: Of the grid.
        calls: Mean over the prompts.
        value: Share of prompts that meet the target, or the mean of the metric where the target is a mean.
        low, high: Interval of `value` at the certificate's confidence.
        n: Prompts that it was measured on.
        failures: Prompts that miss the level; None where the target is a mean.
        p: Of the final test; None of a setting that only the search has seen.
        accepted: Whether the promise holds for it.
        fixed: Whether it is a sampler in place of the pipeline's own, not a policy on top of it.
        scheduler: Class and configuration of the scheduler that it ran under, in a diffusers pipeline.
        groups: Group -> {"n", "failures", "p"}, where every group is promised the target.
    """

    setting: str
    way: str
    steps: int
    calls: float
    value: float
    low: float
    high: float
    n: int
    failures: int | None = None
    p: float | None = None
    accepted: bool = False
    fixed: bool = False
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The setting as tables and messages show it."""
        return f"{self.steps} steps of {self.way.rpartition(' / ')[0]}" if self.fixed else self.setting


@dataclass(frozen=True)
class Certificate:
    """What is promised, how it was found, and for what.

    Args:
        target: As it was asked for: "psnr >= 30 @ 90%".
        promise: The same as a sentence.
        confidence: That the promise holds, in (0, 1), over the draw of the calibration prompts; None where it holds in
            the mean over calibrations.
        method: Test and control of errors.
        reference: Spec of the run that pictures are compared with; empty where the metric compares with none.
        full: Spec of the run without a policy.
        points: All that was measured, fastest first.
        full_calls: Of a run without any policy.
        model: What tables call it.
        identity: Name -> what must be the same: weights, pipeline, dtype.
        call: Arguments of the pipeline's call that the promise is made for, steps among them.
        prompts: {"source", "count", "sha256", "search", "test"}.
        seed: Of the split and of the samples.
        spent: Calls by what they were spent on.
        versions: Of the libraries.
        date: Of the calibration.
        source: How a command finds the model again: {"model", "guidance", ...}.
    """

    target: str
    promise: str
    confidence: float | None
    method: str
    reference: str
    full: str
    points: tuple[CalibrationPoint, ...]
    full_calls: float
    model: str
    identity: Mapping[str, Any]
    call: Mapping[str, Any]
    prompts: Mapping[str, Any]
    seed: int
    spent: Mapping[str, float]
    versions: Mapping[str, str]
    date: str
    source: Mapping[str, Any] = field(default_factory=dict)

    @property
    def best(self) -> CalibrationPoint:
        """The fastest accepted setting."""
        return self.choose_point(allow_sampler=True)[0]

    def choose_point(self, allow_sampler: bool) -> tuple[CalibrationPoint, str]:
        """The fastest accepted point that may be used, and a warning if a faster one needs `allow_sampler=True`."""
        accepted = sorted((p for p in self.points if p.accepted), key=lambda p: (p.calls, p.fixed))
        best = accepted[0]
        usable = next((p for p in accepted if allow_sampler or not p.fixed), None)
        if usable is best:
            return best, ""
        instead = f"{usable.label}, {usable.calls:.1f} calls" if usable else f"no change, {self.full_calls:g} calls"
        return usable or self._nothing(), (
            f"{best.label} serves you better than any policy here: {best.calls:.1f} calls meet the target; now using "
            f"{instead}. Pass allow_sampler=True to replace the pipeline's scheduler and steps."
        )

    def _nothing(self) -> CalibrationPoint:
        steps = round(self.full_calls)
        return CalibrationPoint(FIXED_POLICY, self.full.partition(" @ ")[2], steps, self.full_calls, 1.0, 1.0, 1.0, 0)
