"""Families that make neither pictures nor videos, or make them in other spaces: a prior, a decoder, sound."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderOobleck,
    DiffusionPipeline,
    EDMDPMSolverMultistepScheduler,
    KandinskyV22PriorPipeline,
    PriorTransformer,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    UnCLIPScheduler,
    WuerstchenDecoderPipeline,
)
from diffusers.schedulers import DDPMWuerstchenScheduler

try:
    from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt
except ImportError:  # before 0.38
    from diffusers.pipelines.wuerstchen import PaellaVQModel, WuerstchenDiffNeXt

from . import Family, register
from .parts import clip_text, clip_tokenizer, generators, prompts, seeded, t5_text, t5_tokenizer
from .videos import NO_SCALE, tiny_image_encoder


def common(batch: int, steps: int) -> dict[str, Any]:
    return {
        "prompt": prompts(batch),
        "generator": generators(batch),
        "num_inference_steps": steps,
        "guidance_scale": 4.0,
    }


def kandinsky_prior() -> KandinskyV22PriorPipeline:
    """Its samples are image embeddings: rows of 8 numbers."""
    prior = seeded(
        PriorTransformer,
        num_attention_heads=2,
        attention_head_dim=4,
        embedding_dim=8,
        num_layers=1,
        num_embeddings=16,
    )
    prior.clip_std.fill_(1.0)
    for layer in (prior.transformer_blocks[0].attn1.to_v, prior.embedding_proj, prior.encoder_hidden_states_proj):
        layer.weight.mul_(30)  # else all prompts would give much the same embedding
    encoder, processor = tiny_image_encoder()
    scheduler = UnCLIPScheduler(
        variance_type="fixed_small_log", prediction_type="sample", clip_sample=True, clip_sample_range=5.0
    )
    return KandinskyV22PriorPipeline(
        prior=prior,
        image_encoder=encoder,
        text_encoder=clip_text(projection=8),
        tokenizer=clip_tokenizer(),
        scheduler=scheduler,
        image_processor=processor,
    )


def prior_inputs(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    return common(batch, steps)


def wuerstchen() -> WuerstchenDecoderPipeline:
    """Its scheduler takes a timestep for each row; the prompt comes first in the batch."""
    decoder = seeded(
        WuerstchenDiffNeXt,
        c_cond=8,
        c_hidden=[8, 8],
        nhead=[-1, 2],
        blocks=[1, 1],
        level_config=["CT", "CTA"],
        inject_effnet=[False, True],
        effnet_embd=4,
        clip_embd=8,
        c_r=8,
        dropout=0.0,
    )
    out = decoder.clf[1].bias
    out[len(out) // 2 :] += 4.0  # the divisor of its output: near 1, or steps as long as ours would blow up
    return WuerstchenDecoderPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text(),
        decoder=decoder,
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=seeded(PaellaVQModel, levels=1, bottleneck_blocks=1, embed_dim=8, num_vq_embeddings=16),
        latent_dim_scale=4.0,
    )


def wuerstchen_inputs(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    pictured = torch.cat([torch.randn(1, 4, 2, 2, generator=generator) for generator in generators(batch)])
    # With a prompt for each sample, the pipeline would repeat every prompt for every sample.
    return {**common(batch, steps), "prompt": "red fox", "image_embeddings": pictured, "output_type": "latent"}


def stable_audio() -> StableAudioPipeline:
    transformer = seeded(
        StableAudioDiTModel,
        sample_size=6,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=4,
        num_attention_heads=2,
        num_key_value_attention_heads=2,
        cross_attention_dim=8,
        time_proj_dim=8,
        global_states_input_dim=16,
        cross_attention_input_dim=8,
    )
    sizes = {"encoder_hidden_size": 4, "decoder_channels": 4, "decoder_input_channels": 4, "sampling_rate": 4}
    # Its weights are normalised as it is made; with a gradient they could not be copied.
    with torch.no_grad():
        autoencoder = seeded(AutoencoderOobleck, downsampling_ratios=[1, 2], channel_multiples=[1, 2], **sizes)
    scheduler = EDMDPMSolverMultistepScheduler(
        sigma_min=0.3, sigma_max=500.0, sigma_data=1.0, sigma_schedule="exponential", prediction_type="v_prediction"
    )
    return StableAudioPipeline(
        vae=autoencoder,
        text_encoder=t5_text(),
        projection_model=seeded(
            StableAudioProjectionModel, text_encoder_dim=8, conditioning_dim=8, min_value=0, max_value=32
        ),
        tokenizer=t5_tokenizer(),
        transformer=transformer,
        scheduler=scheduler,
    )


def audio_inputs(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    return {**common(batch, steps), "audio_end_in_s": 2.0, "output_type": "latent"}


register(Family("kandinsky22-prior", kandinsky_prior, prior_inputs, (), NO_SCALE, notes="samples of one dimension"))
register(Family("wuerstchen-decoder", wuerstchen, wuerstchen_inputs, (), NO_SCALE, notes="prompt first"))
register(Family("stable-audio", stable_audio, audio_inputs, ("edm-dpmpp",), NO_SCALE, notes="(B, C, length)"))
