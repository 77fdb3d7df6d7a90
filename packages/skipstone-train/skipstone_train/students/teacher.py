"""A diffusers pipeline as a teacher: its denoiser, its words, its noise schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from skipstone.errors import ModelError
from skipstone.integrations.students import guidance_embedding
from skipstone.numerics.schedule import Schedule
from skipstone.numerics.tables import Table, TableSchedule

from .network import GUIDANCE_WIDTH

Condition: TypeAlias = dict[str, torch.Tensor]
Part: TypeAlias = Literal["unet", "transformer"]
PARTS: tuple[Part, ...] = ("unet", "transformer")
GUIDANCE = "guidance"  # in a condition: the weight of each sample, for a student that takes it as an input
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}
# Words in the names of models and adapters that are published as distilled.
DISTILLED_NAMES = ("lcm", "turbo", "lightning", "hyper-sd", "hypersd", "schnell", "tcd", "dmd", "pcm", "flash-sd")
DISTILLED_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "FlowMatchLCMScheduler")


@dataclass(frozen=True)
class Teacher:
    """What distillation needs to know of a pipeline.

    Args:
        pipe: The pipeline.
        part: "unet" or "transformer".
        schedule: Of the denoiser.
        prediction: What it puts out: "eps", "v", "x0" or "flow".
        encode: Prompts -> condition, each tensor with a row for each prompt.
        arguments: Of the pipeline's call, where it draws.
        name: What the student's card calls it.
    """

    pipe: Any
    part: Part
    schedule: Schedule
    prediction: str
    encode: Callable[[Sequence[str]], Condition]
    arguments: Mapping[str, Any]
    name: str

    @staticmethod
    def of(pipe: Any, arguments: Mapping[str, Any] | None = None, name: str = "") -> Teacher:
        """The teacher in a pipeline.

        Args:
            pipe: A text-to-image pipeline of diffusers with a `UNet2DConditionModel` or an `SD3Transformer2DModel`.
            arguments: Of the pipeline's call, such as `height` or `max_sequence_length`.
            name: What the student's card calls it; where the pipeline was loaded from, if it is not given.

        Raises:
            ModelError: another kind of pipeline, or one that is distilled already.
        """
        arguments = dict(arguments or {})
        part = next((name for name in PARTS if getattr(pipe, name, None) is not None), PARTS[0])
        denoiser = getattr(pipe, part, None)
        kind = type(denoiser).__name__
        encoders: dict[tuple[str, str], Callable[..., Condition]] = {
            ("UNet2DConditionModel", "StableDiffusionPipeline"): _encode_sd,
            ("UNet2DConditionModel", "StableDiffusionXLPipeline"): _encode_sdxl,
            ("SD3Transformer2DModel", "StableDiffusion3Pipeline"): _encode_sd3,
        }
        kinds = [(cls.__name__, type(pipe).__name__) for cls in type(denoiser).__mro__]  # a child's is a subclass
        encode = next((encoders[one] for one in kinds if one in encoders), None)
        if encode is None:
            raise ModelError(
                f"Expected a teacher among {', '.join(name for _, name in encoders)}, got {type(pipe).__name__} with "
                f"{'no denoiser' if denoiser is None else f'a {kind}'}."
            )
        if sign := find_distillation(pipe, part):
            raise ModelError(f"The teacher is distilled already: {sign}. Give the model that it was distilled from.")
        config = pipe.scheduler.config
        prediction = PREDICTIONS[config.get("prediction_type", "flow_prediction")]
        schedule = Table.from_scheduler(pipe.scheduler)
        source = str(getattr(pipe.config, "_name_or_path", "") or "")
        name = name or (Path(source).name if Path(source).is_dir() else source)  # nobody else has our folders
        return Teacher(pipe, part, schedule, prediction, lambda texts: encode(pipe, texts, arguments), arguments, name)

    @property
    def denoiser(self) -> Any:
        """The network that is distilled."""
        return getattr(self.pipe, self.part)

    @property
    def is_flow(self) -> bool:
        """Whether the noise schedule is a straight path."""
        return not isinstance(self.schedule, TableSchedule)


def find_distillation(pipe: Any, part: str) -> str:
    """What shows that a pipeline is distilled already; empty where nothing does."""
    denoiser = getattr(pipe, part)
    if getattr(denoiser.config, "time_cond_proj_dim", None):
        return f"its {part} takes the guidance weight as an input (time_cond_proj_dim)"
    if getattr(denoiser.config, "guidance_embeds", False):
        return f"its {part} takes the guidance weight as an input (guidance_embeds)"
    scheduler = type(pipe.scheduler).__name__
    if scheduler in DISTILLED_SCHEDULERS:
        return f"its scheduler is {scheduler}, which only such models use"
    if adapters := list(getattr(denoiser, "peft_config", None) or ()):
        return (
            f"its {part} carries the adapter {adapters[0]!r}; unload it with pipe.unload_lora_weights() if it is none"
        )
    for name in (getattr(pipe.config, "_name_or_path", "") or "", getattr(denoiser.config, "_name_or_path", "") or ""):
        last = str(name).replace("\\", "/").rstrip("/").split("/")[-1].lower()
        if found := next((word for word in DISTILLED_NAMES if word in last), None):
            return f"its name, {last}, has {found!r} in it"
    return ""


def call_denoiser(module: Any, x: torch.Tensor, timestep: torch.Tensor, condition: Condition) -> torch.Tensor:
    """The output of a denoiser of diffusers, float32."""
    given: dict[str, Any] = dict(condition)
    if GUIDANCE in given:
        given["timestep_cond"] = guidance_embedding(given.pop(GUIDANCE), GUIDANCE_WIDTH)
    if "time_ids" in given:
        given["added_cond_kwargs"] = {name: given.pop(name) for name in ("text_embeds", "time_ids")}
    output: torch.Tensor = module(x, timestep=timestep, **given, return_dict=False)[0]
    return output.float()


def _encode_sd(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any]) -> Condition:
    states = pipe.encode_prompt(list(prompts), pipe.device, 1, False)[0]
    return {"encoder_hidden_states": states}


def _encode_sdxl(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any]) -> Condition:
    states, _, pooled, _ = pipe.encode_prompt(list(prompts), do_classifier_free_guidance=False, device=pipe.device)
    side = pipe.unet.config.sample_size * pipe.vae_scale_factor
    size = (arguments.get("height", side), arguments.get("width", side))
    ids = torch.tensor([*size, 0, 0, *size], dtype=states.dtype, device=states.device)
    return {"encoder_hidden_states": states, "text_embeds": pooled, "time_ids": ids.repeat(len(states), 1)}


def _encode_sd3(pipe: Any, prompts: Sequence[str], arguments: Mapping[str, Any]) -> Condition:
    length = {name: arguments[name] for name in ("max_sequence_length",) if name in arguments}
    texts = list(prompts)
    states, _, pooled, _ = pipe.encode_prompt(texts, texts, texts, do_classifier_free_guidance=False, **length)
    return {"encoder_hidden_states": states, "pooled_projections": pooled}
