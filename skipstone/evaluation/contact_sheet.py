"""A comparison as one picture: rows are prompts, columns are ways to denoise, each labelled with what it cost."""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from ..metrics.closeness import format_decibels
from .columns import Column
from .compare import Comparison, ComparisonCell
from .pixels import first_frame, to_uint8

PAPER, INK, QUIET, RULE = (252, 252, 250), (28, 30, 34), (108, 112, 120), (222, 223, 226)
GOOD = (20, 110, 84)
TILE, GAP, MARGIN, PROMPTS, CAPTION = 192, 20, 40, 190, 40  # pixels
BELOW_TITLE, TITLE_LINE, TITLE_LINES = 66, 20, 3  # of the header: pixels, pixels, and how many lines at most
FIGURES = "figures"  # the name of the text in the file that has the numbers of the sheet
MAX_ASPECT = 1.5  # of a tile, over its width


@lru_cache(maxsize=16)
def load_font(size: int, bold: bool = False) -> Any:
    """DejaVu Sans, which comes with matplotlib, so that a sheet looks the same everywhere."""
    import matplotlib

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name), size)


def wrap_text(text: str, face: Any, width: int, lines: int) -> list[str]:
    """The text in at most `lines` lines of `width` pixels, cut with an ellipsis where it does not fit.

    Lines break at spaces, and after commas, bars and brackets within a word.
    """
    words = re.sub(r"(?<=\S)\(", "( ", text.replace(",", ", ")).replace("  ", " ").split(" ")
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
    """The contact sheet as a PNG file's bytes, with its numbers as the text FIGURES."""
    rows, columns = len(result.cells[0]), len(result.columns)
    header = BELOW_TITLE + TITLE_LINE * max(len(_title(result, c)) for c in range(columns))
    tall = _tall(result)
    width = 2 * MARGIN + PROMPTS + columns * (TILE + GAP) - GAP
    height = 2 * MARGIN + header + rows * (tall + CAPTION) + 24
    page = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(page)
    for c, column in enumerate(result.columns):
        _head(draw, result, c, column, MARGIN + header - 16)
    for p, cell in enumerate(result.cells[0]):
        top = MARGIN + header + p * (tall + CAPTION)
        for k, line in enumerate(wrap_text(result.title(cell), load_font(15), PROMPTS - 24, tall // 21)):
            draw.text((MARGIN, top + 2 + 21 * k), line, INK, load_font(15))
        for c in range(columns):
            _tile(page, draw, result.cells[c][p], c, top, tall)
    draw.text((MARGIN, height - MARGIN - 6), _footer(result), QUIET, load_font(12))
    text = PngInfo()
    text.add_text(FIGURES, json.dumps(sheet_figures(result)))
    buffer = BytesIO()
    page.save(buffer, "PNG", optimize=True, pnginfo=text)
    return buffer.getvalue()


def sheet_figures(result: Comparison) -> dict[str, Any]:
    """The numbers of a sheet: its columns, and for each prompt [calls, PSNR in dB] of each; null of what is equal."""

    def figures(cell: ComparisonCell) -> list[float | None]:
        psnr = cell.values["psnr"]
        return [round(cell.calls, 2), round(psnr, 2) if math.isfinite(psnr) else None]

    rows = zip(*result.cells, strict=True)
    prompts = {result.title(row[0]): [figures(cell) for cell in row] for row in rows}
    return {"columns": [column.label for column in result.columns], "prompts": prompts}


def _left(c: int) -> int:
    return MARGIN + PROMPTS + c * (TILE + GAP)


def _title(result: Comparison, c: int) -> list[str]:
    """The lines of a column's title."""
    title = "full run" if c == 0 else result.columns[c].title
    return wrap_text(title, load_font(15, bold=True), TILE, TITLE_LINES)


def _head(draw: ImageDraw.ImageDraw, result: Comparison, c: int, column: Column, bottom: int) -> None:
    below = f"{result.mean_calls(c):.1f} calls".replace(".0 ", " ")
    if c == 0:
        detail = column.spec.partition("@")[2].strip()
    elif column.policy is None:
        detail = f"{column.steps} steps, none skipped"
    else:
        detail = f"{result.saving(c):.0%} saved"
    lines = _title(result, c)
    for k, line in enumerate(lines):
        draw.text((_left(c), bottom - 50 - TITLE_LINE * (len(lines) - k)), line, INK, load_font(15, bold=True))
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
