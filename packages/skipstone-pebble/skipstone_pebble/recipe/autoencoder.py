"""Pebble's autoencoder: 64 x 64 pictures <-> 8 x 8 latents of 8 channels.

The encoder is linear and fitted in closed form: the principal components of 8 x 8 pixel patches, run through
`AutoencoderTiny`'s strided convolutions. So the denoiser can start at once, and its latents are as smooth as
the pictures. The decoder is a small residual network, trained with the encoder frozen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from diffusers import AutoencoderTiny
from torch import nn

from ..scenes import Sprites
from . import data
from .trainer import Trainer, TrainingArguments

PATCH = 8  # pixels to a side of one latent position
PATCH_VALUES = 3 * PATCH * PATCH  # numbers in a patch


@dataclass(frozen=True)
class AutoencoderSettings:
    """Shape and training of the autoencoder.

    Args:
        latents: channels of the latent, at most 192.
        width: channels of the decoder.
        blocks: residual blocks of the decoder at 8, 16, 32 and 64 pixels.
        scale: what the pipeline multiplies the encoder's output by (`scaling_factor`): the decoder squashes
            its input by 3 tanh(z / 3), which 4 keeps nearly linear.
        whitening: 0 keeps the components' own spreads, 1 makes them equal; between, the spread of
            component c is eigenvalue_c^((1 - whitening) / 2).
        batch: pictures in a step of the decoder's training.
        rate: peak learning rate of AdamW.
        noise: largest deviation of the noise on the latents the decoder is trained on: generated latents
            are never exact.
        precision: "bfloat16" or "float32" for the matrix products.
    """

    latents: int = 8
    width: int = 64
    blocks: tuple[int, ...] = (3, 3, 2, 0)
    scale: float = 4.0
    whitening: float = 0.5
    batch: int = 16
    rate: float = 1e-3
    noise: float = 0.15
    precision: str = "bfloat16"


def build(settings: AutoencoderSettings) -> AutoencoderTiny:
    """A new autoencoder with torch's current random state; its encoder is not fitted yet."""
    return AutoencoderTiny(
        encoder_block_out_channels=(PATCH_VALUES,) * 4,
        num_encoder_blocks=(0, 0, 0, 0),
        decoder_block_out_channels=(settings.width,) * 4,
        num_decoder_blocks=settings.blocks,
        latent_channels=settings.latents,
        upsampling_scaling_factor=2,
        scaling_factor=settings.scale,
    ).to(memory_format=torch.channels_last)


def _patches(pictures: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> (patches, 192), channel first, then row, then column."""
    n, c, h, w = pictures.shape
    cut = pictures.reshape(n, c, h // PATCH, PATCH, w // PATCH, PATCH)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, PATCH_VALUES)


@torch.no_grad()
def fit_encoder(model: AutoencoderTiny, pictures: torch.Tensor, settings: AutoencoderSettings) -> None:
    """Set the encoder to the principal components of the pictures' patches, mean 0, total variance 1 each.

    Args:
        model: as `build` made it.
        pictures: (N, 3, 64, 64) in [-1, 1], N a thousand or so.
        settings: the number of components and their whitening.
    """
    patches = _patches(pictures)
    mean = patches.mean(0)
    covariance = (patches - mean).T @ (patches - mean) / len(patches)
    values, vectors = torch.linalg.eigh(covariance.double())
    values, vectors = values.flip(0)[: settings.latents], vectors.flip(1)[:, : settings.latents]
    vectors = vectors * vectors.sum(0).sign()  # an eigenvector's sign is arbitrary: make it reproducible
    spread = values ** ((1 - settings.whitening) / 2)
    spread = spread / spread.pow(2).mean().sqrt()
    projection = (vectors * (spread / values.sqrt())).float() / settings.scale
    _write_projection(model, projection, mean)


def _write_projection(model: AutoencoderTiny, projection: torch.Tensor, mean: torch.Tensor) -> None:
    """Write `(patch - mean) @ projection` into the encoder's convolutions.

    The first takes the colours over, each strided one lays the four pixels of a 2 x 2 block side by side,
    and the last, at its centre tap, is the projection. The encoder sees (picture + 1) / 2.
    """
    convolutions = [layer for layer in model.encoder.layers if isinstance(layer, nn.Conv2d)]
    for conv in convolutions:
        nn.init.zeros_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
    for colour in range(3):
        convolutions[0].weight[colour, colour, 1, 1] = 1
    channels = 3
    for conv in convolutions[1:-1]:
        for channel in range(channels):
            for tap in range(4):
                conv.weight[channel * 4 + tap, channel, 1 + tap // 2, 1 + tap % 2] = 1
        channels *= 4
    traced = torch.arange(PATCH_VALUES, dtype=torch.float32).reshape(1, 3, PATCH, PATCH)
    for conv in convolutions[:-1]:
        traced = conv(traced)
    order = traced[0, :, 0, 0].round().long()  # which number of the patch each channel holds
    last = convolutions[-1]
    assert last.bias is not None
    last.weight[:, :, 1, 1] = 2 * projection[order].T
    last.bias.copy_(-(projection.sum(0) + mean @ projection))


def picture_error(made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean square error, with a little absolute error of pixels and of their differences to the neighbours."""
    error = made - real
    across = (error[..., :, 1:] - error[..., :, :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return error.pow(2).mean() + 0.1 * (error.abs().mean() + 0.5 * (across + down))


class DecoderTrainer(Trainer):
    """Trains the decoder on noisy latents of the frozen encoder; `fit_encoder` must have come first."""

    def __init__(
        self, model: AutoencoderTiny, settings: AutoencoderSettings, sprites: Sprites, run: TrainingArguments
    ) -> None:
        self.model, self.settings, self.sprites = model, settings, sprites
        parameters = list(model.decoder.parameters())
        super().__init__({"autoencoder": model}, parameters, settings.rate, run, asdict(settings))

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch (three in four are cut around an object) and the figures to log."""
        side = 32 if step % 4 else 64
        real = data.picture_batch(self.run.seed, step, self.settings.batch, self.sprites, side)
        dice = torch.Generator().manual_seed(self.run.seed * 1_000_003 + step)
        latents = encode(self.model, real)
        level = torch.rand(len(real), 1, 1, 1, generator=dice) * self.settings.noise
        latents = latents + level * torch.randn(latents.shape, generator=dice)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            made = self.model.decode(latents / self.settings.scale).sample.float()
        squared = ((made.detach() - real) ** 2).mean().item()
        return picture_error(made, real), {"mse": squared}


@torch.no_grad()
def encode(model: AutoencoderTiny, pictures: torch.Tensor) -> torch.Tensor:
    """Latents as the denoiser sees them, (N, 8, 8, 8) float32, of pictures (N, 3, 64, 64) in [-1, 1].

    The encoder's convolutions are one linear map of each patch; training applies it as a matrix, read off the
    encoder by showing it the 192 unit patches, which is a hundred times faster.
    """
    units = torch.eye(PATCH_VALUES).reshape(PATCH_VALUES, 3, PATCH, PATCH)
    offset = model.encode(torch.zeros(1, 3, PATCH, PATCH)).latents.flatten(1)
    matrix = model.encode(units).latents.flatten(1) - offset
    n, _, h, w = pictures.shape
    flat: torch.Tensor = (_patches(pictures) @ matrix + offset) * model.config.scaling_factor
    return flat.reshape(n, h // PATCH, w // PATCH, -1).permute(0, 3, 1, 2)
