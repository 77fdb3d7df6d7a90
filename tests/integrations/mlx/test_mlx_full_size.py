"""At their full size, networks have the parameters of diffusers and transformers: names and shapes, without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("mlx.core")

from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from mlx.utils import tree_flatten
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from skipstone.integrations.mlx.loading import find_network

XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "use_linear_projection": True,
    "layers_per_block": 2,
}
UNETS: dict[str, dict[str, Any]] = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "sd21": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
        "sample_size": 96,
    },
    "sdxl": XL
    | {
        "attention_head_dim": [5, 10, 20],
        "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": [1, 2, 10],
        "projection_class_embeddings_input_dim": 2816,
    },
    "sdxl refiner": XL
    | {
        "attention_head_dim": [6, 12, 24, 24],
        "block_out_channels": [384, 768, 1536, 1536],
        "cross_attention_dim": 1280,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": 4,
        "projection_class_embeddings_input_dim": 2560,
    },
}
KL: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
}
CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
CLIP_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
MODELS: dict[str, tuple[Any, dict[str, Any], float]] = {  # millions of parameters, as their cards say
    "sd15": (UNet2DConditionModel, UNETS["sd15"], 860),
    "sd21": (UNet2DConditionModel, UNETS["sd21"], 866),
    "sdxl": (UNet2DConditionModel, UNETS["sdxl"], 2567),
    "sdxl refiner": (UNet2DConditionModel, UNETS["sdxl refiner"], 2300),
    "vae": (AutoencoderKL, KL, 84),
    "taesd": (AutoencoderTiny, {}, 2.4),
    "clip l": (CLIPTextModel, CLIP_L, 123),
    "clip g": (CLIPTextModelWithProjection, CLIP_G, 695),
}


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_those_of_the_original(name: str) -> None:
    cls, options, millions = MODELS[name]
    with torch.device("meta"):
        model = cls(CLIPTextConfig(**options)) if issubclass(cls, CLIPTextModel.__base__) else cls(**options)
    module = find_network({"_class_name": cls.__name__}, "").from_config(options)
    expected = {module.rename(key): tuple(value.shape) for key, value in model.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in tree_flatten(module.parameters())}
    found = {key: (s[0], s[3], s[1], s[2]) if len(s) == 4 else s for key, s in found.items()}
    assert found == expected
    assert sum(torch.Size(shape).numel() for shape in found.values()) / 1e6 == pytest.approx(millions, rel=0.03)
