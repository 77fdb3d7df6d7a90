"""Memory and time of attention whole, in slices and in windows: `python -m research.architecture.attention_memory`.

A transformer of Pebble-DiT's width with two blocks and random weights, on larger latents than it is trained for, where
attention's scores are what fills the memory. Each way runs in a process of its own. Writes `attention.json` and
`attention.md` beside this file.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from skipstone_pebble.attention import (
    MaskedJointAttnProcessor,
    SlicedJointAttnProcessor,
    WindowedJointAttnProcessor,
)

HERE = Path(__file__).parent
WAYS: dict[str, Any] = {
    "whole": MaskedJointAttnProcessor(),
    "sliced, 1 row": SlicedJointAttnProcessor(rows=1),
    "sliced, 1 row, 1 head": SlicedJointAttnProcessor(rows=1, heads=1),
    "sliced, 256 queries": SlicedJointAttnProcessor(queries=256),
    "sliced, 1 row, 1 head, 256 queries": SlicedJointAttnProcessor(1, 1, 256),
    "windowed, 4 to each side": WindowedJointAttnProcessor(4),
    "windowed, covers the picture": WindowedJointAttnProcessor(1000),
    "diffusers' own (SDPA, no mask)": None,
}
WORDS, ROWS = 25, 2
MIB = 2**20


def run(way: str, side: int) -> dict[str, float]:
    """Peak memory of tensors, growth of the process, seconds, and the largest difference to the whole."""
    from diffusers import SD3Transformer2DModel

    from skipstone_train.architecture.cost import PeakMemory

    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = SD3Transformer2DModel(
        sample_size=side, patch_size=1, in_channels=8, out_channels=8, num_layers=2, attention_head_dim=64,
        num_attention_heads=3, joint_attention_dim=256, caption_projection_dim=192, pooled_projection_dim=256,
        pos_embed_max_size=side, qk_norm="rms_norm",
    ).eval()  # fmt: skip
    x, words = torch.randn(ROWS, 8, side, side), torch.randn(ROWS, WORDS, 256)
    told = {"encoder_hidden_states": words, "pooled_projections": torch.randn(ROWS, 256)}
    if WAYS[way] is not None:
        network.set_attn_processor(WAYS[way])
    with torch.inference_mode():
        small = torch.randn(ROWS, 8, 4, 4)
        network(small, timestep=torch.full((ROWS,), 500.0), **told)  # what libraries set up once
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        made = network(x, timestep=torch.full((ROWS,), 500.0), **told, return_dict=False)[0]
        seconds = time.perf_counter() - began
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        with PeakMemory() as memory:
            network(x, timestep=torch.full((ROWS,), 500.0), **told)
        if side <= 32:
            network.set_attn_processor(MaskedJointAttnProcessor())
            whole = network(x, timestep=torch.full((ROWS,), 500.0), **told, return_dict=False)[0]
            difference = float((made - whole).abs().max())
        else:
            difference = -1.0
    return {"tensors": memory.peak / MIB, "process": grown, "seconds": seconds, "difference": difference}


def write_table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The results as Markdown."""
    lines = [
        "Made by `python -m research.architecture.attention_memory`. Two blocks of width 192 with 3 heads, 2 rows,",
        "float32, one thread. Tensors: most bytes of tensors alive at once, without the weights and what operations",
        "hold within themselves. Process: growth of a process's largest memory in its first call. Difference: the",
        "largest one to `whole`. The seconds of the committed table are of a busy machine.",
        "",
        "| picture tokens | attention | tensors, MiB | process, MiB | seconds | difference |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for side, ways in found.items():
        for way, one in ways.items():
            difference = "" if one["difference"] < 0 else f"{one['difference']:.1g}"
            lines.append(
                f"| {int(side) ** 2:,} | {way} | {one['tensors']:.0f} | {one['process']:.0f} | {one['seconds']:.2f} | "
                f"{difference} |"
            )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m research.architecture.attention_memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--sides", type=int, nargs="+", default=[32, 48], help="of the latents")
    parser.add_argument("--one", help="print one way alone")
    given = parser.parse_args(arguments)
    if given.one is not None:
        print(json.dumps(run(given.one, given.sides[0])))
        return
    found: dict[str, dict[str, Any]] = {}
    for side in given.sides:
        for way in WAYS:
            command = [
                sys.executable,
                "-m",
                "research.architecture.attention_memory",
                "--one",
                way,
                "--sides",
                str(side),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found.setdefault(str(side), {})[way] = json.loads(done.stdout.splitlines()[-1])
            print(side, way, found[str(side)][way], flush=True)
    (HERE / "attention.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (HERE / "attention.md").write_text(write_table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
