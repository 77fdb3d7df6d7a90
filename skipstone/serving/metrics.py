"""Numbers of an engine for Prometheus; needs the extra `serve`."""

from __future__ import annotations

from prometheus_client import CONTENT_TYPE_LATEST as MEDIA_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..calibration.sequential import AuditResult
from .batcher import Forward
from .observers import Observer
from .requests import Picture

ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics(Observer):
    """Counts in a registry of its own, so that several engines of a process do not mix."""

    media_type = MEDIA_TYPE

    def __init__(self) -> None:
        self.registry = own = CollectorRegistry()
        self._waiting = Gauge("skipstone_waiting_pictures", "Pictures that wait.", registry=own)
        self._running = Gauge("skipstone_running_pictures", "Pictures that are denoised.", registry=own)
        self._accepted = Counter("skipstone_accepted_pictures", "Pictures that were accepted.", registry=own)
        self._failed = Counter("skipstone_failed_pictures", "Those that were not drawn.", ["reason"], registry=own)
        self._rows = Histogram(
            "skipstone_rows_per_forward", "Rows of each call of a network.", buckets=ROWS, registry=own
        )
        self._calls = Counter("skipstone_calls", "Calls of finished pictures.", ["model"], registry=own)
        self._saved = Counter("skipstone_saved_calls", "Calls that policies saved.", ["model"], registry=own)
        names = ["model", "certificate"]
        self._audits = Counter("skipstone_audits", "Pictures drawn again in full.", names, registry=own)
        self._e_value = Gauge("skipstone_audit_e_value", "Evidence that a promise is broken.", names, registry=own)
        self._alarm = Gauge("skipstone_audit_alarm", "1 where a certificate was withdrawn.", names, registry=own)
        self._shed = Counter("skipstone_shed_pictures", "Pictures drawn faster because many waited.", registry=own)
        self._seconds = Histogram(
            "skipstone_picture_seconds", "From acceptance to picture.", ["model"], buckets=SECONDS, registry=own
        )
        self._queued = Histogram(
            "skipstone_queued_seconds", "Before the first call.", ["model"], buckets=SECONDS, registry=own
        )

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

    def on_audit(self, model: str, certificate: str, result: AuditResult) -> None:
        """A certificate was audited."""
        self._audits.labels(model, certificate).inc()
        self._e_value.labels(model, certificate).set(result.e_value)
        self._alarm.labels(model, certificate).set(result.alarm)

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)
