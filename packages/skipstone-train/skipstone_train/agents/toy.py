"""A toy of skipping with a known optimum, which every learner has to find before it trains on a network.

A run has `steps` steps, a hidden hardness, and a coin of that hardness thrown at every call: the only evidence of
how much damage long steps do. Its best policy is found exactly, by dynamic programming over what can be observed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from skipstone.errors import SpecError
from skipstone.evaluation.utility import Utility

from .rewards import Shaping

ACTIONS = ("continue", "skip 2", "skip 3", "stop", "refine")
OBSERVATION_NAMES = ("progress", "calls", "evidence", "damage", "refined", "price")
REFINE_CALLS = 2  # calls that a refine makes besides its step's own
DAMAGE_SCALE = 10.0  # damage of 1 in the observation


class ToyState(NamedTuple):
    """The state of an episode; the observation holds the same numbers."""

    position: int = 0
    num_throws: int = 1  # coins thrown, one a call
    ones: int = 0
    damage: int = 0
    refined: int = 0

    @property
    def calls(self) -> int:
        """Calls made so far, the one at the start of the next step included."""
        return self.num_throws + REFINE_CALLS * self.refined


@dataclass(frozen=True)
class ToySettings:
    """The toy decision process. `ToyEnv(settings, n)` is its environment.

    A step over k of the grid does damage k (k - 1); "stop" makes one more call and goes to the end in two halves,
    r of the grid left: damage r (r - 2) // 2; "refine", allowed once, makes two calls more and halves the damage so far
    (rounded down). Quality is cap - 10 log10(1 + hardness * damage) dB, not below `floor`.

    Args:
        steps: Of the grid, 2 to 1000.
        hardness: Of each class of samples, > 0 and finite.
        chances: Of each class; () for all alike.
        told: Chance that the coin of the hardest class shows 1, and that of the easiest 0, in (0.5, 1).
        prices: Of a call in dB; each episode has one of them, all alike.
        actions: Names of those there are, "continue" among them.
        floor, cap: Of quality, in dB.

    Raises:
        SpecError: a setting out of range.
    """

    steps: int = 8
    hardness: tuple[float, ...] = (0.01, 0.1, 2.0)
    chances: tuple[float, ...] = ()
    told: float = 0.9
    prices: tuple[float, ...] = (1.5,)
    actions: tuple[str, ...] = ACTIONS
    floor: float = 0.0
    cap: float = 20.0

    def __post_init__(self) -> None:
        sound = 2 <= self.steps <= 1000 and 0.5 < self.told < 1 and bool(self.prices) and bool(self.hardness)
        sound = sound and all(0 < h < math.inf for h in self.hardness) and all(0 <= c < math.inf for c in self.chances)
        sound = sound and all(map(math.isfinite, (*self.prices, self.floor, self.cap)))
        sound = sound and len(self.chances) in (0, len(self.hardness))
        if not sound or "continue" not in self.actions or not set(self.actions) <= set(ACTIONS):
            raise SpecError(
                f"Expected steps >= 2 and at most 1000, some hardness > 0, told in (0.5, 1), prices, and actions among "
                f"{ACTIONS} with 'continue', got {self!r}."
            )

    def build(self, split: str = "train", n: int | None = None, seed: int = 0) -> ToyEnv:
        """The environment. Episodes of "validation" are others than those of "train"."""
        return ToyEnv(self, 64 if n is None else n, seed + (0 if split == "train" else 1_000_003))


STOPPING = ToySettings(actions=("continue", "stop"))  # when to end, and nothing else
TWO_CLASSES = ToySettings(hardness=(0.01, 3.0))  # simple and crowded prompts


class ToyEnv(VectorEnv[Any, Any, Any]):  # type: ignore[misc]  # gymnasium's types are not followed
    """`n` episodes of the toy side by side. The environment of real runs has the same interface.

    Args:
        settings: Of the process.
        n: Episodes at once, >= 1.
        seed: Of all episodes, beside that of a reset: another seed, other episodes.
        shaping: Added to the reward; potential(observations) is minus the price of the calls made, in dB.
    """

    def __init__(
        self, settings: ToySettings = ToySettings(), n: int = 64, seed: int = 0, shaping: Shaping | None = None
    ) -> None:
        self.settings, self.num_envs, self.shaping = settings, n, shaping
        self.actions, self.names = settings.actions, OBSERVATION_NAMES
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.single_observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (len(OBSERVATION_NAMES),), np.float32)
        self.single_action_space = gymnasium.spaces.Discrete(len(self.actions))
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, n)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, n)
        self.complexity = np.asarray(settings.hardness)
        self.weights = self.chances = normalize_weights(settings.chances or (1.0,) * len(settings.hardness))
        self.seed, self._seed = seed, 0
        self._num_begun = [0] * n
        self._states = [ToyState()] * n
        self._coins: list[Any] = [None] * n
        self._classes, self._prices = [0] * n, [settings.prices[0]] * n

    def set_sample_weights(self, weights: Any) -> None:
        """Draw the classes with these chances from the next episodes on: what a curriculum does."""
        self.weights = normalize_weights(weights)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin all episodes anew. The j-th of slot i depends on the seeds, i and j only."""
        self._seed = self._seed + 1 if seed is None else seed
        self._num_begun = [0] * self.num_envs
        for i in range(self.num_envs):
            self._begin(i)
        return self._observations(), {}

    def _begin(self, i: int) -> None:
        rng = np.random.default_rng((self.seed, self._seed, i, self._num_begun[i]))
        u, price, *coins = rng.random(2 + self.settings.steps).tolist()
        self._classes[i] = min(int(np.searchsorted(np.cumsum(self.weights), u, side="right")), len(self.weights) - 1)
        self._prices[i] = self.settings.prices[int(price * len(self.settings.prices))]
        odds = coin_probability(self.settings, self._classes[i])
        self._coins[i] = [int(c < odds) for c in coins]
        self._states[i] = ToyState(ones=self._coins[i][0])
        self._num_begun[i] += 1

    def action_masks(self) -> Any:
        """(n, actions) true where allowed."""
        return np.array([action_mask(self.settings, s) for s in self._states])

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """One decision of each episode. Raises SpecError for an action that is masked."""
        n, rewards, ended = self.num_envs, np.zeros(self.num_envs), np.zeros(self.num_envs, bool)
        figures = {k: np.zeros(n) for k in ("quality", "calls", "utility")} | {"sample": np.zeros(n, int)}
        last = np.full(n, None, object)
        for i, action in enumerate(np.asarray(actions).tolist()):
            before = self._states[i]
            if not action_mask(self.settings, before)[action]:
                raise SpecError(
                    f"The toy was asked to {self.settings.actions[action]!r} in {before}, where that is masked."
                )
            after = apply_action(self.settings, before, self.settings.actions[action])
            ended[i] = after.position >= self.settings.steps
            if ended[i]:
                quality = quality_of(self.settings, self._classes[i], after.damage)
                utility = float(Utility(self._prices[i])(quality, after.calls))
                for key, value in zip(figures, (quality, after.calls, utility, self._classes[i]), strict=True):
                    figures[key][i] = value
                rewards[i] = utility
                last[i] = observe(self.settings, after, self._prices[i])
            else:
                after = after._replace(
                    num_throws=after.num_throws + 1, ones=after.ones + self._coins[i][after.num_throws]
                )
            if self.shaping is not None:
                rewards[i] += self.shaping(
                    potential(before, self._prices[i]), potential(after, self._prices[i]), ended[i]
                )
            self._states[i] = after
            if ended[i]:
                self._begin(i)
        infos: dict[str, Any] = {}
        if ended.any():
            final = figures | {f"_{k}": ended.copy() for k in figures}
            infos = {"final_obs": last, "_final_obs": ended.copy(), "final_info": final, "_final_info": ended.copy()}
        return self._observations(), rewards, ended, np.zeros(n, bool), infos

    def _observations(self) -> Any:
        pairs = zip(self._states, self._prices, strict=True)
        return np.array([observe(self.settings, s, p) for s, p in pairs], np.float32)


# -- The rules, one state at a time: the environment and the exact solution share them ----------------------------


def coin_probability(settings: ToySettings, which: int) -> float:
    """Chance of a 1 at a call of a sample of this class."""
    share = which / max(1, len(settings.hardness) - 1)
    return (1 - share) * (1 - settings.told) + share * settings.told


def action_mask(settings: ToySettings, state: ToyState) -> list[bool]:
    """Which actions are: no step past the end, no stop at the start or for the last step, one refine."""
    left = settings.steps - state.position
    rules = {
        "continue": True,
        "skip 2": left >= 2,
        "skip 3": left >= 3,
        "stop": left >= 2 and state.position > 0,
        "refine": not state.refined,
    }
    return [rules[a] for a in settings.actions]


def apply_action(settings: ToySettings, state: ToyState, action: str) -> ToyState:
    """The state after an action, before the coin of the next call."""
    left = settings.steps - state.position
    if action == "stop":
        return state._replace(
            position=settings.steps,
            num_throws=state.num_throws + 1,
            damage=state.damage + max(0, left * (left - 2) // 2),
        )
    if action == "refine":
        return state._replace(position=state.position + 1, damage=state.damage // 2, refined=1)
    k = 1 if action == "continue" else int(action.split()[1])
    return state._replace(position=state.position + k, damage=state.damage + k * (k - 1))


def observe(settings: ToySettings, state: ToyState, price: float) -> tuple[float, ...]:
    """The observation: all of the state, so that nothing else could help a decision."""
    evidence = (2 * state.ones - state.num_throws) / settings.steps
    progress, calls = state.position / settings.steps, state.calls / settings.steps
    return progress, calls, evidence, state.damage / DAMAGE_SCALE, float(state.refined), price


def quality_of(settings: ToySettings, which: int, damage: int) -> float:
    """Quality of a finished sample of this class, in dB."""
    return max(settings.floor, settings.cap - 10 * math.log10(1 + settings.hardness[which] * damage))


def potential(state: ToyState, price: float) -> float:
    """Minus what the calls so far have cost: with it as shaping, each call is charged when it is made."""
    return -price * state.calls


def normalize_weights(weights: Any) -> Any:
    """Weights, scaled to sum to 1."""
    weights = np.asarray(weights, float)
    return weights / weights.sum()
