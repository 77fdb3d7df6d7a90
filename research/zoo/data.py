"""Domains: grey digits drawn from fonts, emoji on white or coloured grounds, clips of moving emoji.

Each domain draws a pool of pictures once, from a seed; a training then picks from the pool.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

#: Grounds by name, RGB.
GROUNDS = {
    "white": (255, 255, 255),
    "yellow": (250, 214, 92),
    "green": (126, 200, 120),
    "blue": (96, 150, 226),
    "red": (222, 98, 88),
    "black": (28, 28, 36),
}
#: Steps of a clip: pixels a frame at a side of 24.
DIRECTIONS = {"right": (1.3, 0.0), "left": (-1.3, 0.0), "down": (0.0, 1.3), "up": (0.0, -1.3)}


@dataclass(frozen=True)
class Pool:
    """Pictures uint8 (N, C, H, W) or clips (N, C, F, H, W), and their labels (N, k)."""

    pictures: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True)
class Domain:
    """What a network draws.

    Args:
        kind: "digits", "emoji" or "clips".
        side: of a picture in pixels.
        artwork: an npz of emoji (arrays `images`, `name`), relative to the artwork's folder.
        objects: names of emoji.
        grounds: names out of `GROUNDS`.
        sizes: smallest and largest width of an emoji, as a share of the side.
        frames: of a clip.
        count: pictures of the pool.
    """

    kind: str
    side: int
    artwork: str = ""
    objects: tuple[str, ...] = ()
    grounds: tuple[str, ...] = ("white",)
    sizes: tuple[float, float] = (0.8, 0.95)
    frames: int = 8
    count: int = 8000

    @property
    def channels(self) -> int:
        """Of a picture."""
        return 1 if self.kind == "digits" else 3

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """The values that each label may have, by name."""
        if self.kind == "digits":
            return (tuple("0123456789"),)
        if self.kind == "clips":
            return (self.objects, tuple(DIRECTIONS))
        return (self.objects, self.grounds)


def draw_pool(domain: Domain, artwork: Path, fonts: Path | None, seed: int) -> Pool:
    """Draw a domain's pool; `artwork` and `fonts` are folders."""
    rng = np.random.default_rng(seed)
    if domain.kind == "digits":
        faces = find_fonts(fonts)
        drawn = [digit(rng, domain.side, faces) for _ in range(domain.count)]
        pictures = np.stack([picture for picture, _ in drawn])[:, None]
        return Pool(torch.from_numpy(pictures), torch.tensor([[label] for _, label in drawn]))
    sprites = load_sprites(domain, artwork)
    draw = clip if domain.kind == "clips" else still
    shown = [draw(rng, domain, sprites) for _ in range(domain.count)]
    pictures = np.moveaxis(np.stack([picture for picture, _ in shown]), -1, 1)
    return Pool(torch.from_numpy(np.ascontiguousarray(pictures)), torch.tensor([labels for _, labels in shown]))


# --- digits -------------------------------------------------------------------------------------


def find_fonts(folder: Path | None) -> list[Path]:
    """Fonts with plain digits: matplotlib's own, and those under a folder."""
    import matplotlib

    own = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    families = ("DejaVuSans", "DejaVuSerif", "STIXGeneral", "cmr10", "cmb10", "cmss10", "cmtt10")
    found = [file for file in sorted(own.glob("*.ttf")) if file.stem.split("-")[0].startswith(families)]
    if folder is not None:
        found += sorted(file for kind in ("*.ttf", "*.otf") for file in folder.rglob(kind))
    unfit = ("Display", "ExtraLight", "Thin")
    return list({file.stem: file for file in found if not any(part in file.stem for part in unfit)}.values())


def digit(rng: np.random.Generator, side: int, fonts: list[Path]) -> tuple[NDArray[np.uint8], int]:
    """A light digit on black: (side, side) uint8, with font, size, turn, shear, shift and blur drawn by chance."""
    label, scale = int(rng.integers(10)), 4
    font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), int(scale * side * rng.uniform(0.8, 1.1)))
    big = scale * side
    picture = Image.new("L", (big, big))
    ink = int(rng.integers(190, 256))
    ImageDraw.Draw(picture).text((big / 2, big / 2), str(label), fill=ink, font=font, anchor="mm")
    turn, shear = math.radians(rng.normal(0, 7)), rng.normal(0, 0.12)
    wide, high = rng.uniform(0.85, 1.15, 2)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    matrix = matrix @ np.array([[wide, shear], [0.0, high]])
    shift = rng.uniform(-0.07, 0.07, 2) * big
    centre = np.array([big / 2, big / 2])
    offset = centre - matrix @ (centre + shift)
    data = (*matrix[0], offset[0], *matrix[1], offset[1])
    picture = picture.transform((big, big), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    picture = picture.filter(ImageFilter.GaussianBlur(scale * rng.uniform(0.0, 0.7)))
    return np.asarray(picture.resize((side, side), Image.Resampling.BOX)), label


# --- emoji --------------------------------------------------------------------------------------


def load_sprites(domain: Domain, artwork: Path) -> list[Image.Image]:
    """The domain's emoji, RGBA, cropped to their outlines and padded to a square, in the order of its objects."""
    with np.load(artwork / domain.artwork, allow_pickle=False) as data:
        names, images = data["name"].tolist(), data["images"]
    return [cut_out(Image.fromarray(images[names.index(name)])) for name in domain.objects]


def cut_out(picture: Image.Image) -> Image.Image:
    """An emoji on white without its ground: near-white connected to the corners becomes clear."""
    side, mark = picture.width, (255, 0, 255)
    padded = Image.new("RGB", (side + 2, side + 2), (255, 255, 255))
    padded.paste(picture, (1, 1))
    filled = padded.copy()
    ImageDraw.floodfill(filled, (0, 0), mark, thresh=40)
    solid = ~(np.asarray(filled) == mark).all(-1)
    alpha = Image.fromarray((solid * 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))
    rgba = padded.convert("RGBA")
    rgba.putalpha(alpha.point(lambda value: max(0, min(255, 2 * value - 255))))
    box = alpha.getbbox() or (0, 0, side, side)
    cropped = rgba.crop(box)
    most = max(cropped.size)
    square = Image.new("RGBA", (most, most))
    square.paste(cropped, ((most - cropped.width) // 2, (most - cropped.height) // 2))
    return square


def place(ground: Image.Image, sprite: Image.Image, centre: tuple[float, float], width: float) -> None:
    """Paste a sprite of a width in pixels at a centre; both need not be whole."""
    scale = sprite.width / width
    left, top = centre[0] - width / 2, centre[1] - width / 2
    # Blur before taking fewer pixels, so that fine parts do not flicker.
    soft = sprite.resize((max(1, round(width)),) * 2, Image.Resampling.LANCZOS)
    scale = soft.width / width
    data = (scale, 0, -left * scale, 0, scale, -top * scale)
    moved = soft.transform(ground.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    ground.paste(moved, (0, 0), moved)


def still(
    rng: np.random.Generator, domain: Domain, sprites: list[Image.Image]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """One emoji on a ground: (side, side, 3) uint8, and its labels (object, ground)."""
    thing, ground = int(rng.integers(len(sprites))), int(rng.integers(len(domain.grounds)))
    picture = Image.new("RGB", (domain.side,) * 2, GROUNDS[domain.grounds[ground]])
    width = rng.uniform(*domain.sizes) * domain.side
    room = (domain.side - width) / 2
    x, y = domain.side / 2 + rng.uniform(-room, room, 2)
    sprite = sprites[thing]
    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    place(picture, sprite, (x, y), width)
    return np.asarray(picture), (thing, ground)


def clip(
    rng: np.random.Generator, domain: Domain, sprites: list[Image.Image]
) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """An emoji that moves evenly: (frames, side, side, 3) uint8, and its labels (object, direction)."""
    thing, way = int(rng.integers(len(sprites))), int(rng.integers(len(DIRECTIONS)))
    step = np.array(list(DIRECTIONS.values())[way]) * domain.side / 24
    width = rng.uniform(*domain.sizes) * domain.side
    room = np.maximum((domain.side - width) / 2 - np.abs(step) * (domain.frames - 1) / 2, 0)
    middle = domain.side / 2 + rng.uniform(-room, room)
    colour, frames = GROUNDS[domain.grounds[rng.integers(len(domain.grounds))]], []
    for frame in range(domain.frames):
        picture = Image.new("RGB", (domain.side,) * 2, colour)
        x, y = middle + step * (frame - (domain.frames - 1) / 2)
        place(picture, sprites[thing], (x, y), width)
        frames.append(np.asarray(picture))
    return np.stack(frames), (thing, way)
