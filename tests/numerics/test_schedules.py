"""Schedules: bounds, monotone clocks, inverses, and the tables of diffusers to its own precision."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone import registry
from skipstone.errors import SpecError
from skipstone.numerics.schedule import CLOCK_LIMIT, FlowMatching, Schedule, VPLinear
from skipstone.numerics.tables import CosineTable, LinearTable, ScaledLinear, Table, ZeroTerminalSNR

NAMED = [n for n in registry.names("schedule") if n != "table"]
SCHEDULES: list[Schedule] = [
    *(registry.parse("schedule", n) for n in NAMED),
    FlowMatching(3.0),
    Table((0.99, 0.9, 0.5, 0.1), end=0.995),
]
TIMES = st.floats(0.0, 1.0)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)


@every_schedule
@given(t=TIMES)
def test_scales_are_bounded_and_finite(schedule: Schedule, t: float) -> None:
    a, s = schedule.alpha(t), schedule.sigma(t)
    assert 0.0 <= a <= 1.0
    assert 0.0 <= s <= 1.0
    assert abs(schedule.clock(t)) <= CLOCK_LIMIT
    if not isinstance(schedule, FlowMatching):
        assert math.isclose(a * a + s * s, 1.0, abs_tol=1e-12)
    else:
        assert math.isclose(a + s, 1.0, abs_tol=1e-12)


@every_schedule
@given(pair=st.tuples(TIMES, TIMES))
def test_the_clock_never_runs_back(schedule: Schedule, pair: tuple[float, float]) -> None:
    quiet, loud = sorted(pair)
    assert schedule.clock(quiet) >= schedule.clock(loud) - 1e-9


@every_schedule
@given(t=st.floats(0.002, 0.998))
def test_time_inverts_the_clock(schedule: Schedule, t: float) -> None:
    assert math.isclose(schedule.clock(schedule.time(schedule.clock(t))), schedule.clock(t), abs_tol=1e-6)


@pytest.mark.parametrize("name", NAMED)
def test_named_schedules_can_be_spelt(name: str) -> None:
    schedule = registry.parse("schedule", name)
    assert registry.parse("schedule", registry.spell(schedule)) == schedule


@pytest.mark.parametrize(
    ("schedule", "scheduler"),
    [
        (LinearTable(), diffusers.DDPMScheduler()),
        (ScaledLinear(), diffusers.DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")),
        (
            ZeroTerminalSNR(),
            diffusers.DDIMScheduler(
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", rescale_betas_zero_snr=True
            ),
        ),
        (CosineTable(), diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")),
    ],
    ids=lambda v: type(v).__name__,
)
def test_tables_are_those_of_diffusers(schedule: Any, scheduler: Any) -> None:
    theirs = np.asarray(scheduler.alphas_cumprod, dtype=float)
    assert np.allclose(schedule.alpha_bars, theirs, rtol=3e-5, atol=3e-7)  # diffusers multiplies in float32
    k = 421
    t = (k + 1) / 1000
    assert math.isclose(schedule.alpha(t) ** 2, theirs[k], rel_tol=1e-4)
    assert math.isclose(schedule.timestep(t), k, abs_tol=1e-9)


def test_of_a_scheduler_takes_its_table_and_its_end() -> None:
    first = diffusers.DDIMScheduler(set_alpha_to_one=False)
    schedule = Table.from_scheduler(first)
    assert schedule.alpha(0.0) ** 2 == pytest.approx(float(first.alphas_cumprod[0]))
    assert Table.from_scheduler(diffusers.DDIMScheduler(set_alpha_to_one=True)).sigma(0.0) == 0.0
    assert Table.from_scheduler(diffusers.EulerDiscreteScheduler()).sigma(0.0) == 0.0


def test_of_a_flow_scheduler_is_a_flow() -> None:
    assert Table.from_scheduler(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)) == FlowMatching(3.0)
    assert Table.from_scheduler(diffusers.FlowMatchHeunDiscreteScheduler(shift=2.0)) == FlowMatching(2.0)
    changed = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    changed.set_shift(1.5)
    assert Table.from_scheduler(changed) == FlowMatching(1.5)
    flow = diffusers.DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=5.0
    )
    assert Table.from_scheduler(flow) == FlowMatching(5.0)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_of_a_flow_scheduler_that_shifts_by_size(kind: str) -> None:
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    with pytest.raises(SpecError, match="mu"):
        Table.from_scheduler(scheduler)
    schedule = Table.from_scheduler(scheduler, mu=0.9)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.9)
    assert [schedule.sigma(t) for t in (1.0, 0.75, 0.5, 0.25)] == pytest.approx(
        scheduler.sigmas[:-1].tolist(), rel=1e-6
    )


def test_of_something_else_says_what_it_wants() -> None:
    with pytest.raises(SpecError, match="SimpleNamespace"):
        Table.from_scheduler(SimpleNamespace())


@pytest.mark.parametrize("bars", [(), (0.5,), (0.5, 0.5), (0.1, 0.9), (1.0, 0.5), (0.5, -0.1)])
def test_a_table_must_fall(bars: tuple[float, ...]) -> None:
    with pytest.raises(SpecError, match=r"fall|each element a number in \[0, 1\]"):
        Table(bars)


@pytest.mark.parametrize(
    "spec", ["scaled_linear(steps=1)", "linear_table(first=0.0)", "linear_table(first=0.5, last=0.1)"]
)
def test_settings_out_of_range(spec: str) -> None:
    with pytest.raises(SpecError, match=r"expected (steps|first)"):
        registry.parse("schedule", spec)


def test_vp_linear_is_the_limit_of_its_table() -> None:
    fine = LinearTable(100_000, 0.1 / 100_000, 20.0 / 100_000)
    for t in (0.1, 0.5, 0.9):
        assert math.isclose(VPLinear().alpha(t), fine.alpha(t), rel_tol=1e-3)
