"""Pipelines that a guest cannot serve: their schedulers are copied in the call, bypassed, or stepped twice.

They are only made here; `REFUSED_FAMILIES` maps a name to what makes the pipeline.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers import (
    AutoencoderKLCosmos,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    DiffusionPipeline,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LEditsPPPipelineStableDiffusion,
    ScoreSdeVePipeline,
    ScoreSdeVeScheduler,
    SkyReelsV2DiffusionForcingPipeline,
    SkyReelsV2Transformer3DModel,
    TextToVideoZeroPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import nn

from .parts import import_since, seeded
from .videos import sd_schedule, vae
from .videos import texts as clip_texts
from .videos_dit import texts, wan_parts


def unet() -> UNet2DConditionModel:
    return seeded(
        UNet2DConditionModel,
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=64,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )


def sd(cls: type) -> Any:
    """A pipeline with the parts of Stable Diffusion."""
    return cls(
        **clip_texts(),
        vae=vae(),
        unet=unet(),
        scheduler=sd_schedule(steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def ltx2() -> Any:
    """Sound and picture in one network, and the scheduler copied in the call for the sound."""
    transformer = seeded(
        import_since("LTX2VideoTransformer3DModel", since="0.37"),
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=2,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=8,
        num_layers=1,
        caption_channels=8,
    )
    others = dict.fromkeys(("vae", "audio_vae", "text_encoder", "tokenizer", "connectors", "vocoder"))
    pipeline = import_since("LTX2Pipeline", since="0.37")
    return pipeline(**others, transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler())


def skyreels() -> SkyReelsV2DiffusionForcingPipeline:
    """A copy of the scheduler for each frame; the pipeline's own is never stepped."""
    transformer = seeded(
        SkyReelsV2Transformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        num_layers=1,
        rope_max_seq_len=16,
    )
    return SkyReelsV2DiffusionForcingPipeline(**wan_parts(), transformer=transformer)


def score_sde_ve() -> ScoreSdeVePipeline:
    """Steps of a predictor and of a corrector, under other names than `step`."""
    network = seeded(
        UNet2DModel,
        sample_size=8,
        block_out_channels=(4, 8),
        layers_per_block=1,
        norm_num_groups=2,
        attention_head_dim=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    return ScoreSdeVePipeline(unet=network, scheduler=ScoreSdeVeScheduler())


def cosmos() -> CosmosTextToWorldPipeline:
    """Calls `step` twice an iteration, first with both branches of guidance as rows, and sets its index back."""
    transformer = seeded(
        CosmosTransformer3DModel,
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        mlp_ratio=2,
        text_embed_dim=8,
        adaln_lora_dim=4,
        max_size=(4, 16, 16),
    )
    widths = (8,) * 4
    autoencoder = seeded(
        AutoencoderKLCosmos, latent_channels=4, encoder_block_out_channels=widths, decode_block_out_channels=widths
    )
    # Without a guard given, the pipeline would ask for a package; it runs with that package's guard only.
    return CosmosTextToWorldPipeline(
        **texts(), transformer=transformer, vae=autoencoder, scheduler=EDMEulerScheduler(), safety_checker=nn.Identity()
    )


REFUSED_FAMILIES: dict[str, Callable[[], DiffusionPipeline]] = {
    "text2video-zero": lambda: sd(TextToVideoZeroPipeline),
    "ltx2": ltx2,
    "skyreels-df": skyreels,
    "ledits++": lambda: sd(LEditsPPPipelineStableDiffusion),
    "score-sde-ve": score_sde_ve,
    "cosmos": cosmos,
}
