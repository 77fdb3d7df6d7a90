"""The rule that refines once: when, what it costs, and where it cannot."""

from __future__ import annotations

from dataclasses import replace

import pytest

import skipstone_pebble as pebble
from skipstone import policy
from skipstone.engine.contracts import Refine, Run
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.flow import REGION_SHARE
from skipstone.engine.trace import letters
from skipstone.errors import GuestError, SpecError
from skipstone.integrations.diffusers.guest import adapt
from skipstone.integrations.torch import CallCounter
from skipstone.policies.refine import RefineOnce
from skipstone.solvers import DDIM
from skipstone.testing.backbones.counting import CountingBackbone
from skipstone.testing.backbones.mixture import Mixture
from skipstone.testing.policies import PolicySetup
from skipstone_pebble.model import Pebble

SETUP = PolicySetup(DDIM(), Mixture(), 20)


def refined(run: Run) -> list[int]:
    return [i for i, a in enumerate(run.past) if isinstance(a.plan.evaluate, Refine)]


@pytest.mark.parametrize("at", [-2.0, 0.0, 1.5])
def test_it_refines_the_first_step_from_there_on_and_no_other(at: float) -> None:
    run = SETUP.run(RefineOnce(at=at, threshold=0.1)).run
    [k] = refined(run)
    assert run.clock(run.past[k].t) >= at > run.clock(run.past[k - 1].t)
    assert run.cost == 20 + 3
    assert run.past[k].plan.why == ("refine",)


def test_a_region_that_is_empty_costs_nothing_and_is_not_tried_again() -> None:
    run = SETUP.run(RefineOnce(threshold=1.0)).run
    [k] = refined(run)
    assert run.cost == 20
    assert run.past[k].plan.memo[REGION_SHARE] == 0.0


def test_everything_is_refined_at_a_threshold_of_zero_and_nothing_below_it() -> None:
    everything, nothing = (SETUP.run(RefineOnce(threshold=0.0, below=below)).run for below in (False, True))
    assert everything.past[refined(everything)[0]].plan.memo[REGION_SHARE] == 1.0
    assert nothing.cost == 20


@pytest.mark.parametrize("calls", [6, 12, 20, 22.5])
def test_a_budget_that_cannot_pay_for_it_leaves_it_out(calls: float) -> None:
    counted = CountingBackbone(Mixture())
    run = denoise(counted, SETUP.problem(), DDIM(), policy(f"refine(at=1.0, steps=8) | budget(calls={calls})")).run
    assert counted.calls == run.cost <= calls
    paid = [a for a in run.past if isinstance(a.plan.evaluate, Refine)]
    assert all(a.cost == 9 for a in paid)
    assert len(paid) <= 1


def test_a_step_that_is_skipped_is_not_refined() -> None:
    run = SETUP.run(policy("interval(every=2, warmup=1, tail=0) | refine(at=-2.0, threshold=0.0)")).run
    [k] = refined(run)
    assert run.past[k].cost == 4


@pytest.mark.parametrize(
    "setting",
    [{"steps": -1}, {"steps": 2.0}, {"back": 0.0}, {"back": 1.1}, {"threshold": -0.1}, {"edge": -1}, {"below": 1}],
    ids=str,
)
def test_settings_out_of_range_are_refused(setting: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(setting))):
        RefineOnce(**setting)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["pebble", "pebble-dit"])
def test_on_pebble_the_hook_agrees_and_no_sample_depends_on_its_batch(name: str) -> None:
    model = Pebble.load(name)
    prompts = ("a star above a car on a blue background", "a cat left of a rocket on a yellow background")
    problems = [model.problem(p, seed, 6) for seed, p in enumerate(prompts)]
    rule = RefineOnce(at=-0.5, steps=2)
    with CallCounter(model.unet) as counter:
        results = denoise_many(model.backbone, problems, DDIM(), rule)
    assert counter.rows == 2 * sum(r.run.cost for r in results)
    assert [r.run.cost for r in results] == [8.0, 8.0]
    assert all("R" in letters(r.run) for r in results)
    for problem, result in zip(problems, results, strict=True):
        [k] = refined(result.run)
        assert 0.0 < result.run.past[k].plan.memo[REGION_SHARE] < 1.0
        alone = denoise(model.backbone, problem, DDIM(), rule)
        assert float(abs(alone.x - result.x).max()) < 1e-4
        bare = denoise(model.backbone, problem, DDIM(), replace(rule, steps=0))
        assert float(abs(bare.x - result.x).max()) > 0.05


def test_a_pipeline_in_its_own_loop_says_that_it_cannot() -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(pebble.path())
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(GuestError, match="refine refines a region"), adapt(pipe, "refine(at=-9.0)"):
        pipe("a cat", num_inference_steps=4)
