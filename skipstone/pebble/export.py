"""Write a trained Pebble as a diffusers folder: float16 safetensors, JSON, and a manifest of checksums."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from skipstone.pebble import denoiser

MANIFEST = "manifest.json"


def digest(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_manifest(folder: Path) -> Path:
    """Record size and SHA-256 of every file below the folder in its `manifest.json`."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest(file)}
        for file in files
    }
    target = folder / MANIFEST
    target.write_text(json.dumps({"files": entries}, indent=1) + "\n", encoding="utf-8")
    return target


def write(
    folder: Path,
    model: AutoencoderTiny,
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
) -> Path:
    """Replace the folder by the model in the layout `StableDiffusionPipeline.from_pretrained` reads."""
    shutil.rmtree(folder, ignore_errors=True)
    pipeline = StableDiffusionPipeline(
        vae=copy.deepcopy(model).half(),
        text_encoder=copy.deepcopy(encoder).half(),
        tokenizer=tokenizer,
        unet=copy.deepcopy(unet).half(),
        scheduler=denoiser.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    # The weights are stored in half precision but meant to run in single.
    config = folder / "text_encoder" / "config.json"
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = str(torch.float32).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    write_manifest(folder)
    return folder
