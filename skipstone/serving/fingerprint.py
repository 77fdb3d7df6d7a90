"""Whether the files of a model are those that were loaded: by what is in them, or, cheaply, by their dates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelError

CERTIFICATES = "certificates"  # folder, in that of a model, with one folder for each quality
BLOCK = 1 << 20  # bytes that are read at once


def weights_fingerprint(folder: Path) -> str:
    """SHA-256 over names and contents of a model's files, those of its certificates left out. Raises ModelError."""
    found = hashlib.sha256()
    try:
        for file in _files(folder):
            content = hashlib.sha256()
            with file.open("rb") as stream:
                while block := stream.read(BLOCK):
                    content.update(block)
            found.update(f"{file.relative_to(folder).as_posix()}\n{content.hexdigest()}\n".encode())
    except OSError as e:
        raise ModelError(f"{folder} cannot be read: {e.strerror or e}. Expected the folder of a model.") from None
    return found.hexdigest()


def dates_fingerprint(folder: Path) -> str:
    """SHA-256 over names, sizes and dates of these files: takes microseconds; "" where they cannot be read."""
    found = hashlib.sha256()
    try:
        for file in _files(folder):
            known = file.stat()
            found.update(f"{file}\n{known.st_size} {known.st_mtime_ns} {known.st_ino}\n".encode())
    except OSError:
        return ""
    return found.hexdigest()


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in (CERTIFICATES, "__pycache__"))
        yield from (Path(place) / name for name in sorted(names) if not name.startswith("."))
