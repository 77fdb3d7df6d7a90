"""The space of a search: which shapes children may have."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeAlias

from skipstone.errors import SpecError
from skipstone.yaml_settings import parse_settings

Choice: TypeAlias = int | float | str
MAX_CANDIDATES = 1_000_000
MAX_VALUES = 100


@dataclass(frozen=True)
class Space:
    """Values that each part of a child's shape may have; a part that is left out is the teacher's.

    Args:
        depth: Blocks.
        width: Channels of a token.
        heads: Of attention, each as wide as the teacher's.
        mlp_ratio: Hidden units of an MLP in widths.
        activation: Of the MLPs.
        layers: How the teacher's blocks are taken: "cut" or "merged".

    Raises:
        SpecError: no part has a value, a part has none, or one twice.
    """

    depth: tuple[int, ...] | None = None
    width: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    mlp_ratio: tuple[float, ...] | None = None
    activation: tuple[Literal["gelu", "silu", "geglu"], ...] | None = None
    layers: tuple[Literal["cut", "merged"], ...] | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if not given:
            raise SpecError("The space is empty: expected values of at least one part, such as 'depth: [3, 4, 6]'.")
        for name, values in given.items():
            if not values:
                raise SpecError(f"The space is empty: {name} has no values. Give one, or leave {name} out.")
            if len(set(values)) < len(values) or len(values) > MAX_VALUES:
                raise SpecError(f"{name}: expected at most {MAX_VALUES} values, each once, got {list(values)[:20]}.")
        if self.size > MAX_CANDIDATES:
            raise SpecError(f"Expected a space of at most {MAX_CANDIDATES:,} shapes, got {self.size:,}.")

    @property
    def parts(self) -> dict[str, tuple[Choice, ...]]:
        """Values of each part that has some, from small to large where they are numbers."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: tuple(values) if isinstance(values[0], str) else tuple(sorted(values))
            for name, values in found.items()
            if values is not None
        }

    @property
    def size(self) -> int:
        """Shapes in it."""
        size = 1
        for values in self.parts.values():
            size *= len(values)
        return size

    def candidates(self) -> Iterator[Candidate]:
        """All shapes, in order."""
        for values in itertools.product(*self.parts.values()):
            yield Candidate(tuple(zip(self.parts, values, strict=True)))

    def draw(self, rng: random.Random) -> Candidate:
        """A random shape."""
        return Candidate(tuple((name, rng.choice(values)) for name, values in self.parts.items()))


@dataclass(frozen=True)
class Candidate:
    """A shape of a space.

    Args:
        choices: (part, value), in the order of the space.
    """

    choices: tuple[tuple[str, Choice], ...]

    @property
    def name(self) -> str:
        """`depth3-mlp_ratio1.5-silu`: also a folder's name."""
        return "-".join(value if isinstance(value, str) else f"{part}{value:g}" for part, value in self.choices)

    @staticmethod
    def of(choices: Mapping[str, Choice]) -> Candidate:
        """The candidate of these choices, in their order."""
        return Candidate(tuple(choices.items()))


def read_space(path: Path) -> Space:
    """The space of a YAML file. Raises SpecError: unknown keys with the nearest known one, values of other types."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise SpecError(
            f"--space: {path} cannot be read: {getattr(e, 'strerror', None) or 'it is not text'}."
        ) from None
    return parse_settings(Space, text, str(path))


def shape_in(space: Space, candidate: Candidate, teacher: Any) -> Any:
    """The shape of a candidate: the teacher's, but for the parts of the space. Raises SpecError."""
    from dataclasses import replace

    return replace(teacher, **dict(candidate.choices))
