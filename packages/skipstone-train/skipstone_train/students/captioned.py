"""Clean latents for training from a folder of captioned pictures, which the teacher's autoencoder encodes once."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save

from skipstone.cli.files import write_atomically
from skipstone.errors import PromptError, SpecError
from skipstone.integrations.identity import digest
from skipstone.numerics.sizes import Size, nearest_buckets

from .data import SHARD, Drawings
from .teacher import Teacher

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
TABLES = ("metadata.jsonl", "metadata.csv")  # as diffusers' training scripts and `datasets` read them
LEAST_PSNR = 15.0  # dB of a picture that is encoded and decoded: below it the latents are of something else


def read_captions(folder: Path) -> list[tuple[Path, str]]:
    """Pictures of a folder and their captions, sorted by name.

    Captions are in `metadata.jsonl` or `metadata.csv` (columns `file_name` and `text`), or each in a file NAME.txt
    beside its picture.

    Raises:
        SpecError: no folder, or no pictures in it.
        PromptError: a picture without caption, or a caption without picture.
    """
    if not folder.is_dir():
        raise SpecError(f"--captioned: expected a folder of pictures with captions, got {folder}.")
    table = next((folder / name for name in TABLES if (folder / name).is_file()), None)
    found = list(_from_files(folder) if table is None else _from_table(table))
    if not found:
        raise SpecError(f"--captioned: expected pictures ({', '.join(SUFFIXES)}) in {folder}, got none.")
    for picture, caption in found:
        if not caption.strip():
            raise PromptError(f"{picture}: expected a caption, got an empty one.")
    return sorted(found)


def _from_files(folder: Path) -> Iterator[tuple[Path, str]]:
    for picture in folder.rglob("*"):
        if picture.suffix.lower() not in SUFFIXES:
            continue
        caption = picture.with_suffix(".txt")
        if not caption.is_file():
            raise PromptError(f"{picture}: expected its caption in {caption.name}, or all captions in {TABLES[0]}.")
        yield picture, caption.read_text(encoding="utf-8").strip()


def _from_table(table: Path) -> Iterator[tuple[Path, str]]:
    for number, row in enumerate(_rows(table), 1):
        if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("file_name", "text")):
            raise PromptError(f"{table}: row {number}: expected file_name and text, got {str(row)[:80]}.")
        picture = (table.parent / row["file_name"]).resolve()
        if not picture.is_relative_to(table.parent.resolve()) or not picture.is_file():
            raise PromptError(f"{table}: row {number}: expected a picture in the folder, got {row['file_name']!r}.")
        yield picture, row["text"].strip()


def _rows(table: Path) -> Iterator[Any]:
    with table.open(encoding="utf-8", newline="") as stream:
        if table.suffix == ".csv":
            yield from csv.DictReader(stream)
            return
        for number, line in enumerate(stream, 1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as e:
                raise PromptError(f"{table}: row {number}: expected JSON: {e}.") from None


def sort_by_size(found: Sequence[tuple[Path, str]], sizes: Sequence[Size]) -> list[list[tuple[Path, str]]]:
    """Pictures and captions of each size: those whose aspect ratio is nearest to it, see `nearest_buckets`.

    Raises:
        SpecError: a file that is no picture, or a size that no picture is nearest to.
    """
    sorted_: list[list[tuple[Path, str]]] = [[] for _ in sizes]
    for picture, caption in found:
        with _open(picture) as opened:
            width, height = opened.size
        for index in nearest_buckets(width, height, sizes):
            sorted_[index].append((picture, caption))
    for size, some in zip(sizes, sorted_, strict=True):
        if not some:
            raise SpecError(
                f"Expected pictures for every size, got none of {len(found)} whose aspect ratio is nearest to {size}. "
                f"Leave out that size."
            )
    return sorted_


@torch.no_grad()
def encode_pictures(
    teacher: Teacher,
    found: Sequence[tuple[Path, str]],
    cache: Path,
    on_progress: Callable[[str, float, float], None] | None = None,
) -> Drawings:
    """Encode pictures, resized and cropped to the size that the teacher draws, and keep their latents.

    Files are found again by SHA-256 over the autoencoder's weights, the size and the bytes of the pictures.

    Args:
        teacher: Its autoencoder encodes.
        found: Pictures and captions.
        cache: Folder of the files.
        on_progress: Called with (what, done, total).

    Raises:
        SpecError: a file that is no picture, or an autoencoder that cannot encode (some have a decoder alone).
    """
    size = picture_size(teacher)
    facts = {"autoencoder": digest({"vae": teacher.pipe.vae}), "size": size}
    latents: list[torch.Tensor] = []
    for start in range(0, len(found), SHARD):
        some = [picture for picture, _ in found[start : start + SHARD]]
        sums = [hashlib.sha256(picture.read_bytes()).hexdigest() for picture in some]
        key = json.dumps([facts, sums], sort_keys=True)
        file = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
        if not file.is_file():
            write_atomically({file: save({"latents": _encode(teacher, some, size, checked=start == 0)})})
        latents.append(load_file(file)["latents"])
        if on_progress is not None:
            on_progress("Encoding pictures", start + len(some), len(found))
    return Drawings(tuple(caption for _, caption in found), torch.cat(latents).float(), rows=0)


def picture_size(teacher: Teacher) -> tuple[int, int]:
    """Height and width in pixels that the teacher draws: those of its arguments, else its own."""
    sample = teacher.denoiser.config.sample_size
    own = (sample, sample) if isinstance(sample, int) else tuple(sample)
    scale = teacher.pipe.vae_scale_factor
    named = [teacher.arguments.get(name) for name in ("height", "width")]
    height, width = (int(said or side * scale) for said, side in zip(named, own, strict=True))
    return height, width


def _encode(teacher: Teacher, pictures: Sequence[Path], size: tuple[int, int], checked: bool) -> torch.Tensor:
    vae = teacher.pipe.vae
    found: list[torch.Tensor] = []
    for picture in pictures:
        pixels = _read(teacher, picture, size).to(vae.device, vae.dtype)
        encoded = vae.encode(pixels)
        latent = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
        if checked and len(found) < 8:
            _check_round_trip(picture, pixels, vae.decode(latent).sample)
        shift = (getattr(vae.config, "shift_factor", None) or 0.0) if teacher.is_flow else 0.0
        found.append(((latent - shift) * vae.config.scaling_factor).float().cpu())
    return torch.cat(found).contiguous()


def _read(teacher: Teacher, picture: Path, size: tuple[int, int]) -> torch.Tensor:
    """(1, 3, height, width), as the autoencoder takes it."""
    try:
        with _open(picture) as opened:
            image = opened.convert("RGB")
    except OSError as e:
        raise _no_picture(picture, e) from None
    pixels: torch.Tensor = teacher.pipe.image_processor.preprocess(image, *size, resize_mode="crop")
    return pixels


def _open(picture: Path) -> Any:
    """A picture, of which its size alone is read so far."""
    from PIL import Image

    try:
        return Image.open(picture)
    except OSError as e:  # UnidentifiedImageError is one
        raise _no_picture(picture, e) from None


def _no_picture(picture: Path, error: Exception) -> SpecError:
    return SpecError(f"{picture}: expected a picture: {error}.")


def _check_round_trip(picture: Path, pixels: torch.Tensor, decoded: torch.Tensor) -> None:
    """Raise SpecError where a picture, encoded and decoded, is another one. Pixels are in [-1, 1]."""
    error = float((pixels.float() - decoded.float()).square().mean()) / 4
    psnr = -10 * torch.log10(torch.tensor(max(error, 1e-12))).item()
    if psnr < LEAST_PSNR:
        raise SpecError(
            f"{picture}: the teacher's autoencoder, encoding and decoding it, is {psnr:.1f} dB from it; expected at "
            f"least {LEAST_PSNR:g} dB. Its encoder was not trained: train on prompts alone (--prompts)."
        )
