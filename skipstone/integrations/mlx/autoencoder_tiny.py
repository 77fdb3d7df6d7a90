"""`AutoencoderTiny` on MLX: the small autoencoder of TAESD, and that of Pebble."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from .autoencoder import check_picture
from .layers import find_activation, upsample
from .network import Network, per_block


@dataclass(frozen=True)
class AutoencoderTinyConfig:
    """Options of diffusers' `AutoencoderTiny`, with its defaults; a type says which values are ported."""

    in_channels: int = 3
    out_channels: int = 3
    encoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    decoder_block_out_channels: tuple[int, ...] = (64, 64, 64, 64)
    act_fn: str = "relu"
    upsample_fn: Literal["nearest"] = "nearest"
    latent_channels: int = 4
    upsampling_scaling_factor: Literal[2] = 2
    num_encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    num_decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    latent_magnitude: float = 3
    latent_shift: float = 0.5
    force_upcast: bool = False
    scaling_factor: float = 1.0
    shift_factor: float = 0.0


class Activation(nn.Module):
    """An activation among layers that are counted."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = find_activation(name)

    def __call__(self, x: Any) -> Any:
        """The same shape."""
        return self.function(x)


class Double(nn.Module):
    """The nearest cells at twice the size."""

    def __call__(self, x: Any) -> Any:
        """Twice the height and width."""
        return upsample(x, 2 * x.shape[1], 2 * x.shape[2])


class AutoencoderTinyBlock(nn.Module):
    """Three convolutions, added to the input, and a rectifier."""

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.conv = [
            nn.Conv2d(channels, channels, 3, padding=1),
            Activation(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
            Activation(activation),
            nn.Conv2d(channels, channels, 3, padding=1),
        ]

    def __call__(self, x: Any) -> Any:
        """(batch, height, width, channels) -> the same shape."""
        y = x
        for layer in self.conv:
            y = layer(y)
        return nn.relu(x + y)


class EncoderTiny(nn.Module):
    """Pictures to latents."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        widths = per_block(
            config.encoder_block_out_channels, len(config.num_encoder_blocks), "encoder_block_out_channels"
        )
        layers: list[Any] = []
        for i, (width, count) in enumerate(zip(widths, config.num_encoder_blocks, strict=True)):
            first = nn.Conv2d(config.in_channels, width, 3, padding=1)
            layers.append(nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False) if i else first)
            layers += [AutoencoderTinyBlock(width, config.act_fn) for _ in range(count)]
        self.layers = [*layers, nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)]

    def __call__(self, x: Any) -> Any:
        """(batch, height, width, channels), in [-1, 1] -> latents."""
        x = (x + 1) / 2
        for layer in self.layers:
            x = layer(x)
        return x


class DecoderTiny(nn.Module):
    """Latents to pictures."""

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__()
        counts = config.num_decoder_blocks
        widths = per_block(config.decoder_block_out_channels, len(counts), "decoder_block_out_channels")
        layers: list[Any] = [nn.Conv2d(config.latent_channels, widths[0], 3, padding=1), Activation(config.act_fn)]
        for i, (width, count) in enumerate(zip(widths, counts, strict=True)):
            last = i == len(counts) - 1
            layers += [AutoencoderTinyBlock(width, config.act_fn) for _ in range(count)]
            layers += [] if last else [Double()]
            layers.append(nn.Conv2d(width, config.out_channels if last else width, 3, padding=1, bias=last))
        self.layers = layers

    def __call__(self, z: Any) -> Any:
        """Latents -> (batch, height, width, channels), about in [-1, 1]."""
        x = mx.tanh(z / 3) * 3
        for layer in self.layers:
            x = layer(x)
        return 2 * x - 1


class AutoencoderTiny(Network):
    """Pictures in [-1, 1] to latents and back, without a distribution.

    Callers apply `scaling_factor` and `shift_factor` of `config`, as diffusers' pipelines do.

    Args:
        config: Its options.
    """

    Config = AutoencoderTinyConfig
    POSITIVE = frozenset(
        {"in_channels", "out_channels", "latent_channels", "encoder_block_out_channels", "decoder_block_out_channels"}
    )
    IGNORED = frozenset({"block_out_channels"})  # diffusers writes the decoder's widths there, and does not read them

    def __init__(self, config: AutoencoderTinyConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = EncoderTiny(config), DecoderTiny(config)

    def encode(self, x: Any) -> Any:
        """Latents of pictures (batch, height, width, channels), in [-1, 1].

        Raises:
            BackboneError: an array of another shape.
        """
        check_picture(x, self.config.in_channels, "pictures")
        return self.encoder(x.astype(self.encoder.layers[0].weight.dtype))

    def decode(self, z: Any) -> Any:
        """Pictures, about in [-1, 1], of latents (batch, height, width, latent channels).

        Raises:
            BackboneError: an array of another shape.
        """
        check_picture(z, self.config.latent_channels, "latents")
        return self.decoder(z.astype(self.decoder.layers[0].weight.dtype))
