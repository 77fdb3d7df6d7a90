"""Rows of students and of what needs no training, as a table and a plot."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

Rows: TypeAlias = Mapping[str, Mapping[str, Any]]

CAPTION = """Made by `{command}`.

{prompts} withheld prompts. A call is a guided one: two rows of the network. A row of a student is a row: a LoRA is
merged before it draws, so that multiply-accumulates are in proportion to calls (GMACs, of the denoiser, for a picture,
by torch's counter of operations). Judge: percent of the facts of a prompt; of the objects named; of the backgrounds
named. PSNR and SSIM (median / worst tenth) are to the guided teacher's converged picture. {frechet}Seconds are those of
drawing a picture without decoding it, the median of three batches of 8 on one thread: wall-clock / processor{load}.
Diversity: mean distance between four seeds of one prompt, as a share of the teacher's.
"""
FRECHET = """The Fréchet distance is in the 128
features of Pebble's judge, between {count} pictures of the row and as many that the teacher drew from other seeds in 20
steps; the row `{floor}` is its floor, the teacher against itself. """
HEAD = (
    "| calls | GMACs | row | judge | objects | background | PSNR, dB | SSIM | Fréchet, judge's features | seconds "
    "| diversity: pixels / features |"
)


def write_table(rows: Rows, command: str, full: str, floor: str, counts: Mapping[str, int]) -> str:
    """Every row, sorted by cost.

    Args:
        rows: Name -> figures.
        command: That made them.
        full: Row that diversity is a share of.
        floor: Row of the teacher against itself.
        counts: "prompts", and "frechet" pictures.
    """
    loads = [row["load"] for row in rows.values() if "load" in row]
    load = f" (its load was {min(loads):.1f} to {max(loads):.1f} of {os.cpu_count()} cores)" if loads else ""
    frechet = FRECHET.format(count=counts["frechet"], floor=floor) if counts["frechet"] else ""
    lines = [
        CAPTION.format(command=command, load=load, prompts=counts["prompts"], frechet=frechet),
        HEAD,
        "|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in sorted(rows.items(), key=lambda item: (item[1]["calls"], item[0])):
        lines.append("| " + " | ".join(_cells(name, row, rows[full]["diversity"])) + " |")
    return "\n".join(lines) + "\n"


def _cells(name: str, row: Mapping[str, Any], full: Mapping[str, float]) -> list[str]:
    if "ssim" not in row:  # of an older script
        row = {**dict.fromkeys(("gmacs", "objects", "background", "ssim", "ssim_p10", "frechet"), float("nan")), **row}
    shares = [f"{row['diversity'][kind] / full[kind]:.0%}" for kind in full if row["diversity"]]
    cells = [
        f"{row['calls']:.3g}",
        f"{row['gmacs']:.3g}",
        name,
        f"{100 * row['judge']:.1f} ± {100 * row['judge_se']:.1f}",
        f"{100 * row['objects']:.1f}",
        f"{100 * row['background']:.1f}",
        f"{row['psnr']:.1f} / {row['psnr_p10']:.1f}",
        f"{row['ssim']:.3f} / {row['ssim_p10']:.3f}",
        "" if row["frechet"] is None else f"{row['frechet']:.3g}",
        f"{row['seconds']:.3f} / {row['cpu_seconds']:.3f}" if "seconds" in row else "",
        " / ".join(shares),
    ]
    return ["" if "nan" in cell else cell for cell in cells]


def best_untrained(rows: Rows, by: str, guided: bool, full: str) -> list[tuple[float, float]]:
    """(calls, value) of the best fixed sampler at each cost, the row `full` left out."""
    found: dict[float, float] = {}
    for name, row in rows.items():
        if row["spec"].startswith("fixed") and row["guided"] == guided and name != full:
            found[row["calls"]] = max(found.get(row["calls"], 0.0), row[by])
    return sorted(found.items())


def plot(rows: Rows, students: Sequence[str], full: str, most: float, file: Path) -> None:
    """Judge's score and PSNR against calls, up to `most` of them."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = [("judge", "judge's score"), ("psnr", "PSNR, median (dB)"), ("psnr_p10", "PSNR, worst tenth (dB)")]
    for axes, (key, label) in zip(figure.subplots(1, 3), panels, strict=True):
        lines = {
            "best fixed sampler, guided": best_untrained(rows, key, True, full),
            "best fixed sampler, unguided": best_untrained(rows, key, False, full),
            "default policy": sorted((r["calls"], r[key]) for n, r in rows.items() if n.startswith("default")),
        }
        for name in students:
            lines[f"student: {name}"] = sorted(
                (r["calls"], r[key]) for n, r in rows.items() if n.startswith(f"{name},")
            )
        for name, points in lines.items():
            shown = [(x, y) for x, y in points if x <= most + 0.5]
            style = "o-" if name.startswith("student") else "x--"
            axes.plot([x for x, _ in shown], [y for _, y in shown], style, label=name, markersize=4, linewidth=1.2)
        if key == "judge":
            axes.axhline(rows[full][key], color="gray", linewidth=0.8, label="50 steps")
        axes.set(xlabel="calls (guided ones)", ylabel=label, xlim=(0, most + 0.5))
        axes.grid(True, alpha=0.25)
    figure.axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=150)
