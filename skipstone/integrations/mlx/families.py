"""Families of pipelines on MLX: how prompts are encoded, and how the denoiser is called, as diffusers does both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import mlx.core as mx

Arrays = dict[str, mx.array]  # the condition of one branch, by name, without a batch axis
T5_ROWS = {"StableDiffusion3Pipeline": 256, "FluxPipeline": 512}  # tokens, as `max_sequence_length` of their calls


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer and the network that reads its tokens.

    Args:
        tokenizer: Of transformers.
        network: `CLIPTextModel`, `CLIPTextModelWithProjection` or `T5EncoderModel` on MLX.
    """

    tokenizer: Any
    network: Any

    def __call__(self, prompt: str, length: int | None = None) -> Any:
        """The network's output for one prompt, cut or padded to `length` tokens; None is the tokenizer's own."""
        length = length or self.tokenizer.model_max_length
        tokens = self.tokenizer(prompt, padding="max_length", max_length=length, truncation=True)
        return self.network(mx.array([tokens.input_ids]))


@dataclass(frozen=True)
class LatentSize:
    """Shape of a sample.

    Args:
        channels, height, width: Of the latent.
        factor: Pixels on a side of a cell.
    """

    channels: int
    height: int
    width: int
    factor: int


class Family(ABC):
    """A class of pipelines.

    Args:
        index: The pipeline's model_index.json.
        config: Of its denoiser.
    """

    pipeline: ClassVar[str]
    denoiser: ClassVar[str] = "transformer"  # component
    text: ClassVar[Sequence[tuple[str, str]]] = (("tokenizer", "text_encoder"),)  # components
    guidance: ClassVar[float]  # by default, as in diffusers
    cells: ClassVar[int] = 1  # side of the square of cells that is one token of the network

    def __init__(self, index: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        self.index, self.config = index, config

    @abstractmethod
    def encode(self, encoders: Mapping[str, TextEncoder], prompt: str) -> Arrays:
        """The arrays that a prompt conditions the denoiser by; `encoders` by the names of their components."""

    @abstractmethod
    def call(self, network: Any, x: mx.array, timesteps: mx.array, condition: Mapping[str, mx.array]) -> mx.array:
        """The denoiser's output for x (N, height, width, channels), timesteps (N,) and conditions of N rows."""

    def words(self, condition: Arrays) -> mx.array:
        """The text states (tokens, width) in a condition."""
        return condition["states"]

    def branches(self, guidance: float) -> float:
        """Weight of classifier-free guidance: 1 where a call has one branch."""
        return guidance

    def complete(self, condition: Arrays, size: LatentSize, guidance: float) -> Arrays:
        """The condition with what does not come from the prompt."""
        return condition

    def negative(self, condition: Arrays, typed: bool) -> Arrays:
        """The condition of the negative prompt; `typed` says whether there is one, or none."""
        return condition

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return int(self.config["in_channels"])


class StableDiffusion(Family):
    """Stable Diffusion 1.5, 2, and Pebble."""

    pipeline = "StableDiffusionPipeline"
    denoiser = "unet"
    guidance = 7.5

    def encode(self, encoders: Mapping[str, TextEncoder], prompt: str) -> Arrays:
        """The last hidden state of CLIP."""
        return {"states": encoders["text_encoder"](prompt).last_hidden_state[0]}

    def call(self, network: Any, x: mx.array, timesteps: mx.array, condition: Mapping[str, mx.array]) -> mx.array:
        """`UNet2DConditionModel`."""
        output: mx.array = network(x, timesteps, condition["states"])
        return output


class StableDiffusionXL(Family):
    """Stable Diffusion XL."""

    pipeline = "StableDiffusionXLPipeline"
    denoiser = "unet"
    text = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    guidance = 5.0

    def encode(self, encoders: Mapping[str, TextEncoder], prompt: str) -> Arrays:
        """The last hidden states but one, side by side, and the pooled output of the second encoder."""
        first, second = (encoders[name](prompt) for _, name in self.text)
        states = mx.concatenate([first.hidden_states[-2][0], second.hidden_states[-2][0]], axis=-1)
        return {"states": states, "pooled": second.text_embeds[0]}

    def complete(self, condition: Arrays, size: LatentSize, guidance: float) -> Arrays:
        """With the original size, the crop's corner and the target size."""
        sides = [float(size.height * size.factor), float(size.width * size.factor)]
        return {**condition, "time_ids": mx.array([*sides, 0.0, 0.0, *sides])}

    def negative(self, condition: Arrays, typed: bool) -> Arrays:
        """Zeros where nothing is typed and the pipeline is configured so."""
        if typed or not self.index.get("force_zeros_for_empty_prompt", True):
            return condition
        return {name: mx.zeros_like(value) for name, value in condition.items()}

    def call(self, network: Any, x: mx.array, timesteps: mx.array, condition: Mapping[str, mx.array]) -> mx.array:
        """`UNet2DConditionModel` with the pooled text and the sizes."""
        added = {"text_embeds": condition["pooled"], "time_ids": condition["time_ids"]}
        output: mx.array = network(x, timesteps, condition["states"], added_cond_kwargs=added)
        return output


class StableDiffusion3(Family):
    """Stable Diffusion 3 and 3.5, and Pebble-DiT; without its T5, too."""

    pipeline = "StableDiffusion3Pipeline"
    text = (
        ("tokenizer", "text_encoder"),
        ("tokenizer_2", "text_encoder_2"),
        ("tokenizer_3", "text_encoder_3"),
    )
    guidance = 7.0

    def encode(self, encoders: Mapping[str, TextEncoder], prompt: str) -> Arrays:
        """Rows of both CLIP encoders side by side, then those of T5; the pooled outputs side by side."""
        first, second = (encoders[name](prompt) for _, name in self.text[:2])
        rows = mx.concatenate([first.hidden_states[-2][0], second.hidden_states[-2][0]], axis=-1)
        pooled = mx.concatenate([first.text_embeds[0], second.text_embeds[0]], axis=-1)
        length = T5_ROWS[self.pipeline]
        third = encoders.get("text_encoder_3")
        words = mx.zeros((1, self.config["joint_attention_dim"])) if third is None else third(prompt, length)[0]
        rows = mx.pad(rows, [(0, 0), (0, words.shape[-1] - rows.shape[-1])])
        made = {"pooled": pooled}
        if len(words) == 1 or bool(mx.all(words == words[:1])):  # no T5, or one without layers, as Pebble-DiT has it
            words, made["repeats"] = words[:1], mx.array(float(length))
        return {**made, "states": mx.concatenate([rows, words.astype(rows.dtype)])}

    def call(self, network: Any, x: mx.array, timesteps: mx.array, condition: Mapping[str, mx.array]) -> mx.array:
        """`SD3Transformer2DModel`."""
        repeats = condition.get("repeats")
        output: mx.array = network(x, timesteps, condition["states"], condition["pooled"], repeats)
        return output


class Flux(Family):
    """FLUX.1: guidance is an input of the network, so that a call has one branch."""

    pipeline = "FluxPipeline"
    text = (("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2"))
    guidance = 3.5
    cells = 2

    def encode(self, encoders: Mapping[str, TextEncoder], prompt: str) -> Arrays:
        """The rows of T5, and the pooled output of CLIP."""
        words = encoders["text_encoder_2"](prompt, T5_ROWS[self.pipeline])[0]
        return {"states": words, "pooled": encoders["text_encoder"](prompt).pooled[0]}

    def branches(self, guidance: float) -> float:
        """1: classifier-free guidance is off, whatever the network's own guidance."""
        return 1.0

    def complete(self, condition: Arrays, size: LatentSize, guidance: float) -> Arrays:
        """With the guidance that a distilled network is given."""
        return {**condition, "guidance": mx.array(guidance)}

    @property
    def channels(self) -> int:
        """A quarter of the network's: squares of 2 x 2 cells are its tokens."""
        return int(self.config["in_channels"]) // 4

    def call(self, network: Any, x: mx.array, timesteps: mx.array, condition: Mapping[str, mx.array]) -> mx.array:
        """`FluxTransformer2DModel` on packed latents."""
        _, height, width, _ = x.shape
        words = condition["states"].shape[1]
        guidance = condition["guidance"] if self.config.get("guidance_embeds") else None
        output = network(
            pack(x),
            condition["states"],
            condition["pooled"],
            timesteps / 1000,
            positions(height // 2, width // 2),
            mx.zeros((words, 3)),
            guidance,
        )
        return unpack(output, height, width)


def pack(x: mx.array) -> mx.array:
    """(N, height, width, C) -> (N, height / 2 * width / 2, 4 C), in the order of diffusers: channel, row, column."""
    rows, height, width, channels = x.shape
    squares = x.reshape(rows, height // 2, 2, width // 2, 2, channels).transpose(0, 1, 3, 5, 2, 4)
    return squares.reshape(rows, (height // 2) * (width // 2), 4 * channels)


def unpack(x: mx.array, height: int, width: int) -> mx.array:
    """The inverse of `pack`."""
    squares = x.reshape(x.shape[0], height // 2, width // 2, -1, 2, 2).transpose(0, 1, 4, 2, 5, 3)
    return squares.reshape(x.shape[0], height, width, -1)


def positions(height: int, width: int) -> mx.array:
    """Rows (0, row, column) of a picture's tokens, (height * width, 3)."""
    row = mx.broadcast_to(mx.arange(height, dtype=mx.float32)[:, None], (height, width))
    column = mx.broadcast_to(mx.arange(width, dtype=mx.float32)[None], (height, width))
    return mx.stack([mx.zeros((height, width)), row, column], axis=-1).reshape(height * width, 3)


FAMILIES: Mapping[str, type[Family]] = {
    one.pipeline: one for one in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux)
}
