"""A child learns its teacher's outputs: the loop of the students on kept rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from skipstone.evaluation.prompts import seeded_key

from ..students.loop import Loop, StepCallback
from ..students.network import StudentNetwork
from ..students.optimizers import muon_and_adamw
from .rows import TeacherRows


@dataclass(frozen=True)
class ChildTraining:
    """How children are trained.

    Args:
        family: Of the denoiser: how it is called.
        rows: Of the teacher.
        steps: Training steps of a whole training, >= 1.
        batch: Rows of a step, even.
        rate: Peak learning rate.
        ema: Factor of the average of the weights that is the result.
        precision: "bf16" or "no" (float32) for the matrix products.
        seed: Of the batches.
    """

    family: Any
    rows: TeacherRows
    steps: int
    batch: int = 64
    rate: float = 1e-3
    ema: float = 0.99
    precision: str = "bf16"
    seed: int = 0

    def train(
        self,
        child: Any,
        folder: Path,
        facts: Mapping[str, Any],
        stop: int | None = None,
        on_step: StepCallback | None = None,
    ) -> Loop:
        """Train a child in a folder, from its checkpoint if there is one; the child has the averaged weights.

        Args:
            child: Changed in place.
            folder: Of checkpoint and log.
            facts: That must be the same when the training is resumed.
            stop: Step to leave at, with a checkpoint.
            on_step: Called with (step, steps, loss).

        Raises:
            TrainingError: a loss that is no number, or a checkpoint of another training.
        """
        accelerator = _accelerator(self.precision)
        network = StudentNetwork(child, 0)
        loop = Loop(
            network,
            accelerator,
            folder,
            {**facts, "batch": self.batch, "rate": self.rate, "seed": self.seed, "rows": len(self.rows)},
            self.rate,
            self.steps,
            ema=self.ema,
            build_optimizer=muon_and_adamw,
        )
        prepared = accelerator.prepare_model(child)
        try:
            loop.run(lambda step, part: self._loss(prepared, step), on_step, stop)
        finally:
            accelerator.unwrap_model(prepared, keep_fp32_wrapper=False)
        network.assign(loop.average)
        child.requires_grad_(False)
        return loop

    def _loss(self, child: Any, step: int) -> torch.Tensor:
        """Mean squared error of a batch's outputs; it depends on weights, seed and step alone."""
        key = seeded_key(self.seed, "rows", str(step))
        batch = self.rows.batch(torch.Generator().manual_seed(int.from_bytes(key[:7], "big")), self.batch)
        child.train()
        output = self.family.forward(child, batch.x, batch.times, batch.condition)
        loss: torch.Tensor = ((output.float() - batch.output) ** 2).mean()
        return loss


def _accelerator(precision: str) -> Any:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # or all trainings of a process must have the precision of the first
    return Accelerator(mixed_precision=precision, cpu=not torch.cuda.is_available())
