"""MLX beside torch, from the same noise: python benchmarks/mlx_parity.py > benchmarks/mlx_parity.md

Whole runs of 50 steps by the engine, guidance 3, on the two models that ship: how far apart the latents end, whether
every decision is the same, and what half precision and quantised weights do to the pictures. `--prompts N` takes
fewer prompts.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import mlx.core as mx
import numpy as np
import torch

import skipstone
from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.engine.requests import Result
from skipstone.testing import compare_decisions
from skipstone_pebble.model import Pebble

MODELS = ("pebble", "pebble-dit")
PROMPTS = ("a cat on a red background", "a red apple left of a rocket", "a house", "a small fox above a tree")
STEPS, SOLVER = 50, "unipc"
TIMES = "0.98 0.94 0.88 0.8 0.7 0.6 0.5 0.4 0.3 0.2 0.1 0.04"
POLICIES = ("fixed", "third_order", "error_control", "stride", f"path(times={TIMES!r})")
NUMBERS = (("float16", None), ("bfloat16", None), ("float32", 8), ("float32", 4))
DRAWN = "error_control"  # the policy under which numbers are compared


def runs(model: Any, spec: str, prompts: Sequence[str]) -> list[Result]:
    """One run of each prompt, in one batch."""
    policy = registry.parse("policy", spec)
    problems = [model.problem(prompt, seed, STEPS) for seed, prompt in enumerate(prompts)]
    return denoise_many(model.backbone, problems, registry.parse("solver", policy.solver or SOLVER), policy)


def distance(ours: Any, theirs: Any) -> float:
    """Largest difference, over the largest value."""
    ours, theirs = np.array(ours), np.array(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def psnr(ours: Any, theirs: Any) -> float:
    """Of pictures in [0, 1], in dB."""
    return float(-10 * np.log10(max(1e-12, float(((ours - theirs) ** 2).mean()))))


def compare_runs(model: str, prompts: Sequence[str]) -> None:
    """A row for each policy, in float32."""
    pipe, pebble = skipstone.mlx.load(model), Pebble.load(model)
    for spec in POLICIES:
        ours, theirs = runs(pipe, spec, prompts), runs(pebble, spec, prompts)
        policy = registry.parse("policy", spec)
        found = [compare_decisions(policy, [b], [a]) for a, b in zip(ours, theirs, strict=True)]
        equal = sum(one.at is None for one in found)
        ties = ", ".join(f"{p!r} at attempt {one.at}" for p, one in zip(prompts, found, strict=True) if one.tie)
        same = [distance(a.x, b.x) for a, b, one in zip(ours, theirs, found, strict=True) if one.at is None]
        decisions = sum(len(r.run.attempts) for r in theirs)
        calls = np.mean([r.run.cost for r in ours]), np.mean([r.run.cost for r in theirs])
        name = spec.partition("(")[0]
        print(
            f"| {model} | {name} | {calls[0]:.2f} / {calls[1]:.2f} | {decisions} | {equal} of {len(found)} | "
            f"{ties or 'none'} | {max(same, default=float('nan')):.1e} |",
            flush=True,
        )


def compare_numbers(model: str, prompts: Sequence[str]) -> None:
    """A row for each dtype and number of bits, against float32 on MLX."""
    exact = skipstone.mlx.load(model)
    wanted = exact.decode([r.x for r in runs(exact, DRAWN, prompts)])
    for dtype, bits in NUMBERS:
        pipe = skipstone.mlx.load(model, dtype=dtype, bits=bits)
        values = [
            psnr(a, b) for a, b in zip(pipe.decode([r.x for r in runs(pipe, DRAWN, prompts)]), wanted, strict=True)
        ]
        weights = dtype if bits is None else f"{bits} bits"
        print(f"| {model} | {weights} | {np.median(values):.1f} | {min(values):.1f} |", flush=True)


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    prompts = PROMPTS[: parser.parse_args().prompts]
    torch.set_num_threads(1)
    print("# MLX beside torch\n\nWritten by `python benchmarks/mlx_parity.py`.\n")
    print(
        f"MLX {version('mlx')} on {mx.default_device().type.name}, torch {version('torch')} on cpu, "
        f"{platform.system()} {platform.machine()}; {len(prompts)} prompts, {STEPS} steps, guidance 3, float32.\n"
    )
    print("| model | policy | mean calls, MLX / torch | decisions | runs with equal decisions | ties | latents |")
    print("|---|---|--:|--:|--:|---|--:|")
    for model in MODELS:
        compare_runs(model, prompts)
    print(
        "\n*ties*: runs that differ first where a signal lies within 1e-4 of its threshold. *latents*: largest "
        "difference at the end over the largest value, over runs with equal decisions.\n"
    )
    print(f"Pictures under `{DRAWN}` against float32 on MLX, PSNR in dB:\n")
    print("| model | weights | median | worst |\n|---|---|--:|--:|")
    for model in MODELS:
        compare_numbers(model, prompts)


if __name__ == "__main__":
    sys.exit(main())
