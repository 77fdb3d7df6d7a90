"""The policy that most users meet: where its steps go, and what makes them shorter."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skipstone import denoise, denoise_many, policy, solver
from skipstone.engine.requests import Problem
from skipstone.numerics.array import rms
from skipstone.numerics.noise import standard_normal
from skipstone.policies.adaptive_grid import DENSITIES, FLAT, LOUDEST, QUIETEST, Density
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone.testing.backbones.mixture import Mixture


def problem(backbone, steps=50, seed=0):
    grid = (*(1 - i / steps for i in range(steps)), 0.0)
    return Problem(backbone.schedule, standard_normal(seed, 0, np.zeros(16)), grid, seed=seed)


@pytest.mark.parametrize("kind", sorted(DENSITIES))
@given(level=st.floats(QUIETEST, LOUDEST))
def test_the_level_of_so_many_steps_is_where_they_end(kind, level):
    density = DENSITIES[kind]
    assert density.level(density.steps(level)) == pytest.approx(level, abs=1e-6)


@pytest.mark.parametrize("steps", [20, 28, 30, 50])
@pytest.mark.parametrize("calls", [8, 10, 15])
def test_calls_do_not_follow_from_the_steps_asked_for(steps, calls):
    backbone = Gaussian()
    made = denoise(backbone, problem(backbone, steps), solver("kriging"), policy(f"adaptive_grid(calls={calls})"))
    assert abs(made.run.cost - calls) <= 2


def test_calls_never_exceed_the_steps_asked_for():
    backbone = Mixture()
    made = denoise(backbone, problem(backbone, 6), solver("kriging"), policy("adaptive_grid(calls=30)"))
    assert made.run.cost <= 6


def test_more_calls_are_closer_to_the_solution():
    backbone = Mixture()
    fine = denoise(backbone, problem(backbone, 400), solver("adams"), policy("fixed")).x
    gaps = [
        float(
            rms(denoise(backbone, problem(backbone), solver("kriging"), policy(f"adaptive_grid(calls={n})")).x - fine)
        )
        for n in (6, 12, 24)
    ]
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


def test_without_adaptation_all_samples_share_their_times():
    backbone = Mixture()
    problems = [problem(backbone, seed=seed) for seed in range(4)]
    results = denoise_many(backbone, problems, solver("kriging"), policy("adaptive_grid(adapt=0.0, bend=0.0)"))
    assert len({tuple(a.t_next for a in r.run.accepted_attempts) for r in results}) == 1


def test_a_sample_is_the_same_alone_and_in_a_batch():
    backbone = Mixture()
    problems = [problem(backbone, seed=seed) for seed in range(4)]
    together = denoise_many(backbone, problems, solver("kriging"), policy("adaptive_grid"))
    alone = denoise(backbone, problems[2], solver("kriging"), policy("adaptive_grid"))
    assert float(rms(together[2].x - alone.x)) == 0.0
    assert [a.t for a in together[2].run.attempts] == [a.t for a in alone.run.attempts]


class Wobbling(Mixture):
    """A mixture whose clean estimate swings near the data, as that of a network under high guidance does."""

    def predict(self, queries):
        made = super().predict(queries)
        return [replace(e, x0=e.x0 + np.sin(40.0 * q.t), output=None) for e, q in zip(made, queries, strict=True)]


def test_a_sample_that_bends_more_gets_more_calls():
    calm, wild = Mixture(), Wobbling()
    rule = policy("adaptive_grid(calls=10)")
    costs = [denoise(b, problem(b), solver("kriging"), rule).run.cost for b in (calm, wild)]
    assert costs[1] > costs[0]


@given(level=st.floats(QUIETEST, LOUDEST), rise=st.floats(-0.5, 2.0), fall=st.floats(-0.5, 2.0))
def test_any_slopes_have_a_level_for_so_many_steps(level, rise, fall):
    density = Density(*(slope if abs(slope) > FLAT else FLAT for slope in (rise, fall)))
    assert density.level(density.steps(level)) == pytest.approx(level, abs=1e-3)


def test_a_larger_rise_takes_its_calls_later():
    backbone = Gaussian()
    early, late = (
        denoise(backbone, problem(backbone), solver("kriging"), policy(f"adaptive_grid(calls=10, rise={rise})")).run
        for rise in (0, 1)
    )
    assert early.accepted_attempts[5].t > late.accepted_attempts[5].t
