"""A learning curve as a table and as a picture."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence


def curve_to_csv(curve: Sequence[Mapping[str, float]]) -> str:
    """A learning curve as CSV."""
    names = list(dict.fromkeys(name for row in curve for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve)
    return buffer.getvalue()


def curve_to_png(curve: Sequence[Mapping[str, float]], lines: Mapping[str, float]) -> bytes:
    """A learning curve as a PNG file: utility of each round and the best so far, over seconds."""
    from itertools import accumulate

    from matplotlib.figure import Figure

    from skipstone.evaluation.figures import INK, OURS, PAPER, QUIET, RULE, figure_to_png

    figure = Figure(figsize=(8, 4.5), dpi=150, facecolor=PAPER, layout="constrained")
    axis = figure.subplots()
    seconds, scores = [row["seconds"] for row in curve], [row["score"] for row in curve]
    axis.plot(seconds, scores, "o-", color=OURS[0], lw=0.8, ms=2.5, alpha=0.6, label="each round")
    axis.step(seconds, list(accumulate(scores, max)), where="post", color=OURS[0], lw=2.2, label="best so far")
    for (name, value), line in zip(lines.items(), ("-", ":"), strict=False):
        axis.axhline(value, color=INK, ls=line, lw=1.2)
        axis.annotate(name, (1, value), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", color=QUIET)
    axis.set_xlabel("seconds", fontsize=9.5, color=QUIET)
    axis.set_title("Mean utility on held-out episodes, dB", loc="left", fontsize=10.5, color=INK)
    axis.grid(True, color=RULE, lw=0.6)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=9, labelcolor=QUIET)
    axis.set_facecolor("none")
    axis.legend(frameon=False, fontsize=9, labelcolor=INK, loc="center right")
    return figure_to_png(figure)
