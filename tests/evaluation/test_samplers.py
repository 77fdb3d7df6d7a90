"""A column's solver and grid as diffusers schedulers: the same timesteps, or a sentence that says why not."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import pytest

from skipstone import registry
from skipstone.errors import SpecError
from skipstone.evaluation.columns import Sampler, parse_column
from skipstone.evaluation.samplers import build_scheduler, ddim_eta
from skipstone.numerics.tables import Table

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 12
OPEN = ("dpmpp", "dpmpp_sde", "unipc(order=3)")


def made(own: Any, way: str) -> Any:
    column = parse_column(f"fixed @ {way} / {STEPS}", *Sampler())
    return build_scheduler(own, column.solver, column.grid, STEPS)


def exists(solver: str, grid: str) -> bool:
    """Whether diffusers has this pair; its multistep schedulers leave the cleanest timestep out."""
    if grid in ("karras", "logsnr"):
        return solver in ("euler", "heun", *OPEN)
    if grid == "trailing":
        return True
    return ("open=True" in grid) == (solver in OPEN)


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler", "heun", "dpmpp", "dpmpp_sde", "unipc(order=3)"])
@pytest.mark.parametrize("grid", ["uniform", "uniform(open=True)", "leading(offset=1)", "trailing", "karras", "logsnr"])
def test_the_scheduler_goes_where_the_grid_says_or_is_refused(solver: str, grid: str) -> None:
    own = diffusers.PNDMScheduler(**SD, steps_offset=1, skip_prk_steps=True)
    if not exists(solver, grid):
        with pytest.raises(SpecError, match=r"write uniform|write leading|has no use_"):
            made(own, f"{solver} / {grid}")
        return
    scheduler = made(own, f"{solver} / {grid}")
    assert type(scheduler).__name__ in registry.parse("solver", solver).diffusers_class
    scheduler.set_timesteps(STEPS)
    schedule = Table.from_scheduler(scheduler)
    times = registry.parse("grid", grid).times(schedule, STEPS)
    if grid in ("karras", "logsnr"):
        ours = [schedule.sigma(t) / schedule.alpha(t) for t in times]
        assert np.allclose(ours, scheduler.sigmas.unique().flip(0).numpy(), rtol=1e-4, atol=1e-6)
    else:
        ours = [schedule.timestep(t) for t in times[:-1]]
        rounding = 0.5 if solver in ("euler", "heun") else 1e-6  # they walk fractions of the table's entries
        assert np.allclose(ours, np.unique(scheduler.timesteps.numpy())[::-1], atol=rounding)


@pytest.mark.parametrize("solver", ["ddim", "dpmpp", "unipc", "euler"])
def test_the_grid_of_the_pipeline_is_replaced_and_the_model_is_kept(solver: str) -> None:
    own = diffusers.DPMSolverMultistepScheduler(
        **SD, prediction_type="v_prediction", use_karras_sigmas=True, thresholding=True, rescale_betas_zero_snr=False
    )
    config = made(own, f"{solver} / trailing").config
    assert solver == "ddim" or not config.use_karras_sigmas  # which DDIM keeps in its configuration, but has no use for
    assert (config.prediction_type, config.beta_end) == ("v_prediction", 0.012)
    assert config.get("thresholding", True)
    assert not config.get("clip_sample")


def test_own_is_the_pipelines_scheduler_itself() -> None:
    own = diffusers.DEISMultistepScheduler(**SD)
    assert build_scheduler(own, None, None) is own
    assert isinstance(made(own, "own / karras"), diffusers.DEISMultistepScheduler)
    assert made(own, "own / karras").config.use_karras_sigmas


@pytest.mark.parametrize(
    "own",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    ],
)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp", "dpmpp_sde", "unipc"])
def test_on_a_flow_every_scheduler_has_the_models_shift(own: Any, solver: str) -> None:
    config = made(own, solver).config
    assert config.get("shift", config.get("flow_shift")) == 3.0


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("ddim", "flow-matching"),
        ("heun", "Those that have one: dpmpp, dpmpp_sde, euler, unipc; and own"),  # it cannot shift by the resolution
        ("own / trailing", "write own in place of trailing"),
    ],
)
def test_what_a_flow_cannot_be_stepped_by(way: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        made(diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), way)


def test_a_grid_that_diffusers_cannot_walk_is_refused_before_it_crashes() -> None:
    """On a cosine table the first steps of karras round to one timestep, and diffusers runs off its sigmas."""
    own = diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    with pytest.raises(SpecError, match="starts at the second of equal timesteps"):
        made(own, "dpmpp / karras")
    bare = diffusers.DPMSolverMultistepScheduler.from_config(own.config, use_karras_sigmas=True)
    bare.set_timesteps(STEPS)
    assert bare.timesteps[0] == bare.timesteps[1]


def test_a_scheduler_that_nothing_else_can_stand_in_for() -> None:
    with pytest.raises(SpecError, match="Those that have one: none; and own"):
        made(diffusers.EDMEulerScheduler(), "dpmpp")


def test_an_own_grid_that_another_class_would_lose() -> None:
    with pytest.raises(SpecError, match="use_karras_sigmas, which DDIMScheduler lacks"):
        made(diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True), "ddim")


def test_the_noise_of_ddim_is_an_argument_of_the_call() -> None:
    assert ddim_eta(registry.parse("solver", "ddim(eta=0.5)")) == 0.5
    assert ddim_eta(registry.parse("solver", "ddim")) is None
    assert ddim_eta(None) is None
