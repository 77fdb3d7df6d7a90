"""What a server takes: of one request, of all together, and of each key."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from ..settings import Ranges, check_settings
from .refusals import Busy, RequestRefused


@dataclass(frozen=True)
class Limits:
    """Limits of a server.

    Args:
        queue: Pictures that wait, beside those that are drawn, in 1..100,000. More are refused with 429.
        running: Pictures that are denoised at the same time, in 1..10,000.
        steps: Of one picture, in 1..10,000.
        calls: Of one picture, in 1..100,000; the rest is forecast, and the picture's status says `budget`. What bounds
            policies that take steps again.
        pixels: Of one picture, in 1..1e9.
        pictures: Of one request, in 1..1,000.
        prompt: Characters of a prompt, in 1..10,000.
        body: Bytes of a request, in 1,000..1e9.
        per_minute: Pictures that one key may ask for in a minute, in 1..1e9.
        patience: Later arrivals that a waiting picture lets go first, in 0..100,000; then it goes first.

    Raises:
        SpecError: a limit out of range.
    """

    queue: int = 256
    running: int = 32
    steps: int = 200
    calls: int = 400
    pixels: int = 4_194_304
    pictures: int = 10
    prompt: int = 2_000
    body: int = 65_536
    per_minute: int = 1_000_000_000
    patience: int = 64
    name: ClassVar[str] = "limits"
    ranges: ClassVar[Ranges] = {
        "queue": (1, 100_000),
        "running": (1, 10_000),
        "steps": (1, 10_000),
        "calls": (1, 100_000),
        "pixels": (1, 1_000_000_000),
        "pictures": (1, 1_000),
        "prompt": (1, 10_000),
        "body": (1_000, 1_000_000_000),
        "per_minute": (1, 1_000_000_000),
        "patience": (0, 100_000),
    }

    def __post_init__(self) -> None:
        check_settings(self)

    @staticmethod
    def from_options(queue: int, running: int, steps: int, pictures: int, per_minute: int) -> Limits:
        """The limits that a server's options say: a picture may take two calls a step, and 0 a minute is no limit."""
        most = per_minute or Limits().per_minute
        return Limits(queue, running, steps, calls=2 * steps, pictures=pictures, per_minute=most)


@dataclass
class Quotas:
    """Pictures of each key in a minute: an allowance that fills up evenly (a token bucket).

    Args:
        per_minute: Pictures of a key in a minute, and at most at once.
        clock: Seconds, never falling.
    """

    per_minute: int
    clock: Callable[[], float]
    _left: dict[str, tuple[float, float]] = field(default_factory=dict, init=False)  # key -> allowance, and when

    def spend(self, key: str, pictures: int) -> None:
        """Take pictures from a key's allowance.

        Raises:
            RequestRefused: more than the key is ever allowed at once.
            Busy: more than the key has left now.
        """
        if pictures > self.per_minute:
            raise RequestRefused(f"Expected at most {self.per_minute} pictures a minute of a key, got {pictures}.", "n")
        now = self.clock()
        left, then = self._left.get(key, (float(self.per_minute), now))
        left = min(float(self.per_minute), left + (now - then) * self.per_minute / 60.0)
        if left < pictures:
            wait = math.ceil((pictures - left) * 60.0 / self.per_minute)
            raise Busy(f"This key may ask for {self.per_minute} pictures a minute. Try again in {wait} s.", wait)
        self._left[key] = left - pictures, now
