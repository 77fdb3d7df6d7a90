"""What students are taught, on data of one Gaussian: steps are multiplications, and all of it has a closed form."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from skipstone import registry
from skipstone.errors import SpecError
from skipstone.numerics.parametrize import from_x0, to_x0
from skipstone.numerics.schedule import FlowMatching, Schedule
from skipstone_train.students.levels import Levels, to_clean
from skipstone_train.students.loop import Loop
from skipstone_train.students.losses import weighted_loss
from skipstone_train.students.network import StudentNetwork
from skipstone_train.students.targets import Batch, ConsistencyTargets, Denoiser, ProgressiveTargets, spread_evenly
from skipstone_train.students.teacher import Condition

SPREAD = 0.5  # standard deviation of the data
SCHEDULES = {"table": registry.parse("schedule", "cosine_table"), "flow": FlowMatching(3.0)}
COUNT = 16


def double(levels: Levels) -> Levels:
    return Levels(levels.alpha.double(), levels.sigma.double(), levels.timestep.double())


def teacher_gain(levels: Levels, level: int) -> torch.Tensor:
    """E[x0 | x] = gain x for Gaussian data."""
    alpha, sigma = levels.alpha[level], levels.sigma[level]
    return alpha * SPREAD**2 / (alpha**2 * SPREAD**2 + sigma**2)


def step_factor(levels: Levels, gain: torch.Tensor, start: int, end: int) -> torch.Tensor:
    keep = levels.sigma[end] / levels.sigma[start]
    return keep + (levels.alpha[end] - keep * levels.alpha[start]) * gain


def way_of_teacher(levels: Levels, start: int, end: int) -> torch.Tensor:
    """What x is multiplied by when the teacher takes every step from one level to another."""
    factor = torch.ones((), dtype=torch.float64)
    for level in range(start, end, -1):
        factor = factor * step_factor(levels, teacher_gain(levels, level), level, level - 1)
    return factor


class Gains:
    """A network of one number for each level, which learns by being told."""

    def __init__(self, levels: Levels) -> None:
        self.values = torch.stack([teacher_gain(levels, level) for level in range(len(levels))])

    def __call__(self, x: torch.Tensor, level: torch.Tensor, condition: Condition) -> torch.Tensor:
        return self.values[level].view(-1, 1) * x


def batch_of(count: int = COUNT) -> Batch:
    generator = torch.Generator().manual_seed(0)
    draw = torch.randn(2, count, 3, generator=generator, dtype=torch.float64)
    return Batch(SPREAD * draw[0], draw[1], {}, (torch.arange(count) + 0.5) / count)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_progressive_stages_of_a_linear_teacher_end_in_the_closed_form(schedule: Schedule) -> None:
    """From 16 steps to one: a student's step is that of all teacher steps that it stands for."""
    fine = double(Levels.of(schedule, 16))
    teacher, before = Gains(fine), 16
    while before > 1:
        levels, steps = double(Levels.of(schedule, before)), before // 2
        target = ProgressiveTargets(levels, teacher, nullcontext).make(batch_of())
        student = Gains(double(Levels.of(schedule, steps)))
        student.values[target.level // 2] = target.clean[:, 0] / target.x[:, 0]
        assert set(target.level.tolist()) == set(range(2, before + 1, 2))
        for level in range(1, steps + 1):
            made = step_factor(double(Levels.of(schedule, steps)), student.values[level], level, level - 1)
            stride = 16 // steps
            torch.testing.assert_close(made, way_of_teacher(fine, stride * level, stride * (level - 1)))
        teacher, before = student, steps


@pytest.mark.parametrize("segments", [1, 2, 4])
@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_consistency_of_a_linear_teacher_ends_in_the_closed_form(schedule: Schedule, segments: int) -> None:
    """Targets taken in again and again: every point of a segment is led to where the teacher's steps end."""
    levels = double(Levels.of(schedule, COUNT))
    student = Gains(levels)
    student.values = torch.zeros_like(student.values)  # what it begins with does not matter
    maker = ConsistencyTargets(levels, segments, Gains(levels), nullcontext, student, nullcontext)
    for _ in range(COUNT // segments):
        target = maker.make(batch_of())
        student.values[target.level] = target.clean[:, 0] / target.x[:, 0]
    length = COUNT // segments
    for level in range(1, COUNT + 1):
        end = (level - 1) // length * length
        made = step_factor(levels, student.values[level], level, end)
        torch.testing.assert_close(made, way_of_teacher(levels, level, end))


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_a_step_of_length_zero_changes_nothing_and_landing_inverts_a_step(schedule: Schedule) -> None:
    levels = double(Levels.of(schedule, 8))
    x, clean = batch_of(8).noise, batch_of(8).clean
    start = torch.arange(1, 9)
    assert torch.equal(levels.step(x, clean, start, start), x)
    end = (start - 1) // 2 * 2
    torch.testing.assert_close(levels.landing(x, levels.step(x, clean, start, end), start, end), clean)


@pytest.mark.parametrize("kind", ["eps", "v", "x0", "flow"])
def test_clean_estimates_are_those_of_the_library(kind: str) -> None:
    levels = double(Levels.of(SCHEDULES["table"], 10))
    x, output, level = batch_of(10).noise, batch_of(10).clean, torch.arange(1, 11)
    found = to_clean(kind, output, x, levels.scales(level, x))
    for i in range(10):
        alpha, sigma = float(levels.alpha[i + 1]), float(levels.sigma[i + 1])
        torch.testing.assert_close(
            found[i], to_x0(kind, output[i], x[i], alpha, sigma), check_dtype=False, rtol=1e-4, atol=1e-4
        )


def test_guidance_is_that_of_the_library() -> None:
    levels = Levels.of(SCHEDULES["table"], 4)
    empty, words = {"c": torch.zeros(1, 3)}, {"c": torch.ones(2, 3)}
    denoiser = Denoiser(lambda x, t, c: c["c"] + 0 * x, levels, "x0", empty, 3.0)
    found = denoiser(torch.zeros(2, 3), torch.tensor([1, 2]), words)
    assert torch.equal(found, torch.full((2, 3), 3.0))  # 0 + 3 (1 - 0)


def test_the_weighting_v_is_the_error_of_the_velocity() -> None:
    levels = double(Levels.of(SCHEDULES["table"], 10))
    x, clean, wanted, level = batch_of(10).noise, batch_of(10).clean, batch_of(10).noise.flip(0), torch.arange(1, 11)
    errors = []
    for i in range(10):
        alpha, sigma = float(levels.alpha[i + 1]), float(levels.sigma[i + 1])
        mine, other = (from_x0("v", one[i].float(), x[i].float(), alpha, sigma) for one in (clean, wanted))
        errors.append(((mine - other) ** 2).mean())
    found = weighted_loss("l2", "v", clean - wanted, level, levels)
    torch.testing.assert_close(found.float(), torch.stack(errors).mean(), rtol=1e-3, atol=1e-5)


def test_shares_are_spread_over_all_levels() -> None:
    found = spread_evenly(torch.Generator().manual_seed(1), 8, torch.device("cpu"))
    assert sorted((found * 8).long().tolist()) == list(range(8))


def test_more_steps_than_timesteps_are_refused() -> None:
    with pytest.raises(SpecError, match="1000 timesteps"):
        Levels.of(SCHEDULES["table"], 1001)


# -- trained by the loop ----------------------------------------------------------------------------


class LearnedGains(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.full((count,), 0.5))

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        return self.gains[level].view(-1, 1) * x


def test_the_loop_trains_a_student_to_the_closed_form(tmp_path: Path) -> None:
    levels = Levels.of(SCHEDULES["table"], 8)
    teacher = Gains(levels)
    network = StudentNetwork(LearnedGains(9), rank=0)
    maker = ProgressiveTargets(levels, teacher, nullcontext)
    loop = Loop(network, Accelerator(cpu=True), tmp_path, {}, rate=0.02, steps=400)

    def loss(step: int, part: int) -> torch.Tensor:
        noise = torch.randn(2, 16, 3, generator=torch.Generator().manual_seed(step))
        target = maker.make(Batch(SPREAD * noise[0], noise[1], {}, (torch.arange(16) + 0.5) / 16))
        return weighted_loss("l2", "x0", network.module(target.x, target.level) - target.clean, target.level, levels)

    loop.run(loss)
    for level in range(2, 9, 2):
        made = step_factor(levels, loop.average[0][level], level, level - 2)
        torch.testing.assert_close(made.double(), way_of_teacher(double(levels), level, level - 2), atol=2e-3, rtol=0)
