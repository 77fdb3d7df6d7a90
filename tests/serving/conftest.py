"""One engine of Pebble for all tests of a process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from skipstone.serving import Engine
from skipstone.serving.metrics import Metrics


@pytest.fixture(scope="session")
def pebble() -> Iterator[Engine]:
    with Engine.of("pebble", rows=16, observer=Metrics()) as engine:
        yield engine
