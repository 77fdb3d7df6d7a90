"""An agent is a policy like any other: its guide to the bit where it continues, legal whatever it thinks, one file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from logs import GUIDES, SCHEDULE, log

from skipstone import registry
from skipstone.engine import trace
from skipstone.engine.drivers import denoise, denoise_many, replay
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.policies.agent.actions import ACTION, DEFAULT_ACTIONS, ActionSpace
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.policies.agent.observation import Observation
from skipstone.policies.agent.policy import Agent, AgentCheckpoint
from skipstone.policies.storage import read_policy, save_policy

LOG = log()
POOL = LOG.pool(range(len(LOG)), SCHEDULE)
PRICES = ((2.0, GUIDES[5]), (1.0, GUIDES[8]), (0.5, GUIDES[12]))


def mind(
    seed: int = 0, names: tuple[str, ...] = DEFAULT_ACTIONS, learned: bool = True, size: float = 1.0
) -> AgentCheckpoint:
    """An agent of random opinions; of size 0 it likes all actions alike but `continue` best."""
    moves, sight = ActionSpace(names), Observation(("place", "trace", "errors"))
    rng = np.random.default_rng(seed)
    weight = (size * rng.normal(size=(len(moves), len(sight.names)))).astype(np.float32)
    bias = np.zeros(len(moves), np.float32)
    bias[names.index("continue")] = 1.0
    count = len(sight.names)
    brain = ActionScorer(np.zeros(count, np.float32), np.ones(count, np.float32), ((weight, bias),))
    return AgentCheckpoint(brain, moves, sight, PRICES, learned, "adams(of='x0')")


def agent(tmp_path: Path, price: float, **kwargs: object) -> Agent:
    path = mind(**kwargs).save(tmp_path / "agent.safetensors")  # type: ignore[arg-type]
    return Agent(str(path), price)


@pytest.mark.parametrize("price", [2.0, 1.0, 0.5])
@pytest.mark.parametrize("said", [{"size": 0.0}, {"size": 5.0, "learned": False}])
def test_an_agent_that_continues_is_its_guide(tmp_path: Path, price: float, said: dict[str, object]) -> None:
    policy = agent(tmp_path, price, **said)
    times = dict(PRICES)[price].times
    fixed = registry.parse("policy", f"path(times='{' '.join(map(str, times[1:-1]))}', of='x0')")
    solver = registry.parse("solver", policy.solver)
    mine, theirs = (denoise_many(POOL.backbone, POOL.problems, solver, p) for p in (policy, fixed))
    for a, b in zip(mine, theirs, strict=True):
        assert (a.x == b.x).all()
        assert a.run.cost == b.run.cost == len(times) - 1


@pytest.mark.parametrize("seed", range(6))
def test_whatever_it_thinks_it_lands_pays_and_can_be_replayed(tmp_path: Path, seed: int) -> None:
    policy = agent(tmp_path, 1.0, seed=seed, names=(*DEFAULT_ACTIONS, "stop 4"))
    solver = registry.parse("solver", policy.solver)
    for sample in range(4):
        result = denoise(POOL.backbone, POOL.problems[sample], solver, policy)
        assert result.run.t == 0.0
        assert result.run.cost == sum(not a.is_forecast and a.cost > 0 for a in result.run.past)
        assert result.run.cost <= policy.checkpoint.action_space.calls * GUIDES[8].steps + 4
        known = trace.from_json(trace.to_json(result.run)).run
        assert (replay(POOL.backbone, POOL.problems[sample], solver, known).x == result.x).all()


def test_a_sample_does_not_depend_on_its_batch(tmp_path: Path) -> None:
    policy = agent(tmp_path, 0.5, seed=3)
    solver = registry.parse("solver", policy.solver)
    together = denoise_many(POOL.backbone, POOL.problems, solver, policy)
    for problem, result in zip(POOL.problems, together, strict=True):
        alone = denoise(POOL.backbone, problem, solver, policy)
        assert (alone.x == result.x).all()
        assert alone.run.past == result.run.past


def test_the_trace_says_which_actions_were_taken(tmp_path: Path) -> None:
    policy = agent(tmp_path, 1.0, seed=1)
    run = denoise(POOL.backbone, POOL.problems[0], registry.parse("solver", policy.solver), policy).run
    taken = [a.plan.memo[ACTION] for a in run.past if ACTION in a.plan.memo]
    assert taken
    assert all(0 <= a < len(DEFAULT_ACTIONS) for a in taken)
    assert {"agent"} == {why for a in run.past for why in a.plan.why}


def test_a_file_holds_all_of_it(tmp_path: Path) -> None:
    before = mind(2)
    after = AgentCheckpoint.load(before.save(tmp_path / "a.safetensors"))
    assert (after.action_space, after.observation, after.base_schedules, after.solver) == (
        before.action_space,
        before.observation,
        before.base_schedules,
        before.solver,
    )
    observation, mask = np.linspace(-1, 1, after.action_scorer.inputs), np.ones(len(after.action_space))
    assert after.action_scorer.choose(observation, mask) == before.action_scorer.choose(observation, mask)
    assert Agent(str(tmp_path / "a.safetensors"), 1.0).checkpoint.prices == (0.5, 2.0)


def test_it_is_saved_and_loaded_as_any_policy(tmp_path: Path) -> None:
    policy = agent(tmp_path, 1.0)
    save_policy(policy, tmp_path / "kept")
    assert read_policy(tmp_path / "kept") == policy


def test_what_is_wrong_is_said(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no agent 'nobody'"):
        _ = Agent("nobody").needs
    path = str(mind().save(tmp_path / "a.safetensors"))
    with pytest.raises(SpecError, match=r"a price in 0.5..2"):
        Agent(path, 9.0)
    with pytest.raises(SpecError, match="price"):
        Agent(path, -1.0)
    (tmp_path / "b.safetensors").write_bytes(b"not one")
    with pytest.raises(SpecError, match="agent's file"):
        AgentCheckpoint.load(tmp_path / "b.safetensors")
    ActionScorer(
        np.zeros(1, np.float32), np.ones(1, np.float32), ((np.ones((2, 1), np.float32), np.zeros(2, np.float32)),)
    ).save(tmp_path / "c.safetensors")
    with pytest.raises(SpecError, match="what an agent needs beside it"):
        AgentCheckpoint.load(tmp_path / "c.safetensors")


def test_another_model_has_another_text_state(tmp_path: Path) -> None:
    sight = Observation(("place", "prompt"), (0.0, 0.0, 0.0), ((1.0, 0.0, 0.0),))
    brain = ActionScorer(
        np.zeros(7, np.float32), np.ones(7, np.float32), ((np.zeros((2, 7), np.float32), np.zeros(2, np.float32)),)
    )
    AgentCheckpoint(brain, ActionSpace(("continue", "skip 2")), sight, PRICES).save(tmp_path / "a.safetensors")
    policy, problem = Agent(str(tmp_path / "a.safetensors"), 1.0), POOL.problems[0]
    denoise(POOL.backbone, problem, registry.parse("solver", "adams"), policy)
    other = Problem(problem.schedule, problem.x, problem.grid, 0, prompt=(1.0, 2.0))
    with pytest.raises(SpecError, match="text states of width 3"):
        denoise(POOL.backbone, other, registry.parse("solver", "adams"), policy)
