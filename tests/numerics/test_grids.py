"""Grids: they fall from noise to data, and on a table they are the timesteps of diffusers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import diffusers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.numerics.array import rms
from skipstone.numerics.grid import Angle, Asinh, Grid, Karras, Leading, LogSNR, Trailing, Uniform
from skipstone.numerics.schedule import Schedule
from skipstone.numerics.tables import Table
from skipstone.policies.fixed import Fixed
from skipstone.testing.backbones.gaussian import Gaussian

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES = [
    "cosine",
    "vp_linear",
    "flow(shift=3.0)",
    "scaled_linear",
    "zero_terminal_snr",
    "cosine_table",
    "linear_table",
]
COUNTS = [2, 7, 10, 20, 25, 50, 250]
DDIM, DPM, UNIPC = diffusers.DDIMScheduler, diffusers.DPMSolverMultistepScheduler, diffusers.UniPCMultistepScheduler


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", registry.names("grid"))
@settings(max_examples=10)
@given(steps=st.integers(1, 300))
def test_times_fall_from_noise_to_data(name: str, schedule: str, steps: int) -> None:
    grid: Grid = registry.parse("grid", name)
    times = grid.times(registry.parse("schedule", schedule), steps)
    assert len(times) == steps + 1
    assert times[0] <= 1.0
    assert times[-1] == 0.0
    assert all(a > b for a, b in itertools.pairwise(times))


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize(
    ("scheduler", "spacing", "grid"),
    [
        (DDIM, "linspace", Uniform()),
        (DDIM, "leading", Leading(1)),
        (DDIM, "trailing", Trailing()),
        (diffusers.DDPMScheduler, "linspace", Uniform()),
        (diffusers.EulerDiscreteScheduler, "leading", Leading(1)),
        (diffusers.HeunDiscreteScheduler, "trailing", Trailing()),
        (DPM, "linspace", Uniform(open=True)),
        (DPM, "leading", Leading(1, open=True)),
        (DPM, "trailing", Trailing()),
        (UNIPC, "linspace", Uniform(open=True)),
    ],
)
def test_timesteps_are_those_of_diffusers(scheduler: Any, spacing: str, grid: Grid, steps: int) -> None:
    theirs = scheduler(**SCALED, timestep_spacing=spacing, steps_offset=1)
    theirs.set_timesteps(steps)
    schedule = Table.from_scheduler(theirs)
    ours = [schedule.timestep(t) for t in grid.times(schedule, steps)[:-1]]
    assert np.allclose(ours, np.unique(theirs.timesteps.numpy())[::-1], atol=1e-6)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize(
    ("scheduler", "setting", "grid"),
    [
        (DPM, "use_karras_sigmas", Karras()),
        (diffusers.EulerDiscreteScheduler, "use_karras_sigmas", Karras()),
        (diffusers.HeunDiscreteScheduler, "use_karras_sigmas", Karras()),
        (UNIPC, "use_karras_sigmas", Karras()),
        (DPM, "use_exponential_sigmas", LogSNR()),
        (DPM, "use_lu_lambdas", LogSNR()),
    ],
)
def test_noise_levels_are_those_of_diffusers(scheduler: Any, setting: str, grid: Grid, steps: int) -> None:
    theirs = scheduler(**SCALED, **{setting: True})
    theirs.set_timesteps(steps)
    schedule = Table.from_scheduler(theirs)
    ours = [schedule.sigma(t) / schedule.alpha(t) for t in grid.times(schedule, steps)]
    levels = theirs.sigmas.unique().flip(0).numpy()
    assert np.allclose(ours, levels, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", registry.names("grid"))
@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step(name: str, steps: int) -> None:
    with pytest.raises(SpecError, match="at least 1 step"):
        registry.parse("grid", name).times(registry.parse("schedule", "scaled_linear"), steps)


@pytest.mark.parametrize("grid", [Uniform(), Trailing(), Leading(), Leading(1), Uniform(open=True)], ids=registry.spell)
def test_more_steps_than_the_table_has(grid: Grid) -> None:
    table = registry.parse("schedule", "scaled_linear(steps=40)")
    grid.times(table, 39)
    with pytest.raises(SpecError, match="fewer steps"):
        grid.times(table, 41)


def test_a_whole_table_is_walked_entry_by_entry() -> None:
    table = registry.parse("schedule", "scaled_linear(steps=40)")
    for grid in (Uniform(), Trailing(), Leading()):
        assert np.allclose(grid.times(table, 40), [k / 40 for k in range(40, -1, -1)])


def test_offset_beyond_the_table() -> None:
    with pytest.raises(SpecError, match="fewer steps"):
        Leading(1).times(registry.parse("schedule", "scaled_linear"), 1000)


@pytest.mark.parametrize("spec", ["karras(rho=0.5)", "leading(offset=-1)"])
def test_settings_out_of_range(spec: str) -> None:
    with pytest.raises(SpecError, match="expected"):
        registry.parse("grid", spec)


def test_equal_steps_without_a_table() -> None:
    assert Uniform().times(registry.parse("schedule", "cosine"), 4) == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_log_snr_steps_are_equal_on_the_clock() -> None:
    schedule = registry.parse("schedule", "vp_linear(b1=10.0)")  # starts at sigma / alpha = 12
    clocks = [schedule.clock(t) for t in LogSNR().times(schedule, 9)[:-1]]
    assert np.allclose(np.diff(clocks), np.diff(clocks)[0])


LOUD = ["cosine_table", "zero_terminal_snr", "linear_table", "vp_linear", "cosine", "flow", "flow(shift=5.0)"]


def level(schedule: Schedule, t: float) -> float:
    """sigma / alpha, infinite in pure noise."""
    return schedule.sigma(t) / schedule.alpha(t) if schedule.alpha(t) else math.inf


@pytest.mark.parametrize("grid", [Karras(), Karras(3.0), LogSNR(), Asinh()], ids=registry.spell)
@pytest.mark.parametrize("spec", LOUD)
@settings(max_examples=10)
@given(steps=st.integers(2, 60))
def test_no_step_but_the_first_starts_above_the_limit_of_loudness(spec: str, grid: Grid, steps: int) -> None:
    schedule = registry.parse("schedule", spec)
    times = grid.times(schedule, steps)
    assert level(schedule, 1.0) > 80.0
    assert times[0] == 1.0
    assert all(level(schedule, t) < 80.0 for t in times[1:])


@pytest.mark.parametrize(("name", "most"), [("karras", 2), ("logsnr", 2), ("asinh", 2), ("angle", 1)])
def test_a_cosine_table_is_not_spent_on_pure_noise(name: str, most: int) -> None:
    """Counted from its own start, sigma / alpha = 20,291, 8 of 20 steps of `karras` began above t = 0.99."""
    table = registry.parse("schedule", "cosine_table")
    times = registry.parse("grid", name).times(table, 20)
    assert level(table, 1.0) > 20_000
    assert sum(t > 0.99 for t in times) <= most


@pytest.mark.parametrize("spec", SCHEDULES)
@settings(max_examples=20)
@given(steps=st.integers(1, 200))
def test_even_grids_are_even(spec: str, steps: int) -> None:
    """Each in its own function of sigma / alpha: up to the limit of loudness, and down to the data."""
    schedule = registry.parse("schedule", spec)
    angles = [schedule.angle(t) for t in Angle().times(schedule, steps)]
    assert np.allclose(np.diff(angles), (angles[-1] - angles[0]) / steps, rtol=1e-6, atol=1e-9)
    places = [math.asinh(min(80.0, level(schedule, t))) for t in Asinh().times(schedule, steps)]
    assert np.allclose(np.diff(places), (places[-1] - places[0]) / steps, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("grid", [Angle(), Asinh()], ids=registry.spell)
@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("adams", 2)])
def test_a_grid_leaves_the_order_of_a_solver_as_it_is(grid: Grid, solver: str, order: int) -> None:
    """Four times as many steps divide the error by 4^order, or more."""
    data = Gaussian(schedule=registry.parse("schedule", "scaled_linear"))
    x = np.random.default_rng(0).standard_normal((2, 4, 4))
    errors = []
    for steps in (40, 160):
        problem = Problem(data.schedule, x, grid.times(data.schedule, steps))
        made = denoise(data, problem, registry.parse("solver", solver), Fixed()).x
        errors.append(float(rms(made - data.exact(x, 1.0, 0.0))))
    assert math.log(errors[0] / errors[1], 4) > order - 0.25
