"""What the guest costs and saves on Pebble's own diffusers pipeline: python benchmarks/guest.py > benchmarks/guest.md

The bare pipeline and its adapted runs take turns, so that a change of the machine's mood falls on all of them; ratios
are taken within a turn. `third_order(max_skip=0)` measures, decides and never skips: what it costs is all overhead.
"""

from __future__ import annotations

import gc
import platform
import statistics
import sys
import time
from contextlib import nullcontext
from typing import Any

import diffusers
import torch

import skipstone
import skipstone_pebble as pebble

STEPS, TURNS = 50, 9
POLICIES = ("fixed", "third_order(max_skip=0)", "error_control(tol=0)", "third_order", "error_control")
PROMPTS = ["a red apple on a blue background", "a cat left of a rocket", "a fox", "a house above a tree"] * 2


def pipeline() -> Any:
    """Pebble as diffusers loads it, with the sampler that Pebble is compared on."""
    diffusers.utils.logging.set_verbosity_error()
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pebble.path(), safety_checker=None)
    pipe.scheduler = diffusers.UniPCMultistepScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seconds(pipe: Any, batch: int) -> float:
    """One call, latents out."""
    generators = [torch.Generator().manual_seed(i) for i in range(batch)]
    began = time.perf_counter()
    pipe(PROMPTS[:batch], num_inference_steps=STEPS, guidance_scale=3.0, generator=generators, output_type="latent")
    return time.perf_counter() - began


def time_in_turns(pipe: Any, batch: int) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each policy and of the bare pipeline, turn by turn, and the share of calls saved."""
    found: dict[str, list[float]] = {name: [] for name in ("bare", *POLICIES)}
    saved: dict[str, float] = {}
    seconds(pipe, batch)
    for turn in range(TURNS):
        order = list(found) if turn % 2 else list(found)[::-1]
        for name in order:
            with nullcontext() if name == "bare" else skipstone.adapt(pipe, name) as guest:
                found[name].append(seconds(pipe, batch))
            if guest is not None:
                saved[name] = guest.last.saved
    return found, saved


def history(pipe: Any, batch: int) -> tuple[int, int]:
    """Most bytes of latents alive within an adapted run beyond a bare one's, and bytes of one sample's latent."""

    def alive() -> int:
        seen = {o.untyped_storage().data_ptr(): o.untyped_storage().nbytes() for o in gc.get_objects() if _latent(o)}
        return sum(seen.values())

    def peak(policy: str | None) -> int:
        most = [0]

        def look(pipe: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
            most[0] = max(most[0], alive())
            return values

        with skipstone.adapt(pipe, policy) if policy else nullcontext():
            pipe(PROMPTS[:batch], num_inference_steps=12, output_type="latent", callback_on_step_end=look)
        return most[0]

    config = pipe.unet.config
    return peak("error_control") - peak(None), 4 * config.in_channels * config.sample_size**2


def _latent(o: Any) -> bool:
    return isinstance(o, torch.Tensor) and not isinstance(o, torch.nn.Parameter) and o.ndim in (3, 4)


def main() -> None:
    pipe = pipeline()
    print("# The guest on Pebble\n")
    print(
        f"`python benchmarks/guest.py`, {time.strftime('%Y-%m-%d')}, {platform.machine()}, {torch.get_num_threads()} "
        f"threads, torch {torch.__version__}, diffusers {diffusers.__version__}: StableDiffusionPipeline with UniPC, "
        f"{STEPS} steps, guidance 3, {TURNS} turns. Times are medians of ratios within a turn, with the quartiles.\n"
    )
    print("| Batch | Policy | calls saved | time saved | quartiles | overhead per sample and step |")
    print("|--:|---|--:|--:|--:|--:|")
    for batch in (1, 4, 8):
        found, saved = time_in_turns(pipe, batch)
        for name in POLICIES:
            ratios = sorted(1 - a / b for a, b in zip(found[name], found["bare"], strict=True))
            low, middle, high = statistics.quantiles(ratios, n=4)
            extra = statistics.median(a - b for a, b in zip(found[name], found["bare"], strict=True))
            cost = f"{1000 * extra / (STEPS * batch):.2f} ms" if saved[name] == 0 else ""
            print(f"| {batch} | `{name}` | {saved[name]:.0%} | {middle:+.1%} | {low:+.1%} .. {high:+.1%} | {cost} |")
            sys.stdout.flush()
    print("\nMemory beyond the bare run's, in latents of one sample (history of the output, never of features):\n")
    for batch in (1, 4):
        extra, latent = history(pipe, batch)
        print(f"- batch {batch}: {extra / latent / batch:.0f} latents a sample")


if __name__ == "__main__":
    main()
