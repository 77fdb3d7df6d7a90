"""`skipstone.Scheduler` as diffusers tests its own schedulers, and against diffusers and the library's own loop."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import numpy as np
import pytest
import torch

import skipstone
from skipstone import registry
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Estimate, Problem, Query
from skipstone.errors import GuestError, SkipstoneError, SpecError
from skipstone.integrations.diffusers.hosted_scheduler import HostSchedule
from skipstone.integrations.diffusers.scheduler_base import BASES
from skipstone.numerics.parametrize import to_x0
from skipstone.numerics.schedule import FlowMatching, Schedule
from skipstone.policies.fixed import Fixed
from skipstone.testing.backbones.gaussian import Gaussian

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
ZERO_SNR = {**SD, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SHAPE, STEPS = (3, 4, 6, 6), 20
KINDS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}


def draw(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def network(x: torch.Tensor, timestep: float) -> torch.Tensor:
    """A fixed nonlinear function in place of a network; half eps-like, so that x0 stays of the size of data."""
    k = timestep / 1000.0
    return 0.6 * k * x + 0.3 * torch.sin(2.0 * x + k) + 0.2 * torch.roll(x, 1, -1) * (1.0 - k)


def make(name: str, own: dict[str, Any] | None = None, **settings: Any) -> tuple[Any, Any]:
    """A scheduler of diffusers, and ours from its configuration."""
    theirs = getattr(diffusers, f"{name}Scheduler")(**settings)
    return theirs, skipstone.Scheduler.from_config(theirs.config, **(own or {}))


def run(scheduler: Any, x: torch.Tensor, begin: int = 0, scale: bool = True, **step: Any) -> torch.Tensor:
    """The loop of a pipeline, from call `begin` on."""
    x = x * scheduler.init_noise_sigma if scale and hasattr(scheduler, "init_noise_sigma") else x
    for t in scheduler.timesteps[begin:]:
        scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(scaled, float(t)), t, x, **step).prev_sample
    return x


def gap(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Relative distance, rms."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())


# -- like diffusers ----------------------------------------------------------------------------------

FIRST_ORDER = [
    *(
        ("DDIM", {**SD, "clip_sample": False, "timestep_spacing": s, "prediction_type": p})
        for s in ("leading", "trailing")  # its step leads elsewhere than to the next timestep of linspace
        for p in ("epsilon", "sample", "v_prediction")
    ),
    ("DDIM", {**SD, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIM", {**ZERO_SNR, "clip_sample": False}),
    *(("EulerDiscrete", {**SD, "timestep_spacing": s, "steps_offset": 1}) for s in ("linspace", "leading", "trailing")),
    *(("EulerDiscrete", {**SD, f"use_{k}_sigmas": True}) for k in ("karras", "exponential", "beta")),
    ("EulerDiscrete", {**SD, "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("FlowMatchEulerDiscrete", {"shift": 2.0, "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"shift": 2.0, "shift_terminal": 0.1}),
    ("FlowMatchEulerDiscrete", {"invert_sigmas": True}),
    ("CogVideoXDDIM", {**ZERO_SNR, "snr_shift_scale": 1.0}),
]  # fmt: skip
MULTISTEP = [
    *(
        (solver, name, {**SD, "prediction_type": p, **more})
        for solver, name in (("unipc", "UniPCMultistep"), ("dpmpp", "DPMSolverMultistep"))
        for p, more in (
            ("epsilon", {}),
            ("v_prediction", {"timestep_spacing": "leading", "steps_offset": 1}),
            ("sample", {"timestep_spacing": "trailing", "use_karras_sigmas": True}),
            ("v_prediction", {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True}),
            ("epsilon", {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}),
        )
    ),
    ("dpmpp", "DPMSolverMultistep", FLOW),
    ("dpmpp(order=3, released=True)", "DPMSolverMultistep", {**SD, "solver_order": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "settings"), FIRST_ORDER, ids=str)
def test_ddim_is_the_first_order_step_of_diffusers(name: str, settings: dict[str, Any]) -> None:
    theirs, ours = make(name, {"solver": "ddim"}, **settings)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(STEPS)
    assert ours.config.base == f"{name}Scheduler"
    assert torch.equal(ours.timesteps, theirs.timesteps)
    assert ours.init_noise_sigma == pytest.approx(float(getattr(theirs, "init_noise_sigma", 1.0)), rel=1e-6)
    assert gap(run(ours, draw(0)), run(theirs, draw(0))) < 1e-5


@pytest.mark.parametrize(("solver", "name", "settings"), MULTISTEP, ids=str)
def test_a_multistep_solver_is_that_of_diffusers(solver: str, name: str, settings: dict[str, Any]) -> None:
    theirs, ours = make(name, {"solver": solver}, **settings)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(STEPS)
    assert gap(run(ours, draw(0)), run(theirs, draw(0))) < 1e-5


def test_clipping_is_that_of_ddim_with_the_clipped_output() -> None:
    theirs, ours = make("DDIM", {"solver": "ddim"}, **SD, clip_sample=True, clip_sample_range=0.7)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(STEPS)
    bare = run(theirs, draw(0), use_clipped_model_output=True)
    assert gap(run(ours, draw(0)), bare) < 1e-5
    unclipped = make("DDIM", {"solver": "ddim", "clip_sample": False}, **SD)[1]
    unclipped.set_timesteps(STEPS)
    assert gap(run(unclipped, draw(0)), bare) > 0.1


SAME_TIMES = [  # of two calls a step, or of other steps: whose noise levels and spacing are those of another
    ("PNDM", {**SD, "skip_prk_steps": True, "steps_offset": 1}, "DDIM"),
    ("DDPM", {**SD, "timestep_spacing": "trailing"}, "DDPM"),
    ("HeunDiscrete", SD, "EulerDiscrete"),
    ("LMSDiscrete", {**SD, "timestep_spacing": "leading"}, "EulerDiscrete"),
    ("EulerAncestralDiscrete", {**SD, "timestep_spacing": "trailing"}, "EulerDiscrete"),
    ("DPMSolverSinglestep", SD, "DPMSolverMultistep"),
    ("DEISMultistep", {**SD, "timestep_spacing": "leading"}, "DEISMultistep"),
    ("SASolver", SD, "SASolver"),
    ("FlowMatchHeunDiscrete", {"shift": 3.0}, "FlowMatchEulerDiscrete"),
]


@pytest.mark.parametrize(("name", "settings", "base"), SAME_TIMES, ids=str)
def test_times_of_schedulers_that_step_otherwise(name: str, settings: dict[str, Any], base: str) -> None:
    theirs, ours = make(name, None, **settings)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(STEPS)
    assert ours.config.base == f"{base}Scheduler"
    own = list(dict.fromkeys(theirs.timesteps.tolist()))
    assert ours.timesteps.tolist() == pytest.approx(own, abs=1e-3)
    if hasattr(theirs, "sigmas"):
        levels = list(dict.fromkeys(theirs.sigmas.tolist()))
        assert ours.sigmas.tolist() == pytest.approx(levels, rel=1e-5)


@pytest.mark.parametrize("name", BASES)
def test_every_base_is_found_by_its_name_or_by_its_settings(name: str) -> None:
    settings = inspect.signature(getattr(diffusers, name).__init__).parameters
    if "beta_schedule" not in settings and "shift" not in settings:
        pytest.skip(f"{name} needs a package that is not installed")
    config = {k: p.default for k, p in settings.items() if k != "self"}
    for known in (config, {**config, "_class_name": name}):
        assert skipstone.Scheduler.from_config(known).config.base == BASES[name]


# -- like the library's own loop ---------------------------------------------------------------------


@dataclass(frozen=True)
class Model:
    """The function as a backbone."""

    schedule: Schedule
    kind: str
    told: dict[float, float]
    sites: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[int] = 1

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        """What the function means for each query."""
        found = []
        for q in queries:
            out = network(q.x, self.told[q.t])
            x0 = to_x0(self.kind, out, q.x, self.schedule.alpha(q.t), self.schedule.sigma(q.t))
            found.append(Estimate(x0, output=out, prediction=self.kind))  # type: ignore[arg-type]
        return found


def by_engine(ours: Any, x: torch.Tensor, begin: int = 0) -> torch.Tensor:
    """Every sample by the library's loop, at the times and noise levels of the scheduler."""
    levels = ours.levels[begin:]
    schedule = HostSchedule({level.t: level for level in levels}, ours.parts.schedule)
    told = dict(zip((level.t for level in levels), ours.timesteps[begin:].tolist(), strict=False))
    model = Model(schedule, KINDS[ours.config.prediction_type], told)
    grid, solver = tuple(level.t for level in levels), registry.parse("solver", ours.config.solver)
    clip = (lambda x0: ours.parts.clip(x0[None])[0]) if ours.config.get("thresholding") else None
    ends = [denoise(model, Problem(schedule, row, grid, x0_filter=clip), solver, Fixed()).x for row in x]
    return torch.stack(ends) * (1.0 / levels[-1].scale)


CASES = [
    ("PNDM", {**SD, "skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}),
    ("DDIM", {**ZERO_SNR, "clip_sample": False}),
    ("EulerDiscrete", {**SD, "timestep_spacing": "leading"}),
    ("UniPCMultistep", {**SD, "prediction_type": "sample", "use_karras_sigmas": True}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
]
SOLVERS = ("adams(of='x0')", "adams", "unipc", "dpmpp(order=3)", "euler")


@pytest.mark.parametrize("grid", ["scheduler", "trailing", "karras", "angle", "asinh"])
@pytest.mark.parametrize(("name", "settings"), CASES, ids=str)
def test_each_sample_goes_where_the_library_takes_it(name: str, settings: dict[str, Any], grid: str) -> None:
    for solver in SOLVERS if grid == "scheduler" else SOLVERS[:1]:
        _, ours = make(name, {"solver": solver, "grid": grid}, **settings)
        ours.set_timesteps(9)
        start = draw(1) * ours.init_noise_sigma
        expected = by_engine(ours, start * ours.levels[0].scale)
        assert gap(run(ours, start, scale=False), expected) < 1e-5


@pytest.mark.parametrize("spec", ["uniform", "leading(offset=1)", "trailing", "karras", "logsnr", "angle", "asinh"])
def test_a_grid_of_the_library_is_where_the_steps_go(spec: str) -> None:
    _, ours = make("UniPCMultistep", {"grid": spec}, **SD)
    ours.set_timesteps(7)
    times = registry.parse("grid", spec).times(registry.parse("schedule", "scaled_linear"), 7)
    assert [level.t for level in ours.levels] == pytest.approx(times, abs=1e-5)  # their table is of float32
    assert ours.timesteps.tolist() == pytest.approx([1000 * t - 1 for t in times[:-1]], abs=1e-2)
    _, flow = make("FlowMatchEulerDiscrete", {"grid": spec}, shift=3.0)
    flow.set_timesteps(7)
    schedule = FlowMatching(3.0)
    levels = [schedule.sigma(t) for t in registry.parse("grid", spec).times(schedule, 7)]
    assert flow.sigmas.tolist() == pytest.approx(levels, abs=1e-6)
    assert flow.timesteps.tolist() == pytest.approx([1000 * s for s in levels[:-1]], abs=1e-3)


@pytest.mark.parametrize("spec", ["karras", "logsnr"])
def test_a_table_that_ends_at_its_first_timestep_has_no_step_of_no_length(spec: str) -> None:
    _, ours = make("DDIM", {"grid": spec}, **SD, set_alpha_to_one=False)
    ours.set_timesteps(6)
    sigmas = ours.sigmas.tolist()
    assert len(sigmas) == 7
    assert all(a > 1.2 * b for a, b in itertools.pairwise(sigmas))
    assert sigmas[-1] == pytest.approx(((1 - ours.alphas_cumprod[0]) / ours.alphas_cumprod[0]) ** 0.5)


@pytest.mark.parametrize(("solver", "least"), [("adams(of='x0')", 1.9), ("adams", 2.6), ("ddim", 0.9)])
def test_it_converges_to_the_exact_answer(solver: str, least: float) -> None:
    """On Gaussian data, whose denoiser and whose trajectories are known."""
    _, ours = make("EulerDiscrete", {"solver": solver, "grid": "angle"}, **SD, prediction_type="sample")
    backbone, errors = Gaussian(schedule=ours.parts.schedule), []
    for steps in (48, 96):
        ours.set_timesteps(steps)
        start = torch.linspace(-2.0, 2.0, 33, dtype=torch.float64)[None]
        x = start / ours.levels[0].scale
        for t, level in zip(ours.timesteps, ours.levels, strict=False):
            [estimate] = backbone.predict([Query(ours.scale_model_input(x, t), level.t)])
            x = ours.step(estimate.x0, t, x).prev_sample
        errors.append(float((x - backbone.exact(start, 1.0, 0.0)).square().mean().sqrt()))
    assert math.log2(errors[0] / errors[1]) > least
    assert errors[1] < (0.02 if solver == "ddim" else 1e-3)


# -- what a batch, a dtype, a second run and a late start change --------------------------------------

EACH = [
    ("PNDM", {**SD, "skip_prk_steps": True}),
    ("EulerDiscrete", {**SD, "prediction_type": "v_prediction"}),
    ("FlowMatchEulerDiscrete", {"shift": 3.0}),
    ("DPMSolverMultistep", {**SD, "thresholding": True, "sample_max_value": 1.5}),
]
each = pytest.mark.parametrize(("name", "settings"), EACH, ids=str)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@each
def test_a_sample_of_a_batch_is_the_sample_alone(name: str, settings: dict[str, Any], dtype: torch.dtype) -> None:
    _, ours = make(name, None, **settings)
    ours.set_timesteps(6)
    batch = run(ours, draw(2).to(dtype))
    assert batch.dtype == dtype
    for row in range(SHAPE[0]):
        ours.set_timesteps(6)
        assert torch.equal(run(ours, draw(2)[row : row + 1].to(dtype))[0], batch[row])


@each
def test_a_step_in_half_precision_is_a_step_in_float32_rounded_once(name: str, settings: dict[str, Any]) -> None:
    _, ours = make(name, {"solver": "adams"}, **settings)
    ours.set_timesteps(6)
    twin = copy.deepcopy(ours)
    x = (draw(2) * ours.init_noise_sigma).to(torch.bfloat16)
    for k, t in enumerate(ours.timesteps):
        output = draw(k + 3).to(torch.bfloat16)
        exact = twin.step(output.float(), t, x.float())
        x, clean = ours.step(output, t, x, return_dict=False)
        assert torch.equal(x, exact.prev_sample.to(torch.bfloat16))
        assert torch.equal(clean, exact.pred_original_sample.to(torch.bfloat16))


@each
def test_a_second_run_is_the_first_one(name: str, settings: dict[str, Any]) -> None:
    _, ours = make(name, None, **settings)
    ends = []
    for _ in range(2):
        ours.set_timesteps(6)
        ends.append(run(ours, draw(2)))
        assert ours._past == []  # a finished run keeps no tensors
        ours.set_timesteps(6)
        ours.step(draw(3, (1, 2, 5)), ours.timesteps[0], draw(4, (1, 2, 5)))  # another run, interrupted
    assert torch.equal(*ends)


@each
def test_nothing_is_put_on_another_device(name: str, settings: dict[str, Any]) -> None:
    """Tensors of the device "meta" take part in no operation with those of another."""
    _, ours = make(name, None, **{**settings, "thresholding": False} if "thresholding" in settings else settings)
    ours.set_timesteps(4, device="meta" if name == "PNDM" else None)
    x = torch.empty(SHAPE, device="meta", dtype=torch.bfloat16)
    ours.set_begin_index(0)
    for k in range(4):
        made = ours.step(ours.scale_model_input(x, None), None, x)
        assert (made.prev_sample.device.type, made.prev_sample.dtype) == ("meta", torch.bfloat16)
        x = made.prev_sample
        assert ours.step_index == k + 1
    if name != "PNDM":  # whose timesteps have no values there
        assert ours.add_noise(x, x, ours.timesteps[:1]).device.type == "meta"


def test_a_copy_in_the_middle_of_a_run_goes_on_alone() -> None:
    _, ours = make("UniPCMultistep", None, **SD)
    ours.set_timesteps(6)
    x = draw(2)
    for t in ours.timesteps[:3]:
        x = ours.step(network(x, float(t)), t, x).prev_sample
    other = copy.deepcopy(ours)
    assert torch.equal(run(other, x, 3), run(ours, x, 3))
    assert torch.equal(other.timesteps, ours.timesteps)


@pytest.mark.parametrize("by_index", [True, False])
@each
def test_a_late_start_is_the_rest_of_the_grid(name: str, settings: dict[str, Any], by_index: bool) -> None:
    """Image to image: noise of the level of a later call, and the run from there."""
    _, ours = make(name, {"solver": "adams"}, **settings)
    ours.set_timesteps(8)
    begin, clean, noise = 3, draw(4), draw(5)
    if by_index:
        ours.set_begin_index(begin)
    t = ours.timesteps[begin : begin + 1]
    x, level = ours.add_noise(clean, noise, t), ours.levels[begin]
    assert gap(x, (level.alpha * clean + level.sigma * noise) / level.scale) < 1e-6
    assert torch.equal(x, ours.scale_noise(clean, t, noise))
    assert ours.step_index is None
    end = run(ours, x, begin, scale=False)
    assert ours.step_index == 8
    assert ours.begin_index == (begin if by_index else None)
    assert gap(end, by_engine(ours, x * level.scale, begin)) < 1e-5


@pytest.mark.parametrize("name", ["DDIM", "EulerDiscrete", "UniPCMultistep"])
def test_noise_and_velocity_are_those_of_diffusers(name: str) -> None:
    """At timesteps of the run, at others, and before a run."""
    theirs, ours = make(name, None, **SD)
    clean, noise = draw(4), draw(5)
    reference = diffusers.DDIMScheduler(**SD)
    scale = reference.alphas_cumprod.sqrt() if name == "EulerDiscrete" else torch.ones(1000)
    for _ in range(2):
        for k in (torch.tensor([3, 500, 977]), torch.tensor([999])):
            expected = reference.add_noise(clean, noise, k) / scale[k].reshape(-1, 1, 1, 1)
            assert gap(ours.add_noise(clean, noise, k), expected) < 1e-6
        velocity = reference.get_velocity(clean, noise, torch.tensor([3, 500, 977]))
        assert gap(ours.get_velocity(clean, noise, torch.tensor([3, 500, 977])), velocity) < 1e-6
        ours.set_timesteps(7)
    assert len(ours) == len(theirs) == 1000


def test_a_learned_variance_is_left_out() -> None:
    _, ours = make("DDIM", None, **SD, clip_sample=False)
    ours.set_timesteps(4)
    twin, x, output = copy.deepcopy(ours), draw(0), draw(1)
    both = torch.cat([output, draw(2)], dim=1)
    assert torch.equal(
        ours.step(both, ours.timesteps[0], x).prev_sample, twin.step(output, ours.timesteps[0], x).prev_sample
    )


# -- lists of sigmas and timesteps --------------------------------------------------------------------


def test_lists_on_a_table() -> None:
    _, ours = make("EulerDiscrete", {"solver": "ddim"}, **SD)
    theirs = diffusers.EulerDiscreteScheduler(**SD)
    for given in ({"timesteps": [999, 850, 736, 545, 233, 24]}, {"sigmas": [14.6, 6.4, 2.7, 0.9, 0.15, 0.0]}):
        for scheduler in (ours, theirs):
            scheduler.set_timesteps(**given)
        assert torch.allclose(ours.timesteps.float(), theirs.timesteps, atol=1e-2)
        assert gap(run(ours, draw(0)), run(theirs, draw(0))) < 1e-4


def test_lists_and_shifts_of_flows() -> None:
    even = np.linspace(1.0, 1 / 8, 8)
    dynamic = {"shift": 3.0, "use_dynamic_shifting": True}
    for settings, given in (
        (dynamic, {"sigmas": even, "mu": 0.7}),
        ({**dynamic, "time_shift_type": "linear", "shift_terminal": 0.05}, {"sigmas": even, "mu": 0.7}),
        ({"shift": 2.0}, {"sigmas": [1.0, 0.8, 0.5, 0.1]}),
        ({"shift": 2.0}, {"sigmas": [1.0, 0.5], "timesteps": [1000.0, 400.0]}),
    ):
        theirs, ours = make("FlowMatchEulerDiscrete", {"solver": "euler"}, **settings)
        for scheduler in (theirs, ours):
            scheduler.set_timesteps(**given)
        assert torch.equal(ours.timesteps, theirs.timesteps)
        assert gap(run(ours, draw(0)), run(theirs, draw(0))) < 1e-5


def test_a_grid_takes_the_place_of_even_sigmas_only() -> None:
    """Flow pipelines bring even sigmas of themselves; others are somebody's choice."""
    _, ours = make("FlowMatchEulerDiscrete", {"grid": "angle"}, shift=3.0, use_dynamic_shifting=True)
    ours.set_timesteps(sigmas=np.linspace(1.0, 1 / 8, 8), mu=0.7)
    schedule = FlowMatching(math.exp(0.7))
    expected = [schedule.sigma(t) for t in registry.parse("grid", "angle").times(schedule, 8)]
    assert ours.sigmas.tolist() == pytest.approx(expected, abs=1e-6)
    ours.set_timesteps(sigmas=[1.0, 0.9, 0.2], mu=0.0)
    assert ours.sigmas.tolist() == pytest.approx([1.0, 0.9, 0.2, 0.0])


def test_video_models_that_are_told_the_noise_level() -> None:
    """Stable Video Diffusion: sigma to 700, far beyond the table."""
    settings = {
        **SD,
        "prediction_type": "v_prediction",
        "timestep_type": "continuous",
        "use_karras_sigmas": True,
        "sigma_min": 0.002,
        "sigma_max": 700.0,
    }
    theirs, ours = make("EulerDiscrete", {"solver": "ddim"}, **settings)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(12)
    assert gap(run(ours, draw(0)), run(theirs, draw(0))) < 1e-4
    k = ours.timesteps[4:5]
    assert gap(ours.add_noise(draw(4), draw(5), k), draw(4) + draw(5) * ours.sigmas[4]) < 1e-6
    with pytest.raises(GuestError, match="told its noise level in place of a timestep"):
        make("EulerDiscrete", {"grid": "karras"}, **settings)[1].set_timesteps(12)


# -- configurations -----------------------------------------------------------------------------------

CONFIGS = [
    *EACH,
    ("DDIM", {**ZERO_SNR, "set_alpha_to_one": False}),
    ("UniPCMultistep", {**FLOW, "use_dynamic_shifting": True}),
]


@pytest.mark.parametrize(("name", "settings"), CONFIGS, ids=str)
def test_a_saved_scheduler_steps_the_same(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    _, ours = make(name, {"solver": "unipc", "grid": "logsnr"}, **settings)
    ours.save_pretrained(tmp_path)
    loaded = skipstone.Scheduler.from_pretrained(tmp_path)
    again = skipstone.Scheduler.from_config(ours.config)
    hidden = {"_class_name", "_diffusers_version"}
    assert {k: v for k, v in loaded.config.items() if k not in hidden} == {
        k: v for k, v in ours.config.items() if k not in hidden
    }
    ends = []
    for scheduler in (ours, loaded, again):
        mu = {"mu": 0.5} if settings.get("use_dynamic_shifting") else {}
        scheduler.set_timesteps(5, **mu)
        ends.append(run(scheduler, draw(0)))
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])


def test_there_and_back() -> None:
    """From diffusers to ours and back again, and to another kind in between."""
    theirs, ours = make("PNDM", None, **SD, skip_prk_steps=True, steps_offset=1)
    back = diffusers.PNDMScheduler.from_config(ours.config)
    assert all(back.config[k] == value for k, value in theirs.config.items() if k[0] != "_")
    euler = diffusers.EulerDiscreteScheduler.from_config(ours.config)
    again = skipstone.Scheduler.from_config(euler.config)
    assert (again.config.base, again.config.steps_offset) == ("EulerDiscreteScheduler", 1)
    assert diffusers.PNDMScheduler in ours.compatibles


def test_a_changed_configuration_is_followed() -> None:
    """Pipelines of Stable Diffusion change steps_offset and clip_sample of a scheduler that they are given."""
    _, ours = make("DDIM", None, **SD, clip_sample=True)
    ours._internal_dict = type(ours.config)({**ours.config, "steps_offset": 1, "clip_sample": False})
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [751, 501, 251, 1]
    ours.register_to_config(grid="trailing", solver="ddim")
    ours.set_timesteps(4)
    assert ours.timesteps.tolist() == [999, 749, 499, 249]
    twin = diffusers.DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing")
    twin.set_timesteps(4)
    assert gap(run(ours, draw(0)), run(twin, draw(0))) < 1e-5


REFUSED = {
    "solver='heun'": ({"solver": "heun"}, GuestError, "makes 2 calls a step"),
    "noise": ({"solver": "ddpm"}, GuestError, "draws noise"),
    "own times": ({"solver": "dpm_adaptive"}, GuestError, "makes 3 calls a step"),
    "no solver": ({"solver": "adamms"}, SpecError, "adamms"),
    "no grid": ({"grid": "karas"}, SpecError, "karas"),
    "no base": ({"base": "LCMScheduler"}, GuestError, "Expected base to be one of"),
    "no setting": ({"sovler": "adams"}, SpecError, "sovler is no setting"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_when_it_is_made(case: str) -> None:
    changes, kind, words = REFUSED[case]
    with pytest.raises(kind, match=words):
        make("DDIM", changes, **SD)


@pytest.mark.parametrize("name", ["LCM", "TCD", "EDMEuler", "DDPMWuerstchen", "IPNDM", "FlowMatchLCM", "UnCLIP"])
def test_schedulers_whose_noise_cannot_be_taken_over(name: str) -> None:
    config = getattr(diffusers, f"{name}Scheduler")().config
    same = name.replace("TCD", "(TCD|LCM)")  # which have the same settings
    for known in (config, {**config, "_class_name": f"{name}Scheduler"}):
        with pytest.raises(GuestError, match=f"got that of {same}Scheduler"):
            skipstone.Scheduler.from_config(known)


def test_what_is_refused_otherwise() -> None:
    with pytest.raises(SpecError, match="from_pretrained"):
        skipstone.Scheduler.from_config("a/folder")
    with pytest.raises(SpecError, match="no setting of DPMSolverMultistepScheduler"):
        skipstone.Scheduler(betaschedule="linear")
    with pytest.raises(GuestError, match="got that of no scheduler"):
        skipstone.Scheduler.from_config({"beta": 1})
    _, ours = make("UniPCMultistep", None, **SD)
    x = draw(0)
    with pytest.raises(GuestError, match="call set_timesteps"):
        ours.step(x, 999, x)
    for given, words in (
        ({}, "got none of them"),
        ({"num_inference_steps": 3, "timesteps": [999, 1]}, "got several"),
        ({"timesteps": [1, 999]}, "turn back"),
    ):
        with pytest.raises(GuestError, match=words):
            ours.set_timesteps(**given)
    with pytest.raises(GuestError, match="takes no mu"):
        make("DDIM", None, **SD)[1].set_timesteps(3, mu=0.5)
    ours.set_timesteps(2)
    with pytest.raises(GuestError, match=r"eta=0\.5, which asks for noise"):
        ours.step(x, 999, x, eta=0.5)
    with pytest.raises(GuestError, match="Expected one of the timesteps"):
        ours.step(x, 333, x)
    ours.step(x, 999, x)
    with pytest.raises(GuestError, match="Expected 3 samples of one shape"):
        ours.step(x[:2], 500, x[:2])
    ours.step(x, 500, x, generator=torch.Generator(), eta=0.0, s_noise=1.0, variance_noise=None)
    with pytest.raises(GuestError, match="Expected at most 2 steps"):
        ours.step(x, 0, x)
    assert issubclass(GuestError, SkipstoneError)
