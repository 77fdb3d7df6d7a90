"""Numbers of an engine for Prometheus; needs the extra `serve`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from prometheus_client import CONTENT_TYPE_LATEST as MEDIA_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..calibration.sequential import RunningAudit
from .batcher import Forward
from .observers import Observer
from .requests import Picture

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Makers(Protocol):
    """Makes instruments."""

    def counter(self, name: str, about: str, labels: Sequence[str] = ()) -> Any:
        """A number that grows."""

    def gauge(self, name: str, about: str, labels: Sequence[str] = ()) -> Any:
        """A number that goes up and down."""

    def histogram(self, name: str, about: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Any:
        """How often values were within bounds."""


class PrometheusMakers:
    """Makes instruments of Prometheus' client, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

    def counter(self, name: str, about: str, labels: Sequence[str] = ()) -> Any:
        """A number that grows."""
        return Counter(name, about, labels, registry=self.registry)

    def gauge(self, name: str, about: str, labels: Sequence[str] = ()) -> Any:
        """A number that goes up and down."""
        return Gauge(name, about, labels, registry=self.registry)

    def histogram(self, name: str, about: str, buckets: Sequence[float], labels: Sequence[str] = ()) -> Any:
        """How often values were within bounds."""
        return Histogram(name, about, labels, buckets=buckets, registry=self.registry)


class Metrics(Observer):
    """Counts, in a registry of its own, so that several engines of a process do not mix.

    Args:
        makers: Of its instruments; None is Prometheus' client.
    """

    media_type = MEDIA_TYPE

    def __init__(self, makers: Makers | None = None) -> None:
        own = makers or PrometheusMakers()
        self.registry = own.registry if isinstance(own, PrometheusMakers) else CollectorRegistry()
        self._waiting = own.gauge("skipstone_waiting_pictures", "Pictures that wait.")
        self._running = own.gauge("skipstone_running_pictures", "Pictures that are denoised.")
        self._accepted = own.counter("skipstone_accepted_pictures", "Pictures that were accepted.")
        self._failed = own.counter("skipstone_failed_pictures", "Those that were not drawn.", ["reason"])
        self._rows = own.histogram("skipstone_rows_per_forward", "Rows of each call of a network.", ROWS)
        self._calls = own.counter("skipstone_calls", "Calls of finished pictures.", ["model"])
        self._saved = own.counter("skipstone_saved_calls", "Calls that policies saved.", ["model"])
        names = ["model", "certificate"]
        self._audits = own.counter("skipstone_audits", "Pictures drawn again in full.", names)
        self._e_value = own.gauge("skipstone_audit_e_value", "Evidence that a promise is broken.", names)
        self._alarm = own.gauge("skipstone_audit_alarm", "1 where a certificate was withdrawn.", names)
        self._reloads = own.counter("skipstone_reloads", "Reloads.", ["outcome"])
        self._changed = own.gauge("skipstone_model_changed", "1 where files are not those served.", ["model"])
        self._shed = own.counter("skipstone_shed_pictures", "Pictures drawn faster because many waited.")
        self._seconds = own.histogram("skipstone_picture_seconds", "From acceptance to picture.", SECONDS, ["model"])
        self._queued = own.histogram("skipstone_queued_seconds", "Before the first call.", SECONDS, ["model"])

    def on_accepted(self, pictures: int) -> None:
        self._accepted.inc(pictures)

    def on_load(self, waiting: int, running: int) -> None:
        self._waiting.set(waiting)
        self._running.set(running)

    def on_forward(self, forward: Forward) -> None:
        self._rows.observe(forward.rows)

    def on_picture(self, picture: Picture) -> None:
        model = picture.model
        self._shed.inc(picture.shed)
        self._calls.labels(model).inc(picture.calls)
        self._saved.labels(model).inc(max(0.0, picture.full_calls - picture.calls))
        self._seconds.labels(model).observe(picture.seconds)
        self._queued.labels(model).observe(picture.queued)

    def on_failed(self, reason: str) -> None:
        self._failed.labels(reason).inc()

    def on_audit(self, model: str, certificate: str, result: RunningAudit) -> None:
        """A certificate was audited."""
        self._audits.labels(model, certificate).inc()
        self._e_value.labels(model, certificate).set(result.e_value)
        self._alarm.labels(model, certificate).set(result.alarm)

    def on_reload(self, good: bool) -> None:
        """A reload has ended."""
        self._reloads.labels("done" if good else "failed").inc()

    def on_change(self, model: str, changed: bool) -> None:
        """A model's files were compared with those that were loaded."""
        self._changed.labels(model).set(changed)

    def page(self) -> tuple[bytes, str]:
        """The text, and its type."""
        return self.text(), self.media_type

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
