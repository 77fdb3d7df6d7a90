"""Pebble's autoencoder: 64 x 64 pictures <-> 8 x 8 latents of 8 channels, trained from nothing."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from diffusers import AutoencoderKL

from skipstone.pebble import data
from skipstone.pebble.loop import Run, Trainer
from skipstone.pebble.scenes import Sprites


@dataclass(frozen=True)
class AutoencoderSettings:
    """Shape and training of the autoencoder.

    Args:
        channels: width of each of the four resolutions 64, 32, 16, 8.
        batch: whole pictures in a step.
        windows: first steps, taken on 32 px windows around objects: most of a whole picture is flat ground.
        window_batch: windows in such a step.
        rate: peak learning rate of AdamW.
        kl: weight of the latents' divergence from a unit Gaussian, against a mean absolute error.
        edges: weight of the error of the pictures' differences.
        precision: "bfloat16" or "float32" for the matrix products.
    """

    channels: tuple[int, ...] = (24, 48, 96, 128)
    batch: int = 16
    windows: int = 2500
    window_batch: int = 32
    rate: float = 1.5e-3
    kl: float = 1e-5
    edges: float = 0.5
    precision: str = "bfloat16"


def build(settings: AutoencoderSettings) -> AutoencoderKL:
    """A new autoencoder with torch's current random state."""
    stages = len(settings.channels)
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * stages,
        up_block_types=("UpDecoderBlock2D",) * stages,
        block_out_channels=settings.channels,
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=64,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    ).to(memory_format=torch.channels_last)


def picture_error(made: torch.Tensor, real: torch.Tensor, edges: float) -> torch.Tensor:
    """Absolute plus squared error, fourfold where there is an object, plus `edges` times that of the edges.

    An object is where the picture differs from its corner, which is ground in nearly every layout.
    """
    error = made - real
    weight = 1 + 3 * ((real - real[..., :1, :1]).abs().amax(1, keepdim=True) > 0.06).float()
    weight = weight / weight.mean()
    pixels = (weight * (error.abs() + error**2)).mean()
    across = (error[..., :, 1:] - error[..., :, :-1]).abs().mean()
    down = (error[..., 1:, :] - error[..., :-1, :]).abs().mean()
    return pixels + edges * (across + down)


class AutoencoderTrainer(Trainer):
    """Trains encoder and decoder; a second stage trains the decoder alone on noisy latents."""

    def __init__(
        self, model: AutoencoderKL, settings: AutoencoderSettings, sprites: Sprites, run: Run, decoder_only: bool
    ) -> None:
        self.model, self.settings, self.sprites, self.decoder_only = model, settings, sprites, decoder_only
        modules = [model.decoder, model.post_quant_conv]
        if not decoder_only:
            modules += [model.encoder, model.quant_conv]
        parameters = [p for module in modules for p in module.parameters()]
        super().__init__({"autoencoder": model}, parameters, settings.rate, run, asdict(settings))

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch and the figures to log."""
        settings = self.settings
        early = step < settings.windows and not self.decoder_only
        size, side = (settings.window_batch, 32) if early else (settings.batch, 64)
        real = data.picture_batch(self.run.seed, step, size, self.sprites, side)
        noise = torch.Generator().manual_seed(self.run.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16"):
            if self.decoder_only:
                with torch.no_grad():
                    mean = self.model.encode(real).latent_dist.mean.float()
                # The denoiser's latents are never exact: let the decoder meet small errors.
                level = torch.rand(len(real), 1, 1, 1, generator=noise) * 0.15
                latent = mean + level * torch.randn(mean.shape, generator=noise)
                divergence = torch.zeros(())
            else:
                posterior = self.model.encode(real).latent_dist
                mean, spread = posterior.mean.float(), posterior.logvar.float()
                latent = mean + torch.exp(0.5 * spread) * torch.randn(mean.shape, generator=noise)
                divergence = 0.5 * (mean**2 + spread.exp() - 1 - spread).mean()
            made = self.model.decode(latent).sample.float()
        error = picture_error(made, real, settings.edges)
        squared = ((made.detach() - real) ** 2).mean().item()
        return error + settings.kl * divergence, {"mse": squared, "kl": float(divergence.detach())}


@torch.no_grad()
def whiten(model: AutoencoderKL, pictures: torch.Tensor) -> None:
    """Fold a shift and scale of each latent channel into the model: mean 0, deviation 1 on `pictures`.

    The posterior's spread becomes negligible (log variance -30), so that encoding is deterministic
    and `scaling_factor` can be 1.
    """
    mean = torch.cat([model.encode(part).latent_dist.mean for part in pictures.split(64)])
    shift, scale = mean.mean((0, 2, 3)), mean.std((0, 2, 3)).clamp_min(1e-4)
    channels = len(shift)
    quant, post = model.quant_conv, model.post_quant_conv
    assert quant is not None and post is not None and quant.bias is not None and post.bias is not None
    quant.weight[:channels] /= scale[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - shift) / scale
    quant.weight[channels:] = 0
    quant.bias[channels:] = -30
    post.bias += post.weight[:, :, 0, 0] @ shift
    post.weight *= scale[None, :, None, None]


@torch.no_grad()
def encode(model: AutoencoderKL, pictures: torch.Tensor, precision: str = "bfloat16") -> torch.Tensor:
    """Latents (N, 8, 8, 8) float32 of pictures (N, 3, 64, 64) in [-1, 1]."""
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        latents: torch.Tensor = model.encode(pictures).latent_dist.mean
    return latents.float()
