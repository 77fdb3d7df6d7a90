"""How much memory a training takes, measured on two samples before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from .loop import Loop, TrainingError
from .stage import Stage

GIB = 2**30
PASSING = 1.5  # of what a sample keeps, values of the backward pass included: on Pebble 0.44 GiB where 0.30 are kept
COPIES = 5  # of the trained weights: gradient, two moments of Adam, the average, the target network


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a training takes.

    Args:
        pipeline: All networks of the pipeline.
        training: Gradients, moments and averages of the trained weights, and what autocast makes of weights.
        sample: What one sample takes in the backward pass.
        samples: In memory at once: batch / accumulate.
    """

    pipeline: int
    training: int
    sample: int
    samples: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.pipeline + self.training + self.sample * self.samples

    def check(self, limit: float, size: str = "") -> None:
        """Raise TrainingError where more than `limit` GiB are needed, at a size; 0 allows any."""
        if not limit or self.total <= limit * GIB:
            return
        left = limit * GIB - self.pipeline - self.training
        fitting = int(left // max(1, self.sample))
        advice = (
            f"Compute the batch in parts of at most {fitting} samples (--accumulate), or keep less (--checkpointing)."
            if fitting > 0
            else "Train a LoRA of a smaller --rank, load the teacher in bfloat16, or allow more."
        )
        if size:
            advice += f" Or leave {size} out of --sizes."
        raise TrainingError(
            f"Expected a training that takes at most {limit:g} GiB, got {self.total / GIB:.2f}"
            f"{f' at {size}' if size else ''}: "
            f"{self.pipeline / GIB:.2f} for the pipeline, {self.training / GIB:.2f} for what is trained, "
            f"{self.sample / GIB:.4f} for each of {self.samples} samples. {advice}"
        )


def estimate_memory(stage: Stage, loop: Loop) -> MemoryEstimate:
    """Measure one and two samples of a stage; its weights, its random numbers and the loop stay as they are."""
    settings, network = stage.settings, stage.network
    one, two = (_saved_bytes(stage, loop, batch) for batch in (1, 2))
    modules = [part for part in stage.teacher.pipe.components.values() if isinstance(part, torch.nn.Module)]
    pipeline = sum(_bytes(tensor) for part in modules for tensor in (*part.parameters(), *part.buffers()))
    copies = COPIES if settings.rank else COPIES + 1  # the teacher's own values
    if len(settings.stages) > 1:
        copies += 1  # those of the stage before
    training = copies * sum(_bytes(p) for p in network.parameters)
    kept = max(0, two - one)  # weights that autocast has converted are kept, too, however many samples there are
    sample = round(PASSING * kept)
    return MemoryEstimate(pipeline, training + max(0, one - kept), sample, settings.batch // settings.accumulate)


def _saved_bytes(stage: Stage, loop: Loop, batch: int) -> int:
    """What the loss of so many samples keeps for its backward pass, beside the weights themselves."""
    small = replace(stage, settings=replace(stage.settings, batch=batch, accumulate=1))
    loss = small.loss_function(stage.network.module, loop)
    with _count_saved() as saved, stage.accelerator.autocast():
        loss(0, 0)
    own = {p.untyped_storage().data_ptr() for p in stage.network.module.parameters()}
    return sum(size for address, size in saved.items() if address not in own)


@contextmanager
def _count_saved() -> Iterator[dict[int, int]]:
    """Storages that are kept for a backward pass: address -> bytes."""
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> Any:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
