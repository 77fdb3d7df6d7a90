"""The numbers of an engine for Ray's own exporter, which gathers them from all nodes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..metrics import Metrics


class RayInstrument:
    """A counter, gauge or histogram of Ray with the methods of Prometheus' client.

    Args:
        instrument: Of `ray.util.metrics`.
        labels: Names of its labels.
        values: Of them.
    """

    def __init__(self, instrument: Any, labels: Sequence[str], values: Sequence[str] = ()) -> None:
        self._instrument, self._labels = instrument, labels
        self._tags = dict(zip(labels, values, strict=False))

    def labels(self, *values: str) -> RayInstrument:
        """The same with values for its labels."""
        return RayInstrument(self._instrument, self._labels, values)

    def inc(self, amount: float = 1) -> None:
        """Count."""
        if amount > 0:  # Ray refuses others
            self._instrument.inc(float(amount), tags=self._tags)

    def set(self, value: float) -> None:
        """Show a value."""
        self._instrument.set(float(value), tags=self._tags)

    def observe(self, value: float) -> None:
        """Enter a value."""
        self._instrument.observe(float(value), tags=self._tags)


class RayMakers:
    """Makes instruments of Ray."""

    def counter(self, name: str, about: str, labels: Sequence[str] = ()) -> Any:
        """A number that grows."""
        from ray.util.metrics import Counter

        return RayInstrument(Counter(name, about, tuple(labels)), labels)

    def gauge(self, name: str, about: str, labels: Sequence[str] = ()) -> Any:
        """A number that goes up and down."""
        from ray.util.metrics import Gauge

        return RayInstrument(Gauge(name, about, tuple(labels)), labels)

    def histogram(self, name: str, about: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Any:
        """How often values were within bounds."""
        from ray.util.metrics import Histogram

        return RayInstrument(Histogram(name, about, list(map(float, buckets)), tuple(labels)), labels)


def ray_metrics() -> Metrics:
    """The numbers of an engine, given to Ray."""
    return Metrics(RayMakers())
