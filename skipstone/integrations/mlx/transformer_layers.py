"""What the transformers of SD3 and FLUX share: embeddings, modulation, joint attention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import BackboneError
from .layers import TimestepEmbedding, attend, join_heads, sinusoidal, split_heads

NORM_EPS = 1e-6
FLOAT16_MAX = 65504.0
TIME_CHANNELS = 256  # of the sinusoidal embedding; diffusers has it as a constant too


def check_shapes(name: str, expected: Mapping[str, tuple[Sequence[int], Sequence[int | None]]]) -> None:
    """Raise BackboneError that lists each input of another shape than expected.

    Args:
        name: Of the class.
        expected: Name of the input -> its shape, and the shape that it has to have; None: of any length.
    """
    wrong = [
        f"{key} {tuple(got)} in place of ({', '.join('any' if n is None else str(n) for n in want)})"
        for key, (got, want) in expected.items()
        if len(got) != len(want) or any(n is not None and n != m for m, n in zip(got, want, strict=True))
    ]
    if wrong:
        raise BackboneError(f"{name} was called with {'; '.join(wrong)}.")


def clip_float16(x: Any) -> Any:
    """Float16 values brought back from infinity to the largest one, as diffusers does; others as they are."""
    return mx.clip(x, -FLOAT16_MAX, FLOAT16_MAX) if x.dtype == mx.float16 else x


class TimeTextEmbedding(nn.Module):
    """The sum of the embeddings of timestep, pooled prompt and, where the model has one, guidance scale.

    Args:
        width: Of the embedding.
        pooled: Width of the pooled prompt.
        guidance: Whether there is an embedding of the guidance scale.
    """

    def __init__(self, width: int, pooled: int, guidance: bool = False) -> None:
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(TIME_CHANNELS, width)
        self.text_embedder = TimestepEmbedding(pooled, width)
        if guidance:
            self.guidance_embedder = TimestepEmbedding(TIME_CHANNELS, width)

    def __call__(self, timestep: Any, pooled: Any, guidance: Any = None) -> Any:
        """The embedding (B, width) in the dtype of the pooled prompt."""
        made = self.timestep_embedder(sinusoidal(timestep, TIME_CHANNELS).astype(pooled.dtype))
        if guidance is not None:
            made = made + self.guidance_embedder(sinusoidal(guidance, TIME_CHANNELS).astype(pooled.dtype))
        return made + self.text_embedder(pooled)


class Modulation(nn.Module):
    """Shifts, scales and factors of a block, from the embedding of time and prompt (arXiv:2212.09748).

    Args:
        width: Of the embedding and of each part.
        parts: How many there are.
    """

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, parts * width)
        self._parts = parts

    def __call__(self, embedding: Any) -> list[Any]:
        """The parts, each (B, 1, width)."""
        return list(mx.split(self.linear(nn.silu(embedding))[:, None], self._parts, axis=-1))


def modulate(x: Any, shift: Any, scale: Any) -> Any:
    """`layer_norm(x) * (1 + scale) + shift`, the norm without weights."""
    return mx.fast.layer_norm(x, None, None, NORM_EPS) * (1 + scale) + shift


class GELU(nn.Module):
    """A linear layer and the tanh approximation of GELU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, inner)

    def __call__(self, x: Any) -> Any:
        """The activations (B, L, inner)."""
        return nn.gelu_approx(self.proj(x))


class FeedForward(nn.Module):
    """Two linear layers, four times as wide between them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # Number 1 is a dropout in diffusers.
        self.net = [GELU(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]

    def __call__(self, x: Any) -> Any:
        """The output (B, L, width)."""
        return self.net[2](self.net[0](x))


class JointAttention(nn.Module):
    """Attention over the tokens of the picture and, where there are any, of the prompt (arXiv:2403.03206).

    Args:
        width: Of tokens.
        heads: Their number; each has width / heads channels.
        qk_norm: Whether queries and keys are divided by their root mean square.
        prompt: Whether there are projections of the prompt's tokens.
        out, prompt_out: Whether there are projections of the picture's and of the prompt's outputs.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        qk_norm: bool = True,
        prompt: bool = True,
        out: bool = True,
        prompt_out: bool = True,
    ) -> None:
        super().__init__()
        self._heads = heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        if qk_norm:
            self.norm_q, self.norm_k = (nn.RMSNorm(width // heads, NORM_EPS) for _ in range(2))
        if prompt:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = (nn.Linear(width, width) for _ in range(3))
        if prompt and qk_norm:
            self.norm_added_q, self.norm_added_k = (nn.RMSNorm(width // heads, NORM_EPS) for _ in range(2))
        if out:
            self.to_out = [nn.Linear(width, width)]
        if prompt and prompt_out:
            self.to_add_out = nn.Linear(width, width)

    def __call__(
        self, x: Any, prompt: Any = None, rotation: tuple[Any, Any] | None = None, bias: Any = None
    ) -> tuple[Any, Any]:
        """Outputs of the picture's tokens and of the prompt's, where they have a projection.

        Args:
            x: Tokens of the picture (B, L, width).
            prompt: Tokens of the prompt (B, M, width).
            rotation: Cosines and sines (M + L, width / heads) of the rotary embedding, the prompt's first.
            bias: Added to the scores of each token (B, 1, 1, M + L), the prompt's first.
        """
        q, k, v = self._project(x, "to_{}", "norm_{}")
        if prompt is not None:
            added = self._project(prompt, "add_{}_proj", "norm_added_{}")
            q, k, v = (mx.concatenate([*pair], axis=2) for pair in zip(added, (q, k, v), strict=True))
        if rotation is not None:
            q, k = rotate(q, *rotation), rotate(k, *rotation)
        made = join_heads(attend(q, k, v, None if bias is None else bias.astype(q.dtype)))
        of_prompt = None
        if prompt is not None:
            words = prompt.shape[1]
            if "to_add_out" in self:
                of_prompt = self.to_add_out(made[:, :words])
            made = made[:, words:]
        return (self.to_out[0](made) if "to_out" in self else made), of_prompt

    def _project(self, x: Any, layer: str, norm: str) -> list[Any]:
        """Queries, keys and values (B, heads, L, channels)."""
        made = []
        for part in "qkv":
            one = split_heads(self[layer.format(part)](x), self._heads)
            made.append(self[norm.format(part)](one) if norm.format(part) in self else one)
        return made


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Pairs of neighbouring channels turned by angles: the rotary embedding (arXiv:2104.09864), in float32.

    Args:
        x: Queries or keys (B, heads, L, channels).
        cos, sin: Of the angle of each pair (L, channels / 2).
    """
    pairs = x.astype(mx.float32).reshape(*x.shape[:-1], -1, 2)
    a, b = pairs[..., 0], pairs[..., 1]
    return mx.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape).astype(x.dtype)
