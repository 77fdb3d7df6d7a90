"""How much memory a pipeline needs on MLX, from its configuration files alone.

Weights are counted exactly: every network is built without values and quantised as the loader does it. What a call
needs beside them comes from the graph that MLX would run (`graph.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten, tree_map

from ...errors import ModelError
from ...json_files import JsonReader
from .graph import Device, peak_bytes, trace
from .loading import PORTED, check_precision, find_network, quantise, read_folder_config
from .network import Network
from .t5 import T5Config

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
DENOISERS = ("unet", "transformer")
T5_TOKENS = {"StableDiffusion3Pipeline": 256, "FluxPipeline": 512}  # `max_sequence_length` of diffusers' pipelines
FLUX_SIDE = 128  # cells of FLUX's own size, which its configuration does not name
TILE = 512  # pixels
Call = tuple[Callable[..., Any], tuple[Any, ...]]  # what is called with a network and arrays, and arrays without values


@dataclass(frozen=True)
class Span:
    """Bytes that a call needs beside weights and inputs.

    Args:
        least: Where each array is freed after its last use, as MLX does at its memory limit.
        most: Where MLX allocates ten tasks ahead of the one that is being computed, as it does otherwise.
    """

    least: int
    most: int


@dataclass(frozen=True)
class Component:
    """A network of a pipeline, with its weights.

    Args:
        part: Its folder: "unet".
        network: Its class.
        parameters: Their number, before they are quantised.
        dtype: Of the weights that are not quantised.
        bits: Of those that are; None where none are.
        weights: Bytes of all of them, scales and biases of quantised ones included.
        call: What a call needs: a text encoder one prompt, the denoiser a step, the autoencoder one picture.
    """

    part: str
    network: str
    parameters: int
    dtype: str
    bits: int | None
    weights: int
    call: Span


@dataclass(frozen=True)
class MemoryEstimate:
    """What a pipeline needs on MLX, in bytes.

    Args:
        pipeline: Its class.
        height, width: Of the pictures, in pixels.
        images: Pictures of one batch.
        components: Its networks.
        tile: Pixels on a side of a tile of the decoder.
        decode_tiled: What decoding in tiles needs; as `call` of the autoencoder where a picture is one tile.
    """

    pipeline: str
    height: int
    width: int
    images: int
    components: tuple[Component, ...]
    tile: int
    decode_tiled: Span

    @property
    def parameters(self) -> int:
        """Of all networks."""
        return sum(one.parameters for one in self.components)

    @property
    def weights(self) -> int:
        """Bytes of the weights of all networks."""
        return sum(one.weights for one in self.components)

    def peak(self, tiled: bool = False, staged: bool = False) -> Span:
        """The most bytes that are in use at once.

        Args:
            tiled: Whether the decoder works in tiles.
            staged: Whether text encoders, denoiser and decoder are in memory one kind after another, not all at once.
        """
        stages: dict[str, list[Component]] = {}
        for one in self.components:
            stages.setdefault("text" if one.part in TEXT_ENCODERS else one.part, []).append(one)
        spans = []
        for name, networks in stages.items():
            calls = [self.decode_tiled] if name == "vae" and tiled else [one.call for one in networks]
            held = sum(one.weights for one in networks) if staged else self.weights
            spans.append((held + max(call.least for call in calls), held + max(call.most for call in calls)))
        return Span(max(least for least, _ in spans), max(most for _, most in spans))


def estimate_memory(
    folder: str | Path,
    dtype: str = "float16",
    bits: int | None = None,
    size: tuple[int, int] | None = None,
    images: int = 1,
    tile: int = TILE,
    device: Device = "metal",
) -> MemoryEstimate:
    """How much memory a pipeline needs on MLX, from model_index.json and each config.json: weights need not be there.

    Args:
        folder: Of the pipeline.
        dtype: "float32", "float16" or "bfloat16".
        bits: 8 or 4 for quantised weights of the denoiser and the text encoders; None for none.
        size: Height and width of the pictures in pixels; None is the model's own.
        images: Pictures of one batch, >= 1. All but FLUX take two rows a picture, one with the negative prompt.
        tile: Pixels on a side of a tile of the decoder, >= 64.
        device: Whose rules count what an operation needs for itself: "metal" (not measured by us), or "cpu".

    Raises:
        ModelError: a folder that cannot be read, a class or option that is not ported, a size that does not fit.
        BackboneError: a size that the denoiser has no positions for.
        MissingPackage: an MLX before 0.30.
    """
    check_precision(dtype, bits)
    plan = PipelinePlan.read(Path(folder), size, images)
    components = []
    for part, name in plan.networks.items():
        config = plan.configs[part]
        own, own_bits = component_precision(part, config, dtype, bits)
        network = build_empty(name, config, own)
        parameters = sum(value.size for _, value in tree_flatten(network.parameters()))
        if own_bits:
            quantise(network, own_bits)
        call = span_of(network, plan.call_of(part, network, getattr(mx, own)), device)
        components.append(Component(part, name, parameters, own, own_bits, count_bytes(network), call))
        if part == "vae":
            tiled = tiled_span(network, plan, getattr(mx, own), tile, device, call)
    return MemoryEstimate(plan.pipeline, *plan.pixels, images, tuple(components), tile, tiled)


def component_precision(part: str, config: Mapping[str, Any], dtype: str, bits: int | None) -> tuple[str, int | None]:
    """The dtype and bits of a component: an autoencoder is not quantised, and not float16 where its config says so."""
    if part != "vae":
        return dtype, bits
    return ("float32" if dtype == "float16" and config.get("force_upcast") else dtype), None


def build_empty(name: str, config: Mapping[str, Any], dtype: str) -> Network:
    """A network whose weights have shape and dtype, and no values: MLX computes them when they are first used."""
    network = find_network({"_class_name": name}, name).from_config(config)
    kind = getattr(mx, dtype)
    network.update(tree_map(lambda value: mx.zeros(value.shape, kind), network.parameters()))
    return network


def count_bytes(network: Any) -> int:
    """Bytes of all weights of a network."""
    return sum(value.nbytes for _, value in tree_flatten(network.parameters()))


def span_of(network: Any, call: Call, device: Device) -> Span:
    """What a call of a network needs."""
    function, inputs = call
    graph = trace(network, lambda *arrays: function(network, *arrays), *inputs)
    return Span(peak_bytes(graph, device), peak_bytes(graph, device, ahead=True))


def tiled_span(network: Any, plan: PipelinePlan, dtype: Any, tile: int, device: Device, whole: Span) -> Span:
    """What decoding in tiles needs: one tile at a time, and the picture in float32 with the weight of each pixel."""
    if tile < 64:
        raise ModelError(f"Expected tiles of 64 pixels or more, got {tile}.")
    if tile >= max(plan.pixels):
        return whole
    rows, columns = (min(tile, side) // plan.factor for side in plan.pixels)
    one = span_of(network, plan.decode_call(network, (rows, columns), dtype), device)
    picture = 4 * math.prod(plan.pixels) * 4
    return Span(one.least + picture, one.most + picture)


@dataclass(frozen=True)
class PipelinePlan:
    """The networks of a folder, and the shapes of their inputs.

    Args:
        pipeline: Class of the pipeline.
        networks: Component -> its class.
        configs: Component -> its config.json.
        latent: Height and width of a latent.
        factor: Pixels on a side of a cell.
        images: Pictures of one batch.
    """

    pipeline: str
    networks: Mapping[str, str]
    configs: Mapping[str, Mapping[str, Any]]
    latent: tuple[int, int]
    factor: int
    images: int

    @classmethod
    def read(cls, folder: Path, size: tuple[int, int] | None, images: int) -> PipelinePlan:
        """The plan of a folder. Raises ModelError."""
        networks = read_networks(folder)
        pipeline = networks.pop("")
        configs = {part: read_folder_config(folder / part) for part in networks}
        denoiser = next((part for part in DENOISERS if part in networks), None)
        if denoiser is None or "vae" not in networks:
            raise ModelError(f"{folder}: expected a denoiser ({' or '.join(DENOISERS)}) and a vae in model_index.json.")
        if images < 1:
            raise ModelError(f"Expected 1 picture or more, got {images}.")
        factor = 2 ** (len(configs["vae"].get("block_out_channels", (0,) * 4)) - 1)
        own = configs[denoiser].get("sample_size") or FLUX_SIDE
        height, width = own if isinstance(own, list | tuple) else (own, own)
        if size is not None:
            step = factor * (
                2 if denoiser == "transformer" else 2 ** (len(configs[denoiser]["block_out_channels"]) - 1)
            )
            if any(side < step or side % step for side in size):
                raise ModelError(f"Expected sides that are multiples of {step} pixels, got {size[0]} x {size[1]}.")
            height, width = (side // factor for side in size)
        return cls(pipeline, networks, configs, (int(height), int(width)), factor, images)

    @property
    def pixels(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.latent[0] * self.factor, self.latent[1] * self.factor

    def call_of(self, part: str, network: Any, dtype: Any) -> Call:
        """What a component is called with."""
        if part in TEXT_ENCODERS:
            return self._text_call(part)
        if part == "vae":
            return self.decode_call(network, self.latent, dtype)
        calls = {
            "UNet2DConditionModel": self._unet_call,
            "SD3Transformer2DModel": self._sd3_call,
            "FluxTransformer2DModel": self._flux_call,
        }
        return calls[self.networks[part]](network.config, dtype)

    def decode_call(self, network: Any, cells: tuple[int, int], dtype: Any) -> Call:
        """Decoding of one latent of so many rows and columns."""
        latent = mx.zeros((1, *cells, network.config.latent_channels), dtype)
        return (lambda network, z: network.decode(z)), (latent,)

    def _text_call(self, part: str) -> Call:
        if self.networks[part] == "T5EncoderModel":
            tokens = mx.zeros((1, T5_TOKENS.get(self.pipeline, 512)), mx.int32)
            return (lambda network, ids: network(ids)), (tokens,)
        tokens = mx.zeros((1, self._clip_tokens()), mx.int32)
        return (lambda network, ids: network(ids).last_hidden_state), (tokens,)

    def _clip_tokens(self) -> int:
        return int(self.configs.get("text_encoder", {}).get("max_position_embeddings", 77))

    def _unet_call(self, config: Any, dtype: Any) -> Call:
        rows, width = 2 * self.images, config.cross_attention_dim
        words = (rows, self._clip_tokens(), width if isinstance(width, int) else max(width))
        inputs = [mx.zeros((rows, *self.latent, config.in_channels), dtype), mx.zeros((rows,)), mx.zeros(words, dtype)]
        if config.addition_embed_type is None:
            return call_plainly, tuple(inputs)
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

        def call(network: Any, x: Any, times: Any, words: Any, texts: Any, ids: Any) -> Any:
            return network(x, times, words, added_cond_kwargs={"text_embeds": texts, "time_ids": ids})

        return call, (*inputs, mx.zeros((rows, pooled), dtype), mx.zeros((rows, 6)))

    def _sd3_call(self, config: Any, dtype: Any) -> Call:
        rows, layers = 2 * self.images, 0
        if "text_encoder_3" in self.configs:
            layers = self.configs["text_encoder_3"].get("num_layers", T5Config.num_layers)
        words = self._clip_tokens() + (T5_TOKENS["StableDiffusion3Pipeline"] if layers else 1)
        return call_plainly, (
            mx.zeros((rows, *self.latent, config.in_channels), dtype),
            mx.zeros((rows,)),
            mx.zeros((rows, words, config.joint_attention_dim), dtype),
            mx.zeros((rows, config.pooled_projection_dim), dtype),
            *([] if layers else [mx.ones((rows,))]),  # the empty rows in one
        )

    def _flux_call(self, config: Any, dtype: Any) -> Call:
        cells, words = math.prod(self.latent) // 4, T5_TOKENS["FluxPipeline"]
        return call_plainly, (
            mx.zeros((self.images, cells, config.in_channels), dtype),
            mx.zeros((self.images, words, config.joint_attention_dim), dtype),
            mx.zeros((self.images, config.pooled_projection_dim), dtype),
            mx.zeros((self.images,)),
            mx.zeros((cells, 3)),
            mx.zeros((words, 3)),
            *([mx.zeros((self.images,))] if config.guidance_embeds else []),
        )


def call_plainly(network: Any, *arrays: Any) -> Any:
    """The network, called with the arrays."""
    return network(*arrays)


def read_networks(folder: Path) -> dict[str, str]:
    """Component -> class of the networks that a model_index.json names, and "" -> class of the pipeline.

    Raises:
        ModelError: a file that cannot be read, or networks that are not ported.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        raise ModelError(f"{folder}: expected the folder of a pipeline, with model_index.json; there is none.")
    reader = JsonReader(ModelError, "Fetch the model again.")
    index = reader.convert(Mapping[str, Any], reader.read(path), str(path))
    networks = {"": str(index.get("_class_name"))}
    for part in (*TEXT_ENCODERS, *DENOISERS, "vae"):
        entry = index.get(part)
        if isinstance(entry, list) and len(entry) == 2 and entry[1] is not None:
            networks[part] = str(entry[1])
    missing = [f"{name} ({part})" for part, name in networks.items() if part and name not in PORTED]
    if missing:
        raise ModelError(f"{folder}: not ported to MLX: {', '.join(missing)}. Ported: {', '.join(sorted(PORTED))}.")
    return networks
