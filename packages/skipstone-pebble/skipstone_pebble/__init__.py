"""Pebble: the small text-to-image model that ships with Skipstone, and what is known about its words."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from skipstone.errors import ModelError

from . import words as _words

#: The words of Pebble's grammar by kind.
VOCABULARY: dict[str, tuple[str, ...]] = {
    "objects": tuple(_words.OBJECTS),
    "backgrounds": tuple(_words.BACKGROUNDS),
    "relations": tuple(_words.RELATIONS),
    "sizes": ("small", "large"),
}

#: Sizes and SHA-256 of a model's files, beside them.
MANIFEST = "manifest.json"
#: Names of the models that ship, and their folders: a U-Net, and a transformer taught as a flow.
SHIPPED = {"pebble": "weights", "pebble-dit": "weights_dit"}


def path(name: str = "pebble") -> Path:
    """The folder of a model that ships, in diffusers format, its files checked against their SHA-256.

    The check runs once in a process; `load_pipeline` loads the model.

    Args:
        name: One of SHIPPED.

    Raises:
        ModelError: a file is missing or is not what was shipped.
    """
    return _checked(Path(__file__).with_name(SHIPPED[name]))


def load_pipeline(name: str = "pebble") -> Any:
    """The diffusers pipeline of a model that ships, loaded without the warnings of diffusers and transformers.

    Args:
        name: One of SHIPPED.

    Raises:
        ModelError: a file is missing or is not what was shipped.
    """
    from skipstone.testing.backbones.loading import quiet_libraries

    folder = path(name)
    with quiet_libraries():
        from diffusers import DiffusionPipeline

        return DiffusionPipeline.from_pretrained(folder)


@lru_cache(maxsize=8)
def _checked(folder: Path) -> Path:
    if not (folder / MANIFEST).is_file():
        raise ModelError(f"expected Pebble's {folder / MANIFEST}, found no such file; reinstall skipstone")
    verify(folder, "reinstall skipstone")
    return folder


def verify(folder: Path, remedy: str) -> None:
    """Hold every file of a model against the SHA-256 of the folder's manifest.

    Raises:
        ModelError: the manifest cannot be read, or a file is missing or another; ends in the remedy.
    """
    import hashlib
    import json

    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"].items()
    except (ValueError, KeyError, AttributeError, TypeError):
        raise ModelError(f"{manifest} is damaged: it lists no files; {remedy}") from None
    for name, entry in files:
        file = folder / name
        if not file.is_file():
            raise ModelError(f"expected the model's file {file}, found no such file; {remedy}")
        got = hashlib.sha256(file.read_bytes()).hexdigest()
        if got != entry["sha256"]:
            raise ModelError(f"{file} is damaged: expected SHA-256 {entry['sha256']}, got {got}; {remedy}")


def unknown_words(prompt: str) -> list[str]:
    """The words of a prompt that Pebble was never trained on, in order, each once.

    Case and punctuation do not matter. A sentence of known words may still say nothing Pebble
    understands: `scenes.parse` tells.
    """
    found = re.findall(r"[^\W_]+", prompt.lower())
    return list(dict.fromkeys(word for word in found if word not in _known()))


@lru_cache(maxsize=1)
def _known() -> frozenset[str]:
    return frozenset(_words.known_words())
