"""A model in a folder of its own, which may be trained further there."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from skipstone.errors import OutputError
from skipstone.serving.fingerprint import CERTIFICATES

from . import MANIFEST


def copy_model(source: Path, folder: Path) -> None:
    """Copy a model without its certificates, complete or not at all.

    Args:
        source: Folder of a model.
        folder: That is made.

    Raises:
        OutputError: the folder is there, or cannot be written.
    """
    part = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(CERTIFICATES, "__pycache__", ".*"))
        write_sums(part)
        os.rename(part, folder)
    except OSError as e:
        raise OutputError(f"Cannot copy {source} to {folder}: {e.strerror or e}. Choose another folder.") from None


def write_sums(folder: Path) -> None:
    """Take the files of a model as they are: their sums in its manifest, as whoever trains it further has to."""
    sums = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if name.as_posix() != MANIFEST and name.parts[0] != CERTIFICATES:
            sums[name.as_posix()] = {"sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps({"files": sums}, indent=1) + "\n", encoding="utf-8")
