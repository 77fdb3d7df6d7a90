"""Copies of Pebble in folders of their own, with the same or with other weights."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import skipstone_pebble


def copy_pebble(folder: Path, scale: float = 1.0) -> Path:
    """Pebble without its certificates; other weights where the scale is not 1."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(skipstone_pebble.path(), folder, ignore=shutil.ignore_patterns("certificates", "served_audit*"))
    if scale != 1.0:
        file = folder / "unet" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        save_file({name: tensor * scale if "conv_out" in name else tensor for name, tensor in weights.items()}, file)
    manifest = folder / "manifest.json"
    names = [name for name in json.loads(manifest.read_text())["files"] if "certificates/" not in name]
    digests = {name: {"sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest()} for name in names}
    manifest.write_text(json.dumps({"files": digests}))
    return folder
