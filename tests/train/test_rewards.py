"""Rewards: shaping changes no ranking; the published ones have their constants, and teach what they are said to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.errors import SpecError
from skipstone.evaluation.utility import Utility
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone_train.agents.published_rewards import (
    ADDITIVE,
    FALLBACK,
    MULTIPLICATIVE,
    OPTUNA,
    RESEARCH,
    Baseline,
    StepScores,
    entropy,
    episode_rewards,
    final_reward,
    step_reward,
)
from skipstone_train.agents.rewards import Shaping, constant_policies, cost_potential, rank_constant_policies
from skipstone_train.agents.surrogate import SurrogateEnv, SurrogateSettings
from skipstone_train.agents.toy import OBSERVATION_NAMES, ToyEnv, ToySettings
from skipstone_train.agents.toy_optimum import policy_value
from skipstone_train.agents.transitions import constant_behaviour, evaluate

SMALL = ToySettings(steps=4)
UNIT = Baseline((0.2, 5.0, -1.0), (0.3, 6.0, 1.0))  # 0 is a run of 20 steps, 1 one of 50
HALF = StepScores("stop", 1, 0.25, 5.5, 0.0)
PICTURE = StepScores("continue", 1, 0.3, 6.0, 1.0)


def random_brain(seed: int, actions: int) -> ActionScorer:
    rng = np.random.default_rng(seed)
    d = len(OBSERVATION_NAMES)
    layers = ((rng.normal(size=(actions, d)).astype(np.float32), rng.normal(size=actions).astype(np.float32)),)
    return ActionScorer(np.zeros(d, np.float32), np.ones(d, np.float32), layers)


# -- Ours ----------------------------------------------------------------------------------------------------------


def test_utility_is_clipped_quality_less_the_price_of_calls() -> None:
    u = Utility(0.5, floor=10, cap=40)
    assert u(30.0, 12) == pytest.approx(24.0)
    assert u(np.array([-np.inf, 10, 45, np.inf]), np.array([0, 0, 10, 10])) == pytest.approx([10, 10, 35, 35])


@pytest.mark.parametrize("wrong", [{"price": -0.1}, {"price": 1.0, "floor": 5, "cap": 5}, {"price": float("nan")}])
def test_utility_refuses_what_makes_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match="price >= 0 and floor < cap"):
        Utility(**wrong)


@given(seed=st.integers(0, 10_000), gamma=st.sampled_from([1.0, 0.9]))
@settings(max_examples=25, deadline=None)
def test_shaping_adds_the_same_to_every_policy(seed: int, gamma: float) -> None:
    brain = random_brain(seed, len(SMALL.actions))
    plain, shaped = (policy_value(SMALL, brain, shaping, gamma) for shaping in (None, Shaping(gamma)))
    start = -SMALL.prices[0] * 1  # potential of the first state: one call has been made
    assert shaped - plain == pytest.approx(-start, abs=1e-9)


def test_pay_for_staying_alive_does_change_rankings() -> None:
    class Survival(Shaping):
        def __call__(self, before: object, after: object, ended: object) -> float:
            return 3.0

    dear = ToySettings(steps=4, prices=(3.0,))
    plain, paid = ([policy_value(dear, a, s) for a in ("continue", "skip 2")] for s in (None, Survival()))
    assert plain[0] < plain[1]
    assert paid[0] > paid[1]


def test_shaping_is_what_the_environment_pays() -> None:
    plain, shaped = (evaluate(ToyEnv(SMALL, 32, 0, s), "random", 128, seed=5) for s in (None, Shaping()))
    assert shaped.episode_returns == pytest.approx(plain.episode_returns + SMALL.prices[0])
    assert shaped.utilities == pytest.approx(plain.utilities)
    assert cost_potential(2.0, 3) == -6.0


# -- Ranking before training -----------------------------------------------------------------------------------------


def test_ranking_of_constants_is_by_utility_and_agrees_with_our_reward() -> None:
    ranking = rank_constant_policies(ToySettings().build(n=32), episodes=128)
    utilities = [row.utility for row in ranking.rows]
    assert utilities == sorted(utilities, reverse=True)
    assert {"always continue", "always skip 2", "always refine", "stop at 1"} <= {row.name for row in ranking.rows}
    ranking.check()
    assert "always refine" in ranking.summary
    exact = {a: policy_value(ToySettings(), a) for a in ("continue", "skip 2", "refine")}
    for row in ranking.rows:
        if (name := row.name.removeprefix("always ")) in exact:
            assert row.utility == pytest.approx(exact[name], abs=4 * row.error + 1e-9)


@pytest.mark.parametrize("kind", ["absolute", "additive", "multiplicative"])
def test_published_rewards_fail_the_ranking(kind: str) -> None:
    ranking = rank_constant_policies(SurrogateSettings(kind).build(n=2), episodes=2)
    assert ranking.rows[-1].name == "always refine"
    with pytest.raises(SpecError, match=r"'always refine'.*would learn the wrong one"):
        ranking.check()


def test_our_reward_passes_the_ranking() -> None:
    env = SurrogateSettings().build(n=2)
    ranking = rank_constant_policies(env, episodes=2)
    ranking.check()
    assert ranking.rows[0].name.startswith("stop at")
    assert set(constant_policies(env, 2)) == {r.name for r in ranking.rows}
    assert set(constant_policies(env, 2)) >= {"always continue", "always refine", "stop at 8", "stop at 42"}


def test_ranking_takes_noise_for_noise() -> None:
    class Noisy(ToyEnv):
        """Pays the utility and luck, which must not be called an error of the reward."""

        def step(self, actions: object) -> tuple[object, ...]:
            o, r, *rest = super().step(actions)
            return o, r + self.luck.normal(size=len(r)), *rest

    env = Noisy(SMALL, 16)
    env.luck = np.random.default_rng(3)
    ranking = rank_constant_policies(
        env, 64, policies={f"stop at {k}": constant_behaviour(env.actions, f"stop at {k}") for k in (2, 3)}
    )
    assert ranking.inversions == ()


# -- Published: the constants ----------------------------------------------------------------------------------------


def test_published_weights() -> None:
    assert (RESEARCH.clip, RESEARCH.aesthetic, RESEARCH.likeness, RESEARCH.preference) == (1.0, 0.5, 0.2, 0.8)
    assert (OPTUNA.clip, OPTUNA.aesthetic, OPTUNA.likeness, OPTUNA.preference) == (2.977, 1.430, 0.791, 0.870)
    assert (OPTUNA.calls, OPTUNA.end_clip, OPTUNA.end_aesthetic, OPTUNA.end_preference) == (
        0.01355,
        3.105,
        1.349,
        0.643,
    )
    assert (ADDITIVE.saved, ADDITIVE.refine, ADDITIVE.clip) == (1.0, 0.2, OPTUNA.clip)
    assert (MULTIPLICATIVE.calls, MULTIPLICATIVE.likeness, MULTIPLICATIVE.saved) == (0.02, 0.0, 1.5)


def test_pay_of_a_step() -> None:
    before, now = StepScores("continue", 1, 0.20, 5.0, 0.0), StepScores("continue", 1, 0.25, 5.3, 0.2, likeness=0.95)
    assert step_reward(before, now, OPTUNA) == pytest.approx(2.977 + 1.430 + 0.870 + 0.791 * 0.95 - 0.01355)
    assert step_reward(None, now, OPTUNA) == pytest.approx(-0.01355)  # nothing to compare with


def test_staying_alive_is_paid() -> None:
    still = StepScores("continue", 1, 0.3, 5.5, 0.5, likeness=0.95)
    assert step_reward(still, still, OPTUNA) == pytest.approx(0.7379, abs=1e-4)
    assert 49 * OPTUNA.likeness * 0.95 == pytest.approx(36.8, abs=0.05)  # of the 55.5 that the tuner found


def test_refining_is_paid() -> None:
    still = StepScores("refine", 3, 0.3, 5.5, 0.5, entropy=0.97)
    assert step_reward(still, still, MULTIPLICATIVE) == pytest.approx(0.134)
    assert 47 * step_reward(still, still, MULTIPLICATIVE) > 3 * final_reward(
        PICTURE, 50, MULTIPLICATIVE, "multiplicative", UNIT
    )


@pytest.mark.parametrize(("calls", "enough"), [(18, 0.510), (25, 0.571), (30, 0.625), (40, 0.769)])
def test_multiplicative_end(calls: int, enough: float) -> None:
    assert final_reward(PICTURE, 50, MULTIPLICATIVE, "multiplicative", UNIT) == pytest.approx(2.0)
    assert final_reward(PICTURE, 144, MULTIPLICATIVE, "multiplicative", UNIT) == pytest.approx(2.0)  # no fine beyond 50
    part = StepScores("stop", 1, *(a + enough * (b - a) for a, b in zip(UNIT.low, UNIT.high, strict=True)))
    assert final_reward(part, calls, MULTIPLICATIVE, "multiplicative", UNIT) == pytest.approx(2.0, abs=0.005)
    floor = StepScores("stop", 1, *UNIT.low)
    assert final_reward(floor, calls, MULTIPLICATIVE, "multiplicative", UNIT) == 0.0  # savings alone are worth nothing


def test_half_the_gap_at_18_steps_earns_less_than_the_full_run() -> None:
    assert final_reward(HALF, 18, MULTIPLICATIVE, "multiplicative", UNIT) == pytest.approx(1.96)


def test_additive_and_absolute_ends() -> None:
    betas = 3.105 + 1.349 + 0.643
    assert final_reward(HALF, 20, ADDITIVE, "additive", UNIT) == pytest.approx(betas / 2 + 0.6)
    assert final_reward(HALF, 144, ADDITIVE, "additive", UNIT) == pytest.approx(betas / 2 - 94 / 50)
    absolute = 3.105 * 0.25 + 1.349 * 5.5
    assert final_reward(HALF, 20, OPTUNA, "absolute", UNIT) == pytest.approx(absolute)
    assert final_reward(HALF, 20, ADDITIVE, "additive", None) == pytest.approx(absolute + 0.6)  # raw scores, before May


def test_baselines_that_do_not_fall_apart() -> None:
    flat = Baseline((0.25, 5.0, -1.0), (0.25, 6.0, 1.0))
    good = StepScores("stop", 1, 0.26, 5.5, 0.0)
    assert final_reward(good, 50, ADDITIVE, "additive", flat) > 3.105 * 0.01 / 1e-6 * 0.99  # the guard alone explodes
    assert final_reward(good, 50, MULTIPLICATIVE, "multiplicative", flat) == pytest.approx(
        0.4 * 0.5 + 0.6 * 0.5
    )  # left out
    fallback = 0.25 + 0.4 * 0.55 + 0.6 * 0.5
    assert final_reward(HALF, 50, MULTIPLICATIVE, "multiplicative", None) == pytest.approx(fallback)
    assert (FALLBACK.low, FALLBACK.high) == ((0.0, 0.0, -2.0), (1.0, 10.0, 2.0))


def test_pay_of_an_episode_is_the_sum_of_its_parts() -> None:
    records = [StepScores("continue", 1, 0.1 * k, 5.0, 0.0, 0.5) for k in range(3)] + [HALF]
    for kind, weights in (("absolute", OPTUNA), ("additive", ADDITIVE), ("multiplicative", MULTIPLICATIVE)):
        paid = episode_rewards(records, kind, UNIT)
        steps = [step_reward(a, b, weights) for a, b in zip([None, *records[:-1]], records, strict=True)]
        assert paid[:-1] == pytest.approx(steps[:-1])
        assert paid[-1] == pytest.approx(steps[-1] + final_reward(HALF, 4, weights, kind, UNIT))


@given(seed=st.integers(0, 1000), scale=st.sampled_from([0.1, 1.0, 20.0]))
@settings(max_examples=20, deadline=None)
def test_entropy_of_attention_summed_over_all_tokens_is_a_constant(seed: int, scale: float) -> None:
    logits = scale * np.random.default_rng(seed).normal(size=(64, 77))
    attention = np.exp(logits - logits.max(1, keepdims=True))
    attention /= attention.sum(1, keepdims=True)
    assert entropy(attention.sum(1)) == pytest.approx(1.0, abs=1e-9)


def test_entropy_tells_a_point_from_a_plain() -> None:
    assert entropy(np.ones((8, 8))) == pytest.approx(1.0)
    assert entropy(np.eye(64)[0]) == pytest.approx(0.0)


# -- Published: what they teach ----------------------------------------------------------------------------------------


def test_best_policies_of_the_published_rewards() -> None:
    best = {kind: SurrogateSettings(kind).optimum() for kind in ("absolute", "multiplicative", "utility")}
    assert best["absolute"][1] == ("continue",) * 50  # as its trained agent did, 200 prompts of 200
    assert best["multiplicative"][1] == ("continue",) * 3 + ("refine",) * 47
    ours = best["utility"][1]
    assert "refine" not in ours
    assert ours[-1] == "stop"
    assert 10 < len(ours) < 40


@pytest.mark.parametrize("kind", ["multiplicative", "utility"])
def test_best_policy_is_what_no_constant_beats(kind: str) -> None:
    own = SurrogateSettings(kind)
    best, actions = own.optimum()
    ranking = rank_constant_policies(own.build(n=1), episodes=1)
    assert best >= max(row.mean_return for row in ranking.rows) - 1e-9
    env = SurrogateEnv(own, 1)
    env.reset()
    paid = sum(float(env.step([env.actions.index(a)])[1][0]) for a in actions)
    assert paid == pytest.approx(best)
