"""A transformer of Stable Diffusion 3 whose width, heads, MLP and activation are free of each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from diffusers import SD3Transformer2DModel
from diffusers.configuration_utils import FrozenDict, register_to_config
from diffusers.models.attention import FeedForward, JointTransformerBlock
from diffusers.models.attention_processor import Attention, JointAttnProcessor2_0
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401  # diffusers looks for it here when it loads a pipeline
from torch import nn

from skipstone.settings import Ranges, check_settings

# Name in a shape -> what diffusers calls it.
ACTIVATIONS: Mapping[str, str] = {"gelu": "gelu-approximate", "silu": "linear-silu", "geglu": "geglu"}
MLP_RATIO = 4  # of SD3Transformer2DModel


@dataclass(frozen=True)
class Shape:
    """Shape of a transformer, and how its blocks are taken from a teacher's.

    Args:
        depth: Blocks, >= 1.
        width: Channels of a token, >= 1.
        heads: Of attention, >= 1, each as wide as the teacher's.
        mlp_ratio: Hidden units of an MLP in widths, > 0; there are `mlp_width` of them.
        activation: Of the MLPs: "gelu", "silu" or "geglu".
        layers: "cut" leaves blocks of the teacher out; "merged" puts the mean of each block that is kept and of those
            left out after it in its place.

    Raises:
        SpecError: a setting out of range.
    """

    depth: int
    width: int
    heads: int
    mlp_ratio: float = float(MLP_RATIO)
    activation: Literal["gelu", "silu", "geglu"] = "gelu"
    layers: Literal["cut", "merged"] = "cut"
    name: ClassVar[str] = "shape"
    ranges: ClassVar[Ranges] = {"depth": (1, 1000), "width": (8, 100_000), "heads": (1, 1000), "mlp_ratio": (0.01, 100)}

    def __post_init__(self) -> None:
        check_settings(self)

    @property
    def mlp_width(self) -> int:
        """Hidden units of an MLP: a multiple of 8."""
        return max(8, 8 * round(self.mlp_ratio * self.width / 8))


class CompactSD3Transformer2DModel(SD3Transformer2DModel):  # type: ignore[misc]  # diffusers has no types
    """`SD3Transformer2DModel` with other blocks: the heads need not fill the width, nor the MLP be four times as wide.

    Args:
        sample_size, patch_size, in_channels, out_channels: Of the latent.
        num_layers: Blocks.
        width: Channels of a token.
        num_attention_heads, attention_head_dim: Of the blocks.
        mlp_width: Hidden units.
        activation: "gelu", "silu" or "geglu".
        joint_attention_dim, pooled_projection_dim: Of the text encoders' output.
        pos_embed_max_size: Of the picture, in patches.
        qk_norm: As of `SD3Transformer2DModel`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 8,
        patch_size: int = 1,
        in_channels: int = 8,
        out_channels: int = 8,
        num_layers: int = 3,
        width: int = 192,
        num_attention_heads: int = 3,
        attention_head_dim: int = 64,
        mlp_width: int = 768,
        activation: str = "gelu",
        joint_attention_dim: int = 256,
        pooled_projection_dim: int = 256,
        pos_embed_max_size: int = 8,
        qk_norm: str | None = "rms_norm",
    ) -> None:
        own = {"num_layers": num_layers, "num_attention_heads": num_attention_heads}
        own["attention_head_dim"] = attention_head_dim
        super().__init__(
            sample_size=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            out_channels=out_channels,
            num_layers=0,
            num_attention_heads=1,
            attention_head_dim=width,
            joint_attention_dim=joint_attention_dim,
            caption_projection_dim=width,
            pooled_projection_dim=pooled_projection_dim,
            pos_embed_max_size=pos_embed_max_size,
            qk_norm=qk_norm,
        )
        self.register_to_config(**own)  # what the line above has overwritten
        theirs = ("caption_projection_dim", "dual_attention_layers")  # which are no options of this class
        self._internal_dict = FrozenDict({name: one for name, one in self.config.items() if name not in theirs})
        for index in range(num_layers):
            last = index == num_layers - 1
            block = JointTransformerBlock(width, 1, width, context_pre_only=last, qk_norm=qk_norm)
            block.attn = _attention(width, num_attention_heads, attention_head_dim, last, qk_norm)
            for name in ("ff", "ff_context")[: 1 if last else 2]:
                mlp = FeedForward(width, width, inner_dim=mlp_width, activation_fn=ACTIVATIONS[activation])
                setattr(block, name, mlp)
            self.transformer_blocks.append(block)


def _attention(width: int, heads: int, head_width: int, last: bool, qk_norm: str | None) -> Attention:
    """Joint attention whose heads need not fill the width, which diffusers' block has no option for."""
    inner = heads * head_width
    layer = Attention(
        query_dim=width,
        added_kv_proj_dim=width,
        dim_head=head_width,
        heads=heads,
        out_dim=inner,
        context_pre_only=last,
        bias=True,
        processor=JointAttnProcessor2_0(),
        qk_norm=qk_norm,
        eps=1e-6,
    )
    layer.to_out[0] = nn.Linear(inner, width)
    if not last:
        layer.to_add_out = nn.Linear(inner, width)
    return layer


def shape_of(network: Any) -> Shape:
    """The shape of a transformer of either class."""
    config = network.config
    width, heads = network.inner_dim, config.num_attention_heads
    return Shape(
        config.num_layers,
        width,
        heads,
        config.get("mlp_width", MLP_RATIO * width) / width,
        config.get("activation", "gelu"),
    )


def load_transformer(folder: Path) -> Any:
    """The transformer of a folder, of either class, in float32."""
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("_class_name")
    made = CompactSD3Transformer2DModel if kind == CompactSD3Transformer2DModel.__name__ else SD3Transformer2DModel
    return made.from_pretrained(folder).float().eval()


def build_transformer(shape: Shape, like: Any) -> nn.Module:
    """A new transformer of a shape for the latents and words of another one.

    Where diffusers' own class can have the shape it is of that class, so that all that reads it takes the new one.
    """
    config, head = like.config, like.config.attention_head_dim
    names = ("sample_size", "patch_size", "in_channels", "out_channels", "joint_attention_dim", "pooled_projection_dim")
    common = {name: config[name] for name in (*names, "pos_embed_max_size", "qk_norm")}
    common |= {"num_layers": shape.depth, "num_attention_heads": shape.heads, "attention_head_dim": head}
    standard = (
        shape.heads * head == shape.width,
        shape.mlp_width == MLP_RATIO * shape.width,
        shape.activation == "gelu",
    )
    if all(standard):
        made: nn.Module = SD3Transformer2DModel(**common, caption_projection_dim=shape.width)
        return made
    compact: nn.Module = CompactSD3Transformer2DModel(
        **common, width=shape.width, mlp_width=shape.mlp_width, activation=shape.activation
    )
    return compact
