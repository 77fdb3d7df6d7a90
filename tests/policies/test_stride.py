"""Stride on exact backbones: what its tolerance buys, what re-aiming costs, where it lands; and as a guest."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import skipstone
import skipstone_pebble as pebble
from skipstone import registry
from skipstone.engine.contracts import Run
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.trace import letters
from skipstone.errors import SpecError
from skipstone.numerics.array import rms
from skipstone.policies.path import Path
from skipstone.policies.places import nearest_place
from skipstone.policies.stride import Stride
from skipstone.solvers.adams import Adams
from skipstone.testing import states
from skipstone.testing.backbones.counting import CountingBackbone
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

MIXED = PolicySetup(Adams(), Mixture(), 24)
SMOOTH = PolicySetup(Adams(), Gaussian(), 24)
GUIDED = PolicySetup(Adams(), Mixture(guidance=2.0), 24)


def landings(run: Run) -> list[float]:
    """Where the accepted attempts landed."""
    return [a.t_next for a in run.past if a.accepted]


def between(grid: tuple[float, ...], places: int) -> set[float]:
    """The times of a grid and the even places between them."""
    inside = (b + (a - b) * j / places for a, b in itertools.pairwise(grid) for j in range(1, places))
    return {*grid, *inside}


@settings(max_examples=12, deadline=None)
@given(st.floats(2e-3, 0.1), st.floats(1.0, 10.0), st.integers(0, 99))
def test_a_smaller_tolerance_never_makes_fewer_calls(tol: float, less: float, seed: int) -> None:
    problem = MIXED.problem(seed, steps=100)
    loose, strict = (MIXED.run(Stride(tol=value), problem).run.cost for value in (tol, tol / less))
    assert loose <= strict
    assert less < 5 or loose < strict  # steps go with the cube root: eight times less is about half as long


@pytest.mark.parametrize("setup", [SMOOTH, MIXED], ids=["gaussian", "mixture"])
def test_the_error_falls_with_the_tolerance_and_is_of_its_size(setup: PolicySetup) -> None:
    problem = setup.problem(3, steps=400)  # more than any run wants
    if isinstance(setup.backbone, Gaussian):
        exact = setup.backbone.exact(problem.x, 1.0, 0.0)
    else:
        exact = setup.run(skipstone.policy("fixed"), setup.problem(3, steps=400)).x
    tolerances = (0.1, 0.01, 1e-3, 1e-4)
    errors = [float(rms(setup.run(Stride(tol=tol), problem).x - exact)) for tol in tolerances]
    assert errors == sorted(errors, reverse=True)
    assert all(error < 2.5 * tol for error, tol in zip(errors, tolerances, strict=True))
    assert errors[-1] < errors[0] / 50


def test_samples_of_a_batch_take_their_own_numbers_of_calls_and_are_those_of_a_run_alone() -> None:
    problems = [MIXED.problem(seed, scale=scale) for seed, scale in ((0, 1.0), (1, 2.0), (2, 1.0), (4, 0.3))]
    problems = [dataclasses.replace(p, cond=cond) for p, cond in zip(problems, (None, None, 2, 0), strict=True)]
    together = denoise_many(MIXED.backbone, problems, MIXED.solver, Stride())
    assert len({r.run.cost for r in together}) > 1
    for problem, result in zip(problems, together, strict=True):
        alone = MIXED.run(Stride(), problem)
        assert np.array_equal(alone.x, result.x)
        assert alone.run == result.run


@pytest.mark.parametrize("setup", [MIXED, GUIDED], ids=["one branch", "guided"])
def test_aiming_anew_costs_nothing_and_is_told_as_one_step(setup: PolicySetup) -> None:
    counted = CountingBackbone(setup.backbone)
    run = denoise(counted, setup.problem(), setup.solver, Stride()).run
    rejected = [a for a in run.past if not a.accepted]
    assert rejected, "nothing was aimed anew: the test says nothing"
    assert run.cost == counted.calls == len(landings(run))
    for first, again in itertools.pairwise(run.past):
        assert again.cost == (1.0 if first.accepted else 0.0)
        assert first.accepted or (again.accepted and again.t == first.t)
    assert len(run.display_attempts) == counted.calls
    assert all(a.accepted and a.cost == 1.0 for a in run.display_attempts)
    assert [a.t_next for a in run.display_attempts] == landings(run)
    assert letters(run) == "C" * len(run.display_attempts)


@settings(max_examples=25, deadline=None)
@example([1, 1, 0.0625, 0.5, 1], 1, 1e-12)  # an even share of the way passed a time of the grid
@example([1, 0.0625, 0.0625, 0.0625], 1, 1e-12)
@example([0.0625, 1, 1, 0.0625, 0.0625], 1, 1e-12)
@given(
    st.lists(st.floats(0.02, 1.0), min_size=2, max_size=7),
    st.integers(1, 7),
    st.sampled_from([1e-12, 1e-3, 4e-3, 0.1]),
)
def test_every_landing_is_a_place_of_the_grid(gaps: list[float], places: int, tol: float) -> None:
    """On uneven grids and at tolerances so small that every place is taken, times of the grid are met to the bit."""
    falling = [1.0 - sum(gaps[:i]) / sum(gaps) for i in range(len(gaps))]
    problem = dataclasses.replace(MIXED.problem(), grid=(*falling, 0.0))
    run = MIXED.run(Stride(tol=tol, places=places), problem).run
    assert set(landings(run)) <= between(problem.grid, places)
    if tol == 1e-12 and places == 1:
        assert tuple(landings(run)) == problem.grid[1:]
    steps = [a.t - a.t_next for a in run.past]
    assert min(steps) > 1e-4, "a step of the size of a rounding error"


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.02, 1.0), min_size=2, max_size=30), st.integers(1, 7), st.floats(1e-9, 1e9))
def test_the_first_step_is_at_most_one_of_the_grid(gaps: list[float], places: int, tol: float) -> None:
    """Whatever the tolerance: nothing has been measured yet."""
    falling = [1.0 - sum(gaps[:i]) / sum(gaps) for i in range(len(gaps))]
    problem = dataclasses.replace(MIXED.problem(), grid=(*falling, 0.0))
    assert landings(MIXED.run(Stride(tol=tol, places=places), problem).run)[0] >= problem.grid[1]


def test_on_a_loud_table_the_first_step_does_not_cross_what_was_never_looked_at() -> None:
    """There the angle hardly moves between t = 1 and 0.84, where an assumed bend of 500 once led."""
    schedule = registry.parse("schedule", "linear_table")
    setup = PolicySetup(Adams(), Mixture(schedule=schedule, prediction="eps"), 50)
    run = setup.run(Stride()).run
    assert landings(run)[0] >= run.grid[1]
    assert run.cost < 25


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.floats(0.02, 1.0), min_size=1, max_size=9), st.integers(1, 7), st.floats(0.01, 0.99), st.floats(0, 1.57)
)
def test_a_place_is_the_nearest_of_all(gaps: list[float], places: int, share: float, angle: float) -> None:
    falling = (*(1.0 - sum(gaps[:i]) / sum(gaps) for i in range(len(gaps))), 0.0)
    run = next(iter(states(MIXED.run(Stride(), dataclasses.replace(MIXED.problem(), grid=falling)).run)))
    possible = [t for t in between(falling, places) if t < share]
    landed = nearest_place(run.angles, share, angle, places)
    assert landed in possible
    assert abs(run.angle(landed) - angle) <= min(abs(run.angle(t) - angle) for t in possible) + 1e-12


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(1, 99), min_size=1, max_size=8, unique=True), st.sampled_from([1, 4, 24]))
def test_path_lands_where_it_says(hundredths: list[int], steps: int) -> None:
    times = [h / 100 for h in sorted(hundredths, reverse=True)]
    counted = CountingBackbone(MIXED.backbone)
    policy = Path(" ".join(map(str, times)))
    run = denoise(counted, MIXED.problem(steps=steps), MIXED.solver, policy).run
    assert landings(run) == [*times, 0.0]
    assert counted.calls == run.cost == len(times) + 1
    assert registry.parse("policy", registry.spell(policy)) == policy


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("tol", bad) for bad in (-1e-9, math.nan, "a", True)),
        *(("fade", bad) for bad in (-0.1, math.nan, None)),
        *(("bend", bad) for bad in (0, -1.0, math.nan)),
        *(("places", bad) for bad in (0, 1.5, "4", True)),
    ],
)
def test_settings_out_of_range_are_refused_with_advice(name: str, value: Any) -> None:
    with pytest.raises(SpecError, match=rf"^stride: expected {name} to be .*got {value!r}.*; try {name}="):
        Stride(**{name: value})


@pytest.mark.parametrize(
    "times", ["0.3 0.6", "0.5 0.5", "1.0 0.5", "0.5 0", "-0.1", "nan", "a b", "0.6,0.3", 0.5, None]
)
def test_times_that_are_no_path_are_refused_with_an_example(times: Any) -> None:
    with pytest.raises(SpecError, match=r"^path: expected falling times .* e\.g\. times='0\.9 0\.6 0\.3'"):
        Path(times)


def test_in_a_pipeline_it_is_the_engine() -> None:
    import diffusers
    import torch

    prompts, steps = ["a red apple on a blue background", "a cat left of a rocket"], 20
    engine = skipstone.Pebble.load()
    problems = [engine.problem(prompt, seed, steps, "trailing") for seed, prompt in enumerate(prompts)]
    results = denoise_many(engine.backbone, problems, Adams(), skipstone.policy("stride(tol=0.02)"))
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(pebble.path(), safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    with skipstone.adapt(pipe, "stride(tol=0.02)") as adapted:
        made = pipe(
            prompts,
            num_inference_steps=steps,
            guidance_scale=engine.guidance,
            latents=torch.stack([p.x for p in problems]),
            output_type="latent",
        ).images
    for result, sample, latent in zip(results, adapted.last, made, strict=True):
        assert sample.decisions == letters(result.run)
        assert landings(sample.run) == pytest.approx(landings(result.run), abs=1e-9)
        assert sample.calls == pytest.approx(result.run.cost)
        assert float((latent - result.x).norm() / result.x.norm()) < 1e-4


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12])
def test_a_short_grid_is_never_overspent(steps: int) -> None:
    for tol in (1e-6, 0.004, 1e9):
        result = MIXED.run(Stride(tol=tol), MIXED.problem(1, steps=steps))
        assert result.run.cost <= steps
        assert float(rms(result.x)) < 3.0
