"""`AutoencoderKL` on MLX: the autoencoder of Stable Diffusion 1.5, 2, XL, 3 and FLUX."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from ...errors import BackboneError
from .layers import (
    Downsample2D,
    ResnetBlock2D,
    ResnetShape,
    Upsample2D,
    attend,
    group_norm,
    join_heads,
    split_heads,
)
from .network import Network, per_block

EPS = 1e-6  # of every group norm, a constant of diffusers
LOG_VARIANCE = (-30.0, 20.0)  # limits of diffusers' `DiagonalGaussianDistribution`
OLD_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.15


@dataclass(frozen=True)
class AutoencoderKLConfig:
    """Options of diffusers' `AutoencoderKL`, with its defaults; a type says which values are ported."""

    in_channels: int = 3
    out_channels: int = 3
    down_block_types: tuple[Literal["DownEncoderBlock2D"], ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    act_fn: str = "silu"
    latent_channels: int = 4
    norm_num_groups: int = 32
    sample_size: int | tuple[int, ...] = 32
    scaling_factor: float = 0.18215
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None
    latents_std: tuple[float, ...] | None = None
    force_upcast: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


class SpatialAttention(nn.Module):
    """Attention of a picture's cells to each other with one head, added to the picture."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = group_norm(groups, channels, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = [nn.Linear(channels, channels)]

    def __call__(self, x: Any) -> Any:
        """(batch, height, width, channels) -> the same shape."""
        batch, height, width, channels = x.shape
        y = self.group_norm(x).reshape(batch, height * width, channels)
        q, k, v = (split_heads(layer(y), 1) for layer in (self.to_q, self.to_k, self.to_v))
        return x + self.to_out[0](join_heads(attend(q, k, v))).reshape(x.shape)


class MidBlock(nn.Module):
    """Two residual blocks with attention between them, where there is one."""

    def __init__(self, channels: int, shape: ResnetShape, attention: bool) -> None:
        super().__init__()
        self.resnets = [ResnetBlock2D(channels, channels, shape) for _ in range(2)]
        self.attentions = [SpatialAttention(channels, shape.groups)] if attention else []

    def __call__(self, x: Any) -> Any:
        """(batch, height, width, channels) -> the same shape."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class DownEncoderBlock2D(nn.Module):
    """Residual blocks, and a step to half the size."""

    def __init__(self, width: int, out: int, count: int, shape: ResnetShape, last: bool) -> None:
        super().__init__()
        self.resnets = [ResnetBlock2D(width if i == 0 else out, out, shape) for i in range(count)]
        self.downsamplers = [] if last else [Downsample2D(out, padding=0)]

    def __call__(self, x: Any) -> Any:
        """Half the height and width, but for the last block."""
        layers: list[Any] = [*self.resnets, *self.downsamplers]
        for layer in layers:
            x = layer(x)
        return x


class UpDecoderBlock2D(nn.Module):
    """Residual blocks, and a step to twice the size."""

    def __init__(self, width: int, out: int, count: int, shape: ResnetShape, last: bool) -> None:
        super().__init__()
        self.resnets = [ResnetBlock2D(width if i == 0 else out, out, shape) for i in range(count)]
        self.upsamplers = [] if last else [Upsample2D(out)]

    def __call__(self, x: Any) -> Any:
        """Twice the height and width, but for the last block."""
        layers: list[Any] = [*self.resnets, *self.upsamplers]
        for layer in layers:
            x = layer(x)
        return x


def _shape(config: AutoencoderKLConfig) -> ResnetShape:
    return ResnetShape(None, config.norm_num_groups, EPS, config.act_fn)


class Encoder(nn.Module):
    """Pictures to the numbers of a distribution of latents."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, shape = config.block_out_channels, _shape(config)
        per_block(config.down_block_types, len(widths), "down_block_types")
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = [
            DownEncoderBlock2D(widths[max(i - 1, 0)], out, config.layers_per_block, shape, i == len(widths) - 1)
            for i, out in enumerate(widths)
        ]
        self.mid_block = MidBlock(widths[-1], shape, config.mid_block_add_attention)
        self.conv_norm_out = group_norm(config.norm_num_groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def __call__(self, x: Any) -> Any:
        """(batch, height, width, channels) -> (batch, smaller height, smaller width, 2 * latent channels)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__()
        widths, shape = config.block_out_channels[::-1], _shape(config)
        per_block(config.up_block_types, len(widths), "up_block_types")
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0], shape, config.mid_block_add_attention)
        self.up_blocks = [
            UpDecoderBlock2D(widths[max(i - 1, 0)], out, config.layers_per_block + 1, shape, i == len(widths) - 1)
            for i, out in enumerate(widths)
        ]
        self.conv_norm_out = group_norm(config.norm_num_groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def __call__(self, z: Any) -> Any:
        """(batch, height, width, latent channels) -> (batch, larger height, larger width, channels)."""
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))


class AutoencoderKL(Network):
    """Pictures in [-1, 1] to latents and back.

    Latents are those of the network itself: callers apply `scaling_factor`, `shift_factor`, `latents_mean` and
    `latents_std` of `config`, and load it in float32 where `force_upcast` asks for it, as diffusers' pipelines do.

    Args:
        config: Its options.
    """

    Config = AutoencoderKLConfig
    POSITIVE = frozenset(
        {
            "in_channels",
            "out_channels",
            "block_out_channels",
            "latent_channels",
            "layers_per_block",
            "norm_num_groups",
        }
    )

    def __init__(self, config: AutoencoderKLConfig) -> None:
        super().__init__(config)
        channels = config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        if config.use_quant_conv:
            self.quant_conv = nn.Conv2d(2 * channels, 2 * channels, 1)
        if config.use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(channels, channels, 1)

    def encode(self, x: Any) -> tuple[Any, Any]:
        """Mean and logarithm of the variance of latents.

        Args:
            x: (batch, height, width, channels), in [-1, 1].

        Raises:
            BackboneError: an array of another shape.
        """
        check_picture(x, self.config.in_channels, "pictures")
        x = self.encoder(x.astype(self.decoder.conv_in.weight.dtype))
        if "quant_conv" in self:
            x = self.quant_conv(x)
        mean, log_variance = mx.split(x, 2, axis=-1)
        return mean, mx.clip(log_variance, *LOG_VARIANCE)

    def decode(self, z: Any) -> Any:
        """Pictures, about in [-1, 1], of latents (batch, height, width, latent channels).

        Raises:
            BackboneError: an array of another shape.
        """
        check_picture(z, self.config.latent_channels, "latents")
        z = z.astype(self.decoder.conv_in.weight.dtype)
        return self.decoder(self.post_quant_conv(z) if "post_quant_conv" in self else z)

    @staticmethod
    def rename(key: str) -> str | None:
        """The names of attention layers before diffusers 0.15 are read too."""
        found = re.fullmatch(r"(.*\.attentions\.\d+)\.(\w+)\.(weight|bias)", key)
        return f"{found[1]}.{OLD_NAMES[found[2]]}.{found[3]}" if found and found[2] in OLD_NAMES else key


def check_picture(x: Any, channels: int, what: str) -> None:
    """Raise BackboneError where an array is not (batch, height, width, channels)."""
    if x.ndim != 4 or x.shape[-1] != channels:
        raise BackboneError(f"Expected {what} (batch, height, width, {channels}), got {tuple(x.shape)}.")
