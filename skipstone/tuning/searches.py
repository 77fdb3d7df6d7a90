"""The searches: random search and the cross-entropy method, and those that packages bring by entry points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from .. import registry
from ..errors import MissingPackage, UnknownNameError
from ..satellites import install_hint, list_entry_points
from .evaluator import Evaluator, SearchEnded, Trial
from .space import POLICY, Dimension, Space

if TYPE_CHECKING:
    import numpy as np

POPULATION, ELITE = 10, 3  # candidates of a round of the cross-entropy method, and those that it learns from
KEPT = 0.3  # of what it believed before a round
LEAST_CHANCE, LEAST_SPREAD = 0.02, 0.6  # of a value, and of a number in places of its list, so that it never settles
ALL = "all"
GROUP = "searches"
BROUGHT = ("tpe", "nsga2", "ppo")  # by skipstone-train


class Search(Protocol):
    """Asks an evaluator for candidates until that raises SearchEnded, which it lets pass or ends with."""

    def __call__(self, evaluator: Evaluator, seed: int) -> None: ...


def run_search(search: Search, evaluator: Evaluator, seed: int) -> None:
    """What every search begins with, the grid of the dynamic programming by each solver, and then the search itself."""
    try:
        for point in evaluator.builder.starts(evaluator.space):
            evaluator.ask(point)
        search(evaluator, seed)
    except SearchEnded:
        pass


def random_search(evaluator: Evaluator, seed: int) -> None:
    """Candidates drawn at random: every value of a dimension as likely as the others."""
    import numpy as np

    generator = np.random.default_rng(seed)
    while True:
        point = {one.name: int(generator.integers(len(one.values))) for one in evaluator.space.dimensions}
        evaluator.ask(evaluator.space.restricted(point))


def cem_search(evaluator: Evaluator, seed: int) -> None:
    """The cross-entropy method: rounds of candidates, each drawn near the best of the round before.

    Names have chances, numbers a normal distribution over the places of their lists; dimensions are independent.

    References: Rubinstein & Kroese 2004, The Cross-Entropy Method, chapter 5.
    """
    import numpy as np

    generator = np.random.default_rng(seed)
    belief = Belief(evaluator.space)
    while True:
        drawn = [(point := belief.draw(generator), evaluator.ask(point)) for _ in range(POPULATION)]
        ranked = sorted(drawn, key=lambda one: -evaluator.objective(one[1]))
        belief.learn([point for point, _ in ranked[:ELITE]])


class Belief:
    """What the cross-entropy method draws from: a distribution for each dimension.

    Args:
        space: Of the search. It begins with what is like drawing at random.
    """

    def __init__(self, space: Space) -> None:
        import numpy as np

        self.space = space
        self.chances = {
            one.name: np.full(len(one.values), 1.0 / len(one.values)) for one in space.dimensions if not one.ordered
        }
        self.normals = {
            one.name: (0.5 * (len(one.values) - 1), max(LEAST_SPREAD, 0.5 * len(one.values)))
            for one in space.dimensions
            if one.ordered
        }

    def draw(self, generator: np.random.Generator) -> dict[str, int]:
        """A point of the dimensions that count."""
        return self.space.restricted({one.name: self._draw(one, generator) for one in self.space.dimensions})

    def learn(self, points: list[dict[str, int]]) -> None:
        """Move towards these points."""
        import numpy as np

        for one in self.space.dimensions:
            seen = [point[one.name] for point in points if one.name in point]
            if not seen:
                continue
            if one.ordered:
                mean, spread = self.normals[one.name]
                mean = KEPT * mean + (1 - KEPT) * float(np.mean(seen))
                self.normals[one.name] = mean, max(LEAST_SPREAD, KEPT * spread + (1 - KEPT) * float(np.std(seen)))
            else:
                shares = np.bincount(seen, minlength=len(one.values)) / len(seen)
                chances = np.maximum(LEAST_CHANCE, KEPT * self.chances[one.name] + (1 - KEPT) * shares)
                self.chances[one.name] = chances / chances.sum()

    def _draw(self, one: Dimension, generator: np.random.Generator) -> int:
        if not one.ordered:
            return int(generator.choice(len(one.values), p=self.chances[one.name]))
        mean, spread = self.normals[one.name]
        return int(min(len(one.values) - 1, max(0, round(generator.normal(mean, spread)))))


BUILT_IN: Mapping[str, Search] = {"random": random_search, "cem": cem_search}


def search_names() -> tuple[str, ...]:
    """All searches that there are: the built-in ones, those of packages, and those that a package would bring."""
    found = dict.fromkeys((*BUILT_IN, *BROUGHT, *(point.name for point in list_entry_points(GROUP))))
    return tuple(found)


def find_searches(name: str) -> dict[str, Search]:
    """The search of a name, or all.

    Raises:
        UnknownNameError: there is none of that name.
        MissingPackage: its package is not installed.
    """
    names = search_names()
    if name != ALL and name not in names:
        guess = registry.suggest_spelling(name, (*names, ALL))
        raise UnknownNameError(f"--search: expected one of {', '.join((*names, ALL))}, got {name!r}.{guess}")
    return {one: _load(one) for one in (names if name == ALL else (name,))}


def _load(name: str) -> Search:
    if name in BUILT_IN:
        return BUILT_IN[name]
    for point in list_entry_points(GROUP):
        if point.name == name:
            found: Search = point.load()
            return found
    raise MissingPackage(f"The search {name} {install_hint('search', name)}.")


def count_states(trials: list[Trial]) -> dict[str, int]:
    """How many candidates ended how."""
    states = ("complete", "stopped", "repeated", "failed")
    return {state: sum(one.state == state for one in trials) for state in states}


def describe_policy(trial: Trial) -> str:
    """A candidate's values in one line."""
    return ", ".join(f"{name}={value}" for name, value in trial.values.items() if name != POLICY)
