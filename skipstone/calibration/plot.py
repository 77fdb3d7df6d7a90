"""The picture of a calibration: settings by calls and quality, the target, and the one that was chosen."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

from ..policies.certified import CalibrationPoint, Certificate
from .target import Target

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PROMISED, REFUSED, SEEN = "#1a7f4b", "#b3261e", "#9aa0a6"
LINE_LENGTH = 84  # characters of the title, in letters of usual width


def plot_front(certificate: Certificate, target: Target) -> bytes:
    """Return a PNG of the settings: promised, failed, and seen by the search only."""
    buffer = BytesIO()
    draw_front(certificate, target).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def draw_front(certificate: Certificate, target: Target) -> Figure:
    """The figure of `plot_front`. All words stand outside of the axes, where they cover nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points, best = certificate.points, certificate.best
    scale = 100.0 if target.fraction is not None else 1.0
    tested = [p for p in points if p.p is not None or p.accepted]
    _dots(axes, [p for p in points if p not in tested], SEEN, "seen by the search only", scale, hollow=True)
    _dots(axes, [p for p in tested if not p.accepted], REFUSED, "tested: not promised", scale)
    _dots(axes, [p for p in tested if p.accepted and p is not best], PROMISED, "tested: promised, too", scale)
    _chosen(axes, best, scale)
    level = 100.0 * target.fraction if target.fraction is not None else target.level
    axes.axhline(level, color="black", lw=1, ls="--", label="target")
    axes.axvline(certificate.full_calls, color=SEEN, lw=1, ls=":", label="full run")
    what = (
        f"prompts with {target.metric} {target.relation} {target.level:g}, %" if scale > 1 else f"mean {target.metric}"
    )
    axes.set(xlabel="calls of the network per picture", ylabel=what)
    axes.set_xlim(0, 1.04 * certificate.full_calls)
    axes.set_ylim(*_limits([*points], level, scale))
    if scale == 1 and target.relation == "<=":
        axes.invert_yaxis()  # better is up
    axes.grid(alpha=0.25)
    axes.set_title(_title(certificate), fontsize=8, loc="left")
    figure.legend(loc="outside lower center", fontsize=8, ncols=3)
    return figure


def _title(certificate: Certificate) -> str:
    """The promise, and the setting that was chosen, in lines that fit."""
    best = certificate.best
    saved = 1 - best.calls / certificate.full_calls
    lines = (
        f"{certificate.model}: {certificate.target}",
        f"chosen: {best.label}",
        f"{best.calls:.1f} of {certificate.full_calls:g} calls, {saved:.0%} saved",
    )
    return "\n".join(textwrap.fill(line, LINE_LENGTH) for line in lines)


def _dots(
    axes: Any, points: Sequence[CalibrationPoint], color: str, label: str, scale: float, hollow: bool = False
) -> None:
    if not points:
        return
    x, y = [p.calls for p in points], [scale * p.value for p in points]
    if not hollow:
        axes.errorbar(x, y, _bars(points, scale), fmt="none", ecolor=color, elinewidth=1, capsize=3)
    axes.scatter(x, y, s=26, facecolors="white" if hollow else color, edgecolors=color, label=label, zorder=3)


def _chosen(axes: Any, best: CalibrationPoint, scale: float) -> None:
    y = scale * best.value
    axes.errorbar(
        [best.calls], [y], _bars([best], scale), fmt="none", ecolor=PROMISED, elinewidth=2, capsize=4, zorder=4
    )
    axes.scatter([best.calls], [y], s=170, marker="*", color=PROMISED, edgecolors="black", zorder=5, label="chosen")


def _bars(points: Sequence[CalibrationPoint], scale: float) -> list[list[float]]:
    """The worse end of the interval, which the test bounds, and the better end."""
    return [[scale * (p.value - p.low) for p in points], [scale * (p.high - p.value) for p in points]]


def _limits(points: Sequence[CalibrationPoint], level: float, scale: float) -> tuple[float, float]:
    """Axis limits that hold all values and the target."""
    values = [scale * p.value for p in points] + [level] + [scale * p.low for p in points if p.accepted]
    low, high = min(values), max(values)
    room = max(high - low, 1e-6)
    return low - 0.1 * room, min(high + 0.1 * room, 102.0 if scale > 1 else high + 0.1 * room)
