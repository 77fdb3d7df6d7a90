"""Pebble's denoiser, of either family, and its text encoder, trained together on latents and captions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny

from skipstone.numerics.sizes import Size, SizePlan

from .. import text
from ..family import DenoiserFamily, DenoiserSettings, Network
from ..scenes import SIDE, Scene, Sprites, layouts, render, withheld
from ..words import BACKGROUNDS, OBJECTS, SIZES
from . import autoencoder, data
from .trainer import Trainer, TrainingArguments


@dataclass(frozen=True)
class LatentCache:
    """Scenes and their latents: first all with one object, then drawn pairs.

    Args:
        scenes: N of them.
        latents: side of the pictures in pixels -> float16 (N, 8, side / 8, side / 8).
        singles: scenes with one object.
    """

    scenes: list[Scene]
    latents: Mapping[int, torch.Tensor]
    singles: int


def build_cache(
    model: AutoencoderTiny,
    sprites: Sprites,
    seed: int,
    pairs: int,
    folder: Path | None = None,
    sizes: Sequence[int] = (SIDE,),
) -> LatentCache:
    """Render the training scenes and encode them at each size; kept in files of `folder` for the next time."""
    rng = np.random.default_rng([seed, 3])
    jobs = [
        (scene, offsets)
        for name in OBJECTS
        for ground in BACKGROUNDS
        for size in SIZES
        if not withheld().contains(scene := Scene((name,), None, ground, size))
        for offsets in layouts(scene)
    ]
    singles = len(jobs)
    for _ in range(pairs):
        scene = data.draw_scene(rng, 1.0)
        options = layouts(scene)
        jobs.append((scene, options[int(rng.integers(len(options)))]))
    scenes = [scene for scene, _ in jobs]
    latents: dict[int, torch.Tensor] = {}
    for side in sizes:
        file = None if folder is None else folder / ("latents.pt" if side == SIDE else f"latents_{side}.pt")
        if file is not None and file.is_file():
            latents[side] = torch.load(file, weights_only=True)
            continue
        parts = []
        for start in range(0, len(jobs), 512):
            pictures = np.stack([render(scene, sprites, offsets) for scene, offsets in jobs[start : start + 512]])
            resized = data.resize_pictures(data.to_tensor(pictures), side)
            parts.append(autoencoder.encode(model, resized).half())
        latents[side] = torch.cat(parts)
        if file is not None:
            torch.save(latents[side], file)
    return LatentCache(scenes, latents, singles)


class DenoiserTrainer(Trainer):
    """Minimises the mean squared error of a network's output over scenes, captions, times and noise."""

    def __init__(
        self,
        family: DenoiserFamily,
        network: Network,
        cache: LatentCache,
        settings: DenoiserSettings,
        run: TrainingArguments,
        watch: Callable[[DenoiserTrainer], None] | None = None,
    ) -> None:
        self.family, self.network, self.cache, self.settings, self.callback = family, network, cache, settings, watch
        equal = tuple(Size(side, side) for side in settings.sizes)
        self.plan = SizePlan(equal, (1,) * len(equal), run.seed)
        options = {"family": family.name, **settings.record}
        matrices = family.muon_parameters(network) if settings.muon else []
        super().__init__(network.modules, network.parameters, settings.rate, run, options, matrices)

    def batch(self, step: int) -> tuple[torch.Tensor, list[str]]:
        """Latents (B, 8, side / 8, side / 8) and captions of a step; they depend on the seed and the step alone."""
        rng, settings = np.random.default_rng([self.run.seed, 2, step]), self.settings
        singles, total = self.cache.singles, len(self.cache.scenes)
        pair = rng.random(settings.batch) < settings.pair_share
        picks = np.where(pair, rng.integers(singles, total, settings.batch), rng.integers(0, singles, settings.batch))
        captions = [text.vary_caption(self.cache.scenes[pick], rng, settings.first) for pick in picks]
        captions = ["" if rng.random() < settings.empty else caption for caption in captions]
        side = settings.sizes[self.plan.index(step, self.run.steps)]
        latents = self.cache.latents[side][torch.from_numpy(picks)].float()
        return latents.contiguous(memory_format=torch.channels_last), captions

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch."""
        latents, captions = self.batch(step)
        tokens = text.tokens(self.network.tokenizer, captions)
        generator = torch.Generator().manual_seed(self.run.seed * 1_000_003 + step)
        noise = torch.randn(latents.shape, generator=generator)
        # Stratified: one time from each of B equal stretches, for a steadier gradient.
        spread = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
        noisy, times, target = self.family.corrupt(latents, noise, spread)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            condition = self.network.encoder(tokens)[0]
            guess = self.family.forward(self.network.denoiser, noisy, times, condition)
        error = ((guess.float() - target) ** 2).mean((1, 2, 3))
        with torch.no_grad():
            late = float(error[spread >= 0.5].mean())
        return error.mean(), {"late": late}

    def advance(self) -> dict[str, float]:
        """One step; now and then a look at what the averaged weights draw."""
        figures = super().advance()
        if self.callback is not None:
            self.callback(self)
        return figures
