"""The transformer of Stable Diffusion 3 and 3.5 (arXiv:2403.03206) on MLX, with diffusers' parameter names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

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

NAME = "SD3Transformer2DModel"


@dataclass(frozen=True)
class SD3Config:
    """Options of diffusers' `SD3Transformer2DModel`, with its defaults; a type says which values are ported."""

    sample_size: int = 128
    patch_size: int = 2
    in_channels: int = 16
    num_layers: int = 18
    attention_head_dim: int = 64
    num_attention_heads: int = 18
    joint_attention_dim: int = 4096
    caption_projection_dim: int = 1152
    pooled_projection_dim: int = 2048
    out_channels: int | None = 16
    pos_embed_max_size: int = 96
    dual_attention_layers: tuple[int, ...] = ()
    qk_norm: Literal["rms_norm"] | None = None


class PatchEmbedding(nn.Module):
    """Tokens of the patches of a latent, and where each patch lies.

    Args:
        channels: Of the latent.
        width: Of tokens.
        patch: Cells on a side of a patch.
        size: Patches on a side of the table of positions, of which the middle is taken.
    """

    def __init__(self, channels: int, width: int, patch: int, size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)
        self.pos_embed = mx.zeros((1, size * size, width))
        self._size = size

    def __call__(self, x: Any) -> Any:
        """Tokens (B, rows x columns, width) of a latent (B, H, W, C)."""
        x = self.proj(x)
        rows, columns = x.shape[1:3]
        if max(rows, columns) > self._size:
            raise BackboneError(
                f"{NAME} has positions for {self._size} x {self._size} patches, and the latent has {rows} x {columns}: "
                "ask for a smaller picture."
            )
        top, left = (self._size - rows) // 2, (self._size - columns) // 2
        table = self.pos_embed.reshape(1, self._size, self._size, -1)
        return (x + table[:, top : top + rows, left : left + columns].astype(x.dtype)).flatten(1, 2)


class JointTransformerBlock(nn.Module):
    """Attention over the tokens of picture and prompt together, then a feed-forward layer for each.

    Args:
        width, heads: Of tokens, and of attention.
        last: The last block: nothing reads its outputs of the prompt, so that they are not computed.
        dual: Whether the picture's tokens have an attention of their own beside the joint one (SD3.5 medium).
        qk_norm: Whether queries and keys are divided by their root mean square.
    """

    def __init__(self, width: int, heads: int, last: bool, dual: bool, qk_norm: bool) -> None:
        super().__init__()
        self._last, self._dual = last, dual
        self.norm1 = Modulation(width, 9 if dual else 6)
        self.norm1_context = Modulation(width, 2 if last else 6)
        self.attn = JointAttention(width, heads, qk_norm, prompt_out=not last)
        if dual:
            self.attn2 = JointAttention(width, heads, qk_norm, prompt=False)
        self.ff = FeedForward(width)
        if not last:
            self.ff_context = FeedForward(width)

    def __call__(self, x: Any, prompt: Any, embedding: Any, bias: Any = None) -> tuple[Any, Any]:
        """Tokens of the picture and of the prompt after the block; those of the prompt as they came in the last one."""
        shift, scale, factor, shift_ff, scale_ff, factor_ff, *dual = self.norm1(embedding)
        of_prompt = self.norm1_context(embedding)
        if self._last:
            of_prompt.reverse()  # the last block has (scale, shift), the others (shift, scale, ...)
        attended, prompt_attended = self.attn(modulate(x, shift, scale), modulate(prompt, *of_prompt[:2]), bias=bias)
        before = x
        x = x + factor * attended
        if self._dual:
            shift, scale, factor = dual
            x = x + factor * self.attn2(modulate(before, shift, scale))[0]
        x = x + factor_ff * self.ff(modulate(x, shift_ff, scale_ff))
        if prompt_attended is not None:
            factor, shift_ff, scale_ff, factor_ff = of_prompt[2:]
            prompt = prompt + factor * prompt_attended
            prompt = clip_float16(prompt + factor_ff * self.ff_context(modulate(prompt, shift_ff, scale_ff)))
        return x, prompt


class SD3Transformer2DModel(Network):
    """The denoiser of Stable Diffusion 3 and 3.5.

    Args:
        config: Its options.
    """

    Config = SD3Config

    def __init__(self, config: SD3Config) -> None:
        super().__init__(config)
        heads, layers, patch = config.num_attention_heads, config.num_layers, config.patch_size
        width = heads * config.attention_head_dim
        if config.caption_projection_dim != width:
            raise ModelError(
                f"{NAME}: expected a caption_projection_dim of num_attention_heads x attention_head_dim = {width}, got "
                f"{config.caption_projection_dim}."
            )
        self.pos_embed = PatchEmbedding(config.in_channels, width, patch, config.pos_embed_max_size)
        self.time_text_embed = TimeTextEmbedding(width, config.pooled_projection_dim)
        self.context_embedder = nn.Linear(config.joint_attention_dim, width)
        self.transformer_blocks = [
            JointTransformerBlock(
                width, heads, i == layers - 1, i in config.dual_attention_layers, config.qk_norm is not None
            )
            for i in range(layers)
        ]
        self.norm_out = Modulation(width, 2)
        self.proj_out = nn.Linear(width, patch * patch * (config.out_channels or config.in_channels))

    def __call__(
        self,
        hidden_states: Any,
        timestep: Any,
        encoder_hidden_states: Any,
        pooled_projections: Any,
        repeats: Any = None,
    ) -> Any:
        """The prediction (B, H, W, C), in the dtype of the weights.

        Args:
            hidden_states: Latents (B, H, W, C).
            timestep: Shape (B,), from 0 (data) to 1000 (noise).
            encoder_hidden_states: Tokens of the prompts (B, M, joint_attention_dim).
            pooled_projections: Pooled prompts (B, pooled_projection_dim).
            repeats: How many equal tokens the last token of each prompt stands for (B,), >= 1: tokens of a prompt
                have no places, so that one whose scores are raised by log n is n of them, at the cost of one.

        Raises:
            BackboneError: shapes that do not fit.
        """
        self._check(hidden_states, timestep, encoder_hidden_states, pooled_projections)
        dtype = self.proj_out.bias.dtype
        patch = self.config.patch_size
        rows, columns = (n // patch for n in hidden_states.shape[1:3])
        embedding = self.time_text_embed(timestep, pooled_projections.astype(dtype))
        x, prompt = (
            self.pos_embed(hidden_states.astype(dtype)),
            self.context_embedder(encoder_hidden_states.astype(dtype)),
        )
        bias = None
        if repeats is not None:
            last = mx.arange(prompt.shape[1] + x.shape[1]) == prompt.shape[1] - 1
            bias = mx.where(last, mx.log(repeats.astype(mx.float32))[:, None], 0.0)[:, None, None]
        for block in self.transformer_blocks:
            x, prompt = block(x, prompt, embedding, bias)
        scale, shift = self.norm_out(embedding)
        x = self.proj_out(modulate(x, shift, scale))
        x = x.reshape(len(x), rows, columns, patch, patch, -1).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(len(x), rows * patch, columns * patch, -1)

    def _check(self, x: Any, timestep: Any, prompt: Any, pooled: Any) -> None:
        config, patch = self.config, self.config.patch_size
        check_shapes(
            NAME,
            {
                "hidden_states": (x.shape, (None, None, None, config.in_channels)),
                "timestep": (timestep.shape, (len(x),)),
                "encoder_hidden_states": (prompt.shape, (len(x), None, config.joint_attention_dim)),
                "pooled_projections": (pooled.shape, (len(x), config.pooled_projection_dim)),
            },
        )
        if x.shape[1] % patch or x.shape[2] % patch:
            raise BackboneError(f"{NAME} needs sides that are multiples of {patch}, got {x.shape[1]} x {x.shape[2]}.")
