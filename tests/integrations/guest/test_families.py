"""The tiny pipelines themselves, bare: the ground on which the guest's tests stand."""

from __future__ import annotations

import pytest
import torch

from .families import FAMILIES, SCHEDULERS, alone, build, with_scheduler
from .families.unets import base_and_refiner

BATCH, STEPS = 2, 4


def run(name: str, row: int | None = None) -> torch.Tensor:
    """The output for the whole batch, or for one of its samples run alone."""
    family, pipe = FAMILIES[name], build(name)
    inputs = family.inputs(pipe, BATCH, STEPS)
    return family.after(pipe(**(inputs if row is None else alone(inputs, row, BATCH, family.shared))))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_runs_the_same_twice_and_its_samples_do_not_depend_on_each_other(name: str) -> None:
    whole = run(name)
    assert len(whole) == BATCH
    assert whole.isfinite().all()
    assert torch.equal(whole, run(name))
    assert not torch.allclose(whole[0], whole[1], rtol=0.05, atol=0.05)
    second = run(name, row=1)
    assert len(second) == 1
    assert (second[0] - whole[1]).norm() <= 1e-4 * whole[1].norm()


def home(scheduler: str) -> str:
    """The first family that takes a scheduler."""
    return next(name for name, family in FAMILIES.items() if scheduler in family.schedulers)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_has_a_family_that_runs_on_it(scheduler: str) -> None:
    family = FAMILIES[home(scheduler)]
    pipe = with_scheduler(build(family.name), scheduler)
    output = family.after(pipe(**family.inputs(pipe, BATCH, STEPS)))
    assert output.isfinite().all()


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.guidance_off])
def test_guidance_is_on_until_it_is_switched_off(name: str) -> None:
    family, pipe = FAMILIES[name], build(name)
    off = family.after(pipe(**family.inputs(pipe, BATCH, STEPS) | family.guidance_off))
    assert (off - run(name)).norm() > 1e-3 * off.norm()


def test_what_a_test_does_to_a_pipeline_stays_there() -> None:
    spoilt = build("sd15")
    for weights in spoilt.unet.parameters():
        weights.zero_()
    spoilt.scheduler = None
    spoilt.unet.register_forward_hook(lambda *_: None)
    fresh = build("sd15")
    assert all(weights.any() for weights in fresh.unet.conv_in.parameters())
    assert fresh.scheduler is not None
    assert not fresh.unet._forward_hooks


def test_the_refiner_goes_on_where_the_base_stopped() -> None:
    base, fine = build("sdxl"), build("sdxl-refiner")
    both = base_and_refiner(base, fine, BATCH, 8, split=0.75)
    assert both.shape == (BATCH, 4, 8, 8)
    assert (base.num_timesteps, fine.num_timesteps) == (6, 2)
