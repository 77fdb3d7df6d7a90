"""Which library runs a model: torch, or MLX; imports nothing of MLX until it is asked."""

from __future__ import annotations

import platform
import re
import sys

from ...errors import MissingPackage, SpecError
from ...registry import suggest_spelling
from .loading import require_mlx

BACKENDS = ("torch", "mlx", "auto")
UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
LEAST_LIMIT = 10**6  # bytes; less is a limit in another unit than was meant


def is_apple_silicon() -> bool:
    """Whether this is a Mac with Apple's own processor, where MLX runs on the GPU."""
    return sys.platform == "darwin" and platform.machine() == "arm64"


def choose_backend(asked: str) -> tuple[str, str]:
    """The backend, "torch" or "mlx", and why "auto" did not take MLX; the reason is empty where it did.

    Args:
        asked: "torch", "mlx", or "auto": MLX on Apple silicon where it is installed, else torch.

    Raises:
        SpecError: another name.
        MissingPackage: MLX was asked for by name, and cannot run here.
    """
    if asked not in BACKENDS:
        raise SpecError(
            f"Expected a backend among {', '.join(BACKENDS)}, got {asked!r}.{suggest_spelling(asked, BACKENDS)}"
        )
    if asked == "mlx":
        require_mlx()
    if asked != "auto":
        return asked, ""
    if not is_apple_silicon():
        return "torch", f"{platform.system()} {platform.machine()} is no Mac with Apple silicon"
    try:
        require_mlx()
    except MissingPackage as e:
        return "torch", str(e).rstrip(".")
    return "mlx", ""


def torch_device() -> str:
    """'mps' on a Mac with a GPU that torch knows, else 'cpu'."""
    import torch

    return "mps" if torch.backends.mps.is_available() else "cpu"


def parse_size(size: int | str) -> int:
    """Bytes of "8GB", "512 MiB", or a number of bytes. Raises SpecError."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmg]i?b)\s*", str(size).lower())
    if isinstance(size, str) and not found:
        raise SpecError(f"Expected a size such as 8GB or 512MB, got {size!r}.")
    total = int(float(found[1]) * UNITS[found[2]]) if found else int(size)
    if total < LEAST_LIMIT:
        raise SpecError(f"Expected at least 1MB, got {size!r}.")
    return total
