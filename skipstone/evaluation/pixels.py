"""Convert what pipelines return into the arrays that metrics, files and sheets need."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ModelError
from ..metrics.base import BaseMetric, Sample

OUTPUT_FIELDS = ("images", "frames")  # what the outputs of diffusers call them
FPS = 8  # of videos, unless the file is played by something else


def to_pixels(output: Any) -> list[Any]:
    """Pictures (height, width, 3) or videos (frames, height, width, 3) in [0, 1] out of what a pipeline returned.

    Raises:
        ModelError: it returned something else, such as embeddings.
    """
    first = (
        output if hasattr(output, "shape") else next(iter(output.values())) if isinstance(output, Mapping) else output
    )
    first = first[0] if isinstance(first, tuple) else first
    made = [_array(one) for one in first]
    if not made or any(p.ndim not in (3, 4) or p.shape[-1] != 3 for p in made):
        shapes = ", ".join(str(p.shape) for p in made) or "nothing"
        raise ModelError(f"Expected pictures or videos from the pipeline, got {shapes}: use skipstone.adapt in Python.")
    return made


def _array(one: Any) -> Any:
    """One sample as floats, channels last and three of them."""
    if isinstance(one, list | tuple):
        return np.stack([_array(frame) for frame in one])
    if hasattr(one, "detach"):
        one = one.detach().float().cpu().numpy()
    array = np.asarray(one)
    if array.dtype == np.uint8:
        array = array / 255.0
    array = array.astype(np.float32)
    if array.ndim == 2:
        array = array[..., None]
    return np.repeat(array, 3, axis=-1) if array.shape[-1] == 1 else array[..., :3] if array.shape[-1] == 4 else array


def flatten_frames(picture: Any) -> Any:
    """A video as one tall picture of its frames, which metrics can read."""
    return picture.reshape(-1, *picture.shape[-2:])


def as_read_by(metric: BaseMetric, sample: Sample) -> Sample:
    """The sample as a metric reads it: a video as its frames, or as one tall picture where it does not take frames."""
    if metric.takes_frames or metric.of == "video":
        return sample
    reference = None if sample.reference is None else flatten_frames(sample.reference)
    return replace(sample, pixels=flatten_frames(sample.pixels), reference=reference)


def first_frame(picture: Any) -> Any:
    """The picture itself, or the first frame of a video."""
    return picture[0] if picture.ndim == 4 else picture


def to_uint8(pixels: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Pixels in [0, 1] as 8-bit values, rounded to the nearest."""
    return np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)


def encode_image(file_format: str, pixels: Any, **options: Any) -> bytes:
    """A picture as the bytes of a file with 8 bits, a video as those of an animated one.

    Args:
        file_format: "PNG" or "WEBP".
        pixels: (height, width, 3) in [0, 1]; a video has its frames first.
        options: Of Pillow's `save`.
    """
    from PIL import Image

    frames = [Image.fromarray(frame) for frame in to_uint8(pixels if pixels.ndim == 4 else pixels[None])]
    if len(frames) > 1 or file_format == "WEBP":
        options |= {"save_all": True, "append_images": frames[1:], "duration": 1000 // FPS, "loop": 0}
    buffer = BytesIO()
    frames[0].save(buffer, file_format, **options)
    return buffer.getvalue()
