"""A loop on a tiny model with random weights: what its file says, and other weights under its server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

import skipstone_pebble as pebble
from skipstone_pebble.copies import write_sums

WORDS = ("apple", "house", "star", "boat", "tree", "cup")
COLOURS = ("red", "blue", "green", "black", "white")
TINY: dict[str, Any] = {
    "name": "tiny",
    "draw": {"held_out": 6, "pictures": 1},
    "calibrate": {
        "qualities": {"low": "psnr >= 10 @ 60%"},
        "confidence": 0.6,
        "steps": 6,
        "policies": ["interval(every=2)"],
    },
    "deploy": {"options": ["--rows", "8", "--threads", "1"]},
    "audit": {"requests": 3, "minutes": 1},
}


def tiny_pebble(tiny_model: Path, folder: Path) -> Path:
    """A tiny pipeline as a folder in Pebble's format."""
    shutil.copytree(tiny_model, folder)
    (folder / pebble.MANIFEST).write_text(json.dumps({"files": {}}))
    write_sums(folder)
    return folder


def write_loop(beside: Path, model: Path | str, **changes: Any) -> Path:
    """The file of a loop in a folder, with a file of prompts beside it; sections are merged key by key."""
    prompts = beside / "prompts.txt"
    if not prompts.exists():
        prompts.write_text("".join(f"a {colour} {word}\n" for colour in COLOURS for word in WORDS))
    found = {**TINY, "model": str(model), "folder": str(beside / "loop")}
    found["draw"] = {"prompts": str(prompts), **found["draw"]}
    found["audit"] = {"prompts": str(prompts), **found["audit"]}
    for name, value in changes.items():
        found[name] = {**found[name], **value} if isinstance(value, dict) and name in found else value
    file = beside / "loop.yaml"
    file.write_text(yaml.safe_dump(found))
    return file


def change_weights(model: Path, scale: float) -> None:
    """Other weights in a model's folder, as whoever trains it further leaves them."""
    from safetensors.torch import load_file, save_file

    file = model / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor * scale for name, tensor in load_file(file).items()}, file)
    write_sums(model)
