"""Learners reach the toy's known optimum, go on where they were broken off, and end as the brain that they are."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skipstone.errors import OutputError, SpecError, UnknownNameError
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone_train.agents.learners import LEARNERS, PPO, Curriculum, FittedQ, Learner, Search, Stopping, make_learner
from skipstone_train.agents.learners.base import CountingEnv
from skipstone_train.agents.learners.fitted_q import compute_targets, keep_recent
from skipstone_train.agents.learners.networks import Ensemble
from skipstone_train.agents.learners.sb3 import PPOSession, VecEnvAdapter, export_policy
from skipstone_train.agents.learners.scaling import StandardScaler
from skipstone_train.agents.learners.stopping import ScheduleRuns
from skipstone_train.agents.rewards import rank_constant_policies
from skipstone_train.agents.surrogate import SurrogateSettings
from skipstone_train.agents.toy import STOPPING, TWO_CLASSES, ToyEnv, ToySettings
from skipstone_train.agents.toy_optimum import normalized_value, optimal_utility, policy_value
from skipstone_train.agents.transitions import (
    EpisodicRandomBehaviour,
    Transitions,
    collect,
    constant_behaviour,
    epsilon_greedy,
    evaluate,
    greedy_behaviour,
    random_behaviour,
    score_actions,
)

SMALL = ToySettings(steps=5, prices=(2.0,))
STOP = dataclasses.replace(STOPPING, steps=6)
SHORT: dict[str, Learner] = {
    "ppo": PPO(rollouts=1, rollout=16, warm=32, hidden=(8,)),
    "fitted_q": FittedQ(hidden=(8,), episodes=32, sweeps=1, warm=32),
    "stopping": Stopping(hidden=(4,), samples=16, sweeps=2, updates=20),
    "search": Search(candidates=4, rounds=2, episodes=16, warm=32),
}


def same(a: ActionScorer, b: ActionScorer) -> bool:
    pairs = zip(a.layers, b.layers, strict=True)
    return all((w == v).all() and (c == d).all() for (w, c), (v, d) in pairs) and bool((a.centre == b.centre).all())


# -- The known optimum -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    ("own", "process", "steps"),
    [
        (PPO(rollouts=4, rollout=8, batch=256, hidden=(32, 32)), SMALL, 12_000),
        (FittedQ(members=1, hidden=(32, 32)), SMALL, 8_000),
        (Stopping(samples=128, sweeps=4, updates=60, hidden=(32,)), STOP, 4_000),
        (Search(), STOP, 100_000),
    ],
    ids=["ppo", "fitted_q", "stopping", "search"],
)
def test_learners_reach_98_percent_of_the_optimum(own: Learner, process: ToySettings, steps: int, seed: int) -> None:
    fitted = own.fit(process.build(n=64), lambda brain: policy_value(process, brain), steps=steps, seed=seed)
    assert policy_value(process, fitted.action_scorer) >= 0.98 * optimal_utility(process)
    assert (
        normalized_value(process, fitted.action_scorer) > 0.95
    )  # of the way from acting at random, which no offset can flatter
    assert fitted.score == pytest.approx(policy_value(process, fitted.action_scorer))
    assert fitted.steps >= steps


def test_fitted_q_spends_calls_where_they_are_needed() -> None:
    two = dataclasses.replace(TWO_CLASSES, steps=5)
    brain = (
        FittedQ(members=1, hidden=(32, 32))
        .fit(two.build(n=64), lambda b: policy_value(two, b), steps=6_000)
        .action_scorer
    )
    simple, crowded = (policy_value(two, brain, which=k, of="calls") for k in (0, 1))
    assert crowded > simple + 1


@pytest.mark.parametrize("kind", ["multiplicative", "utility"])
def test_the_multiplicative_reward_teaches_to_refine_always_and_ours_does_not(kind: str) -> None:
    own = SurrogateSettings(kind)
    env = own.build(n=16)
    quick = PPO(rollout=64, rollouts=4, warm=32, start=0.0, rate=3e-3, kl=0.1, entropy=0.0, hidden=(16,), batch=256)
    fitted = quick.fit(env, lambda brain: float(evaluate(env, brain, 16).episode_returns.mean()), steps=16_000)
    played = collect(env, fitted.action_scorer, 16, np.random.default_rng(0))
    free = played.actions[played.masks.all(1)]
    if kind == "utility":
        assert env.actions.index("refine") not in free
        assert fitted.score >= 0.98 * own.optimum()[0]
    else:
        assert env.actions.index("continue") not in free  # it refines until it stops
        assert played.calls.mean() > 50  # more than the full run costs
        assert fitted.score > rank_constant_policies(env, 16).rows[0].mean_return


# -- What all have in common -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", list(LEARNERS))
def test_broken_off_and_gone_on_with_is_the_same(name: str, tmp_path: Path) -> None:
    env, own, steps = STOP.build(n=8), SHORT[name], {"ppo": 800, "fitted_q": 1_000}.get(name, 1_500)
    told: list[float] = []
    whole = own.fit(env, steps=steps, seed=4, callback=lambda done, figures: told.append(done))
    assert told == sorted(told)
    assert told[-1] == 1.0
    assert len(told) >= 3

    def interrupt(done: float, figures: Any) -> None:
        if figures["share"] > 0.3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        own.fit(env, steps=steps, seed=4, folder=tmp_path, callback=interrupt)
    ActionScorer.load(tmp_path / "brain.safetensors")  # usable as it is
    rest = own.fit(env, steps=steps, seed=4, folder=tmp_path)
    assert same(rest.action_scorer, whole.action_scorer)
    assert [r["score"] for r in rest.curve] == [r["score"] for r in whole.curve]
    assert (rest.steps, rest.score) == (whole.steps, whole.score)
    assert same(ActionScorer.load(tmp_path / "brain.safetensors"), whole.action_scorer)
    assert rest.action_scorer.about["learner"] == name
    again = own.fit(env, steps=steps, seed=4, folder=tmp_path)  # finished: nothing is played
    assert (again.steps, len(again.curve)) == (rest.steps, len(rest.curve))


@pytest.mark.parametrize("name", list(LEARNERS))
def test_another_seed_is_another_training(name: str) -> None:
    env = STOP.build(n=8)
    a, b = (SHORT[name].fit(env, steps=600, seed=s).curve[-1] for s in (0, 1))
    assert {k: v for k, v in a.items() if k != "seconds"} != {k: v for k, v in b.items() if k != "seconds"}


def test_the_best_round_is_kept() -> None:
    worth = iter([1.0, 5.0, 2.0, *[0.0] * 100])
    seen: list[ActionScorer] = []

    def score(brain: ActionScorer) -> float:
        seen.append(brain)
        return next(worth)

    fitted = SHORT["ppo"].fit(STOP.build(n=8), score, steps=1_000)
    assert same(fitted.action_scorer, seen[1])
    assert fitted.score == 5.0
    assert not same(seen[1], seen[2])


def test_a_folder_of_another_training_is_refused(tmp_path: Path) -> None:
    env = STOP.build(n=8)
    SHORT["search"].fit(env, steps=300, folder=tmp_path)
    with pytest.raises(SpecError, match="choose another folder"):
        SHORT["search"].fit(env, steps=300, folder=tmp_path, seed=1)
    (tmp_path / "checkpoint.pt").write_bytes(b"no")
    with pytest.raises(SpecError, match="damaged"):
        SHORT["search"].fit(env, steps=300, folder=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="Cannot write"):
        SHORT["search"].fit(env, steps=300, folder=tmp_path / "file" / "below")


def test_validation_may_be_an_environment_and_rounds_are_reported() -> None:
    steps: list[int] = []
    fitted = SHORT["search"].fit(
        STOP.build(n=8),
        STOP.build("validation", 32),
        steps=2_000,
        callback=lambda _, row: steps.append(int(row["steps"])),
    )
    assert {"score", "error", "calls", "quality", "search/best"} <= set(fitted.curve[-1])
    assert steps == [int(r["steps"]) for r in fitted.curve[1:]]
    best = evaluate(STOP.build("validation", 32), fitted.action_scorer, 32, 7_919)
    assert fitted.score == pytest.approx(best.utility)


def test_seconds_are_a_budget() -> None:
    fitted = SHORT["search"].fit(STOP.build(n=8), seconds=1e-9)
    assert len(fitted.curve) == 1
    assert not np.isfinite(fitted.score) or fitted.score > 0


def test_global_generators_are_left_alone() -> None:
    before = np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()  # type: ignore[index]
    for own in SHORT.values():
        own.fit(STOP.build(n=8), steps=200)
    assert (np.random.get_state()[1] == before[0]).all()  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.get_num_threads() == before[2]


def test_learners_have_names() -> None:
    assert set(LEARNERS) == {"ppo", "fitted_q", "stopping", "search"}
    assert make_learner("ppo", rate=0.1) == PPO(rate=0.1)
    with pytest.raises(UnknownNameError, match="Did you mean 'ppo'"):
        make_learner("pp0")
    with pytest.raises(SpecError, match="rat"):
        make_learner("ppo", rat=0.1)
    with pytest.raises(SpecError, match="elite in"):
        make_learner("search", elite=1.0)


def test_importing_learners_loads_no_torch() -> None:
    heavy = "{'torch', 'stable_baselines3', 'sb3_contrib'}"
    code = f"import sys, skipstone_train.agents.learners; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


# -- Policy gradient: masks and export ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ppo() -> PPOSession:
    session = PPOSession(PPO(warm=64), CountingEnv(ToySettings().build(n=8)), 0)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for p in session.model.policy.parameters():
            p += torch.randn(p.shape, generator=generator)
    return session


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_exported_brain_chooses_as_the_policy_does(ppo: PPOSession, seed: int) -> None:
    rng = np.random.default_rng(seed)
    observations = rng.normal(size=(20, 6)).astype(np.float32)
    masks = rng.random((20, 5)) < 0.5
    masks[np.arange(20), rng.integers(0, 5, 20)] = True
    wanted, _ = ppo.model.predict(ppo.standard(observations), deterministic=True, action_masks=masks)
    brain = export_policy(ppo.model.policy, ppo.standard)
    assert [brain.choose(o, m) for o, m in zip(observations, masks, strict=True)] == wanted.tolist()
    assert greedy_behaviour(brain)(observations, masks, None, None).tolist() == wanted.tolist()


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_masked_actions_have_no_chance_and_no_gradient(ppo: PPOSession, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = rng.random((16, 5)) < 0.5
    legal = rng.integers(0, 5, 16)
    masks[np.arange(16), legal] = True
    logits = torch.tensor(rng.normal(size=(16, 5)) * 10, dtype=torch.float32, requires_grad=True)
    distribution = ppo.model.policy.action_dist.proba_distribution(action_logits=logits)
    distribution.apply_masking(masks)
    assert (distribution.distribution.probs.detach().numpy()[~masks] == 0).all()
    (distribution.log_prob(torch.from_numpy(legal)).sum() + distribution.entropy().sum()).backward()
    assert logits.grad is not None
    gradient = np.abs(logits.grad.numpy())
    assert gradient[~masks].max(initial=0) < 1e-6  # rounding of the common normaliser
    assert gradient[masks.sum(1) > 1].max() > 1e-3


def test_the_adapter_pays_what_the_environment_pays() -> None:
    env, plain = ToySettings().build(n=4), ToySettings().build(n=4)
    standard = StandardScaler(np.full(6, 0.5, np.float32), np.full(6, 2.0, np.float32), 10.0, 4.0)
    adapter = VecEnvAdapter(env, standard)
    adapter.next_seed = 9
    seen, wanted = adapter.reset(), plain.reset(seed=9)[0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert seen == pytest.approx((wanted - 0.5) / 2)
        masks = np.stack(adapter.env_method("action_masks"))
        assert (masks == plain.action_masks()).all()
        actions = random_behaviour(seen, masks, None, rng)
        seen, paid, done, _ = adapter.step(actions)
        wanted, rewards, ended, _, _ = plain.step(actions)
        assert paid == pytest.approx((rewards - 10 * ended) / 4)
        assert (done == ended).all()


def test_ppo_begins_at_the_fixed_schedule() -> None:
    env = ToySettings().build(n=8)
    fitted = PPO(start=5.0, warm=32).fit(env, lambda b: 0.0, seconds=1e-9)
    assert policy_value(ToySettings(), fitted.action_scorer) == pytest.approx(policy_value(ToySettings(), "continue"))


# -- Fitted Q ----------------------------------------------------------------------------------------------------------


def episodes(rewards: list[float], ends: list[bool], actions: list[int], observations: Any = None) -> Transitions:
    m = len(rewards)
    seen = np.zeros((m, 1), np.float32) if observations is None else observations
    last = np.zeros(sum(ends))
    return Transitions(seen, np.ones((m, 2), bool), np.array(actions), np.array(rewards), np.array(ends), *[last] * 4)


def test_targets_by_hand() -> None:
    t = episodes([0, 0, 5, 1, 2], [False, False, True, False, True], [0, 0, 0, 0, 1])
    assert compute_targets(None, t).tolist() == [5, 5, 5, 3, 2]
    rule = ActionScorer(np.zeros(1), np.ones(1), ((np.zeros((2, 1), np.float32), np.array([3.0, 1.0], np.float32)),))
    # Q says 3 for action 0 and 1 for action 1, everywhere: the last decision of the second episode was not its own.
    assert compute_targets(rule, t).tolist() == [5, 5, 5, 1 + 3, 2]
    assert compute_targets(rule, t, (10.0, 2.0)).tolist() == [5, 5, 5, 1 + 16, 2]


def test_memory_keeps_whole_episodes_the_newest() -> None:
    t = episodes([0, 0, 5, 1, 2], [False, False, True, False, True], [0, 0, 0, 0, 1])
    for most, kept in [(5, 5), (4, 2), (2, 2), (1, 2)]:
        newest = keep_recent(t, most)
        assert newest.rewards.tolist() == [0, 0, 5, 1, 2][-kept:]
        assert len(newest.utility) == newest.ends.sum()


@given(members=st.integers(1, 3), depth=st.integers(0, 2), seed=st.integers(0, 100))
@settings(max_examples=15, deadline=None)
def test_networks_side_by_side_are_one_brain(members: int, depth: int, seed: int) -> None:
    torch.manual_seed(seed)
    network = Ensemble((4, *[5] * depth, 3), members)
    with torch.no_grad():
        for p in network.parameters():
            p += torch.randn(p.shape)
    x = np.random.default_rng(seed).normal(size=(7, 4)).astype(np.float32)
    standard = StandardScaler(np.full(4, 0.3, np.float32), np.full(4, 1.7, np.float32), 0.0, 1.0)
    wanted = network(torch.from_numpy(standard(x))).mean(0).detach().numpy()
    assert score_actions(network.action_scorer(standard), x) == pytest.approx(wanted, abs=2e-5)


def test_caution_lowers_what_was_never_tried() -> None:
    env = dataclasses.replace(SMALL, actions=("continue", "skip 2")).build(n=16)
    t = collect(env, "continue", 64, np.random.default_rng(0))
    gaps = []
    for caution in (0.0, 1.0):
        own = FittedQ(caution=caution, hidden=(16,), warm=32)
        session: Any = own.begin(CountingEnv(env), 0)
        session.memory = t
        session._sweep(first=True)
        q = score_actions(session.action_scorer(), t.observations)
        gaps.append(float((q[:, 0] - q[:, 1]).mean()))
    assert gaps[1] > gaps[0] + 0.5


# -- Optimal stopping --------------------------------------------------------------------------------------------------


def test_worth_of_going_on_by_hand() -> None:
    nan = np.nan
    stopped = np.array([[[nan, nan], [4.0, 9.0], [2.0, 1.0]], [[nan, nan], [1.0, 0.0], [nan, nan]]])
    paths = ScheduleRuns(np.zeros((2, 3, 1)), stopped, np.array([3.0, 7.0]))
    gains = np.zeros((2, 3, 2))
    assert paths.continuation_values(gains - 1).tolist() == [[3, 3, 3], [7, 7, 7]]
    assert paths.continuation_values(gains + np.array([2.0, 1.0])).tolist() == [[4, 2, 3], [1, 7, 7]]
    assert paths.continuation_values(gains + np.array([1.0, 2.0])).tolist() == [[9, 1, 3], [0, 7, 7]]


def test_paths_are_what_stopping_earns() -> None:
    env = STOP.build(n=8)
    paths = ScheduleRuns.of(env, 8, np.random.default_rng(0))
    seed = int(np.random.default_rng(0).integers(2**31))
    assert paths.ended == pytest.approx(evaluate(env, "continue", 8, seed).episode_returns)
    assert np.isnan(paths.stopped[:, [0, STOP.steps - 1]]).all()  # masked at the start and in the last step
    for k in range(1, STOP.steps - 1):
        assert paths.stopped[:, k, 0] == pytest.approx(evaluate(env, f"stop at {k}", 8, seed).episode_returns)
    both = paths.concatenate([ScheduleRuns(paths.seen[:, :3], paths.stopped[:, :3], paths.ended)])
    assert np.isnan(both.stopped[8:, 3:]).all()
    assert both.last(8).ended == pytest.approx(paths.ended)


def test_of_several_ways_to_stop_the_better_one_is_learnt() -> None:
    class TwoStops(ToyEnv):
        """A second way to stop, which costs 3 dB more."""

        def __init__(self) -> None:
            super().__init__(STOP, 16)
            self.actions = ("stop 1", "continue", "stop 2")

        def action_masks(self) -> Any:
            return super().action_masks()[:, [1, 0, 1]]

        def step(self, actions: Any) -> Any:
            actions = np.asarray(actions)
            observations, paid, ended, cut, infos = super().step(np.array([1, 0, 1])[actions])
            return observations, paid - 3.0 * (actions == 0), ended, cut, infos

    fitted = Stopping(samples=64, updates=60, hidden=(16,)).fit(TwoStops(), steps=4_000)
    taken = collect(TwoStops(), fitted.action_scorer, 64, np.random.default_rng(0)).actions
    assert 0 not in taken
    assert (taken == 2).sum() > 16


def test_stopping_leaves_other_actions_alone() -> None:
    with_more = dataclasses.replace(STOP, actions=("continue", "refine", "stop"))
    fitted = SHORT["stopping"].fit(with_more.build(n=8), steps=2_000)
    played = collect(with_more.build(n=8), fitted.action_scorer, 64, np.random.default_rng(0))
    assert 1 not in played.actions
    with pytest.raises(SpecError, match="no decision of any run could be a stop"):
        Stopping().fit(dataclasses.replace(STOP, steps=2).build(n=2))
    with pytest.raises(SpecError, match="can 'continue' and 'stop'"):
        Stopping().fit(dataclasses.replace(STOP, actions=("continue",)).build(n=2))


# -- Episodes ----------------------------------------------------------------------------------------------------------


def test_collected_episodes_are_whole(tmp_path: Path) -> None:
    env = ToySettings().build(n=8)
    t = collect(env, EpisodicRandomBehaviour(), 30, np.random.default_rng(0))
    assert len(t.utility) == 32  # as many in each slot
    assert t.ends.sum() == 32
    assert t.episode_returns == pytest.approx(t.utility)
    assert (t.observations[t.starts, 0] == 0).all()
    assert t.masks[np.arange(len(t)), t.actions].all()
    back = Transitions.load(t.save(tmp_path / "t.npz"))
    for f in dataclasses.fields(t):
        assert (getattr(back, f.name) == getattr(t, f.name)).all()
    assert len(t + back) == 2 * len(t)
    assert (t + back).episode_returns == pytest.approx(np.tile(t.episode_returns, 2))
    (tmp_path / "bad.npz").write_bytes(b"no")
    with pytest.raises(SpecError, match="file of transitions"):
        Transitions.load(tmp_path / "bad.npz")


def test_varied_behaviour_sees_long_runs_and_short_ones() -> None:
    env = ToySettings().build(n=64)
    even, varied = (
        collect(env, b, 512, np.random.default_rng(0)).calls for b in (random_behaviour, EpisodicRandomBehaviour())
    )
    assert (varied >= 8).mean() > 1.5 * (even >= 8).mean()
    assert (varied <= 3).mean() > 0.1


@given(chance=st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=3, deadline=None)
def test_exploring(chance: float) -> None:
    rng, masks = np.random.default_rng(0), np.ones((4000, 4), bool)
    acts = epsilon_greedy(constant_behaviour(("continue", "skip 2", "skip 3", "stop"), "skip 3"), chance)
    taken = acts(None, masks, np.zeros(4000, int), rng)
    assert (taken != 2).mean() == pytest.approx(0.75 * chance, abs=0.04)


# -- Curriculum --------------------------------------------------------------------------------------------------------


@given(
    complexity=st.lists(st.integers(1, 5), min_size=1, max_size=30),
    share=st.floats(0, 1),
    first=st.floats(0.05, 1),
    whole=st.floats(0.1, 1),
)
@settings(max_examples=60, deadline=None)
def test_simple_samples_come_first_and_all_in_the_end(
    complexity: list[int], share: float, first: float, whole: float
) -> None:
    own = Curriculum(first, whole)
    weights = own.weights(complexity, share)
    assert weights.sum() == pytest.approx(1)
    assert (weights > 0).all()
    order = np.argsort(complexity, kind="stable")
    assert (np.diff(weights[order]) <= 1e-12).all()
    assert own.weights(complexity, whole) == pytest.approx(np.full(len(complexity), 1 / len(complexity)))
    later = own.weights(complexity, min(1.0, share + 0.2))
    assert (later / later.max() >= weights / weights.max() - 1e-12).all()  # nothing is taken back


def test_curriculum_on_two_classes() -> None:
    met: list[tuple[float, float]] = []

    class Watched(ToyEnv):
        def set_sample_weights(self, weights: Any) -> None:
            met.append(tuple(weights))
            super().set_sample_weights(weights)

    two = dataclasses.replace(TWO_CLASSES, steps=5)
    own = FittedQ(members=1, hidden=(32, 32), episodes=256, warm=64)
    fitted = own.fit(Watched(two, 64), lambda b: policy_value(two, b), steps=10_000, curriculum=Curriculum(0.4, 0.5))
    assert met[0][0] > 0.95  # simple ones first
    assert met[-1] == pytest.approx((0.5, 0.5))
    assert policy_value(two, fitted.action_scorer) >= 0.98 * optimal_utility(two)


def test_curriculum_that_cannot_be_followed() -> None:
    with pytest.raises(SpecError, match="first and whole"):
        Curriculum(first=0.0)
    with pytest.raises(SpecError, match="set_sample_weights"):
        SHORT["search"].fit(SurrogateSettings().build(n=2), curriculum=Curriculum())
