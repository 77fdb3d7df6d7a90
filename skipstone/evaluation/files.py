"""Write files completely or not at all, and make safe file names."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from pathlib import Path

from ..errors import BenchError

REFERENCES = "references"  # folder of what pictures are compared with
IDENTICAL_PSNR = 99.0  # dB that stand for infinity, which JSON does not have


def write_file(path: Path, content: bytes) -> Path:
    """Write a file under a temporary name and move it into place. Raises BenchError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
        Path(part).chmod(0o644)
        os.replace(part, path)
    except OSError as e:
        raise BenchError(f"Cannot write {path}: {e.strerror}. Choose another --out.") from None
    return path


def safe_file_name(text: str, limit: int = 48) -> str:
    """A file name of its own for each text: its readable part, and a hash."""
    words = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")[:limit].rstrip("-.")
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
