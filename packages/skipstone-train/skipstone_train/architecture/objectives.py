"""What a search is for: names of figures, and which of two children is better by them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skipstone.errors import SpecError
from skipstone.registry import suggest_spelling

Values = Mapping[str, float]


@dataclass(frozen=True)
class Figure:
    """A figure of a child.

    Args:
        unit: Of it.
        best: "max" or "min".
        relative: Part of the value that is noise, or 0: two values in one step of this size count as equal.
        absolute: The same in the unit.
        meaning: What is measured.
    """

    unit: str
    best: str
    relative: float
    absolute: float
    meaning: str

    def rounded(self, value: float) -> float:
        """A value as it is compared: larger is better, in steps of the noise."""
        sign = 1 if self.best == "max" else -1
        if self.relative:
            return sign * round(math.log(max(value, 1e-12)) / math.log1p(self.relative))
        return sign * (round(value / self.absolute) if self.absolute else value)


FIGURES: Mapping[str, Figure] = {
    "judge": Figure("points", "max", 0.0, 0.5, "score of the model's judge on prompts for tuning, in 0..100"),
    "error": Figure("", "min", 0.02, 0.0, "mean squared difference to the teacher's outputs on rows for tuning"),
    "milliseconds": Figure("ms", "min", 0.03, 0.0, "of a network call of one guided sample, measured"),
    "megabytes": Figure(
        "MB",
        "min",
        0.0,
        0.0,
        "memory of the network in a process: float32 weights, and tensors of a call of one guided sample",
    ),
}


@dataclass(frozen=True)
class Objectives:
    """The figures of a search.

    Args:
        names: Of FIGURES, each once.
    """

    names: tuple[str, ...]

    @staticmethod
    def parse(text: str) -> Objectives:
        """Out of "judge, milliseconds, megabytes". Raises SpecError."""
        names = tuple(part.strip() for part in text.split(",") if part.strip())
        for name in names:
            if name not in FIGURES:
                guess = suggest_spelling(name, list(FIGURES))
                raise SpecError(f"--objective: no figure is called {name[:80]!r}.{guess} Known: {', '.join(FIGURES)}.")
        if not names or len(set(names)) < len(names):
            raise SpecError(f"--objective: expected figures, each once, of {', '.join(FIGURES)}, got {text[:80]!r}.")
        return Objectives(names)

    def point(self, values: Values) -> tuple[float, ...]:
        """What is compared: larger is better."""
        return tuple(FIGURES[name].rounded(values[name]) for name in self.names)


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether a point is as good in everything and better in something."""
    return tuple(one) != tuple(other) and all(a >= b for a, b in zip(one, other, strict=True))


def pareto_front(points: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of the points that no other dominates."""
    return [i for i, point in enumerate(points) if not any(dominates(other, point) for other in points)]


def rank_points(points: Sequence[Sequence[float]]) -> list[int]:
    """Numbers of all points, best first: by fronts, each without those before it (Deb et al. 2002, NSGA-II).

    Within a front the points with the most room around them come first, then the earlier ones.
    """
    left, order = list(range(len(points))), list[int]()
    while left:
        front = [left[i] for i in pareto_front([points[i] for i in left])]
        room = _room([points[i] for i in front])
        order += [front[i] for i in sorted(range(len(front)), key=lambda i: (-room[i], i))]
        left = [i for i in left if i not in set(front)]
    return order


def _room(points: Sequence[Sequence[float]]) -> list[float]:
    """Crowding distance of each point: how far apart its neighbours are, summed over the figures."""
    room = [0.0] * len(points)
    for k in range(len(points[0])):
        order = sorted(range(len(points)), key=lambda i: (points[i][k], i))
        span = points[order[-1]][k] - points[order[0]][k]
        room[order[0]] = room[order[-1]] = math.inf
        for before, at, after in zip(order, order[1:], order[2:], strict=False):
            room[at] += (points[after][k] - points[before][k]) / span if span else 0.0
    return room
