"""`UNet2DConditionModel` on MLX: the U-Net of Stable Diffusion 1.5, 2 and XL, and of Pebble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

from ...errors import BackboneError, ModelError
from .layers import (
    Attention,
    Downsample2D,
    FeedForward,
    ResnetBlock2D,
    ResnetShape,
    TimestepEmbedding,
    Upsample2D,
    find_activation,
    group_norm,
    sinusoidal,
)
from .network import Network, per_block

Layers = int | tuple[int | tuple[int, ...], ...]
DownBlock = Literal["CrossAttnDownBlock2D", "DownBlock2D"]
UpBlock = Literal["CrossAttnUpBlock2D", "UpBlock2D"]
TRANSFORMER_EPS = 1e-6  # of the group norm before a transformer, a constant of diffusers


@dataclass(frozen=True)
class UNetConfig:
    """Options of diffusers' `UNet2DConditionModel`, with its defaults; a type says which values are ported."""

    sample_size: int | tuple[int, ...] | None = None
    in_channels: int = 4
    out_channels: int = 4
    center_input_sample: bool = False
    flip_sin_to_cos: bool = True
    freq_shift: float = 0
    down_block_types: tuple[DownBlock, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"] | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[UpBlock, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    only_cross_attention: Literal[False] = False
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int | tuple[int, ...] = 2
    downsample_padding: Literal[0, 1] = 1
    mid_block_scale_factor: float = 1.0
    dropout: float = 0.0
    act_fn: str = "silu"
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int | tuple[int, ...] = 1280
    transformer_layers_per_block: Layers = 1
    reverse_transformer_layers_per_block: Layers | None = None
    encoder_hid_dim: None = None
    encoder_hid_dim_type: None = None
    attention_head_dim: int | tuple[int, ...] = 8
    num_attention_heads: None = None
    dual_cross_attention: Literal[False] = False
    use_linear_projection: bool = False
    class_embed_type: None = None
    addition_embed_type: Literal["text_time"] | None = None
    addition_time_embed_dim: int | None = None
    num_class_embeds: None = None
    upcast_attention: bool | None = False
    resnet_time_scale_shift: Literal["default"] = "default"
    resnet_skip_time_act: Literal[False] = False
    resnet_out_scale_factor: float = 1.0
    time_embedding_type: Literal["positional"] = "positional"
    time_embedding_dim: int | None = None
    time_embedding_act_fn: None = None
    timestep_post_act: None = None
    time_cond_proj_dim: None = None
    conv_in_kernel: int = 3
    conv_out_kernel: int = 3
    projection_class_embeddings_input_dim: int | None = None
    attention_type: Literal["default"] = "default"
    class_embeddings_concat: Literal[False] = False
    mid_block_only_cross_attention: Literal[False] | None = None
    cross_attention_norm: None = None
    addition_embed_type_num_heads: int = 64


@dataclass(frozen=True)
class BlockShape:
    """One block of the U-Net.

    Args:
        resnet: What residual blocks share.
        layers: Transformer layers after each residual block; empty where the block has no attention.
        heads: Of the attention, >= 1.
        context: Width of the text's states.
        linear: Whether transformers are entered by linear layers rather than convolutions.
        upcast: Whether scores of attention are computed in float32.
    """

    resnet: ResnetShape
    layers: tuple[int, ...]
    heads: int
    context: int
    linear: bool
    upcast: bool


class BasicTransformerBlock(nn.Module):
    """Attention to the rows, attention to the text, and a feed-forward network, each after a layer norm."""

    def __init__(self, width: int, shape: BlockShape) -> None:
        super().__init__()
        heads, head = shape.heads, width // shape.heads
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = Attention(width, heads, head, upcast=shape.upcast)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = Attention(width, heads, head, shape.context, upcast=shape.upcast)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def __call__(self, x: Any, context: Any) -> Any:
        """(batch, rows, width) -> (batch, rows, width)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class Transformer2DModel(nn.Module):
    """Transformer layers over the cells of a picture, added to it.

    Args:
        channels: Of the picture.
        layers: Their number, >= 0.
        shape: Of the block.
    """

    def __init__(self, channels: int, layers: int, shape: BlockShape) -> None:
        super().__init__()
        inner = channels // shape.heads * shape.heads
        self.norm = group_norm(shape.resnet.groups, channels, TRANSFORMER_EPS)
        self.proj_in = nn.Linear(channels, inner) if shape.linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = [BasicTransformerBlock(inner, shape) for _ in range(layers)]
        self.proj_out = nn.Linear(inner, channels) if shape.linear else nn.Conv2d(inner, channels, 1)

    def __call__(self, x: Any, context: Any) -> Any:
        """(batch, height, width, channels) -> the same shape."""
        batch, height, width, _ = x.shape
        y = self.proj_in(self.norm(x))  # linear layers and 1 x 1 convolutions are the same over the last axis
        y = y.reshape(batch, height * width, -1)
        for block in self.transformer_blocks:
            y = block(y, context)
        return x + self.proj_out(y.reshape(batch, height, width, -1))


def _transformers(channels: int, shape: BlockShape) -> list[Transformer2DModel]:
    return [Transformer2DModel(channels, layers, shape) for layers in shape.layers]


class DownBlock2D(nn.Module):
    """Residual blocks, each with a transformer where the block has attention, and a step to half the size."""

    def __init__(self, width: int, out: int, count: int, shape: BlockShape, padding: int | None) -> None:
        super().__init__()
        self.resnets = [ResnetBlock2D(width if i == 0 else out, out, shape.resnet) for i in range(count)]
        if shape.layers:
            self.attentions = _transformers(out, shape)
        if padding is not None:
            self.downsamplers = [Downsample2D(out, padding)]

    def __call__(self, x: Any, time: Any, context: Any) -> tuple[Any, list[Any]]:
        """The output, and the states that the way up is given."""
        states = []
        for i, resnet in enumerate(self.resnets):
            x = resnet(x, time)
            if "attentions" in self:
                x = self.attentions[i](x, context)
            states.append(x)
        if "downsamplers" in self:
            x = self.downsamplers[0](x)
            states.append(x)
        return x, states


class MidBlock2D(nn.Module):
    """A residual block, and a transformer and another residual block where it has attention."""

    def __init__(self, channels: int, shape: BlockShape) -> None:
        super().__init__()
        self.resnets = [ResnetBlock2D(channels, channels, shape.resnet) for _ in range(1 + len(shape.layers))]
        if shape.layers:
            self.attentions = _transformers(channels, shape)

    def __call__(self, x: Any, time: Any, context: Any) -> Any:
        """(batch, height, width, channels) -> the same shape."""
        x = self.resnets[0](x, time)
        for i, resnet in enumerate(self.resnets[1:]):
            x = resnet(self.attentions[i](x, context), time)
        return x


class UpBlock2D(nn.Module):
    """Residual blocks that take in the states of the way down, with transformers, and a step to twice the size."""

    def __init__(self, widths: tuple[int, ...], out: int, shape: BlockShape, last: bool) -> None:
        super().__init__()
        self.resnets = [ResnetBlock2D(width, out, shape.resnet) for width in widths]
        if shape.layers:
            self.attentions = _transformers(out, shape)
        if not last:
            self.upsamplers = [Upsample2D(out)]

    def __call__(self, x: Any, time: Any, context: Any, states: list[Any]) -> Any:
        """The output; it takes its states from the end of the list."""
        for i, resnet in enumerate(self.resnets):
            x = resnet(mx.concatenate([x, states.pop()], axis=-1), time)
            if "attentions" in self:
                x = self.attentions[i](x, context)
        if "upsamplers" in self:
            x = self.upsamplers[0](x, states[-1].shape[1:3])  # half of an odd size does not double to it
        return x


class UNet2DConditionModel(Network):
    """The U-Net of Stable Diffusion 1.5, 2, XL and Pebble.

    Args:
        config: Its options.
    """

    Config = UNetConfig
    POSITIVE = frozenset(
        {
            "addition_time_embed_dim",
            "attention_head_dim",
            "block_out_channels",
            "conv_in_kernel",
            "conv_out_kernel",
            "cross_attention_dim",
            "in_channels",
            "layers_per_block",
            "norm_num_groups",
            "out_channels",
            "projection_class_embeddings_input_dim",
            "time_embedding_dim",
        }
    )

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        first = config.block_out_channels[0]
        width = config.time_embedding_dim or 4 * first
        self.conv_in = nn.Conv2d(
            config.in_channels, first, config.conv_in_kernel, padding=(config.conv_in_kernel - 1) // 2
        )
        self.time_embedding = TimestepEmbedding(first, width, config.act_fn)
        if config.addition_embed_type == "text_time":
            if config.projection_class_embeddings_input_dim is None or config.addition_time_embed_dim is None:
                raise ModelError(
                    "addition_embed_type 'text_time' needs addition_time_embed_dim and "
                    "projection_class_embeddings_input_dim, got null."
                )
            self.add_embedding = TimestepEmbedding(config.projection_class_embeddings_input_dim, width, config.act_fn)
        shapes = _block_shapes(config, width)
        self.down_blocks = _down_blocks(config, shapes)
        self.mid_block = _mid_block(config, width)
        self.up_blocks = _up_blocks(config, width)
        self.conv_norm_out = group_norm(config.norm_num_groups, first, config.norm_eps)
        self.conv_out = nn.Conv2d(
            first, config.out_channels, config.conv_out_kernel, padding=(config.conv_out_kernel - 1) // 2
        )
        self.conv_act = find_activation(config.act_fn)

    def __call__(
        self,
        sample: Any,
        timestep: Any,
        encoder_hidden_states: Any,
        added_cond_kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """The prediction of the network.

        Args:
            sample: (batch, height, width, channels).
            timestep: A number, or (batch,).
            encoder_hidden_states: (batch, tokens, width) of the text.
            added_cond_kwargs: "text_embeds" (batch, width) and "time_ids" (batch, 6), for SDXL alone.

        Raises:
            BackboneError: arrays of other shapes.
        """
        self._check(sample, encoder_hidden_states)
        dtype = self.conv_in.weight.dtype
        sample, context = sample.astype(dtype), encoder_hidden_states.astype(dtype)
        if self.config.center_input_sample:
            sample = 2 * sample - 1
        time = self._embed(sample.shape[0], timestep, added_cond_kwargs).astype(dtype)
        x = self.conv_in(sample)
        states = [x]
        for block in self.down_blocks:
            x, more = block(x, time, context)
            states += more
        if self.mid_block is not None:
            x = self.mid_block(x, time, context)
        for block in self.up_blocks:
            x = block(x, time, context, states)
        return self.conv_out(self.conv_act(self.conv_norm_out(x)))

    def _embed(self, batch: int, timestep: Any, added: Mapping[str, Any] | None) -> Any:
        """The embedding of the time, and of SDXL's further conditions."""
        config, dtype = self.config, self.conv_in.weight.dtype
        times = mx.broadcast_to(mx.array(timestep).reshape(-1), (batch,))
        sines = sinusoidal(times, config.block_out_channels[0], config.flip_sin_to_cos, config.freq_shift)
        found = self.time_embedding(sines.astype(dtype))
        if config.addition_embed_type is None:
            return found
        if added is None or not {"text_embeds", "time_ids"} <= set(added):
            raise BackboneError("This U-Net needs added_cond_kwargs with 'text_embeds' and 'time_ids', as SDXL has.")
        ids = mx.array(added["time_ids"])
        numbers = sinusoidal(
            ids.reshape(-1), config.addition_time_embed_dim, config.flip_sin_to_cos, config.freq_shift
        ).reshape(batch, -1)
        return found + self.add_embedding(mx.concatenate([added["text_embeds"], numbers], axis=-1).astype(dtype))

    def _check(self, sample: Any, context: Any) -> None:
        config = self.config
        if sample.ndim != 4 or sample.shape[-1] != config.in_channels:
            raise BackboneError(
                f"Expected a sample (batch, height, width, {config.in_channels}), got {tuple(sample.shape)}."
            )
        width = config.cross_attention_dim
        width = width if isinstance(width, int) else width[0]
        if context.ndim != 3 or context.shape[0] != sample.shape[0] or context.shape[-1] != width:
            raise BackboneError(
                f"Expected states of the text ({sample.shape[0]}, tokens, {width}), got {tuple(context.shape)}."
            )


def _resnet_shape(config: UNetConfig, time_width: int, scale: float = 1.0) -> ResnetShape:
    return ResnetShape(time_width, config.norm_num_groups, config.norm_eps, config.act_fn, scale)


def _block_shapes(config: UNetConfig, time_width: int) -> list[BlockShape]:
    """The shape of each block of the way down."""
    count = len(config.down_block_types)
    per_block(config.block_out_channels, count, "block_out_channels")
    resnets = per_block(config.layers_per_block, count, "layers_per_block")
    return [
        BlockShape(
            _resnet_shape(config, time_width),
            _layer_counts(layers, number) if kind.startswith("CrossAttn") else (),
            heads,
            context,
            config.use_linear_projection,
            bool(config.upcast_attention),
        )
        for kind, number, layers, heads, context in zip(
            config.down_block_types,
            resnets,
            per_block(config.transformer_layers_per_block, count, "transformer_layers_per_block"),
            per_block(config.attention_head_dim, count, "attention_head_dim"),  # diffusers' name for numbers of heads
            per_block(config.cross_attention_dim, count, "cross_attention_dim"),
            strict=True,
        )
    ]


def _layer_counts(layers: int | tuple[int, ...], resnets: int) -> tuple[int, ...]:
    """Transformer layers after each residual block."""
    return per_block(layers, resnets, "transformer_layers_per_block")


def _down_blocks(config: UNetConfig, shapes: list[BlockShape]) -> list[DownBlock2D]:
    widths = (config.block_out_channels[0], *config.block_out_channels)
    resnets = per_block(config.layers_per_block, len(shapes), "layers_per_block")
    return [
        DownBlock2D(
            widths[i],
            widths[i + 1],
            resnets[i],
            shape,
            config.downsample_padding if i < len(shapes) - 1 else None,
        )
        for i, shape in enumerate(shapes)
    ]


def _mid_block(config: UNetConfig, time_width: int) -> MidBlock2D | None:
    if config.mid_block_type is None:
        return None
    count = len(config.down_block_types)
    layers: tuple[int, ...] = ()
    if config.mid_block_type == "UNetMidBlock2DCrossAttn":
        last = per_block(config.transformer_layers_per_block, count, "transformer_layers_per_block")[-1]
        layers = _layer_counts(last, 1) if isinstance(last, int) else last[:1]
    shape = BlockShape(
        _resnet_shape(config, time_width, config.mid_block_scale_factor),
        layers,
        per_block(config.attention_head_dim, count, "attention_head_dim")[-1],
        per_block(config.cross_attention_dim, count, "cross_attention_dim")[-1],
        config.use_linear_projection,
        bool(config.upcast_attention),
    )
    return MidBlock2D(config.block_out_channels[-1], shape)


def _up_blocks(config: UNetConfig, time_width: int) -> list[UpBlock2D]:
    count = len(config.down_block_types)
    per_block(config.up_block_types, count, "up_block_types")
    layers = per_block(config.transformer_layers_per_block, count, "transformer_layers_per_block")[::-1]
    if config.reverse_transformer_layers_per_block is not None:
        layers = per_block(config.reverse_transformer_layers_per_block, count, "reverse_transformer_layers_per_block")
    resnets = [n + 1 for n in per_block(config.layers_per_block, count, "layers_per_block")[::-1]]
    heads = per_block(config.attention_head_dim, count, "attention_head_dim")[::-1]
    contexts = per_block(config.cross_attention_dim, count, "cross_attention_dim")[::-1]
    channels = config.block_out_channels[::-1]
    blocks, previous = [], channels[0]
    for i, kind in enumerate(config.up_block_types):
        out, skip = channels[i], channels[min(i + 1, count - 1)]
        shape = BlockShape(
            _resnet_shape(config, time_width),
            _layer_counts(layers[i], resnets[i]) if kind.startswith("CrossAttn") else (),
            heads[i],
            contexts[i],
            config.use_linear_projection,
            bool(config.upcast_attention),
        )
        widths = tuple(
            (previous if j == 0 else out) + (skip if j == resnets[i] - 1 else out) for j in range(resnets[i])
        )
        blocks.append(UpBlock2D(widths, out, shape, i == count - 1))
        previous = out
    return blocks
