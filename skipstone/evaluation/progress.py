"""Callbacks for the progress of long work."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Callback with the name of the work, the amount done and the total."""

    def __call__(self, what: str, done: float, total: float) -> None: ...


def no_progress(what: str, done: float, total: float) -> None:
    """Do nothing."""
