"""Other people's samplers and guidance, as themselves: they spare no part of a call, and some make more of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from skipstone.errors import GuestError
from skipstone.evaluation.peers import CallContextFactory, Peer, no_context, quiet_logging
from skipstone.registry import register
from skipstone.settings import MAX_STEPS, Ranges, check_settings

BASE_PIPELINE = "StableDiffusionPipeline"


class PublishedPeer(Peer):
    """Base of what is no accelerator of calls: another scheduler, other weights, other guidance.

    They are not among the rows that a benchmark always has: ask for them by name, or for the set `addiffusion`.
    """

    skips_work: ClassVar[bool] = False

    @classmethod
    def settings(cls) -> list[str]:
        """None: they run only where they are named."""
        return []

    def unsupported_reason(self, pipe: Any) -> str | None:
        return None

    def probe_modules(self, pipe: Any) -> list[Any]:
        return []

    def install(self, pipe: Any) -> AbstractContextManager[CallContextFactory]:
        return install_nothing()


@contextmanager
def install_nothing() -> Iterator[CallContextFactory]:
    """Nothing put on."""
    yield no_context


class OtherPipelinePeer(PublishedPeer):
    """Base of what diffusers has as a pipeline of its own, made here of the parts of the pipeline that there is."""

    pipeline: ClassVar[str]

    def unsupported_reason(self, pipe: Any) -> str | None:
        import diffusers

        if BASE_PIPELINE not in [kind.__name__ for kind in type(pipe).__mro__]:
            return f"{self.pipeline} is made of the parts of a {BASE_PIPELINE}, and this is a {type(pipe).__name__}"
        if not inspect.isclass(getattr(diffusers, self.pipeline, None)):
            return f"diffusers {diffusers.__version__} has no {self.pipeline} any more; 0.33 to 0.42 have it"
        return None

    def run(self, pipe: Any, bare: Callable[..., Any], call_arguments: Mapping[str, Any]) -> Any:
        other = self.build_pipeline(pipe)
        takes, usual = (inspect.signature(call).parameters for call in (type(other).__call__, bare))
        for name, value in call_arguments.items():
            if name not in takes and not _is_default(usual.get(name), value):
                raise GuestError(f"{self.pipeline} takes no {name}, which the pipeline is told: leave it out.")
        accepted = {name: value for name, value in call_arguments.items() if name in takes}
        return other(**accepted, **self.extra_arguments(pipe, accepted))

    def extra_arguments(self, pipe: Any, call_arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Arguments of its call beside those of the bare pipeline."""
        raise NotImplementedError

    def build_pipeline(self, pipe: Any) -> Any:
        """The other pipeline, of the very same parts."""
        import diffusers

        kind = getattr(diffusers, self.pipeline)
        takes = inspect.signature(kind.__init__).parameters
        parts = {name: part for name, part in pipe.components.items() if name in takes}
        with quiet_logging():  # it would announce that it is deprecated, and that nothing checks its pictures
            other = kind(**parts, requires_safety_checker=False)
        other.progress_bar = pipe.progress_bar
        return other


def _is_default(parameter: inspect.Parameter | None, value: Any) -> bool:
    """Whether an argument has its default."""
    return parameter is not None and (parameter.default is value or parameter.default == value)


@register("peer")
@dataclass(frozen=True)
class SelfAttentionGuidance(OtherPipelinePeer):
    """Guide away from what blurring the attended parts would give: one more row in every step; diffusers' SAG.

    Costs 3 rows a step in place of 2, and 2 in place of 1 without guidance. Made for solvers of one call a step whose
    timesteps are whole: ddim, unipc, dpmpp.

    Args:
        scale: Of its guidance, in [0, 1000]; at 0 it is the bare pipeline, and costs no more.

    Raises:
        SpecError: a setting out of range.

    References: Hong et al. 2023, arXiv 2210.00939 (ICCV 2023).
    """

    scale: float = 0.75
    name: ClassVar[str] = "sag"
    ranges: ClassVar[Ranges] = {"scale": (0, 1e3)}
    steps: ClassVar[int] = 20
    pipeline: ClassVar[str] = "StableDiffusionSAGPipeline"

    def __post_init__(self) -> None:
        check_settings(self)

    def unsupported_reason(self, pipe: Any) -> str | None:
        if why := super().unsupported_reason(pipe):
            return why
        middle = getattr(pipe.unet, "mid_block", None)
        return None if getattr(middle, "attentions", None) else "this UNet has no attention in its middle block"

    def extra_arguments(self, pipe: Any, call_arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"sag_scale": self.scale}


@register("peer")
@dataclass(frozen=True)
class AttendAndExcite(OtherPipelinePeer):
    """Move the latent in every early step until each word of the prompt is attended to; diffusers' Attend-and-Excite.

    Every step makes a conditional forward beside the guided call, also those that move nothing; the first `moves` steps
    a backward pass each, and steps 0, 10 and 20 as many of both as their thresholds take, 20 at most and one forward.

    Args:
        moves: Steps that move the latent, in 0..10,000 (max_iter_to_alter).
        size: Side of the attention maps that are looked at, in 0..1,024; 0 is the one nearest to a quarter of the
            latents': 16, as published, of Stable Diffusion's 64.

    Raises:
        SpecError: a setting out of range.

    References: Chefer et al. 2023, arXiv 2301.13826 (SIGGRAPH 2023).
    """

    moves: int = 25
    size: int = 0
    name: ClassVar[str] = "attend_and_excite"
    ranges: ClassVar[Ranges] = {"moves": (0, MAX_STEPS), "size": (0, 1024)}
    steps: ClassVar[int] = 50
    pipeline: ClassVar[str] = "StableDiffusionAttendAndExcitePipeline"

    def __post_init__(self) -> None:
        check_settings(self)

    def unsupported_reason(self, pipe: Any) -> str | None:
        if why := super().unsupported_reason(pipe):
            return why
        sizes = cross_attention_sides(pipe.unet)
        if self.size in sizes or (sizes and not self.size):
            return None
        has = ", ".join(f"{size} x {size}" for size in sizes) or "nowhere"
        return f"this UNet attends to the text at {has}, not at {self.size} x {self.size}: set size"

    def extra_arguments(self, pipe: Any, call_arguments: Mapping[str, Any]) -> dict[str, Any]:
        prompts = call_arguments.get("prompt")
        listed = [prompts] if isinstance(prompts, str) else list(prompts or ())
        indices = [content_tokens(pipe.tokenizer, prompt) for prompt in listed]
        if not indices or not all(indices):
            raise GuestError(f"{self.pipeline} needs prompts with words in them, got {prompts!r}.")
        sizes = cross_attention_sides(pipe.unet)
        size = self.size or min(sizes, key=lambda side: abs(side - latent_side(pipe.unet) / 4))
        return {"token_indices": indices, "max_iter_to_alter": self.moves, "attn_res": (size, size)}


def latent_side(unet: Any) -> int:
    """Side of the latents that a UNet usually gets."""
    side = unet.config.sample_size
    return int(side if isinstance(side, int) else side[0])


def cross_attention_sides(unet: Any) -> list[int]:
    """Sides of the maps at which a UNet attends to the text, largest first, for latents of its usual size."""
    sides = [latent_side(unet) // 2**k for k in range(len(unet.down_blocks))]
    blocks = zip(sides, unet.down_blocks, strict=True)
    found = [side for side, block in blocks if getattr(block, "has_cross_attention", False)]
    middle = getattr(unet, "mid_block", None)
    return list(dict.fromkeys([*found, *(sides[-1:] if getattr(middle, "has_cross_attention", False) else [])]))


def content_tokens(tokenizer: Any, prompt: str) -> list[int]:
    """Places of all tokens of a prompt but the special ones, as a pipeline pads and cuts it."""
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    special = set(tokenizer.all_special_ids)
    return [place for place, token in enumerate(ids) if token not in special]
