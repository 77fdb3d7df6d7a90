"""Results on disk: nothing is overwritten unless asked, and files are written completely or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import OutputError

METADATA = ("prompt", "seed", "spec", "model", "guidance", "settings", "version")
DESCRIPTION = 0x010E  # the EXIF tag ImageDescription


def check_targets(paths: Iterable[Path], force: bool) -> None:
    """Refuse, before anything is computed, what could not be written after it.

    Raises:
        OutputError: a file exists and `force` is off, or its folder cannot be written.
    """
    paths = list(paths)
    taken = [p for p in paths if p.exists()]
    if blocked := next((p for p in taken if p.is_dir()), None):
        raise OutputError(f"{blocked} is a folder; name a file with --out.")
    if taken and not force:
        others = f" (and {len(taken) - 1} more)" if len(taken) > 1 else ""
        raise OutputError(f"{taken[0]}{others} exists already. Say --force to overwrite, or choose another --out.")
    for folder in {p.parent for p in paths}:
        _probe(folder)


def _probe(folder: Path) -> None:
    """Test whether the folder, or the folder that it would be created in, is writable."""
    there = folder
    while not there.exists():
        there = there.parent
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as e:
        raise OutputError(f"Cannot write to {folder}: {e.strerror}. Choose another --out.") from None


def write_atomically(files: Mapping[Path, bytes], force: bool = True) -> None:
    """Write files under passing names and move them into place when all of them are complete.

    Args:
        files: What each holds.
        force: Overwrite files that are there.

    Raises:
        OutputError: that fails, or a file is there and `force` is off: another command may have written it since
            `check_targets`. Then nothing is written; the passing names never stay behind.
    """
    waiting: dict[Path, Path] = {}
    reserved: list[Path] = []
    try:
        for target, content in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
            waiting[Path(name)] = target
            with os.fdopen(handle, "wb") as stream:
                stream.write(content)
            Path(name).chmod(0o644)
        for target in () if force else files:
            _reserve(target)
            reserved.append(target)
        for part, target in waiting.items():
            os.replace(part, target)
        reserved.clear()
    except OSError as e:
        raise OutputError(f"Cannot write {e.filename}: {e.strerror}.") from None
    finally:
        for path in (*waiting, *reserved):
            path.unlink(missing_ok=True)


def _reserve(target: Path) -> None:
    """Make an empty file, unless there is one: of two commands, only one can."""
    try:
        target.open("xb").close()
    except FileExistsError:
        raise OutputError(
            f"{target} was written by another command meanwhile. Say --force to overwrite, or choose another --out."
        ) from None


def slug(text: str, limit: int = 60) -> str:
    """A file name out of a text: "a red apple!" -> "a-red-apple"."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].rstrip("-") or "picture"


def encode_picture(suffix: str, pixels: Any, facts: Mapping[str, Any]) -> bytes:
    """A picture's file, .png, or a video's, animated .webp, with what makes it again in its metadata.

    PNG files hold it as text chunks, WebP files as JSON in the EXIF description.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    from ..evaluation.pixels import encode_image

    metadata = {name: facts[name] for name in METADATA if name in facts}
    if suffix == ".webp":
        exif = Image.Exif()
        exif[DESCRIPTION] = json.dumps(metadata, ensure_ascii=False)
        return encode_image("WEBP", pixels, lossless=True, exif=exif)
    info = PngInfo()
    for name, value in metadata.items():
        info.add_itxt(name, json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else str(value))
    return encode_image("PNG", pixels, pnginfo=info)
