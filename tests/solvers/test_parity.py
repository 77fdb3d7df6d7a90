"""Every solver with a counterpart in diffusers ends where it ends: final latent within 1e-5, relative, in float32."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from skipstone import registry
from skipstone.numerics.grid import Grid, Karras, Leading, LogSNR, Trailing, Uniform
from skipstone.numerics.schedule import FlowMatching
from skipstone.numerics.tables import Table
from skipstone.numerics.threshold import DynamicThreshold

from .parity import KINDS, by_diffusers, by_skipstone, gap, nearest_timestep, patch_noise

SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
STEPS = 20
LIMIT = 1e-5  # the issue asks for 1e-4; 5e-7 is measured
OPEN, STARTS = Uniform(open=True), {"timestep_spacing": "leading", "steps_offset": 1}
TRAILING, KARRAS = {"timestep_spacing": "trailing"}, {"use_karras_sigmas": True}

Case = tuple[str, str, Grid, dict[str, Any], dict[str, Any]]

CASES: list[Case] = [
    ("ddpm", "DDPMScheduler", Leading(), {"clip_sample": False}, {}),
    ("ddpm", "DDPMScheduler", Trailing(), {"clip_sample": False, **TRAILING}, {}),
    ("ddpm(variance='large')", "DDPMScheduler", Leading(), {"clip_sample": False, "variance_type": "fixed_large"}, {}),
    *(
        (f"ddim(eta={eta})", "DDIMScheduler", grid, {"clip_sample": False, **config}, {"eta": eta})
        for eta in (0.0, 0.7)
        for grid, config in ((Leading(1), STARTS), (Trailing(), {**TRAILING, "set_alpha_to_one": False}))
    ),
    *(
        (solver, scheduler, grid, config, {})
        for solver, scheduler in (("euler", "EulerDiscreteScheduler"), ("heun", "HeunDiscreteScheduler"))
        for grid, config in ((Leading(1), STARTS), (Trailing(), TRAILING), (Karras(), KARRAS))
    ),
    *(
        (spec, "DPMSolverMultistepScheduler", grid, {"solver_order": order, **config}, {})
        for order, spec in enumerate(("dpmpp(order=1)", "dpmpp", "dpmpp(order=3, released=True)"), start=1)
        for grid, config in (
            (OPEN, {}),
            (Leading(1, open=True), STARTS),
            (Karras(), KARRAS),
            (LogSNR(), {"use_exponential_sigmas": True}),
        )
    ),
    *(
        ("dpmpp_sde", "DPMSolverMultistepScheduler", grid, {"algorithm_type": "sde-dpmsolver++", **config}, {})
        for grid, config in ((OPEN, {}), (Karras(), KARRAS))
    ),
    *(
        ("unipc", "UniPCMultistepScheduler", grid, config, {})
        for grid, config in ((OPEN, {}), (Leading(1, open=True), STARTS), (Karras(), KARRAS))
    ),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["eps", "v"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{registry.spell(c[2])}")
def test_on_a_table(case: Case, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, name, grid, config, step = case
    assert name in registry.parse("solver", spec).diffusers_class
    scheduler = getattr(diffusers, name)(**SCALED, prediction_type=KINDS[kind], **config)
    scheduler.set_timesteps(STEPS)
    schedule = Table.from_scheduler(scheduler)
    module = importlib.import_module(type(scheduler).__module__)
    with patch_noise(monkeypatch, module) if hasattr(module, "randn_tensor") else nullcontext():
        theirs = by_diffusers(scheduler, **step)
    ours = by_skipstone(spec, schedule, grid.times(schedule, STEPS), kind, network_timestep=nearest_timestep(scheduler))
    assert gap(ours, theirs) < LIMIT


@pytest.mark.parametrize("kind", ["eps", "v"])
def test_unipc_of_order_3_up_to_the_last_timestep_but_one(kind: str) -> None:
    """diffusers takes order 2 there; without that (`lower_order_final`), and ending short of sigma = 0, it agrees."""
    config = {"solver_order": 3, "lower_order_final": False, "final_sigmas_type": "sigma_min"}
    scheduler = diffusers.UniPCMultistepScheduler(**SCALED, prediction_type=KINDS[kind], **config)
    scheduler.set_timesteps(STEPS)
    schedule = Table.from_scheduler(scheduler)
    grid = (*OPEN.times(schedule, STEPS)[:-1], 1 / 1000)
    ours = by_skipstone("unipc(order=3)", schedule, grid, kind)
    assert gap(ours, by_diffusers(scheduler)) < LIMIT


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(
    ("spec", "name"), [("euler", "FlowMatchEulerDiscreteScheduler"), ("heun", "FlowMatchHeunDiscreteScheduler")]
)
def test_on_a_flow(spec: str, name: str, shift: float) -> None:
    assert name in registry.parse("solver", spec).diffusers_class
    scheduler = getattr(diffusers, name)(shift=shift)
    scheduler.set_timesteps(STEPS)
    schedule = Table.from_scheduler(scheduler)
    assert schedule == FlowMatching(shift)
    levels = [float(s) for s in torch.unique(scheduler.sigmas).flip(0)]
    grid = tuple(s / (shift - (shift - 1) * s) for s in levels)  # inverts sigma(t)
    ours = by_skipstone(spec, schedule, grid, "flow")
    assert gap(ours, by_diffusers(scheduler)) < LIMIT


@pytest.mark.parametrize(
    ("spec", "name", "config"),
    [
        ("dpmpp", "DPMSolverMultistepScheduler", {"solver_order": 2}),
        ("dpmpp(order=3, released=True)", "DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("unipc", "UniPCMultistepScheduler", {}),
    ],
)
def test_multistep_on_a_flow(spec: str, name: str, config: dict[str, Any]) -> None:
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    scheduler = getattr(diffusers, name)(**config, **flow)
    scheduler.set_timesteps(STEPS)
    schedule = Table.from_scheduler(scheduler)
    levels = np.asarray(scheduler.sigmas, dtype=float)
    ours = by_skipstone(
        spec, schedule, tuple(levels / (3.0 - 2.0 * levels)), "flow", network_timestep=nearest_timestep(scheduler)
    )
    # UniPC starts at alpha = 1e-6, which diffusers keeps in its history and we count as pure noise
    assert gap(ours, by_diffusers(scheduler)) < (LIMIT if levels[0] < 0.9999 else 5e-4)


ZERO_SNR = {**SCALED, "rescale_betas_zero_snr": True, **TRAILING}
COSINE = {"beta_schedule": "squaredcos_cap_v2", **TRAILING}


@pytest.mark.parametrize("table", [ZERO_SNR, COSINE], ids=["zero_terminal_snr", "cosine"])
@pytest.mark.parametrize(
    ("spec", "name", "config"),
    [
        ("ddim", "DDIMScheduler", {"clip_sample": False}),
        ("ddpm", "DDPMScheduler", {"clip_sample": False}),
        ("euler", "EulerDiscreteScheduler", {}),
        ("dpmpp", "DPMSolverMultistepScheduler", {}),
        ("dpmpp_sde", "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
        ("unipc", "UniPCMultistepScheduler", {}),
    ],
)
def test_on_other_tables(
    spec: str, name: str, config: dict[str, Any], table: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From alpha = 0 or nearly so, with the v prediction that such tables need."""
    scheduler = getattr(diffusers, name)(**table, **config, prediction_type="v_prediction")
    scheduler.set_timesteps(STEPS)
    schedule = Table.from_scheduler(scheduler)
    module = importlib.import_module(type(scheduler).__module__)
    with patch_noise(monkeypatch, module) if hasattr(module, "randn_tensor") else nullcontext():
        theirs = by_diffusers(scheduler)
    ours = by_skipstone(
        spec, schedule, Trailing().times(schedule, STEPS), "v", network_timestep=nearest_timestep(scheduler)
    )
    rounding = 6e-8 * float(scheduler.init_noise_sigma)  # of a float32 that holds x / alpha, as Euler's does
    assert gap(ours, theirs) < max(LIMIT, rounding)


@pytest.mark.parametrize("limit", [1.0, 1.6])
def test_with_dynamic_thresholding(limit: float) -> None:
    settings = {"thresholding": True, "sample_max_value": limit, "dynamic_thresholding_ratio": 0.9}
    scheduler = diffusers.DPMSolverMultistepScheduler(**SCALED, **settings)
    scheduler.set_timesteps(STEPS)
    schedule = Table.from_scheduler(scheduler)
    grid = OPEN.times(schedule, STEPS)
    ours = by_skipstone("dpmpp", schedule, grid, "eps", x0_filter=DynamicThreshold(0.9, limit))
    assert gap(ours, by_diffusers(scheduler)) < LIMIT


def test_every_counterpart_is_compared() -> None:
    """No solver names a scheduler that no case above is about."""
    compared = {(spec.partition("(")[0], name) for spec, name, *_ in CASES}
    flows = {("euler", "FlowMatchEulerDiscreteScheduler"), ("heun", "FlowMatchHeunDiscreteScheduler")}
    solvers = [registry.find_class("solver", name) for name in registry.names("solver")]
    named = {(s.name, c) for s in solvers for c in s.diffusers_class.split(", ") if c}  # type: ignore[attr-defined]
    assert named == compared | flows


def test_euler_is_ddim_and_ddim_with_all_its_noise_is_ddpm() -> None:
    schedule = registry.parse("schedule", "scaled_linear")
    grid = Leading(1).times(schedule, STEPS)
    assert gap(by_skipstone("euler", schedule, grid, "v"), by_skipstone("ddim", schedule, grid, "v")) < 1e-6
    assert gap(by_skipstone("ddim(eta=1.0)", schedule, grid, "v"), by_skipstone("ddpm", schedule, grid, "v")) < 1e-6


def test_the_gap_sees_a_difference() -> None:
    """The comparison is no tautology: the third order of the paper and of the released code end apart."""
    schedule = registry.parse("schedule", "scaled_linear")
    grid = OPEN.times(schedule, STEPS)
    exact_third, released = (by_skipstone(f"dpmpp(order=3, released={r})", schedule, grid, "v") for r in (False, True))
    assert gap(exact_third, released) > 100 * LIMIT
