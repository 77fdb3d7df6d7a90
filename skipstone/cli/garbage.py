"""Garbage collection while a command starts: importing torch and diffusers makes 400,000 objects that all stay."""

from __future__ import annotations

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager

NEW_OBJECTS = 50_000  # between two collections, in place of 700
_usual = gc.get_threshold()


@contextmanager
def rare_collections() -> Iterator[None]:
    """Collect rarely until `collect_as_usual`, and not at the end of the process, where it takes a second."""
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)
    gc.set_threshold(NEW_OBJECTS, *_usual[1:])
    try:
        yield
    finally:
        collect_as_usual()


def collect_as_usual() -> None:
    """Collect as often as before: from here on, garbage may hold tensors."""
    gc.set_threshold(*_usual)
