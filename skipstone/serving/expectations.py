"""What pictures and calls have cost so far: from this the engine expects what the next ones cost."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

MEMORY = 0.9  # weight of the past in a running mean


@dataclass(eq=False)
class RunningMeans:
    """Running means by keys; the key that was not met for longest is forgotten where there are more than `most`.

    Args:
        most: Keys that are remembered, >= 1.
    """

    most: int = 256
    _means: OrderedDict[str, float] = field(default_factory=OrderedDict, init=False)

    def __len__(self) -> int:
        return len(self._means)

    def get(self, key: str, default: float) -> float:
        """The mean of a key, or what is expected of one that was never met."""
        return self._means.get(key, default)

    def add(self, key: str, value: float) -> None:
        """Count a value of a key."""
        mean = self._means.pop(key, value)
        self._means[key] = MEMORY * mean + (1.0 - MEMORY) * value
        if len(self._means) > self.most:
            self._means.popitem(last=False)


@dataclass(eq=False)
class CallSeconds:
    """Seconds that a call of a network takes for one sample alone, by the model's name.

    Where no call for one sample alone was made yet, it is the share of a sample in calls for several, which is less.
    """

    _alone: RunningMeans = field(default_factory=RunningMeans, init=False)
    _shares: RunningMeans = field(default_factory=RunningMeans, init=False)

    def add(self, model: str, samples: int, seconds: float) -> None:
        """Count a call."""
        if samples == 1:
            self._alone.add(model, seconds)
        else:
            self._shares.add(model, seconds / samples)

    def get(self, model: str) -> float:
        """Seconds, or 0 where nothing is known."""
        return self._alone.get(model, self._shares.get(model, 0.0))
