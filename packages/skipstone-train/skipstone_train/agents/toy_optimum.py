"""The exact solution of the toy: its best policy, and the value of any other, without running an episode."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from skipstone.evaluation.utility import Utility
from skipstone.policies.agent.checkpoint import ActionScorer

from .rewards import Shaping
from .toy import (
    ToySettings,
    ToyState,
    action_mask,
    apply_action,
    coin_probability,
    normalize_weights,
    observe,
    potential,
    quality_of,
)
from .transitions import Behaviour, as_behaviour

ActionProbabilities: TypeAlias = Callable[[ToyState, float, list[float]], Any]
"""(state, price, value of each action) -> chance of each action"""


@functools.cache
def optimal_utility(settings: ToySettings) -> float:
    """Mean utility of the best policy there is, in dB."""

    def best(state: ToyState, price: float, values: list[float]) -> Any:
        return np.eye(len(values))[int(np.argmax(values))]

    return _expected(settings, best)


def policy_value(
    settings: ToySettings,
    chooser: ActionScorer | Behaviour | str,
    shaping: Shaping | None = None,
    gamma: float = 1.0,
    which: int | None = None,
    of: str = "return",
) -> float:
    """Mean return of a policy, exactly: no episode is run.

    Args:
        settings: Of the process.
        chooser: An action scorer, a deterministic behaviour, the name of a constant policy, or "random" for all
            allowed actions alike.
        shaping: Added to the utility.
        gamma: Discount.
        which: Class of the samples; None mixes all by their chances.
        of: "return", or "calls" or "quality" for the mean of these at the end.
    """

    def chances(state: ToyState, price: float, values: list[float]) -> Any:
        mask = np.array([action_mask(settings, state)])
        if chooser == "random":
            return mask[0] / mask[0].sum()
        seen = np.array([observe(settings, state, price)], np.float32)
        return np.eye(len(values))[int(behaviour(seen, mask, np.array([state.num_throws - 1]), None)[0])]

    behaviour = as_behaviour("continue" if chooser == "random" else chooser, settings.actions)
    return _expected(settings, chances, shaping, gamma, which, of)


def normalized_value(settings: ToySettings, chooser: ActionScorer | Behaviour | str) -> float:
    """(V - V_random) / (V_best - V_random): 1 for the best policy, 0 for acting at random."""
    base = _random_value(settings)
    return (policy_value(settings, chooser) - base) / (optimal_utility(settings) - base)


@functools.cache
def _random_value(settings: ToySettings) -> float:
    return policy_value(settings, "random")


def _expected(
    settings: ToySettings,
    weights: ActionProbabilities,
    shaping: Shaping | None = None,
    gamma: float = 1.0,
    which: int | None = None,
    of: str = "return",
) -> float:
    prior = np.asarray(normalize_weights(settings.chances or (1.0,) * len(settings.hardness)))
    if which is not None:
        prior = np.eye(len(prior))[which]
    odds = np.array([coin_probability(settings, k) for k in range(len(prior))])

    def belief(seen: int, ones: int) -> Any:
        joint = prior * odds**ones * (1 - odds) ** (seen - ones)
        return joint / joint.sum()

    def paid(state: ToyState, price: float, believed: Any) -> float:
        quality = np.array([quality_of(settings, k, state.damage) for k in range(len(prior))])
        ends = {"return": Utility(price)(quality, state.calls), "quality": quality, "calls": state.calls + 0 * quality}
        return float(believed @ ends[of])

    @functools.cache
    def worth(state: ToyState, price: float) -> float:
        mask, believed = action_mask(settings, state), belief(state.num_throws, state.ones)
        options = zip(settings.actions, mask, strict=True)
        values = [after(state, price, a, believed) if ok else -math.inf for a, ok in options]
        chance = weights(state, price, values)
        return float(sum(c * v for c, v in zip(chance, values, strict=True) if c > 0))

    def after(state: ToyState, price: float, action: str, believed: Any) -> float:
        new = apply_action(settings, state, action)
        if new.position >= settings.steps:
            extra = shaping(potential(state, price), 0.0, True) if shaping else 0.0
            return extra + paid(new, price, believed)
        one = float(believed @ odds)
        total = 0.0
        for chance, side in ((one, 1), (1 - one, 0)):
            landed = new._replace(num_throws=new.num_throws + 1, ones=new.ones + side)
            extra = shaping(potential(state, price), potential(landed, price), False) if shaping else 0.0
            total += chance * (extra + gamma * worth(landed, price))
        return total

    one = float(prior @ odds)
    starts = itertools.product(((one, 1), (1 - one, 0)), settings.prices)
    return sum(c * worth(ToyState(ones=side), price) for (c, side), price in starts) / len(settings.prices)
