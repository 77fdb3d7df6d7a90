"""The worst samples of each row beside the full run and the converged picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from skipstone.evaluation.contact_sheet import GOOD, INK, PAPER, QUIET, RULE, load_font, wrap_text
from skipstone.evaluation.files import IDENTICAL_PSNR, REFERENCES, safe_file_name
from skipstone.evaluation.pages import picture_uri
from skipstone.evaluation.pixels import first_frame

from ..store import Record
from ..summary import Summary, TableRow, metric_direction
from .timelines import chief_rows

WORST = 10  # samples of a row
MAX_SIDE = 256  # pixels of a side of a picture in the page


@dataclass(frozen=True)
class GallerySample:
    """One sample of one row: numbers of its pictures (None where there is none)."""

    record: Record
    picture: int | None
    full: int | None
    converged: int | None


@dataclass
class Album:
    """Pictures as data URIs, each stored once however often it is shown."""

    folder: Path
    uris: list[str] = field(default_factory=list)
    known: dict[str, int | None] = field(default_factory=dict)

    def number(self, name: str) -> int | None:
        """Of a picture file, None where it is missing or no picture."""
        if name not in self.known:
            uri = _uri(self.folder / name) if name else None
            self.known[name] = None if uri is None else len(self.uris)
            self.uris += [] if uri is None else [uri]
        return self.known[name]


def worst_samples(summary: Summary, row: TableRow, count: int = WORST) -> list[Record]:
    """The samples of a row that are furthest from the converged picture, the worst first."""
    metric = summary.closeness
    records = [r for r in summary.records[row.info.spec].values() if metric in r.values]
    sign = 1 if metric_direction(metric) == "higher" else -1
    return sorted(records, key=lambda r: (sign * r.values[metric], r.sample))[:count]


def build_galleries(summary: Summary, album: Album) -> dict[str, list[GallerySample]]:
    """Spec -> its worst samples, of every row with pictures but the full run."""
    found = {}
    for row in summary.ran:
        records = [r for r in worst_samples(summary, row) if r.picture] if row.group != "full" else []
        if records:
            found[row.info.spec] = [
                GallerySample(
                    r,
                    album.number(r.picture),
                    album.number(reference_file(summary, r.sample)),
                    album.number(converged_file(summary, album.folder, r.sample)),
                )
                for r in records
            ]
    return found


def reference_file(summary: Summary, sample: str) -> str:
    """The file of the full run's picture of a sample, empty where there is none."""
    record = summary.records.get(summary.header.reference, {}).get(sample)
    return record.picture if record else ""


def converged_file(summary: Summary, folder: Path, sample: str) -> str:
    """The file of the converged picture of a sample, empty where there is none."""
    for spec in summary.header.converged:
        if record := summary.records.get(spec, {}).get(sample):
            return record.picture
        name = f"{REFERENCES}/{safe_file_name(spec)}/{safe_file_name(sample)}.npz"
        if (folder / name).is_file():
            return name
    return ""


def describe_figures(record: Record) -> str:
    """Closeness and cost of a sample in a few words."""
    parts = [f"{record.calls:.4g} calls"]
    for name, word in (("psnr_converged", "to converged"), ("psnr_full", "to full run")):
        if name in record.values:
            value = record.values[name]
            parts.append(f"identical {word}" if value >= IDENTICAL_PSNR else f"{value:.1f} dB {word}")
    return ", ".join(parts)


def open_picture(path: Path) -> Any:
    """A picture file, or the arrays of a reference, as a picture; None where it cannot be read."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from skipstone.evaluation.pixels import to_uint8

    try:
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                return Image.fromarray(to_uint8(first_frame(arrays["pixels"])))
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError, ValueError, KeyError):
        return None


def _uri(path: Path) -> str | None:
    """Small pictures to the last bit, larger ones made smaller: their figures were measured on the originals."""
    from PIL import Image

    picture = open_picture(path)
    if picture is None:
        return None
    if max(picture.size) > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return picture_uri(picture)


# -- worst.png --------------------------------------------------------------------------------------

TILE, GAP, MARGIN, SIDE, TOP, CAPTION, COLUMNS = 112, 12, 32, 150, 52, 26, 6


def render_worst_sheet(summary: Summary, folder: Path) -> bytes | None:
    """The worst six samples of each chief row, with the full run and the converged picture under each; a PNG file."""
    from PIL import Image, ImageDraw

    shown = [
        (row, [r for r in worst_samples(summary, row, COLUMNS) if (folder / r.picture).is_file()])
        for row in chief_rows(summary)
    ]
    shown = [(row, records) for row, records in shown if records]
    if not shown:
        return None
    band = TOP + 3 * (TILE + 6) + CAPTION + 20
    width = 2 * MARGIN + SIDE + COLUMNS * (TILE + GAP) - GAP
    page = Image.new("RGB", (width, 2 * MARGIN + len(shown) * band), PAPER)
    draw = ImageDraw.Draw(page)
    for k, (row, records) in enumerate(shown):
        _band(page, draw, summary, folder, row, records, MARGIN + k * band)
    buffer = BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _band(page: Any, draw: Any, summary: Summary, folder: Path, row: TableRow, records: list[Record], top: int) -> None:
    calls = row.calls.value if row.calls else 0.0
    draw.text(
        (MARGIN, top), wrap_text(row.info.label, load_font(15, bold=True), 620, 1)[0], INK, load_font(15, bold=True)
    )
    caption = f"{row.info.family}, {calls:.1f} calls: its worst samples"
    draw.text((MARGIN, top + 22), caption, QUIET, load_font(12))
    names = ("this row", "full run", "converged")
    for line, name in enumerate(names):
        draw.text((MARGIN, top + TOP + line * (TILE + 6) + TILE // 2 - 8), name, QUIET, load_font(13))
    for column, record in enumerate(records):
        left = MARGIN + SIDE + column * (TILE + GAP)
        files = (record.picture, reference_file(summary, record.sample), converged_file(summary, folder, record.sample))
        for line, name in enumerate(files):
            _tile(page, draw, folder / name if name else None, left, top + TOP + line * (TILE + 6))
        value = record.values[summary.closeness]
        closeness = "identical" if value >= IDENTICAL_PSNR else f"{value:.1f} dB"
        under = top + TOP + 3 * (TILE + 6) + 2
        draw.text((left, under), f"{record.calls:.4g} calls", INK, load_font(11))
        draw.text((left + TILE, under), closeness, GOOD if value >= 30 else INK, load_font(11), anchor="ra")


def _tile(page: Any, draw: Any, path: Path | None, left: int, top: int) -> None:
    from PIL import Image

    picture = open_picture(path) if path is not None else None
    if picture is not None:
        scale = TILE / max(picture.size)
        way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
        page.paste(picture.resize((round(picture.width * scale), round(picture.height * scale)), way), (left, top))
    draw.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=RULE)
