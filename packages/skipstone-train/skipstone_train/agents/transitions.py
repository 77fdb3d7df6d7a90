"""Transitions of whole episodes, which learners learn from, and scores of policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from skipstone.errors import OutputError, SpecError
from skipstone.policies.agent.checkpoint import ActionScorer
from skipstone.registry import suggest_spelling

Behaviour: TypeAlias = Callable[[Any, Any, Any, Any], Any]
"""(observations (n, d), masks (n, actions), decisions made in each episode (n,), generator) -> actions (n,)"""
EPISODE_METRICS = ("quality", "calls", "utility", "sample")


# -- Ways to act ---------------------------------------------------------------------------------------------------


def score_actions(scorer: ActionScorer, observations: Any) -> Any:
    """`scorer.scores` of many observations at once: (n, inputs) -> (n, actions). Equal but for rounding."""
    h = (np.asarray(observations, np.float32) - scorer.centre) / scorer.spread
    for weight, bias in scorer.layers[:-1]:
        h = h @ weight.T + bias
        h = np.tanh(h) if scorer.activation == "tanh" else np.maximum(h, 0)
    weight, bias = scorer.layers[-1]
    return h @ weight.T + bias


def greedy_behaviour(scorer: ActionScorer) -> Behaviour:
    """The allowed action of the highest score."""
    return lambda o, m, k, rng: np.where(m, score_actions(scorer, o), -np.inf).argmax(1)


def random_behaviour(observations: Any, masks: Any, steps: Any, rng: Any) -> Any:
    """All allowed actions alike."""
    return np.where(masks, rng.random(masks.shape), -1).argmax(1)


def constant_behaviour(actions: Sequence[str], name: str) -> Behaviour:
    """One action wherever it is allowed, "continue" elsewhere; "stop at 5" continues 5 times and stops."""
    word, _, when = name.partition(" at ")
    after = int(when) if when.isdigit() else 0
    if word not in actions:
        raise SpecError(
            f"Expected an action among {', '.join(actions)}, or 'stop at 5', got {name!r}."
            f"{suggest_spelling(word, list(actions))}"
        )
    wanted, other = actions.index(word), actions.index("continue") if "continue" in actions else 0

    def act(observations: Any, masks: Any, steps: Any, rng: Any) -> Any:
        chosen = np.where(masks[:, wanted] & (steps >= after), wanted, other)
        return np.where(masks[np.arange(len(chosen)), chosen], chosen, masks.argmax(1))

    return act


def epsilon_greedy(behaviour: Behaviour, chance: float) -> Behaviour:
    """A behaviour that acts at random with this chance at each decision."""

    def act(observations: Any, masks: Any, steps: Any, rng: Any) -> Any:
        chosen, other = behaviour(observations, masks, steps, rng), random_behaviour(observations, masks, steps, rng)
        return np.where(rng.random(len(masks)) < chance, other, chosen)

    return act


class EpisodicRandomBehaviour:
    """Random actions with action weights drawn once per episode, so that long and short runs are both explored.

    Args:
        spread: Standard deviation of the weights, normal scores of the actions. 0 is `random_behaviour`.
    """

    def __init__(self, spread: float = 2.0) -> None:
        self.spread, self._preferences = spread, np.zeros((0, 0))

    def __call__(self, observations: Any, masks: Any, steps: Any, rng: Any) -> Any:
        if self._preferences.shape != masks.shape:
            self._preferences = np.zeros(masks.shape)
        drawn = self.spread * rng.standard_normal(masks.shape)
        self._preferences = np.where((steps == 0)[:, None], drawn, self._preferences)
        return np.where(masks, self._preferences + rng.gumbel(size=masks.shape), -np.inf).argmax(1)


def as_behaviour(chooser: ActionScorer | Behaviour | str, actions: Sequence[str]) -> Behaviour:
    """An action scorer acts greedily; a name is a constant policy; "random" is `random_behaviour`."""
    if isinstance(chooser, ActionScorer):
        return greedy_behaviour(chooser)
    if isinstance(chooser, str):
        return random_behaviour if chooser == "random" else constant_behaviour(actions, chooser)
    return chooser


# -- What was played -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Transitions:
    """Decisions of whole episodes, one after another.

    Args:
        observations: (m, d).
        masks: (m, actions) which actions were allowed.
        actions: (m,) which were taken.
        rewards: (m,).
        ends: (m,) true at the last decision of an episode.
        quality, calls, utility, sample: (episodes,) how each ended.
    """

    observations: Any
    masks: Any
    actions: Any
    rewards: Any
    ends: Any
    quality: Any
    calls: Any
    utility: Any
    sample: Any

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def episode_returns(self) -> Any:
        """(episodes,) sum of the rewards of each."""
        return np.add.reduceat(self.rewards, self.starts) if len(self) else np.zeros(0)

    @property
    def starts(self) -> Any:
        """(episodes,) index of the first decision of each."""
        return np.concatenate([[0], np.flatnonzero(self.ends)[:-1] + 1])

    def __add__(self, other: Transitions) -> Transitions:
        return Transitions(*(np.concatenate([getattr(self, f.name), getattr(other, f.name)]) for f in fields(self)))

    def save(self, path: str | Path) -> Path:
        """Write one compressed file. Raises OutputError where that cannot be."""
        target = Path(path)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                np.savez_compressed(file, **{f.name: getattr(self, f.name) for f in fields(self)})
        except OSError as e:
            raise OutputError(f"Cannot write the transitions to {target}: {e}.") from None
        return target

    @classmethod
    def load(cls, path: str | Path) -> Transitions:
        """What `save` wrote. Raises SpecError where there is none, or it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{f.name: file[f.name] for f in fields(cls)})
        except Exception as e:  # zip and zlib have errors of their own, for files that are cut or changed
            raise SpecError(
                f"Expected a file of transitions, as `Transitions.save` writes it, got {path}: {e}."
            ) from None


def collect(
    env: Any, behaviour: ActionScorer | Behaviour | str, episodes: int, rng: Any, seed: int | None = None
) -> Transitions:
    """Play at least so many episodes, the same number in every slot, and keep all that was seen.

    Args:
        env: Environment with masks, whose episodes begin again in the step in which they end.
        behaviour: What acts.
        episodes: Whole episodes wanted, >= 1.
        rng: Generator that the behaviour draws from.
        seed: Of the environment's reset; None draws one.
    """
    acts, n = as_behaviour(behaviour, env.actions), env.num_envs
    wanted = -(-episodes // n)
    observations, _ = env.reset(seed=int(rng.integers(2**31)) if seed is None else seed)
    log: list[tuple[Any, ...]] = []
    ended, age = np.zeros(n, int), np.zeros(n, int)
    finals: list[list[tuple[float, ...]]] = [[] for _ in range(n)]
    while ended.min() < wanted:
        masks = env.action_masks()
        actions = np.asarray(acts(observations, masks, age, rng))
        seen = np.array(observations, np.float32)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        done = np.asarray(terminated) | np.asarray(truncated)
        log.append((seen, np.array(masks, bool), actions, np.array(rewards, float), done, ended < wanted))
        for i in np.flatnonzero(done):
            finals[i].append(tuple(infos["final_info"][k][i] for k in EPISODE_METRICS))
        ended, age = ended + done, np.where(done, 0, age + 1)
    arrays = [np.stack([row[k] for row in log], 1) for k in range(6)]  # (n, steps, ...): slot by slot, in order
    keep = arrays.pop()
    last = np.array([f for own in finals for f in own[:wanted]], float).reshape(-1, len(EPISODE_METRICS))
    return Transitions(*(a[keep] for a in arrays), *last.T)


@dataclass(frozen=True, eq=False)
class PolicyScore:
    """How well something decides, by whole episodes; the arrays are in the order of slots, for paired comparison.

    Args:
        utility, quality, calls: Means.
        error: Standard error of the utility.
        utilities, episode_returns, sample: (episodes,) of each: its utility, its sum of rewards, its sample.
        lengths: (episodes,) decisions.
    """

    utility: float
    error: float
    quality: float
    calls: float
    utilities: Any
    episode_returns: Any
    sample: Any
    lengths: Any

    def __float__(self) -> float:
        return self.utility


def evaluate(env: Any, chooser: ActionScorer | Behaviour | str, episodes: int, seed: int = 0) -> PolicyScore:
    """Score an action scorer, a behaviour or a constant policy on the episodes of a seed, the same for all."""
    t = collect(env, chooser, episodes, np.random.default_rng(seed), seed)
    u = t.utility
    error = float(u.std(ddof=1) / len(u) ** 0.5) if len(u) > 1 else float("inf")
    lengths = np.diff([*t.starts, len(t)])
    return PolicyScore(
        float(u.mean()), error, float(t.quality.mean()), float(t.calls.mean()), u, t.episode_returns, t.sample, lengths
    )
