"""What an agent sees: one code path for training and use, parts that can be left out, and looks that are paid for."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as budget
from hypothesis import strategies as st
from logs import GRID, GUIDES, SCHEDULE, log

from skipstone import registry
from skipstone.engine import trace
from skipstone.engine.contracts import Run
from skipstone.engine.drivers import denoise, denoise_many
from skipstone.engine.requests import Problem
from skipstone.errors import SpecError
from skipstone.evaluation.utility import Utility
from skipstone.policies.agent import observation as sights
from skipstone.policies.agent.actions import ActionSpace
from skipstone.policies.agent.addiffusion_observation import PARTS, QUALITY_ENTRIES, PublishedObservation
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.policies.agent.observation import BLOCKS, Observation, ObservationBatch
from skipstone.policies.agent.policy import Agent, AgentCheckpoint
from skipstone.policies.stride import Stride
from skipstone.testing.backbones.gaussian import Gaussian
from skipstone.testing.policies import _DeclaredSignals, _WithSignals
from skipstone_train.agents.environment import Environment
from skipstone_train.agents.episodes import DecisionProcess, SamplePool
from skipstone_train.agents.held_out import HeldOutEpisodes
from skipstone_train.agents.settings import EnvironmentSettings, run_base_schedules
from skipstone_train.agents.vectorized_env import VectorizedEnv

FEE = 0.75
WIDTHS = (5, 3)
LOOKED = PublishedObservation("", *WIDTHS, FEE)
SOLVER = registry.parse("solver", "adams(of='x0')")
PRICES = ((1.0, GUIDES[5]), (0.5, GUIDES[8]))
PHI = Observation(("published",), published=LOOKED)


@dataclass
class Glass:
    """Eyes of numpy: the first numbers of a picture. Counts how often it is looked through."""

    sample: int
    counted: Counter[str] = field(default_factory=Counter)

    def __call__(self, by: str) -> Glass:
        return self

    def image_features(self, x0: Any) -> Any:
        self.counted["picture"] += 1
        return x0.reshape(-1)[: WIDTHS[0]] * (np.nan if self.sample == 99 else 1.0)

    def prompt_features(self) -> Any:
        self.counted["words"] += 1
        return np.arange(3.0) + self.sample


def problems(count: int = 3, feature_extractors: bool = True) -> list[Problem]:
    rng = np.random.default_rng(0)
    starts = rng.normal(size=(count, 4, 4))
    prompts = [(1.0, 2.0, float(s)) for s in range(count)]
    return [
        Problem(SCHEDULE, x, GRID, s, s, prompt=prompts[s], feature_extractors=Glass(s) if feature_extractors else None)
        for s, x in enumerate(starts)
    ]


def environment(sight: Observation, slots: int = 6, feature_extractors: bool = True, **more: Any) -> Environment:
    backbone, given = Gaussian(schedule=SCHEDULE), problems(feature_extractors=feature_extractors)
    ends = [backbone.exact(p.x, GRID[0], GRID[-1]) for p in given]
    pool = SamplePool(backbone, given, ends, 1.0, ["a", "b", "c"], np.ones(3, np.float32))
    utility = Utility(1.0, -50.0, 90.0)
    return Environment(DecisionProcess(pool, SOLVER, ActionSpace(), sight, PRICES, utility, **more), slots, True)


def brain(sight: Observation, seed: int = 0) -> ActionScorer:
    count = len(sight.names)
    weight = np.random.default_rng(seed).normal(size=(len(ActionSpace()), count)).astype(np.float32)
    zero = np.zeros(len(ActionSpace()), np.float32)
    return ActionScorer(np.zeros(count, np.float32), np.ones(count, np.float32), ((weight, zero),))


def played(env: Environment, chooser: ActionScorer) -> tuple[dict[int, list[Any]], dict[int, dict[str, float]]]:
    """Observations and last figures of the first episode of each slot."""
    seen, finals = env.reset(seed=0)[0], dict[int, dict[str, float]]()
    rows: dict[int, list[Any]] = {i: [] for i in range(env.num_envs)}
    while len(finals) < env.num_envs:
        for i in rows.keys() - finals.keys():
            rows[i].append(seen[i])
        actions = [chooser.choose(o, m) for o, m in zip(seen, env.action_masks(), strict=True)]
        seen, _, over, _, info = env.step(actions)
        for i in np.flatnonzero(over):
            finals.setdefault(int(i), {k: float(v[i]) for k, v in info["final_info"].items()})
    return rows, finals


def subsets(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [c for k in range(1, len(names) + 1) for c in itertools.combinations(names, k)]


# -- Parts ----------------------------------------------------------------------------------------------------------


def test_the_published_state_is_as_wide_as_published() -> None:
    sight = Observation(("published",), published=PublishedObservation("clip", 768, 768))
    assert len(sight.names) == 768 + 768 + 128 + 8 == 1672
    assert sight.names == Observation(tuple(reversed(PARTS)), published=sight.published).names
    assert [sight.names.index(name) for name in ("image 0", "text 0", "timestep 0", "quality image-text")] == [
        0,
        768,
        1536,
        1664,
    ]


@pytest.mark.parametrize("blocks", subsets(PARTS), ids="-".join)
@pytest.mark.parametrize("light", [(), ("place", "trace")], ids="-".join)
def test_what_is_left_out_is_neither_seen_nor_measured(light: tuple[str, ...], blocks: tuple[str, ...]) -> None:
    sight = Observation((*light, *blocks), published=LOOKED)
    widths = {"image": 5, "text": 3, "timestep": 128, "quality": 8, "place": 6, "trace": 9}
    assert len(sight.names) == len(set(sight.names)) == sum(widths[b] for b in sight.blocks)
    assert ("look" in sight.needs) == bool({"image", "quality"} & {*blocks})
    assert ("words" in sight.needs) == bool({"text", "quality"} & {*blocks})
    env = environment(sight, 3)
    rows, finals = played(env, brain(sight))
    assert {row.shape for own in rows.values() for row in own} == {(len(sight.names),)}
    counted = [p.feature_extractors.counted for p in env.pool.problems]  # type: ignore[union-attr]
    assert all(bool(c["picture"]) == ("look" in sight.needs) for c in counted)
    assert all(bool(c["words"]) == ("words" in sight.needs) for c in counted)
    assert all((f["looks"] > 0) == ("look" in sight.needs) for f in finals.values())


def test_the_light_observation_is_the_default_and_looks_at_nothing() -> None:
    assert Observation().blocks == BLOCKS == EnvironmentSettings().blocks
    assert not Observation().published_blocks
    assert not {"look", "words"} & Observation().needs
    assert "log price" in Observation(("quality",), published=LOOKED).names  # told once, whoever tells it
    assert list(Observation(("place", "quality"), published=LOOKED).names).count("log price") == 1


@pytest.mark.parametrize("wrong", [(), ("picture",), ("place", "imagee")])
def test_unknown_blocks(wrong: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="published"):
        Observation(wrong)


# -- Numbers --------------------------------------------------------------------------------------------------------


def view(rows: int, rng: np.random.Generator, t: Any = None) -> ObservationBatch:
    one, many = np.full(rows, 1.0), np.zeros((rows, 5))
    pictures = rng.normal(size=(rows, 3, WIDTHS[1]))
    words = rng.normal(size=(rows, WIDTHS[1]))
    times = rng.random(rows) if t is None else t
    return ObservationBatch(
        8 * one, 21 * one, 4 * one, 2 * one, many, many + 0.3, many + 0.2, one, one, many, times, pictures, words
    )


@budget(max_examples=25, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_timesteps_are_embedded_as_published(times: list[float]) -> None:
    found = LOOKED.features("timestep", view(len(times), np.random.default_rng(0), np.array(times)))
    for row, t in zip(found, times, strict=True):
        waves = [1000 * t * 10000 ** (-i / 63) for i in range(64)]
        assert row.tolist() == pytest.approx([*map(math.sin, waves), *map(math.cos, waves)], abs=1e-9)


@budget(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_qualities_are_what_they_are_called(seed: int) -> None:
    seen = view(2, np.random.default_rng(seed))
    aligned, apart = (
        dict(zip(QUALITY_ENTRIES, q, strict=True))
        for q in (
            PublishedObservation("clip", 3, 3).features("quality", seen)[1],
            PublishedObservation("", 3, 3).features("quality", seen)[1],
        )
    )

    def cosine(a: Any, b: Any) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    now, last, before = seen.pictures[1]
    fits = cosine(now, seen.words[1])
    expected = {
        "image-text": fits, "image-text change": fits - cosine(last, seen.words[1]),
        "image likeness": cosine(now, last), "last image likeness": cosine(last, before),
        "progress": 0.4, "calls": 0.8, "log price": math.log(2.0), "log last": math.log(2.0 + 1e-6),
    }  # fmt: skip
    assert aligned == pytest.approx(expected)
    assert apart == pytest.approx({**expected, "image-text": 0.0, "image-text change": 0.0})


@budget(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_features_are_of_length_one_and_missing_ones_are_nothing(seed: int) -> None:
    seen = view(2, np.random.default_rng(seed))
    seen.pictures[1] = np.nan
    settings = PublishedObservation("clip", 3, 3)
    image, text = settings.features("image", seen), settings.features("text", seen)
    assert np.linalg.norm(image, axis=1) == pytest.approx([1.0, 0.0])
    assert np.linalg.norm(text, axis=1) == pytest.approx(1.0)
    assert np.isfinite(settings.features("quality", seen)).all()
    assert settings.features("quality", seen)[1, :4].tolist() == [0.0] * 4


# -- One code path --------------------------------------------------------------------------------------------------


class Spy(Observation):
    """A sight that keeps what it has seen."""

    def observe(self, run: Run, guide: Any, price: float) -> Any:
        found = super().observe(run, guide, price)
        KEPT.append(found)
        return found


KEPT: list[Any] = []


@pytest.mark.parametrize("blocks", [("published",), (*BLOCKS, "published"), ("timestep",)], ids="-".join)
def test_in_use_an_agent_sees_what_it_saw_in_training(blocks: tuple[str, ...], tmp_path: Path) -> None:
    axes = ((1.0, 0.0, 0.5), (0.0, 1.0, -0.5))
    sight = Observation(blocks, (0.5, 0.5, 0.5), axes, LOOKED)
    env = environment(sight)
    chooser = brain(sight, 1)
    rows, finals = played(env, chooser)
    saved = AgentCheckpoint(chooser, ActionSpace(), sight, PRICES, True, "adams(of='x0')").save(
        tmp_path / "agent.safetensors"
    )
    assert AgentCheckpoint.load(saved).observation == sight
    for slot, final in finals.items():
        price = final["price"]
        policy = Agent(str(saved), price)
        spied = replace(policy.checkpoint, observation=Spy(blocks, sight.centre, sight.axes, LOOKED))
        object.__setattr__(policy, "checkpoint", spied)
        KEPT.clear()
        result = denoise(env.pool.backbone, problems()[int(final["sample"])], SOLVER, policy)
        assert np.array_equal(KEPT, rows[slot])
        assert result.run.cost == final["calls"]
        assert sight.fee(result.run) == final["looks"]
        known = trace.from_json(trace.to_json(result.run)).run
        assert known == result.run


def test_rewards_change_nothing_that_is_seen() -> None:
    plain = environment(PHI)
    chooser = brain(PHI)
    baseline = np.full((3, 2), 7.0, np.float32)
    other = environment(PHI, baseline=baseline)
    other.utility = Utility(3.0, 0.0, 5.0)
    (mine, _), (theirs, _) = played(plain, chooser), played(other, chooser)
    assert all(np.array_equal(mine[i], theirs[i]) for i in mine)


def test_a_batch_sees_what_each_sees_alone(tmp_path: Path) -> None:
    saved = AgentCheckpoint(brain(PHI), ActionSpace(), PHI, PRICES, True, "adams(of='x0')").save(
        tmp_path / "agent.safetensors"
    )
    policy = Agent(str(saved), 1.0)
    backbone = Gaussian(schedule=SCHEDULE)
    together = denoise_many(backbone, problems(), SOLVER, policy)
    for problem, result in zip(problems(), together, strict=True):
        assert denoise(backbone, problem, SOLVER, policy).run == result.run


def test_features_that_are_not_finite_are_seen_as_nothing() -> None:
    strange = replace(problems(1)[0], feature_extractors=Glass(99))
    env = environment(PHI, 1)
    env.pool = replace(env.pool, problems=[strange, *env.pool.problems[1:]])
    first = env.reset(seed=0)[0][0]
    assert np.isfinite(first).all()
    assert not first[:5].any()


def test_an_agent_reads_only_what_it_declares(tmp_path: Path) -> None:
    saved = AgentCheckpoint(brain(PHI), ActionSpace(), PHI, PRICES, True, "adams(of='x0')").save(
        tmp_path / "agent.safetensors"
    )
    policy = Agent(str(saved), 1.0)
    run = denoise(Gaussian(schedule=SCHEDULE), problems()[0], SOLVER, policy).run
    first = replace(run.past[0], accepted=None, signals=_DeclaredSignals(run.past[0].signals, policy.needs))
    state = replace(run, t=run.grid[0], past=(), pending=first)
    policy.plan(state, state.proposal())
    blind = replace(first, signals=_DeclaredSignals(run.past[0].signals, policy.needs - {"look"}))
    with pytest.raises(AssertionError, match="look"):
        policy.plan(replace(state, pending=blind), state.proposal())


# -- What looking costs ---------------------------------------------------------------------------------------------


def test_every_call_is_looked_at_once_and_paid_for() -> None:
    env = environment(PHI, 3)
    _, finals = played(env, brain(PHI, 2))
    for final in finals.values():
        price = float(final["price"])
        assert final["looks"] == FEE * final["calls"]
        quality = min(90.0, max(-50.0, final["quality"]))
        assert final["utility"] == pytest.approx(quality - price * (1 + FEE) * final["calls"])
    alone = problems(1)[0]
    run = denoise(Gaussian(schedule=SCHEDULE), alone, SOLVER, LookingStride(0.05)).run
    assert any(a.accepted is False for a in run.past), "no step was taken again"
    assert alone.feature_extractors.counted == {"picture": run.cost, "words": 1}  # type: ignore[union-attr]
    assert LOOKED.count_images(run) == run.cost


class LookingStride(Stride):
    """`stride`, with looks that it does not use."""

    @property
    def needs(self) -> frozenset[str]:
        return super().needs | PHI.needs


def test_forecast_steps_are_not_looked_at() -> None:
    policy = registry.parse("policy", "interval(every=2, warmup=1, tail=0)")
    alone = replace(problems(1)[0], grid=GUIDES[12].times)
    run = denoise(Gaussian(schedule=SCHEDULE), alone, registry.parse("solver", "ddim"), _WithSignals(policy)).run
    assert run.cost < len(run.past)
    assert [("look[0]" in a.signals) for a in run.past] == [not a.is_forecast for a in run.past]
    assert alone.feature_extractors.counted["picture"] == run.cost  # type: ignore[union-attr]


def test_fixed_schedules_look_at_nothing_and_pay_nothing() -> None:
    env = environment(PHI)
    blind, light = env.blind, environment(Observation(("place",)))
    assert light.blind is light
    found, expected = run_base_schedules(blind), run_base_schedules(light)
    assert found["utility"].tolist() == expected["utility"].tolist()
    assert not any(p.feature_extractors.counted for p in env.pool.problems)  # type: ignore[union-attr]
    paid = run_base_schedules(env)
    assert paid["quality"].tolist() == found["quality"].tolist()
    assert paid["calls"].tolist() == found["calls"].tolist()
    assert (paid["utility"] < found["utility"]).all()
    held = HeldOutEpisodes(env)
    assert sorted(set(held.prices)) == [0.5, 1.0]
    score = held.scores["always continue"]
    assert score.utilities == pytest.approx(found["utility"])
    assert held.evaluate("random").utility < held.random.utility


def test_an_agent_that_plays_its_guide_looks_at_nothing(tmp_path: Path) -> None:
    saved = AgentCheckpoint(brain(PHI), ActionSpace(), PHI, PRICES, False, "adams(of='x0')").save(
        tmp_path / "agent.safetensors"
    )
    policy, given = Agent(str(saved), 1.0), problems(1)[0]
    assert not policy.needs
    assert denoise(Gaussian(schedule=SCHEDULE), given, SOLVER, policy).run.cost == GUIDES[5].steps
    assert not given.feature_extractors.counted  # type: ignore[union-attr]


# -- Where nobody can look ------------------------------------------------------------------------------------------


def test_recorded_runs_cannot_be_looked_at(tmp_path: Path) -> None:
    logged = log()
    with pytest.raises(SpecError, match="live: true"):
        environment(PHI, feature_extractors=False).reset(seed=0)
    pool = logged.pool(range(3), SCHEDULE)
    with pytest.raises(SpecError, match="live: true"):
        Environment(DecisionProcess(pool, SOLVER, ActionSpace(), PHI, PRICES, Utility(1.0)), 2).reset(seed=0)
    with pytest.raises(SpecError, match="live: true"):
        VectorizedEnv(DecisionProcess(pool, SOLVER, ActionSpace(), PHI, PRICES, Utility(1.0)), 2)
    with pytest.raises(SpecError, match="live: true"):
        EnvironmentSettings(blocks=("place", "image"))


@pytest.mark.parametrize("widths", [(4, 3), (6, 3), (5, 2), (5, 4)])
def test_other_eyes_than_those_it_was_trained_with(widths: tuple[int, int]) -> None:
    sight = Observation(("published",), published=PublishedObservation("", *widths, FEE))
    with pytest.raises(SpecError, match="width"):
        environment(sight).reset(seed=0)


def test_the_module_names_every_block() -> None:
    doc = " ".join((sights.Observation.__doc__ or "").split())
    assert all(name in doc for name in (*BLOCKS, *PARTS))
