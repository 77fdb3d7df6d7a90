"""More video families with transformers: HunyuanVideo, Mochi and Allegro."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLAllegro,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLMochi,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)

from . import Family, register
from .parts import generators, seeded
from .videos import ANY, NO_SCALE
from .videos_dit import TOKENS, inputs, texts

WIDTHS = (8, 8, 8, 8)


def hunyuan() -> HunyuanVideoPipeline:
    """Without text encoders: its prompts are embeddings."""
    transformer = seeded(
        HunyuanVideoTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(2, 4, 4),
    )
    autoencoder = seeded(
        AutoencoderKLHunyuanVideo, latent_channels=4, block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=2
    )
    return HunyuanVideoPipeline(
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
        vae=autoencoder,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


def words(batch: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What text encoders would give for prompts of different lengths, each from its seed: tokens, pooled, mask."""
    rows = [torch.Generator().manual_seed(first + row) for row in range(batch)]
    tokens = torch.cat([torch.randn(1, 8, 8, generator=row) for row in rows])
    pooled = torch.cat([torch.randn(1, 8, generator=row) for row in rows])
    lengths = torch.tensor([4 + row % 4 for row in range(batch)])
    return tokens, pooled, (torch.arange(8) < lengths[:, None]).float()


def hunyuan_inputs(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    tokens, pooled, mask = words(batch)
    return {
        "prompt_embeds": tokens,
        "pooled_prompt_embeds": pooled,
        "prompt_attention_mask": mask,
        "generator": generators(batch),
        "num_inference_steps": steps,
        "num_frames": 5,
        "height": 32,
        "width": 32,
        "output_type": "latent",
    }


def hunyuan_guided(pipe: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    """Besides the distilled scale, a second call with negative prompts."""
    tokens, pooled, mask = words(batch, first=100)
    return {
        **hunyuan_inputs(pipe, batch, steps),
        "negative_prompt_embeds": tokens,
        "negative_pooled_prompt_embeds": pooled,
        "negative_prompt_attention_mask": mask,
        "true_cfg_scale": 4.0,
    }


def mochi() -> MochiPipeline:
    transformer = seeded(
        MochiTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=8,
        in_channels=12,
        text_embed_dim=8,
        time_embed_dim=4,
        max_sequence_length=TOKENS,
    )
    # The groups of its norms are fixed at 32 in the class, hence the channels.
    wide = (32,) * 4
    autoencoder = seeded(
        AutoencoderKLMochi,
        encoder_block_out_channels=wide,
        decoder_block_out_channels=wide,
        layers_per_block=(1,) * 5,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return MochiPipeline(**texts(), vae=autoencoder, transformer=transformer, scheduler=scheduler)


def allegro() -> AllegroPipeline:
    transformer = seeded(
        AllegroTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=4,
        sample_height=4,
        sample_frames=2,
        caption_channels=8,
    )
    autoencoder = seeded(
        AutoencoderKLAllegro, block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=2, sample_size=32
    )
    scheduler = EulerAncestralDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return AllegroPipeline(**texts(), vae=autoencoder, transformer=transformer, scheduler=scheduler)


DISTILLED = "the scale enters the network; one call"
register(Family("hunyuan-video", hunyuan, hunyuan_inputs, ("flow-euler",), notes=DISTILLED))
register(Family("hunyuan-video-truecfg", hunyuan, hunyuan_guided, ("flow-euler",), {"true_cfg_scale": 1.0}))
register(Family("mochi", mochi, inputs(7, 32), (), NO_SCALE, notes="sigmas run upwards"))
register(Family("allegro", allegro, inputs(5, 32, clean_caption=False), ANY, NO_SCALE, notes="ids in two tuples"))
