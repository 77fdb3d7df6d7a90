"""CLIP's text encoders on MLX: `CLIPTextModel`, and `CLIPTextModelWithProjection` of SDXL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from ...errors import BackboneError
from .layers import attend, find_activation, join_heads, split_heads
from .network import TRANSFORMERS_IGNORED, Network

OLD_EOS = 2  # configurations with it take the state at the highest token, as transformers does
PREFIX = "text_model."


@dataclass(frozen=True)
class CLIPTextConfig:
    """Options of transformers' `CLIPTextConfig` that change the result, with its defaults."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    projection_dim: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5
    eos_token_id: int = 49407


@dataclass(frozen=True, eq=False)
class CLIPTextOutput:
    """States of prompts.

    Args:
        last_hidden_state: (batch, tokens, width), after the last layer norm.
        pooled: (batch, width), the last state at the end of each prompt.
        hidden_states: The embeddings and the output of each layer, (batch, tokens, width) each, before the layer norm.
        text_embeds: (batch, projection_dim) of a model with a projection, or None.
    """

    last_hidden_state: Any
    pooled: Any
    hidden_states: tuple[Any, ...]
    text_embeds: Any = None


class CLIPAttention(nn.Module):
    """Attention of each token to itself and those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def __call__(self, x: Any) -> Any:
        """(batch, tokens, width) -> the same shape."""
        q, k, v = (split_heads(layer(x), self.heads) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return self.out_proj(join_heads(attend(q, k, v, "causal")))


class CLIPMLP(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act = find_activation(config.hidden_act)

    def __call__(self, x: Any) -> Any:
        """(..., width) -> the same shape."""
        return self.fc2(self.act(self.fc1(x)))


class CLIPEncoderLayer(nn.Module):
    """Attention and a feed-forward network, each after a layer norm and added to its input."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.self_attn = CLIPAttention(width, config.num_attention_heads)
        self.layer_norm1 = nn.LayerNorm(width, config.layer_norm_eps)
        self.mlp = CLIPMLP(config)
        self.layer_norm2 = nn.LayerNorm(width, config.layer_norm_eps)

    def __call__(self, x: Any) -> Any:
        """(batch, tokens, width) -> the same shape."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class CLIPEncoder(nn.Module):
    """Layers in a row."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.layers = [CLIPEncoderLayer(config) for _ in range(config.num_hidden_layers)]

    def __call__(self, x: Any) -> tuple[Any, ...]:
        """The input and the output of each layer."""
        states = [x]
        for layer in self.layers:
            states.append(layer(states[-1]))
        return tuple(states)


class CLIPTextEmbeddings(nn.Module):
    """A vector of each token and of its place."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def __call__(self, ids: Any) -> Any:
        """(batch, tokens) -> (batch, tokens, width)."""
        return self.token_embedding(ids) + self.position_embedding(mx.arange(ids.shape[1]))[None]


class CLIPTextTransformer(nn.Module):
    """Embeddings, layers and a last layer norm."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = CLIPTextEmbeddings(config)
        self.encoder = CLIPEncoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.eos = config.eos_token_id

    def __call__(self, ids: Any) -> CLIPTextOutput:
        """States of prompts."""
        states = self.encoder(self.embeddings(ids))
        last = self.final_layer_norm(states[-1])
        ends = mx.argmax(ids if self.eos == OLD_EOS else ids == self.eos, axis=-1)
        pooled = mx.take_along_axis(last, ends[:, None, None], axis=1)[:, 0]
        return CLIPTextOutput(last, pooled, states)


class CLIPTextModel(Network):
    """The text encoder of Stable Diffusion, and the first of SDXL, SD3 and FLUX.

    Args:
        config: Its options.
    """

    Config = CLIPTextConfig
    POSITIVE = frozenset(
        {
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "projection_dim",
            "num_attention_heads",
            "max_position_embeddings",
        }
    )
    IGNORED = TRANSFORMERS_IGNORED | {"attention_dropout", "dropout", "projection_dim"}

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(f"hidden_size {config.hidden_size} for {config.num_attention_heads} num_attention_heads")
        self.text_model = CLIPTextTransformer(config)

    def __call__(self, input_ids: Any) -> CLIPTextOutput:
        """States of prompts.

        Args:
            input_ids: (batch, tokens) of the tokenizer, whole numbers.

        Raises:
            BackboneError: an array of another shape, or more tokens than places.
        """
        ids = mx.array(input_ids)
        if ids.ndim != 2 or not 1 <= ids.shape[1] <= self.config.max_position_embeddings:
            raise BackboneError(
                f"Expected ids (batch, tokens) of at most {self.config.max_position_embeddings} tokens, got "
                f"{tuple(ids.shape)}."
            )
        found: CLIPTextOutput = self.text_model(ids)
        return found

    @staticmethod
    def rename(key: str) -> str | None:
        """Names of transformers 5 have no prefix; places of tokens, which older versions wrote, are not used."""
        if key.endswith("embeddings.position_ids"):
            return None
        return key if key.startswith((PREFIX, "text_projection.")) else PREFIX + key


class CLIPTextModelWithProjection(CLIPTextModel):
    """The second text encoder of SDXL, and the first two of SD3.

    Args:
        config: Its options.
    """

    IGNORED = CLIPTextModel.IGNORED - {"projection_dim"}

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__(config)
        self.text_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def __call__(self, input_ids: Any) -> CLIPTextOutput:
        """States of prompts, with `text_embeds`. Raises BackboneError as `CLIPTextModel` does."""
        found = super().__call__(input_ids)
        embeds = self.text_projection(found.pooled)
        return CLIPTextOutput(found.last_hidden_state, found.pooled, found.hidden_states, embeds)
