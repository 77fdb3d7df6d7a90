"""Pictures as a judge is shown them: of a size that it can see, side by side or each by itself."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from skipstone.errors import BenchError

MIN_VISIBLE_SIDE = 512  # pixels up to which small pictures are enlarged, for judges look at patches of 14 and more
BAR_WIDTH = 32  # pixels between the halves


@lru_cache(maxsize=32)
def prepare_image(path: Path, side: int) -> Any:
    """A picture as it is sent: small ones enlarged by a whole factor, large ones made smaller, never stretched.

    Raises:
        BenchError: no picture that can be read, or a moving one.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as found:
            if getattr(found, "n_frames", 1) > 1:
                raise BenchError(f"{path} is a video: only still pictures are judged.")
            picture = found.convert("RGBA")
    except (OSError, UnidentifiedImageError, ValueError) as e:
        raise BenchError(f"{path} is no picture that can be read: {getattr(e, 'strerror', None) or e}.") from None
    page = Image.new("RGB", picture.size, "white")
    page.paste(picture, mask=picture.getchannel("A"))
    longest = max(page.size)
    if (factor := min(MIN_VISIBLE_SIDE, side) // longest) > 1:
        return page.resize((page.width * factor, page.height * factor), Image.Resampling.NEAREST)
    if longest > side:
        page.thumbnail((side, side), Image.Resampling.LANCZOS)
    return page


def hash_image(picture: Any) -> str:
    """A hash of size and pixels."""
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


@lru_cache(maxsize=16)
def encode_images(left: Path, right: Path, side: int, layout: str) -> tuple[str, ...]:
    """What is sent, as data URIs: one image of both pictures, or one of each."""
    pictures = [prepare_image(path, side) for path in (left, right)]
    return tuple(map(_uri, [join_images(pictures)] if layout == "joined" else pictures))


def join_images(pictures: Sequence[Any]) -> Any:
    """Pictures side by side with a white bar between them."""
    from PIL import Image

    width = sum(p.width for p in pictures) + BAR_WIDTH * (len(pictures) - 1)
    page = Image.new("RGB", (width, max(p.height for p in pictures)), "white")
    left = 0
    for picture in pictures:
        page.paste(picture, (left, 0))
        left += picture.width + BAR_WIDTH
    return page


def _uri(picture: Any) -> str:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
