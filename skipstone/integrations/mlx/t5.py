"""The encoder of T5 and T5 v1.1 (arXiv:1910.10683, arXiv:2002.05202) on MLX, with transformers' parameter names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from numpy.typing import NDArray

from .layers import attend, find_activation, join_heads, split_heads
from .network import TRANSFORMERS_IGNORED, Network
from .transformer_layers import FLOAT16_MAX, check_shapes

NAME = "T5EncoderModel"


@dataclass(frozen=True)
class T5Config:
    """Options of transformers' `T5Config` that change the result, with its defaults."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str = "relu"
    is_gated_act: bool | None = None
    dense_act_fn: str | None = None

    @property
    def gated(self) -> bool:
        """Whether the feed-forward layer is gated."""
        return self.feed_forward_proj.startswith("gated-") if self.is_gated_act is None else self.is_gated_act

    @property
    def activation(self) -> str:
        """Name of the activation; "gated-gelu" is the tanh approximation, as in transformers."""
        named = "gelu_new" if self.feed_forward_proj == "gated-gelu" else self.feed_forward_proj.rpartition("-")[2]
        return self.dense_act_fn or named


def position_buckets(length: int, buckets: int, max_distance: int) -> NDArray[np.int64]:
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
    within = np.where(far < exact, far, np.minimum(logarithmic, half - 1))
    return np.asarray(within + half * (distance > 0), np.int64)


class T5Attention(nn.Module):
    """Attention without a scale, whose first layer has a bias for each distance and head."""

    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        width, inner = config.d_model, config.num_heads * config.d_kv
        self._heads = config.num_heads
        self.q, self.k, self.v = (nn.Linear(width, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, width, bias=False)
        if first:
            self.relative_attention_bias = nn.Embedding(config.relative_attention_num_buckets, self._heads)

    def __call__(self, x: Any, bias: Any) -> Any:
        """The output (B, L, d_model); `bias` (B or 1, heads, L, L) is added to the scores."""
        q, k, v = (split_heads(layer(x), self._heads) for layer in (self.q, self.k, self.v))
        return self.o(join_heads(attend(q, k, v, bias.astype(q.dtype), scale=1.0)))


class T5FeedForward(nn.Module):
    """`wo(act(wi x))`, or gated: `wo(act(wi_0 x) * wi_1 x)`."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        width, inner = config.d_model, config.d_ff
        self._gated = config.gated
        for name in ("wi_0", "wi_1") if self._gated else ("wi",):
            setattr(self, name, nn.Linear(width, inner, bias=False))
        self.wo = nn.Linear(inner, width, bias=False)
        self._activation = find_activation(config.activation)

    def __call__(self, x: Any) -> Any:
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

    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.SelfAttention = T5Attention(config, first)
        self.layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: Any, bias: Any) -> Any:
        """What is added to the tokens, in float32."""
        return self.SelfAttention(normed(self.layer_norm, x), bias).astype(mx.float32)


class T5LayerFF(nn.Module):
    """Norm and feed-forward layer."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = T5FeedForward(config)
        self.layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)

    def __call__(self, x: Any) -> Any:
        """What is added to the tokens, in float32."""
        return self.DenseReluDense(normed(self.layer_norm, x))


def normed(norm: Any, x: Any) -> Any:
    """The norm taken in the dtype of x, its result in that of the weights."""
    return norm(x).astype(norm.weight.dtype)


class T5Block(nn.Module):
    """Attention and feed-forward layer."""

    def __init__(self, config: T5Config, first: bool) -> None:
        super().__init__()
        self.layer: list[Any] = [T5LayerSelfAttention(config, first), T5LayerFF(config)]

    def __call__(self, x: Any, bias: Any) -> Any:
        """The tokens after the block."""
        attention, feed_forward = self.layer
        x = x + attention(x, bias)
        return x + feed_forward(x)


class T5Stack(nn.Module):
    """The blocks and a last norm; the tokens between the blocks are float32, whatever the weights are."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.block = [T5Block(config, first=i == 0) for i in range(config.num_layers)]
        self.final_layer_norm = nn.RMSNorm(config.d_model, config.layer_norm_epsilon)
        self._buckets = config.relative_attention_num_buckets, config.relative_attention_max_distance

    def __call__(self, x: Any, mask: Any) -> Any:
        """The last hidden state (B, L, d_model) of embedded tokens."""
        x = x.astype(mx.float32)
        bias = self._bias(x.shape[1], mask) if self.block else None
        for block in self.block:
            x = block(x, bias)
        return normed(self.final_layer_norm, x)

    def _bias(self, length: int, mask: Any) -> Any:
        """What is added to the scores of every block (B or 1, heads, length, length), in float32."""
        table = self.block[0].layer[0].SelfAttention.relative_attention_bias
        bias = table(mx.array(position_buckets(length, *self._buckets))).transpose(2, 0, 1)[None].astype(mx.float32)
        if mask is None:
            return bias
        return mx.where(mask[:, None, None, :] == 0, -FLOAT16_MAX, bias)


class T5EncoderModel(Network):
    """The text encoder of SD3 and FLUX.

    Args:
        config: Its options.
    """

    Config = T5Config
    IGNORED = TRANSFORMERS_IGNORED | {
        "classifier_dropout",
        "decoder_start_token_id",
        "dropout_rate",
        "eos_token_id",
        "n_positions",
        "num_decoder_layers",
        "scale_decoder_outputs",
        "task_specific_params",
    }

    def __init__(self, config: T5Config) -> None:
        super().__init__(config)
        self.shared = nn.Embedding(config.vocab_size, config.d_model)
        self.encoder = T5Stack(config)

    @staticmethod
    def rename(key: str) -> str | None:
        """The parameter that a key of a checkpoint is for; None where the encoder does not need it."""
        if key == "lm_head.weight" or key.startswith("decoder."):
            return None
        return "shared.weight" if key == "encoder.embed_tokens.weight" else key

    def __call__(self, input_ids: Any, attention_mask: Any = None) -> Any:
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
