"""The families of denoisers that the recipe trains."""

from __future__ import annotations

import json
from pathlib import Path

from .dit import DiT
from .family import DenoiserFamily
from .unet import UNet

FAMILIES: dict[str, DenoiserFamily] = {family.name: family for family in (UNet(), DiT())}


def family_of(folder: Path) -> DenoiserFamily:
    """The family whose pipeline a folder holds (`model.find` says whether it is one of them)."""
    kind = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    return next(family for family in FAMILIES.values() if family.pipeline.__name__ == kind)
