"""The encoder of T5 and T5 v1.1 (arXiv:1910.10683, arXiv:2002.05202) on MLX, with transformers' parameter names."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ...errors import ModelError
from .transformer_layers import FLOAT16_MAX, check_shapes

NAME = "T5EncoderModel"
ACTIVATIONS: Mapping[str, Callable[[mx.array], mx.array]] = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "gelu_new": nn.gelu_approx,
    "gelu_pytorch_tanh": nn.gelu_approx,
}
DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 2048,
    "num_layers": 6,
    "num_heads": 8,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "layer_norm_epsilon": 1e-6,
    "feed_forward_proj": "relu",
}


def position_buckets(length: int, buckets: int, max_distance: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Number of the bucket of each pair of positions (length, length): exact when near, logarithmic when far.

    Args:
        length: Tokens.
        buckets: Their number; half of them for each direction.
        max_distance: From this distance on, in tokens, all pairs are in the last bucket.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half = buckets // 2
    exact = half // 2
    far = np.abs(distance)
    # In float32, as torch: where a distance lies on an edge, rounding decides.
    share = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact)) / np.float32(
        math.log(max_distance / exact)
    )
    logarithmic = exact + (share * np.float32(half - exact)).astype(np.int64)
    return np.where(distance > 0, half, 0) + np.where(far < exact, far, np.minimum(logarithmic, half - 1))


class T5Attention(nn.Module):
    """Attention without a scale, whose first layer has a bias for each distance and head."""

    def __init__(self, config: Mapping[str, Any], first: bool) -> None:
        super().__init__()
        width, inner = config["d_model"], config["num_heads"] * config["d_kv"]
        self._heads = config["num_heads"]
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config["relative_attention_num_buckets"], self._heads)

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        """The output (B, L, d_model); `bias` (B or 1, heads, L, L) is added to the scores."""
        q, k, v = (
            layer(x).reshape(*x.shape[:2], self._heads, -1).transpose(0, 2, 1, 3) for layer in (self.q, self.k, self.v)
        )
        made = mx.fast.scaled_dot_product_attention(q, k, v, scale=1.0, mask=bias.astype(q.dtype))
        return self.o(made.transpose(0, 2, 1, 3).flatten(2))


class T5FeedForward(nn.Module):
    """`wo(act(wi x))`, or gated: `wo(act(wi_0 x) * wi_1 x)`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        width, inner = config["d_model"], config["d_ff"]
        self._gated = config["is_gated_act"]
        for name in ("wi_0", "wi_1") if self._gated else ("wi",):
            setattr(self, name, nn.Linear(width, inner, bias=False))
        self.wo = nn.Linear(inner, width, bias=False)
        self._activation = ACTIVATIONS[config["dense_act_fn"]]

    def __call__(self, x: mx.array) -> mx.array:
        """The output (B, L, d_model) in float32."""
        wide = mx.float32
        if self._gated:
            inner = self._activation(self.wi_0(x)).astype(wide) * self.wi_1(x).astype(wide)
        else:
            inner = self._activation(self.wi(x)).astype(wide)
        if x.dtype != mx.float16:
            return self.wo(inner.astype(x.dtype)).astype(wide)
        # T5 v1.1 leaves float16 here (transformers keeps wo in float32 for this reason): each token is scaled to at
        # most 1 before the layer and back after it.
        largest = mx.maximum(mx.abs(inner).max(axis=-1, keepdims=True), 1.0)
        return self.wo((inner / largest).astype(x.dtype)).astype(wide) * largest


class T5LayerSelfAttention(nn.Module):
    """Norm and attention."""

    def __init__(self, config: Mapping[str, Any], first: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, first)
        self.layer_norm = nn.RMSNorm(config["d_model"], config["layer_norm_epsilon"])

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        """What is added to the tokens, in float32."""
        return self.SelfAttention(normed(self.layer_norm, x), bias).astype(mx.float32)


class T5LayerFF(nn.Module):
    """Norm and feed-forward layer."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.DenseReluDense = T5FeedForward(config)
        self.layer_norm = nn.RMSNorm(config["d_model"], config["layer_norm_epsilon"])

    def __call__(self, x: mx.array) -> mx.array:
        """What is added to the tokens, in float32."""
        return self.DenseReluDense(normed(self.layer_norm, x))


def normed(norm: nn.RMSNorm, x: mx.array) -> mx.array:
    """The norm taken in the dtype of x, its result in that of the weights."""
    return norm(x).astype(norm.weight.dtype)


class T5Block(nn.Module):
    """Attention and feed-forward layer."""

    def __init__(self, config: Mapping[str, Any], first: bool) -> None:
        super().__init__()
        self.layer = [T5LayerSelfAttention(config, first), T5LayerFF(config)]

    def __call__(self, x: mx.array, bias: mx.array) -> mx.array:
        """The tokens after the block."""
        x = x + self.layer[0](x, bias)
        return x + self.layer[1](x)


class T5Stack(nn.Module):
    """The blocks and a last norm; the tokens between the blocks are float32, whatever the weights are."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.block = [T5Block(config, first=i == 0) for i in range(config["num_layers"])]
        self.final_layer_norm = nn.RMSNorm(config["d_model"], config["layer_norm_epsilon"])
        self._buckets = config["relative_attention_num_buckets"], config["relative_attention_max_distance"]

    def __call__(self, x: mx.array, mask: mx.array | None) -> mx.array:
        """The last hidden state (B, L, d_model) of embedded tokens."""
        x = x.astype(mx.float32)
        bias = self._bias(x.shape[1], mask) if self.block else None
        for block in self.block:
            x = block(x, bias)
        return normed(self.final_layer_norm, x)

    def _bias(self, length: int, mask: mx.array | None) -> mx.array:
        """What is added to the scores of every block (B or 1, heads, length, length), in float32."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = table(mx.array(position_buckets(length, *self._buckets))).transpose(2, 0, 1)[None].astype(mx.float32)
        if mask is None:
            return bias
        return mx.where(mask[:, None, None, :] == 0, -FLOAT16_MAX, bias)


class T5EncoderModel(nn.Module):
    """The text encoder of SD3 and FLUX.

    Args:
        config: As in config.json, with every key that is read: see `from_config`.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = MappingProxyType(dict(config))
        self.shared = nn.Embedding(config["vocab_size"], config["d_model"])
        self.encoder = T5Stack(config)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> T5EncoderModel:
        """An untrained encoder of a config. Raises ModelError that names what is not ported."""
        full = {**DEFAULTS, **config}
        if full.get("model_type", "t5") != "t5":
            raise ModelError(f"The MLX {NAME} is of model_type 't5', and the config says {full['model_type']!r}.")
        *gated, activation = full["feed_forward_proj"].split("-")
        full.setdefault("is_gated_act", gated == ["gated"])
        full.setdefault("dense_act_fn", "gelu_new" if full["feed_forward_proj"] == "gated-gelu" else activation)
        if full["dense_act_fn"] not in ACTIVATIONS:
            raise ModelError(
                f"The MLX {NAME} has dense_act_fn {', '.join(ACTIVATIONS)}, and the config says "
                f"{full['dense_act_fn']!r}."
            )
        return cls(full)

    @staticmethod
    def rename(key: str) -> str | None:
        """The parameter that a key of a checkpoint is for; None where the encoder does not need it."""
        if key == "lm_head.weight" or key.startswith("decoder."):
            return None
        return "shared.weight" if key == "encoder.embed_tokens.weight" else key

    def __call__(self, input_ids: mx.array, attention_mask: mx.array | None = None) -> mx.array:
        """The last hidden state (B, L, d_model), in the dtype of the weights.

        Args:
            input_ids: Tokens (B, L).
            attention_mask: 1 for tokens that are read, 0 for padding (B, L); None: all are read, as in the pipelines
                of SD3 and FLUX.

        Raises:
            BackboneError: shapes that do not fit.
        """
        shape = input_ids.shape
        check_shapes(NAME, {"input_ids": (shape, (None, None))})
        if attention_mask is not None:
            check_shapes(NAME, {"attention_mask": (attention_mask.shape, shape)})
        return self.encoder(self.shared(input_ids), attention_mask)
