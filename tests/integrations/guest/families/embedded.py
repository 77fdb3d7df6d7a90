"""Image families that are given embeddings in place of a text encoder: the large language models are left out."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderDC,
    AutoencoderKLQwenImage,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDPMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)

from . import Family, register
from .parts import autoencoder, generators, import_since, noise, seeded
from .schedulers import FLOWS

UNGUIDED = {"guidance_scale": 1.0}
TOKENS, WIDTH = 5, 8
Inputs = dict[str, Any]


def textless(cls: type[DiffusionPipeline], net: torch.nn.Module, vae: torch.nn.Module, scheduler: Any) -> Any:
    """A pipeline without its text encoder."""
    return cls(tokenizer=None, text_encoder=None, vae=vae, transformer=net, scheduler=scheduler)


def qwen() -> DiffusionPipeline:
    """Qwen-Image: packed latents, separate calls, the guided output brought back to the norm of the first."""
    net = seeded(
        QwenImageTransformer2DModel,
        in_channels=16,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    vae = seeded(
        AutoencoderKLQwenImage,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return textless(QwenImagePipeline, net, vae, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))


def sana() -> DiffusionPipeline:
    """Sana: linear attention over the latents of a deep-compression autoencoder."""
    net = seeded(
        SanaTransformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=4,
        num_cross_attention_heads=2,
        cross_attention_head_dim=4,
        cross_attention_dim=8,
        caption_channels=WIDTH,
        sample_size=8,
    )
    vae = seeded(
        AutoencoderDC,
        latent_channels=4,
        attention_head_dim=2,
        encoder_block_types=("ResBlock",) * 3,
        decoder_block_types=("ResBlock",) * 3,
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
    )
    scheduler = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return textless(SanaPipeline, net, vae, scheduler)


def hunyuan() -> DiffusionPipeline:
    """HunyuanDiT: two texts, rotary positions, learned variance."""
    net = seeded(
        HunyuanDiT2DModel,
        sample_size=8,
        num_layers=2,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        hidden_size=16,
        cross_attention_dim=WIDTH,
        cross_attention_dim_t5=WIDTH,
        pooled_projection_dim=8,
        text_len=TOKENS,
        text_len_t5=TOKENS,
        activation_fn="gelu-approximate",
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.02,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
    )
    levels = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    return HunyuanDiTPipeline(
        tokenizer=None,
        text_encoder=None,
        tokenizer_2=None,
        text_encoder_2=None,
        vae=autoencoder(block_out_channels=(4,) * 4, **levels),  # its rotary positions are for eight pixels a latent
        transformer=net,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def aura() -> DiffusionPipeline:
    """AuraFlow: SD3's kind, fewer joint blocks."""
    net = seeded(
        AuraFlowTransformer2DModel,
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
        gain=2.5,
    )
    return textless(AuraFlowPipeline, net, autoencoder(), FlowMatchEulerDiscreteScheduler(shift=1.73))


def lumina() -> DiffusionPipeline:
    """Lumina 2: separate calls in which time runs backwards, so the velocity is negated before the scheduler."""
    net = seeded(
        Lumina2Transformer2DModel,
        sample_size=8,
        in_channels=4,
        hidden_size=16,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 2, 2),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return textless(Lumina2Pipeline, net, autoencoder(), FlowMatchEulerDiscreteScheduler(shift=3.0))


def cogview() -> DiffusionPipeline:
    """CogView 4: separate calls told of sizes."""
    net = seeded(
        CogView4Transformer2DModel,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=16,
        sample_size=8,
        rope_axes_dim=(8, 8),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(
        base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
    )
    return textless(CogView4Pipeline, net, autoencoder(), scheduler)


def zimage() -> DiffusionPipeline:
    """Z-Image: the denoiser takes a list of samples and gives a list."""
    net = seeded(
        import_since("ZImageTransformer2DModel", since="0.36"),
        in_channels=4,
        dim=16,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 2, 2],
        axes_lens=[64, 16, 16],
    )
    pipeline = import_since("ZImagePipeline", since="0.36")
    return textless(pipeline, net, autoencoder(shift_factor=0.1), FlowMatchEulerDiscreteScheduler(shift=3.0))


def embedded(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    """Embeddings of both branches, without masks."""
    del pipe
    return {
        "prompt_embeds": noise(batch, TOKENS, WIDTH, seed=1),
        "negative_prompt_embeds": noise(batch, TOKENS, WIDTH, seed=2),
        "guidance_scale": 4.0,
        "num_inference_steps": steps,
        "height": 16,
        "width": 16,
        "generator": generators(batch),
        "output_type": "latent",
    }


def masked(pipe: DiffusionPipeline, batch: int, steps: int, mask: str = "prompt_attention_mask", **more: Any) -> Inputs:
    """Embeddings with masks, which leave out the last token of the second sample."""
    attended = torch.ones(batch, TOKENS, dtype=torch.long)
    attended[1::2, -1] = 0
    return embedded(pipe, batch, steps) | {mask: attended, f"negative_{mask}": attended.clone()} | more


def qwen_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    arguments = masked(pipe, batch, steps, mask="prompt_embeds_mask", true_cfg_scale=4.0)
    return arguments | {"guidance_scale": None}


def hunyuan_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    first = masked(pipe, batch, steps, height=64, width=64, use_resolution_binning=False)
    return first | {f"{key}_2": value.clone() for key, value in first.items() if "prompt" in key}


def zimage_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    arguments = embedded(pipe, batch, steps)
    return arguments | {key: list(value) for key, value in arguments.items() if "prompt" in key}


_sana_call = partial(masked, height=32, width=32, negative_prompt=None, use_resolution_binning=False)
register(Family("qwenimage", qwen, qwen_call, guidance_off={"true_cfg_scale": 1.0}))
register(Family("sana", sana, _sana_call, FLOWS, UNGUIDED))
register(Family("hunyuandit", hunyuan, hunyuan_call, guidance_off=UNGUIDED))
register(Family("auraflow", aura, masked, FLOWS, UNGUIDED))
register(Family("lumina2", lumina, partial(masked, height=64, width=64), guidance_off=UNGUIDED))
register(Family("cogview4", cogview, embedded, guidance_off=UNGUIDED))
register(Family("zimage", zimage, zimage_call, guidance_off={"guidance_scale": 0.0}))
