"""Cutting out, composing and reading pictures, with synthetic sprites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skipstone.errors import ModelError
from skipstone_pebble import scenes
from skipstone_pebble.recipe import sprites
from skipstone_pebble.scenes import Scene
from skipstone_pebble.words import BACKGROUNDS, OBJECTS


def test_render_puts_objects_where_the_relation_says(discs) -> None:
    ground = np.array(BACKGROUNDS["white"])
    for relation, (first, second) in {
        "left of": ((32, 16), (32, 48)),
        "right of": ((32, 48), (32, 16)),
        "above": ((16, 32), (48, 32)),
        "below": ((48, 32), (16, 32)),
    }.items():
        picture = scenes.render(Scene(("cat", "rocket"), relation, "white"), discs)
        assert picture.shape == (64, 64, 3)
        assert (picture[0, 0] == ground).all()
        for name, at in (("cat", first), ("rocket", second)):
            middle = discs[name][28][14, 14, :3] * 255
            assert np.abs(picture[at] - middle).max() <= 1, relation


def test_sizes_and_layouts_change_the_picture(discs) -> None:
    covered = {}
    for size in ("small", "normal", "large"):
        picture = scenes.render(Scene(("dog",), None, "blue", size), discs)
        covered[size] = int((picture != np.array(BACKGROUNDS["blue"])).any(-1).sum())
    assert covered["small"] < covered["normal"] < covered["large"]
    for scene in (Scene(("dog",), None, "blue", "large"), Scene(("dog", "cat"), "above", "red")):
        options = scenes.layouts(scene)
        assert len({scenes.render(scene, discs, option).tobytes() for option in options}) == len(options) == 9


def test_a_scene_without_background_is_not_drawn(discs) -> None:
    with pytest.raises(ValueError, match="background"):
        scenes.render(Scene(("dog",)), discs)


def _on_white(side: int = 64) -> np.ndarray:
    """A blue disc with an enclosed white hole, softened by averaging 4 x 4 samples to a pixel."""
    y, x = np.mgrid[: 4 * side, : 4 * side] - (2 * side - 0.5)
    radius = np.hypot(x, y)
    fine = np.where(((radius < 100) & (radius > 24))[..., None], (20, 40, 200), (255, 255, 255))
    return fine.reshape(side, 4, side, 4, 3).mean((1, 3)).astype(np.uint8)


def test_cut_out_keeps_white_inside_and_unmixes_the_edge() -> None:
    picture = _on_white()
    rgba = sprites.cut_out(picture)
    assert rgba[0, 0, 3] == 0
    assert rgba[32, 32, 3] == 1, "white enclosed by the object belongs to it"
    red = np.array([1, 0, 0], np.float32)
    on_red = rgba[..., :3] + red * (1 - rgba[..., 3:])
    edge = (rgba[..., 3] > 0.2) & (rgba[..., 3] < 0.8)
    assert edge.sum() > 20
    # A halo would be a pixel brighter in green than both the disc (40) and the ground (0).
    assert on_red[edge][:, 1].max() < 0.3


def test_load_reads_npz_and_pngs_alike(tmp_path: Path) -> None:
    picture = _on_white()
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    count = len(OBJECTS)
    np.savez(tmp_path / "a" / "fluent3d_64.npz", images=np.stack([picture] * count), name=list(OBJECTS.values()))
    for cldr in OBJECTS.values():
        Image.fromarray(picture).save(tmp_path / "b" / f"{cldr.lower().replace(' ', '_')}_3d.png")
    one, other = sprites.load_sprites(tmp_path / "a"), sprites.load_sprites(tmp_path / "b")
    assert set(one) == set(other) == set(OBJECTS)
    np.testing.assert_array_equal(one["cat"][38], other["cat"][38])


def test_missing_artwork_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="rocket"):
        sprites.load_sprites(tmp_path)
