"""Training scenes: which are drawn how often, and the cache of their latents."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .. import scenes
from ..scenes import Scene, Sprites
from ..words import BACKGROUNDS, OBJECTS, RELATIONS, SIZES


def draw_scene(rng: np.random.Generator, pair_share: float = 0.6) -> Scene:
    """One scene that training may see, never a withheld one.

    Args:
        rng: source of every choice.
        pair_share: fraction of the scenes that hold two objects, in [0, 1].
    """
    names, grounds = list(OBJECTS), list(BACKGROUNDS)
    while True:
        ground = grounds[int(rng.integers(len(grounds)))]
        if rng.random() < pair_share:
            first, second = rng.choice(len(names), 2, replace=False)
            relation = list(RELATIONS)[int(rng.integers(len(RELATIONS)))]
            scene = Scene((names[int(first)], names[int(second)]), relation, ground)
        else:
            size = list(SIZES)[int(rng.integers(len(SIZES)))]
            scene = Scene((names[int(rng.integers(len(names)))],), None, ground, size)
        if not scenes.withheld().contains(scene):
            return scene


def draw_picture(rng: np.random.Generator, scene: Scene, sprites: Sprites) -> NDArray[np.uint8]:
    """The scene in one of its layouts: (64, 64, 3) uint8."""
    options = scenes.layouts(scene)
    return scenes.render(scene, sprites, options[int(rng.integers(len(options)))])


def to_tensor(pictures: NDArray[np.uint8]) -> torch.Tensor:
    """Pictures (N, 64, 64, 3) uint8 -> (N, 3, 64, 64) float32 in [-1, 1], channels last in memory."""
    tensor = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    return tensor.contiguous(memory_format=torch.channels_last)


def resize_pictures(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Pictures (N, 3, 64, 64) at another side in pixels, bilinear over all pixels that one covers."""
    if pictures.shape[-1] == side:
        return pictures
    resized: torch.Tensor = nn.functional.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
    return resized.contiguous(memory_format=torch.channels_last)


def picture_batch(seed: int, step: int, size: int, sprites: Sprites, side: int = 64) -> torch.Tensor:
    """The `step`-th batch of training pictures: (size, 3, side, side) in [-1, 1].

    A `side` below 64 cuts a window around an object, on the 8 px grid of the latents. The batch depends
    on (seed, step) alone, so that a resumed run sees what an unbroken one does.
    """
    rng = np.random.default_rng([seed, 1, step])
    pictures = []
    for _ in range(size):
        scene = draw_scene(rng)
        picture = draw_picture(rng, scene, sprites)
        places = scenes.object_places(scene)
        x, y, _ = places[int(rng.integers(len(places)))]
        left, top = (
            int(np.clip((at - side // 2) // 8 * 8 + 8 * int(rng.integers(-1, 2)), 0, 64 - side)) for at in (x, y)
        )
        pictures.append(picture[top : top + side, left : left + side])
    return to_tensor(np.stack(pictures))
