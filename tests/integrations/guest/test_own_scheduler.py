"""`skipstone.Scheduler` in real pipelines: those whose loop a solver of ours cannot take over, bare and adapted."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import skipstone
from skipstone.errors import GuestError
from skipstone.integrations.diffusers.scheduler_specs import find_scheduler_spec
from skipstone.testing import guest

from .families import FAMILIES, build
from .families.unets import base_and_refiner

STEPS = 6


def run(pipe: Any, family: str, batch: int = 2, **more: Any) -> torch.Tensor:
    """The samples of a call."""
    return FAMILIES[family].after(pipe(**{**FAMILIES[family].inputs(pipe, batch, STEPS), **more}))


def ours_in(pipe: Any, **changes: Any) -> Any:
    """The same pipeline with our scheduler."""
    pipe.scheduler = skipstone.Scheduler.from_config(pipe.scheduler.config, **changes)
    return pipe


def gap(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative distance."""
    return float((a.double() - b.double()).norm() / b.double().norm())


FIRST_ORDER = {  # family -> the scheduler whose step is of first order
    "sd15-img2img": ("DDIM", {"clip_sample": False}),
    "sd15-inpaint": ("DPMSolverMultistep", {"solver_order": 1, "use_karras_sigmas": True}),
    "controlnet-sd": ("DDIM", {"clip_sample": False, "set_alpha_to_one": True}),
    "sdxl-inpaint": ("EulerDiscrete", {}),
    "sd3": ("FlowMatchEulerDiscrete", {}),
    "flux-img2img": ("FlowMatchEulerDiscrete", {}),
    "wan22": ("DPMSolverMultistep", {"solver_order": 1}),
    "text-to-video-sd": ("DDIM", {}),
}


@pytest.mark.parametrize("family", FIRST_ORDER)
def test_first_order_steps_make_the_picture_of_diffusers(family: str) -> None:
    name, settings = FIRST_ORDER[family]
    pipe = build(family)
    pipe.scheduler = getattr(diffusers, f"{name}Scheduler").from_config(pipe.scheduler.config, **settings)
    theirs = run(pipe, family)
    assert gap(run(ours_in(pipe, solver="ddim"), family), theirs) < 1e-4
    ours = run(ours_in(pipe, solver="adams(of='x0')"), family)
    assert torch.isfinite(ours.float()).all()
    assert not torch.equal(ours, theirs)


def test_a_base_hands_over_to_its_refiner() -> None:
    """Also to one with a scheduler of diffusers: the sample between them is on the same scale."""
    base, fine = build("sdxl"), build("sdxl-refiner")
    theirs = base_and_refiner(base, fine, 2, STEPS)
    mixed = base_and_refiner(ours_in(base, solver="ddim"), fine, 2, STEPS)
    both = base_and_refiner(base, ours_in(fine, solver="ddim"), 2, STEPS)
    assert gap(mixed, theirs) < 1e-4
    assert gap(both, theirs) < 1e-4


def test_a_callback_may_edit_the_sample() -> None:
    """What a callback puts in its place is what the next step starts from."""
    pipe, seen = ours_in(build("sd15")), []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        seen.append(int(timestep))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == STEPS - 1 else {}

    end = run(pipe, "sd15", callback_on_step_end=callback)
    assert seen == pipe.scheduler.timesteps.tolist()
    assert not end.any()


@pytest.mark.parametrize("check", guest.CHECKS, ids=lambda check: check.__name__)
def test_it_is_adapted_as_any_other(check: Any) -> None:
    family = FAMILIES["sd15-inpaint"]
    check(guest.GuestSetup(lambda: ours_in(build(family.name)), family.inputs, family.after))


@pytest.mark.parametrize("family", ["sd15-img2img", "wan22"])
def test_error_control_saves_calls(family: str) -> None:
    pipe = ours_in(build(family))
    steps = partial(run, pipe, family, num_inference_steps=12)
    bare = steps()
    with skipstone.adapt(pipe, "error_control(tol=0.3)") as adapted, guest.count_rows(pipe) as counter:
        assert torch.isfinite(steps().float()).all()
    assert 0.0 < adapted.last.saved < 1.0
    assert counter.rows == sum(s.calls * s.run.branches for s in adapted.last)
    with skipstone.adapt(pipe, "fixed"):
        assert torch.equal(steps(), bare)
    assert torch.equal(steps(), bare)


@pytest.mark.parametrize("family", ["sdxl", "flux"])
def test_it_is_taken_over_as_any_other(family: str) -> None:
    """By the solver that it has itself, the picture is the same."""
    pipe = ours_in(build(family))
    bare = run(pipe, family)
    with skipstone.adapt(pipe, "fixed", solver="adams(of='x0')"):
        assert gap(run(pipe, family), bare) < 1e-4
    with skipstone.adapt(pipe, "stride(tol=0.02)") as adapted:
        assert torch.isfinite(run(pipe, family)).all()
    assert all(sample.calls > 0 for sample in adapted.last)


def test_a_pipeline_is_saved_and_loaded(tmp_path: Path) -> None:
    pipe = ours_in(build("sd15"), solver="adams", grid="karras")
    pipe.save_pretrained(tmp_path)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is skipstone.Scheduler
    assert (loaded.scheduler.config.solver, loaded.scheduler.config.grid) == ("adams", "karras")
    assert torch.equal(run(loaded, "sd15"), run(pipe, "sd15"))


def test_a_stranger_of_the_same_name_is_not_taken_for_it() -> None:
    kind = type("Scheduler", (), {"step": lambda self: None, "__module__": "elsewhere"})
    with pytest.raises(GuestError, match="has a step of its own"):
        find_scheduler_spec(kind())
