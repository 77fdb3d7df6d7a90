"""The picture of a calibration: settings by calls and quality, the target, and the one that was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

from ..policies.certified import CalibrationPoint, Certificate
from .target import Target

PROMISED, REFUSED, SEEN = "#1a7f4b", "#b3261e", "#9aa0a6"


def plot_front(certificate: Certificate, target: Target) -> bytes:
    """Return a PNG of the settings: promised, failed, and seen by the search only."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    points, best = certificate.points, certificate.best
    scale = 100.0 if target.fraction is not None else 1.0
    tested = [p for p in points if p.p is not None or p.accepted]
    _dots(axes, [p for p in points if p not in tested], SEEN, "seen by the search only", scale, hollow=True)
    _dots(axes, [p for p in tested if not p.accepted], REFUSED, "tested: not promised", scale)
    _dots(axes, [p for p in tested if p.accepted and p is not best], PROMISED, "tested: promised, too", scale)
    level = 100.0 * target.fraction if target.fraction is not None else target.level
    axes.axhline(level, color="black", lw=1, ls="--")
    axes.annotate("target", (0.995, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=9)
    axes.axvline(certificate.full_calls, color=SEEN, lw=1, ls=":")
    axes.annotate(
        "full run ",
        (certificate.full_calls, 0.45),
        xycoords=("data", "axes fraction"),
        ha="right",
        fontsize=9,
        color=SEEN,
    )
    _chosen(axes, best, certificate, scale)
    what = (
        f"prompts with {target.metric} {target.relation} {target.level:g}, %" if scale > 1 else f"mean {target.metric}"
    )
    axes.set(xlabel="calls of the network per picture", ylabel=what, title=f"{certificate.model}: {certificate.target}")
    axes.set_xlim(0, 1.04 * certificate.full_calls)
    axes.set_ylim(*_limits([*points], level, scale))
    if scale == 1 and target.relation == "<=":
        axes.invert_yaxis()  # better is up
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8, framealpha=0.9)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _dots(
    axes: Any, points: Sequence[CalibrationPoint], color: str, label: str, scale: float, hollow: bool = False
) -> None:
    if not points:
        return
    x, y = [p.calls for p in points], [scale * p.value for p in points]
    if not hollow:
        axes.errorbar(x, y, _bars(points, scale), fmt="none", ecolor=color, elinewidth=1, capsize=3)
    axes.scatter(x, y, s=26, facecolors="white" if hollow else color, edgecolors=color, label=label, zorder=3)


def _chosen(axes: Any, best: CalibrationPoint, certificate: Certificate, scale: float) -> None:
    saved = 1 - best.calls / certificate.full_calls
    y = scale * best.value
    axes.errorbar(
        [best.calls], [y], _bars([best], scale), fmt="none", ecolor=PROMISED, elinewidth=2, capsize=4, zorder=4
    )
    axes.scatter([best.calls], [y], s=170, marker="*", color=PROMISED, edgecolors="black", zorder=5, label="chosen")
    axes.annotate(
        f"{best.label}\n{best.calls:.1f} of {certificate.full_calls:g} calls, {saved:.0%} saved",
        (best.calls, scale * best.low),
        xytext=(24, -30),
        textcoords="offset points",
        va="top",
        fontsize=9,
        bbox={"boxstyle": "round,pad=0.3", "facecolor": "white", "edgecolor": PROMISED},
        arrowprops={"arrowstyle": "-", "color": PROMISED},
        zorder=6,
    )


def _bars(points: Sequence[CalibrationPoint], scale: float) -> list[list[float]]:
    """The worse end of the interval, which the test bounds, and the better end."""
    return [[scale * (p.value - p.low) for p in points], [scale * (p.high - p.value) for p in points]]


def _limits(points: Sequence[CalibrationPoint], level: float, scale: float) -> tuple[float, float]:
    """Axis limits that hold all values and the target, with room below for the text."""
    values = [scale * p.value for p in points] + [level] + [scale * p.low for p in points if p.accepted]
    low, high = min(values), max(values)
    room = max(high - low, 1e-6)
    return low - 0.25 * room, min(high + 0.1 * room, 102.0 if scale > 1 else high + 0.1 * room)
