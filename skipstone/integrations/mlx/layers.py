"""Layers that networks of several classes share: NHWC arrays, names and formulas of diffusers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...errors import ModelError

Activation = Callable[[Any], Any]
ACTIVATIONS: dict[str, Activation] = {
    "silu": nn.silu,
    "swish": nn.silu,
    "mish": nn.mish,
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
    "quick_gelu": nn.gelu_fast_approx,
    "relu": nn.relu,
}
_query_rows: ContextVar[int] = ContextVar("query_rows", default=0)


def find_activation(name: str) -> Activation:
    """The function of an activation's name. Raises ModelError where it is not ported."""
    if name not in ACTIVATIONS:
        raise ModelError(f"The activation {name!r} is not ported to MLX. Ported: {', '.join(ACTIVATIONS)}.")
    return ACTIVATIONS[name]


@contextmanager
def slice_attention(rows: int) -> Iterator[None]:
    """Compute attention for at most `rows` queries at a time, which bounds its memory; 0 computes all at once."""
    token = _query_rows.set(rows)
    try:
        yield
    finally:
        _query_rows.reset(token)


def attention_rows() -> int:
    """For how many queries attention is computed at a time; 0 for all."""
    return _query_rows.get()


def attend(queries: Any, keys: Any, values: Any, mask: Any = None, scale: float | None = None) -> Any:
    """softmax(scale q k^T + mask) v by `mx.fast.scaled_dot_product_attention`.

    Args:
        queries: (batch, heads, rows, width).
        keys, values: (batch, heads, tokens, width).
        mask: Added to the scores, (batch, heads, rows, tokens) or what broadcasts to it; "causal"; or None.
        scale: Of the scores; None is 1 / sqrt(width).
    """
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    count, rows = queries.shape[2], _query_rows.get()
    if not rows or rows >= count or isinstance(mask, str):
        return mx.fast.scaled_dot_product_attention(queries, keys, values, scale=scale, mask=mask)
    parts = []
    for start in range(0, count, rows):
        part = mask[:, :, start : start + rows] if mask is not None and mask.shape[-2] > 1 else mask
        few = queries[:, :, start : start + rows]
        parts.append(mx.fast.scaled_dot_product_attention(few, keys, values, scale=scale, mask=part))
    return mx.concatenate(parts, axis=2)


def split_heads(x: Any, heads: int) -> Any:
    """(batch, rows, heads * width) -> (batch, heads, rows, width)."""
    batch, rows, _ = x.shape
    return x.reshape(batch, rows, heads, -1).transpose(0, 2, 1, 3)


def join_heads(x: Any) -> Any:
    """(batch, heads, rows, width) -> (batch, rows, heads * width)."""
    batch, _, rows, _ = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, rows, -1)


def group_norm(groups: int, channels: int, eps: float) -> Any:
    """Group norm in the order of PyTorch."""
    return nn.GroupNorm(groups, channels, eps=eps, pytorch_compatible=True)


def sinusoidal(times: Any, width: int, flip_sin_to_cos: bool = True, freq_shift: float = 0) -> Any:
    """Sines and cosines of times, in float32: `t exp(-log(10000) i / (width / 2 - freq_shift))`.

    Args:
        times: (n,).
        width: Of the result (n, width), >= 2.
        flip_sin_to_cos: Whether the cosines come first.
        freq_shift: Below width / 2.
    """
    half = width // 2
    # Rounded where torch rounds: an error of one part in 10^7 of a frequency is 10^-4 of an angle at t = 1000.
    exponent = np.float32(-math.log(10000)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    frequencies = mx.array(np.exp(exponent.astype(np.float64)).astype(np.float32))
    angles = times.astype(mx.float32)[:, None] * frequencies[None]
    parts = [mx.cos(angles), mx.sin(angles)] if flip_sin_to_cos else [mx.sin(angles), mx.cos(angles)]
    if width % 2:
        parts.append(mx.zeros((times.shape[0], 1)))
    return mx.concatenate(parts, axis=-1)


def upsample(x: Any, height: int, width: int) -> Any:
    """The nearest cells of NHWC arrays at another size, as `torch.nn.functional.interpolate(mode="nearest")`."""
    batch, old_height, old_width, channels = x.shape
    if (height, width) == (2 * old_height, 2 * old_width):
        x = mx.broadcast_to(x[:, :, None, :, None], (batch, old_height, 2, old_width, 2, channels))
        return x.reshape(batch, height, width, channels)
    rows, columns = _nearest(old_height, height), _nearest(old_width, width)
    return mx.take(mx.take(x, rows, axis=1), columns, axis=2)


def _nearest(old: int, new: int) -> Any:
    return mx.array([min(i * old // new, old - 1) for i in range(new)], dtype=mx.int32)


class TimestepEmbedding(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, out: int, act_fn: str = "silu") -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(width, out), nn.Linear(out, out)
        self.act = find_activation(act_fn)

    def __call__(self, x: Any) -> Any:
        """(batch, width) -> (batch, out)."""
        return self.linear_2(self.act(self.linear_1(x)))


class Attention(nn.Module):
    """Attention of rows to themselves, or to a context.

    Args:
        width: Of the rows.
        heads: Their number, >= 1.
        head_width: Of each head, >= 1.
        context_width: Of the context; None where rows attend to themselves.
        upcast: Whether scores are computed in float32.
    """

    def __init__(
        self, width: int, heads: int, head_width: int, context_width: int | None = None, upcast: bool = False
    ) -> None:
        super().__init__()
        inner, context = heads * head_width, context_width or width
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_k = nn.Linear(context, inner, bias=False)
        self.to_v = nn.Linear(context, inner, bias=False)
        self.to_out = [nn.Linear(inner, width)]
        self.heads, self.upcast = heads, upcast

    def __call__(self, x: Any, context: Any = None) -> Any:
        """(batch, rows, width) -> (batch, rows, width)."""
        context = x if context is None else context
        q, k, v = (split_heads(y, self.heads) for y in (self.to_q(x), self.to_k(context), self.to_v(context)))
        if self.upcast:
            q, k, v = (y.astype(mx.float32) for y in (q, k, v))
        return self.to_out[0](join_heads(attend(q, k, v)).astype(x.dtype))


class GEGLU(nn.Module):
    """A linear layer whose second half gates the first by GELU (arXiv:2002.05202)."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def __call__(self, x: Any) -> Any:
        """(..., width) -> (..., out)."""
        x, gate = mx.split(self.proj(x), 2, axis=-1)
        return x * nn.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU and a linear layer; `net.1` of diffusers is a dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = [GEGLU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]

    def __call__(self, x: Any) -> Any:
        """(..., width) -> (..., width)."""
        return self.net[2](self.net[0](x))


@dataclass(frozen=True)
class ResnetShape:
    """What the residual blocks of a network share.

    Args:
        time_width: Of the embedding of the time; None where blocks know no time.
        groups: Of the group norms, >= 1.
        eps: Of the group norms.
        activation: Its name.
        scale: The sum of a block is divided by it.
    """

    time_width: int | None
    groups: int
    eps: float
    activation: str = "silu"
    scale: float = 1.0


class ResnetBlock2D(nn.Module):
    """Two convolutions, each after group norm and activation, added to the input.

    Args:
        width: Channels of the input.
        out: Channels of the output.
        shape: What the blocks of a network share.
    """

    def __init__(self, width: int, out: int, shape: ResnetShape) -> None:
        super().__init__()
        self.norm1 = group_norm(shape.groups, width, shape.eps)
        self.conv1 = nn.Conv2d(width, out, 3, padding=1)
        if shape.time_width is not None:
            self.time_emb_proj = nn.Linear(shape.time_width, out)
        self.norm2 = group_norm(shape.groups, out, shape.eps)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.conv_shortcut = nn.Conv2d(width, out, 1)
        self.act, self.scale = find_activation(shape.activation), shape.scale

    def __call__(self, x: Any, time: Any = None) -> Any:
        """(batch, height, width, channels), and the time's embedding (batch, time width) -> the same size."""
        y = self.conv1(self.act(self.norm1(x)))
        if time is not None:
            y = y + self.time_emb_proj(self.act(time))[:, None, None]
        y = self.conv2(self.act(self.norm2(y)))
        if "conv_shortcut" in self:
            x = self.conv_shortcut(x)
        return (x + y) / self.scale if self.scale != 1 else x + y


class Downsample2D(nn.Module):
    """A convolution of stride 2.

    Args:
        channels: Of input and output.
        padding: On each side; 0 pads one row and column at the end alone.
    """

    def __init__(self, channels: int, padding: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.pad = padding == 0

    def __call__(self, x: Any) -> Any:
        """Half the height and width."""
        return self.conv(mx.pad(x, [(0, 0), (0, 1), (0, 1), (0, 0)]) if self.pad else x)


class Upsample2D(nn.Module):
    """The nearest cells at twice the size, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: Any, size: tuple[int, int] | None = None) -> Any:
        """Twice the height and width, or the size that is asked for."""
        height, width = size or (2 * x.shape[1], 2 * x.shape[2])
        return self.conv(upsample(x, height, width))
