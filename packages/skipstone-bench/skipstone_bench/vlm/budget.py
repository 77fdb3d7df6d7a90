"""A cap on calls and one on money, for all threads: a request that might exceed it is not sent."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from skipstone.errors import BenchError

MARGIN = 1.25  # of the largest question so far: prompts are of different lengths


@dataclass(frozen=True)
class SpendingCaps:
    """What may be spent, earlier runs of the same folder included.

    Args:
        calls: Requests, repeated and failed ones counted, for they may have been charged; None is no cap.
        spend: Money, in the unit of the prices; None is no cap.
        prices: Judge -> price of a million tokens, of those sent and of those answered.
        tokens: Most that an answer may have.

    Raises:
        BenchError: a cap or price below 0, or a cap on money without prices.
    """

    calls: int | None = None
    spend: float | None = None
    prices: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    tokens: int = 300

    def __post_init__(self) -> None:
        if (self.calls or 0) < 0 or (self.spend or 0) < 0 or any(p < 0 for both in self.prices.values() for p in both):
            raise BenchError("Expected caps and prices of at least 0.")
        if self.spend is not None and not any(any(both) for both in self.prices.values()):
            raise BenchError("A cap on money needs prices: say --price-in and --price-out per million tokens.")

    def cost(self, judge: str, tokens_in: int, tokens_out: int) -> float:
        """What an answer costs, in the unit of the prices."""
        price_in, price_out = self.prices.get(judge, (0.0, 0.0))
        return (tokens_in * price_in + tokens_out * price_out) / 1e6


class SpendingLedger:
    """What is left. Every request takes its share before it is sent and settles when it is answered."""

    def __init__(self, caps: SpendingCaps) -> None:
        self.caps = caps
        self.calls = 0
        self.spent = 0.0
        self._held: list[float] = []  # what requests under way may cost at most
        self._largest: dict[str, tuple[int, int]] = {}  # judge -> tokens sent and answered
        self._lock = threading.Condition()

    def add_past_request(self, judge: str, tokens_in: int | None, tokens_out: int | None) -> None:
        """A request of an earlier run."""
        with self._lock:
            self.calls += 1
            self._count(judge, tokens_in, tokens_out)

    def reserve(self, judge: str) -> float | None:
        """What the next request may cost at most, to be settled; None where the cap forbids it.

        Until a judge has answered once, nobody knows what its questions cost: the first is sent alone, with all that is
        left as its share.
        """
        with self._lock:
            while True:
                if self.caps.calls is not None and self.calls >= self.caps.calls:
                    return None
                share = self._share(judge)
                if self.caps.spend is None or self.spent + sum(self._held) + share <= self.caps.spend:
                    self.calls += 1
                    self._held.append(share)
                    return share
                if not self._held:
                    return None
                self._lock.wait()

    def release(self, share: float) -> None:
        """A request that was not sent after all."""
        with self._lock:
            self.calls -= 1
            self._held.remove(share)
            self._lock.notify_all()

    def settle(self, judge: str, share: float, tokens_in: int | None = None, tokens_out: int | None = None) -> None:
        """A request came back; without tokens it failed, whose cost is not known and counts as nothing."""
        with self._lock:
            self._held.remove(share)
            self._count(judge, tokens_in, tokens_out)
            self._lock.notify_all()

    def _count(self, judge: str, tokens_in: int | None, tokens_out: int | None) -> None:
        if tokens_in is None or tokens_out is None:
            return
        self.spent += self.caps.cost(judge, tokens_in, tokens_out)
        most_in, most_out = self._largest.get(judge, (0, 0))
        self._largest[judge] = max(most_in, tokens_in), max(most_out, tokens_out)

    def _share(self, judge: str) -> float:
        if self.caps.spend is None:
            return 0.0
        if judge not in self._largest:
            least = self.caps.cost(judge, 0, self.caps.tokens)
            return max(least, self.caps.spend - self.spent, 1e-12)  # with nothing left no request is sent
        tokens_in, tokens_out = self._largest[judge]
        return self.caps.cost(judge, int(MARGIN * tokens_in) + 1, max(self.caps.tokens, tokens_out))
