"""The presets' fallbacks in pipelines that keep their loop.

    python -m research.zoo.fallbacks > research/zoo/fallbacks.md

A preset (`safe`, `balanced`, `fast`) that cannot take a pipeline's loop over decides by its fallback, in the pipeline's
own steps. Each fallback runs here beside a fixed sampler of as many calls, in diffusers pipelines: Pebble's, and
those of three of the zoo's networks.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DPMSolverMultistepScheduler, StableDiffusionPipeline

import skipstone
from research.zoo.export import load
from research.zoo.pipeline import build_pipeline, call_settings, prompts_of
from skipstone.cli.options import ModelOptions
from skipstone.evaluation.checkpoints import Checkpoint
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.markdown import format_table
from skipstone.evaluation.pipeline_subject import PipelineSubject
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import SampleRequest, Subject
from skipstone.registry import find_fallback

ZOO = Path(__file__).parent
PRESETS = ("safe", "balanced", "fast")
STEPS, CONVERGED = 50, 200  # of the full run, and of the run that stands for the exact solution
Drawn = tuple[list[Any], list[float]]  # pictures in [0, 1], and the calls of each
Draw = Callable[[str, int], Drawn]  # policy, or CONVERGED_RUN; steps
CONVERGED_RUN = "converged"
PAGE = """# The presets' fallbacks, where the pipeline keeps its loop

`python -m research.zoo.fallbacks --count {count}`: {count} samples of each model (Pebble's: prompts of its tuning set).
Each fallback stands above a fixed sampler, the pipeline's own, of as many calls, rounded up. PSNR in dB, median / tenth
percentile, to the full run of {steps} steps and to {converged} steps of DPM-Solver++ (of `adams` for the digits).
"""


def draw_by_subject(subject: Subject, items: Sequence[SampleRequest], exact: str, policy: str, steps: int) -> Drawn:
    """Samples of a model that the commands take; `exact` is the sampler of the converged run."""
    own = subject.default_sampler
    spec = f"fixed @ {exact}" if policy == CONVERGED_RUN else policy
    column = parse_column(spec, own.solver, own.grid, steps)
    generated, _ = subject.draw(items, column)
    return subject.pictures(generated), [one.calls for one in generated]


def pebble(guidance: float, count: int) -> Draw:
    """Pebble in its diffusers pipeline, on prompts of the tuning set."""
    subject = ModelOptions(as_guest=True).subject(guidance)
    prompts = load_prompts("pebble-tuning", limit=count)
    items = [SampleRequest(prompt.text, 500 + seed) for seed, prompt in enumerate(prompts)]
    return partial(draw_by_subject, subject, items, "dpmpp / trailing")


def clips(home: Path, count: int) -> Draw:
    """The zoo's videos in `WanPipeline`."""
    pipe = build_pipeline(ZOO / "clips_flow")
    pipe.save_pretrained(home / "clips")
    facts = _facts("clips_flow")
    subject = PipelineSubject(Checkpoint.find(str(home / "clips")), facts["guidance"], call_settings(facts))
    items = [SampleRequest(prompt, seed) for seed, prompt in enumerate(prompts_of(facts["labels"])[:count])]
    return partial(draw_by_subject, subject, items, "dpmpp / own")


def digits(home: Path, count: int) -> Draw:
    """The zoo's grey digits in `DDIMPipeline`, which takes DDIM alone; without guidance."""
    folder = ZOO / "digits_epsilon_linear"
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    DDIMPipeline(load(folder).core, scheduler).save_pretrained(home / "digits")
    subject = PipelineSubject(Checkpoint.find(str(home / "digits")))
    return partial(draw_by_subject, subject, [SampleRequest("", seed) for seed in range(count)], "adams / own")


def animals(count: int) -> Draw:
    """The zoo's animals in `StableDiffusionPipeline`, which is given their embeddings: guidance 7.5, DDIM."""
    folder, facts = ZOO / "animals_epsilon_scaled_linear", _facts("animals_epsilon_scaled_linear")
    network = load(folder)
    scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    pipe = StableDiffusionPipeline(None, None, None, network.core, scheduler, None, None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    # Its "leading" steps begin where the noise ends only where 1000 is a multiple of the steps and one more.
    converged = DPMSolverMultistepScheduler.from_config(scheduler.config, timestep_spacing="trailing")
    labels = torch.tensor([[k % facts["counts"][0], k % facts["counts"][1]] for k in range(count)])
    call = {
        "prompt_embeds": network.tokens(labels),
        "negative_prompt_embeds": network.tokens(network.unlabelled(count)),
        "guidance_scale": facts["guidance"],
        "output_type": "latent",
    }

    def draw(policy: str, steps: int) -> Drawn:
        exact = policy == CONVERGED_RUN
        pipe.scheduler = converged if exact else scheduler
        with skipstone.adapt(pipe, "fixed" if exact else policy) as adapted:
            generator = [torch.Generator().manual_seed(seed) for seed in range(count)]
            latents = pipe(num_inference_steps=steps, generator=generator, **call).images
        pixels = torch.pixel_shuffle(latents / facts["scale"] + facts["centre"], facts["patch"])
        return list((pixels / 2 + 0.5).clamp(0, 1).numpy()), [sample.calls for sample in adapted.last]

    return draw


def _facts(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ZOO / name / "zoo.json").read_text(encoding="utf-8"))
    return found


def psnr(pictures: Sequence[Any], references: Sequence[Any]) -> str:
    """Median / tenth percentile over the samples, in dB."""
    errors = [float(np.mean((a - b) ** 2)) for a, b in zip(pictures, references, strict=True)]
    found = [-10 * math.log10(max(error, 1e-12)) for error in errors]
    return f"{statistics.median(found):.1f} / {np.quantile(found, 0.1):.1f}"


def rows(name: str, draw: Draw) -> list[list[str]]:
    """The rows of a model: its full run, and each fallback above a fixed sampler of as many calls."""
    full, made = draw("fixed", STEPS)
    exact, _ = draw(CONVERGED_RUN, CONVERGED)
    found = [[name, f"`fixed`, {STEPS} steps", f"{statistics.fmean(made):.1f}", "", psnr(full, exact)]]
    for preset in PRESETS:
        policy = find_fallback("policy", preset)
        pictures, calls = draw(policy, STEPS)
        steps = math.ceil(statistics.fmean(calls) - 1e-9)
        fewer, spent = draw("fixed", steps)
        for label, mine, cost in (
            (f"{preset}: `{policy}`", pictures, calls),
            (f"`fixed`, {steps} steps", fewer, spent),
        ):
            found.append([name, label, f"{statistics.fmean(cost):.1f}", psnr(mine, full), psnr(mine, exact)])
    return found


def main() -> None:
    """Print the page."""
    parser = argparse.ArgumentParser(prog="python -m research.zoo.fallbacks", description=__doc__)
    parser.add_argument("--count", type=int, default=12, help="samples of each model")
    count = parser.parse_args().count
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        home = Path(folder)
        models: dict[str, Callable[[], Draw]] = {
            "`digits_epsilon_linear`, `DDIMPipeline`": partial(digits, home, count),
            "`animals_epsilon_scaled_linear`, guidance 7.5, `StableDiffusionPipeline`": partial(animals, count),
            "`clips_flow`, guidance 3, `WanPipeline`": partial(clips, home, count),
            "Pebble, guidance 3, UniPC": partial(pebble, 3.0, count),
            "Pebble, guidance 7.5, UniPC": partial(pebble, 7.5, count),
        }
        for name, make in models.items():
            print(name, file=sys.stderr, flush=True)
            found += rows(name, make())
    print(PAGE.format(count=count, steps=STEPS, converged=CONVERGED))
    head = ["model", "row", "calls", "PSNR to the full run", "PSNR to the converged run"]
    print("\n".join(format_table([head, *found], [":--", ":--", "--:", "--:", "--:"])))


if __name__ == "__main__":
    main()
