"""Error against cost, one curve for each family: its front solid, its unlucky tenth as a band below."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skipstone.evaluation.figures import INK, OURS, PAPER, PEERS, QUIET, RULE
from skipstone.evaluation.files import IDENTICAL_PSNR

from ..findings import SLACK, comparison_budgets
from ..summary import BEST_FIXED, Summary, TableRow, metric_direction, pareto_front

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLIND = ("#8b929c", "#a7adb5", "#6f7f8f", "#b9b3a6")
MARKERS = "osD^vP*X<>"
TICKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100, 150, 200, 300, 500)
NARROW_TICKS = (1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500)
WIDE, NARROW = (9.6, 5.4), (4.6, 4.4)  # inches
MAX_LINES = 5  # of a plot that is taken in at once
CHIEF_BUDGET = 20  # calls at which rows are shown, or the nearest budget of the run
RIVALS = ("mask", "gate", "random", "peer", "oracle")
NAMES = {"psnr": "PSNR, dB", "ssim": "SSIM", "latent": "relative error of the latent", "lpips": "LPIPS"}
SIDES = {"full": "the full run", "converged": "the converged picture"}


@dataclass(frozen=True)
class Style:
    """Colour, line and marker of a family."""

    colour: str
    line: str
    marker: str
    weight: float


def family_styles(summary: Summary) -> dict[str, Style]:
    """Family -> its style: the best fixed sampler in black, ours in strong colours, peers warm, blind rows grey."""
    counts = {"ours": 0, "peer": 0, "blind": 0, "fixed": 0}
    found = {}
    for name, rows in summary.families.items():
        group = rows[0].group
        if group in ("full", "oracle"):
            found[name] = Style(INK, ":", "D" if group == "full" else "*", 1.0)
            continue
        if group == "fixed":  # the best one stands out, other fixed samplers recede
            best = name == BEST_FIXED or not any(r[0].info.family == BEST_FIXED for r in summary.families.values())
            counts[group] += not best
            found[name] = Style(INK, "-", "o", 1.8) if best else Style(QUIET, ":", MARKERS[counts[group]], 1.0)
            continue
        kind = group if group in counts else "blind"
        palette, line, weight = {"ours": (OURS, "-", 2.2), "peer": (PEERS, "--", 1.3), "blind": (BLIND, "-", 1.1)}[kind]
        k = counts[kind]
        counts[kind] += 1
        found[name] = Style(palette[k % len(palette)], line, MARKERS[k % len(MARKERS)], weight)
    return found


def chief_families(summary: Summary, metric: str) -> list[str]:
    """At most MAX_LINES families that a reader takes in at once.

    The full run, the best fixed sampler, the two best of ours, and the best of all others: by the metric at
    CHIEF_BUDGET calls, or the budget nearest to it.
    """
    budget = min(comparison_budgets(summary), key=lambda b: abs(b - CHIEF_BUDGET))
    sign = 1 if metric_direction(metric) == "higher" else -1
    plotted = {name: [r for r in rows if _is_plotted(r, metric)] for name, rows in summary.families.items()}

    def level(name: str) -> tuple[float, float]:
        rows = [sign * r.median(metric) for r in plotted[name] if r.cost <= SLACK * budget]
        return max(rows, default=-math.inf), -min(r.cost for r in plotted[name])

    def best(*groups: str) -> list[str]:
        found = [name for name, rows in plotted.items() if rows and rows[0].group in groups]
        return sorted(found, key=level, reverse=True)

    fixed = sorted(best("fixed"), key=lambda name: name != BEST_FIXED)[:1]
    found = [*best("ours")[:2], *fixed, *best(*RIVALS)[:1], *best("full")[:1]]
    return found[:MAX_LINES]


def plot_pareto(
    summary: Summary, metric: str, names: Sequence[str] | None = None, legend: bool = True, narrow: bool = False
) -> Figure | None:
    """Rows that have the metric; None where there are fewer than two.

    Args:
        summary: Of the benchmark.
        metric: What is plotted against cost.
        names: Families to show; all of them by default.
        legend: Whether the figure says which line is which.
        narrow: For the width of a phone.
    """
    from matplotlib.figure import Figure

    names = list(summary.families) if names is None else names
    families = {name: [r for r in summary.families[name] if _is_plotted(r, metric)] for name in names}
    families = {name: rows for name, rows in families.items() if rows}
    if sum(map(len, families.values())) < 2:
        return None
    figure = Figure(figsize=NARROW if narrow else WIDE, dpi=150, facecolor=PAPER, layout="constrained")
    axis = figure.subplots()
    look = family_styles(summary)
    for k, name in enumerate(summary.families):
        if name in families:
            _family(axis, summary, families[name], metric, look[name], k)
    _frame(axis, summary, metric, narrow)
    if legend:
        handles = [_legend_handle(name, look[name]) for name in order_families(summary) if name in families]
        few = len(handles) <= MAX_LINES
        where = {"loc": "outside lower left", "ncols": len(handles)} if few else {"loc": "outside right upper"}
        figure.legend(handles=handles, frameon=False, fontsize=9, labelcolor=INK, **where)
    return figure


def metric_label(metric: str) -> str:
    """A metric for people: `psnr_full` is PSNR to the full run."""
    base, _, side = metric.rpartition("_")
    if side not in SIDES:
        return {"judge": "judge's score"}.get(metric, metric)
    name, _, unit = NAMES.get(base, base).partition(", ")
    return f"{name} to {SIDES[side]}" + (f" ({unit})" if unit else "")


def order_families(summary: Summary) -> list[str]:
    """Families as a reader wants them: ours, what has to be beaten, the peers, the rest."""
    order = ("ours", "fixed", "mask", "gate", "random", "peer", "oracle", "full")
    return sorted(summary.families, key=lambda name: order.index(summary.families[name][0].group))


def _is_plotted(row: TableRow, metric: str) -> bool:
    """Whether a row has a place on the plot: one that is the reference itself has none."""
    return metric in row.figures and not (row.identical == row.n and row.median(metric) >= IDENTICAL_PSNR)


def _family(axis: Any, summary: Summary, rows: list[TableRow], metric: str, style: Style, k: int) -> None:
    """Band, line and one point for each row; gids let a page hide them and name them."""
    best = pareto_front(rows, metric)
    cost = [r.cost for r in best]
    middle, unlucky = [r.median(metric) for r in best], [r.tail(metric) for r in best]
    chief = best[0].group == "ours" or (best[0].group == "fixed" and style.colour == INK)
    over = 3 if best[0].group == "ours" else 2
    if len(best) > 1:
        band = axis.fill_between(
            cost, unlucky, middle, color=style.colour, alpha=0.13 if chief else 0.05, lw=0, zorder=1
        )
        band.set_gid(f"band-{k}")
        (low,) = axis.plot(cost, unlucky, color=style.colour, lw=0.6, alpha=0.6, zorder=over)
        low.set_gid(f"low-{k}")
        (line,) = axis.plot(cost, middle, style.line, color=style.colour, lw=style.weight, zorder=over)
        line.set_gid(f"line-{k}")
    else:
        (low,) = axis.plot(cost * 2, middle + unlucky, color=style.colour, lw=0.8, alpha=0.5, zorder=over)
        low.set_gid(f"low-{k}")
    for row in rows:
        filled = row in best
        face, edge = (style.colour, PAPER) if filled else (PAPER, style.colour)
        at, size = ([row.cost], [row.median(metric)]), 6 if chief else 4.5
        (point,) = axis.plot(*at, style.marker, zorder=over + 2, ms=size, mfc=face, mec=edge, mew=0.8)
        point.set_gid(f"row-{summary.rows.index(row)}-{k}")


def _frame(axis: Any, summary: Summary, metric: str, narrow: bool) -> None:
    counted = any(r.macs_calls is not None for r in summary.ran)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [t for t in (NARROW_TICKS if narrow else TICKS) if low <= t <= high]
    axis.set_xticks(ticks, [str(t) for t in ticks])
    axis.set_xticks([], minor=True)
    if metric_direction(metric) == "lower":
        axis.set_yscale("log")
    unit = "multiply-accumulates, in full guided calls" if counted else "network calls"
    axis.set_xlabel(f"cost of a sample: {unit}", fontsize=9.5, color=QUIET)
    about = metric_label(metric) + ("" if narrow else ": median, and down to the unlucky tenth")
    axis.set_title(about, loc="left", fontsize=10.5, color=INK, pad=10)
    axis.grid(True, color=RULE, lw=0.6)
    axis.set_axisbelow(True)
    axis.tick_params(length=0, labelsize=9, labelcolor=QUIET)
    axis.spines[:].set_visible(False)
    axis.set_facecolor("none")


def _legend_handle(name: str, style: Style) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=style.colour, ls=style.line, marker=style.marker, lw=style.weight, ms=5, label=name)
