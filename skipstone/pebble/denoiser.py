"""Pebble's denoiser: a small conditional U-Net and its text encoder, trained together from nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from skipstone.pebble import autoencoder, data, text
from skipstone.pebble.loop import Run, Trainer
from skipstone.pebble.scenes import Scene, Sprites, layouts, render, withheld
from skipstone.pebble.words import BACKGROUNDS, OBJECTS, SIZES


@dataclass(frozen=True)
class DenoiserSettings:
    """Shape and training of U-Net and text encoder.

    Args:
        channels: width at 8 x 8 and at 4 x 4.
        width, layers: of the text encoder.
        batch: scenes in a step.
        rate: peak learning rate of AdamW.
        empty: fraction of the captions replaced by "", for classifier-free guidance (arXiv:2207.12598).
        pair_share: fraction of the scenes with two objects.
        pairs: scenes with two objects in the cache; those with one are all in it.
        precision: "bfloat16" or "float32" for the matrix products.
    """

    channels: tuple[int, ...] = (112, 128)
    width: int = 128
    layers: int = 2
    batch: int = 64
    rate: float = 1e-3
    empty: float = 0.1
    pair_share: float = 0.6
    pairs: int = 60_000
    precision: str = "bfloat16"


def build_unet(settings: DenoiserSettings) -> UNet2DConditionModel:
    """A new U-Net with torch's current random state."""
    stages = len(settings.channels)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=settings.channels,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * stages,
        up_block_types=("CrossAttnUpBlock2D",) * stages,
        cross_attention_dim=settings.width,
        attention_head_dim=4,
        norm_num_groups=16,
        time_embedding_dim=192,
    ).to(memory_format=torch.channels_last)


def build_scheduler() -> DDIMScheduler:
    """The cosine schedule (arXiv:2102.09672), whose last step is pure noise, with v-prediction.

    "trailing" spacing starts at that last step, as generation starts from pure noise (arXiv:2305.08891);
    the first one ends at alpha 1, so that the last estimate of the clean latent is the result.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        steps_offset=1,  # unused by "trailing"; diffusers warns of 0
    )


@dataclass(frozen=True)
class Cache:
    """Scenes and their latents, float16 (N, 8, 8, 8): first all with one object, then drawn pairs."""

    scenes: list[Scene]
    latents: torch.Tensor
    singles: int


def build_cache(model: AutoencoderTiny, sprites: Sprites, seed: int, pairs: int, file: Path | None = None) -> Cache:
    """Render and encode the training scenes; the latents are kept in `file` for the next time."""
    rng = np.random.default_rng([seed, 3])
    jobs = [
        (scene, offsets)
        for name in OBJECTS
        for ground in BACKGROUNDS
        for size in SIZES
        if not withheld().holds(scene := Scene((name,), None, ground, size))
        for offsets in layouts(scene)
    ]
    singles = len(jobs)
    for _ in range(pairs):
        scene = data.draw_scene(rng, 1.0)
        options = layouts(scene)
        jobs.append((scene, options[int(rng.integers(len(options)))]))
    scenes = [scene for scene, _ in jobs]
    if file is not None and file.is_file():
        return Cache(scenes, torch.load(file, weights_only=True), singles)
    parts = []
    for start in range(0, len(jobs), 512):
        pictures = np.stack([render(scene, sprites, offsets) for scene, offsets in jobs[start : start + 512]])
        parts.append(autoencoder.encode(model, data.to_tensor(pictures)).half())
    latents = torch.cat(parts)
    if file is not None:
        torch.save(latents, file)
    return Cache(scenes, latents, singles)


class DenoiserTrainer(Trainer):
    """Minimises the mean squared error of v (arXiv:2202.00512) over scenes, captions, times and noise."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        cache: Cache,
        settings: DenoiserSettings,
        run: Run,
        watch: Callable[[DenoiserTrainer], None] | None = None,
    ) -> None:
        self.unet, self.encoder, self.tokenizer, self.cache = unet, encoder, tokenizer, cache
        self.settings, self.watch = settings, watch
        self.scheduler = build_scheduler()
        parameters = [*unet.parameters(), *encoder.parameters()]
        super().__init__({"unet": unet, "text_encoder": encoder}, parameters, settings.rate, run, asdict(settings))

    def batch(self, step: int) -> tuple[torch.Tensor, list[str]]:
        """Latents (B, 8, 8, 8) and captions of a step; they depend on the seed and the step alone."""
        rng, settings = np.random.default_rng([self.run.seed, 2, step]), self.settings
        singles, total = self.cache.singles, len(self.cache.scenes)
        pair = rng.random(settings.batch) < settings.pair_share
        picks = np.where(pair, rng.integers(singles, total, settings.batch), rng.integers(0, singles, settings.batch))
        captions = [text.vary(self.cache.scenes[pick], rng) for pick in picks]
        captions = ["" if rng.random() < settings.empty else caption for caption in captions]
        latents = self.cache.latents[torch.from_numpy(picks)].float()
        return latents.contiguous(memory_format=torch.channels_last), captions

    def loss(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """Loss of one batch."""
        latents, captions = self.batch(step)
        tokens = self.tokenizer(
            captions, padding="max_length", max_length=text.LENGTH, truncation=True, return_tensors="pt"
        ).input_ids
        generator = torch.Generator().manual_seed(self.run.seed * 1_000_003 + step)
        noise = torch.randn(latents.shape, generator=generator)
        # Stratified: one time from each of B equal stretches, for a steadier gradient.
        spread = (torch.arange(len(latents)) + torch.rand(len(latents), generator=generator)) / len(latents)
        times = (spread * 1000).long().clamp_max(999)
        noisy = self.scheduler.add_noise(latents, noise, times)
        target = self.scheduler.get_velocity(latents, noise, times)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            context = self.encoder(tokens).last_hidden_state
            guess = self.unet(noisy, times, context).sample
        error = ((guess.float() - target) ** 2).mean((1, 2, 3))
        with torch.no_grad():
            late = float(error[times >= 500].mean())
        return error.mean(), {"late": late}

    def advance(self) -> dict[str, float]:
        """One step; now and then a look at what the averaged weights draw."""
        figures = super().advance()
        if self.watch is not None:
            self.watch(self)
        return figures
