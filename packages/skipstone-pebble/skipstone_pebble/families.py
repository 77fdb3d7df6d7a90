"""The families of denoisers that the recipe trains, each imported when it is asked for."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

from .family import DenoiserFamily

# Name -> module and class, and the class of the diffusers pipeline that it makes.
FAMILIES = {"unet": ("unet", "UNet", "StableDiffusionPipeline"), "dit": ("dit", "DiT", "StableDiffusion3Pipeline")}


def load_family(name: str) -> DenoiserFamily:
    """The family of a name in FAMILIES."""
    module, kind, _ = FAMILIES[name]
    family: DenoiserFamily = getattr(importlib.import_module(f".{module}", __package__), kind)()
    return family


def family_of(folder: Path) -> DenoiserFamily:
    """The family whose pipeline a folder holds (`model.find_model` says whether it is one of them)."""
    pipeline = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"]
    return load_family(next(name for name, (_, _, made) in FAMILIES.items() if made == pipeline))
