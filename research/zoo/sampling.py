"""Samples of a network by a solver of our own, and contact sheets of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

from research.zoo.network import Denoiser
from research.zoo.recipes import Recipe


def to_samples(pictures: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """What the network sees of pictures uint8 (B, C, ...)."""
    samples = (pictures.float() / 127.5 - 1 - recipe.centre) * recipe.scale
    return torch.nn.functional.pixel_unshuffle(samples, recipe.patch) if recipe.patch > 1 else samples


def to_pictures(samples: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """The pictures uint8 that a network's samples stand for."""
    if recipe.patch > 1:
        samples = torch.nn.functional.pixel_shuffle(samples, recipe.patch)
    return ((samples / recipe.scale + recipe.centre + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def predict(
    network: Denoiser,
    recipe: Recipe,
    noisy: torch.Tensor,
    place: torch.Tensor,
    labels: torch.Tensor | None,
    guidance: float,
) -> torch.Tensor:
    """The network's output at a place (B,), guided."""
    given, timestep = recipe.schedule.inputs(noisy, place)
    if recipe.teacher is not None:
        return torch.as_tensor(network(given, timestep, labels, torch.full((len(noisy),), guidance)))
    output: torch.Tensor = network(given, timestep, labels)
    if labels is None or guidance == 1:
        return output
    free = network(given, timestep, network.unlabelled(len(noisy)))
    return torch.as_tensor(free + guidance * (output - free))


@torch.inference_mode()
def sample(
    network: Denoiser,
    recipe: Recipe,
    noise: torch.Tensor,
    labels: torch.Tensor | None,
    guidance: float,
    steps: int = 30,
) -> torch.Tensor:
    """Samples (B, ...) by a deterministic solver of second order (DPM-Solver++ 2M's rule on the clean estimate)."""
    schedule = recipe.schedule
    places = schedule.places(steps)
    alphas, sigmas = schedule.alpha_sigma(places)
    noisy, before, gap = sigmas[0] * noise, None, 0.0
    for index in range(steps):
        place = places[index].expand(len(noise))
        output = predict(network, recipe, noisy, place, labels, guidance)
        clean, _ = schedule.split(output, noisy, place)
        if index == steps - 1:
            return clean
        ratio = [float(alphas[k] / sigmas[k]) for k in (index, index + 1)]
        width = math.log(ratio[1] / max(ratio[0], 1e-8))
        guess = clean if before is None or index < 2 else clean + (clean - before) * 0.5 * width / gap
        shrink = float(sigmas[index + 1] / sigmas[index])
        noisy = shrink * noisy + float(alphas[index + 1]) * (1 - ratio[0] / ratio[1]) * guess
        before, gap = clean, width
    raise AssertionError("a run has at least one step")


def sheet(pictures: torch.Tensor, columns: int = 8) -> Image.Image:
    """A contact sheet of pictures (B, C, H, W), or of clips (B, C, F, H, W) with a clip a row."""
    if pictures.ndim == 5:
        columns = pictures.shape[2]
        pictures = pictures.transpose(1, 2).flatten(0, 1)
    count, channels, height, width = pictures.shape
    padded = torch.nn.functional.pad(pictures, (1, 1, 1, 1), value=128)
    grid = padded.reshape(count // columns, columns, channels, height + 2, width + 2).permute(0, 3, 1, 4, 2)
    whole = grid.reshape(count // columns * (height + 2), columns * (width + 2), channels).numpy()
    image = Image.fromarray(np.ascontiguousarray(whole.repeat(3, -1) if channels == 1 else whole))
    return image.resize((image.width * 2, image.height * 2), Image.Resampling.NEAREST)


def spread_labels(counts: tuple[int, ...], batch: int) -> torch.Tensor | None:
    """Labels for a sheet: all values of the first in turn, the others by chance."""
    if not counts:
        return None
    generator = torch.Generator().manual_seed(1)
    columns = [torch.randint(count, (batch,), generator=generator) for count in counts]
    columns[0] = torch.arange(batch) % counts[0]
    return torch.stack(columns, 1)


def draw_sheet(network: Denoiser, recipe: Recipe, guidance: float, seed: int = 0) -> Image.Image:
    """64 samples of a network, or 8 clips."""
    batch = 8 if recipe.domain.kind == "clips" else 64
    noise = torch.randn(batch, *recipe.shape, generator=torch.Generator().manual_seed(seed))
    labels = spread_labels(recipe.counts, batch)
    return sheet(to_pictures(sample(network, recipe, noise, labels, guidance), recipe))
