"""Runs as a picture: what was decided at each step of each sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..satellites import require_module
from .contracts import Attempt, Cached, Draft, Finish, Forecast, Refine, Run
from .flow import FREEZE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "full call": "#1f4e79",
    "one branch": "#7fb2d9",
    "refined": "#6b9a4f",
    "student": "#8e6bb0",
    "forecast": "#e9e6df",
    "finish or stop": "#e0872f",
    "rejected": "#c0392b",
    "student, rejected": "#d9a3c7",
}


@dataclass(frozen=True)
class TimelinePanel:
    """Runs under one title, each with its label."""

    title: str
    runs: Sequence[tuple[str, Run]]


def attempt_kind(attempt: Attempt, run: Run) -> str:
    """Which of `COLOURS` an attempt is drawn in."""
    if attempt.accepted is False:
        return "student, rejected" if isinstance(attempt.plan.evaluate, Draft) else "rejected"
    match attempt.plan.evaluate:
        case Cached():
            return "one branch"
        case Finish():
            return "finish or stop"
        case Refine():
            return "refined"
        case Draft():
            return "student"
        case Forecast() as how:
            stops = how == FREEZE or "budget" in attempt.plan.why
            return "finish or stop" if stops and attempt.t_next <= run.t_end else "forecast"
    return "full call"


def grid_position(run: Run, t: float) -> float:
    """Position of a time on its run's grid, in steps from the noisy end."""
    for i, (a, b) in enumerate(zip(run.grid, run.grid[1:], strict=False)):
        if t >= b:
            return i + max(0.0, (a - t) / (a - b))
    return float(len(run.grid) - 1)


def plot_timeline(panels: Sequence[TimelinePanel]) -> Figure:
    """A panel for each group of runs, a row for each run, a bar for each attempt. Raises MissingPackage."""
    require_module("matplotlib", "plot")
    from matplotlib.figure import Figure

    heights = [len(p.runs) * 0.27 + 0.7 for p in panels]
    figure = Figure(figsize=(11, sum(heights) + 1.1), dpi=130, facecolor="#fcfcfa", layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel)
    axes[-1].set_xlabel("step of the grid, from noise (left) to picture (right)", fontsize=9, color="#555")
    _legend(figure, panels)
    return figure


def _draw(axis: Any, panel: TimelinePanel) -> None:
    axis.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    steps = max(len(run.grid) - 1 for _, run in panel.runs)
    for row, (_, run) in enumerate(panel.runs):
        for a in run.display_attempts:
            left, what = grid_position(run, a.t), attempt_kind(a, run)
            width = grid_position(run, a.t_next) - left
            low, high = (row - 0.4, 0.8) if a.accepted is not False else (row + 0.28, 0.12)
            bar = {"facecolor": COLOURS[what], "edgecolor": "#fcfcfa", "linewidth": 0.7}
            # What was rejected lies above the steps that were taken in its place.
            axis.broken_barh([(left, width)], (low, high), zorder=2 if a.accepted is False else 1, **bar)
        axis.text(1.01 * steps + 0.1, row, f"{run.cost:g}", va="center", fontsize=8, color="#333")
    axis.set_yticks(range(len(panel.runs)), [_shorten(label) for label, _ in panel.runs], fontsize=8)
    axis.set_ylim(len(panel.runs) - 0.4, -0.6)
    axis.set_xlim(0, 1.04 * steps + 0.8)
    axis.set_xticks(range(0, steps + 1, -(-steps // 12)))
    axis.tick_params(length=0, labelsize=8, colors="#333")
    axis.spines[:].set_visible(False)
    axis.set_facecolor("none")


def _shorten(label: str, limit: int = 46) -> str:
    return label if len(label) <= limit else label[: limit - 1].rstrip() + "…"


def _legend(figure: Figure, panels: Sequence[TimelinePanel]) -> None:
    """A key to the kinds that occur, and no others."""
    from matplotlib.patches import Patch

    met = {attempt_kind(a, run) for p in panels for _, run in p.runs for a in run.display_attempts}
    keys = [Patch(facecolor=colour, label=name) for name, colour in COLOURS.items() if name in met]
    figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), frameon=False, fontsize=9)
