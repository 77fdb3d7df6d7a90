"""Limits of the fuzz tests: a gigabyte more than the process has at the start."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

GIGABYTE = 1 << 30


@pytest.fixture(scope="module", autouse=True)
def memory_limit() -> Iterator[None]:
    """Where Linux counts it: what would take more raises MemoryError, and fails."""
    if sys.platform != "linux":
        yield
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + GIGABYTE, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
