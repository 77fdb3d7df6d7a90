"""Sizes of pictures in one training: which one a picture has, which one a step has, how noise shifts with it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import SpecError

MAX_SIDE = 16_384  # pixels
GOLDEN = (math.sqrt(5) - 1) / 2
ALIKE = 1.25  # sizes whose areas are within this factor join a training at the same step


@dataclass(frozen=True)
class Size:
    """A size of pictures, or of latents.

    Args:
        width, height: In 1..16,384.

    Raises:
        SpecError: out of range.
    """

    width: int
    height: int

    def __post_init__(self) -> None:
        if not (1 <= self.width <= MAX_SIDE and 1 <= self.height <= MAX_SIDE):
            raise SpecError(f"Expected a size of 1 to {MAX_SIDE:,} pixels a side, got {self}; try 512x512.")

    @staticmethod
    def parse(text: str) -> Size:
        """ "768x512" (width x height), or "48" for a square. Raises SpecError."""
        found = re.fullmatch(r"(\d{1,6})(?:[xX](\d{1,6}))?", text.strip())
        if found is None:
            raise SpecError(f"Expected a size such as 768x512 (width x height) or 512 (a square), got {text[:80]!r}.")
        width = int(found[1])
        return Size(width, int(found[2]) if found[2] else width)

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"

    @property
    def area(self) -> int:
        """Width times height."""
        return self.width * self.height

    def require_multiple(self, step: int, why: str) -> None:
        """Raise SpecError where a side is no multiple of `step`; `why` ends the sentence."""
        if self.width % step == 0 and self.height % step == 0:
            return
        near = "x".join(str(max(1, round(side / step)) * step) for side in (self.width, self.height))
        raise SpecError(f"Expected sizes in multiples of {step} pixels, got {self}: {why}. Try {near}.")


def parse_sizes(texts: Sequence[str]) -> tuple[Size, ...]:
    """Several sizes. Raises SpecError for one that is none, or that is named twice."""
    sizes = tuple(map(Size.parse, texts))
    twice = next((size for i, size in enumerate(sizes) if size in sizes[:i]), None)
    if twice is not None:
        raise SpecError(f"Expected every size once, got {twice} twice.")
    return sizes


def nearest_buckets(width: int, height: int, sizes: Sequence[Size]) -> tuple[int, ...]:
    """Indices of the sizes whose aspect ratio is nearest to a picture's, by the logarithm of their quotient.

    Several where they have the same ratio: such a picture trains each of them.
    """

    def turned(size: Size) -> tuple[int, int]:  # picture's ratio over the size's, exact, and at least 1
        one, other = width * size.height, height * size.width
        return max(one, other), min(one, other)

    best = turned(sizes[0])
    for size in sizes[1:]:
        much, little = turned(size)
        if much * best[1] < best[0] * little:
            best = much, little
    return tuple(i for i, size in enumerate(sizes) if (turned(size)[0] * best[1] == best[0] * turned(size)[1]))


@dataclass(frozen=True)
class SizePlan:
    """Which size each step of a training has; it depends on the seed and the step alone.

    The shares of the steps are those of the samples: the steps follow the golden ratio, so that every stretch of a
    training has them within a few steps. With `grow` the smallest size begins, the largest joins at that share of the
    steps, and those between at equal distances; sizes whose areas are within a quarter of each other join together.

    Args:
        sizes: At least one.
        samples: Of each, >= 1.
        seed: >= 0.
        grow: In [0, 1).
    """

    sizes: tuple[Size, ...]
    samples: tuple[int, ...]
    seed: int = 0
    grow: float = 0.0

    def joins(self, steps: int) -> tuple[int, ...]:
        """The first step of each size in a training of so many steps."""
        order = sorted({size.area for size in self.sizes})
        starts = [order[0]]
        for area in order[1:]:
            if area > ALIKE * starts[-1]:
                starts.append(area)
        last = max(1, len(starts) - 1)
        ranks = [sum(area <= size.area for area in starts) - 1 for size in self.sizes]
        return tuple(round(self.grow * steps * rank / last) for rank in ranks)

    def index(self, step: int, steps: int) -> int:
        """The index of a step's size.

        Args:
            step: From 0.
            steps: Of the training; without `grow` it does not matter.
        """
        joined = [i for i, first in enumerate(self.joins(steps)) if step >= first]
        place = (self.seed * math.sqrt(2) + step * GOLDEN) % 1.0 * sum(self.samples[i] for i in joined)
        for i in joined:
            place -= self.samples[i]
            if place < 0:
                return i
        return joined[-1]


def shift_time(time: Any, ratio: float) -> Any:
    """The time of a flow whose signal-to-noise ratio is `ratio` times smaller than at `time`.

    With times t = sigma / (alpha + sigma) it is s t / (1 + (s - 1) t), s = sqrt(ratio): the shift of Stable Diffusion 3
    for pictures of `ratio` times the area (arXiv:2403.03206, section 5.3.2), and log SNR - log ratio of any other noise
    schedule (arXiv:2301.11093).

    Args:
        time: In [0, 1]; a number, or an array of them.
        ratio: Above 0.
    """
    by = math.sqrt(ratio)
    return by * time / (by * time + (1 - time))  # so written 1 stays 1 exactly
