"""Recorded runs answer as what they recorded, and errors fade on them as they were measured to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from logs import GRID, SCHEDULE, make_trajectories

from skipstone import registry
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.requests import Problem, Query
from skipstone.errors import BackboneError
from skipstone_train.agents.logged_backbone import CachedSchedule, RecordedBackbone, RecordedTrajectories

FIXED = registry.parse("policy", "fixed")
ADAMS = registry.parse("solver", "adams")


def problem(sample: int, steps: int) -> Problem:
    grid = tuple(np.linspace(GRID[0], 0.0, steps + 1).tolist())
    return Problem(SCHEDULE, RUNS.z[sample], grid, sample)


RUNS = make_trajectories(6)
LOGGED = RecordedBackbone(SCHEDULE, RUNS)


def test_the_answer_on_the_run_is_what_was_recorded() -> None:
    for place in (0, 30, 90):
        t = SCHEDULE.time(-np.log(np.tan(RUNS.angles[place]))) if place > 0 else 1.0
        _, z, _ = LOGGED.at(t)
        [answer] = LOGGED.predict([Query(z[2], t, 2)])
        assert answer.output == pytest.approx(RUNS.v[2, place], abs=2e-3)


@pytest.mark.parametrize(("solver", "order"), [("ddim", 1), ("adams", 3)])
def test_solvers_converge_to_the_end_of_the_run(solver: str, order: int) -> None:
    end = LOGGED.at(0.0)[1]
    errors = []
    for steps in (16, 32):
        found = denoise_many(LOGGED, [problem(i, steps) for i in range(6)], registry.parse("solver", solver), FIXED)
        errors.append(np.sqrt(np.mean([(r.x - end[i]) ** 2 for i, r in enumerate(found)])))
    assert np.log2(errors[0] / errors[1]) > 0.75 * order


@pytest.mark.parametrize("mark", [1, 3])
def test_an_error_made_on_the_way_fades_as_measured(mark: int) -> None:
    t = SCHEDULE.time(float(-np.log(np.tan(RUNS.marks[mark]))))
    grid = tuple(np.linspace(t, 0.0, 400).tolist())
    _, z, _ = LOGGED.at(t)
    nudge = np.float32(0.01) * np.eye(RUNS.z.shape[1], dtype=np.float32)[0]
    for sample in range(3):
        start = Problem(SCHEDULE, z[sample], grid, sample)
        ends = [denoise(LOGGED, replace(start, x=x), ADAMS, FIXED).x for x in (z[sample], z[sample] + nudge)]
        left = np.linalg.norm(ends[1] - ends[0]) / 0.01
        assert left == pytest.approx(float(RUNS.gains[sample, mark]), rel=0.03)  # the last step is Adams' own


def test_coordinates_keep_root_mean_squares() -> None:
    rng = np.random.default_rng(0)
    angles = np.linspace(1.5, 0.0, 30)
    v = np.einsum("spk,skn->spn", rng.normal(size=(2, 30, 3)), rng.normal(size=(2, 3, 500)))
    z = rng.normal(size=(2, 500))
    kept = RecordedTrajectories.from_latents(
        angles, z, v, np.ones((2, 1)), angles[[5]], 4
    )  # three of v, one of what z has beside
    assert kept.v.shape == (2, 30, 4)
    for i, j in ((0, 7), (3, 20)):
        before, after = v[0, i] - v[0, j], kept.v[0, i] - kept.v[0, j]
        assert np.sqrt((after**2).mean()) == pytest.approx(np.sqrt((before**2).mean()), rel=1e-5)
    assert np.sqrt((kept.z[0] ** 2).mean()) == pytest.approx(np.sqrt((z[0] ** 2).mean()), rel=1e-5)


def test_a_sample_that_is_not_there() -> None:
    with pytest.raises(BackboneError, match="one of 6 recorded runs"):
        LOGGED.predict([Query(RUNS.z[0], 0.5, 6)])


def test_a_remembered_schedule_says_the_same() -> None:
    kept = CachedSchedule(SCHEDULE)
    for t in (1.0, 0.37, 0.37, 0.0):
        assert (kept.alpha(t), kept.sigma(t), kept.clock(t), kept.angle(t)) == (
            SCHEDULE.alpha(t),
            SCHEDULE.sigma(t),
            SCHEDULE.clock(t),
            SCHEDULE.angle(t),
        )
