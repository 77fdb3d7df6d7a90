"""When pictures are drawn by a faster certificate because many wait: a pure function of the queue."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..settings import Ranges, check_settings


@dataclass(frozen=True)
class Shedding:
    """Draw by a faster certificate from so many waiting pictures on, until none waits.

    Requests that name a policy or a quality, and those of the class `high`, are drawn as they ask.

    Args:
        quality: Name of the certificate; "" never sheds.
        start: Pictures that wait when it begins, in 1..100,000.

    Raises:
        SpecError: a setting out of range.
    """

    quality: str = ""
    start: int = 16
    name: ClassVar[str] = "shedding"
    ranges: ClassVar[Ranges] = {"start": (1, 100_000)}

    def __post_init__(self) -> None:
        check_settings(self)

    def is_on(self, before: bool, waiting: int) -> bool:
        """Whether a request that comes now is drawn faster.

        Args:
            before: Whether the one before it was.
            waiting: Pictures that wait.
        """
        return bool(self.quality) and waiting >= (1 if before else self.start)

    def covers(self, policy: object, quality: str, priority: int) -> bool:
        """Whether a request leaves to the server how it is drawn."""
        return not policy and not quality and priority > 0
