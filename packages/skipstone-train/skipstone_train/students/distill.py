"""`skipstone.distill`: from a pipeline and prompts to the folder of a student."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeAlias

import torch

from skipstone.cli.files import write_atomically
from skipstone.errors import ModelError, PromptError
from skipstone.integrations.students import network_fingerprint
from skipstone.policies.student import FORMAT, StudentCard
from skipstone.satellites import require_module

from .data import DrawingOrder, Drawings, draw_latents
from .export import export_student
from .loop import Loop, StepCallback
from .network import student_network
from .settings import DistillSettings, Method
from .stage import Stage
from .teacher import Teacher

DRAWING_SEED = 1_000_000  # first seed of what the teacher draws, far from those of evaluations
DRAWING_SHARE = 0.3  # of the time, where it is given, that drawings may take
DRAWN, CACHE = "drawings.json", "drawings"
Progress: TypeAlias = Callable[[str, float, float], None]  # what, done, total


def distill(
    pipe: Any,
    prompts: Sequence[str],
    method: Method = "consistency",
    steps: int = 4,
    *,
    out: str | Path = "student",
    settings: DistillSettings | None = None,
    arguments: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Train a student that needs few steps; returns its folder.

        skipstone.distill(pipe, prompts, method="progressive", steps=4, out="mine")

    The teacher draws the prompts, and the student learns from what it drew: no pictures are needed. The folder holds a
    LoRA, or weights, with a scheduler, in diffusers' own formats. What was begun there with the same settings goes on.

    Args:
        pipe: A pipeline of Stable Diffusion (XL) or Stable Diffusion 3; it is the same afterwards.
        prompts: What the teacher draws.
        method: "progressive" or "consistency".
        steps: Of the student, in 1..64.
        out: Folder of checkpoints, log and result.
        settings: Everything else; `method` and `steps` are those above.
        arguments: Of the pipeline's call where the teacher draws, such as `height`.
        on_progress: Called with (what, done, total).

    Raises:
        ModelError: a teacher of another kind, or one that is distilled already; a training that cannot go on.
        PromptError: no prompts, or an empty one.
        SpecError: settings that do not fit.

    References: Salimans & Ho 2022, arXiv 2202.00512; Luo et al. 2023, arXiv 2310.04378.
    """
    require_module("accelerate", "train")
    from accelerate import Accelerator

    settings = replace(settings or DistillSettings(), method=method, steps=steps)
    teacher, folder, began = Teacher.of(pipe, arguments), Path(out), time.monotonic()
    _check(teacher, settings, prompts)
    fingerprint = network_fingerprint(teacher.denoiser)
    accelerator = Accelerator(mixed_precision=settings.precision)
    pipe.to(accelerator.device)
    with _ready(teacher.denoiser, settings.checkpointing):
        drawings = _draw(teacher, settings, prompts, folder, on_progress)
        with student_network(teacher.denoiser, settings.rank, settings.seed) as network:
            stages = [Stage(settings, teacher, network, drawings, accelerator, n) for n in settings.stages]
            _train_stages(stages, folder, fingerprint, began, on_progress)
    return folder


@contextmanager
def _ready(denoiser: Any, checkpointing: bool) -> Iterator[None]:
    """The denoiser in the memory format in which convolutions are fast, and back again."""
    denoiser.to(memory_format=torch.channels_last)
    if checkpointing:
        denoiser.enable_gradient_checkpointing()
    try:
        yield
    finally:
        denoiser.to(memory_format=torch.contiguous_format)
        if checkpointing:
            denoiser.disable_gradient_checkpointing()


def _check(teacher: Teacher, settings: DistillSettings, prompts: Sequence[str]) -> None:
    """Raise PromptError for no prompts; ModelError for half precision that would be trained, or meets float32."""
    if not prompts or not all(text.strip() for text in prompts):
        raise PromptError("Expected at least one prompt, and none that is empty. Say what the teacher draws.")
    dtype = next(iter(teacher.denoiser.parameters())).dtype
    if dtype != torch.float32 and (not settings.rank or settings.precision == "no"):
        raise ModelError(
            f"Expected a teacher in float32, got {str(dtype).removeprefix('torch.')}, which only a LoRA with precision "
            f"'bf16' or 'fp16' learns from. Load it with torch_dtype=torch.float32."
        )


def _draw(
    teacher: Teacher, settings: DistillSettings, prompts: Sequence[str], folder: Path, on_progress: Progress | None
) -> Drawings:
    """The teacher's drawings: as many as fit in their share of the time; of a resumed training, as many as before."""
    known = folder / DRAWN
    count, seconds = settings.pictures, DRAWING_SHARE * 60 * settings.minutes
    if known.is_file():
        count, seconds = int(json.loads(known.read_text(encoding="utf-8"))["drawings"]), 0.0
    texts = list(prompts)
    random.Random(settings.seed).shuffle(texts)
    texts = [texts[i % len(texts)] for i in range(settings.pictures)]
    order = DrawingOrder(tuple(texts), DRAWING_SEED + settings.seed, settings.picture_steps, settings.guidance)
    drawings = draw_latents(
        teacher, replace(order, prompts=order.prompts[:count]), folder / CACHE, seconds, on_progress
    )
    write_atomically({known: json.dumps({"drawings": len(drawings)}).encode()})
    return drawings


def _train_stages(
    stages: Sequence[Stage], folder: Path, fingerprint: str, began: float, on_progress: Progress | None
) -> None:
    """Train one stage after the other, each from the weights of the one before, and write each one's student."""
    minutes = stages[0].settings.minutes
    for number, stage in enumerate(stages):
        left = max(1.0, 60 * minutes - (time.monotonic() - began)) / (len(stages) - number)
        last = number == len(stages) - 1
        inside = folder if last else folder / f"steps-{stage.steps}"
        loop = stage.train(folder / f"training-{stage.steps}", fingerprint, left, _step_callback(stage, on_progress))
        stage.network.assign(loop.average)
        if last or stage.settings.method == "progressive":
            export_student(inside, stage.teacher, stage.network, _card(stage, loop, fingerprint))
        if not last:
            stages[number + 1].previous = stage.network.values()


def _step_callback(stage: Stage, on_progress: Progress | None) -> StepCallback | None:
    if on_progress is None:
        return None
    recent: list[float] = []

    def on_step(step: int, steps: int, loss: float) -> None:
        recent.append(loss)
        mean = sum(recent[-25:]) / len(recent[-25:])
        on_progress(f"Training the student of {stage.steps} steps, loss {mean:.4f}", step, steps or step + 1)

    return on_step


def _card(stage: Stage, loop: Loop, fingerprint: str) -> StudentCard:
    settings, name = stage.settings, getattr(stage.teacher.pipe.config, "_name_or_path", "") or ""
    name = Path(name).name if Path(name).is_dir() else name  # nobody else has this machine's folders
    training = {
        "drawings": len(stage.drawings),
        "drawing_rows": len(stage.drawings) * settings.picture_steps * (1 if settings.guidance == 1 else 2),
        "steps": loop.step,
        "rows": loop.rows,
        "loss": loop.recent_loss,
    }
    return StudentCard(
        format=FORMAT,
        method=settings.method,
        steps=stage.steps,
        weights="lora" if settings.rank else "full",
        part=stage.teacher.part,
        guidance=settings.guidance,
        teacher=str(name),
        fingerprint=fingerprint,
        settings=asdict(settings),
        training=training,
    )
