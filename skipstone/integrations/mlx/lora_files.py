"""Files of LoRAs: their formats, and which layer each pair of matrices belongs to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx

from ...errors import ModelError
from .loading import list_faults

FILE = "pytorch_lora_weights.safetensors"  # in the folder that diffusers saves
PICKLED = (".pt", ".bin", ".pth", ".ckpt")
METADATA = "lora_adapter_metadata"  # diffusers writes the settings of peft there
ADVICE = "The file is for another model, or of a format that is not ported."
COMPONENTS = ("text_encoder_2", "text_encoder_3", "text_encoder", "unet", "transformer")
KOHYA = {"unet": "unet", "te": "text_encoder", "te1": "text_encoder", "te2": "text_encoder_2"}
KOHYA_KEY = re.compile(r"lora_(unet|te1|te2|te)_(\w+)\.(lora_down\.weight|lora_up\.weight|alpha)")
MATRIX = re.compile(
    r"(?P<path>.+?)(?:\.lora_(?P<peft>[AB])(?:\.[\w-]+)?|(?:\.lora|\.lora_linear_layer|_lora)\.(?P<side>down|up))\.weight"
)
ALPHA = re.compile(r"(?P<path>.+?)(?:\.lora|\.lora_linear_layer|_lora)?(?:\.down|\.up)?\.alpha")
SEQUENCE_KEY = re.compile(r"(unet|text_encoder):(\d+):(up|down)")
CLIP_NAMES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}  # of old diffusers
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
GEGLU = "ff.net.0.proj"


@dataclass(frozen=True, eq=False)
class LowRank:
    """Two matrices, whose product changes a layer's weight.

    Args:
        component: Of the pipeline, "unet".
        path: Of the layer.
        down: (rank, in), or (rank, in, height, width) of a convolution.
        up: (out, rank), or (out, rank, 1, 1).
        scale: Of the product.
    """

    component: str
    path: str
    down: Any
    up: Any
    scale: float = 1.0

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the product in PyTorch's layout; None where the two do not fit."""
        down, up = self.down.shape, self.up.shape
        if len(down) != len(up) or len(down) not in (2, 4) or up[1] != down[0] or up[2:] != (1, 1)[: len(up) - 2]:
            return None
        return (up[0], *down[1:])

    def delta(self) -> Any:
        """The product up @ down in float32 and PyTorch's layout, without the scale."""
        down, up = self.down.astype(mx.float32), self.up.astype(mx.float32)
        return (up.reshape(up.shape[0], -1) @ down.reshape(down.shape[0], -1)).reshape(self.shape)


@dataclass(frozen=True, eq=False)
class LoraFile:
    """The content of a file.

    Args:
        path: Of the file.
        arrays: By their keys.
        settings: Of peft, where the file has them: "unet.lora_alpha", "unet.r" ...
        sequences: (down, up) of layers in the order of the network, by component; "" where the file names none.
        tokens: New tokens.
    """

    path: Path
    arrays: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    sequences: Mapping[str, list[tuple[Any, Any]]] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()


def read_lora_file(path: Path) -> LoraFile:
    """The content of a LoRA file. Raises ModelError where it cannot be read."""
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ModelError(f"{path}: expected a LoRA, a safetensors file or a folder with {FILE}, got no file.")
    if path.suffix in PICKLED:
        arrays, metadata = _read_pickled(path), {}
    else:
        try:
            found: Any = mx.load(str(path), format="safetensors", return_metadata=True)
        except (RuntimeError, ValueError) as e:
            raise ModelError(f"{path} cannot be read as safetensors: {e}. Fetch the LoRA again.") from None
        arrays, metadata = found
    if isinstance(arrays, list):
        if len(arrays) % 2:
            raise ModelError(f"{path}: expected pairs of matrices, got {len(arrays)} matrices. Fetch the LoRA again.")
        pairs = [(arrays[i + 1], arrays[i]) for i in range(0, len(arrays), 2)]  # up comes before down
        return LoraFile(path, {}, sequences={"": pairs})
    tokens = tuple(key for key in arrays if metadata.get(key) == "<embed>")
    arrays = {key: value for key, value in arrays.items() if key not in tokens}
    if arrays and all(SEQUENCE_KEY.fullmatch(key) for key in arrays):
        return LoraFile(path, {}, {}, _read_sequences(path, arrays), tokens)
    return LoraFile(path, arrays, _read_settings(path, metadata), {}, tokens)


def _read_pickled(path: Path) -> Any:
    """Tensors of a file of PyTorch, read without running code of it."""
    import torch

    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # pickle, zipfile and torch each have errors of their own
        raise ModelError(
            f"{path} cannot be read as tensors of PyTorch: {(str(e) or type(e).__name__).splitlines()[0]}. Use a "
            f"safetensors file."
        ) from None
    values = found if isinstance(found, list) else list(found.values()) if isinstance(found, dict) else [None]
    if not all(isinstance(value, torch.Tensor) for value in values):
        raise ModelError(f"{path}: expected tensors, got something else. Use a safetensors file.")
    arrays = [mx.array(value.detach().float().numpy()) for value in values if isinstance(value, torch.Tensor)]
    return arrays if isinstance(found, list) else dict(zip(found, arrays, strict=True))


def _read_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The settings of peft. Raises ModelError where they are not JSON, or ask for what is not ported."""
    try:
        settings = json.loads(metadata.get(METADATA, "{}"))
    except ValueError:
        raise ModelError(f"{path}: its metadata {METADATA!r} is not JSON. Fetch the LoRA again.") from None
    if not isinstance(settings, dict):
        raise ModelError(f"{path}: its metadata {METADATA!r} is not an object. Fetch the LoRA again.")
    refused = [key for key, value in settings.items() if value and key.split(".")[-1] in ("use_dora", "lora_bias")]
    if refused:
        raise ModelError(f"{path}: settings that are not ported to MLX: {', '.join(refused)}.")
    return settings


def _read_sequences(path: Path, arrays: Mapping[str, Any]) -> dict[str, list[tuple[Any, Any]]]:
    """cloneofsimo's keys "unet:3:up" as pairs in order."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for key, value in arrays.items():
        component, number, side = key.split(":")
        found.setdefault(component, {}).setdefault(int(number), {})[side] = value
    for component, pairs in found.items():
        wrong = [i for i in range(len(pairs)) if set(pairs.get(i, ())) != {"up", "down"}]
        if wrong:
            raise ModelError(f"{path}: expected up and down of {component}:{wrong[0]}. Fetch the LoRA again.")
    return {name: [(pairs[i]["down"], pairs[i]["up"]) for i in range(len(pairs))] for name, pairs in found.items()}


Parsed = tuple[list[LowRank], set[str]]  # parts, and the components that are left out


def parse_keys(
    file: LoraFile, modules: Mapping[str, Any], layers: Mapping[str, Mapping[str, Any]], absent: set[str]
) -> Parsed:
    """The pairs of a file whose keys name layers, and the components that are left out.

    Args:
        file: The file.
        modules: Networks by component.
        layers: Layers of each by their names.
        absent: Components that are left out on purpose.

    Raises:
        ModelError: keys that are unknown, or of components that are not given; matrices without their other half.
    """
    resolvers = {name: Resolver(module, layers[name]) for name, module in modules.items()}
    default = next((name for name in ("unet", "transformer") if name in modules), next(iter(modules), "unet"))
    found: dict[tuple[str, str], dict[str, Any]] = {}
    unknown: list[str] = []
    missing: set[str] = set()
    left_out: set[str] = set()
    for key, value in file.arrays.items():
        component, target, kind, flat = _read_key(key, default)
        if flat and component == "unet" and default == "transformer":
            component = default  # kohya calls every denoiser "unet"
        if component not in resolvers:
            (left_out if component in absent else missing).add(component)
        elif kind and (path := resolvers[component].find(target, flat)):
            found.setdefault((component, path), {})[kind] = value
        else:
            unknown.append(key)
    if missing:
        raise ModelError(
            f"{file.path}: it changes {', '.join(sorted(missing))}, which is not given. Pass the networks by name, "
            f'None for one to leave out: load_lora({{"unet": unet, "{min(missing)}": None}}, path).'
        )
    halves = [f"{name}.{path}" for (name, path), pair in found.items() if not {"down", "up"} <= pair.keys()]
    faults = [f"unknown key: {key}" for key in unknown] + [f"up or down is missing: {name}" for name in halves]
    if faults:
        raise ModelError(list_faults(f"{file.path}: the LoRA does not fit", faults, ADVICE))
    parts = [
        LowRank(name, path, pair["down"], pair["up"], _scale(file.settings, name, path, pair))
        for (name, path), pair in found.items()
    ]
    return parts, left_out


def _read_key(key: str, default: str) -> tuple[str, str, str, bool]:
    """Component, name of the layer, "down", "up", "alpha" or "" where it is unknown, and whether "." is "_" in it."""
    if found := KOHYA_KEY.fullmatch(key):
        kind = {"lora_down.weight": "down", "lora_up.weight": "up"}.get(found[3], "alpha")
        return KOHYA[found[1]], found[2], kind, True
    name = key.removeprefix("base_model.model.").replace(".processor.", ".")
    component = next((one for one in COMPONENTS if name.startswith(one + ".")), "")
    name = name.removeprefix(component + ".") if component else name
    if found := MATRIX.fullmatch(name):
        kind = found["side"] or {"A": "down", "B": "up"}[found["peft"]]
    elif found := ALPHA.fullmatch(name):
        kind = "alpha"
    else:
        return component or default, name, "", False
    return component or default, found["path"], kind, False


def _scale(settings: Mapping[str, Any], component: str, path: str, pair: Mapping[str, Any]) -> float:
    """alpha / rank; 1 where the file says no alpha."""
    rank = int(pair["down"].shape[0])
    if "alpha" in pair:
        return float(pair["alpha"].item() / rank)
    alpha = settings.get(f"{component}.lora_alpha")
    for pattern, value in (settings.get(f"{component}.alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            alpha = value
    if alpha is None:
        return 1.0
    return float(alpha / rank**0.5 if settings.get(f"{component}.use_rslora") else alpha / rank)


class Resolver:
    """Finds layers by the names that LoRA files use.

    Args:
        module: A network.
        layers: Its layers by their names.
    """

    def __init__(self, module: Any, layers: Mapping[str, Any]) -> None:
        self.module, self.layers = module, layers
        self.flat = {name.replace(".", "_"): name for name in layers}
        if hasattr(module, "down_blocks"):
            aliases = {old.replace(".", "_"): name for old, name in sgm_names(layers)}
            self.flat = aliases | self.flat

    def find(self, name: str, flat: bool) -> str:
        """The name of a layer; "" where there is none."""
        if flat:
            return self.flat.get(name, "") or self.flat.get(f"text_model_{name}", "")
        head, _, last = name.rpartition(".")
        candidates = [name, f"{name}.0", f"{head}.{CLIP_NAMES.get(last, last)}"]
        renamed = [(self.module.rename(f"{one}.weight") or "").removesuffix(".weight") for one in candidates]
        return next((one for one in (*candidates, *renamed) if one in self.layers), "")


def sgm_names(layers: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of layers in the U-Net of Stability AI, by which kohya calls SDXL, and those of diffusers.

    `input_blocks.4.1` is the fifth of all steps down: each residual block and each halving is one.
    """
    steps = {}
    for side, old in (("down", "input_blocks"), ("up", "output_blocks")):
        blocks: dict[int, int] = {}
        for name in layers:
            if found := re.match(rf"{side}_blocks\.(\d+)\.resnets\.(\d+)\.", name):
                blocks[int(found[1])] = max(blocks.get(int(found[1]), 0), int(found[2]) + 1)
        number = 1 if side == "down" else 0
        for block in sorted(blocks):
            here = f"{side}_blocks.{block}"
            for i in range(blocks[block]):
                steps[f"{here}.resnets.{i}."] = f"{old}.{number}.0."
                steps[f"{here}.attentions.{i}."] = f"{old}.{number}.1."
                number += 1
            if side == "down":
                steps[f"{here}.downsamplers.0."] = f"{old}.{number}.0."
                number += 1
            has_attention = any(name.startswith(f"{here}.attentions.") for name in layers)
            steps[f"{here}.upsamplers.0."] = f"{old}.{number - 1}.{2 if has_attention else 1}."
    steps |= {f"mid_block.resnets.{i}.": f"middle_block.{2 * i}." for i in (0, 1)}
    steps |= {"mid_block.attentions.0.": "middle_block.1."}
    inner = {"conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "conv2": "out_layers.3"}
    inner |= {"conv_shortcut": "skip_connection"}
    whole = {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}
    for linear, number in (("linear_1", 0), ("linear_2", 2)):
        whole |= {f"time_embedding.{linear}": f"time_embed.{number}"}
        whole |= {f"add_embedding.{linear}": f"label_emb.0.{number}"}
    for name in layers:
        prefix = next((step for step in steps if name.startswith(step)), None)
        if name in whole:
            yield whole[name], name
        elif prefix:
            rest = name.removeprefix(prefix)
            rest = inner.get(rest, rest) if ".resnets." in prefix else rest
            yield steps[prefix] + ("op" if "downsamplers" in prefix else rest), name


def parse_sequence(file: LoraFile, layers: Mapping[str, Mapping[str, Any]], absent: set[str]) -> Parsed:
    """As `parse_keys`, of a file whose pairs stand in the order of the network, without names (cloneofsimo/lora).

    Args:
        file: The file.
        layers: Layers of each network by their names.
        absent: Components that are left out on purpose.

    Raises:
        ModelError: a component that is not given, or another number of pairs than layers.
    """
    parts: list[LowRank] = []
    for component, pairs in file.sequences.items():
        if component in absent:
            continue
        name = component or next((one for one in layers if _find_order(layers[one], len(pairs))), "")
        if name not in layers:
            raise ModelError(
                f"{file.path}: it changes {len(pairs)} layers of {component or 'a network that it does not name'}, "
                f'which is not given or has another number of them. Pass the networks by name: {{"unet": unet}}.'
            )
        order = _find_order(layers[name], len(pairs))
        if not order:
            raise ModelError(
                f"{file.path}: expected a pair of matrices for each layer of attention in {name}, got {len(pairs)}. "
                f"{ADVICE}"
            )
        parts += [LowRank(name, path, down, up) for path, (down, up) in zip(order, pairs, strict=True)]
    return parts, absent & set(file.sequences)


def _find_order(layers: Mapping[str, Any], count: int) -> list[str]:
    """Layers in the order of the modules of diffusers 0.4 to 0.13; empty where their number differs.

    There a U-Net has its middle last, and a transformer block its feed-forward network between both attentions.
    """
    blocks = _in_order(layers, r"((?:down|up|mid)_block.*\.transformer_blocks\.\d+)\.attn1\.to_q")
    first = [[f"{block}.attn1.{name}" for name in ATTENTION] for block in blocks]
    second = [[f"{block}.attn2.{name}" for name in ATTENTION] for block in blocks]
    plain = [name for one, other in zip(first, second, strict=True) for name in (*one, *other)]
    wide = [
        name
        for block, one, other in zip(blocks, first, second, strict=True)
        for name in (*one, f"{block}.{GEGLU}", *other)
    ]
    heads = _in_order(layers, r"(.*\.self_attn)\.q_proj")
    text = [f"{head}.{name}" for head in heads for name in ("k_proj", "v_proj", "q_proj", "out_proj")]
    return next((order for order in (plain, wide, text) if order and len(order) == count), [])


def _in_order(layers: Mapping[str, Any], pattern: str) -> list[str]:
    """The first group of a pattern in the names that fit it, by side and number; MLX lists layers in another order."""
    found = [match[1] for name in layers if (match := re.fullmatch(pattern, name))]
    sides = ("down_blocks", "up_blocks", "mid_block")

    def place(name: str) -> tuple[int, list[int]]:
        side = next((i for i, one in enumerate(sides) if name.startswith(one)), len(sides))
        return side, [int(number) for number in re.findall(r"\d+", name)]

    return sorted(found, key=place)
