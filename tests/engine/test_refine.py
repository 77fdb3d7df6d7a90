"""Refining a region: exact outside, sound inside, charged, replayable; on Gaussian fields with an exact denoiser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.contracts import ATTENTION, Attempt, Finish, Forecast, Full, Plan, Policy, Refine, Run
from skipstone.engine.drivers import denoise, denoise_many, replay
from skipstone.engine.flow import REGION_SHARE
from skipstone.engine.refine import NoisePath, compute_mask, refinement_times
from skipstone.engine.requests import Estimate, Node, Problem, Query
from skipstone.engine.timeline import attempt_kind
from skipstone.engine.trace import explain, from_json, letters, to_json
from skipstone.errors import BackboneError
from skipstone.numerics.schedule import Cosine, FlowMatching, Schedule, VPLinear
from skipstone.solvers import DDIM
from skipstone.testing.backbones.counting import CountingBackbone

SIZE = 8
SCHEDULES: list[Schedule] = [Cosine(), VPLinear(), FlowMatching(shift=3.0)]
SOLVERS = registry.names("solver")
PATCH = np.zeros((SIZE, SIZE))
PATCH[2:5, 3:6] = 1.0
COSINE, HOW, HARD = Cosine(), Refine(steps=4, edge=1), Refine(steps=4)


def covariance(length: float) -> np.ndarray:
    """Of a smooth field with that correlation length in cells; white at 0."""
    places = np.stack(np.mgrid[:SIZE, :SIZE], -1).reshape(-1, 2).astype(float)
    away = ((places[:, None] - places[None]) ** 2).sum(-1)
    return np.exp(-0.5 * away / length**2) + 1e-3 * np.eye(SIZE**2) if length else np.eye(SIZE**2)


@dataclass(frozen=True, eq=False)
class Field:
    """Exact denoiser of Gaussian fields, alike and independent in every channel; its map is given."""

    length: float = 0.0
    schedule: Schedule = COSINE
    map: Any = field(default_factory=lambda: PATCH)
    sites: ClassVar[tuple[str, ...]] = ()
    branches: ClassVar[int] = 1

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        return [self._estimate(q) for q in queries]

    def _estimate(self, q: Query) -> Estimate:
        a, s, c = self.schedule.alpha(q.t), self.schedule.sigma(q.t), covariance(self.length)
        gain = a * np.linalg.solve(a * a * c + s * s * np.eye(SIZE**2), c)
        x0 = (q.x.reshape(-1, SIZE**2) @ gain).reshape(q.x.shape)
        told = {ATTENTION: self.map} if ATTENTION in q.wanted_sites and self.map is not None else {}
        return Estimate(x0, features=told)

    def problem(self, seed: int = 0, channels: int = 2, grid: Sequence[float] | None = None) -> Problem:
        x = self.schedule.sigma(1.0) * np.random.default_rng(seed).standard_normal((channels, SIZE, SIZE))
        return Problem(self.schedule, x, tuple(grid or [1 - i / 16 for i in range(17)]), seed=seed)


@dataclass(frozen=True)
class At(Policy):
    """Refines the step of that number, however often it is tried."""

    step: int
    how: Any = HOW
    name: ClassVar[str] = "at"
    may_spend_more: ClassVar[bool] = True

    def plan(self, run: Run, proposal: Plan) -> Plan:
        number = sum(a.accepted is True for a in run.past) + (run.pending is not None and proposal.accept)
        due = number == self.step and (run.next_start > run.t_end or not proposal.accept)
        return replace(proposal, evaluate=self.how) if due else proposal


@dataclass(frozen=True)
class Second(Policy):
    """Takes a step as a call, rejects it, and takes it again with `how`; `told` asks for maps from the start."""

    told: bool
    step: int = 5
    how: Any = HOW
    first: Any = field(default_factory=Full)
    name: ClassVar[str] = "second"
    may_spend_more: ClassVar[bool] = True

    @property
    def sites(self) -> frozenset[str]:
        return frozenset({ATTENTION} if self.told else ())

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if run.next_start <= run.t_end:
            return proposal
        if len(run.attempts) == self.step:
            return replace(proposal, evaluate=self.first)
        if len(run.attempts) == self.step + 1:
            assert run.pending is not None
            return Plan(self.how, run.pending.t_next, accept=False)
        return proposal


def fixed(k: Any = 99) -> Policy:
    return At(k)


# -- Outside of the region ------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "dpm_adaptive"])
def test_nothing_changes_outside_of_the_mask(name: str, schedule: Schedule) -> None:
    """Measured where the refined step led, on a correlated field: bit for bit, whatever the solver.

    (`dpm_adaptive` may take that step again, shorter, as it is judged by the whole sample that came out.)
    """
    model, solver = Field(2.0, schedule), registry.parse("solver", name)
    grid = (1.0, 0.85, 0.7, 0.6, 0.5)
    plain = denoise(model, model.problem(grid=grid), solver, fixed())
    refined = denoise(model, model.problem(grid=grid), solver, At(len(plain.run.accepted_attempts) - 1))
    mask = compute_mask(Node(0.5, plain.x, Estimate(plain.x, features={ATTENTION: PATCH})), HOW)
    assert refined.run.past[-1].plan.memo[REGION_SHARE] == pytest.approx(mask.mean())
    np.testing.assert_array_equal(refined.x[:, mask == 0], plain.x[:, mask == 0])
    assert (abs(refined.x - plain.x)[:, mask == 1] > 1e-3).mean() > 0.9


WHOLE = ("adams", "kriging", "dpm_adaptive", "ddpm", "dpmpp_sde")


@pytest.mark.parametrize("name", [n for n in SOLVERS if n not in WHOLE])
def test_outside_the_run_goes_on_as_if_nothing_had_happened(name: str) -> None:
    """Cells of a white field do not know of each other: what the solver remembers of the outside must be untouched.

    `adams`, `kriging` and `dpm_adaptive` weigh by errors of the whole sample, and stochastic solvers draw the noise
    that the refinement left, so theirs are other runs.
    """
    model, solver = Field(), registry.parse("solver", name)
    plain, refined = (denoise(model, model.problem(), solver, At(k, HARD)) for k in (99, 7))
    np.testing.assert_allclose(refined.x[:, PATCH == 0], plain.x[:, PATCH == 0], atol=1e-12)
    assert abs(refined.x - plain.x)[:, PATCH == 1].mean() > 0.1


@pytest.mark.parametrize("name", SOLVERS)
def test_an_empty_region_changes_nothing_and_costs_nothing(name: str) -> None:
    model, solver = Field(2.0, map=np.zeros((SIZE, SIZE))), registry.parse("solver", name)
    plain, empty = (denoise(model, model.problem(), solver, At(k)) for k in (99, 4))
    np.testing.assert_array_equal(empty.x, plain.x)
    assert empty.run.cost == plain.run.cost
    assert {a.plan.memo[REGION_SHARE] for a in empty.run.past if isinstance(a.plan.evaluate, Refine)} == {0.0}


# -- Inside ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [Cosine(), FlowMatching()], ids=lambda s: s.name)
@pytest.mark.parametrize("length", [0.0, 1.5, 3.0])
def test_inside_it_remains_a_sample_of_the_field(length: float, schedule: Schedule) -> None:
    """Over 4000 channels: variance inside, and covariance with the outside, as before up to 7 % of the variance.

    Four calls are few and pinning is to clean estimates, smoother than samples: some variance is lost.
    """
    model = Field(length, schedule)
    plain, refined = (
        denoise(model, model.problem(channels=4000), registry.parse("solver", "dpmpp"), At(k, HARD)).x for k in (99, 8)
    )
    truth, inside = covariance(length), PATCH.ravel() == 1
    assert abs(refined - plain)[:, PATCH == 1].mean() > 0.1

    def error(x: np.ndarray) -> np.ndarray:
        rows = x.reshape(-1, SIZE**2)
        return rows.T @ rows / len(rows) - truth

    before, after = error(plain), error(refined)
    gained = np.diag(after)[inside] - np.diag(before)[inside]
    assert -0.07 < gained.mean() < 0.03
    crossing = abs(after - before)[inside][:, ~inside]
    assert crossing.max() < 0.12
    assert crossing.mean() < 0.03


@pytest.mark.parametrize(("kind_of", "factor"), [("noise", 4.0), ("other", 4.0)])
def test_a_planted_defect_is_repaired(kind_of: str, factor: float) -> None:
    """On a smooth field the outside tells what belongs inside: the error there falls to less than a quarter."""
    model, start = Field(3.0), 0.1
    late = tuple(start * (1 - i / 8) for i in range(9))
    early = denoise(model, model.problem(channels=40, grid=(*(1 - i / 20 for i in range(12)), start)), DDIM(), fixed())
    problem = replace(model.problem(channels=40, grid=late), x=early.x)
    other = np.random.default_rng(5).standard_normal(early.x.shape) if kind_of == "noise" else early.x[::-1]
    broken = replace(problem, x=np.where(PATCH == 1, other, early.x))
    whole = denoise(model, problem, DDIM(), fixed()).x
    left, repaired = (denoise(model, broken, DDIM(), At(k, HARD)).x for k in (99, 0))

    def wrong(x: np.ndarray) -> float:
        return float(np.sqrt(((x - whole)[:, PATCH == 1] ** 2).mean()))

    assert wrong(repaired) * factor < wrong(left)


def test_a_map_that_shows_the_defect_marks_it() -> None:
    """A denoiser that knows the field marks cells by how unlikely they are: the mask meets the patch."""
    model, rng = Field(3.0), np.random.default_rng(0)
    field_ = np.linalg.cholesky(covariance(3.0)) @ rng.standard_normal(SIZE**2)
    x = np.where(PATCH == 1, 3.0 * rng.standard_normal((SIZE, SIZE)), field_.reshape(SIZE, SIZE))
    precision = np.linalg.inv(covariance(3.0) + 0.1 * np.eye(SIZE**2))
    surprise = abs((precision @ x.ravel()).reshape(SIZE, SIZE)) / np.sqrt(np.diag(precision).reshape(SIZE, SIZE))
    node = Node(0.5, x, Estimate(x, features={ATTENTION: surprise}))
    marked = compute_mask(node, replace(HARD, threshold=2.0)) > 0
    union = (marked | (PATCH == 1)).sum()
    assert (marked & (PATCH == 1)).sum() / union > 0.5
    assert model.length == 3.0


# -- Cost, seeds and traces -----------------------------------------------------------------------


@pytest.mark.parametrize("name", SOLVERS)
def test_it_costs_its_steps_and_the_ordinary_step(name: str) -> None:
    model, solver = Field(2.0), registry.parse("solver", name)
    counted = CountingBackbone(model)
    run = denoise(counted, model.problem(), solver, At(6, Refine(steps=3))).run
    attempt = next(a for a in run.past if isinstance(a.plan.evaluate, Refine))
    assert attempt.cost == solver.stages + 3
    assert attempt.is_full_call
    assert not attempt.is_forecast
    assert counted.calls == run.cost


@pytest.mark.parametrize("name", ["ddim", "dpmpp_sde"])
def test_the_same_seed_is_the_same_picture_alone_or_in_a_batch(name: str) -> None:
    model, solver = Field(2.0), registry.parse("solver", name)
    problems = [model.problem(seed) for seed in range(3)]
    together = denoise_many(model, problems, solver, [At(5), At(9), At(5)])
    for problem, step, result in zip(problems, (5, 9, 5), together, strict=True):
        np.testing.assert_array_equal(denoise(model, problem, solver, At(step)).x, result.x)
    other = denoise(model, replace(problems[0], seed=7), DDIM(), At(5)).x
    assert abs(other - denoise(model, problems[0], DDIM(), At(5)).x)[:, PATCH == 1].min() > 0


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("name", ["ddim", "heun", "unipc", "adams"])
def test_a_step_taken_again_pays_for_its_call_only_without_its_map(name: str, told: bool) -> None:
    model, solver = Field(2.0), registry.parse("solver", name)
    counted = CountingBackbone(model)
    first = denoise(counted, model.problem(), solver, Second(told))
    assert counted.calls == first.run.cost
    direct = denoise(model, model.problem(), solver, At(5))
    if not solver.stages > 1:
        assert first.run.cost == direct.run.cost + (0 if told else 1)
    np.testing.assert_array_equal(first.x, direct.x)
    again = replay(model, model.problem(), solver, from_json(to_json(first.run)).run)
    np.testing.assert_array_equal(again.x, first.x)
    assert [a.cost for a in again.run.past] == [a.cost for a in first.run.past]


@pytest.mark.parametrize("how", [Full(), Finish(), Refine(steps=2)])
def test_a_refined_step_can_be_rejected(how: Any) -> None:
    """Its first call is known; what was refined is forgotten."""
    model = Field(2.0)
    counted = CountingBackbone(model)
    result = denoise(counted, model.problem(), DDIM(), Second(True, how=how, first=HOW))
    plain = denoise(model, model.problem(), DDIM(), fixed())
    assert counted.calls == result.run.cost
    if how == Full():
        np.testing.assert_array_equal(result.x, plain.x)
        assert result.run.cost == plain.run.cost + HOW.steps
    assert result.run.past[5].accepted is False


def test_forecasts_after_it_continue_the_refined_line() -> None:
    """The first forecast after a refinement repeats the eps of where the sample is now, not of where it was."""

    @dataclass(frozen=True)
    class Then(Policy):
        of: Any
        name: ClassVar[str] = "then"

        def plan(self, run: Run, proposal: Plan) -> Plan:
            if run.next_start <= run.t_end or len(run.accepted_attempts) < 8:
                return proposal
            return replace(proposal, evaluate=Refine(8, 0.3, edge=0) if len(run.accepted_attempts) == 8 else self.of)

    model = Field()
    for how in (Forecast(0, "eps"), Forecast(0, "v"), Forecast(0, "x0")):
        made = denoise(model, model.problem(), DDIM(), Then(how)).x
        exact = denoise(model, model.problem(), DDIM(), At(8, Refine(8, 0.3, edge=0))).x
        assert abs(made - exact).mean() < 0.25, how


def test_it_can_be_read_and_drawn() -> None:
    model = Field(2.0)
    run = denoise(model, model.problem(), DDIM(), At(3)).run
    assert letters(run) == "CCCR" + "C" * 12
    assert "region refined in 4" in explain(run)
    assert "region" in explain(run)
    assert attempt_kind(run.past[3], run) == "refined"


# -- Parts ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
def test_levels_fall_evenly_on_the_angle_and_end_above_where_the_step_led(schedule: Schedule) -> None:
    for back in (0.1, 0.5, 1.0):
        times = refinement_times(Refine(5, back), 0.4, schedule)
        angles = [schedule.angle(t) for t in (*times, 0.4)]
        gaps = -np.diff(angles)
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-6)
        wanted = min(schedule.angle(1.0), angles[-1] + back * (np.pi / 2 - angles[-1]))
        assert angles[0] == pytest.approx(wanted, abs=1e-6)
        assert max(times) <= 1.0


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("t", [0.5, 0.02])
def test_the_line_passes_through_the_sample_and_is_the_step_of_ddim(stochastic: bool, t: float) -> None:
    schedule, rng = Cosine(), np.random.default_rng(0)
    x, x0 = rng.standard_normal((2, 3, 4, 4))
    node = Node(0.6, x, Estimate(x0))
    anywhere = rng.standard_normal(x.shape)
    line = NoisePath.through(anywhere, t, node, schedule, stochastic)
    np.testing.assert_allclose(line.at(t, schedule), anywhere, atol=1e-9)
    eps = (x - schedule.alpha(0.6) * x0) / schedule.sigma(0.6)
    there = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    line = NoisePath.through(there, t, node, schedule, stochastic)
    np.testing.assert_allclose(line.x0, x0, atol=1e-9)
    np.testing.assert_allclose(line.eps, eps, atol=1e-9)


@pytest.mark.parametrize(("given", "words"), [(None, "gave none"), (np.ones((4, 4)), r"8, 8\) cells")])
def test_a_map_that_is_missing_or_of_another_shape_is_refused(given: Any, words: str) -> None:
    model = Field(map=given)
    with pytest.raises(BackboneError, match=words):
        denoise(model, model.problem(), DDIM(), At(3))


def test_no_steps_are_an_ordinary_call() -> None:
    model = Field()
    plain, none = (denoise(model, model.problem(), DDIM(), At(k, Refine(0))) for k in (99, 3))
    np.testing.assert_array_equal(none.x, plain.x)
    assert none.run.past[3].plan.evaluate == Full()


def test_attempts_of_old_are_unchanged() -> None:
    """A refined attempt counts as called, never as skipped."""
    a = Attempt(1.0, 0.5, Plan(Refine(), 0.5), 4.0, {})
    assert a.is_full_call
    assert not a.is_forecast
