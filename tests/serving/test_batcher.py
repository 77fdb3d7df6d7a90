"""The driver of many flows: a picture is what it would be alone, and what fails fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone import registry
from skipstone.engine.contracts import Plan, Policy, Run
from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Estimate, Problem, Query, Result
from skipstone.numerics.noise import standard_normal
from skipstone.serving.batcher import Batcher, Forward, Sample
from skipstone.serving.order import FIRST, Rank, longest_wait
from skipstone.serving.refusals import DrawingFailed
from skipstone.testing.backbones import Gaussian, Mixture

GUIDED = Mixture(guidance=3.0)
SETTINGS = [
    ("fixed", "dpmpp", 10),
    ("fixed", "ddpm", 7),
    ("adaptive_grid(calls=8)", "kriging", 30),
    ("stride(tol=0.01)", "adams", 20),
    ("third_order(tol=0.05)", "ddim", 20),
    ("guidance_gate(below=0.5)", "ddim", 12),
    ("pid", "dpm_adaptive", 10),
    ("fixed", "heun", 6),
]


def problem(seed: int, steps: int, backbone: Any = GUIDED, shape: tuple[int, ...] = (2, 3, 3)) -> Problem:
    grid = tuple(1.0 - 0.998 * k / steps for k in range(steps + 1))
    noise = standard_normal(seed, 0, np.empty(shape))
    return Problem(backbone.schedule, noise, grid, cond=seed % 3, seed=seed, branches=backbone.branches)


def sample(number: int, rank: Rank = FIRST, backbone: Any = GUIDED) -> Sample:
    policy, solver, steps = SETTINGS[number % len(SETTINGS)]
    return Sample(
        backbone,
        problem(number, steps, backbone),
        registry.parse("solver", solver),
        registry.parse("policy", policy),
        rank,
    )


def alone(one: Sample) -> Result:
    return denoise(one.backbone, one.problem, one.solver, one.policy)


def drain(batcher: Batcher) -> dict[int, Result | Exception]:
    done: dict[int, Result | Exception] = {}
    while len(batcher):
        done |= batcher.tick()
    return done | batcher.tick()


def check_alike(got: Result | Exception, expected: Result) -> None:
    assert isinstance(got, Result), got
    assert np.array_equal(got.x, expected.x)
    assert got.run == expected.run


ALONE = {number: alone(sample(number)) for number in range(16)}


@given(
    order=st.permutations(range(10)),
    gaps=st.lists(st.integers(0, 4), min_size=10, max_size=10),
    priorities=st.lists(st.integers(0, 2), min_size=10, max_size=10),
    rows=st.sampled_from([1, 3, 8, 64]),
)
def test_a_picture_depends_neither_on_companions_nor_on_order_nor_on_load(
    order: Sequence[int], gaps: Sequence[int], priorities: Sequence[int], rows: int
) -> None:
    """Bit for bit, decisions too: samples join at any time, in any order, with any priority, and rows are short."""
    batcher, numbers, done = Batcher(rows, patience=3), {}, {}
    for k, gap, priority in zip(order, gaps, priorities, strict=True):
        numbers[batcher.admit(sample(k, Rank(priority)))] = k
        for _ in range(gap):
            done |= batcher.tick()
    done |= drain(batcher)
    assert len(done) == 10
    for number, k in numbers.items():
        check_alike(done[number], ALONE[k])


def test_who_leaves_changes_nothing_for_the_others() -> None:
    batcher = Batcher(6)
    numbers = [batcher.admit(sample(k)) for k in range(6)]
    for _ in range(3):
        batcher.tick()
    batcher.remove(numbers[2])
    done = drain(batcher)
    assert done.keys() == {n for n in numbers if n != numbers[2]}
    for k in (0, 1, 3, 4, 5):
        check_alike(done[numbers[k]], ALONE[k])


def test_a_call_takes_no_more_rows_than_its_budget_and_is_filled() -> None:
    seen: list[tuple[Forward, int]] = []
    batcher = Batcher(7)
    batcher.on_forward = lambda forward: seen.append((forward, len(batcher)))
    for _ in range(8):
        batcher.admit(sample(0))
    drain(batcher)
    assert sum(f.samples for f, _ in seen) == 8 * 10
    assert all(f.samples == min(3, there) and f.rows == 2 * f.samples for f, there in seen)


def test_only_what_fits_shares_a_call() -> None:
    asked: list[set[tuple[int, ...]]] = []

    class Watched(Gaussian):
        def predict(self, queries: Sequence[Query]) -> list[Estimate]:
            asked.append({q.x.shape for q in queries})
            return super().predict(queries)

    backbone, batcher = Watched(), Batcher(64)
    solver, policy = registry.parse("solver", "ddim"), registry.parse("policy", "fixed")
    for k, shape in enumerate([(2, 3, 3), (2, 5, 5)] * 2):
        batcher.admit(Sample(backbone, problem(k, 5, backbone, shape), solver, policy))
    done = drain(batcher)
    assert len(done) == 4
    assert sorted(asked, key=str) == [{(2, 3, 3)}] * 5 + [{(2, 5, 5)}] * 5


def test_no_sample_waits_beyond_the_bound_while_urgent_ones_keep_coming() -> None:
    batcher = Batcher(2, patience=4)  # one sample a call
    solver, policy = registry.parse("solver", "ddim"), registry.parse("policy", "fixed")
    late: list[int] = []
    calls = [0]
    batcher.on_forward = lambda forward: calls.__setitem__(0, calls[0] + 1)
    least = Sample(GUIDED, problem(1, 5), solver, policy, Rank(2), watch=lambda run, clean: late.append(calls[0]))
    number = batcher.admit(least)
    for k in range(200):
        while len(batcher) < 3:
            batcher.admit(Sample(GUIDED, problem(k, 2), solver, policy, Rank(0)))
        if number in batcher.tick():
            break
    waits = np.diff(late)
    assert len(late) == 6  # five steps, and the end
    assert max(waits) - 1 <= longest_wait(4, 3)
    assert max(waits) > 4  # it did wait: the others are more urgent


@dataclass(frozen=True)
class Poisoned:
    """A backbone that cannot answer samples of one condition."""

    inner: Any = GUIDED
    how: str = "raises"
    calls: list[int] = field(default_factory=list)

    @property
    def schedule(self) -> Any:
        return self.inner.schedule

    sites: ClassVar[tuple[str, ...]] = GUIDED.sites
    branches: ClassVar[int] = GUIDED.branches

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        self.calls.append(len(queries))
        if self.how == "memory" and len(queries) > 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        bad = [q.cond == 1 for q in queries]
        if self.how == "raises" and any(bad):
            raise RuntimeError("index 49408 is out of bounds")
        answers = self.inner.predict(queries)
        if self.how == "nan":
            return [replace(a, x0=a.x0 * np.nan) if b else a for a, b in zip(answers, bad, strict=True)]
        return list(answers)


@pytest.mark.parametrize("how", ["raises", "nan"])
def test_one_at_fault_among_32_fails_alone(how: str) -> None:
    batcher, backbone = Batcher(64), Poisoned(how=how)
    solver, policy = registry.parse("solver", "dpmpp"), registry.parse("policy", "fixed")
    problems = [replace(problem(k, 10), cond=1 if k == 13 else 0) for k in range(32)]
    numbers = [batcher.admit(Sample(backbone, p, solver, policy)) for p in problems]
    done = drain(batcher)
    for k, number in enumerate(numbers):
        if k == 13:
            assert isinstance(done[number], DrawingFailed)
            assert ("index 49408" if how == "raises" else "NaN") in str(done[number])
        else:
            check_alike(done[number], denoise(GUIDED, problems[k], solver, policy))
    assert len(backbone.calls) <= 10 + (2 * 5 if how == "raises" else 0)


def test_a_batch_that_memory_does_not_hold_is_halved_and_later_ones_are_smaller() -> None:
    batcher, backbone = Batcher(64), Poisoned(how="memory")
    numbers = {batcher.admit(replace(sample(k), backbone=backbone)): k for k in range(12)}
    done = drain(batcher)
    for number, k in numbers.items():
        check_alike(done[number], ALONE[k])
    assert batcher.rows == 6  # 24 rows failed, then 12; 6 did not
    assert backbone.calls.count(12) == 1


def test_memory_that_holds_not_even_one_sample_is_an_error_of_that_sample() -> None:
    class Never(Mixture):
        def predict(self, queries: Sequence[Query]) -> list[Estimate]:
            raise MemoryError("out of memory")

    batcher = Batcher(8)
    batcher.admit(replace(sample(0), backbone=Never(guidance=3.0)))
    good = batcher.admit(sample(1))
    done = drain(batcher)
    check_alike(done[good], ALONE[1])
    assert isinstance(done[0], DrawingFailed)


@dataclass(frozen=True)
class Broken(Policy):
    """A policy with a fault."""

    how: str = "raises"
    name: ClassVar[str] = "broken"

    @property
    def needs(self) -> frozenset[str]:
        if self.how == "needs":
            raise AttributeError("what it needs")
        return frozenset({"no_such_signal"} if self.how == "signal" else ())

    def plan(self, run: Run, proposal: Plan) -> Plan:
        if len(run.attempts) == 3:
            if self.how == "raises":
                return proposal.memo["not there"]  # type: ignore[return-value]
            return replace(proposal, t_next=2.0)
        return proposal


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("raises", "not there"),
        ("plans backwards", "must land between"),
        ("needs", "what it needs"),
        ("signal", "no_such_signal"),
    ],
)
def test_a_policy_that_fails_ends_its_own_sample_only(how: str, said: str) -> None:
    batcher = Batcher(64)
    good = [batcher.admit(sample(k)) for k in range(4)]
    bad = batcher.admit(replace(sample(0), policy=Broken(how)))
    done = drain(batcher)
    assert said in str(done[bad])
    for k, number in enumerate(good):
        check_alike(done[number], ALONE[k])


def test_a_run_is_told_of_its_decisions_with_the_newest_estimate() -> None:
    seen: list[tuple[float, bool]] = []
    batcher = Batcher(8)
    watched = replace(sample(0), watch=lambda run, clean: seen.append((run.cost, clean is None)))
    batcher.admit(watched)
    drain(batcher)
    assert seen == [(float(k), k == 0) for k in range(11)]


def test_noise_that_is_not_finite_fails_alone() -> None:
    batcher = Batcher(64)
    solver, policy = registry.parse("solver", "dpmpp"), registry.parse("policy", "balanced")
    problems = [problem(k, 10) for k in range(4)]
    problems[2] = replace(problems[2], x=np.where(np.arange(18).reshape(2, 3, 3) == 7, np.nan, problems[2].x))
    numbers = [batcher.admit(Sample(GUIDED, p, solver, policy)) for p in problems]
    done = drain(batcher)
    assert isinstance(done[numbers[2]], DrawingFailed)
    for k in (0, 1, 3):
        check_alike(done[numbers[k]], denoise(GUIDED, problems[k], solver, policy))


def test_a_watcher_that_raises_ends_its_own_sample_only() -> None:
    def watch(run: Run, clean: Any) -> None:
        raise OSError("the client's queue is gone")

    batcher = Batcher(64)
    good, bad = batcher.admit(sample(0)), batcher.admit(replace(sample(1), watch=watch))
    done = drain(batcher)
    assert "queue is gone" in str(done[bad])
    check_alike(done[good], ALONE[0])
