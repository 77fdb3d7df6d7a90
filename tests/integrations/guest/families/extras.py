"""Image families with something beside the denoiser: ControlNet, IP-Adapter, three branches, PAG, SDXL's variants."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DiffusionPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    T2IAdapter,
)

from . import Family, register
from .parts import call, noise, pictures, seeded
from .schedulers import ALPHAS
from .unets import UNGUIDED, Inputs, img2img_call, inpaint_call, sd, sd_parts, sdxl_parts


def controlnet(width: int = 8, seed: int = 4, **more: Any) -> ControlNetModel:
    """A ControlNet for the tiny UNet, whose convolutions do not start at zero."""
    return seeded(
        ControlNetModel,
        in_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        conditioning_embedding_out_channels=(4, 8),
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
        seed=seed,
        **more,
    )


def sd_controlnet(count: int = 1) -> DiffusionPipeline:
    """Stable Diffusion with one ControlNet or several."""
    nets = [controlnet(seed=4 + i) for i in range(count)]
    return StableDiffusionControlNetPipeline(
        **sd_parts(), controlnet=nets[0] if count == 1 else nets, requires_safety_checker=False
    )


def sdxl_controlnet() -> DiffusionPipeline:
    """SDXL with a ControlNet."""
    net = controlnet(
        16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * 6 + 8,
        use_linear_projection=True,
    )
    return StableDiffusionXLControlNetPipeline(**sdxl_parts(), controlnet=net, add_watermarker=False)


def sdxl(cls: type[DiffusionPipeline]) -> DiffusionPipeline:
    """One of the other pipelines over SDXL's base."""
    return cls(**sdxl_parts(), add_watermarker=False)


def ip_adapter(count: int = 1) -> DiffusionPipeline:
    """Stable Diffusion with IP-Adapters, loaded from state dicts in the format of the released ones."""
    pipe = sd(StableDiffusionPipeline)
    pipe.unet._load_ip_adapter_weights([_ip_adapter_weights(pipe, 50 * i) for i in range(count)])
    pipe.set_ip_adapter_scale([0.8] * count)
    return pipe


def _ip_adapter_weights(pipe: Any, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    projection = {"proj.weight": noise(4 * 8, 8, seed=5 + seed), "proj.bias": noise(4 * 8, seed=6 + seed)}
    projection |= {"norm.weight": torch.ones(8), "norm.bias": torch.zeros(8)}
    keys = {}
    cross = [name for name in pipe.unet.attn_processors if "attn2" in name]
    for i, name in enumerate(cross):
        attention = pipe.unet.get_submodule(name.removesuffix(".processor"))
        for part in ("to_k_ip", "to_v_ip"):
            keys[f"{2 * i + 1}.{part}.weight"] = 0.3 * noise(attention.inner_dim, 8, seed=7 + i + seed)
    return {"image_proj": projection, "ip_adapter": keys}


def t2i_adapter() -> DiffusionPipeline:
    """Stable Diffusion with a T2I-Adapter: its features enter the UNet as a list, and the adapter runs once."""
    adapter = seeded(
        T2IAdapter, in_channels=3, channels=[8, 16], num_res_blocks=1, downscale_factor=2, adapter_type="full_adapter"
    )
    kinds = {
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }
    return StableDiffusionAdapterPipeline(**sd_parts(**kinds), adapter=adapter, requires_safety_checker=False)


def pag() -> DiffusionPipeline:
    """Stable Diffusion under perturbed attention: three branches with text guidance, two without."""
    return StableDiffusionPAGPipeline(**sd_parts(), requires_safety_checker=False, pag_applied_layers=["mid"])


def controlnet_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return call(pipe, batch, steps) | {"image": pictures(batch, 16), "height": 16, "width": 16}


def guess_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return controlnet_call(pipe, batch, steps) | {"guess_mode": True}


def windows_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    """The first ControlNet leaves half-way, the second comes in at a quarter."""
    shown = pictures(batch, 16)
    return controlnet_call(pipe, batch, steps) | {
        "image": [shown, shown.flip(-1)],
        "control_guidance_start": [0.0, 0.25],
        "control_guidance_end": [0.5, 1.0],
        "controlnet_conditioning_scale": [0.7, 0.4],
    }


def ip_adapter_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    """One picture for the whole batch, its negative before it: the pipeline repeats both for every sample."""
    shown = torch.cat([torch.zeros(1, 1, 8), noise(1, 1, 8, seed=9)])
    return call(pipe, batch, steps) | {"ip_adapter_image_embeds": [shown]}


def pix2pix_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return call(pipe, batch, steps) | {"image": pictures(batch, 16), "image_guidance_scale": 1.5}


def pag_call(pipe: DiffusionPipeline, batch: int, steps: int) -> Inputs:
    return call(pipe, batch, steps) | {"pag_scale": 2.0}


_WINDOWS = ("image", "control_guidance_start", "control_guidance_end", "controlnet_conditioning_scale")
_pix2pix = partial(sd, StableDiffusionInstructPix2PixPipeline, in_channels=8)
register(Family("controlnet-sd", sd_controlnet, controlnet_call, ALPHAS, UNGUIDED))
register(Family("controlnet-sd-guess", sd_controlnet, guess_call, ALPHAS, UNGUIDED))
register(Family("controlnet-sd-two", partial(sd_controlnet, 2), windows_call, ALPHAS, UNGUIDED, shared=_WINDOWS))
register(Family("controlnet-sdxl", sdxl_controlnet, controlnet_call, ALPHAS, UNGUIDED))
register(Family("t2i-adapter", t2i_adapter, controlnet_call, ALPHAS, UNGUIDED))
register(Family("ip-adapter", ip_adapter, ip_adapter_call, ALPHAS))
register(Family("instruct-pix2pix", _pix2pix, pix2pix_call, ALPHAS, UNGUIDED))
register(Family("pag", pag, pag_call, ALPHAS, UNGUIDED | {"pag_scale": 0.0}))
register(Family("sdxl-img2img", partial(sdxl, StableDiffusionXLImg2ImgPipeline), img2img_call, ALPHAS, UNGUIDED))
register(Family("sdxl-inpaint", partial(sdxl, StableDiffusionXLInpaintPipeline), inpaint_call, ALPHAS, UNGUIDED))
