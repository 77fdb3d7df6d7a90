"""`skipstone.distill`: from a pipeline and prompts to the folder of a student."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from skipstone.cli.files import write_atomically
from skipstone.errors import ModelError, PromptError, SpecError
from skipstone.integrations.students import network_fingerprint
from skipstone.satellites import require_module

from .captioned import encode_pictures, read_captions, sort_by_size
from .course import Course, Progress
from .data import DrawingOrder, Drawings, draw_latents
from .network import student_network
from .quality import QualityCheck
from .settings import DistillSettings, Method
from .sizes import build_buckets, resize_teacher
from .stage import Stage
from .teacher import Teacher

DRAWING_SEED = 1_000_000  # first seed of what the teacher draws, far from those of evaluations
DRAWING_SHARE = 0.3  # of the time, where it is given, that drawings may take
DRAWN, CACHE = "drawings.json", "drawings"


def distill(
    pipe: Any,
    prompts: Sequence[str] | Path,
    method: Method = "consistency",
    steps: int = 4,
    *,
    out: str | Path = "student",
    settings: DistillSettings | None = None,
    quality: QualityCheck | None = None,
    on_progress: Progress | None = None,
) -> Path:
    """Train a student that needs few steps; returns its folder.

        skipstone.distill(pipe, prompts, method="progressive", steps=4, out="mine")

    The teacher draws the prompts, and the student learns from what it drew, or from pictures of yours. The folder
    holds a LoRA, or weights, with a scheduler, in diffusers' own formats. What was begun there with the same settings
    goes on.

    Args:
        pipe: A pipeline of Stable Diffusion (XL) or Stable Diffusion 3, or a `Teacher` of one; the same afterwards.
        prompts: What the teacher draws. Or a folder of pictures to learn from in place of drawings, with captions in
            metadata.jsonl, metadata.csv (file_name, text), or each in NAME.txt.
        method: "progressive" or "consistency".
        steps: Of the student, in 1..64.
        out: Folder of checkpoints, log and result.
        settings: Everything else; `method` and `steps` are those above.
        quality: What every stage of "progressive" must keep: the last stage that does is the student.
        on_progress: Called with (what, done, total).

    Raises:
        ModelError: a teacher of another kind, or one that is distilled already; a training that cannot go on.
        PromptError: no prompts, or an empty one.
        SpecError: settings that do not fit; a folder without pictures, or an autoencoder that cannot encode them.
        TargetMissedError: no stage keeps the quality.

    References: Salimans & Ho 2022, arXiv 2202.00512; Luo et al. 2023, arXiv 2310.04378.
    """
    settings = replace(settings or DistillSettings(), method=method, steps=steps)
    teacher = pipe if isinstance(pipe, Teacher) else Teacher.of(pipe)
    pictures, texts = None, [] if isinstance(prompts, Path) else prompts
    if isinstance(prompts, Path):
        pictures = read_captions(prompts)
        texts = [caption for _, caption in pictures]
    _check(teacher, settings, texts)
    _train(teacher, settings, texts, pictures, Path(out), quality, on_progress)
    return Path(out)


def _train(
    teacher: Teacher,
    settings: DistillSettings,
    prompts: Sequence[str],
    pictures: Sequence[tuple[Path, str]] | None,
    folder: Path,
    quality: QualityCheck | None,
    on_progress: Progress | None,
) -> None:
    """Draw or encode what the student learns from, and train it; the teacher is the same afterwards."""
    began, fingerprint = time.monotonic(), network_fingerprint(teacher.denoiser)
    accelerator = _accelerator(settings.precision)
    teacher.pipe.to(accelerator.device)
    with _ready(teacher.denoiser, settings.checkpointing):
        sizes = settings.parsed_sizes
        teachers = resize_teacher(teacher, sizes) if sizes else [teacher]
        if pictures is None:
            found = _draw(teachers, settings, prompts, folder, on_progress)
        else:
            sorted_ = sort_by_size(pictures, sizes) if sizes else [pictures]
            found = [
                encode_pictures(at, some, folder / CACHE, on_progress)
                for at, some in zip(teachers, sorted_, strict=True)
            ]
        drawings = build_buckets(teacher, sizes, teachers, found) if sizes else found[0]
        takes_guidance = bool(settings.guidance_range)
        with student_network(teacher.denoiser, settings.rank, settings.seed, takes_guidance=takes_guidance) as network:
            stages = [Stage(settings, teachers[0], network, drawings, accelerator, n) for n in settings.stages]
            Course(stages, folder, fingerprint, began, quality, on_progress).run()


def _accelerator(precision: str) -> Any:
    require_module("accelerate", "train")
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()  # or all distillations of a process must have the precision of the first
    return Accelerator(mixed_precision=precision)


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
    if settings.guidance_range and teacher.part != "unet":
        raise ModelError(
            f"Expected a UNet2DConditionModel with guidance_range, got {type(teacher.denoiser).__name__}, which has no "
            f"input for the guidance weight. Distil one weight: leave guidance_range out, and give guidance."
        )
    dtype = next(iter(teacher.denoiser.parameters())).dtype
    lora_alone = settings.rank > 0 and not settings.guidance_range
    if dtype != torch.float32 and (not lora_alone or settings.precision == "no"):
        raise ModelError(
            f"Expected a teacher in float32, got {str(dtype).removeprefix('torch.')}, which only a LoRA with precision "
            f"'bf16' or 'fp16' learns from. Load it with torch_dtype=torch.float32."
        )


def _draw(
    teachers: Sequence[Teacher],
    settings: DistillSettings,
    prompts: Sequence[str],
    folder: Path,
    on_progress: Progress | None,
) -> list[Drawings]:
    """The drawings of each teacher: as many as fit in their share of the time; of a resumed training, as before."""
    known, parts = folder / DRAWN, len(teachers)
    counts = [settings.pictures * (i + 1) // parts - settings.pictures * i // parts for i in range(parts)]
    seconds = DRAWING_SHARE * 60 * settings.minutes / parts
    if known.is_file():
        kept = json.loads(known.read_text(encoding="utf-8"))
        before = kept.get("of_sizes", [kept["drawings"]])
        if len(before) != parts:
            raise SpecError(
                f"{folder} has drawings of {len(before)} sizes, got {parts}. Give as many, or another --out."
            )
        counts, seconds = before, 0.0
    texts = list(prompts)
    random.Random(settings.seed).shuffle(texts)
    found: list[Drawings] = []
    for i, (teacher, count) in enumerate(zip(teachers, counts, strict=True)):
        start = settings.pictures * i // parts
        some = tuple(texts[at % len(texts)] for at in range(start, start + count))
        order = DrawingOrder(some, DRAWING_SEED + settings.seed + start, settings.picture_steps, settings.guidance)
        found.append(draw_latents(teacher, order, folder / CACHE, seconds, on_progress))
    drawn = [len(drawings) for drawings in found]
    facts = {"drawings": sum(drawn)} if parts == 1 else {"drawings": sum(drawn), "of_sizes": drawn}
    write_atomically({known: json.dumps(facts).encode()})
    return found
