"""Video families with transformers: CogVideoX, Wan 2.1 and 2.2, Latte and LTX."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLLTXVideo,
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)

from . import Family, register
from .parts import generators, pictures, prompts, seeded, t5_text, t5_tokenizer
from .videos import ANY, NO_SCALE, sd_schedule, tiny_image_encoder, vae

TOKENS = 16
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def texts() -> dict[str, Any]:
    return {"text_encoder": t5_text(), "tokenizer": t5_tokenizer(TOKENS)}


def inputs(frames: int, side: int, **extra: Any) -> Any:
    """The keyword arguments of a family whose videos have so many frames of so many pixels a side."""

    def make(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
        return {
            "prompt": prompts(batch),
            "negative_prompt": ["blur"] * batch,
            "generator": generators(batch),
            "num_inference_steps": steps,
            "num_frames": frames,
            "height": side,
            "width": side,
            "guidance_scale": 4.0,
            "max_sequence_length": TOKENS,
            "output_type": "latent",
            **extra,
        }

    return make


def cogvideox(rotary: bool, scheduler: type) -> CogVideoXPipeline:
    """The 2B model adds its positions to the tokens and runs DDIM; the 5B model turns them and runs its DPM."""
    transformer = seeded(
        CogVideoXTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=16 if rotary else 8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=4,
        text_embed_dim=8,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=9,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TOKENS,
        use_rotary_positional_embeddings=rotary,
    )
    autoencoder = seeded(
        AutoencoderKLCogVideoX,
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return CogVideoXPipeline(**texts(), vae=autoencoder, transformer=transformer, scheduler=scheduler(**ZERO_SNR))


def wan_network(seed: int = 0, **options: Any) -> WanTransformer3DModel:
    settings = {"in_channels": 4, "out_channels": 4, "num_layers": 1, **options}
    return seeded(
        WanTransformer3DModel,
        **settings,
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=8,
        freq_dim=16,
        ffn_dim=16,
        rope_max_seq_len=16,
        seed=seed,
    )


def wan_parts() -> dict[str, Any]:
    """What every Wan has besides its networks."""
    autoencoder = seeded(
        AutoencoderKLWan,
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return {**texts(), "vae": autoencoder, "scheduler": scheduler}


def wan21() -> WanPipeline:
    return WanPipeline(**wan_parts(), transformer=wan_network())


def wan22() -> WanPipeline:
    """Two networks: the second takes over below the boundary."""
    return WanPipeline(
        **wan_parts(), transformer=wan_network(), transformer_2=wan_network(seed=5), boundary_ratio=0.875
    )


def wan22_ti2v() -> WanPipeline:
    """The 5B model of Wan 2.2, with a timestep for each token."""
    return WanPipeline(**wan_parts(), transformer=wan_network(), expand_timesteps=True)


def wan_i2v() -> WanImageToVideoPipeline:
    """The picture enters as channels, and its CLIP tokens as a second context."""
    encoder, processor = tiny_image_encoder()
    network = wan_network(in_channels=12, image_dim=8, added_kv_proj_dim=24)
    return WanImageToVideoPipeline(**wan_parts(), transformer=network, image_encoder=encoder, image_processor=processor)


def latte() -> LattePipeline:
    transformer = seeded(
        LatteTransformer3DModel,
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=8,
        attention_bias=True,
        sample_size=4,
        patch_size=2,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        caption_channels=8,
        video_length=3,
    )
    return LattePipeline(**texts(), vae=vae(), transformer=transformer, scheduler=sd_schedule())


def latte_inputs(_: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    # With mask_feature, a prompt alone is cut to its length and a prompt in a batch is not.
    return {
        "prompt": prompts(batch),
        "generator": generators(batch),
        "num_inference_steps": steps,
        "video_length": 3,
        "height": 8,
        "width": 8,
        "guidance_scale": 4.0,
        "clean_caption": False,
        "mask_feature": False,
        "output_type": "latent",
    }


def ltx(cls: type) -> Any:
    transformer = seeded(
        LTXVideoTransformer3DModel,
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=1,
        caption_channels=8,
    )
    autoencoder = seeded(
        AutoencoderKLLTXVideo,
        latent_channels=8,
        block_out_channels=(8,) * 4,
        decoder_block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
        patch_size=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return cls(**texts(), vae=autoencoder, transformer=transformer, scheduler=scheduler)


def ltx_picture(pipe: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    return {**inputs(9, 32)(pipe, batch, steps), "image": pictures(batch, 32)}


def wan_picture(pipe: DiffusionPipeline, batch: int, steps: int) -> dict[str, Any]:
    # One picture serves the whole batch. With prompts, the pipeline would need ftfy.
    words = [torch.randn(1, TOKENS, 8, generator=generator) for generator in generators(batch)]
    texts = {"prompt_embeds": torch.cat(words), "negative_prompt_embeds": torch.zeros(batch, TOKENS, 8)}
    return {**inputs(5, 32, prompt=None, negative_prompt=None)(pipe, batch, steps), **texts, "image": pictures(1, 32)}


FLOW = ("flow-euler", "flow-dpmpp", "flow-unipc")
BOTH = {"guidance_scale": 1.0, "guidance_scale_2": 1.0}


register(Family("cogvideox", lambda: cogvideox(False, CogVideoXDDIMScheduler), inputs(9, 32), (), NO_SCALE))
register(Family("cogvideox-dpm", lambda: cogvideox(True, CogVideoXDPMScheduler), inputs(9, 32), (), NO_SCALE))
register(
    Family(
        "cogvideox-collision",
        lambda: cogvideox(True, CogVideoXDDIMScheduler),
        inputs(1, 32),
        (),
        NO_SCALE,
        notes="4 tokens: at batch 2 the rotary embeddings have as many rows as the network's input",
    )
)
register(Family("wan21", wan21, inputs(5, 32), FLOW, NO_SCALE, notes="separate calls, prompt first"))
register(
    Family(
        "wan22",
        wan22,
        inputs(5, 32, guidance_scale_2=3.0),
        FLOW,
        BOTH,
        notes="separate calls; the second network from the third step of four",
    )
)
register(Family("wan22-ti2v", wan22_ti2v, inputs(5, 32), FLOW, NO_SCALE, notes="a timestep for each token"))
register(Family("wan-i2v", wan_i2v, wan_picture, FLOW, NO_SCALE, notes="the network's input has 12 channels"))
register(Family("latte", latte, latte_inputs, ANY, NO_SCALE, notes="2C channels out"))
register(Family("ltx", lambda: ltx(LTXPipeline), inputs(9, 32), ("flow-euler",), NO_SCALE))
register(
    Family(
        "ltx-i2v",
        lambda: ltx(LTXImageToVideoPipeline),
        ltx_picture,
        (),
        NO_SCALE,
        notes="step() sees unpacked latents without the first frame",
    )
)
