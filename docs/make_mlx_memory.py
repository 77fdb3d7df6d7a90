"""Write the table of docs/howto/mlx.md, what memory each model needs on MLX: python docs/make_mlx_memory.py

The configurations are those that the models' authors published, without the options that change no size.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent / "howto" / "mlx.md"
START, END = "<!-- memory: made by docs/make_mlx_memory.py -->", "<!-- /memory -->"
PRECISIONS = ((None, "float16"), (8, "8 bits"), (4, "4 bits"))

CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
T5 = {
    "d_model": 4096,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
VAE_16 = VAE | {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "force_upcast": True}
SD15 = {
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D", *["CrossAttnDownBlock2D"] * 2],
    "up_block_types": [*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"],
    "cross_attention_dim": 2048,
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
SD3 = {
    "sample_size": 128,
    "in_channels": 16,
    "num_layers": 24,
    "num_attention_heads": 24,
    "caption_projection_dim": 1536,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 192,
}
MODELS: Mapping[str, tuple[str, Mapping[str, tuple[str, Mapping[str, Any]]]]] = {
    "Stable Diffusion 1.5": (
        "StableDiffusionPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "unet": ("UNet2DConditionModel", SD15),
            "vae": ("AutoencoderKL", VAE),
        },
    ),
    "Stable Diffusion XL": (
        "StableDiffusionXLPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
            "unet": ("UNet2DConditionModel", SDXL),
            "vae": ("AutoencoderKL", VAE | {"force_upcast": True}),
        },
    ),
    "Stable Diffusion 3 medium": (
        "StableDiffusion3Pipeline",
        {
            "text_encoder": ("CLIPTextModelWithProjection", CLIP_L),
            "text_encoder_2": ("CLIPTextModelWithProjection", CLIP_G),
            "text_encoder_3": ("T5EncoderModel", T5),
            "transformer": ("SD3Transformer2DModel", SD3),
            "vae": ("AutoencoderKL", VAE_16),
        },
    ),
    "FLUX.1": (
        "FluxPipeline",
        {
            "text_encoder": ("CLIPTextModel", CLIP_L),
            "text_encoder_2": ("T5EncoderModel", T5),
            "transformer": ("FluxTransformer2DModel", {"guidance_embeds": True, "in_channels": 64}),
            "vae": ("AutoencoderKL", VAE_16),
        },
    ),
}
COLUMNS = (
    "model, its own size",
    "weights in",
    "all weights",
    "a step",
    "a decode, whole",
    "in tiles",
    "all loaded, whole decode",
    "staged, in tiles",
)
HEAD = f"| {' | '.join(COLUMNS)} |\n|---|---|{'--:|' * 6}\n"


def write_folder(name: str, folder: Path) -> Path:
    """The configuration files of a model, without weights."""
    pipeline, parts = MODELS[name]
    index: dict[str, Any] = {"_class_name": pipeline}
    for part, (kind, config) in parts.items():
        index[part] = ["", kind]
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps({"_class_name": kind, **config}))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def gigabytes(span: Any) -> str:
    """ "1.2 to 3.4" of the bytes of a Span, in units of 10^9."""
    least, most = (f"{value / 1e9:.1f}" for value in (span.least, span.most))
    return least if least == most else f"{least} to {most}"


def rows(name: str) -> Iterable[str]:
    """The lines of a model, one for each precision."""
    from skipstone.integrations.mlx.memory import DENOISERS, estimate_memory

    with tempfile.TemporaryDirectory() as made:
        folder = write_folder(name, Path(made))
        for bits, title in PRECISIONS:
            found = estimate_memory(folder, "float16", bits)
            parts = {one.part: one for one in found.components}
            step = next(parts[part].call for part in DENOISERS if part in parts)
            spans = (step, parts["vae"].call, found.decode_tiled, found.peak(), found.peak(tiled=True, staged=True))
            model = f"{name}, {found.height} x {found.width}, {found.parameters / 1e9:.1f} billion parameters"
            cells = " | ".join(gigabytes(span) for span in spans)
            yield f"| {'' if bits else model} | {title} | {found.weights / 1e9:.1f} | {cells} |\n"


def section(names: Iterable[str] = MODELS) -> str:
    """The table."""
    return HEAD + "".join(row for name in names for row in rows(name))


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{section()}\n{END}{after}", encoding="utf-8")
