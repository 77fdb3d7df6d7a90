"""How callers of long work are told how far it is."""

from __future__ import annotations

from typing import Protocol


class ProgressCallback(Protocol):
    """Is told what is being done, and how much is done of how much."""

    def __call__(self, what: str, done: float, total: float) -> None: ...


def no_progress(what: str, done: float, total: float) -> None:
    """Tell nobody."""
