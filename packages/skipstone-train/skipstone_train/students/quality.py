"""Whether a student keeps a quality on held-out prompts, and the curve of quality against steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from skipstone import registry
from skipstone.calibration.risk import risk_interval
from skipstone.calibration.target import Target
from skipstone.cli.files import write_atomically
from skipstone.metrics import Sample

from .data import SHARD, drawing_pipeline
from .teacher import Teacher

CONFIDENCE = 0.95  # of each end of an interval
CURVE = "tradeoff.json"


@dataclass(frozen=True)
class CurvePoint:
    """Quality of a student.

    Args:
        steps: Of the student.
        value: Share of the prompts that meets the target, or the mean of its metric.
        low, high: Where it may lie, each end with a confidence of 95 %.
        kept: Whether the target is met by `value`.
    """

    steps: int
    value: float
    low: float
    high: float
    kept: bool


@dataclass(frozen=True, eq=False)
class QualityCheck:
    """What a student must keep.

    Args:
        target: "judge >= 0.9 @ 80%" or another, as `skipstone calibrate` takes it.
        prompts: Held out: what is neither drawn for training nor reported on later.
        judge: (picture, prompt) -> score, for targets of the judge.
        steps: Of the teacher's pictures, which closeness is measured to.
        seed: Of the first picture; the others follow.
    """

    target: Target
    prompts: Sequence[str]
    judge: Callable[[Any, str], float] | None = None
    steps: int = 50
    seed: int = 0

    def references(self, teacher: Teacher, guidance: float) -> list[NDArray[np.float32]]:
        """The teacher's pictures."""
        with drawing_pipeline(teacher) as pipe:
            return self._draw(teacher, pipe, {"num_inference_steps": self.steps, "guidance_scale": guidance})

    def measure(
        self,
        teacher: Teacher,
        scheduler: Any,
        steps: int,
        references: Sequence[NDArray[np.float32]],
        guidance: float = 1.0,
    ) -> CurvePoint:
        """The quality of the student that the teacher's pipeline holds now, which is given this guidance."""
        call: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance}
        if teacher.is_flow:
            call["sigmas"] = [1 - i / steps for i in range(steps)]
        with drawing_pipeline(teacher, scheduler) as pipe:
            pictures = self._draw(teacher, pipe, call)
        metric: Any = registry.parse("metric", self.target.metric)
        values = [
            metric.measure(Sample(picture, prompt, reference=reference, judge=self.judge))
            for picture, prompt, reference in zip(pictures, self.prompts, references, strict=True)
        ]
        interval = risk_interval(self.target, values, CONFIDENCE)
        wanted = self.target.level if self.target.fraction is None else self.target.fraction
        higher = self.target.fraction is not None or self.target.relation == ">="
        kept = interval.value >= wanted if higher else interval.value <= wanted
        return CurvePoint(steps, interval.value, interval.low, interval.high, kept)

    @torch.no_grad()
    def _draw(self, teacher: Teacher, pipe: Any, call: dict[str, Any]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = []
        for start in range(0, len(self.prompts), SHARD):
            some = list(self.prompts[start : start + SHARD])
            seeds = range(self.seed + start, self.seed + start + len(some))
            generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
            drawn = pipe(some, generator=generators, output_type="np", **{**teacher.arguments, **call})
            found += list(np.asarray(drawn.images, np.float32))
        return found


def write_curve(folder: Path, target: Target, points: Sequence[CurvePoint]) -> None:
    """Write `tradeoff.json` and `tradeoff.png`."""
    from matplotlib.figure import Figure

    document = {"target": target.spell(), "confidence": CONFIDENCE, "points": [asdict(point) for point in points]}
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.subplots()
    steps, values = [p.steps for p in points], [p.value for p in points]
    spread = [[p.value - p.low for p in points], [p.high - p.value for p in points]]
    axes.errorbar(steps, values, spread, fmt="o-", capsize=3)
    axes.axhline(target.level if target.fraction is None else target.fraction, color="gray", linewidth=0.8)
    axes.set(xlabel="steps of the student", ylabel=target.spell(), xscale="log", xticks=steps)
    axes.set_xticklabels([str(n) for n in steps])
    axes.minorticks_off()
    buffer = BytesIO()
    figure.savefig(buffer, dpi=120)
    text = json.dumps(document, indent=1) + "\n"
    write_atomically({folder / CURVE: text.encode(), folder / "tradeoff.png": buffer.getvalue()})
