"""The toy: its rules are an environment's, and its exact values are those of episodes that are played."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone_train.agents.toy import (
    OBSERVATION_NAMES,
    STOPPING,
    TWO_CLASSES,
    ToySettings,
    ToyState,
    action_mask,
    apply_action,
    observe,
)
from skipstone_train.agents.toy_optimum import normalized_value, optimal_utility, policy_value
from skipstone_train.agents.transitions import collect, constant_behaviour, evaluate, random_behaviour

SMALL = ToySettings(steps=4)


def brain_of(seed: int, actions: int, scale: float = 1.0) -> ActionScorer:
    rng = np.random.default_rng(seed)
    d = len(OBSERVATION_NAMES)
    arrays = (scale * rng.normal(size=(actions, d))).astype(np.float32), rng.normal(size=actions).astype(np.float32)
    return ActionScorer(np.zeros(d, np.float32), np.ones(d, np.float32), (arrays,))


# -- As an environment -------------------------------------------------------------------------------------------------


def test_interface() -> None:
    env = SMALL.build(n=3)
    observations, _ = env.reset(seed=1)
    assert observations.shape == (3, len(env.names))
    assert observations.dtype == np.float32
    assert env.action_masks().shape == (3, len(env.actions))
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert env.single_observation_space.shape == (len(env.names),)
    assert env.single_action_space.n == len(env.actions)


def test_an_episode_ends_and_the_next_begins_in_the_same_step() -> None:
    env = SMALL.build(n=2)
    env.reset(seed=0)
    go = np.array([env.actions.index("continue")] * 2)
    for _ in range(SMALL.steps - 1):
        observations, rewards, ended, cut, infos = env.step(go)
        assert not ended.any()
        assert infos == {}
        assert (rewards == 0).all()
    observations, rewards, ended, cut, infos = env.step(go)
    assert ended.all()
    assert not cut.any()
    final = infos["final_info"]
    assert final["_utility"].all()
    assert rewards == pytest.approx(final["utility"])
    assert final["utility"] == pytest.approx(final["quality"] - SMALL.prices[0] * final["calls"])
    assert final["calls"] == pytest.approx([4, 4])
    assert infos["final_obs"][0][0] == 1.0
    assert (observations[:, 0] == 0).all()


def test_masked_actions_are_refused() -> None:
    env = SMALL.build(n=1)
    env.reset()
    with pytest.raises(SpecError, match="asked to 'stop'"):
        env.step([env.actions.index("stop")])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 1},
        {"hardness": ()},
        {"hardness": (0.0,)},
        {"told": 0.5},
        {"prices": ()},
        {"actions": ("stop",)},
        {"actions": ("continue", "jump")},
        {"chances": (1.0,)},
        {"chances": (1.0, -1.0, 1.0)},
    ],
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError, match="Expected steps >= 2"):
        ToySettings(**wrong)  # type: ignore[arg-type]


def test_rules() -> None:
    s = ToySettings(steps=8)
    assert apply_action(s, ToyState(), "skip 3") == ToyState(position=3, damage=6)
    assert apply_action(s, ToyState(damage=5), "refine") == ToyState(position=1, damage=2, refined=1)
    assert apply_action(s, ToyState(position=2), "stop") == ToyState(position=8, num_throws=2, damage=12)
    assert ToyState(num_throws=4, refined=1).calls == 6
    assert dict(zip(s.actions, action_mask(s, ToyState(position=6, refined=1)), strict=True)) == {
        "continue": True,
        "skip 2": True,
        "skip 3": False,
        "stop": True,
        "refine": False,
    }
    # A stop over two steps of the grid is those two steps.
    both = apply_action(s, apply_action(s, ToyState(position=6), "continue")._replace(num_throws=2), "continue")
    assert apply_action(s, ToyState(position=6), "stop") == both


@given(seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_observation_is_the_whole_state(seed: int) -> None:
    rng = np.random.default_rng(seed)
    states = [ToyState(*rng.integers(0, 5, 5).tolist()) for _ in range(30)]
    seen = {observe(SMALL, s, 1.0) for s in states}
    assert len(seen) == len(set(states))


def test_same_seed_same_episodes_whatever_the_others_do() -> None:
    env = ToySettings().build(n=8)
    first, again, other = (evaluate(env, "continue", 24, seed=s) for s in (3, 3, 4))
    assert (first.sample == again.sample).all()
    assert (first.sample != other.sample).any()
    short = evaluate(env, "stop at 1", 24, seed=3)  # shorter episodes: the same samples nevertheless
    assert (short.sample == first.sample).all()
    rng = np.random.default_rng(0)
    a, b = (collect(env, random_behaviour, 24, rng, seed=3) for _ in range(2))
    assert (a.sample == b.sample).all()
    assert len(a) != len(b)


def test_validation_has_other_episodes() -> None:
    a, b = (ToySettings().build(split, 64) for split in ("train", "validation"))
    assert (evaluate(a, "continue", 64, 0).sample != evaluate(b, "continue", 64, 0).sample).any()


def test_weights_choose_the_classes() -> None:
    env = TWO_CLASSES.build(n=64)
    env.set_sample_weights([1.0, 0.0])
    assert set(evaluate(env, "continue", 128).sample) == {0}
    env.set_sample_weights([1.0, 3.0])
    assert evaluate(env, "continue", 1024).sample.mean() == pytest.approx(0.75, abs=0.06)


# -- Exact values ------------------------------------------------------------------------------------------------------


def test_values_by_hand() -> None:
    s = ToySettings(steps=6, prices=(2.0,), hardness=(0.1, 0.9))
    assert policy_value(s, "continue") == pytest.approx(20 - 6 * 2)
    assert policy_value(s, "refine") == pytest.approx(20 - 8 * 2)
    quality = 20 - 5 * np.log10(1 + 0.1 * 6) - 5 * np.log10(1 + 0.9 * 6)  # three steps of two
    assert policy_value(s, "skip 2") == pytest.approx(quality - 3 * 2)
    assert policy_value(s, "skip 2", of="calls") == pytest.approx(3)
    assert policy_value(s, "skip 2", which=1, of="quality") == pytest.approx(20 - 10 * np.log10(1 + 0.9 * 6))


@pytest.mark.parametrize("chooser", ["random", "stop at 2", brain_of(1, 5), brain_of(2, 5, 3.0)])
def test_values_are_those_of_episodes(chooser: ActionScorer | str) -> None:
    found = evaluate(SMALL.build(n=64), chooser, 1024, seed=7)
    assert found.utility == pytest.approx(policy_value(SMALL, chooser), abs=4 * found.error)


def test_prices_are_mixed() -> None:
    each = [optimal_utility(ToySettings(steps=4, prices=(p,))) for p in (0.5, 3.0)]
    assert optimal_utility(ToySettings(steps=4, prices=(0.5, 3.0))) == pytest.approx(np.mean(each))


def test_optimum_by_brute_force() -> None:
    s = ToySettings(steps=3, actions=("continue", "skip 2"), prices=(3.0,), hardness=(0.1, 9.0))
    places = [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]  # position and ones; there is no choice in the last step
    found = {}
    for choice in itertools.product((0, 1), repeat=len(places)):
        table = dict(zip(places, choice, strict=True))

        def act(o: Any, m: Any, steps: Any, rng: Any, table: Any = table) -> Any:
            position, seen = round(float(o[0, 0]) * 3), int(steps[0]) + 1
            return np.array([table.get((position, round((float(o[0, 2]) * 3 + seen) / 2)), 0)])

        found[choice] = policy_value(s, act)
    assert optimal_utility(s) == pytest.approx(max(found.values()))
    blind = max(v for (a, b, *rest), v in found.items() if a == b and len(set(rest)) == 1)
    assert optimal_utility(s) > blind + 0.5  # looking is worth something


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_nothing_beats_the_optimum(seed: int) -> None:
    assert normalized_value(SMALL, brain_of(seed, 5, 3.0)) <= 1 + 1e-9


@pytest.mark.parametrize("s", [ToySettings(), STOPPING, TWO_CLASSES], ids=["all", "stopping", "two"])
def test_constants_leave_something_to_learn(s: ToySettings) -> None:
    names = [a for a in s.actions if a != "stop"] + [f"stop at {k}" for k in range(1, s.steps)]
    assert max(normalized_value(s, name) for name in names) < 0.7


def test_constant_policies_are_named() -> None:
    with pytest.raises(SpecError, match="Did you mean 'refine'"):
        constant_behaviour(SMALL.actions, "refin")
