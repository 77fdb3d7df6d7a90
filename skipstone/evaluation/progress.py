"""Callbacks for the progress of long work."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Called with what is being done, and how much is done of how much."""

    def __call__(self, what: str, done: float, total: float) -> None: ...


def no_progress(what: str, done: float, total: float) -> None:
    """Do nothing."""
