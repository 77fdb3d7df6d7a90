"""Caches of diffusers that spare attention: pyramid attention broadcast, FasterCache, TaylorSeer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from skipstone.errors import SpecError
from skipstone.evaluation.peer_harness import first_leaf
from skipstone.evaluation.peers import denoiser_of
from skipstone.registry import register
from skipstone.settings import MAX_STEPS, Ranges, check_settings

from .cache_hooks import (
    ALL_TIMESTEPS,
    IN_BLOCK,
    HookedCache,
    TimestepClock,
    attention_modules,
    require_guidance,
    unbatched_reason,
)

Parts = Literal["attention", "modules"]
ATTENTION_PATTERN = rf"{IN_BLOCK}\.attn\d?"
MODULE_PATTERNS = {  # what TaylorSeer forecasts: regular expressions on the names of modules
    "unet": {
        "attention": [ATTENTION_PATTERN],
        "modules": [r".*\.(resnets|transformer_blocks|downsamplers|upsamplers)\.\d+"],
    },
    "transformer": {
        "attention": [ATTENTION_PATTERN],
        "modules": [ATTENTION_PATTERN, rf"{IN_BLOCK}\.ff(n|_context)?"],
    },
}


@register("peer")
@dataclass(frozen=True)
class PyramidAttention(HookedCache):
    """Compute attention every k-th step and repeat its output between; diffusers' pyramid attention broadcast.

    Args:
        every: Steps from one computation of self-attention (or of joint attention) to the next, in 1..10,000. 1 repeats
            none.
        cross: The same of cross-attention, where the model has it, in 1..10,000.
        low, high: Timesteps (of 1000) between which it repeats, in -1..10,000 and rising; diffusers' default is 100
            to 800.

    Raises:
        SpecError: a setting out of range.

    References: Zhao et al. 2024, arXiv 2408.12588 (ICLR 2025).
    """

    every: int = 2
    cross: int = 3
    low: int = 100
    high: int = 800
    name: ClassVar[str] = "pyramid_attention"
    ranges: ClassVar[Ranges] = {
        **dict.fromkeys(("every", "cross"), (1, MAX_STEPS)),
        **dict.fromkeys(("low", "high"), (-1, MAX_STEPS)),
    }

    def __post_init__(self) -> None:
        check_settings(self)
        if self.low >= self.high:
            raise SpecError(f"pyramid_attention: expected low < high, got low={self.low} and high={self.high}.")

    @classmethod
    def settings(cls) -> list[str]:
        """From every second step to every eighth."""
        return [f"pyramid_attention(every={k}, cross={c})" for k, c in ((2, 3), (4, 6))] + [
            "pyramid_attention(every=8, cross=8, low=-1, high=1001)"
        ]

    def unsupported_reason(self, pipe: Any) -> str | None:
        return unbatched_reason(pipe) or (
            None if attention_modules(pipe) else "the denoiser has no attention in its blocks"
        )

    def probe_modules(self, pipe: Any) -> list[Any]:
        kinds = attention_modules(pipe, cross=False)[-1:] + attention_modules(pipe, cross=True)[-1:]
        return [module.to_q for module in kinds]

    def put_hooks(self, denoiser: Any, clock: TimestepClock) -> None:
        from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast

        config = PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=self.every,
            cross_attention_block_skip_range=self.cross,
            spatial_attention_timestep_skip_range=(self.low, self.high),
            cross_attention_timestep_skip_range=(self.low, self.high),
            current_timestep_callback=clock,
        )
        apply_pyramid_attention_broadcast(denoiser, config)


@register("peer")
@dataclass(frozen=True)
class FasterCache(HookedCache):
    """Spare attention, and forecast the unconditional branch from the other by frequencies; diffusers' FasterCache.

    It is on the alert from the first step to the last; attention is only spared in steps whose unconditional branch
    is, which is diffusers' rule. Weights are diffusers' defaults. Diffusers calls it purely experimental.

    Args:
        attention: Steps from one computation of attention to the next, in 1..10,000.
        uncond: Steps from one computation of the unconditional branch to the next, in 1..10,000. 1 spares
            nothing.

    Raises:
        SpecError: a setting out of range.

    References: Lv et al. 2024, arXiv 2410.19355 (ICLR 2025).
    """

    attention: int = 2
    uncond: int = 5
    name: ClassVar[str] = "faster_cache"
    ranges: ClassVar[Ranges] = {"attention": (1, MAX_STEPS), "uncond": (1, MAX_STEPS)}

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def settings(cls) -> list[str]:
        """From half of the unconditional branches to one in five."""
        return [f"faster_cache(attention={a}, uncond={u})" for a, u in ((2, 2), (2, 3), (2, 5), (4, 8))]

    def unsupported_reason(self, pipe: Any) -> str | None:
        if getattr(pipe, "transformer", None) is None:
            return "its hook halves every tensor that a denoiser is given by position, and a UNet's timestep is one"
        return unbatched_reason(pipe)

    def probe_modules(self, pipe: Any) -> list[Any]:
        return [attention_modules(pipe)[0].to_q, first_leaf(denoiser_of(pipe))]

    def begin(self, pipe: Any, call: Mapping[str, Any]) -> None:
        require_guidance(pipe, call)

    def put_hooks(self, denoiser: Any, clock: TimestepClock) -> None:
        from diffusers.hooks import FasterCacheConfig, apply_faster_cache

        config = FasterCacheConfig(
            spatial_attention_block_skip_range=self.attention,
            spatial_attention_timestep_skip_range=ALL_TIMESTEPS,
            unconditional_batch_skip_range=self.uncond,
            unconditional_batch_timestep_skip_range=ALL_TIMESTEPS,
            attention_weight_callback=lambda module: 0.5,
            tensor_format="BCHW",
            current_timestep_callback=clock,
            # Stable Diffusion 3 has an argument more than those that diffusers halves by default.
            _unconditional_conditional_input_kwargs_identifiers=[
                "hidden_states",
                "encoder_hidden_states",
                "pooled_projections",
                "timestep",
            ],
        )
        apply_faster_cache(denoiser, config)


@register("peer")
@dataclass(frozen=True)
class TaylorSeer(HookedCache):
    """Compute modules every k-th step and forecast their outputs by Taylor's series between; diffusers' TaylorSeer.

    Differences are taken per step, not per unit of time, and stored in float32. Diffusers hooks attention alone by
    default; the paper forecasts the feed-forward too (`modules`), to which a UNet adds its residual blocks.

    Args:
        interval: Steps from one full call to the next, in 1..10,000. 1 forecasts nothing.
        order: Of the series, in 0..3. 0 repeats.
        warmup: Steps at the start that are computed, in 1..10,000.
        what: "modules" or "attention": see above.

    Raises:
        SpecError: a setting out of range.

    References: Liu et al. 2025, arXiv 2503.06923 (ICCV 2025).
    """

    interval: int = 3
    order: int = 1
    warmup: int = 3
    what: Parts = "modules"
    name: ClassVar[str] = "taylorseer"
    ranges: ClassVar[Ranges] = {"interval": (1, MAX_STEPS), "order": (0, 3), "warmup": (1, MAX_STEPS)}

    def __post_init__(self) -> None:
        check_settings(self)

    @classmethod
    def settings(cls) -> list[str]:
        """From every second step to every fifth, and the second order."""
        return [f"taylorseer(interval={k})" for k in (2, 3, 5)] + ["taylorseer(interval=3, order=2)"]

    def unsupported_reason(self, pipe: Any) -> str | None:
        return super().unsupported_reason(pipe) or (
            None if attention_modules(pipe) else "the denoiser has no attention in its blocks"
        )

    def probe_modules(self, pipe: Any) -> list[Any]:
        return [attention_modules(pipe)[-1].to_q]

    def put_hooks(self, denoiser: Any, clock: TimestepClock) -> None:
        import torch
        from diffusers.hooks import TaylorSeerCacheConfig, apply_taylorseer_cache

        kind = "unet" if hasattr(denoiser, "down_blocks") else "transformer"
        config = TaylorSeerCacheConfig(
            cache_interval=self.interval,
            disable_cache_before_step=self.warmup,
            max_order=self.order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=MODULE_PATTERNS[kind][self.what],
        )
        apply_taylorseer_cache(denoiser, config)
