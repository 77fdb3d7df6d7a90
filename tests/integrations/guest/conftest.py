"""A pipeline for each test, as new as its call leaves it."""

from __future__ import annotations

from typing import Any

import pytest

from .runs import tiny_pipeline


@pytest.fixture
def pipe() -> Any:
    """A tiny Stable Diffusion with DDIM."""
    return tiny_pipeline()


@pytest.fixture
def plain() -> Any:
    """Another one like it."""
    return tiny_pipeline()
