"""What the engine itself costs: python benchmarks/overhead.py > benchmarks/overhead.md

Denoises with a backbone that answers at once, so that all the time is the engine's, the solver's and the
policy's, and times `import skipstone` in fresh interpreters.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

import torch

from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Estimate, Problem, Query
from skipstone.numerics.schedule import Cosine

STEPS, REPEATS = 50, 7
POLICIES = (("fixed", "ddim"), ("third_order", "ddim"), ("error_control", "ddim"), ("adaptive_grid", "kriging"))
SHAPES = ((8, 8, 8), (4, 64, 64))
BATCHES = (1, 8)


class InstantBackbone:
    """Answers every query with half of the sample."""

    schedule, sites, branches = Cosine(), (), 1

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        return [Estimate(q.x) for q in queries]


def overhead(policy: str, solver: str, shape: tuple[int, ...], batch: int) -> float:
    """Median milliseconds per sample and step, of CPU time."""
    backbone, way = InstantBackbone(), registry.parse("solver", solver)
    grid = (*(1 - i / STEPS for i in range(STEPS)), 0.0)
    problems = [
        Problem(backbone.schedule, torch.randn(shape, generator=torch.Generator().manual_seed(i)), grid)
        for i in range(batch)
    ]
    times = []
    for _ in range(REPEATS + 1):
        start = time.process_time()
        found = denoise_many(backbone, problems, way, registry.parse("policy", policy))
        times.append((time.process_time() - start) / sum(len(result.run.past) for result in found))
    return 1000 * statistics.median(times[1:])


def import_seconds() -> float:
    """Median seconds that `import skipstone` adds to the start of an interpreter."""

    def run(code: str) -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - start

    pairs = [(run("import skipstone"), run("pass")) for _ in range(REPEATS)]
    return statistics.median(a for a, _ in pairs) - statistics.median(b for _, b in pairs)


if __name__ == "__main__":
    print("# Overhead of the engine\n")
    cores, threads = os.cpu_count(), torch.get_num_threads()
    print(f"CPU milliseconds per sample and step, or attempt at one (median of {REPEATS} runs on {STEPS} steps, a")
    print(f"backbone that answers at once), torch {torch.__version__} on {cores} CPU cores, {threads} thread.")
    print("Made by `python benchmarks/overhead.py`.\n")
    print("| policy, solver | latent | batch 1 | batch 8 |\n|---|---|---|---|")
    for policy, solver in POLICIES:
        for shape in SHAPES:
            cells = " | ".join(f"{overhead(policy, solver, shape, batch):.3f}" for batch in BATCHES)
            print(f"| {policy}, {solver} | {'x'.join(map(str, shape))} | {cells} |")
    print(f"\n`import skipstone` takes {1000 * import_seconds():.0f} ms and loads no array library.")
