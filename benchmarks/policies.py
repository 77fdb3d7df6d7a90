"""Policies against fixed samplers on Pebble: `python benchmarks/policies.py` writes benchmarks/policies.md.

Prompts come from combinations that training never saw. Each picture is compared with two others of the same
seed: the full run of its own sampler, and the converged picture (DPM-Solver++ 2M, 400 steps). Network calls are
counted by a hook on the U-Net; a call is one guided evaluation.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np

from skipstone import registry
from skipstone.evaluation.columns import parse_columns
from skipstone.evaluation.engine_subject import denoise_counted
from skipstone.metrics import PSNR, Sample
from skipstone_pebble import scenes
from skipstone_pebble.model import Pebble

CONVERGED = "fixed @ dpmpp / karras / 400"
COLUMNS = [
    "fixed @ dpmpp / trailing / 50",
    "fixed @ dpmpp / trailing / 20",
    "fixed @ dpmpp(order=3) / trailing / 20",
    "fixed @ unipc / trailing / 20",
    "fixed @ dpmpp / logsnr / 20",
    "fixed @ dpmpp / karras / 20",
    "fixed @ ddim / trailing / 50",
    "fixed @ ddim / trailing / 20",
    "third_order_released @ ddim / trailing / 50",
    "third_order @ ddim / trailing / 50",
    "third_order @ dpmpp / trailing / 50",
    "third_order | forecast(of='v', clock='t') @ dpmpp / trailing / 50",
    "interval(every=3, of='v', clock='t') @ dpmpp / trailing / 50",
    "interval(every=4, warmup=9, of='v', clock='t') @ dpmpp / trailing / 50",
    "interval(every=4, warmup=9, of='v', clock='t') @ ddim / trailing / 50",
    "error_control @ ddim / trailing / 50",
    "error_control @ dpmpp / trailing / 50",
    "error_control(tol=0.01) @ dpmpp / trailing / 50",
    "error_control(tol=0.01, max_skip=4) @ dpmpp / trailing / 50",
    "error_control(of='x0', clock='logsnr') @ dpmpp / trailing / 50",
    "error_control(of='eps', clock='logsnr') @ dpmpp / trailing / 50",
    "error_control | guidance_gate(below=0.3) @ dpmpp / trailing / 50",
    "fixed @ dpmpp / trailing / 16",
    "fixed @ dpmpp / trailing / 25",
    "fixed @ unipc / trailing / 50",
    "fixed @ unipc / trailing / 22",
    "fixed @ unipc / trailing / 18",
    "fixed @ dpmpp / trailing / 22",
    "error_control @ unipc / trailing / 50",
    "error_control(tol=0.01) @ unipc / trailing / 50",
    "third_order @ unipc / trailing / 50",
    "interval(every=3, of='v', clock='t') @ unipc / trailing / 50",
    "interval(every=4, warmup=9, of='v', clock='t') @ unipc / trailing / 50",
    "interval(every=3, warmup=7, of='v', clock='t') @ unipc / trailing / 50",
]


def decibels(values: list[float]) -> str:
    """median / p10 / worst."""
    shown = (statistics.median(values), float(np.quantile(values, 0.1)), min(values))
    return " / ".join(f"{v:.1f}" for v in shown)


def rows(model: Pebble, prompts: list[str], seed: int, specs: list[str]) -> list[str]:
    """One Markdown row for every column."""
    solver, grid = registry.parse("solver", "dpmpp"), registry.parse("grid", "karras")
    columns = parse_columns(specs, solver, grid, 50)
    problems = [model.problem(p, seed + i, 1) for i, p in enumerate(prompts)]
    pictures: dict[str, list[np.ndarray]] = {}

    def draw(column):  # type: ignore[no-untyped-def]
        grid_times = column.grid.times(model.schedule, column.steps)
        batch = [type(p)(p.schedule, p.x, grid_times, p.cond, p.seed, p.branches) for p in problems]
        results, seconds = denoise_counted(model, batch, column)
        return model.decode([r.x for r in results]), [r.run.cost for r in results], seconds / len(batch)

    def closeness(made: list[np.ndarray], full: list[np.ndarray]) -> list[float]:
        psnr = PSNR()
        pairs = zip(made, full, strict=True)
        return [min(99.0, psnr.measure(Sample(a, "", 0.0, b, None))) for a, b in pairs]

    target, _, _ = draw(parse_columns([CONVERGED], solver, grid, 50)[0])
    out = []
    for column in columns:
        full_spec = f"fixed @ {registry.spell(column.solver)} / {registry.spell(column.grid)} / 50"
        made, calls, seconds = draw(column)
        if full_spec not in pictures:
            pictures[full_spec] = draw(parse_columns([full_spec], solver, grid, 50)[0])[0]
        cost = f"{statistics.fmean(calls):.1f} | {min(calls):g}-{max(calls):g} | {1000 * seconds:.0f}"
        row = (
            f"| `{column.label}` | {cost} "
            f"| {decibels(closeness(made, pictures[full_spec]))} | {decibels(closeness(made, target))} |"
        )
        print(row, flush=True)
        out.append(row)
    return out


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pebble")
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--seed", type=int, default=1000)
    parser.add_argument("--columns", nargs="*", default=COLUMNS)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    given = parser.parse_args()
    pool = [p for kind in ("single", "pair") for p in scenes.withheld_prompts(kind)]
    prompts = [pool[k] for k in np.random.default_rng(given.seed).permutation(len(pool))[: given.prompts]]
    head = [
        "# Policies on Pebble\n",
        f"Made by `python benchmarks/policies.py --prompts {given.prompts} --seed {given.seed}`. PSNR in dB of",
        "unrounded pixels: median / worst tenth / worst. Time on 2 shared cores, for one sample of a batch.\n",
        "| column | mean calls | least-most | ms | to its own full run | to the converged picture |",
        "|---|---|---|---|---|---|",
    ]
    body = rows(Pebble.load(given.model), prompts, given.seed, given.columns)
    given.out.write_text("\n".join([*head, *body]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
