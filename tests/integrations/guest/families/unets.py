"""Image families whose denoiser is a UNet: DDPM, DDIM, LDM, Stable Diffusion, SDXL, LCM, Kandinsky, Cascade."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    KandinskyV22Pipeline,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LDMTextToImagePipeline,
    PNDMScheduler,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel

from . import Family, register
from .parts import autoencoder, call, clip_text, clip_tokenizer, generators, noise, pictures, seeded
from .schedulers import ALPHAS, EDM

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
UNGUIDED = {"guidance_scale": 1.0}
Inputs = dict[str, Any]


def unet(width: int = 8, channels: int = 4, **more: Any) -> UNet2DConditionModel:
    """A conditional UNet of two levels over 8 x 8 latents."""
    options = {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "layers_per_block": 1,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return seeded(UNet2DConditionModel, **options | more)


def sd_parts(**more: Any) -> dict[str, Any]:
    """The components of Stable Diffusion 1.5; `more` goes to the UNet."""
    return {
        "vae": autoencoder(),
        "text_encoder": clip_text(),
        "tokenizer": clip_tokenizer(),
        "unet": unet(**more),
        "scheduler": PNDMScheduler(skip_prk_steps=True, steps_offset=1, **BETAS),
        "safety_checker": None,
        "feature_extractor": None,
    }


def sd(cls: type[DiffusionPipeline], **more: Any) -> DiffusionPipeline:
    """A pipeline of the family of Stable Diffusion 1.5."""
    return cls(**sd_parts(**more), requires_safety_checker=False)


def sdxl_parts(ids: int = 6, **more: Any) -> dict[str, Any]:
    """The components of SDXL; `ids` numbers beside the text tell it of sizes (6) or of sizes and beauty (5)."""
    return {
        "vae": autoencoder(),
        "text_encoder": clip_text(8),
        "text_encoder_2": clip_text(8, projection=8, seed=3),
        "tokenizer": clip_tokenizer(),
        "tokenizer_2": clip_tokenizer(),
        "unet": unet(
            16,
            addition_embed_type="text_time",
            addition_time_embed_dim=4,
            projection_class_embeddings_input_dim=4 * ids + 8,
            use_linear_projection=True,
            **more,
        ),
        "scheduler": EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **BETAS),
    }


def sdxl() -> DiffusionPipeline:
    """SDXL's base."""
    return StableDiffusionXLPipeline(**sdxl_parts(), add_watermarker=False)


def refiner() -> DiffusionPipeline:
    """SDXL's refiner: the second text encoder only, and a number for beauty among the ids."""
    parts = sdxl_parts(5, cross_attention_dim=8) | {"text_encoder": None, "tokenizer": None}
    return StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=True, add_watermarker=False)


def base_and_refiner(
    base: DiffusionPipeline, fine: DiffusionPipeline, batch: int, steps: int, split: float = 0.5
) -> torch.Tensor:
    """Latents of SDXL's base until `split` of the way, finished by the refiner."""
    started = base(**call(base, batch, steps), denoising_end=split).images
    return fine(**call(fine, batch, steps), image=started, denoising_start=split).images


def unconditional(cls: type[DiffusionPipeline], scheduler: type) -> DiffusionPipeline:
    """A pipeline without text over 8 x 8 pictures."""
    net = seeded(
        UNet2DModel,
        sample_size=8,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
        norm_num_groups=4,
    )
    return cls(unet=net, scheduler=scheduler())


def ldm() -> DiffusionPipeline:
    """Latent diffusion from text, with its own BERT."""
    config = LDMBertConfig(
        vocab_size=54, encoder_layers=1, encoder_ffn_dim=8, encoder_attention_heads=2, head_dim=4, d_model=8
    )
    config.pad_token_id = 1
    return LDMTextToImagePipeline(
        vqvae=autoencoder(),
        bert=seeded(LDMBertModel, config, seed=1),
        tokenizer=clip_tokenizer(77),
        unet=unet(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, **BETAS),
    )


def lcm() -> DiffusionPipeline:
    """A latent consistency model: guidance enters as an embedding, and its last x0 is what gets decoded."""
    parts = sd_parts(time_cond_proj_dim=8) | {"scheduler": LCMScheduler(**BETAS)}
    return LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)


def kandinsky() -> DiffusionPipeline:
    """Kandinsky 2.2's decoder, led by the embedding of a picture; its UNet gives a variance too."""
    net = unet(
        out_channels=8,
        addition_embed_type="image",
        addition_embed_type_num_heads=2,
        encoder_hid_dim=8,
        encoder_hid_dim_type="image_proj",
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        resnet_time_scale_shift="scale_shift",
    )
    movq = seeded(
        VQModel,
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        num_vq_embeddings=8,
        norm_num_groups=2,
    )
    scheduler = DDPMScheduler(beta_schedule="linear", beta_start=0.00085, beta_end=0.012, clip_sample=False)
    return KandinskyV22Pipeline(unet=net, scheduler=scheduler, movq=movq)


def cascade() -> DiffusionPipeline:
    """Stable Cascade's prior."""
    prior = seeded(
        StableCascadeUNet,
        in_channels=4,
        out_channels=4,
        conditioning_dim=8,
        timestep_ratio_embedding_dim=8,
        block_out_channels=(8, 8),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=8,
        clip_text_in_channels=8,
        clip_text_pooled_in_channels=8,
        clip_seq=2,
        switch_level=(False,),
    )
    return StableCascadePriorPipeline(
        tokenizer=clip_tokenizer(),
        text_encoder=clip_text(projection=8),
        prior=prior,
        scheduler=DDPMWuerstchenScheduler(),
        feature_extractor=None,
        image_encoder=None,
    )


def unconditional_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    del pipe
    return {
        "batch_size": batch,
        "num_inference_steps": steps,
        "generator": generators(batch),
        "output_type": "np",
    }


def ldm_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    arguments = call(pipe, batch, steps) | {"height": 64, "width": 64, "output_type": "pt"}
    del arguments["negative_prompt"]
    return arguments


def img2img_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return call(pipe, batch, steps) | {"image": pictures(batch, 16), "strength": 0.7}


def inpaint_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    mask = torch.zeros(batch, 1, 16, 16)
    for row in range(batch):
        mask[row, :, 4:12, : 6 + 2 * row] = 1
    return img2img_call(pipe, batch, steps) | {"mask_image": mask, "strength": 1.0, "height": 16, "width": 16}


def refiner_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return call(pipe, batch, steps) | {"image": noise(batch, 4, 8, 8), "denoising_start": 0.5}


def lcm_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    arguments = call(pipe, batch, steps)
    del arguments["negative_prompt"]
    return arguments


def kandinsky_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    del pipe
    return {
        "image_embeds": noise(batch, 8, seed=1),
        "negative_image_embeds": noise(batch, 8, seed=2),
        "height": 16,
        "width": 16,
        "guidance_scale": 4.0,
        "num_inference_steps": steps,
        "generator": generators(batch),
        "output_type": "latent",
    }


def cascade_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return call(pipe, batch, steps) | {"height": 342, "width": 342, "output_type": "pt"}


register(Family("ddpm", partial(unconditional, DDPMPipeline, DDPMScheduler), unconditional_call))
register(Family("ddim", partial(unconditional, DDIMPipeline, DDIMScheduler), unconditional_call))
register(Family("ldm", ldm, ldm_call, guidance_off=UNGUIDED))
register(Family("sd15", partial(sd, StableDiffusionPipeline), call, ALPHAS, UNGUIDED))
register(Family("sd15-img2img", partial(sd, StableDiffusionImg2ImgPipeline), img2img_call, ALPHAS, UNGUIDED))
_inpaint = partial(sd, StableDiffusionInpaintPipeline)
register(Family("sd15-inpaint", _inpaint, inpaint_call, ALPHAS, UNGUIDED))
register(Family("sd15-inpaint9", partial(_inpaint, in_channels=9), inpaint_call, ALPHAS, UNGUIDED))
register(Family("sdxl", sdxl, call, ALPHAS + EDM, UNGUIDED))
register(Family("sdxl-refiner", refiner, refiner_call, ALPHAS, UNGUIDED))
register(Family("lcm", lcm, lcm_call))
register(Family("kandinsky22", kandinsky, kandinsky_call, guidance_off=UNGUIDED))
register(Family("stablecascade-prior", cascade, cascade_call, guidance_off=UNGUIDED))
