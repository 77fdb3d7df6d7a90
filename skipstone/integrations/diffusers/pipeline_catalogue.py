"""The pipelines of diffusers, declared: what differs from the usual case, family by family.

The usual case: one denoiser, guidance branches in one batch with the unconditional one first, a scheduler that steps
the samples themselves. The facts were measured on tiny pipelines, which the tests still run.
"""

from __future__ import annotations

from typing import Any

from .pipeline_specs import PipelineSpec, add, refuse

BLENDED = "the known part of the picture is blended in after every step"
CONTROLLED = "the ControlNet's residuals belong to the pipeline's own times"
FLUX_IDS = frozenset({"img_ids", "txt_ids"})
APART = ("cond", "uncond")  # two calls a step, the conditional one first


def _boundary(pipe: Any) -> tuple[float, ...]:
    """Where Wan 2.2 changes from its high-noise network to the other."""
    ratio = getattr(pipe.config, "boundary_ratio", None)
    return () if ratio is None or getattr(pipe, "transformer_2", None) is None else (float(ratio),)


# -- UNets: images --------------------------------------------------------------------------------

add(PipelineSpec(("DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "LDMPipeline"), "Unconditional (DDPM, DDIM)"))
add(PipelineSpec(("LDMTextToImagePipeline", "LDMSuperResolutionPipeline"), "Latent diffusion"))
add(
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
add(PipelineSpec(("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline"), "Stable Diffusion XL"))
add(
    PipelineSpec(
        ("StableDiffusionInpaintPipeline", "StableDiffusionXLInpaintPipeline"),
        "Stable Diffusion, inpainting",
        between=BLENDED,
    )
)
add(
    PipelineSpec(
        (
            "StableDiffusionControlNetPipeline",
            "StableDiffusionControlNetImg2ImgPipeline",
            "StableDiffusionControlNetInpaintPipeline",
            "StableDiffusionXLControlNetPipeline",
            "StableDiffusionXLControlNetImg2ImgPipeline",
            "StableDiffusionXLControlNetInpaintPipeline",
            "StableDiffusionXLControlNetUnionPipeline",
            "StableDiffusionXLControlNetUnionImg2ImgPipeline",
            "StableDiffusionXLControlNetUnionInpaintPipeline",
        ),
        "Stable Diffusion with ControlNet",
        between=CONTROLLED,
    )
)
add(
    PipelineSpec(
        ("StableDiffusionInstructPix2PixPipeline", "StableDiffusionXLInstructPix2PixPipeline"),
        "InstructPix2Pix",
        branches=(),
    )
)
add(PipelineSpec(("StableDiffusionAdapterPipeline", "StableDiffusionXLAdapterPipeline"), "T2I-Adapter"))
add(
    PipelineSpec(
        ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"), "Latent consistency models"
    )
)
add(PipelineSpec(("KolorsPipeline", "KolorsImg2ImgPipeline"), "Kolors"))
add(
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
add(
    PipelineSpec(
        ("KandinskyPriorPipeline", "KandinskyV22PriorPipeline", "KandinskyV22PriorEmb2EmbPipeline"),
        "Kandinsky priors",
        ("prior",),
    )
)
add(
    PipelineSpec(
        ("StableCascadePriorPipeline", "WuerstchenPriorPipeline"), "Stable Cascade, prior", ("prior",), branches=APART
    )
)
add(
    PipelineSpec(
        ("StableCascadeDecoderPipeline", "WuerstchenDecoderPipeline"),
        "Stable Cascade, decoder",
        ("decoder",),
        branches=APART,
    )
)

add(
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

add(PipelineSpec(("DiTPipeline",), "DiT", branches=APART, doubled=True))
add(PipelineSpec(("PixArtAlphaPipeline", "PixArtSigmaPipeline"), "PixArt"))
add(PipelineSpec(("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"), "Stable Diffusion 3"))
add(PipelineSpec(("StableDiffusion3InpaintPipeline",), "Stable Diffusion 3, inpainting", between=BLENDED))
add(
    PipelineSpec(
        ("StableDiffusion3ControlNetPipeline", "StableDiffusion3ControlNetInpaintingPipeline"),
        "Stable Diffusion 3 with ControlNet",
        between=CONTROLLED,
    )
)
add(
    PipelineSpec(
        ("FluxPipeline", "FluxImg2ImgPipeline", "FluxKontextPipeline", "FluxControlPipeline", "FluxFillPipeline"),
        "FLUX.1",
        branches=APART,
        shared=FLUX_IDS,
    )
)
add(
    PipelineSpec(
        ("FluxInpaintPipeline", "FluxControlInpaintPipeline", "FluxKontextInpaintPipeline"),
        "FLUX.1, inpainting",
        branches=APART,
        shared=FLUX_IDS,
        between=BLENDED,
    )
)
add(
    PipelineSpec(
        ("FluxControlNetPipeline", "FluxControlNetImg2ImgPipeline", "FluxControlNetInpaintPipeline"),
        "FLUX.1 with ControlNet",
        branches=APART,
        shared=FLUX_IDS,
        between=CONTROLLED,
    )
)

add(PipelineSpec(("ChromaPipeline", "ChromaImg2ImgPipeline"), "Chroma", branches=APART, shared=FLUX_IDS))
add(PipelineSpec(("QwenImagePipeline", "QwenImageImg2ImgPipeline"), "Qwen-Image", branches=APART))
add(PipelineSpec(("CogView4Pipeline",), "CogView4", branches=APART))
add(PipelineSpec(("Lumina2Pipeline",), "Lumina 2", branches=APART))
add(PipelineSpec(("SanaPipeline",), "Sana"))
add(PipelineSpec(("AuraFlowPipeline",), "AuraFlow"))
add(PipelineSpec(("HunyuanDiTPipeline",), "Hunyuan-DiT", shared=frozenset({"image_rotary_emb"})))

# -- Video ----------------------------------------------------------------------------------------

add(
    PipelineSpec(
        ("AnimateDiffPipeline", "AnimateDiffSDXLPipeline", "AnimateDiffVideoToVideoPipeline", "PIAPipeline"),
        "AnimateDiff",
        repeated=frozenset({"encoder_hidden_states"}),
    )
)
add(PipelineSpec(("StableVideoDiffusionPipeline",), "Stable Video Diffusion"))
add(PipelineSpec(("TextToVideoSDPipeline", "VideoToVideoSDPipeline"), "ModelScope text-to-video", frames=True))
add(PipelineSpec(("I2VGenXLPipeline",), "I2VGen-XL", frames=True))
add(
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
add(
    PipelineSpec(
        ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline"),
        "Wan 2.1 and 2.2",
        ("transformer", "transformer_2"),
        branches=APART,
        switches=_boundary,
    )
)
add(PipelineSpec(("LattePipeline",), "Latte"))
add(PipelineSpec(("AllegroPipeline",), "Allegro", shared=frozenset({"image_rotary_emb"})))
add(PipelineSpec(("MochiPipeline",), "Mochi"))
add(PipelineSpec(("HunyuanVideoPipeline",), "HunyuanVideo", branches=APART))
add(PipelineSpec(("StableAudioPipeline",), "Stable Audio", shared=frozenset({"rotary_embedding"})))
add(PipelineSpec(("LTXPipeline", "LTXImageToVideoPipeline"), "LTX-Video"))

# -- What cannot be adapted, and why --------------------------------------------------------------

refuse(
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
refuse(
    (
        "SkyReelsV2DiffusionForcingPipeline",
        "SkyReelsV2DiffusionForcingImageToVideoPipeline",
        "SkyReelsV2DiffusionForcingVideoToVideoPipeline",
    ),
    "it gives every frame a scheduler of its own. SkyReelsV2Pipeline, without diffusion forcing, can be adapted.",
)
refuse(
    ("StableDiffusionPanoramaPipeline", "TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"),
    "it exchanges the state of its scheduler within the loop. Adapt StableDiffusionPipeline with the same weights.",
)
refuse(
    ("LEditsPPPipelineStableDiffusion", "LEditsPPPipelineStableDiffusionXL", "ScoreSdeVePipeline", "KarrasVePipeline"),
    "it moves its sample by other means than scheduler.step. Adapt a pipeline with the same weights that steps.",
)
refuse(
    ("AmusedPipeline", "AmusedImg2ImgPipeline", "AmusedInpaintPipeline", "VQDiffusionPipeline"),
    "it denoises tokens, not continuous latents: there is no clean estimate to forecast.",
)
refuse(
    ("UnCLIPPipeline", "UnCLIPImageVariationPipeline", "StableUnCLIPPipeline"),
    "it has several schedulers, of which `scheduler` is not the one. Adapt the pipelines of its stages by themselves.",
)
refuse(
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
refuse(
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
refuse(
    (
        "StableDiffusionAttendAndExcitePipeline",
        "StableDiffusionSAGPipeline",
        "RePaintPipeline",
        "CycleDiffusionPipeline",
    ),
    "it calls its network for more than one prediction a step, or goes back in time. Adapt StableDiffusionPipeline "
    "with the same weights.",
)
