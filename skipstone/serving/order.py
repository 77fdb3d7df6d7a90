"""Who is next: by class, then earliest deadline, then fewest calls left, then arrival; nobody waits without end.

Among those without a deadline the one that is done first goes first, which makes the mean wait shortest.

A number that counts how often somebody was chosen plays the part of time. Whoever has waited for `patience` of them is
overdue, and goes before all who are not, longest wait first. So with at most F waiting at once, and at least the first
of the order served each time, nobody waits for more than patience + F - 1 turns: once overdue, only those who have
waited as long or longer go before, each of the at most F - 1 others once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple


class Rank(NamedTuple):
    """How urgent a request is; the smaller, the sooner.

    Args:
        priority: Its class, 0 first.
        deadline: When it must be ready, in seconds of a monotonic clock; infinite where it does not matter.
        number: Of its arrival.
    """

    priority: int = 1
    deadline: float = math.inf
    number: int = 0


FIRST = Rank()


class Turn(NamedTuple):
    """Somebody who waits.

    Args:
        rank: How urgent it is.
        since: The turn at which it began to wait.
        left: Calls of the network that it is expected to need yet.
    """

    rank: Rank
    since: int
    left: float = 0.0


def in_order(waiting: Mapping[int, Turn], now: int, patience: int) -> list[int]:
    """The keys of `waiting`, the next first.

    Args:
        waiting: Who waits.
        now: The turn now.
        patience: Turns after which somebody who waits is overdue, >= 0. 0 is first come, first served.
    """
    return sorted(waiting, key=lambda one: _urgency(waiting[one], now, patience))


def find_next(waiting: Mapping[int, Turn], now: int, patience: int) -> int:
    """The first key of `in_order`; somebody must wait."""
    return min(waiting, key=lambda one: _urgency(waiting[one], now, patience))


def _urgency(turn: Turn, now: int, patience: int) -> tuple[int, int, int, float, float, int]:
    priority, deadline, number = turn.rank
    if now - turn.since >= patience:
        return 0, turn.since, priority, deadline, 0.0, number
    return 1, 0, priority, deadline, turn.left, number


def longest_wait(patience: int, most: int) -> int:
    """Turns that nobody waits beyond, where at most `most` wait at once."""
    return patience + max(0, most - 1)
