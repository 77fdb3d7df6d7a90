"""What an engine tells whoever counts: this class ignores it, `metrics.Metrics` exports it."""

from __future__ import annotations

from .batcher import Forward
from .requests import Picture


class Observer:
    """Ignores what it is told."""

    def on_accepted(self, pictures: int) -> None:
        """Requests were accepted."""

    def on_load(self, waiting: int, running: int) -> None:
        """Pictures wait and run."""

    def on_forward(self, forward: Forward) -> None:
        """A network was called."""

    def on_picture(self, picture: Picture) -> None:
        """A picture is finished."""

    def on_failed(self, reason: str) -> None:
        """A request ended without a picture."""
