"""A torch module as a backbone: one forward per moment, branches as sites, calls counted where they happen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

from skipstone.engine.contracts import Cached, Forecast, Plan, Policy, Run
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.requests import Problem, Query
from skipstone.errors import BackboneError
from skipstone.integrations.torch import CallCounter, ModuleBackbone
from skipstone.numerics.noise import standard_normal
from skipstone.numerics.parametrize import to_x0
from skipstone.numerics.tables import CosineTable
from skipstone.policies import Fixed, ThirdOrder
from skipstone.solvers import DDIM

GRID = tuple(1 - k / 20 for k in range(21))


class Net(nn.Module):
    """A small denoiser whose output depends on every argument."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(4, 4, 3, padding=1)
        self.told = nn.Linear(3, 4)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, cond: torch.Tensor) -> torch.Tensor:
        self.seen.append(tuple(round(float(t)) for t in timesteps))
        clock = torch.cos(timesteps / 300)[:, None]
        return torch.tanh(self.mix(x) + (self.told(cond) * clock)[:, :, None, None])


def backbone(guidance: float = 3.0) -> ModuleBackbone:
    return ModuleBackbone(Net().eval(), CosineTable(), "v", guidance)


def problem(seed: int, branches: int = 2) -> Problem:
    cond = {"cond": torch.full((3,), float(seed)), "uncond": torch.zeros(3)}
    return Problem(CosineTable(), standard_normal(seed, 0, torch.empty(4, 8, 8)), GRID, cond, seed, branches)


def query(seed: int, t: float, **more: Any) -> Query:
    p = problem(seed)
    return Query(p.x, t, p.cond, **more)


def test_all_queries_of_a_moment_enter_in_one_forward_with_their_own_times() -> None:
    model = backbone()
    model.predict([query(1, 0.5), query(2, 0.25)])
    assert model.module.seen == [(499, 499, 249, 249)]


def test_an_estimate_is_the_guided_output_and_its_x0() -> None:
    model, q = backbone(3.0), query(1, 0.5)
    (estimate,) = model.predict([q])
    with torch.inference_mode():
        t = torch.tensor([499.0])
        cond = model.module(q.x[None], t, q.cond["cond"][None])[0]
        uncond = model.module(q.x[None], t, q.cond["uncond"][None])[0]
    torch.testing.assert_close(estimate.output, uncond + 3.0 * (cond - uncond))
    expected = to_x0("v", estimate.output, q.x, model.schedule.alpha(0.5), model.schedule.sigma(0.5))
    torch.testing.assert_close(estimate.x0, expected)
    assert (estimate.cost, estimate.prediction) == (1.0, "v")


def test_a_given_branch_stays_out_of_the_network_and_is_used_as_it_is() -> None:
    model = backbone(3.0)
    (full,) = model.predict([query(1, 0.5, wanted_sites=frozenset({"cond", "uncond"}))])
    with CallCounter(model.module) as counter:
        (half,) = model.predict(
            [query(1, 0.5, known_outputs={"uncond": full.features["uncond"]}, wanted_sites=frozenset({"cond"}))]
        )
    assert (counter.rows, half.cost) == (1, 0.5)
    assert half.features.keys() == {"cond"}
    torch.testing.assert_close(half.output, full.output)
    (other,) = model.predict([query(1, 0.5, known_outputs={"uncond": full.features["uncond"] + 1.0})])
    torch.testing.assert_close(other.output, full.output - 2.0)


def test_with_every_branch_given_nothing_enters() -> None:
    model = backbone()
    (full,) = model.predict([query(1, 0.5, wanted_sites=frozenset(model.sites))])
    with CallCounter(model.module) as counter:
        (free,) = model.predict([query(1, 0.5, known_outputs=dict(full.features))])
    assert (counter.forwards, free.cost) == (0, 0.0)
    torch.testing.assert_close(free.output, full.output)


def test_guidance_one_has_one_branch_and_no_sites() -> None:
    model = backbone(1.0)
    with CallCounter(model.module) as counter:
        (estimate,) = model.predict([query(1, 0.5)])
    assert (model.branches, model.sites, counter.rows, estimate.cost) == (1, (), 1, 1.0)


def test_queries_may_leave_out_different_branches_of_one_forward() -> None:
    model = backbone()
    alone = [model.predict([query(s, 0.5, wanted_sites=frozenset(model.sites))])[0] for s in (1, 2)]
    given = [{"uncond": alone[0].features["uncond"]}, {"cond": alone[1].features["cond"]}]
    with CallCounter(model.module) as counter:
        mixed = model.predict([query(s, 0.5, known_outputs=g) for s, g in zip((1, 2), given, strict=True)])
    assert (counter.rows, counter.forwards) == (2, 1)
    for estimate, full in zip(mixed, alone, strict=True):
        torch.testing.assert_close(estimate.output, full.output)


@dataclass(frozen=True)
class Drops(Policy):
    """Forecasts every third step and, on the next, one branch: the counts must agree whatever is planned."""

    name: ClassVar[str] = "drops"
    sites: ClassVar[frozenset[str]] = frozenset({"uncond"})

    def plan(self, run: Run, proposal: Plan) -> Plan:
        kinds = (proposal.evaluate, Forecast(1), Cached(frozenset({"uncond"}), 1))
        return replace(proposal, evaluate=kinds[len(run.accepted_attempts) % 3])


@pytest.mark.parametrize("policy", [Fixed(), ThirdOrder(tol=0.3), Drops()], ids=lambda p: p.name)
def test_what_runs_say_they_cost_is_what_the_hook_counts(policy: Policy) -> None:
    model = backbone()
    with CallCounter(model.module) as counter:
        results = denoise_many(model, [problem(s) for s in (1, 2, 3)], DDIM(), policy)
    assert counter.rows / model.branches == sum(r.run.cost for r in results)
    if policy.name == "drops":
        assert results[0].run.cost == 7 + 7 * 0.0 + 6 * 0.5


def test_the_counter_leaves_with_its_block() -> None:
    model = backbone()
    with pytest.raises(ValueError, match="stop"), CallCounter(model.module) as counter:
        raise ValueError("stop")
    model.predict([query(1, 0.5)])
    assert counter.rows == 0


def test_a_sample_gets_in_a_batch_what_it_gets_alone() -> None:
    model, policy = backbone(), ThirdOrder(tol=0.3)
    together = denoise_many(model, [problem(s) for s in (1, 2, 3)], DDIM(), policy)
    for seed, result in zip((1, 2, 3), together, strict=True):
        alone = denoise(model, problem(seed), DDIM(), policy)
        assert [a.plan for a in alone.run.past] == [a.plan for a in result.run.past]
        torch.testing.assert_close(alone.x, result.x)


def test_strange_sites_and_conditions_are_refused() -> None:
    model = backbone()
    with pytest.raises(BackboneError, match=r"given: \[.block.\]"):
        model.predict([query(1, 0.5, known_outputs={"block": 0.0})])
    with pytest.raises(BackboneError, match="mapping with 'cond'"):
        model.predict([replace(query(1, 0.5), cond=torch.zeros(3))])
    with pytest.raises(BackboneError, match="some have none"):
        model.predict([query(1, 0.5), replace(query(1, 0.5), cond=None)])


def test_a_module_that_changes_the_shape_is_refused() -> None:
    model = ModuleBackbone(nn.Conv2d(4, 3, 1), CosineTable(), forward=lambda m, x, t, c: m(x))
    with pytest.raises(BackboneError, match="Conv2d answered"):
        model.predict([Query(torch.zeros(4, 8, 8), 0.5)])
