"""Clean latents for training: the teacher draws its prompts once, and every drawing is kept by a hash of its causes."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from skipstone.cli.files import write_atomically
from skipstone.evaluation.samplers import build_scheduler
from skipstone.integrations.identity import digest, networks, scheduler_to_config
from skipstone.numerics.grid import Trailing
from skipstone.solvers.unipc import UniPC

from .teacher import Teacher

SHARD = 64  # drawings of one call and of one file


@dataclass(frozen=True)
class Drawings:
    """What the student learns from: what the teacher drew, or pictures that were given.

    Args:
        prompts: Of each.
        latents: (N, ...), float32.
        rows: Rows of the network that they cost; 0 of pictures that were encoded.
    """

    prompts: tuple[str, ...]
    latents: torch.Tensor
    rows: int

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class DrawingOrder:
    """What to draw.

    Args:
        prompts: One for each drawing.
        seed: Of the first drawing; the others follow.
        steps: Of each.
        guidance: Weight.
    """

    prompts: tuple[str, ...]
    seed: int
    steps: int
    guidance: float


def draw_latents(
    teacher: Teacher,
    order: DrawingOrder,
    cache: Path,
    seconds: float = 0.0,
    on_progress: Callable[[str, float, float], None] | None = None,
) -> Drawings:
    """Let the teacher draw, by UniPC where its noise schedule is a table, and keep what it drew.

    Files are found again by SHA-256 over weights, scheduler, settings, prompts and seeds, so that nothing is drawn
    twice and nothing stale is used.

    Args:
        teacher: Who draws.
        order: What.
        cache: Folder of the files.
        seconds: After which nothing more is drawn, once there is something; 0 draws all.
        on_progress: Called with (what, done, total).
    """
    with drawing_pipeline(teacher) as pipe:
        facts = {
            "weights": digest(networks(pipe)),
            "scheduler": scheduler_to_config(pipe.scheduler),
            "arguments": {name: str(value) for name, value in sorted(teacher.arguments.items())},
            "steps": order.steps,
            "guidance": order.guidance,
        }
        found, began = list[torch.Tensor](), time.monotonic()
        for start in range(0, len(order.prompts), SHARD):
            some = order.prompts[start : start + SHARD]
            seeds = list(range(order.seed + start, order.seed + start + len(some)))
            key = json.dumps([facts, some, seeds], sort_keys=True)
            file = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
            if not file.is_file():
                if found and 0 < seconds < time.monotonic() - began:
                    break
                latents = _draw(pipe, some, seeds, order, teacher)
                write_atomically({file: save({"latents": latents})})
            found.append(load_file(file)["latents"])
            if on_progress is not None:
                on_progress("Drawing with the teacher", start + len(some), len(order.prompts))
    latents = torch.cat(found).float()
    rows = len(latents) * order.steps * (1 if order.guidance == 1 else 2)
    return Drawings(order.prompts[: len(latents)], latents, rows)


@contextmanager
def drawing_pipeline(teacher: Teacher, scheduler: Any = None) -> Iterator[Any]:
    """The pipeline without its progress bar, under a scheduler: by default one that needs few steps."""
    pipe, own = teacher.pipe, teacher.pipe.scheduler
    bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(disable=True)
    if scheduler is not None:
        pipe.scheduler = scheduler
    elif not teacher.is_flow:
        pipe.scheduler = build_scheduler(own, UniPC(), Trailing())
    try:
        yield pipe
    finally:
        pipe.scheduler = own
        pipe._progress_bar_config = bar


@torch.no_grad()
def _draw(
    pipe: Any, prompts: Sequence[str], seeds: Sequence[int], order: DrawingOrder, teacher: Teacher
) -> torch.Tensor:
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    drawn = pipe(
        list(prompts),
        num_inference_steps=order.steps,
        guidance_scale=order.guidance,
        generator=generators,
        output_type="latent",
        **teacher.arguments,
    ).images
    latents: torch.Tensor = drawn.float().cpu().contiguous()
    return latents
