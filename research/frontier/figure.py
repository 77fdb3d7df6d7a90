"""The frontier's picture: `python -m research.frontier.figure NETWORKS --out docs/images/frontier.png`.

Four lines over the network calls of a picture, each the mean over the networks: the default with its constants chosen
on other families, the same tuned on other samples of the network, the best fixed sampler with as many calls (the best
at the median above, the best in p10 below), and the usual full run (UniPC, 50 steps). Columns come from `--runs`, as
`table.py` leaves them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from research.frontier.measure import Measured, low
from research.frontier.networks import find_network
from research.frontier.rivals import BAR_CALLS, CLIPS, SAMPLES
from research.frontier.table import CONSTANTS, best_fixed, rows_of

Point = tuple[float, float, float]  # calls, PSNR at the median, PSNR in p10
STYLES = {
    "default, nothing tuned on the network": ("#1f6feb", "o"),
    "default, tuned on the network": ("#2da44e", "s"),
    "best of 25 fixed samplers, chosen afterwards": ("#24292f", "^"),
}
FULL = "full run: UniPC, 50 steps"


def lines(measured: Measured, constants: dict[str, Any]) -> dict[str, list[Point]]:
    """The points of one network."""
    rows = rows_of(constants, measured.network.name)
    found: dict[str, list[Point]] = {name: [] for name in STYLES}
    for label, name in zip(("default", "tuned"), STYLES, strict=False):
        for calls in BAR_CALLS:
            column = rows[f"{label}, calls={calls}"](measured)
            found[name].append((column["calls"], statistics.median(column["psnr"]), low(column["psnr"])))
    for calls, _, _ in found[next(iter(STYLES))]:
        whole = math.ceil(calls - 1e-9)
        (median, _), (tail, _) = best_fixed(measured, whole)
        found[list(STYLES)[2]].append((whole, median, tail))
    full = measured.column("fixed", "unipc", "trailing", 50)["psnr"]
    return found | {FULL: [(50, statistics.median(full), low(full))]}


def draw(all_lines: Sequence[dict[str, list[Point]]], out: Path) -> None:
    """The mean lines, at the median and in p10, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(2, 1, figsize=(6.2, 7.4), sharex=True, layout="constrained")
    for k, (panel, title) in enumerate(zip(panels, ("median sample", "unlucky tenth"), strict=True), start=1):
        for name, (colour, marker) in STYLES.items():
            points = np.mean([one[name] for one in all_lines], axis=0)
            panel.plot(points[:, 0], points[:, k], color=colour, marker=marker, label=name)
        full = float(np.mean([one[FULL][0][k] for one in all_lines]))
        panel.axhline(full, color="#8c959f", linestyle="--", label=FULL)
        panel.set(title=title, ylabel="PSNR to the converged picture (dB)")
        panel.grid(alpha=0.3)
    panels[1].set_xlabel("network calls of a picture")
    panels[1].legend(loc="lower right", fontsize=9)
    figure.suptitle(f"Mean of {len(all_lines)} small networks, each left out with its family", fontsize=11)
    figure.savefig(out, dpi=150)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.frontier.figure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("networks", nargs="+", help="as of table.py")
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"), help="finished columns")
    parser.add_argument("--out", type=Path, default=Path("docs/images/frontier.png"), help="the picture")
    given = parser.parse_args(arguments)
    constants, all_lines = json.loads(CONSTANTS.read_text(encoding="utf-8")), []
    for name in given.networks:
        samples = CLIPS if name.startswith("clips") else SAMPLES
        network = find_network(name, samples)
        measured = Measured(network, given.runs / f"{network.name}-{samples}-{network.seed}.json")
        all_lines.append(lines(measured, constants))
    draw(all_lines, given.out)


if __name__ == "__main__":
    main()
