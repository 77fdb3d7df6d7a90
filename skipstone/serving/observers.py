"""Callbacks for the events of an engine: `metrics.Metrics` exports them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .batcher import Forward
from .requests import Picture


class Observer:
    """Ignores every event."""

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


@dataclass(frozen=True)
class Observers(Observer):
    """Hands each event to several observers.

    Args:
        each: The observers.
    """

    each: Sequence[Observer]

    def on_accepted(self, pictures: int) -> None:
        for one in self.each:
            one.on_accepted(pictures)

    def on_load(self, waiting: int, running: int) -> None:
        for one in self.each:
            one.on_load(waiting, running)

    def on_forward(self, forward: Forward) -> None:
        for one in self.each:
            one.on_forward(forward)

    def on_picture(self, picture: Picture) -> None:
        for one in self.each:
            one.on_picture(picture)

    def on_failed(self, reason: str) -> None:
        for one in self.each:
            one.on_failed(reason)
