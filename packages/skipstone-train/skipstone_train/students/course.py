"""The stages of a distillation one after the other, each student written, and kept while the quality holds."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from skipstone.errors import TargetMissedError
from skipstone.policies.student import FORMAT, StudentCard

from .curves import write_losses
from .export import build_student_scheduler, export_student
from .loop import Loop, StepCallback
from .memory import GIB, estimate_memory
from .quality import CURVE, CurvePoint, QualityCheck, write_curve
from .sizes import Buckets
from .stage import Stage

Progress: TypeAlias = Callable[[str, float, float], None]  # what, done, total
MEMORY = "Memory"  # what begins so says the memory of a training at a size, before it starts


@dataclass
class Course:
    """Trains stages, each from the weights of the one before, which teaches it.

    Args:
        stages: In order.
        folder: Of the result; students of earlier stages are in `steps-N` in it.
        fingerprint: Of the teacher.
        began: By `time.monotonic`, before the drawings.
        quality: What must be kept; None keeps the last stage.
        on_progress: Called with (what, done, total).
    """

    stages: Sequence[Stage]
    folder: Path
    fingerprint: str
    began: float
    quality: QualityCheck | None = None
    on_progress: Progress | None = None
    memory: dict[str, float] = field(default_factory=dict, init=False)  # size -> GiB

    def run(self) -> None:
        """Train, and write the student. Raises TargetMissedError where no stage keeps the quality."""
        network = self.stages[0].network
        points: list[CurvePoint] = []
        best: tuple[StudentCard, list[torch.Tensor]] | None = None
        self._check_memory()
        references = self._references()
        for number, stage in enumerate(self.stages):
            card = self._train(number)
            values = network.values()
            if self.quality is not None:
                scheduler = build_student_scheduler(stage.teacher, card)
                guidance = card.guidance if card.guidance_range else 1.0
                points.append(self.quality.measure(stage.teacher, scheduler, card.steps, references, guidance))
                write_curve(self.folder, self.quality.target, points)
                if not points[-1].kept:
                    break
            best = card, values
            if number + 1 < len(self.stages):
                self.stages[number + 1].previous = values
        if best is None:
            raise self._missed(points)
        network.assign(best[1])
        first = self.stages[0]
        export_student(self.folder, first.teacher, network, best[0], first.drawings.prompts)

    def _check_memory(self) -> None:
        """Measure the memory at every size, say it, and raise TrainingError for the first that takes too much."""
        first = self.stages[0]
        loop = first.loop(self.folder, "", 0.0)
        found = {size: estimate_memory(stage, loop) for size, stage in first.at_sizes().items()}
        for size, memory in found.items():
            self.memory[size] = round(memory.total / GIB, 3)
            if self.on_progress is not None:
                at = f" at {size}" if size else ""
                self.on_progress(f"{MEMORY}{at}: about {memory.total / GIB:.2f} GiB", 1.0, 1.0)
        for size, memory in found.items():
            memory.check(first.settings.max_memory, size)

    def _train(self, number: int) -> StudentCard:
        """Train a stage, and write its student where it is not the only one; the network has its weights."""
        stage, left = self.stages[number], len(self.stages) - number
        seconds = max(1.0, 60 * stage.settings.minutes - (time.monotonic() - self.began)) / left
        folder = self.folder / f"training-{stage.steps}"
        loop = stage.train(folder, self.fingerprint, seconds, self._step_callback(stage))
        done = self.stages[: number + 1]
        write_losses(self.folder, {f"{s.steps} steps": self.folder / f"training-{s.steps}" for s in done})
        stage.network.assign(loop.average)
        card = self._card(stage, loop)
        if len(self.stages) > 1:
            folder = self.folder / f"steps-{stage.steps}"
            export_student(folder, stage.teacher, stage.network, card, stage.drawings.prompts)
        return card

    def _references(self) -> list[Any]:
        """The teacher's pictures of the held-out prompts."""
        if self.quality is None:
            return []
        first = self.stages[0]
        with first.network.as_teacher():
            return self.quality.references(first.teacher, first.settings.guidance)

    def _missed(self, points: Sequence[CurvePoint]) -> TargetMissedError:
        assert self.quality is not None
        target, first = self.quality.target.spell(), points[0]
        return TargetMissedError(
            f"No stage keeps {target}: with {first.steps} steps it is {first.value:.3g} ({first.low:.3g} to "
            f"{first.high:.3g}). {self.folder / CURVE} has the curve, {self.folder / f'steps-{first.steps}'} that "
            f"student. Begin with more steps (--first-steps {2 * first.steps}), train longer, or ask for less."
        )

    def _step_callback(self, stage: Stage) -> StepCallback | None:
        on_progress, recent = self.on_progress, list[float]()
        if on_progress is None:
            return None

        def on_step(step: int, steps: int, loss: float) -> None:
            recent.append(loss)
            mean = sum(recent[-25:]) / len(recent[-25:])
            on_progress(f"Training the student of {stage.steps} steps, loss {mean:.4f}", step, steps or step + 1)

        return on_step

    def _sizes_trained(self, stage: Stage, buckets: Buckets, steps: int) -> dict[str, dict[str, float]]:
        """What `student.json` says of each size."""
        plan = stage.size_plan(buckets)
        taken = Counter(plan.index(step, steps) for step in range(steps))
        return {
            str(part.size): {
                "drawings": len(part.drawings),
                "steps": taken[index],
                "memory_gib": self.memory[str(part.size)],
            }
            for index, part in enumerate(buckets.parts)
        }

    def _card(self, stage: Stage, loop: Loop) -> StudentCard:
        settings = stage.settings
        training: dict[str, Any] = {
            "drawings": len(stage.drawings),
            "drawing_rows": stage.drawings.rows,
            "steps": loop.step,
            "rows": loop.rows,
            "loss": loop.recent_loss,
        }
        if isinstance(stage.drawings, Buckets):
            training["sizes"] = self._sizes_trained(stage, stage.drawings, loop.step)
        return StudentCard(
            format=FORMAT,
            method=settings.method,
            steps=stage.steps,
            weights="lora" if settings.rank and not settings.guidance_range else "full",
            part=stage.teacher.part,
            guidance=settings.guidance,
            teacher=stage.teacher.name,
            fingerprint=self.fingerprint,
            settings=asdict(settings),
            training=training,
            guidance_range=settings.guidance_range,
        )
