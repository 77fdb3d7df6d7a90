"""A comparison as one picture: rows are prompts, columns are ways to denoise, each labelled with what it cost."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..metrics.closeness import format_decibels
from .columns import Column
from .compare import Comparison, ComparisonCell
from .pixels import first_frame, to_uint8

PAPER, INK, QUIET, RULE = (252, 252, 250), (28, 30, 34), (108, 112, 120), (222, 223, 226)
GOOD = (20, 110, 84)
TILE, GAP, MARGIN, PROMPTS, HEADER, CAPTION = 192, 20, 40, 190, 132, 40  # pixels
MAX_ASPECT = 1.5  # of a tile, over its width


@lru_cache(maxsize=16)
def load_font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans, which comes with matplotlib, so that a sheet looks the same everywhere."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def wrap_text(text: str, face: Any, width: int, lines: int) -> list[str]:
    """The text in at most `lines` lines of `width` pixels, cut with an ellipsis where it does not fit.

    Lines break at spaces, and after commas, bars and brackets where one word is too long.
    """
    words = text.replace(",", ", ").replace("(", "( ").replace("  ", " ").split(" ")
    made: list[str] = []
    for word in words:
        glue = "" if not made or made[-1].endswith("(") else " "
        if made and face.getlength(made[-1] + glue + word) <= width:
            made[-1] += glue + word
        else:
            made.append(word)
    if len(made) > lines:
        made = [*made[: lines - 1], made[lines - 1] + " …"]
    return made


def render_sheet(result: Comparison) -> bytes:
    """The contact sheet as a PNG file's bytes."""
    rows, columns = len(result.cells[0]), len(result.columns)
    tall = _tall(result)
    width = 2 * MARGIN + PROMPTS + columns * (TILE + GAP) - GAP
    height = 2 * MARGIN + HEADER + rows * (tall + CAPTION) + 24
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    for c, column in enumerate(result.columns):
        _head(draw, result, c, column)
    for p, cell in enumerate(result.cells[0]):
        top = MARGIN + HEADER + p * (tall + CAPTION)
        for k, line in enumerate(wrap_text(result.title(cell), load_font(15), PROMPTS - 24, tall // 21)):
            draw.text((MARGIN, top + 2 + 21 * k), line, INK, load_font(15))
        for c in range(columns):
            _tile(page, draw, result.cells[c][p], c, top, tall)
    draw.text((MARGIN, height - MARGIN - 6), _footer(result), QUIET, load_font(12))
    buffer = BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _left(c: int) -> int:
    return MARGIN + PROMPTS + c * (TILE + GAP)


def _head(draw: ImageDraw.ImageDraw, result: Comparison, c: int, column: Column) -> None:
    title = "full run" if c == 0 else column.title
    below = f"{result.mean_calls(c):.1f} calls".replace(".0 ", " ")
    if c == 0:
        detail = column.spec.partition("@")[2].strip()
    elif column.policy is None:
        detail = f"{column.steps} steps, none skipped"
    else:
        detail = f"{result.saving(c):.0%} saved"
    bottom = MARGIN + HEADER - 16
    lines = wrap_text(title, load_font(15, bold=True), TILE, 3)
    for k, line in enumerate(lines):
        draw.text((_left(c), bottom - 50 - 20 * (len(lines) - k)), line, INK, load_font(15, bold=True))
    draw.text((_left(c), bottom - 44), below, INK, load_font(13))
    for k, line in enumerate(wrap_text(detail, load_font(12), TILE, 1)):
        draw.text((_left(c), bottom - 24 + 16 * k), line, QUIET, load_font(12))
    draw.line((_left(c), bottom, _left(c) + TILE, bottom), RULE, 2)


def _tall(result: Comparison) -> int:
    """Height of a tile: that of the pictures once they are scaled to TILE pixels wide."""
    height, width = first_frame(result.cells[0][0].pixels).shape[:2]
    return int(TILE * min(MAX_ASPECT, height / width))


def _tile(page: Image.Image, draw: ImageDraw.ImageDraw, cell: ComparisonCell, c: int, top: int, tall: int) -> None:
    picture = Image.fromarray(to_uint8(first_frame(cell.pixels)))
    scale = min(TILE / picture.width, tall / picture.height)
    # Whole multiples keep the pixels of a small picture square; larger ones are made smaller smoothly.
    way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    size = round(picture.width * scale), round(picture.height * scale)
    page.paste(picture.resize(size, way), (_left(c) + (TILE - size[0]) // 2, top + (tall - size[1]) // 2))
    draw.rectangle((_left(c), top, _left(c) + TILE - 1, top + tall - 1), outline=RULE)
    draw.text((_left(c), top + tall + 7), f"{cell.calls:.4g} calls", INK, load_font(13))
    if c:
        psnr = cell.values["psnr"]
        text = format_decibels(psnr) + ("" if psnr == float("inf") else " dB")
        colour = GOOD if psnr >= 30 else INK
        draw.text((_left(c) + TILE, top + tall + 7), text, colour, load_font(13), anchor="ra")


def _footer(result: Comparison) -> str:
    seeds = f", seed {result.seeds[0]}" if len(result.seeds) == 1 and result.cells[0][0].prompt else ""
    first = "  First frames." if result.cells[0][0].pixels.ndim == 4 else ""
    return f"dB: PSNR to the full run of the same seed (green from 30 dB).  Model {result.model}{seeds}.{first}"
