"""Plain guided sampling for the recipe, the judge's bars and the sheets (the library's engine is apart)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from numpy.typing import NDArray
from PIL import Image

from .. import text
from ..family import DenoiserFamily, Network

#: Looked at during training: every kind of scene, and a few withheld ones.
SHEET_PROMPTS = (
    "a red apple on a blue background",
    "a green apple on a yellow background",
    "a cat on a purple background",
    "a large rocket on a green background",
    "a small dog on a pink background",
    "a pizza on a white background",
    "a blue heart on a gray background",
    "a house on a red background",
    "a cat left of a rocket on a yellow background",
    "a red apple right of a green apple on a white background",
    "a star above a car on a blue background",
    "a frog below an umbrella on a pink background",
    "a penguin above a pumpkin on a green background",
    "a banana left of a car on a white background",
    "a tulip right of a guitar on a gray background",
    "a panda left of a key on a purple background",
)


@torch.no_grad()
def sample_latents(
    family: DenoiserFamily, network: Network, prompts: Sequence[str], noise: torch.Tensor, steps: int, guidance: float
) -> torch.Tensor:
    """Latents of the noise's shape by the steps of the family's scheduler, with classifier-free guidance.

    They are those of DDIM (arXiv:2010.02502), or of Euler along a flow.
    """
    scheduler, latents = family.scheduler(), noise
    scheduler.set_timesteps(steps)
    given = network.encoder(text.tokens(network.tokenizer, prompts))[0]
    empty = network.encoder(text.tokens(network.tokenizer, [""]))[0]
    both = torch.cat([empty.expand_as(given), given])
    for time in scheduler.timesteps:
        output = family.forward(network.denoiser, torch.cat([latents, latents]), time.expand(len(both)), both)
        unconditional, conditional = output.float().chunk(2)
        latents = scheduler.step(unconditional + guidance * (conditional - unconditional), time, latents).prev_sample
    return latents


@torch.no_grad()
def decode(model: AutoencoderTiny, latents: torch.Tensor) -> NDArray[np.uint8]:
    """Pictures (N, H, W, 3) uint8, of 8 pixels for each latent."""
    parts = [model.decode(part / model.config.scaling_factor).sample.float() for part in torch.split(latents, 32)]
    pictures = (torch.cat(parts) * 127.5 + 127.5).round().clamp(0, 255).byte()
    return pictures.permute(0, 2, 3, 1).contiguous().numpy()


def initial_noise(seeds: Sequence[int], side: int = 64) -> torch.Tensor:
    """Starting noise (N, 8, side / 8, side / 8), each picture's from its own seed."""
    shape = (1, 8, side // 8, side // 8)
    return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def save_sheet(pictures: NDArray[np.uint8], file: Path, columns: int = 8, zoom: int = 2) -> None:
    """Write pictures (N, H, W, 3) side by side as one PNG, `zoom` times their size."""
    height, width = pictures.shape[1:3]
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + 2), columns * (width + 2), 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + 2), index % columns * (width + 2)
        sheet[top : top + height, left : left + width] = picture
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(sheet)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(file)
