"""A comparison as one HTML file for readers who have never heard of samplers: pictures side by side, calls, seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import __version__
from ..metrics.closeness import format_decibels
from .compare import Comparison, ComparisonCell
from .pages import pixels_uri, render_template
from .pixels import first_frame
from .table import format_notes, format_rows, preset_notes

TEMPLATE = "comparison.html.j2"
SMALL = 128  # pixels up to which pictures are shown with square pixels


def render_comparison(result: Comparison) -> str:
    """The page's text: the full run beside each column, pictures embedded."""
    head, *rows = format_rows(result)
    height, width = first_frame(result.cells[0][0].pixels).shape[:2]
    return render_template(
        TEMPLATE,
        title=_headline(result),
        about=_about(result),
        columns=[_column(result, c) for c in range(len(result.columns))],
        samples=[_sample(result, p) for p in range(len(result.cells[0]))],
        head=head,
        rows=rows,
        notes=[note.replace("`", "") for note in [*preset_notes(result), *format_notes(result)]],
        full=result.columns[0].spec,
        repeats=result.repeats,
        size=(width, height),
        pixelated=max(width, height) <= SMALL,
        version=__version__,
    )


def _headline(result: Comparison) -> str:
    """The first column against the full run, in one sentence."""
    calls, full = result.mean_calls(1), result.mean_calls(0)
    times = result.seconds[0] / result.seconds[1]
    faster = f"{times:.1f} times as fast" if times >= 1.05 else "not faster" if times > 0.95 else "slower"
    return f"{result.columns[1].label}: {calls:.3g} of {full:.3g} network calls, {faster}"


def _about(result: Comparison) -> list[str]:
    pictures = len(result.cells[0])
    known = [f"model {result.model}", "" if result.guidance is None else f"guidance {result.guidance:g}"]
    known += [f"{name} {value}" for name, value in result.settings.items()]
    known += [f"{pictures} sample{'' if pictures == 1 else 's'}", _seeds(result.seeds)]
    return [*filter(None, known), f"Skipstone {__version__}"]


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"


def _column(result: Comparison, c: int) -> dict[str, Any]:
    """The figures of a column for its card."""
    column = result.columns[c]
    closeness = [] if c == 0 else [format_decibels(f(c, "psnr")) for f in (result.median, result.worst)]
    return {
        "label": "full run" if c == 0 else _label(result, c),
        "spec": column.spec,
        "stands_for": column.stands_for,
        "calls": f"{result.mean_calls(c):.1f}".removesuffix(".0"),
        "seconds": f"{result.seconds[c]:.2f}",
        "saved": f"{1 - result.seconds[c] / result.seconds[0]:.0%}",
        "closeness": closeness,
    }


def _label(result: Comparison, c: int) -> str:
    column = result.columns[c]
    return f"{column.label} ({column.steps} steps)" if column.policy is None else column.label


def _sample(result: Comparison, p: int) -> dict[str, Any]:
    """A sample's pictures, that of the full run first, and a caption for each."""
    cells = [row[p] for row in result.cells]
    return {
        "title": result.title(cells[0]),
        "pictures": [pixels_uri(cell.pixels) for cell in cells],
        "captions": [_caption(cell, c) for c, cell in enumerate(cells)],
    }


def _caption(cell: ComparisonCell, c: int) -> str:
    calls = f"{cell.calls:.4g} calls"
    if c == 0:
        return calls
    psnr = format_decibels(cell.values["psnr"])
    return f"{calls}, {psnr}" + ("" if psnr == "identical" else " dB to the full run")
