"""Where the weights of learned metrics are: files that the user brings, under the names they are published by."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from ..errors import MetricError

WEIGHTS_VARIABLE = "SKIPSTONE_WEIGHTS"


@dataclass(frozen=True)
class Weights:
    """A file, or a folder, that a metric cannot do without.

    Args:
        names: It is published by, the newest first. One that ends in `-` and eight digits is checked against the
            hash that these digits begin.
        source: Where to get it.
        marker: A file by which the folder is recognised; empty for a file.
    """

    names: tuple[str, ...]
    source: str
    marker: str = ""

    def find(self, metric: str, user_path: str = "") -> Path:
        """The file or folder.

        Args:
            metric: Who asks.
            user_path: A file or folder that the user named; empty looks in the folder that the environment variable
                SKIPSTONE_WEIGHTS names, then where torch keeps what it downloads.

        Raises:
            MetricError: it is not there, or not the file of that name.
        """
        path = next((p for p in self._places(user_path) if self._fits(p)), None)
        if path is None:
            kind = "folder" if self.marker else "file"
            where = user_path or f"${WEIGHTS_VARIABLE} ({os.environ.get(WEIGHTS_VARIABLE) or 'not set'})"
            raise MetricError(
                f"{metric}: expected the {kind} {self.names[0]} in {where}, found none. Get it from {self.source} and "
                f"put it there, or name it: {metric}(weights='path/to/{self.names[0]}')."
            )
        _check_hash(metric, path)
        return path

    def _fits(self, path: Path) -> bool:
        return (path / self.marker).is_file() if self.marker else path.is_file()

    def _places(self, user_path: str) -> Iterator[Path]:
        if user_path:
            yield Path(user_path).expanduser()
        roots = (
            [user_path]
            if user_path
            else [os.environ.get(WEIGHTS_VARIABLE, ""), "" if self.marker else _download_folder()]
        )
        yield from (Path(root).expanduser() / name for root in roots if root for name in self.names)


def missing(metric: str, weights: Weights, user_path: str, *needed: str) -> str:
    """The packages and weights that are missing, or nothing; a module is called as its package is."""
    lacking = [name for name in needed if find_spec(name.replace("-", "_")) is None]
    found = (
        [f"{metric}: not installed: {', '.join(lacking)}. Type: pip install {' '.join(lacking)}."] if lacking else []
    )
    try:
        weights.find(metric, user_path)
    except MetricError as e:
        found.append(str(e))
    return " ".join(found)


def _download_folder() -> str:
    """Folder of torch.hub's files, torchvision's and lpips' included; avoids importing torch, which takes a second."""
    home = os.environ.get("TORCH_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "torch")
    return os.path.join(home, "hub", "checkpoints")


def _check_hash(metric: str, path: Path) -> None:
    digits = re.fullmatch(r".*-([0-9a-f]{8})\.\w+", path.name)
    if digits and not _hash(path, path.stat().st_mtime_ns).startswith(digits[1]):
        raise MetricError(
            f"{metric}: {path} is not the file of that name: its SHA-256 does not begin with {digits[1]}."
        )


@lru_cache(maxsize=16)
def _hash(path: Path, _changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
