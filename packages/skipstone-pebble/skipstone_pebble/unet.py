"""The family of Stable Diffusion: a conditional U-Net and its text encoder, v-prediction on a cosine schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from skipstone.integrations.torch import call_diffusers_unet

from . import text
from .family import DenoiserFamily, DenoiserSettings, Network


@dataclass(frozen=True)
class UNetSettings(DenoiserSettings):
    """Shape and training of U-Net and text encoder.

    Args:
        channels: width at 8 x 8 and at 4 x 4.
        width, layers: of the text encoder.
    """

    first: float = 0.5  # as Pebble was trained
    channels: tuple[int, ...] = (112, 128)
    width: int = 128
    layers: int = 2


class UNet(DenoiserFamily):
    """`UNet2DConditionModel` in a `StableDiffusionPipeline`."""

    name = "unet"
    settings = UNetSettings
    pipeline = "StableDiffusionPipeline"

    def build(self, settings: UNetSettings, tokenizer: CLIPTokenizer, base: Path | None = None) -> Network:
        """A new U-Net; the text encoder is new, or that of `base`."""
        stages = len(settings.channels)
        unet = UNet2DConditionModel(
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
        return Network(
            unet, text.build_encoder(CLIPTextModel, tokenizer, settings.width, settings.layers, base), tokenizer
        )

    def scheduler(self) -> DDIMScheduler:
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

    def forward(
        self, denoiser: nn.Module, x: torch.Tensor, times: torch.Tensor, condition: torch.Tensor | None
    ) -> torch.Tensor:
        """The U-Net's v."""
        return call_diffusers_unet(denoiser, x, times, condition)

    def corrupt(
        self, latents: torch.Tensor, noise: torch.Tensor, spread: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Any of the 1000 times alike; the target is v (arXiv:2202.00512)."""
        scheduler, times = self.scheduler(), (spread * 1000).long().clamp_max(999)
        return scheduler.add_noise(latents, noise, times), times, scheduler.get_velocity(latents, noise, times)

    def components(self, network: Network) -> Mapping[str, Any]:
        """U-Net, text encoder and tokenizer."""
        return {
            "unet": network.denoiser,
            "text_encoder": network.encoder,
            "tokenizer": network.tokenizer,
            "safety_checker": None,
            "feature_extractor": None,
            "requires_safety_checker": False,
        }

    def load(self, folder: Path) -> Network:
        """U-Net, text encoder and tokenizer of a folder."""
        unet = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()
        encoder = CLIPTextModel.from_pretrained(folder / "text_encoder").float().eval()
        return Network(unet, encoder, CLIPTokenizer.from_pretrained(folder / "tokenizer"))
