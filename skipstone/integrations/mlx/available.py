"""Which library runs a model: torch, or MLX; imports nothing of MLX until it is asked."""

from __future__ import annotations

import platform
import sys

from ...errors import MissingPackage, SpecError
from ...registry import suggest_spelling
from .loading import require_mlx

BACKENDS = ("torch", "mlx", "auto")


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
