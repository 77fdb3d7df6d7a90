"""Whether a server's memory stays flat: python benchmarks/serving_memory.py > benchmarks/serving_memory.md

Draws 10,000 pictures of an analytic model of 48 numbers, whose calls cost next to nothing, in bursts of 50 by four
policies, and fits a line to the resident memory of the process. Linux only: it is read from /proc.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "serving"))

from analytic import served

from skipstone.serving import Engine, Limits, PictureRequest

POLICIES = (
    "fixed @ ddim / trailing / 4",
    "adaptive_grid(calls=5) @ kriging / trailing / 20",
    "stride @ adams / trailing / 12",
    "fixed @ unipc / trailing / 6",
)
BURST = 50


def resident() -> float:
    """Resident memory in MiB."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(pictures: int, every: int) -> list[tuple[int, float]]:
    """(pictures so far, resident MiB), after each `every` pictures."""
    found = []
    with Engine({"analytic": served()}, Limits(queue=1000), 32) as engine:
        for first in range(0, pictures, BURST):
            requests = [
                PictureRequest("abc"[: 1 + k % 3], seed=k, policy=POLICIES[k % len(POLICIES)], priority=k % 3)
                for k in range(first, first + BURST)
            ]
            for future in engine.submit_all(requests):
                future.result()
            if (first + BURST) % every == 0:
                found.append((first + BURST, resident()))
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=10_000)
    parser.add_argument("--every", type=int, default=1_000)
    parser.add_argument("--most", type=float, default=1.0, help="KiB a picture, beyond which the exit code is 1")
    chosen = parser.parse_args()
    found = measure(chosen.pictures, chosen.every)
    later = found[len(found) // 5 :]  # caches fill up first
    slope = 1024 * float(np.polyfit(*zip(*later, strict=True), 1)[0])
    print("# Memory of the server\n")
    print(f"Resident memory while {chosen.pictures:,} pictures of an analytic model are drawn, by four policies.")
    print("Made by `python benchmarks/serving_memory.py`.\n")
    print("| pictures | MiB |\n|--:|--:|")
    for pictures, size in found:
        print(f"| {pictures:,} | {size:.1f} |")
    print(f"\nSlope without the first fifth: {slope:.3f} KiB a picture (at most {chosen.most:g}).")
    sys.exit(slope > chosen.most)
