"""Video families with UNets: AnimateDiff, Stable Video Diffusion, text-to-video and I2VGen-XL."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    DDIMScheduler,
    DiffusionPipeline,
    EulerDiscreteScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    StableVideoDiffusionPipeline,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from . import Family, register
from .parts import clip_text, clip_tokenizer, generators, pictures, prompts, seeded

try:
    from transformers import CLIPImageProcessorPil as CLIPImageProcessor  # the other one needs torchvision
except ImportError:  # transformers 4
    from transformers import CLIPImageProcessor

FRAMES = 3
SIDE = 8  # pixels, and 4 x 4 latents
COMMON = ("ddim-trailing", "euler", "dpmpp", "pndm", "unipc")


def vae(**options: Any) -> AutoencoderKL:
    """A VAE that halves the side of a picture."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return seeded(AutoencoderKL, **blocks, block_out_channels=(4, 4), norm_num_groups=2, seed=3, **options)


def sd_schedule(**options: Any) -> DDIMScheduler:
    """DDIM with the noise of Stable Diffusion."""
    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, **options
    )


def tiny_image_encoder() -> tuple[CLIPVisionModelWithProjection, CLIPImageProcessor]:
    """A CLIP image encoder of one layer, and what prepares its pictures."""
    config = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        projection_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=4,
    )
    side = {"height": SIDE, "width": SIDE}
    return seeded(CLIPVisionModelWithProjection, config, seed=4), CLIPImageProcessor(crop_size=side, size=side)


def texts() -> dict[str, Any]:
    return {"text_encoder": clip_text(), "tokenizer": clip_tokenizer()}


def video_inputs(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    """The keyword arguments common to pipelines that make a video from a prompt."""
    return {
        "prompt": prompts(batch),
        "generator": generators(batch),
        "num_inference_steps": steps,
        "num_frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
        "guidance_scale": 4.0,
        "output_type": "latent",
    }


def animatediff() -> AnimateDiffPipeline:
    unet = seeded(
        UNet2DConditionModel,
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=8,
        attention_head_dim=2,
        norm_num_groups=2,
    )
    motion = seeded(
        MotionAdapter,
        block_out_channels=(4, 8),
        motion_layers_per_block=1,
        motion_norm_num_groups=2,
        motion_num_attention_heads=2,
        seed=2,
    )
    return AnimateDiffPipeline(
        **texts(), vae=vae(), unet=unet, motion_adapter=motion, scheduler=sd_schedule(steps_offset=1)
    )


def svd() -> StableVideoDiffusionPipeline:
    # The groups of its norms are fixed at 32 in the class, hence the channels.
    unet = seeded(
        UNetSpatioTemporalConditionModel,
        block_out_channels=(32, 32),
        layers_per_block=1,
        sample_size=4,
        in_channels=8,
        out_channels=4,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        cross_attention_dim=8,
        num_attention_heads=2,
        num_frames=FRAMES,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
    )
    decoder = seeded(
        AutoencoderKLTemporalDecoder, down_block_types=("DownEncoderBlock2D",) * 2, block_out_channels=(32, 32)
    )
    scheduler = EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        sigma_max=700.0,
        sigma_min=0.002,
        timestep_type="continuous",
        use_karras_sigmas=True,
    )
    encoder, processor = tiny_image_encoder()
    return StableVideoDiffusionPipeline(
        vae=decoder, image_encoder=encoder, unet=unet, scheduler=scheduler, feature_extractor=processor
    )


def svd_inputs(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    return {
        "image": pictures(batch, SIDE),
        "generator": generators(batch),
        "num_inference_steps": steps,
        "num_frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
        "min_guidance_scale": 1.0,
        "max_guidance_scale": 3.0,
        "output_type": "latent",
    }


def text_to_video() -> TextToVideoSDPipeline:
    unet = seeded(
        UNet3DConditionModel,
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    return TextToVideoSDPipeline(**texts(), vae=vae(), unet=unet, scheduler=sd_schedule())


def certain_vae() -> AutoencoderKL:
    """A VAE whose latents do not vary: I2VGen-XL draws those of its picture from torch's own generator."""
    made = vae(scaling_factor=1 / 64)
    mean, spread = slice(0, 4), slice(4, 8)
    weight, bias = made.quant_conv.weight, made.quant_conv.bias
    # A spread of exp(-15) is lost in the rounding of means about 128.
    weight[mean] *= 32
    bias[mean] = 128.0
    weight[spread] = 0.0
    bias[spread] = -30.0
    return made


def i2vgen() -> I2VGenXLPipeline:
    unet = seeded(
        I2VGenXLUNet,
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    encoder, processor = tiny_image_encoder()
    return I2VGenXLPipeline(
        **texts(),
        vae=certain_vae(),
        image_encoder=encoder,
        feature_extractor=processor,
        unet=unet,
        scheduler=sd_schedule(prediction_type="v_prediction"),
    )


def i2vgen_inputs(pipe: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    # Its default clip_skip=1 needs an older transformers.
    return {**video_inputs(pipe, batch, steps), "image": pictures(batch, SIDE), "target_fps": 8, "clip_skip": None}


NO_SCALE = {"guidance_scale": 1.0}
# Where frames are rows of step(), a list with one generator per video is too short for schedulers that draw noise.
ANY = (*COMMON, "euler-ancestral", "dpmpp-sde")
register(Family("animatediff", animatediff, video_inputs, ANY, NO_SCALE, notes="text rows repeated per frame"))
register(Family("svd", svd, svd_inputs, (), {"max_guidance_scale": 1.0}, notes="a guidance scale for each frame"))
register(Family("text-to-video-sd", text_to_video, video_inputs, COMMON, NO_SCALE, notes="step() sees frames as rows"))
register(Family("i2vgen-xl", i2vgen, i2vgen_inputs, COMMON, NO_SCALE, notes="step() sees frames as rows"))
