"""The loss of every stage as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skipstone.cli.files import write_atomically

from .loop import LOG

LOSSES = "losses.png"


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's log, by their steps; of a step that a resumed training took again, the later line."""
    file = folder / LOG
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    by_step = {line["step"]: line for line in map(json.loads, lines)}
    return [by_step[step] for step in sorted(by_step)]


def write_losses(folder: Path, trainings: Mapping[str, Path]) -> None:
    """Write `losses.png` in a folder: the loss of each training, by its name, over its steps.

    Targets of consistency distillation get harder as the student gets better: its loss need not fall.
    """
    from matplotlib.figure import Figure

    from skipstone.evaluation.figures import INK, OURS, PAPER, QUIET, RULE, figure_to_png

    figure = Figure(figsize=(8, 4), dpi=120, facecolor=PAPER, layout="constrained")
    axis = figure.subplots()
    colours: Sequence[str] = list(OURS)
    for number, (name, place) in enumerate(trainings.items()):
        lines = read_log(place)
        steps, losses = [line["step"] for line in lines], [line["loss"] for line in lines]
        axis.plot(steps, losses, ".-", color=colours[number % len(colours)], lw=1.2, ms=4, label=name)
    axis.set_yscale("log")
    axis.set_xlabel("training step", fontsize=9.5, color=QUIET)
    axis.set_title("Loss, mean of 25 steps", loc="left", fontsize=10.5, color=INK)
    axis.grid(True, which="both", color=RULE, lw=0.6)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=9, labelcolor=QUIET)
    axis.legend(frameon=False, fontsize=9, labelcolor=INK)
    write_atomically({folder / LOSSES: figure_to_png(figure)})
