"""LoRA files of diffusers, peft, kohya and cloneofsimo, merged into the weights of networks on MLX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import ModelError
from .loading import is_quantised, list_faults, to_mlx_layout
from .lora_files import ADVICE, LoraFile, LowRank, parse_keys, parse_sequence, read_lora_file

#: Class of a network -> the component of a pipeline that it is, where a network is given alone.
COMPONENTS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
}


@dataclass(frozen=True)
class LoraReport:
    """What a LoRA changed.

    Args:
        file: Where from.
        changed: Names of the changed weights, "unet.mid_block.attentions.0.proj_in.weight".
        left_out: Names of the components that the file has and that were given as None.
        tokens: New tokens of the file, which are not loaded: a tokenizer has to learn them.
    """

    file: Path
    changed: tuple[str, ...]
    left_out: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = f"{self.file.name}: {len(self.changed)} weights changed"
        said += f"; left out: {', '.join(self.left_out)}" if self.left_out else ""
        return said + (f"; new tokens that are not loaded: {', '.join(self.tokens)}" if self.tokens else "")


def load_lora(module: Any, path: str | Path, scale: float = 1.0) -> LoraReport:
    """Merge a LoRA into weights: W + scale * alpha / rank * up @ down (arXiv:2106.09685).

    Nothing is changed where a single part of the file does not fit.

    Args:
        module: A network, or networks by the names of a pipeline: {"unet": ..., "text_encoder": ...}. A component that
            is None is left out.
        path: A safetensors file, a file of PyTorch, or a folder with pytorch_lora_weights.safetensors.
        scale: Of the change; 1 is that of training.

    Raises:
        ModelError: a file that cannot be read, keys that are unknown, components that are not given, shapes that do
            not fit, all of them listed; quantised weights.
    """
    changes = find_changes(module, path)
    changed = _merge(changes, scale)
    return LoraReport(changes.file.path, changed, changes.left_out, changes.file.tokens)


@dataclass(frozen=True, eq=False)
class Changes:
    """What a LoRA would change.

    Args:
        file: The file.
        modules: Networks by component.
        layers: Layers of each by their names.
        parts: Pairs of matrices, each with its layer.
        left_out: Components that the file has and that were given as None.
    """

    file: LoraFile
    modules: Mapping[str, Any]
    layers: Mapping[str, Mapping[str, Any]]
    parts: tuple[LowRank, ...]
    left_out: tuple[str, ...]


def find_changes(module: Any, path: str | Path) -> Changes:
    """What `load_lora` would change; it changes nothing. Arguments and errors are those of `load_lora`."""
    modules = module if isinstance(module, Mapping) and not isinstance(module, nn.Module) else _by_component(module)
    given = {name: one for name, one in modules.items() if one is not None}
    for name, one in given.items():
        if is_quantised(one):
            raise ModelError(
                f"A LoRA cannot be merged into quantised weights ({name}). Load the model without bits, merge the "
                f"LoRA, and then quantise it: skipstone.integrations.mlx.loading.quantise(module, 8)."
            )
    file = read_lora_file(Path(path))
    layers = {name: _layers(one) for name, one in given.items()}
    absent = set(modules) - set(given)
    parts, left_out = (
        parse_sequence(file, layers, absent) if file.sequences else parse_keys(file, given, layers, absent)
    )
    if not parts and not left_out:
        raise ModelError(f"{file.path}: expected a LoRA, got a file without low-rank matrices.")
    faults = [fault for part in parts for fault in _find_faults(part, layers[part.component])]
    if faults:
        raise ModelError(list_faults(f"{file.path}: the LoRA does not fit", faults, ADVICE))
    return Changes(file, given, layers, tuple(parts), tuple(sorted(left_out)))


def _by_component(module: Any) -> dict[str, Any]:
    """A network alone, by its name in a pipeline."""
    return {COMPONENTS.get(type(module).__name__, "transformer"): module}


def _layers(module: Any) -> dict[str, Any]:
    """Linear layers and convolutions by their names."""
    return {name: one for name, one in module.named_modules() if isinstance(one, nn.Linear | nn.Conv2d)}


def _find_faults(part: LowRank, layers: Mapping[str, Any]) -> list[str]:
    name, weight = f"{part.component}.{part.path}", layers[part.path].weight
    shape = tuple(weight.shape)
    expected = shape if len(shape) == 2 else (shape[0], shape[3], shape[1], shape[2])
    if part.shape == expected:
        return []
    return [f"{name}: expected matrices for {expected}, got {tuple(part.down.shape)} and {tuple(part.up.shape)}"]


def _merge(changes: Changes, scale: float) -> tuple[str, ...]:
    """Change the weights; returns their names."""
    weights: dict[tuple[str, str], Any] = {}
    for part in changes.parts:
        key = part.component, part.path
        before = weights.get(key, changes.layers[part.component][part.path].weight.astype(mx.float32))
        weights[key] = before + scale * part.scale * to_mlx_layout(part.delta())  # two parts may change one weight
    for (component, path), value in weights.items():
        layer = changes.layers[component][path]
        layer.weight = value.astype(layer.weight.dtype)
    mx.eval([changes.layers[component][path].weight for component, path in weights])
    return tuple(f"{component}.{path}.weight" for component, path in weights)
