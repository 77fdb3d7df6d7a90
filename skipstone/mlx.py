"""Pipelines whose networks run on MLX, for Macs with Apple silicon: `skipstone.mlx.load("pebble")`.

Importing it loads no array library.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .integrations.mlx.pipeline import MlxPipeline

__all__ = ["load"]


def load(
    model: str | Path,
    dtype: str = "auto",
    bits: int | None = None,
    guidance: float | None = None,
    memory_limit: int | str | None = None,
    torch_fallback: bool = False,
) -> MlxPipeline:
    """A text-to-image pipeline on MLX, from the folder that diffusers saved.

        pipe = skipstone.mlx.load("pebble", dtype="float16")
        pipe("a red apple on a blue background", policy="balanced").images[0].save("apple.png")

    Networks are loaded when they are first called. Ported are StableDiffusionPipeline, StableDiffusionXLPipeline,
    StableDiffusion3Pipeline and FluxPipeline.

    Args:
        model: "pebble", "pebble-dit", a pipeline's folder, or its id on the Hugging Face hub.
        dtype: Of the weights: "float32", "float16", "bfloat16", or "auto": that of the files on a GPU, else float32.
        bits: 8 or 4 quantises the denoiser and the text encoders; None leaves them as they are.
        guidance: Weight of classifier-free guidance, for FLUX the guidance that its network is given; None is the
            model's own.
        memory_limit: Bytes, or a text such as "8GB": the parts are loaded one after the other, attention is sliced and
            pictures are decoded in tiles where they would need more; None is no limit.
        torch_fallback: Whether torch runs text encoders and an autoencoder that are not ported, which is said in a
            warning.

    Raises:
        MissingPackage: MLX is not installed, too old, or without its library for this system.
        ModelError: a folder, class, option or file that cannot be read, or a model that the limit is too small for.
        SpecError: a dtype, a number of bits or a limit that is none.
    """
    from .integrations.mlx.loading import require_mlx

    require_mlx()
    from .integrations.mlx.pipeline import load_pipeline

    return load_pipeline(model, dtype, bits, guidance, memory_limit, torch_fallback)
