"""The transformer of FLUX.1 on MLX, with diffusers' parameter names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...errors import BackboneError, ModelError
from .network import Network
from .transformer_layers import (
    FeedForward,
    JointAttention,
    Modulation,
    TimeTextEmbedding,
    check_shapes,
    clip_float16,
    modulate,
)

NAME = "FluxTransformer2DModel"
THETA = 10000.0  # of the rotary embedding; diffusers has it as a constant too


@dataclass(frozen=True)
class FluxConfig:
    """Options of diffusers' `FluxTransformer2DModel`, with its defaults."""

    patch_size: int = 1
    in_channels: int = 64
    out_channels: int | None = None
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = False
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)


def rotary_embedding(ids: Any, channels: Sequence[int]) -> tuple[Any, Any]:
    """Cosines and sines of positions, `id * THETA^(-2i / n)`, side by side for each axis: two of (L, sum / 2).

    Args:
        ids: Positions (L, axes).
        channels: n of each axis.
    """
    angles = []
    for axis, n in enumerate(channels):
        frequencies = 1.0 / THETA ** (np.arange(0, n, 2, dtype=np.float64) / n)
        angles.append(ids[:, axis : axis + 1].astype(mx.float32) * mx.array(frequencies.astype(np.float32)))
    angle = mx.concatenate(angles, axis=-1)
    return mx.cos(angle), mx.sin(angle)


class FluxTransformerBlock(nn.Module):
    """Attention over the tokens of picture and prompt together, then a feed-forward layer for each."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm1_context = Modulation(width, 6), Modulation(width, 6)
        self.attn = JointAttention(width, heads)
        self.ff, self.ff_context = FeedForward(width), FeedForward(width)

    def __call__(self, x: Any, prompt: Any, embedding: Any, rotation: tuple[Any, Any]) -> tuple[Any, Any]:
        """Tokens of the picture and of the prompt after the block."""
        shift, scale, factor, shift_ff, scale_ff, factor_ff = self.norm1(embedding)
        c_shift, c_scale, c_factor, c_shift_ff, c_scale_ff, c_factor_ff = self.norm1_context(embedding)
        attended, prompt_attended = self.attn(modulate(x, shift, scale), modulate(prompt, c_shift, c_scale), rotation)
        x = x + factor * attended
        x = x + factor_ff * self.ff(modulate(x, shift_ff, scale_ff))
        prompt = prompt + c_factor * prompt_attended
        prompt = prompt + c_factor_ff * self.ff_context(modulate(prompt, c_shift_ff, c_scale_ff))
        return x, clip_float16(prompt)


class FluxSingleTransformerBlock(nn.Module):
    """Attention and a feed-forward layer side by side, over the tokens of prompt and picture in one row."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm = Modulation(width, 3)
        self.proj_mlp = nn.Linear(width, 4 * width)
        self.proj_out = nn.Linear(5 * width, width)
        self.attn = JointAttention(width, heads, prompt=False, out=False)

    def __call__(self, x: Any, embedding: Any, rotation: tuple[Any, Any]) -> Any:
        """The tokens (B, M + L, width) after the block."""
        shift, scale, factor = self.norm(embedding)
        normed = modulate(x, shift, scale)
        attended, _ = self.attn(normed, rotation=rotation)
        made = mx.concatenate([attended, nn.gelu_approx(self.proj_mlp(normed))], axis=-1)
        return clip_float16(x + factor * self.proj_out(made))


class FluxTransformer2DModel(Network):
    """The denoiser of FLUX.1 dev, schnell and models of their shape.

    Args:
        config: Its options.
    """

    Config = FluxConfig

    def __init__(self, config: FluxConfig) -> None:
        super().__init__(config)
        heads, axes = config.num_attention_heads, config.axes_dims_rope
        width = heads * config.attention_head_dim
        if sum(axes) != config.attention_head_dim or any(n % 2 for n in axes):
            raise ModelError(
                f"{NAME}: expected axes_dims_rope that are even and add up to attention_head_dim = "
                f"{config.attention_head_dim}, got {', '.join(map(str, axes))}."
            )
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_projection_dim, config.guidance_embeds)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        self.x_embedder = nn.Linear(config.in_channels, width)
        self.transformer_blocks = [FluxTransformerBlock(width, heads) for _ in range(config.num_layers)]
        self.single_transformer_blocks = [
            FluxSingleTransformerBlock(width, heads) for _ in range(config.num_single_layers)
        ]
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, config.patch_size**2 * (config.out_channels or config.in_channels))

    def __call__(
        self,
        hidden_states: Any,
        encoder_hidden_states: Any,
        pooled_projections: Any,
        timestep: Any,
        img_ids: Any,
        txt_ids: Any,
        guidance: Any = None,
    ) -> Any:
        """The prediction (B, L, C), in the dtype of the weights.

        Args:
            hidden_states: Packed latents (B, L, C).
            encoder_hidden_states: Tokens of the prompts (B, M, joint_attention_dim).
            pooled_projections: Pooled prompts (B, pooled_projection_dim).
            timestep: Shape (B,), from 0 (data) to 1 (noise).
            img_ids, txt_ids: Positions (L, 3) and (M, 3).
            guidance: Guidance scales (B,), for a model with guidance_embeds and for no other.

        Raises:
            BackboneError: shapes that do not fit, or guidance that the model has not, or has and is not given.
        """
        self._check(hidden_states, encoder_hidden_states, pooled_projections, timestep, guidance)
        words, cells = encoder_hidden_states.shape[1], hidden_states.shape[1]
        axes = self.config.axes_dims_rope
        check_shapes(
            NAME, {"img_ids": (img_ids.shape, (cells, len(axes))), "txt_ids": (txt_ids.shape, (words, len(axes)))}
        )
        dtype = self.proj_out.bias.dtype
        x, prompt = (
            self.x_embedder(hidden_states.astype(dtype)),
            self.context_embedder(encoder_hidden_states.astype(dtype)),
        )
        scales = None if guidance is None else guidance.astype(mx.float32) * 1000
        embedding = self.time_text_embed(timestep.astype(mx.float32) * 1000, pooled_projections.astype(dtype), scales)
        rotation = rotary_embedding(mx.concatenate([txt_ids, img_ids]), axes)
        for block in self.transformer_blocks:
            x, prompt = block(x, prompt, embedding, rotation)
        x = mx.concatenate([prompt, x], axis=1)
        for block in self.single_transformer_blocks:
            x = block(x, embedding, rotation)
        scale, shift = self.norm_out(embedding)
        return self.proj_out(modulate(x[:, words:], shift, scale))

    def _check(self, x: Any, prompt: Any, pooled: Any, timestep: Any, guidance: Any) -> None:
        config = self.config
        expected = {
            "hidden_states": (x.shape, (None, None, config.in_channels)),
            "encoder_hidden_states": (prompt.shape, (len(x), None, config.joint_attention_dim)),
            "pooled_projections": (pooled.shape, (len(x), config.pooled_projection_dim)),
            "timestep": (timestep.shape, (len(x),)),
        }
        if config.guidance_embeds and guidance is None:
            raise BackboneError(f"This {NAME} has guidance_embeds: give it guidance, one scale a sample.")
        if guidance is not None:
            if not config.guidance_embeds:
                raise BackboneError(f"This {NAME} has no guidance_embeds: call it without guidance.")
            expected["guidance"] = (guidance.shape, (len(x),))
        check_shapes(NAME, expected)
