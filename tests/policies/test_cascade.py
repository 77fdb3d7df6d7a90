"""The cascade: a student draws first, and the model draws anew where the student's estimate has not settled."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skipstone import registry
from skipstone.calibration.candidates import candidates
from skipstone.engine import trace
from skipstone.engine.contracts import Draft
from skipstone.engine.drivers import denoise, denoise_many, replay
from skipstone.engine.paired import PairedBackbone
from skipstone.engine.requests import Estimate, Problem, Query, Result
from skipstone.engine.timeline import attempt_kind
from skipstone.errors import PlanError, SpecError
from skipstone.evaluation.columns import Sampler
from skipstone.policies.cascade import LIMITS, Cascade
from skipstone.policies.student import Student
from skipstone.testing.backbones.mixture import Mixture
from tests.exact import ExactSubject

MODEL = Mixture()
SOLVER = registry.parse("solver", "unipc")
THEN = "adaptive_grid(calls=6)"


@dataclass(frozen=True)
class Blurred:
    """A student that sees less contrast than its teacher, for half a call a step."""

    network: str
    schedule: Any = MODEL.schedule
    sites: tuple[str, ...] = ()
    branches: int = 1

    def predict(self, queries: Sequence[Query]) -> list[Estimate]:
        return [Estimate(0.9 * e.x0, 0.5) for e in MODEL.predict(queries)]


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Of a student, without weights."""
    return make_student(tmp_path / "student", 2)


def make_student(folder: Path, steps: int) -> str:
    folder.mkdir()
    card = {
        "format": 1,
        "method": "consistency",
        "steps": steps,
        "weights": "lora",
        "part": "unet",
        "guidance": 3.0,
        "teacher": "exact",
        "fingerprint": "0",
    }
    (folder / "student.json").write_text(json.dumps(card), encoding="utf-8")
    return str(folder)


def problems(count: int = 6) -> list[Problem]:
    grid = tuple(1 - k / 50 for k in range(51))
    noise = [np.random.default_rng(seed).standard_normal((3, 6, 6)) for seed in range(count)]
    return [Problem(MODEL.schedule, x, grid, seed=seed) for seed, x in enumerate(noise)]


def pair(folder: str) -> PairedBackbone:
    return PairedBackbone(MODEL, Blurred(folder), folder)


def draw(folder: str, limit: float, count: int = 6) -> list[Result]:
    return denoise_many(pair(folder), problems(count), SOLVER, Cascade(folder, limit, then=THEN))


def test_kept_pictures_are_the_students(folder: str) -> None:
    kept = draw(folder, 1000.0)
    alone = denoise_many(Blurred(folder), problems(), registry.parse("solver", "ddim"), Student(folder))
    for mine, its in zip(kept, alone, strict=True):
        assert np.array_equal(mine.x, its.x)
        assert mine.run.cost == its.run.cost == 1.0
        assert trace.letters(mine.run) == "S"


def test_pictures_that_are_not_kept_are_the_models(folder: str) -> None:
    """Bit for bit: what the student drew leaves nothing behind but its cost."""
    anew = draw(folder, 0.0)
    alone = denoise_many(MODEL, problems(), SOLVER, registry.parse("policy", THEN))
    for mine, its in zip(anew, alone, strict=True):
        assert np.array_equal(mine.x, its.x)
        assert mine.run.cost == 1.0 + its.run.cost
        steps = [(a.t, a.t_next, a.cost, a.signals.get("prediction_change"), a.accepted) for a in its.run.past]
        assert [
            (a.t, a.t_next, a.cost, a.signals.get("prediction_change"), a.accepted) for a in mine.run.past[1:]
        ] == steps


def changes(folder: str) -> list[float]:
    return [result.run.past[0].signals["draft_change"] for result in draw(folder, 1000.0)]


def test_each_sample_of_a_batch_goes_its_own_way(folder: str) -> None:
    """As it would alone; those with a change above the limit, and no others, are drawn anew."""
    limit = float(np.median(changes(folder)))
    together = draw(folder, limit)
    policy = Cascade(folder, limit, then=THEN)
    for result, problem, change in zip(together, problems(), changes(folder), strict=True):
        alone = denoise(pair(folder), problem, SOLVER, policy)
        assert np.array_equal(result.x, alone.x)
        assert (len(result.run.past) == 1) == (change <= limit)
    assert 0 < sum(len(result.run.past) == 1 for result in together) < len(together)


def test_the_change_is_that_of_the_students_estimates(folder: str) -> None:
    [problem] = problems(1)
    student = Blurred(folder)
    [first] = student.predict([Query(problem.x, 1.0)])
    half = denoise(student, replace(problem, grid=(1.0, 0.5)), registry.parse("solver", "ddim"), Student(folder)).x
    [last] = student.predict([Query(half, 0.5)])
    expected = np.sqrt(np.mean((last.x0 - first.x0) ** 2))
    assert changes(folder)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("limit", [0.0, 1000.0])
def test_traces_come_back_replay_and_say_who_drew(folder: str, limit: float) -> None:
    [result] = draw(folder, limit, 1)
    read = trace.from_json(trace.to_json(result.run)).run
    assert read == result.run
    [problem] = problems(1)
    again = replay(pair(folder), problem, SOLVER, read)
    assert np.array_equal(again.x, result.x)
    assert again.run.cost == result.run.cost
    text = trace.explain(read)
    assert "student, 2 steps" in text
    assert "How far the student's picture moved" in text
    assert attempt_kind(read.past[0], read) == ("student" if limit else "student, rejected")


def test_a_budget_leaves_a_student_out_that_it_cannot_pay(folder: str) -> None:
    cascade = Cascade(folder, 1000.0, steps=8, then="fixed")
    [result] = denoise_many(pair(folder), problems(1), SOLVER, cascade | registry.parse("policy", "budget(calls=3)"))
    assert not any(isinstance(a.plan.evaluate, Draft) for a in result.run.past)
    assert result.run.cost <= 3


def test_calibration_chooses_the_limit(folder: str) -> None:
    subject: Any = ExactSubject(MODEL)
    sampler = Sampler(SOLVER, registry.parse("grid", "trailing"), 12)
    found = candidates(subject, sampler, [f"cascade(path={folder!r})"])
    assert [one.column.policy for one in found] == [Cascade(folder, limit) for limit in LIMITS]
    [given] = candidates(subject, sampler, [f"cascade(path={folder!r}, limit=0.5)"])
    assert given.column.policy == Cascade(folder, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"then": "student(path='{folder}')"}, "the model alone"),
        ({"then": "cascade(path='{folder}')"}, "the model alone"),
        ({"then": "fewer"}, "fewer"),
        ({"limit": -1.0}, "limit"),
        ({"steps": 3}, "a multiple of 2"),
    ],
)
def test_what_cannot_be_is_refused(folder: str, settings: dict[str, Any], message: str) -> None:
    given = {k: v.format(folder=folder) if isinstance(v, str) else v for k, v in settings.items()}
    with pytest.raises(SpecError, match=message):
        Cascade(folder, **given)


def test_a_student_of_one_step_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="two steps or more"):
        Cascade(make_student(tmp_path / "one", 1))
    assert Cascade(str(tmp_path / "one"), steps=2).num_steps == 2


def test_a_chain_has_one_student(folder: str, tmp_path: Path) -> None:
    other = make_student(tmp_path / "other", 2)
    for second in (Cascade(other), Student(other), Student(folder)):
        with pytest.raises(SpecError, match="one policy with a student"):
            _ = Cascade(folder) | second


def test_limits_of_a_chain_are_chosen_too(folder: str) -> None:
    chain = Cascade(folder) | registry.parse("policy", "early_stop")
    assert [one.parts[0] for one in chain.variants] == [Cascade(folder, limit) for limit in LIMITS]


def test_a_trace_of_a_student_is_not_replayed_without_it(folder: str) -> None:
    [result], [problem] = draw(folder, 1000.0, 1), problems(1)
    with pytest.raises(PlanError, match="this backbone has none"):
        replay(MODEL, problem, SOLVER, result.run)


def test_a_backbone_without_the_student_is_refused(folder: str) -> None:
    with pytest.raises(PlanError, match="no student"):
        denoise(MODEL, problems(1)[0], SOLVER, Cascade(folder))
