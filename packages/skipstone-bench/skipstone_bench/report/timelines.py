"""Plots of what was decided at each attempt, from the letters in records."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from skipstone.engine.timeline import COLOURS
from skipstone.evaluation.figures import INK, PAPER, QUIET

from ..findings import BLIND, RELEASED, comparison_budgets
from ..store import Record
from ..summary import Summary, TableRow, metric_direction
from .plots import CHIEF_BUDGET

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {"C": "full call", "c": "one branch", ".": "forecast", "F": "finish or stop", "x": "rejected"}
MAX_CHIEF_ROWS = 8  # rows that are shown side by side
MAX_SAMPLES = 12  # of a row that are shown


def attempt_kinds(letters: str) -> list[str]:
    """Kinds of attempts, in order: what was tried and rejected is one of its own."""
    return [KINDS["x"] if one.endswith("x") else KINDS.get(one[0], "full call") for one in re.findall(r".x?", letters)]


def chief_rows(summary: Summary) -> list[TableRow]:
    """One row for each family that a reader wants to see side by side, near one budget: ours, rivals, closest peers."""
    budget = min(comparison_budgets(summary), key=lambda b: abs(b - CHIEF_BUDGET))
    metric = summary.closeness
    sign = 1 if metric_direction(metric) == "higher" else -1

    def nearest(rows: Sequence[TableRow]) -> list[TableRow]:
        return [min(rows, key=lambda r: abs(r.cost - budget))] if rows else []

    def best(*groups: str) -> list[TableRow]:
        rows = [r for r in summary.ran if r.group in groups and r.calls and r.calls.value <= 1.02 * budget]
        return [max(rows, key=lambda r: sign * r.median(metric))] if rows else []

    of = {g: [rows for rows in summary.families.values() if rows[0].group == g] for g in ("ours", "peer")}
    released = [r for r in summary.ran if r.info.spec.startswith(RELEASED)]
    found = [row for rows in of["ours"] for row in nearest(rows)]
    found += [*best("fixed"), *best(*BLIND), *nearest(released)]
    peers = [row for rows in of["peer"] for row in nearest(rows)]
    found += sorted(peers, key=lambda r: -sign * r.median(metric))
    return list({row.info.spec: row for row in found}.values())[:MAX_CHIEF_ROWS]


def plot_timeline(summary: Summary) -> Figure | None:
    """A panel for each chief row that decides, a strip for each sample; None where no record has decisions."""
    from matplotlib.figure import Figure

    shown = [row for row in chief_rows(summary) if row.group != "fixed" and _pick_samples(summary, row)]
    if not shown:
        return None
    picked = {row.info.spec: _pick_samples(summary, row) for row in shown}
    heights = [len(picked[row.info.spec]) * 0.21 + 0.55 for row in shown]
    figure = Figure(figsize=(9.6, sum(heights) + 0.9), dpi=150, facecolor=PAPER, layout="constrained")
    axes = figure.subplots(len(shown), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    met: set[str] = set()
    for axis, row in zip(axes, shown, strict=True):
        met |= _panel(axis, row, picked[row.info.spec])
    axes[-1].set_xlabel("attempt, from noise (left) to picture (right)", fontsize=9, color=QUIET)
    _legend(figure, met)
    return figure


def _pick_samples(summary: Summary, row: TableRow) -> list[tuple[str, Record]]:
    """At most SAMPLES, evenly from the cheapest to the dearest; one where all are decided alike."""
    records = [r for r in summary.records[row.info.spec].values() if r.decisions]
    ranked = [(_short(r.prompt or r.sample), r) for r in sorted(records, key=lambda r: (r.calls, r.sample))]
    if len({r.decisions for _, r in ranked}) == 1:
        return [("every sample", ranked[0][1])]
    if len(ranked) <= MAX_SAMPLES:
        return ranked
    return [ranked[round(k * (len(ranked) - 1) / (MAX_SAMPLES - 1))] for k in range(MAX_SAMPLES)]


def _panel(axis: Any, row: TableRow, records: Sequence[tuple[str, Record]]) -> set[str]:
    import numpy as np
    from matplotlib.colors import to_rgba

    strips = [attempt_kinds(r.decisions) for _, r in records]
    width = max(map(len, strips))
    pixels = np.zeros((3 * len(strips), width, 4))
    for k, strip in enumerate(strips):
        # Forecasts are see-through, so that they recede on a dark page too; every third line is the gap between strips.
        colours = [to_rgba("#9a9a94", 0.22) if what == "forecast" else to_rgba(COLOURS[what]) for what in strip]
        pixels[3 * k : 3 * k + 2, : len(strip)] = colours
        axis.text(width + 0.4, 3 * k + 0.5, f"{records[k][1].calls:g}", va="center", fontsize=7.5, color=QUIET)
    axis.imshow(pixels, aspect="auto", interpolation="nearest", extent=(0, width, 3 * len(strips) - 0.5, -0.5))
    calls = row.calls.value if row.calls else 0.0
    axis.set_title(f"{row.info.label}: {calls:.1f} calls", loc="left", fontsize=9.5, color=INK)
    axis.set_yticks([3 * k + 0.5 for k in range(len(records))], [name for name, _ in records])
    axis.set_xlim(0, width * 1.05)
    axis.set_xticks(range(0, width + 1, max(1, -(-width // 10))))
    axis.tick_params(length=0, labelsize=7.5, labelcolor=QUIET)
    axis.spines[:].set_visible(False)
    axis.set_facecolor("none")
    return {what for strip in strips for what in strip}


def _short(label: str, limit: int = 42) -> str:
    return label if len(label) <= limit else label[: limit - 1].rstrip() + "…"


def _legend(figure: Figure, met: set[str]) -> None:
    from matplotlib.patches import Patch

    keys = [
        Patch(facecolor="#9a9a94" if name == "forecast" else colour, alpha=0.3 if name == "forecast" else 1, label=name)
        for name, colour in COLOURS.items()
        if name in met
    ]
    figure.legend(handles=keys, loc="outside upper right", ncols=len(keys), frameon=False, fontsize=8.5, labelcolor=INK)
