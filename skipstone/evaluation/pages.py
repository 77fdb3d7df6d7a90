"""Pages of one file that fetches nothing: one template engine and one style sheet for all of them."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

from .pixels import encode_image

TEMPLATES = Path(__file__).with_name("templates")
MAX_LOSSLESS_SIDE = 128  # pixels up to which pictures of a page are lossless
QUALITY = 88  # of larger ones, as WebP


def render_template(name: str, folder: Path = TEMPLATES, **values: Any) -> str:
    """The text of a page.

    Args:
        name: Of the template.
        folder: Where it is; `style.css` and other templates of the library are found beside it.
        values: What it shows.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    there = Environment(
        loader=FileSystemLoader([folder, TEMPLATES]), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    return there.get_template(name).render(**values)


def script_json(value: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    return json.dumps(value, ensure_ascii=False).replace("<", "\\u003c")


def picture_uri(picture: Any) -> str:
    """A picture as a data URI: small ones to the last bit, larger ones compressed.

    Args:
        picture: An image of Pillow's.
    """
    exact = max(picture.size) <= MAX_LOSSLESS_SIDE
    buffer = BytesIO()
    picture.save(buffer, "WEBP", lossless=exact, quality=QUALITY, method=4)
    return _data_uri(buffer.getvalue())


def pixels_uri(pixels: Any) -> str:
    """A picture (height, width, 3) in [0, 1] as a data URI; a video, frames first, as an animated one."""
    exact = max(pixels.shape[-3:-1]) <= MAX_LOSSLESS_SIDE
    return _data_uri(encode_image("WEBP", pixels, lossless=exact, quality=QUALITY, method=4))


def _data_uri(content: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"
