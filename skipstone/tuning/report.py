"""Outputs of a search: policies that can be used at once, figures, a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from .. import registry
from ..evaluation.files import write_file
from ..evaluation.json_lines import json_roundtrip
from ..policies.storage import FILE, save_policy
from .reference import CONFIRMING_SOLVER, Agreement
from .search import TuningResult, TuningRow

RESULTS, PLOT = "paths.json", "paths.png"
COLOURS = ("#1f4e79", "#c0392b", "#1a7f4b", "#8e5ea2", "#e0872f", "#5f6368")


def policy_folder(out: Path, calls: int) -> Path:
    """Folder in which the policy of this many calls is saved."""
    return out / f"path-{calls}"


def report_files(out: Path, calls: Sequence[int]) -> list[Path]:
    """All files that `write_report` makes."""
    return [*(policy_folder(out, n) / FILE for n in calls), out / RESULTS, out / PLOT]


def write_report(found: TuningResult, out: Path, about: Mapping[str, Any]) -> list[Path]:
    """Policies, figures and picture; returns their paths.

    Args:
        found: By a search.
        out: A folder.
        about: The model, what the figures were made with, and the prompts: {"model", "fingerprint", ...}.
    """
    document = {**about, **_document(found)}
    for calls in found.grids:
        row = next(row for row in found.rows if row.calls == calls and row.group == "path")
        notes = {"found for": about.get("model"), "calls": calls, "psnr": row.psnr_statistics, "settings": about,
                 "references": found.agreement.words}  # fmt: skip
        save_policy(found.policy(calls), policy_folder(out, calls), **json_roundtrip(notes))
    write_file(out / RESULTS, (json.dumps(json_roundtrip(document), indent=1, ensure_ascii=False) + "\n").encode())
    write_file(out / PLOT, plot(found, str(about.get("model", ""))))
    return report_files(out, list(found.grids))


def _document(found: TuningResult) -> dict[str, Any]:
    return {
        "fine": {"times": found.fine.times, "angles": found.fine.angles},
        "references": describe_references(found.agreement),
        "grids": [
            {
                "calls": calls,
                "policy": registry.spell(found.policy(calls)),
                "solver": found.policy(calls).solver,
                "weighed": grid.weighting,
                "tuned": grid.tuning_psnr,
                "places": grid.path,
            }
            for calls, grid in found.grids.items()
        ],
        "gains": [
            {"angle": found.fine.angles[k], "rms": (found.gain[:, k] ** 0.5).tolist()} for k in sorted(found.landings)
        ],
        "rows": describe_rows(found.rows),
    }


def describe_references(agreement: Agreement) -> dict[str, Any]:
    """What figures are measured against, for a file of results."""
    return {
        "steps": agreement.steps,
        "confirming steps": agreement.confirming_steps,
        "confirmed by": CONFIRMING_SOLVER,
        "agreement": {"median": agreement.median, "worst": agreement.worst, "samples": list(agreement.psnr)},
    }


def describe_rows(rows: Sequence[TuningRow]) -> list[dict[str, Any]]:
    """Rows with the figures of every sample, for a file of results."""
    return [
        {
            "calls": row.calls,
            "label": row.label,
            "group": row.group,
            "spec": row.spec,
            "spent": row.mean_calls,
            "psnr": row.psnr_statistics,
            "samples": [[one.calls, one.psnr] for one in row.scores],
        }
        for row in rows
    ]


def table(rows: Sequence[TuningRow]) -> list[list[str]]:
    """The head, and a line for each row: figures are PSNR to the reference in dB."""
    lines = [["budget", "", "calls", "median", "p10", "worst", "mean"]]
    for row in sorted(rows, key=lambda row: (row.calls, -row.psnr_statistics["median"])):
        figures = [f"{row.psnr_statistics[name]:.1f}" for name in ("median", "p10", "worst", "mean")]
        lines.append([str(row.calls), row.label, f"{row.mean_calls:.1f}", *figures])
    return lines


# -- the picture ----------------------------------------------------------------------------------


def plot(found: TuningResult, model: str) -> bytes:
    """A PNG: the places of each grid, the gain, and the local error per radian, over the angle."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    heights = (0.45 * len(found.grids) + 0.5, 2.2, 2.2)
    figure = Figure(figsize=(8.4, 1.2 + sum(heights)), layout="constrained")
    FigureCanvasAgg(figure)
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=heights)
    _ticks(top, found)
    _gains(middle, found)
    _errors(bottom, found)
    top.set_title(f"{model}: grids of {', '.join(map(str, found.grids))} calls", fontsize=11)
    bottom.set_xlabel("angle atan(sigma / alpha), noise to the left, picture to the right")
    bottom.set_xlim(1.02 * found.fine.angles[0], -0.02 * found.fine.angles[0])
    for axes in (middle, bottom):
        axes.set_yscale("log")
        axes.grid(alpha=0.25)
    figure.align_ylabels()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=140, metadata={"Software": None})
    return buffer.getvalue()


def _ticks(axes: Any, found: TuningResult) -> None:
    for row, grid in enumerate(found.grids.values()):
        colour = COLOURS[row % len(COLOURS)]
        places = [found.fine.angles[k] for k in grid.path]
        axes.hlines(-row, places[-1], places[0], color=colour, lw=0.7)
        axes.vlines(places, -row - 0.3, -row + 0.3, color=colour, lw=1.6)
    axes.set_yticks([-row for row in range(len(found.grids))], [str(calls) for calls in found.grids])
    axes.set_ylim(-len(found.grids) + 0.4, 0.6)
    axes.set_ylabel("calls")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)


def _gains(axes: Any, found: TuningResult) -> None:
    """Root of the gain: median, the middle half, and all samples."""
    import numpy as np

    angles, gain = np.array(found.fine.angles), np.sqrt(found.gain)
    low, first, middle, third, high = np.quantile(gain, (0.0, 0.25, 0.5, 0.75, 1.0), axis=0)
    axes.fill_between(angles, low, high, color=COLOURS[0], alpha=0.12, lw=0, label="all samples")
    axes.fill_between(angles, first, third, color=COLOURS[0], alpha=0.3, lw=0, label="the middle half")
    axes.plot(angles, middle, color=COLOURS[0], lw=1.5, label="median")
    probed = list(found.landings)
    axes.plot(angles[probed], middle[probed], "o", color=COLOURS[0], ms=4, label="measured here")
    axes.set_ylabel("gain\n(pixels / latent, rms)")
    axes.legend(fontsize=8, loc="best")


def _errors(axes: Any, found: TuningResult) -> None:
    """Local error per radian of steps of one length, and of those that the grids take."""
    import numpy as np

    angles = np.array(found.fine.angles)
    for row, (calls, grid) in enumerate(found.grids.items()):
        rms = np.median(np.sqrt(found.errors.steps(grid.path)), axis=1)
        edges = -np.diff(angles[list(grid.path)])
        colour = COLOURS[row % len(COLOURS)]
        axes.stairs((rms / edges)[::-1], angles[list(grid.path)][::-1], color=colour, lw=1.3,
                    label=f"{calls} calls", baseline=None)  # fmt: skip
    axes.set_ylabel("local error per radian\n(latent, rms, median)")
    axes.legend(fontsize=8, loc="best")
