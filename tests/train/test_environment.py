"""The environment is a driver of the flow: what an agent does there it does in use, and the twin computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from logs import SCHEDULE, log

from skipstone.engine.drivers import denoise
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.evaluation.utility import Utility
from skipstone.policies.agent.actions import ActionSpace
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.policies.agent.policy import Agent, AgentCheckpoint
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone_train.agents.environment import Environment
from skipstone_train.agents.episodes import DecisionProcess, DenoisingEnv, SamplePool
from skipstone_train.agents.settings import EnvironmentSettings, build_live_pool, run_base_schedules
from skipstone_train.agents.trajectory_log import TrajectoryLog
from skipstone_train.agents.vectorized_env import VectorizedEnv


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EnvironmentSettings:
    path = log().save(tmp_path_factory.mktemp("log") / "log.npz")
    return EnvironmentSettings(
        log=str(path), guides_from="logged", axes=2, prices=(0.5, 1.0, 2.0), floor=-20.0, cap=60.0, relative=False
    )


def process(settings: EnvironmentSettings, pool: SamplePool, utility: Utility) -> DecisionProcess:
    solver = settings.trajectory_log.build_solver()
    return DecisionProcess(pool, solver, settings.action_space, settings.observation, settings.base_schedules, utility)


def both(settings: EnvironmentSettings, slots: int, in_order: bool = False) -> tuple[DenoisingEnv, DenoisingEnv]:
    pool = settings.trajectory_log.pool(range(len(settings.trajectory_log)), SCHEDULE)
    given = process(settings, pool, Utility(1.0, settings.floor, settings.cap))
    return Environment(given, slots, in_order), VectorizedEnv(given, slots, in_order)


def test_the_twin_is_equal(settings: EnvironmentSettings) -> None:
    one, two = both(settings, 9)
    rng = np.random.default_rng(1)
    mine, theirs = one.reset(seed=4)[0], two.reset(seed=4)[0]
    ended = 0
    for _ in range(40):
        assert mine == pytest.approx(theirs, abs=2e-3)
        masks = one.action_masks()
        assert (masks == two.action_masks()).all()
        actions = np.where(masks, rng.random(masks.shape), -1).argmax(1)
        mine, pay, over, _, told = one.step(actions)
        theirs, other, done, _, said = two.step(actions)
        assert (over == done).all()
        assert pay == pytest.approx(other, abs=0.05)
        ended += int(over.sum())
        for name in ("quality", "calls", "utility", "price", "sample") if over.any() else ():
            assert told["final_info"][name] == pytest.approx(said["final_info"][name], abs=0.05), name
    assert ended > 20


def test_in_use_an_agent_does_what_it_did_in_training(settings: EnvironmentSettings, tmp_path: Path) -> None:
    env, _ = both(settings, len(settings.trajectory_log) * 3, in_order=True)
    rng = np.random.default_rng(0)
    width, count = len(env.names), len(env.actions)
    brain = ActionScorer(
        np.zeros(width, np.float32),
        np.ones(width, np.float32),
        ((rng.normal(size=(count, width)).astype(np.float32), np.zeros(count, np.float32)),),
    )
    path = settings.agent(brain, True, {}).save(tmp_path / "agent.safetensors")
    found: dict[int, dict[str, float]] = {}
    seen = env.reset(seed=0)[0]
    while len(found) < env.num_envs:
        actions = [brain.choose(o, m) for o, m in zip(seen, env.action_masks(), strict=True)]
        seen, _, over, _, info = env.step(actions)
        for i in np.flatnonzero(over):
            found.setdefault(int(i), {k: v[i] for k, v in info["final_info"].items()})
    for i in (0, 5, 13, 29):
        sample, price = int(found[i]["sample"]), float(found[i]["price"])
        result = denoise(env.pool.backbone, env.pool.problems[sample], env.solver, Agent(str(path), price))
        assert result.run.cost == found[i]["calls"]
        assert env.pool.quality(sample, result.x) == found[i]["quality"]


def test_every_sample_and_price_comes_once(settings: EnvironmentSettings) -> None:
    _, twin = both(settings, 36, in_order=True)
    found = run_base_schedules(twin)
    pairs = set(zip(found["sample"].tolist(), found["price"].tolist(), strict=True))
    assert len(pairs) == 36 == len(settings.trajectory_log) * len(settings.base_schedules)
    assert set(found["calls"].tolist()) == {float(guide.steps) for _, guide in settings.base_schedules}
    assert found["utility"] == pytest.approx(
        np.clip(found["quality"], settings.floor, settings.cap) - found["price"] * found["calls"]
    )


def test_relative_pay_of_the_guide_is_nothing(settings: EnvironmentSettings) -> None:
    env = replace(settings, relative=True).build("validation")
    found = run_base_schedules(env)
    assert found["reward"] == pytest.approx(np.zeros(env.num_envs), abs=1e-4)
    assert np.ptp(found["utility"]) > 1


def test_draws_depend_on_seed_slot_and_number_alone(settings: EnvironmentSettings) -> None:
    def episodes(choice: int) -> dict[tuple[int, int], tuple[float, float]]:
        _, env = both(settings, 4)
        env.reset(seed=9)
        found: dict[tuple[int, int], tuple[float, float]] = {}
        count = [0] * 4
        for _ in range(60):
            masks = env.action_masks()
            actions = [np.flatnonzero(m)[:: -1 if choice else 1][0] for m in masks]
            over, info = env.step(actions)[2::2]
            for i in np.flatnonzero(over):
                found[int(i), count[i]] = (info["final_info"]["sample"][i], info["final_info"]["price"][i])
                count[i] += 1
        return found

    short, long = episodes(0), episodes(1)
    common = short.keys() & long.keys()
    assert len(common) >= 8
    assert all(short[k] == long[k] for k in common)
    assert len(set(short.values())) > 3


def test_weights_choose_the_samples(settings: EnvironmentSettings) -> None:
    _, env = both(settings, 8)
    env.set_sample_weights(np.arange(len(settings.trajectory_log)) == 5)
    env.reset(seed=0)
    found = run_base_schedules(env)
    assert set(found["sample"].tolist()) == {5.0}


def test_actions_that_are_not_allowed_are_refused(settings: EnvironmentSettings) -> None:
    for env in both(settings, 2):
        env.reset(seed=0)
        stop = env.actions.index("stop 1")
        assert not env.action_masks()[0, stop]  # before its first calls
        with pytest.raises(SpecError, match="'stop 1' is not allowed in slot 0"):
            env.step([stop, stop])


def test_blocks_that_are_left_out_are_gone(settings: EnvironmentSettings) -> None:
    whole = settings.observation.names
    bare = replace(settings, blocks=("place",)).observation.names
    assert len(bare) == 6 < len(whole)
    assert set(bare) < set(whole)
    assert len(replace(settings, axes=0).observation.names) == len(whole) - 2


def test_gate_and_refine_run_where_a_model_has_them_and_not_in_the_twin(settings: EnvironmentSettings) -> None:
    given = replace(settings, actions=("continue", "gate"))
    assert isinstance(given.build("train", 3), Environment)
    assert isinstance(settings.build("train", 3), VectorizedEnv)
    pool = settings.trajectory_log.pool([0], SCHEDULE)
    with pytest.raises(SpecError, match="no action gate"):
        VectorizedEnv(replace(process(settings, pool, Utility(1.0)), action_space=ActionSpace(("continue", "gate"))), 1)


def test_any_backbone_will_do(settings: EnvironmentSettings) -> None:
    backbone = Gaussian()
    x = np.random.default_rng(0).normal(size=(4, 4))
    grid = settings.trajectory_log.grid
    problem = Problem(backbone.schedule, x, grid, prompt=tuple(settings.trajectory_log.states[0]))
    end = backbone.exact(x, grid[0], grid[-1])
    pool = SamplePool(backbone, [problem], [end], 1.0, ["one"], np.ones(1, np.float32))
    env = Environment(process(settings, pool, Utility(1.0)), 3, True)
    found = run_base_schedules(env)
    assert (np.diff(found["quality"]) > 3).all()  # 5, 8 and 12 calls
    assert found["calls"].tolist() == [5, 8, 12]


def test_guides_are_the_best_of_the_training_samples(settings: EnvironmentSettings) -> None:
    train, held = settings.trajectory_log.split(settings.share)
    assert not {settings.trajectory_log.prompts[i] for i in train} & {settings.trajectory_log.prompts[i] for i in held}
    made = settings.trajectory_log.made[train].mean(0)
    for price, guide in settings.base_schedules:
        best = max(zip(made, settings.trajectory_log.base_schedules, strict=True), key=lambda m: m[0] - price * m[1])[1]
        assert guide.steps == best


def test_a_log_comes_back_whole(tmp_path: Path) -> None:
    before = log(6)
    after = TrajectoryLog.load(before.save(tmp_path / "a.npz"))
    assert (after.prompts, after.seeds, after.grid, after.base_schedules) == (
        before.prompts,
        before.seeds,
        before.grid,
        before.base_schedules,
    )
    assert (after.runs.v == before.runs.v).all()
    assert after.provenance == before.provenance


def test_logs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Draw some: skipstone train log"):
        TrajectoryLog.load(tmp_path / "nowhere.npz")
    (tmp_path / "b.npz").write_bytes(b"nothing")
    with pytest.raises(SpecError, match="damaged"):
        TrajectoryLog.load(tmp_path / "b.npz")


@pytest.mark.parametrize(
    "wrong", [{"prices": ()}, {"prices": (0.0,)}, {"prices": (1.0, 1.0)}, {"share": 1.0}, {"axes": -1}, {"floor": 60.0}]
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="xpected"):
        EnvironmentSettings(**wrong)  # type: ignore[arg-type]


def test_minds_hold_what_they_were_trained_on(settings: EnvironmentSettings) -> None:
    width, count = len(settings.observation.names), len(settings.action_space)
    brain = ActionScorer(
        np.zeros(width, np.float32),
        np.ones(width, np.float32),
        ((np.zeros((count, width), np.float32), np.zeros(count, np.float32)),),
    )
    mind = settings.agent(brain, False, {"learner": "none"})
    assert isinstance(mind, AgentCheckpoint)
    assert mind.base_schedules == settings.base_schedules
    assert mind.solver == "adams(of='x0')"


def test_an_agent_may_begin_with_even_steps(settings: EnvironmentSettings) -> None:
    even = replace(settings, guides_from="even")
    for _, guide in even.base_schedules:
        angles = np.array([even.model.schedule.angle(t) for t in guide.times])
        assert np.diff(angles) == pytest.approx(np.full(guide.steps, -angles[0] / guide.steps), abs=0.01)
    assert {guide.steps for _, guide in even.base_schedules} <= set(settings.trajectory_log.base_schedules)


def test_what_is_learnt_is_judged_on_the_network_or_not_at_all(settings: EnvironmentSettings) -> None:
    assert replace(settings, judged=False).build_live_validation() is None
    assert replace(settings, live=True).build_live_validation() is None


def test_errors_may_fade_as_on_another_sample(settings: EnvironmentSettings) -> None:
    _, twin = both(settings, 64)
    assert isinstance(twin, VectorizedEnv)
    twin.reset(seed=1)
    assert (twin.error_sample == twin.sample).all()
    twin.swapped = 0.5
    twin.reset(seed=1)
    assert 0.2 < (twin.error_sample != twin.sample).mean() < 0.8
    same = twin.error_sample.copy()
    twin.reset(seed=1)
    assert (twin.error_sample == same).all()


def test_the_shipped_log_proves_on_the_network() -> None:
    """What the training command does in the end, on two samples: the guide there is as the log says."""
    settings = EnvironmentSettings(guides_from="logged", prices=(2.0,))
    _, held = settings.trajectory_log.split(settings.share)
    pool = build_live_pool(settings.model, settings.trajectory_log, held[1:4:2])
    env = Environment(process(settings, pool, Utility(1.0)), 2, True)
    found = run_base_schedules(env)
    guide = list(settings.trajectory_log.base_schedules).index(settings.base_schedules[0][1].steps)
    assert found["quality"] == pytest.approx(
        settings.trajectory_log.made[held[1:4:2], guide], abs=8
    )  # latents, not pixels
    assert found["calls"].tolist() == [settings.base_schedules[0][1].steps] * 2
