"""What a search chooses from: dimensions with listed values, as data, so that every search sees the same space."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..errors import SpecError

Point: TypeAlias = Mapping[str, int]  # dimension -> number of its value; of those that count alone
POLICY = "policy"  # the dimension that says which others count
MAX_VALUES, MAX_DIMENSIONS = 64, 64


@dataclass(frozen=True)
class Dimension:
    """One thing to choose.

    Args:
        name: "path.early", or "policy".
        values: To choose from, at least one; numbers rise.
        policy: Only with this policy does it count; "" for all.
    """

    name: str
    values: tuple[Any, ...]
    policy: str = ""

    @property
    def ordered(self) -> bool:
        """Whether neighbouring values are alike: whether they are numbers."""
        return all(isinstance(value, int | float) for value in self.values)


@dataclass(frozen=True)
class Space:
    """All dimensions of a search.

    Args:
        dimensions: The first is the policy.

    Raises:
        SpecError: none, or a dimension without values.
    """

    dimensions: tuple[Dimension, ...]

    def __post_init__(self) -> None:
        if not self.dimensions or self.dimensions[0].name != POLICY or not self.dimensions[0].values:
            raise SpecError("The space is empty: expected at least one policy to choose from.")
        if empty := [one.name for one in self.dimensions if not one.values]:
            raise SpecError(f"The space has no values for {empty[0]}: expected at least one.")

    def active(self, policy: int) -> Iterator[Dimension]:
        """The dimensions that count with a policy, given by its number; the policy first."""
        name = self.dimensions[0].values[policy]
        return (one for one in self.dimensions if one.policy in ("", name))

    def values(self, point: Point) -> dict[str, Any]:
        """Dimension -> value of a point."""
        return {one.name: one.values[point[one.name]] for one in self.active(point[POLICY])}

    def point(self, values: Mapping[str, Any]) -> dict[str, int]:
        """The point nearest to these values; dimensions that are not named take their first.

        Args:
            values: The policy's name, and others.
        """
        names = self.dimensions[0].values
        policy = names.index(values[POLICY]) if values.get(POLICY) in names else 0
        return {one.name: policy if one.name == POLICY else _nearest(one, values) for one in self.active(policy)}

    def restricted(self, point: Point) -> dict[str, int]:
        """A point of all dimensions as one of those that count."""
        return {one.name: int(point[one.name]) for one in self.active(int(point[POLICY]))}

    @property
    def size(self) -> int:
        """How many points it has."""
        return sum(
            math.prod(len(one.values) for one in self.active(k) if one.name != POLICY)
            for k in range(len(self.dimensions[0].values))
        )

    def lines(self) -> list[str]:
        """Each dimension and its values, for a report."""
        return [f"{one.name}: {', '.join(_format(value) for value in one.values)}" for one in self.dimensions]


def _nearest(dimension: Dimension, values: Mapping[str, Any]) -> int:
    if dimension.name not in values:
        return 0
    value = values[dimension.name]
    if dimension.ordered and isinstance(value, int | float):
        return min(range(len(dimension.values)), key=lambda k: abs(dimension.values[k] - value))
    return dimension.values.index(value) if value in dimension.values else 0


def _format(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def spread(low: float, high: float, levels: int, log: bool = False, whole: bool = False) -> tuple[Any, ...]:
    """So many numbers from low to high, even or even in their logarithm; whole ones each once.

    Args:
        low, high: Ends, both included.
        levels: In 1..64; one alone is the lower end.
        log: Whether they are even in the logarithm; then low > 0.
        whole: Whether they are rounded.
    """
    shares = [k / max(1, levels - 1) for k in range(levels)]
    found = [low * (high / low) ** share if log else low + (high - low) * share for share in shares]
    if whole:
        return tuple(dict.fromkeys(round(value) for value in found))
    return tuple(float(f"{value:.6g}") for value in found)


def dimensions_of(policy: str, settings: Mapping[str, Sequence[Any]]) -> list[Dimension]:
    """The dimensions of one policy's settings."""
    return [Dimension(f"{policy}.{name}", tuple(values), policy) for name, values in settings.items()]
