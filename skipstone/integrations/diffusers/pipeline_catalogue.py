"""The pipelines of diffusers, declared: what differs from the usual case, family by family.

The usual case: one denoiser, guidance branches in one batch with the unconditional one first, a scheduler that steps
the samples themselves. The facts were measured on tiny pipelines, which the tests still run.
"""

from __future__ import annotations

from typing import Any

from .pipeline_specs import PipelineSpec, register_pipeline, register_unsupported

BLENDING_REASON = "the known part of the picture is blended in after every step"
FOUR_CHANNELS_REASON = f"{BLENDING_REASON} (networks that are given the mask do not need it)"
FLUX_IDS = frozenset({"img_ids", "txt_ids"})
SEPARATE_CALLS = ("cond", "uncond")  # two calls a step, the conditional one first


def _boundary(pipe: Any) -> tuple[float, ...]:
    """Boundary ratio at which Wan 2.2 changes from its high-noise network to the other; empty without a second one."""
    ratio = getattr(pipe.config, "boundary_ratio", None)
    return () if ratio is None or getattr(pipe, "transformer_2", None) is None else (float(ratio),)


def _blends(pipe: Any) -> bool:
    """Whether an inpainting pipeline blends: its UNet is not given the mask and the masked picture."""
    return bool(pipe.unet.config.in_channels == pipe.vae.config.latent_channels)


# -- UNets: images --------------------------------------------------------------------------------

register_pipeline(
    PipelineSpec(("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "LDMPipeline"), "Unconditional (DDPM, DDIM)")
)
register_pipeline(PipelineSpec(("LDMTextToImagePipeline", "LDMSuperResolutionPipeline"), "Latent diffusion"))
register_pipeline(
    PipelineSpec(
        (
            "StableDiffusionPipeline",
            "StableDiffusionImg2ImgPipeline",
            "StableDiffusionDepth2ImgPipeline",
            "StableDiffusionImageVariationPipeline",
            "StableDiffusionLatentUpscalePipeline",
            "StableDiffusionUpscalePipeline",
        ),
        "Stable Diffusion 1 and 2",
    )
)
register_pipeline(
    PipelineSpec(("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"), "Stable Diffusion XL")
)
register_pipeline(
    PipelineSpec(
        ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
        "Stable Diffusion, inpainting",
        between=FOUR_CHANNELS_REASON,
        acts_between=_blends,
    )
)
register_pipeline(
    PipelineSpec(
        (
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
            "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        ),
        "Stable Diffusion with ControlNet",
    )
)
register_pipeline(
    PipelineSpec(
        (
            "StableDiffusionControlNetInpaintPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionInpaintPipeline",
        ),
        "Stable Diffusion with ControlNet, inpainting",
        between=FOUR_CHANNELS_REASON,
        acts_between=_blends,
    )
)
register_pipeline(
    PipelineSpec(
        ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
        "InstructPix2Pix",
        branches=(),
    )
)
register_pipeline(PipelineSpec(("StableDiffusionAdapterPipeline", "StableDiffusionXLAdapterPipeline"), "T2I-Adapter"))
register_pipeline(
    PipelineSpec(
        ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"), "Latent consistency models"
    )
)
register_pipeline(PipelineSpec(("KolorsPipeline", "KolorsImg2ImgPipeline"), "Kolors"))
register_pipeline(
    PipelineSpec(
        (
            "KandinskyPipeline",
            "KandinskyImg2ImgPipeline",
            "KandinskyV22Pipeline",
            "KandinskyV22Img2ImgPipeline",
            "KandinskyV22ControlnetPipeline",
            "KandinskyV22ControlnetImg2ImgPipeline",
            "Kandinsky3Pipeline",
            "Kandinsky3Img2ImgPipeline",
        ),
        "Kandinsky 2.1, 2.2 and 3",
        ("unet",),
    )
)
register_pipeline(
    PipelineSpec(
        ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline", "KandinskyV22PriorEmb2EmbPipeline"),
        "Kandinsky priors",
        ("prior",),
    )
)
register_pipeline(
    PipelineSpec(
        ("StableCascadePriorPipeline", "WuerstchenPriorPipeline"),
        "Stable Cascade, prior",
        ("prior",),
        branches=SEPARATE_CALLS,
    )
)
register_pipeline(
    PipelineSpec(
        ("StableCascadeDecoderPipeline", "WuerstchenDecoderPipeline"),
        "Stable Cascade, decoder",
        ("decoder",),
        branches=SEPARATE_CALLS,
    )
)

register_pipeline(
    PipelineSpec(
        (
            "StableDiffusionPAGPipeline",
            "StableDiffusionPAGImg2ImgPipeline",
            "StableDiffusionXLPAGPipeline",
            "StableDiffusionXLPAGImg2ImgPipeline",
        ),
        "Perturbed-attention guidance",
        branches=(),
        between="its attention processors read the branches off the batch",
    )
)

# -- Transformers: images -------------------------------------------------------------------------

register_pipeline(PipelineSpec(("DiTPipeline",), "DiT", branches=SEPARATE_CALLS, doubled=True))
register_pipeline(PipelineSpec(("PixArtAlphaPipeline", "PixArtSigmaPipeline"), "PixArt"))
register_pipeline(PipelineSpec(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "Stable Diffusion 3"))
register_pipeline(
    PipelineSpec(("StableDiffusion3InpaintPipeline",), "Stable Diffusion 3, inpainting", between=BLENDING_REASON)
)
register_pipeline(
    PipelineSpec(
        ("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"),
        "Stable Diffusion 3 with ControlNet",
    )
)
register_pipeline(
    PipelineSpec(
        ("FluxPipeline", "FluxImg2ImgPipeline", "FluxKontextPipeline", "FluxControlPipeline", "FluxFillPipeline"),
        "FLUX.1",
        branches=SEPARATE_CALLS,
        shared=FLUX_IDS,
    )
)
register_pipeline(
    PipelineSpec(
        (
            "FluxInpaintPipeline",
            "FluxControlInpaintPipeline",
            "FluxKontextInpaintPipeline",
            "FluxControlNetInpaintPipeline",
        ),
        "FLUX.1, inpainting",
        branches=SEPARATE_CALLS,
        shared=FLUX_IDS,
        between=BLENDING_REASON,
    )
)
register_pipeline(
    PipelineSpec(
        ("FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline"),
        "FLUX.1 with ControlNet",
        branches=SEPARATE_CALLS,
        shared=FLUX_IDS,
    )
)

register_pipeline(
    PipelineSpec(("ChromaPipeline", "ChromaImg2ImgPipeline"), "Chroma", branches=SEPARATE_CALLS, shared=FLUX_IDS)
)
register_pipeline(
    PipelineSpec(("QwenImagePipeline", "QwenImageImg2ImgPipeline"), "Qwen-Image", branches=SEPARATE_CALLS)
)
register_pipeline(PipelineSpec(("CogView4Pipeline",), "CogView4", branches=SEPARATE_CALLS))
register_pipeline(
    PipelineSpec(
        ("Lumina2Pipeline",), "Lumina 2", branches=SEPARATE_CALLS, network_time=lambda timestep: 1 - timestep / 1000
    )
)
register_pipeline(PipelineSpec(("SanaPipeline",), "Sana"))
register_pipeline(PipelineSpec(("AuraFlowPipeline",), "AuraFlow"))
register_pipeline(PipelineSpec(("HunyuanDiTPipeline",), "Hunyuan-DiT", shared=frozenset({"image_rotary_emb"})))

# -- Video ----------------------------------------------------------------------------------------

register_pipeline(
    PipelineSpec(
        ("AnimateDiffPipeline", "AnimateDiffSDXLPipeline", "AnimateDiffVideoToVideoPipeline", "PIAPipeline"),
        "AnimateDiff",
        repeated=frozenset({"encoder_hidden_states"}),
    )
)
register_pipeline(PipelineSpec(("StableVideoDiffusionPipeline",), "Stable Video Diffusion"))
register_pipeline(
    PipelineSpec(("TextToVideoSDPipeline", "VideoToVideoSDPipeline"), "ModelScope text-to-video", frames=True)
)
register_pipeline(PipelineSpec(("I2VGenXLPipeline",), "I2VGen-XL", frames=True))
register_pipeline(
    PipelineSpec(
        (
            "CogVideoXPipeline",
            "CogVideoXImageToVideoPipeline",
            "CogVideoXVideoToVideoPipeline",
            "CogVideoXFunControlPipeline",
        ),
        "CogVideoX",
        shared=frozenset({"image_rotary_emb"}),
    )
)
register_pipeline(
    PipelineSpec(
        ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
        "Wan 2.1 and 2.2",
        ("transformer", "transformer_2"),
        branches=SEPARATE_CALLS,
        switches=_boundary,
    )
)
register_pipeline(PipelineSpec(("LattePipeline",), "Latte"))
register_pipeline(PipelineSpec(("AllegroPipeline",), "Allegro", shared=frozenset({"image_rotary_emb"})))
register_pipeline(PipelineSpec(("MochiPipeline",), "Mochi"))
register_pipeline(PipelineSpec(("HunyuanVideoPipeline",), "HunyuanVideo", branches=SEPARATE_CALLS))
register_pipeline(PipelineSpec(("StableAudioPipeline",), "Stable Audio", shared=frozenset({"rotary_embedding"})))
register_pipeline(PipelineSpec(("LTXPipeline", "LTXImageToVideoPipeline"), "LTX-Video"))

# -- What cannot be adapted, and why --------------------------------------------------------------

register_unsupported(
    (
        "LTX2Pipeline",
        "LTX2ConditionPipeline",
        "LTX2HDRPipeline",
        "LTX2InContextPipeline",
        "LTX2ImageToVideoPipeline",
        "Cosmos3OmniPipeline",
        "Kandinsky6TI2VAPipeline",
        "AnyFlowFARPipeline",
    ),
    "it steps copies of its scheduler that it makes within the call (sound beside video), which a guest cannot follow. "
    "Use fewer steps, or diffusers' own pipe.transformer.enable_cache(...) where the model has one.",
)
register_unsupported(
    (
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    ),
    "it gives every frame a scheduler of its own. SkyReelsV2Pipeline, without diffusion forcing, can be adapted.",
)
register_unsupported(
    ("StableDiffusionPanoramaPipeline", "TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"),
    "it exchanges the state of its scheduler within the loop. Adapt StableDiffusionPipeline with the same weights.",
)
register_unsupported(
    ("LEditsPPPipelineStableDiffusion", "LEditsPPPipelineStableDiffusionXL", "ScoreSdeVePipeline", "KarrasVePipeline"),
    "it does not update its sample through scheduler.step. Adapt a pipeline with the same weights that does.",
)
register_unsupported(
    ("AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline", "VQDiffusionPipeline"),
    "it denoises tokens, not continuous latents: there is no clean estimate to forecast.",
)
register_unsupported(
    ("UnCLIPPipeline", "UnCLIPImageVariationPipeline", "StableUnCLIPPipeline"),
    "it has several schedulers, of which `scheduler` is not the one. Adapt the pipelines of its stages by themselves.",
)
register_unsupported(
    (
        "KandinskyCombinedPipeline",
        "KandinskyImg2ImgCombinedPipeline",
        "KandinskyInpaintCombinedPipeline",
        "KandinskyV22CombinedPipeline",
        "KandinskyV22Img2ImgCombinedPipeline",
        "KandinskyV22InpaintCombinedPipeline",
        "StableCascadeCombinedPipeline",
        "WuerstchenCombinedPipeline",
    ),
    "it only calls two other pipelines. Adapt those: skipstone.adapt(pipe.prior_pipe, ...) and "
    "skipstone.adapt(pipe.decoder_pipe, ...).",
)
register_unsupported(
    (
        "ZImagePipeline",
        "ZImageImg2ImgPipeline",
        "ZImageInpaintPipeline",
        "ZImageControlNetPipeline",
        "ZImageControlNetInpaintPipeline",
        "ZImageOmniPipeline",
    ),
    "it gives its network a list of samples instead of a batch, which the guest cannot take apart yet.",
)
register_unsupported(
    (
        "StableDiffusionAttendAndExcitePipeline",
        "StableDiffusionSAGPipeline",
        "RePaintPipeline",
        "CycleDiffusionPipeline",
    ),
    "it calls its network for more than one prediction a step, or goes back in time. Adapt StableDiffusionPipeline "
    "with the same weights.",
)
