"""A student's folder in diffusers' own formats: weights or LoRA, scheduler, card and how to load it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from skipstone.cli.files import write_atomically
from skipstone.policies.seen_prompts import SEEN_FILE, write_seen
from skipstone.policies.student import CARD, StudentCard

from .network import ADAPTER, StudentNetwork
from .teacher import Teacher

README = """# A student of {teacher}, {steps} {noun}

Made by `skipstone distill`, {method} distillation. {guidance_said}

    from diffusers import {scheduler}, {pipeline}
{extra_import}    # {source} is its teacher, by folder or id; {folder} is this folder.
    pipe = {pipeline}.from_pretrained({source!r})
{load}
    pipe.scheduler = {scheduler}.from_pretrained({folder!r}, subfolder="scheduler")
    pipe("...", num_inference_steps={steps}, guidance_scale={guidance}{sigmas}).images[0]
"""


def export_student(
    folder: Path,
    teacher: Teacher,
    network: StudentNetwork,
    card: StudentCard,
    prompts: Sequence[str] = (),
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write a student's folder; its weights are rounded to `dtype`, in memory too, so that both are the same student.

    Where a LoRA is added to weights, which happens with an input for guidance, their sum is rounded once more.

    Args:
        folder: Receives weights, `scheduler/`, `student.json` and `README.md`.
        teacher: Its pipeline.
        network: Of the student.
        card: What `student.json` says.
        prompts: That it learnt from; their sums are written, so that a benchmark can tell.
        dtype: Of the file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    network.assign([value.to(dtype).to(value.dtype) for value in network.values()])
    if card.weights == "lora":
        from peft import get_peft_model_state_dict

        layers = get_peft_model_state_dict(network.module, adapter_name=ADAPTER)
        layers = {name: value.detach().to(dtype).contiguous() for name, value in layers.items()}
        type(teacher.pipe).save_lora_weights(folder, **{f"{card.part}_lora_layers": layers})
    else:
        # Of a copy, because buffers would not come back from half precision.
        network.merged().to(dtype).save_pretrained(folder / card.part)
    scheduler = build_student_scheduler(teacher, card)
    scheduler.save_pretrained(folder / "scheduler")
    text = json.dumps(asdict(card), indent=1) + "\n"
    readme = _readme(folder, teacher, card, type(scheduler).__name__)
    seen = {folder / SEEN_FILE: write_seen(prompts)} if prompts else {}
    write_atomically({folder / CARD: text.encode(), folder / "README.md": readme.encode(), **seen})
    weights = folder if card.weights == "lora" else folder / card.part
    for file in weights.glob("*.safetensors"):  # safetensors gives new files to their owner alone
        shutil.copymode(folder / CARD, file)


def build_student_scheduler(teacher: Teacher, card: StudentCard) -> Any:
    """The scheduler of diffusers under which a student takes its steps.

    DDIM with trailing steps; LCMScheduler for a consistency student of one segment, which adds fresh noise between
    steps; a flow keeps its own.
    """
    from diffusers import DDIMScheduler, LCMScheduler

    own = teacher.pipe.scheduler
    if teacher.is_flow:
        return own
    config: Mapping[str, Any] = {**own.config, "clip_sample": False, "thresholding": False}
    if card.method == "consistency" and card.steps == 1:
        return LCMScheduler.from_config(config)
    return DDIMScheduler.from_config(config, timestep_spacing="trailing")


def _guidance_said(card: StudentCard) -> str:
    if not card.guidance_range:
        return f"Guidance {card.guidance:g} is part of it: call it with\n`guidance_scale=1.0`."
    low, high = card.guidance_range
    return (
        f"It takes the weight of guidance, {low:g} to\n{high:g}, as an input: call it with any `guidance_scale` of "
        f"these. A step is one row of the network."
    )


def _readme(folder: Path, teacher: Teacher, card: StudentCard, scheduler: str) -> str:
    name, part = folder.name, card.part
    load, extra = f"    pipe.load_lora_weights({name!r})", ""
    if card.weights == "full":
        kind = type(teacher.denoiser).__name__
        load, extra = (
            f"    pipe.{part} = {kind}.from_pretrained({name!r}, subfolder={part!r})",
            f"    from diffusers import {kind}\n",
        )
    sigmas = [round(1 - i / card.steps, 6) for i in range(card.steps)]
    return README.format(
        teacher=card.teacher or "a model",
        source=card.teacher or "TEACHER",
        steps=card.steps,
        noun="step" if card.steps == 1 else "steps",
        method=card.method,
        guidance=card.guidance if card.guidance_range else 1.0,
        guidance_said=_guidance_said(card),
        scheduler=scheduler,
        pipeline=type(teacher.pipe).__name__,
        extra_import=extra,
        load=load,
        folder=name,
        sigmas=f", sigmas={sigmas}" if teacher.is_flow else "",
    )
