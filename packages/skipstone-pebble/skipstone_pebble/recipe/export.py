"""Write a trained Pebble as a diffusers folder: float16 safetensors, JSON, and a manifest of checksums.

`python -m skipstone_pebble.recipe.export RUN FOLDER [--judge FILE]` does so from the checkpoints of a recipe that
may still be running, with the averaged weights; with the judge's weights beside them it is what ships.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

from skipstone.errors import ModelError

from .. import MANIFEST
from ..families import load_family
from ..family import DenoiserFamily, Network
from . import autoencoder

PREFIX = "text_model."  # of the names of a CLIP text encoder's weights


def digest(file: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def write_manifest(folder: Path) -> Path:
    """Record size and SHA-256 of every file below the folder in its `manifest.json`."""
    files = sorted(f for f in folder.rglob("*") if f.is_file() and f.name != MANIFEST)
    entries = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": digest(file)} for file in files
    }
    target = folder / MANIFEST
    target.write_text(json.dumps({"files": entries}, indent=1) + "\n", encoding="utf-8")
    return target


def save_pipeline(folder: Path, model: AutoencoderTiny, family: DenoiserFamily, network: Network) -> Path:
    """Replace the folder by the model in the layout that `from_pretrained` of the family's pipeline reads."""
    shutil.rmtree(folder, ignore_errors=True)
    half = Network(copy.deepcopy(network.denoiser).half(), copy.deepcopy(network.encoder).half(), network.tokenizer)
    pipeline = family.build_pipeline(copy.deepcopy(model).half(), half)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for name, part in pipeline.components.items():
        if isinstance(part, PreTrainedModel):
            _set_float32_dtype(folder / name / "config.json")
            if isinstance(part, CLIPTextModel):
                _restore_weight_prefix(folder / name / "model.safetensors")
        elif isinstance(part, CLIPTokenizer):
            # Releases of transformers before 5 read these two instead of tokenizer.json.
            part.backend_tokenizer.model.save(str(folder / name))
    for config in folder.rglob("config.json"):
        _remove_name_or_path(config)
    write_manifest(folder)
    return folder


def _set_float32_dtype(config: Path) -> None:
    """The weights are stored in half precision but meant to run in single."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    settings["dtype"] = str(torch.float32).removeprefix("torch.")
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _remove_name_or_path(config: Path) -> None:
    """Leave out the folder that a part was read from: it says where the recipe ran, and nothing to others."""
    settings = json.loads(config.read_text(encoding="utf-8"))
    if settings.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _restore_weight_prefix(weights: Path) -> None:
    """Names that every release reads: without the prefix, transformers before 5.8 draws the weights at random."""
    tensors = {
        name if name.startswith(PREFIX) else PREFIX + name: tensor for name, tensor in load_file(weights).items()
    }
    save_file(tensors, weights, metadata={"format": "pt"})


def _checkpoint(part: Path) -> dict[str, Any]:
    file = part / "last.pt"
    if not file.is_file():
        raise ModelError(f"expected a checkpoint {file}, found none; run skipstone_pebble.recipe.train first")
    state: dict[str, Any] = torch.load(file, weights_only=True)
    return state


def _options(state: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's settings as their dataclass takes them: JSON knows no tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in state["settings"].items()}


def _copy_parameters(parameters: list[torch.nn.Parameter], average: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, mean in zip(parameters, average, strict=True):
            parameter.copy_(mean)


def _autoencoder(part: Path) -> AutoencoderTiny:
    """The autoencoder that was trained, or taken from another model."""
    if (part / "config.json").is_file():
        taken: AutoencoderTiny = AutoencoderTiny.from_pretrained(part)
        return taken
    state = _checkpoint(part)
    model = autoencoder.build(autoencoder.AutoencoderSettings(**_options(state)))
    model.load_state_dict(state["models"]["autoencoder"])
    _copy_parameters(list(model.decoder.parameters()), state["average"])
    return model


def export_run(run: Path, folder: Path, judge: Path | None = None) -> Path:
    """Export the averaged weights of a recipe's folder as it stands.

    Args:
        run: the `--out` of `skipstone_pebble.recipe.train`.
        folder: replaced by the model.
        judge: weights of a judge to put beside it as `judge.safetensors`, under the same manifest.

    Raises:
        ModelError: autoencoder or denoiser have no checkpoint yet.
    """
    drawn = _checkpoint(run / "denoiser")
    options = _options(drawn)
    family = load_family(options.pop("family", "unet"))
    network = family.build(family.settings(**options), CLIPTokenizer.from_pretrained(run / "tokenizer"))
    _copy_parameters(network.parameters, drawn["average"])
    save_pipeline(folder, _autoencoder(run / "autoencoder"), family, network)
    if judge is not None:
        shutil.copyfile(judge, folder / "judge.safetensors")
        write_manifest(folder)
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m skipstone_pebble.recipe.export", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="the --out folder of skipstone_pebble.recipe.train")
    parser.add_argument("folder", type=Path, help="folder of the model; replaced")
    parser.add_argument("--judge", type=Path, help="judge.safetensors to ship with it")
    given = parser.parse_args(arguments)
    print(export_run(given.run, given.folder, given.judge))


if __name__ == "__main__":
    main()
