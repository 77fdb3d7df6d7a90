"""On Pebble, the guest and the engine's own loop must be the same thing: equal decisions, equal latents."""

from __future__ import annotations

from functools import cache
from typing import Any

import diffusers
import pytest
import torch

import skipstone
import skipstone_pebble as pebble
from skipstone.engine.contracts import Policy, Run
from skipstone.engine.drivers import denoise_many
from skipstone.testing import letters

PROMPTS = ["a red apple on a blue background", "a cat left of a rocket", "a fox"]
STEPS = 25  # divides 1000: otherwise diffusers' DDIM steps beside its own timesteps
SOLVERS = {"ddim": "DDIMScheduler", "dpmpp": "DPMSolverMultistepScheduler", "unipc": "UniPCMultistepScheduler"}
POLICIES = [
    "fixed",
    "third_order",
    "third_order_released",
    "interval(every=3)",
    "error_control",
    "guidance_gate(below=0.6)",
    "guidance_gate(below=0.8, every=4, order=1)",
    "early_stop(tol=0.3)",
    "budget(calls=11)",
    "third_order | forecast(order=1, of='v', clock='t') | early_stop(tol=0.3)",
]


@cache
def engine() -> skipstone.Pebble:
    return skipstone.Pebble.load()


@cache
def pipeline() -> Any:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pebble.path(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def problems() -> list[Any]:
    return [engine().problem(prompt, seed, STEPS, "trailing") for seed, prompt in enumerate(PROMPTS)]


def guest(policy: Policy | str, scheduler: str, **how: Any) -> tuple[torch.Tensor, skipstone.Adapted]:
    pipe = pipeline()
    kind = getattr(diffusers, SOLVERS[scheduler])
    pipe.scheduler = kind.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    latents = torch.stack([p.x for p in problems()])
    with skipstone.adapt(pipe, policy, **how) as adapted:
        made = pipe(
            PROMPTS,
            num_inference_steps=STEPS,
            guidance_scale=engine().guidance,
            latents=latents,
            output_type="latent",
        )
    return made.images, adapted


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("spec", POLICIES)
def test_guest_and_engine_agree(spec: str, solver: str) -> None:
    results = denoise_many(engine().backbone, problems(), skipstone.solver(solver), skipstone.policy(spec))
    latents, adapted = guest(spec, solver)
    for result, sample, latent in zip(results, adapted.last, latents, strict=True):
        assert sample.decisions == letters(result.run), "a decision differs: is a signal within 1e-4 of its threshold?"
        assert sample.run.cost == pytest.approx(result.run.cost)
        assert sample.calls == pytest.approx(result.run.cost)
        assert gap(latent, result.x) < 1e-4


@pytest.mark.parametrize(
    ("spec", "solver"),
    [("fixed", "unipc"), ("error_control", "unipc"), ("pid", "dpm_adaptive"), ("third_order", "heun")],
)
def test_a_takeover_is_the_engine_in_the_first_step(spec: str, solver: str) -> None:
    results = denoise_many(engine().backbone, problems(), skipstone.solver(solver), skipstone.policy(spec))
    latents, adapted = guest(spec, "ddim", solver=solver)
    for result, sample, latent in zip(results, adapted.last, latents, strict=True):
        assert sample.decisions == letters(result.run)
        assert sample.calls == pytest.approx(result.run.cost)
        assert gap(latent, result.x) < 1e-4


def test_signals_are_those_of_the_engine() -> None:
    spec = "error_control | third_order(tol=0, max_skip=0)"
    results = denoise_many(engine().backbone, problems(), skipstone.solver("unipc"), skipstone.policy(spec))
    _, adapted = guest(spec, "unipc")

    def signals(run: Run) -> list[float]:
        return [value for a in run.past for _, value in sorted(a.signals.items())]

    for result, sample in zip(results, adapted.last, strict=True):
        assert signals(sample.run) == pytest.approx(signals(result.run), rel=1e-3)
        assert len(signals(result.run)) > STEPS
