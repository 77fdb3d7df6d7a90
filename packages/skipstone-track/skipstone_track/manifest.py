"""The files of a folder by content: SHA-256 of each, and one of all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from skipstone.errors import OutputError

SUMS_FILE = "skipstone_files.json"  # of a run in MLflow: the manifest of its other files
LEFT_OUT = ("drawings", "checkpoints", "tensorboard", "learner", "runs")  # large, and made again by the same command


def manifest(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256, sorted; hidden files and the working folders of a training are left out.

    Raises:
        OutputError: a folder without files, or one that cannot be read.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts) and parts[0] not in LEFT_OUT:
            with path.open("rb") as stream:
                found["/".join(parts)] = hashlib.file_digest(stream, "sha256").hexdigest()
    if not found:
        raise OutputError(f"{folder}: expected a folder with files.")
    return found


def digest(files: Mapping[str, str]) -> str:
    """One SHA-256 of a manifest."""
    return hashlib.sha256(json.dumps(dict(sorted(files.items()))).encode()).hexdigest()


def differences(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Sentences that name missing, added and changed files; empty where there are none."""
    missing = [f"{name} is missing" for name in sorted(expected.keys() - found.keys())]
    added = [f"{name} was added" for name in sorted(found.keys() - expected.keys())]
    shared = sorted(expected.keys() & found.keys())
    return missing + added + [f"{name} was changed" for name in shared if expected[name] != found[name]]
