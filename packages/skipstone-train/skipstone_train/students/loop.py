"""The training loop: rate, averages, log, checkpoints, exact resuming; accelerate sees to device and precision."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch

from skipstone.errors import ModelError, OutputError
from skipstone.evaluation.cost import BACKWARD_COST

from .network import StudentNetwork
from .optimizers import adamw

CHECKPOINT, LOG = "last.pt", "log.jsonl"
SAVE_SECONDS = 120.0
LOG_STEPS = 25
WARM_UP = 20  # steps over which the rate rises
DECAY = 0.3  # last share of the steps, over which it falls to 0
CLIP = 1.0  # largest norm of the gradient
TIMED_STEPS = 8  # after which the number of steps that fit in the time is known

LossFunction: TypeAlias = Callable[[int, int], torch.Tensor]  # training step, part of its batch -> loss
StepCallback: TypeAlias = Callable[[int, int, float], None]  # step, steps, loss


class TrainingError(ModelError):
    """A training that cannot go on."""


def rate_factor(step: int, steps: int) -> float:
    """Rate of a step as a fraction of its peak: linear rise, constant, 1 - sqrt fall (arXiv:2405.18392)."""
    falling = max(1, round(DECAY * steps))
    return min(1.0, (step + 1) / WARM_UP) * (1 - math.sqrt(max(0, step - (steps - falling)) / falling))


@dataclass
class Loop:
    """Trains a student's weights with Adam; resumed from a checkpoint it is, bit for bit, one that never stopped.

    Args:
        network: What is trained.
        accelerator: Of accelerate.
        folder: Receives `last.pt` and `log.jsonl`.
        facts: What must be the same when a training is resumed.
        rate: Peak learning rate.
        steps: Training steps; 0 is as many as `seconds` allow, measured on the first. May be another number when a
            training is resumed: only the rate's fall depends on it.
        seconds: Time, where `steps` is 0.
        accumulate: Parts of a batch.
        ema: Factor of the average that is the result.
        target_ema: That of the target network's.
        build_optimizer: Of the module and the rate.
    """

    network: StudentNetwork
    accelerator: Any
    folder: Path
    facts: Mapping[str, Any]
    rate: float
    steps: int
    seconds: float = 0.0
    accumulate: int = 1
    ema: float = 0.99
    target_ema: float = 0.95
    build_optimizer: Callable[[Any, float], torch.optim.Optimizer] = adamw
    step: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        optimiser = self.build_optimizer(self.network.module, self.rate)
        self.optimiser = self.accelerator.prepare_optimizer(optimiser)
        self.average, self.target = self.network.values(), self.network.values()
        self.recent: list[float] = []
        self.rows = 0

    def run(self, loss: LossFunction, on_step: StepCallback | None = None, stop: int | None = None) -> None:
        """Train to the last step, or to step `stop`, and leave a checkpoint.

        Raises:
            TrainingError: a loss that is no number; the last checkpoint is that of the last good step it was taken at.
            OutputError: a checkpoint cannot be written; the one before stays whole.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self.resume()
        counting = self.network.module.register_forward_pre_hook(self._count)
        try:
            self._run(loss, on_step, stop)
        finally:
            counting.remove()
        self.save()

    def _run(self, loss: LossFunction, on_step: StepCallback | None, stop: int | None) -> None:
        began, saved, first = time.monotonic(), time.monotonic(), self.step
        while not self.steps or self.step < (self.steps if stop is None else min(stop, self.steps)):
            value = self._advance(loss)
            now = time.monotonic()
            if not self.steps and self.step - first >= TIMED_STEPS:
                self.steps = max(self.step + 1, int(self.seconds * (self.step - first) / max(now - began, 1e-9)))
            if on_step is not None:
                on_step(self.step, self.steps, value)
            if self.accelerator.is_main_process and (self.step % LOG_STEPS == 0 or self.step == self.steps):
                self._log(now - began)
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now

    def _advance(self, loss: LossFunction) -> float:
        """One step of the optimiser; the mean loss of its parts."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.rate * rate_factor(self.step, self.steps or 10**9)
        total = 0.0
        for part in range(self.accumulate):
            found = loss(self.step, part) / self.accumulate
            total += float(found.detach())
            if not math.isfinite(total):
                self._refuse("loss", total)
            self.accelerator.backward(found)
        norm = float(self.accelerator.clip_grad_norm_(self.network.parameters, CLIP))
        if not math.isfinite(norm) and self.accelerator.mixed_precision != "fp16":  # whose scaler leaves such steps out
            self._refuse("norm of the gradient", norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        self.recent = [*self.recent, total][-LOG_STEPS:]
        current = [p.detach() for p in self.network.parameters]
        keep = min(self.ema, (1 + self.step) / (10 + self.step))  # a young average forgets its start sooner
        torch._foreach_lerp_(self.average, current, 1 - keep)
        torch._foreach_lerp_(self.target, current, 1 - self.target_ema)
        return total

    def _refuse(self, what: str, value: float) -> None:
        kept = self._kept_step()
        where = (
            f"The checkpoint of step {kept} stays in {self.folder}" if kept is not None else "There is no checkpoint"
        )
        raise TrainingError(
            f"Step {self.step}: expected a finite {what}, got {value}. {where}. Begin again with a lower rate (now "
            f"{self.rate:g}) or with precision 'no'."
        )

    def _kept_step(self) -> int | None:
        file = self.folder / CHECKPOINT
        return int(torch.load(file, weights_only=True)["step"]) if file.is_file() else None

    @property
    def recent_loss(self) -> float:
        """Mean loss of the last steps."""
        return sum(self.recent) / max(1, len(self.recent))

    def _count(self, module: Any, args: tuple[Any, ...]) -> None:
        self.rows += len(args[0]) * (1 + round(BACKWARD_COST) if torch.is_grad_enabled() else 1)

    def _log(self, seconds: float) -> None:
        line = {"step": self.step, "steps": self.steps, "loss": self.recent_loss, "seconds": round(seconds, 1)}
        with (self.folder / LOG).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")

    # -- Checkpoints ------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the checkpoint so that a crash or a full disk leaves either the old one or the new one, whole."""
        state = {
            "step": self.step,
            "steps": self.steps,
            "facts": json.dumps(self.facts, sort_keys=True),
            "weights": [p.detach() for p in self.network.parameters],
            "average": self.average,
            "target": self.target,
            "recent": self.recent,
            "rows": self.rows,
            "optimiser": self.optimiser.state_dict(),
        }
        if not self.accelerator.is_main_process:
            return
        part, file = self.folder / f"{CHECKPOINT}.part", self.folder / CHECKPOINT
        try:
            torch.save(state, part)
            os.replace(part, file)
        except (OSError, RuntimeError) as e:  # torch reports a full disk as a RuntimeError
            part.unlink(missing_ok=True)
            raise OutputError(f"Cannot write {file}: {e}. The checkpoint before it is whole.") from None

    def resume(self) -> None:
        """Take up the folder's checkpoint if there is one. Raises TrainingError where it is of another training."""
        file = self.folder / CHECKPOINT
        if not file.is_file():
            return
        state = torch.load(file, weights_only=True, map_location=self.accelerator.device)
        if state["facts"] != json.dumps(self.facts, sort_keys=True):
            raise TrainingError(
                f"{file} is of a training with {state['facts']}, expected {json.dumps(self.facts, sort_keys=True)}. "
                f"Give the same settings, or another folder."
            )
        self.network.assign(state["weights"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.target = state["average"], state["target"]
        self.step, self.steps = state["step"], self.steps or state["steps"]
        self.recent, self.rows = state["recent"], state["rows"]
