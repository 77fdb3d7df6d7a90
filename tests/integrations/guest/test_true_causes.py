"""What diffusers itself cannot run, or what is none of its pipelines, is refused with the true cause."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch

import skipstone
from skipstone.errors import GuestError

from .families import build

COSINE = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing").config
CASES = [
    (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    (diffusers.DPMSolverMultistepScheduler, {"use_exponential_sigmas": True}),
    (diffusers.UniPCMultistepScheduler, {"use_karras_sigmas": True}),
    (diffusers.DPMSolverSinglestepScheduler, {"use_karras_sigmas": True}),
]


@pytest.mark.parametrize("policy", ["fixed", "third_order"])
@pytest.mark.parametrize(("scheduler", "spacing"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_equal_first_timesteps_are_named_where_bare_diffusers_crashes(
    scheduler: type, spacing: dict[str, bool], policy: str
) -> None:
    pipe = build("sd15")
    pipe.scheduler = scheduler.from_config(COSINE, **spacing)  # type: ignore[attr-defined]
    with pytest.raises((IndexError, AssertionError)):
        pipe("a cat", num_inference_steps=20, output_type="latent")
    with skipstone.adapt(pipe, policy), pytest.raises(GuestError, match=r"The first timesteps of .* are equal"):
        pipe("a cat", num_inference_steps=20, output_type="latent")


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "HeunDiscreteScheduler"])
def test_schedulers_that_do_not_round_run(scheduler: str) -> None:
    pipe = build("sd15")
    pipe.scheduler = getattr(diffusers, scheduler).from_config(COSINE, use_karras_sigmas=True)

    def run() -> torch.Tensor:
        made = pipe("a cat", num_inference_steps=6, output_type="latent", generator=torch.Generator().manual_seed(0))
        return made.images  # type: ignore[no-any-return]

    bare = run()
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(run(), bare)


@pytest.fixture
def modular() -> Any:
    """A modular Stable Diffusion XL without its parts."""
    return pytest.importorskip("diffusers.modular_pipelines").StableDiffusionXLAutoBlocks().init_pipeline()


def test_a_modular_pipeline_is_named(modular: Any) -> None:
    with pytest.raises(GuestError, match=r"StableDiffusionXLModularPipeline is a modular pipeline of diffusers"):
        skipstone.adapt(modular, "fixed")


OLD = tuple(map(int, diffusers.__version__.split(".")[:2])) < (0, 36)


@pytest.mark.skipif(OLD, reason="a modular pipeline takes no parts that it has not loaded itself")
def test_the_parts_of_a_modular_pipeline_make_one_that_works(modular: Any) -> None:
    parts = {name: part for name, part in build("sdxl").components.items() if part is not None}
    modular.update_components(**parts)
    kind = diffusers.StableDiffusionXLPipeline
    names = [name for name in inspect.signature(kind.__init__).parameters if name in parts]
    with skipstone.adapt(kind(**{name: getattr(modular, name) for name in names}), "fixed"):
        pass
