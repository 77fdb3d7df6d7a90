"""Stand-ins for the artwork: the tests must not need it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from skipstone_pebble.words import OBJECTS, PAIR_SIZE, SIZES


@pytest.fixture(scope="session")
def discs() -> dict[str, dict[int, NDArray[np.float32]]]:
    """A disc in a colour of its own for every object, premultiplied RGBA at every size."""
    colours = np.random.default_rng(0).random((len(OBJECTS), 3)).astype(np.float32)
    sprites: dict[str, dict[int, NDArray[np.float32]]] = {}
    for name, colour in zip(OBJECTS, colours, strict=True):
        sprites[name] = {}
        for width in {*SIZES.values(), PAIR_SIZE}:
            y, x = np.mgrid[:width, :width] + 0.5 - width / 2
            opacity = (np.hypot(x, y) < 0.45 * width).astype(np.float32)[..., None]
            sprites[name][width] = np.concatenate([colour * opacity, opacity], -1)
    return sprites
