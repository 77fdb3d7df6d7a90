"""What was decided at each step of each sample, as one picture."""

from __future__ import annotations

from io import BytesIO
from typing import Any

from ..engine.contracts import Attempt, Cached, Finish, Forecast, Run
from ..engine.flow import FREEZE
from .compare import Comparison

COLOURS = {
    "full call": "#1f4e79",
    "one branch": "#7fb2d9",
    "forecast": "#e9e6df",
    "finish or stop": "#e0872f",
    "rejected": "#c0392b",
}


def kind(attempt: Attempt, run: Run) -> str:
    """Which of `COLOURS` an attempt is drawn in."""
    if attempt.accepted is False:
        return "rejected"
    match attempt.plan.evaluate:
        case Cached():
            return "one branch"
        case Finish():
            return "finish or stop"
        case Forecast() as how:
            stops = how == FREEZE or "budget" in attempt.plan.why
            return "finish or stop" if stops and attempt.t_next <= run.t_end else "forecast"
    return "full call"


def place(run: Run, t: float) -> float:
    """Where a time lies on its run's grid, in steps from the noisy end."""
    for i, (a, b) in enumerate(zip(run.grid, run.grid[1:], strict=False)):
        if t >= b:
            return i + max(0.0, (a - t) / (a - b))
    return float(len(run.grid) - 1)


def timeline(result: Comparison) -> bytes:
    """The decision timeline as a PNG file's bytes: a panel for each column, a row for each sample."""
    from matplotlib.figure import Figure

    shown = [c for c, column in enumerate(result.columns) if column.adaptive or c == 0]
    samples = len(result.cells[0])
    heights = [samples * 0.27 + 0.7 for _ in shown]
    figure = Figure(figsize=(11, sum(heights) + 1.1), dpi=130, facecolor="#fcfcfa", layout="constrained")
    panels = figure.subplots(len(shown), 1, squeeze=False)[:, 0]
    for panel, c in zip(panels, shown, strict=True):
        _panel(panel, result, c)
    panels[-1].set_xlabel("step of the grid, from noise (left) to picture (right)", fontsize=9, color="#555")
    _legend(figure, result, shown)
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _panel(panel: Any, result: Comparison, c: int) -> None:
    column, cells = result.columns[c], result.cells[c]
    steps = len(cells[0].result.run.grid) - 1
    name = f"full run: {column.spec}" if c == 0 else column.label
    panel.set_title(f"{name}  ({result.mean_calls(c):.1f} calls)", loc="left", fontsize=10, fontweight="bold")
    for row, cell in enumerate(cells):
        run = cell.result.run
        for a in run.attempts:
            left, what = place(run, a.t), kind(a, run)
            width = place(run, a.t_next) - left
            low, high = (row - 0.4, 0.8) if a.accepted is not False else (row + 0.28, 0.12)
            panel.broken_barh([(left, width)], (low, high), facecolor=COLOURS[what], edgecolor="#fcfcfa", linewidth=0.7)
        panel.text(steps + 0.4, row, f"{cell.calls:g}", va="center", fontsize=8, color="#333")
    panel.set_yticks(range(len(cells)), [_short(cell.prompt) for cell in cells], fontsize=8)
    panel.set_ylim(len(cells) - 0.4, -0.6)
    panel.set_xlim(0, steps + 2)
    panel.tick_params(length=0, labelsize=8, colors="#333")
    panel.spines[:].set_visible(False)
    panel.set_facecolor("none")


def _short(prompt: str, limit: int = 46) -> str:
    return prompt if len(prompt) <= limit else prompt[: limit - 1].rstrip() + "…"


def _legend(figure: Any, result: Comparison, shown: list[int]) -> None:
    """A key to the kinds that occur, and no others."""
    from matplotlib.patches import Patch

    runs = [cell.result.run for c in shown for cell in result.cells[c]]
    met = {kind(a, run) for run in runs for a in run.attempts}
    keys = [Patch(facecolor=colour, label=name) for name, colour in COLOURS.items() if name in met]
    figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), frameon=False, fontsize=9)
