"""The decisions of a comparison as one picture: a panel for each column, a row for each sample."""

from __future__ import annotations

from io import BytesIO

from ..engine.timeline import TimelinePanel, plot_timeline
from .compare import Comparison


def render_timeline(result: Comparison) -> bytes:
    """The decision timeline as a PNG file's bytes: the full run and every column that adapts."""
    shown = [c for c, column in enumerate(result.columns) if column.is_adaptive or (c == 0 and not column.peer)]
    buffer = BytesIO()
    plot_timeline([_panel(result, c) for c in shown]).savefig(buffer, format="png")
    return buffer.getvalue()


def _panel(result: Comparison, c: int) -> TimelinePanel:
    column = result.columns[c]
    name = f"full run: {column.spec}" if c == 0 else column.title
    runs = [(result.title(cell), cell.result.run) for cell in result.cells[c] if cell.result.run is not None]
    return TimelinePanel(f"{name}  ({result.mean_calls(c):.1f} calls)", runs)
