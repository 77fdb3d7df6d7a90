"""ZEUS and SADA against samplers of their own, written after their released schedulers; masks against their numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from skipstone import registry
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.requests import Problem, Query
from skipstone.engine.trace import letters
from skipstone.errors import SpecError
from skipstone.numerics.schedule import FlowMatching, VPLinear
from skipstone.policies.mask import Mask, format_steps, parse_steps
from skipstone.solvers import DDIM, Euler
from skipstone.testing import check_id, policy_checks
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup

STEPS = 50
Array = Any
DIFFUSION, FLOW = Mixture(schedule=VPLinear()), Mixture(schedule=FlowMatching())


# -- Their loops ---------------------------------------------------------------------------------


@dataclass
class Bus:
    """What the released code keeps between steps, under its names."""

    prev_epsilon_guided: list[Array] = field(default_factory=lambda: [None, None])
    prev_f: list[Array] = field(default_factory=lambda: [None, None])
    prev_interp: Array = None
    pred_m_m_1: Array = None
    skip_this_step: bool = False
    cons_skip: int = 0


@dataclass
class Theirs:
    """The first-order sampler with the released rule in it, for a batch of noise predictions."""

    method: str
    acc_range: tuple[int, int] = (10, 47)
    max_interval: int = 4
    denominator: int = 2
    modular: tuple[int, ...] = (1,)
    is_full_call: list[bool] = field(default_factory=list)

    def sample(self, backbone: Mixture, problems: Sequence[Problem]) -> list[Array]:
        grid, schedule = problems[0].grid, backbone.schedule
        x, bus, network = np.stack([p.x for p in problems]), Bus(), None
        start = max(self.acc_range[0], 3)
        for i, (t, t_next) in enumerate(itertools.pairwise(grid)):
            alpha, sigma, after, noise = (
                schedule.alpha(t),
                schedule.sigma(t),
                schedule.alpha(t_next),
                schedule.sigma(t_next),
            )
            skipped = bus.skip_this_step and bus.pred_m_m_1 is not None
            self.is_full_call.append(not skipped)
            if not skipped:  # else the patched network repeats its last output
                queries = [Query(row, t, p.cond) for row, p in zip(x, problems, strict=True)]
                clean = np.stack([e.x0 for e in backbone.predict(queries)])
                network = (x - alpha * clean) / sigma
            bus.prev_epsilon_guided = [bus.prev_epsilon_guided[1], network]
            m0 = bus.pred_m_m_1 if skipped else (x - sigma * network) / alpha
            epsilon_0, epsilon_1 = bus.prev_epsilon_guided[1], bus.prev_epsilon_guided[0]
            x_next = after * m0 + noise * (x - alpha * m0) / sigma

            n = len(grid) - 1
            beta = 1 - (alpha / schedule.alpha(max(0.0, t - 1 / 1000))) ** 2
            f = -0.5 * beta * n * x + 0.5 * beta * n / sigma * epsilon_0
            bus.skip_this_step = False
            ahead = None
            if bus.prev_f[0] is not None:
                ahead = x - (0.625 * f + 0.75 * bus.prev_f[1] - 0.375 * bus.prev_f[0]) / n
                momentum = (x_next - ahead) * ((f - bus.prev_f[1]) - (bus.prev_f[1] - bus.prev_f[0]))
                inside = i in range(start, self.acc_range[1])
                pattern = i % self.denominator in self.modular
                wanted = inside and (pattern if self.method == "zeus" else momentum.mean() <= 0)
                bus.skip_this_step = bus.cons_skip < self.max_interval and wanted
                bus.cons_skip = bus.cons_skip + 1 if bus.skip_this_step else 0
            if bus.skip_this_step and self.method == "zeus":
                predicted = epsilon_0 + (epsilon_0 - epsilon_1)
                if bus.cons_skip == 1:
                    bus.prev_interp = predicted
                if bus.cons_skip % 2 == 1:
                    predicted = bus.prev_interp
                bus.pred_m_m_1 = (x_next - noise * predicted) / after
            elif bus.skip_this_step:
                bus.pred_m_m_1 = (ahead - noise * epsilon_0) / after
            bus.prev_f = [bus.prev_f[1], f]
            x = x_next
        return list(x)


def problems(count: int = 3, steps: int = STEPS, backbone: Mixture = DIFFUSION) -> list[Problem]:
    return [PolicySetup(backbone=backbone, steps=steps).problem(seed, scale=1.0 + 0.3 * seed) for seed in range(count)]


def called(results: Sequence[Any]) -> list[list[bool]]:
    return [[letter == "C" for letter in letters(r.run)] for r in results]


@pytest.mark.parametrize(
    ("spec", "theirs"),
    [
        ("zeus", {}),
        ("zeus(denominator=3, modular=(0, 1), last=45)", {"denominator": 3, "modular": (0, 1), "acc_range": (10, 45)}),
        (
            "zeus(denominator=6, modular=(0, 1, 2, 3, 4), max_skip=6)",
            {"denominator": 6, "modular": (0, 1, 2, 3, 4), "max_interval": 6},
        ),
        (
            "zeus(denominator=1, modular=(0,), first=0, max_skip=3)",
            {"denominator": 1, "modular": (0,), "acc_range": (0, 47), "max_interval": 3},
        ),
        ("sada", {}),
        ("sada(first=0, last=50, max_skip=2)", {"acc_range": (0, 50), "max_interval": 2}),
    ],
)
def test_decisions_and_samples_are_those_of_the_released_code(spec: str, theirs: dict[str, Any]) -> None:
    own = Theirs(registry.parse("policy", spec).name, **theirs)
    expected = own.sample(DIFFUSION, problems())
    results = denoise_many(DIFFUSION, problems(), DDIM(), registry.parse("policy", spec))
    assert called(results) == [own.is_full_call] * len(results)
    assert 5 < sum(own.is_full_call) < STEPS - 5
    for ours, x in zip(results, expected, strict=True):
        np.testing.assert_allclose(ours.x, x, rtol=1e-6, atol=1e-8)


def test_sada_by_the_sample_decides_what_it_would_alone() -> None:
    policy = registry.parse("policy", "sada(scope='sample')")
    together = called(denoise_many(DIFFUSION, problems(), DDIM(), policy))
    assert together == [called([denoise(DIFFUSION, p, DDIM(), policy)])[0] for p in problems()]
    assert len({tuple(c) for c in together}) > 1
    for p, decisions in zip(problems(), together, strict=True):
        own = Theirs("sada")
        own.sample(DIFFUSION, [p])
        assert own.is_full_call == decisions


def test_sada_of_a_flow_tests_the_second_difference_alone() -> None:
    policy, skips = registry.parse("policy", "sada(of='flow', scope='sample')"), []
    for p in problems(backbone=FLOW):
        result = denoise(FLOW, p, Euler(), policy)
        y: list[Array] = []  # of each step; a skipped one repeats the last call's
        x, streak = p.x, 0
        for i, (t, t_next) in enumerate(itertools.pairwise(p.grid)):
            if streak:
                f = y[-1] + (y[-1] - y[-2]) if streak == 1 else y[-1]
                y.append(y[-1])
            else:
                clean = FLOW.predict([Query(x, t, p.cond)])[0].x0
                f = (x - clean) / t
                y.append(f)
            assert (letters(result.run)[i] == "C") is (streak == 0)
            x = x + (t_next - t) * f
            stable = streak > 0 or (i >= 2 and (2 * y[-2] - y[-1] - y[-3]).mean() <= 0)
            streak = streak + 1 if stable and 10 <= i < 47 and streak < 4 else 0
        skips.append(letters(result.run).count("."))
        np.testing.assert_allclose(result.x, x, rtol=1e-9, atol=1e-10)
    assert len(set(skips)) > 1


@pytest.mark.parametrize(("name", "every"), [("zeus", 6), ("sada", 4)])
def test_late_steps_are_called_every_so_often_and_interpolated_between(name: str, every: int) -> None:
    run = denoise(DIFFUSION, problems(1)[0], DDIM(), registry.parse("policy", f"{name}(lagrange=3, max_skip=9)")).run
    late = range(25, 48)
    assert [run.past[i].is_full_call for i in late] == [(i - 1) % every == 0 for i in late]
    assert all(run.past[i].plan.evaluate.order == 2 for i in late if run.past[i].is_forecast)  # type: ignore[union-attr]
    assert all(a.is_full_call for a in run.past[48:])


# -- Masks ---------------------------------------------------------------------------------------


def test_a_mask_skips_its_numbers() -> None:
    run = denoise(DIFFUSION, problems(1, 12)[0], DDIM(), registry.parse("policy", "mask(skips='0,3,5-7,40')")).run
    assert letters(run) == "CCC.C...CCCC"


@pytest.mark.parametrize("skips", ["", "3", "3,4", "3-5", "1,3,4,6-9,20"])
def test_numbers_and_their_spelling_invert_each_other(skips: str) -> None:
    assert format_steps(parse_steps(skips)) == skips


@pytest.mark.parametrize("skips", ["a", "3-", "-3", "5-3", "1.5", "3;4"])
def test_other_texts_are_refused(skips: str) -> None:
    with pytest.raises(SpecError, match="try '3,4,6-8'"):
        Mask(skips)


@pytest.mark.parametrize("check", [pytest.param(c, id=check_id(c)) for c in policy_checks(Mask("3,5-7,23"))])
def test_a_mask_that_skips_conforms(check: Any) -> None:
    check()


def test_random_skipping_calls_as_often_as_told_and_alike_for_all() -> None:
    masks = set()
    for seed in range(20):
        policy = registry.parse("policy", f"random_skip(calls=20, seed={seed})")
        first, *others = [letters(r.run) for r in denoise_many(DIFFUSION, problems(), DDIM(), policy)]
        assert set(others) == {first}
        assert first.count("C") == 20
        assert first.startswith("CCC")
        assert first.endswith("C")
        masks.add(first)
    assert len(masks) == 20


@pytest.mark.parametrize(
    "spec",
    ["zeus(modular=(2,))", "zeus(modular=1)", "zeus(modular=(True,))", "sada(scope='all')", "random_skip(calls=0)"],
)
def test_settings_out_of_range_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="try "):
        registry.parse("policy", spec)
