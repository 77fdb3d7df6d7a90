"""Baselines of a training on held-out episodes: constant policies, random actions, the best fixed schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from skipstone.policies.agent.checkpoint import ActionScorer

from .rewards import Ranking, constant_policies, rank_constant_policies
from .transitions import Behaviour, PolicyScore, collect, evaluate

HELD_OUT_SEED = 20_011  # of the held-out episodes
PRICE_ENTRIES = {"price": float, "log price": math.exp}  # entries of an observation that hold the price of a call
MIN_INDEPENDENT_SAMPLES = 16  # with fewer samples than this and no pool of them, slots count as independent
NUM_STANDARD_ERRORS = 2.0  # standard errors above 0 that make a difference significant


@dataclass(frozen=True)
class PairedDifference:
    """Difference of two policies on the same episodes: mean and standard error, in dB."""

    mean: float
    error: float

    @property
    def is_significant(self) -> bool:
        """Whether the mean is above 0 by two standard errors."""
        return self.mean > NUM_STANDARD_ERRORS * self.error and self.mean > 0

    def __str__(self) -> str:
        return f"{self.mean:+.2f} dB (standard error {self.error:.2f})"


def paired_difference(differences: Any, groups: Any) -> PairedDifference:
    """Mean and standard error of differences (episodes,), episodes of one group (a sample at all prices) being one."""
    means = np.array([differences[groups == g].mean() for g in np.unique(groups)])
    error = float(means.std(ddof=1) / len(means) ** 0.5) if len(means) > 1 else math.inf
    return PairedDifference(float(np.mean(differences)), error)


class HeldOutEpisodes:
    """Held-out episodes, one for each slot, divided in two: a half for selection and a half for evaluation.

    The best of many (rounds of a training, constant policies) scores too high on the episodes that it was selected on;
    so everything is selected on one half, and compared on the other.

    Args:
        env: A validation environment; each of its slots is one episode of `HELD_OUT_SEED`.
    """

    def __init__(self, env: Any) -> None:
        self.env = env
        observations, _ = env.reset(seed=HELD_OUT_SEED)
        self.prices = np.zeros(len(observations))  # alike where the price is not seen
        for k, name in enumerate(env.names):
            if name in PRICE_ENTRIES:
                self.prices = np.array([round(PRICE_ENTRIES[name](v), 4) for v in observations[:, k].tolist()])

    def evaluate(self, chooser: ActionScorer | Behaviour | str) -> PolicyScore:
        """Every episode once."""
        return evaluate(self.env, chooser, self.env.num_envs, HELD_OUT_SEED)

    def __call__(self, scorer: ActionScorer) -> float:
        """Mean utility on the half for selection: rounds of a training are compared by it."""
        return float(self.evaluate(scorer).utilities[self.is_selection].mean())

    @cached_property
    def ranking(self) -> Ranking:
        """Constant policies, ranked by utility; its `check()` raises where the reward disagrees."""
        return rank_constant_policies(self.blind, self.env.num_envs, HELD_OUT_SEED, self.schedules)

    @cached_property
    def schedules(self) -> Mapping[str, Behaviour]:
        """All fixed schedules: those of the environment, or its constant policies."""
        own: Mapping[str, Behaviour] | None = getattr(self.env, "fixed", None)
        return own or constant_policies(self.blind, self.env.num_envs, HELD_OUT_SEED)

    @cached_property
    def scores(self) -> dict[str, PolicyScore]:
        """Scores of every fixed schedule on every episode."""
        return {row.name: row.score for row in self.ranking.rows}

    @cached_property
    def blind(self) -> Any:
        """The same episodes without observing pictures, and without its cost."""
        return getattr(self.env, "blind", self.env)

    @cached_property
    def random(self) -> PolicyScore:
        """Score of random actions: each allowed one with the same chance."""
        return evaluate(self.blind, "random", self.env.num_envs, HELD_OUT_SEED)

    @cached_property
    def groups(self) -> Any:
        """(episodes,) what is independent: samples of a pool, each at all prices; slots where there are but classes."""
        samples = np.asarray(
            self.random.sample, int
        )  # numbers in the pool: validation on the network leaves out every other one
        few = not hasattr(self.env, "pool") and len(np.unique(samples)) < MIN_INDEPENDENT_SAMPLES
        return np.arange(len(samples)) if few else samples

    @cached_property
    def is_selection(self) -> Any:
        """(episodes,) true in the half for selection: every other group."""
        return self.groups % 2 == 0

    @cached_property
    def best_fixed(self) -> dict[float, str]:
        """Price -> name of the fixed schedule of the highest utility on the half for selection."""
        found = {}
        for price in np.unique(self.prices):
            own = self.is_selection & (self.prices == price)
            own = own if own.any() else self.is_selection
            found[float(price)] = max(self.scores, key=lambda name: self.scores[name].utilities[own].mean())
        return found

    @cached_property
    def fixed_utilities(self) -> Any:
        """(episodes,) utilities of the best fixed schedule of each price."""
        table = np.zeros(len(self.prices))
        for price, name in self.best_fixed.items():
            table = np.where(self.prices == price, self.scores[name].utilities, table)
        return table

    @property
    def curve_baselines(self) -> dict[str, float]:
        """The horizontal lines of a learning curve: utilities on the half for selection."""
        return {
            "best fixed schedule": float(self.fixed_utilities[self.is_selection].mean()),
            "random": float(self.random.utilities[self.is_selection].mean()),
        }

    def compare(self, utilities: Any, over: Any) -> PairedDifference:
        """How far these utilities are above those, on the half for evaluation."""
        own = ~self.is_selection
        return paired_difference((np.asarray(utilities) - np.asarray(over))[own], self.groups[own])

    def actions(self, scorer: ActionScorer) -> dict[str, float]:
        """Share of each action in the decisions of an action scorer."""
        taken = collect(
            self.env, scorer, self.env.num_envs, np.random.default_rng(HELD_OUT_SEED), HELD_OUT_SEED
        ).actions
        return {name: float((taken == k).mean()) for k, name in enumerate(self.env.actions)}


def constant_scorer(actions: tuple[str, ...], action: str, inputs: int) -> ActionScorer:
    """An action scorer that takes one action wherever it is allowed, and the first allowed one elsewhere."""
    weight = np.zeros((len(actions), inputs), np.float32)
    bias = np.array([float(name == action) for name in actions], np.float32)
    return ActionScorer(np.zeros(inputs, np.float32), np.ones(inputs, np.float32), ((weight, bias),))
