"""Image families whose denoiser is a transformer, with their text encoders: DiT, PixArt, SD3, Flux, Chroma."""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from diffusers import (
    ChromaPipeline,
    ChromaTransformer2DModel,
    DDIMScheduler,
    DiffusionPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)

from . import Family, register
from .parts import autoencoder, call, clip_text, clip_tokenizer, generators, pictures, seeded, t5_text, t5_tokenizer
from .schedulers import ALPHAS, FLOWS, OWN_FLOWS

UNGUIDED = {"guidance_scale": 1.0}
SIZE = {"height": 16, "width": 16}
Inputs = dict[str, Any]


def dit() -> DiffusionPipeline:
    """Class-conditional DiT: it learns a variance, and its scheduler holds every sample twice."""
    net = seeded(
        DiTTransformer2DModel,
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=4,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
        norm_elementwise_affine=False,
    )
    return DiTPipeline(transformer=net, vae=autoencoder(), scheduler=DDIMScheduler(clip_sample=False))


def pixart() -> DiffusionPipeline:
    """PixArt-alpha: an output of noise and variance, of which the pipeline keeps the noise."""
    net = seeded(
        PixArtTransformer2DModel,
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=8,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        norm_elementwise_affine=False,
        use_additional_conditions=False,
    )
    return PixArtAlphaPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_text(),
        vae=autoencoder(),
        transformer=net,
        scheduler=DPMSolverMultistepScheduler(),
    )


def sd3(layers: int = 1) -> DiffusionPipeline:
    """Stable Diffusion 3: two CLIPs and a T5, rectified flow."""
    net = seeded(
        SD3Transformer2DModel,
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=layers,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return StableDiffusion3Pipeline(
        transformer=net,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.05),
        text_encoder=clip_text(8, projection=8),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_text(8, projection=8, seed=3),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_text(16),
        tokenizer_3=t5_tokenizer(),
    )


def flux(cls: type[DiffusionPipeline]) -> DiffusionPipeline:
    """Flux: latents packed into tokens, guidance distilled into an embedding."""
    net = seeded(
        FluxTransformer2DModel,
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    return cls(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=clip_text(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=t5_tokenizer(),
        transformer=net,
    )


def chroma() -> DiffusionPipeline:
    """Chroma: Flux without CLIP, led by separate calls."""
    net = seeded(
        ChromaTransformer2DModel,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=8,
        approximator_layers=1,
    )
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=autoencoder(shift_factor=0.1),
        text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
        transformer=net,
    )


def dit_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    del pipe
    return {
        "class_labels": [3 + 10 * row for row in range(batch)],
        "guidance_scale": 4.0,
        "num_inference_steps": steps,
        "generator": generators(batch),
        "output_type": "np",
    }


def pixart_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    plain = {"clean_caption": False, "use_resolution_binning": False, "max_sequence_length": 12}
    return call(pipe, batch, steps) | SIZE | plain


def sd3_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return call(pipe, batch, steps) | SIZE | {"max_sequence_length": 12}


def slg_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    layers = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.7}
    return sd3_call(pipe, batch, steps) | layers


def truecfg_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return sd3_call(pipe, batch, steps) | {"true_cfg_scale": 2.0}


def flux_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    arguments = sd3_call(pipe, batch, steps)
    del arguments["negative_prompt"]
    return arguments


def flux_img2img_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return flux_call(pipe, batch, steps) | {"image": pictures(batch, 16), "strength": 0.7}


def kontext_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    shown = {"image": pictures(batch, 16), "max_area": 256, "_auto_resize": False}
    return flux_call(pipe, batch, steps) | shown


_flux = partial(flux, FluxPipeline)
register(Family("dit", dit, dit_call, guidance_off=UNGUIDED))
register(Family("pixart", pixart, pixart_call, ALPHAS, UNGUIDED))
register(Family("sd3", sd3, sd3_call, FLOWS, UNGUIDED))
register(Family("sd3-slg", partial(sd3, 2), slg_call, guidance_off=UNGUIDED | {"skip_guidance_layers": None}))
_no_heun = tuple(name for name in FLOWS if name != "flow-heun")
register(Family("flux", _flux, flux_call, _no_heun))
register(Family("flux-truecfg", _flux, truecfg_call, _no_heun, {"true_cfg_scale": 1.0}))
register(Family("flux-img2img", partial(flux, FluxImg2ImgPipeline), flux_img2img_call, OWN_FLOWS))
_takes_sigmas = "sigmas" in inspect.signature(UniPCMultistepScheduler.set_timesteps).parameters  # from 0.37 on
_kontext = (*OWN_FLOWS, "flow-unipc") if _takes_sigmas else OWN_FLOWS
register(Family("flux-kontext", partial(flux, FluxKontextPipeline), kontext_call, _kontext))
register(Family("chroma", chroma, sd3_call, guidance_off=UNGUIDED))
