"""Cut the emoji artwork out of its white ground and scale it to the sizes of the scenes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from skipstone.errors import ModelError

from ..words import OBJECTS, PAIR_SIZE, SIZES

#: A pixel at least this bright in every channel, connected to the border, is ground.
WHITE = 238
#: How far into the sprite (pixels of a 64 px picture) the edge may be a blend with white.
EDGE = 2.0

Sprite = dict[int, NDArray[np.float32]]


def load_sprites(folder: Path) -> dict[str, Sprite]:
    """Read the artwork of every object of the grammar.

    Args:
        folder: holds `fluent3d_64.npz` (arrays `images` (N, H, W, 3) uint8 on white, `name`), or else
            one PNG for each object named by its CLDR short name or Microsoft's, e.g. `cat face.png`,
            `Cat face/3D/cat_face_3d.png` (the layout of github.com/microsoft/fluentui-emoji).

    Returns:
        name -> width in pixels -> premultiplied RGBA in [0, 1], (width, width, 4) float32.

    Raises:
        ModelError: no artwork for one of the objects.
    """
    archive = folder / "fluent3d_64.npz"
    artwork = _from_archive(archive) if archive.is_file() else _from_pngs(folder)
    missing = [cldr for cldr in OBJECTS.values() if cldr.lower() not in artwork]
    if missing:
        raise ModelError(
            f"expected a picture of every object in {folder}, found none of {', '.join(missing)}; "
            "give a folder with fluent3d_64.npz, or with PNGs named by emoji (fluentui-emoji's assets/)"
        )
    widths = sorted({*SIZES.values(), PAIR_SIZE})
    return {name: _scale_sprite(artwork[cldr.lower()], widths) for name, cldr in OBJECTS.items()}


def _from_archive(file: Path) -> dict[str, NDArray[np.float32]]:
    with np.load(file, allow_pickle=False) as data:
        names = [str(name).lower() for name in data["name"]]
        wanted = {cldr.lower() for cldr in OBJECTS.values()}
        return {n: cut_out(p) for n, p in zip(names, data["images"], strict=True) if n in wanted}


def _from_pngs(folder: Path) -> dict[str, NDArray[np.float32]]:
    wanted = {cldr.lower().replace("-", " "): cldr.lower() for cldr in OBJECTS.values()}
    artwork: dict[str, NDArray[np.float32]] = {}
    for file in sorted(folder.rglob("*.png")):
        stem = file.stem.lower().removesuffix("_3d").replace("_", " ").replace("-", " ")
        if stem not in wanted or file.stem.lower().endswith(("_color", "_flat", "_high_contrast")):
            continue
        with Image.open(file) as picture:
            if "A" not in picture.getbands():
                artwork[wanted[stem]] = cut_out(np.asarray(picture.convert("RGB")))
                continue
            rgba = np.asarray(picture.convert("RGBA"), np.float32) / 255
            artwork[wanted[stem]] = np.concatenate([rgba[..., :3] * rgba[..., 3:], rgba[..., 3:]], -1)
    return artwork


def cut_out(picture: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Premultiplied RGBA (H, W, 4) in [0, 1] of an object on white (H, W, 3) uint8.

    Near-white connected to the border is ground. A pixel near the ground is a blend of white and
    the nearest pixel that is surely object; solving for the blend gives its opacity.
    """
    rgb = picture.astype(np.float32) / 255
    near_white = (picture.min(-1) >= WHITE) & (np.ptp(picture, axis=-1) < 14)
    labels, _ = ndimage.label(np.pad(near_white, 1, constant_values=True))
    ground = (labels == labels[0, 0])[1:-1, 1:-1]
    depth, _ = ndimage.distance_transform_edt(~np.pad(ground, 1, constant_values=True), return_indices=True)
    depth = depth[1:-1, 1:-1]
    sure = depth > EDGE
    if not sure.any():
        sure = ~ground
    rows, columns = ndimage.distance_transform_edt(~sure, return_distances=False, return_indices=True)
    paint = rgb[rows, columns]
    toward = 1 - paint
    blend = ((1 - rgb) * toward).sum(-1) / np.maximum((toward**2).sum(-1), 0.02)
    # Where the paint itself is nearly white the blend is ill-posed: keep such a pixel whole.
    blend = np.where((toward**2).sum(-1) < 0.02, 1.0, blend)
    alpha = np.where(ground, 0.0, np.where(sure, 1.0, blend.clip(0, 1))).astype(np.float32)
    colour = np.where(sure[..., None] | (alpha[..., None] > 0.98), rgb, paint)
    return np.concatenate([colour * alpha[..., None], alpha[..., None]], -1).astype(np.float32)


def _scale_sprite(rgba: NDArray[np.float32], widths: list[int]) -> Sprite:
    """The object cropped to its opaque box, centred in a square, at each width."""
    rows, columns = np.nonzero(rgba[..., 3] > 0.1)
    box = rgba[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    side = max(box.shape[:2])
    square = np.zeros((side, side, 4), np.float32)
    top, left = (side - box.shape[0]) // 2, (side - box.shape[1]) // 2
    square[top : top + box.shape[0], left : left + box.shape[1]] = box
    return {width: _resize(square, width) for width in widths}


def _resize(square: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    bands = [
        np.asarray(Image.fromarray(square[..., band]).resize((width, width), Image.Resampling.LANCZOS))
        for band in range(4)
    ]
    scaled = np.stack(bands, -1).clip(0, 1)
    scaled[..., :3] = np.minimum(scaled[..., :3], scaled[..., 3:])  # premultiplied: never above opacity
    return np.ascontiguousarray(scaled, np.float32)
