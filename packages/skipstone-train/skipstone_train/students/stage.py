"""One stage of a distillation: from settings, drawings and network to targets, loss and loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from skipstone.evaluation.prompts import seeded_key
from skipstone.numerics.sizes import SizePlan

from .data import Drawings
from .levels import Levels, shift_shares
from .loop import Loop, StepCallback
from .losses import weighted_loss
from .network import StudentNetwork
from .settings import DistillSettings
from .sizes import Buckets
from .targets import Batch, ConsistencyTargets, Denoiser, ProgressiveTargets, TargetMaker, spread_evenly
from .teacher import GUIDANCE, Condition, Teacher, call_denoiser

CHANGEABLE = ("minutes", "train_steps", "max_memory")  # settings that a resumed training may have others of
YOUNGER = {
    "guidance_range": (),
    "sizes": (),
    "grow": 0.0,
    "shift": False,
}  # settings that checkpoints from before them do not have


@dataclass
class Stage:
    """The training of a student of so many steps.

    Args:
        settings: Of the distillation.
        teacher: The pipeline.
        network: What is trained.
        drawings: Of the teacher, at one size or at several.
        accelerator: Of accelerate.
        steps: Of the student.
        previous: Weights of the student of the stage before, which teaches in this one; None is the teacher, guided.
        ratio: Area of the pictures over that for which all levels are trained alike, see `shift_shares`.
    """

    settings: DistillSettings
    teacher: Teacher
    network: StudentNetwork
    drawings: Drawings | Buckets
    accelerator: Any
    steps: int
    previous: Sequence[torch.Tensor] | None = None
    ratio: float = 1.0

    def train(self, folder: Path, fingerprint: str, seconds: float, on_step: StepCallback | None = None) -> Loop:
        """Train in a folder, from its checkpoint if there is one; the average of the loop is the result."""
        loop = self.loop(folder, fingerprint, seconds)
        module = self.accelerator.prepare_model(self.network.module)
        try:
            loop.run(self.loss_function(module, loop), on_step)
        finally:
            self.accelerator.unwrap_model(module, keep_fp32_wrapper=False)
        return loop

    def loop(self, folder: Path, fingerprint: str, seconds: float) -> Loop:
        """The loop of the training; `seconds` are those of a training that goes by time."""
        settings = self.settings
        self.accelerator.free_memory()  # optimisers of earlier loops would scale the same gradients once more
        facts = {**asdict(settings), "student_steps": self.steps, "teacher": fingerprint}
        return Loop(
            self.network,
            self.accelerator,
            folder,
            self._fixed(facts),
            settings.peak_rate,
            0 if settings.minutes else max(1, round(settings.train_steps / len(settings.stages))),
            seconds,
            settings.accumulate,
            settings.ema,
            settings.target_ema,
        )

    def _fixed(self, facts: Mapping[str, Any]) -> dict[str, Any]:
        """The facts that a resumed training must have the same of; with `grow` their number says when sizes join."""
        free = [name for name in CHANGEABLE if not (name == "train_steps" and self.settings.grow)]
        return {n: v for n, v in facts.items() if n not in free and not (n in YOUNGER and v == YOUNGER[n])}

    def loss_function(self, module: Any, loop: Loop) -> Callable[[int, int], torch.Tensor]:
        """The loss of a part of a training step; it depends on weights, seed, step and part alone."""
        if isinstance(self.drawings, Buckets):
            return self._loss_of_sizes(self.drawings, module, loop)
        settings = self.settings
        maker = self.target_maker(module, loop)
        student = self._denoiser(module, maker.levels, guided=False)

        def loss(step: int, part: int) -> torch.Tensor:
            batch = self.batch(step, part)
            target = maker.make(batch)
            clean = student(target.x, target.level, batch.condition)
            return weighted_loss(settings.loss_kind, settings.weight, clean - target.clean, target.level, maker.levels)

        return loss

    def at_sizes(self) -> dict[str, Stage]:
        """The training at each size, by its name; one without a name at the model's own."""
        if not isinstance(self.drawings, Buckets):
            return {"": self}
        return {
            str(part.size): replace(
                self,
                teacher=part.teacher,
                drawings=part.drawings,
                ratio=part.ratio if self.settings.shift else 1.0,
            )
            for part in self.drawings.parts
        }

    def size_plan(self, buckets: Buckets) -> SizePlan:
        """Which size a training step has."""
        samples = tuple(len(part.drawings) for part in buckets.parts)
        grow = self.settings.grow if self.previous is None else 0.0
        return SizePlan(buckets.sizes, samples, self.settings.seed, grow)

    def _loss_of_sizes(self, buckets: Buckets, module: Any, loop: Loop) -> Callable[[int, int], torch.Tensor]:
        plan = self.size_plan(buckets)
        losses = [stage.loss_function(module, loop) for stage in self.at_sizes().values()]
        return lambda step, part: losses[plan.index(step, loop.steps)](step, part)

    def target_maker(self, module: Any, loop: Loop) -> TargetMaker:
        """The targets of the method."""
        settings, network = self.settings, self.network

        def teaching() -> AbstractContextManager[Any]:
            return network.as_teacher() if self.previous is None else network.using(self.previous)

        if settings.method == "progressive":
            levels = self._levels(2 * self.steps)
            return ProgressiveTargets(levels, self._denoiser(module, levels, self.previous is None), teaching)
        levels = self._levels(settings.fine)
        return ConsistencyTargets(
            levels,
            self.steps,
            self._denoiser(module, levels, guided=True),
            teaching,
            self._denoiser(module, levels, guided=False),
            lambda: network.using(loop.target),
        )

    def batch(self, step: int, part: int) -> Batch:
        """Samples of a part of a training step, its own on every process."""
        assert isinstance(self.drawings, Drawings)
        settings, device = self.settings, self.accelerator.device
        size = settings.batch // settings.accumulate
        key = seeded_key(settings.seed, *map(str, (self.steps, step, part, self.accelerator.process_index)))
        generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
        chosen = torch.randint(len(self.drawings), (size,), generator=generator)
        clean = self.drawings.latents[chosen].to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        condition = self._encode([self.drawings.prompts[i] for i in chosen.tolist()])
        share = spread_evenly(generator, size, device)
        if self.ratio != 1.0:
            share = shift_shares(self.teacher.schedule, self.ratio, share)
        if settings.guidance_range:
            low, high = settings.guidance_range
            condition[GUIDANCE] = (low + (high - low) * torch.rand(size, generator=generator)).to(device)
        return Batch(clean, noise, condition, share)

    def _levels(self, count: int) -> Levels:
        return Levels.of(self.teacher.schedule, count).to(self.accelerator.device)

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str]) -> Condition:
        return self.teacher.encode(prompts)

    def _denoiser(self, module: Any, levels: Levels, guided: bool) -> Denoiser:
        needed = self.settings.guidance != 1.0 or bool(self.settings.guidance_range)
        empty = self._encode([""]) if guided and needed else None

        def call(x: torch.Tensor, times: torch.Tensor, condition: Condition) -> torch.Tensor:
            return call_denoiser(module, x, times, condition)

        return Denoiser(call, levels, self.teacher.prediction, empty, self.settings.guidance)
