"""CLIP's text encoders on MLX against those of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx_parity import LIMIT, psnr, randomise, relative, save
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

import skipstone_pebble
from skipstone.errors import BackboneError, ModelError
from skipstone.integrations.mlx.clip import CLIPTextModel as MlxCLIP
from skipstone.integrations.mlx.loading import load_module

SMALL: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 64,
    "projection_dim": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
    "eos_token_id": 98,
    "bos_token_id": 97,
    "pad_token_id": 98,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "clip": {},
    "open clip": {"hidden_act": "gelu", "pad_token_id": 1},
    "eos of old configurations": {"eos_token_id": 2},
    "another epsilon": {"layer_norm_eps": 1e-2},
}


def ids(length: int = 12) -> torch.Tensor:
    """Prompts that end at different places, one of them full."""
    found = torch.randint(3, 97, (3, length), generator=torch.Generator().manual_seed(0))
    for row, end in enumerate((2, 5, length - 1)):
        found[row, end:] = 98
    return found


@torch.inference_mode()
def run_torch(model: Any, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    found = model(tokens, output_hidden_states=True)
    base = found if hasattr(found, "pooler_output") else model.text_model(tokens)
    result = {"last": found.last_hidden_state, "pooled": base.pooler_output}
    result |= {f"hidden {i}": state for i, state in enumerate(found.hidden_states)}
    return result | ({"embeds": found.text_embeds} if hasattr(found, "text_embeds") else {})


def run_mlx(module: Any, tokens: torch.Tensor) -> dict[str, Any]:
    found = module(mx.array(tokens.numpy()))
    result = {"last": found.last_hidden_state, "pooled": found.pooled}
    result |= {f"hidden {i}": state for i, state in enumerate(found.hidden_states)}
    return result | ({"embeds": found.text_embeds} if found.text_embeds is not None else {})


def distances(expected: dict[str, Any], got: dict[str, Any]) -> dict[str, float]:
    assert expected.keys() == got.keys()
    return {name: relative(expected[name], got[name]) for name in expected}


@pytest.mark.parametrize("cls", [CLIPTextModel, CLIPTextModelWithProjection])
@pytest.mark.parametrize("name", OPTIONS)
def test_they_compute_what_transformers_computes(name: str, cls: Any, tmp_path: Path) -> None:
    model = randomise(cls(CLIPTextConfig(**SMALL | OPTIONS[name])))
    module = load_module(save(model, tmp_path))
    for tokens in (ids(), ids(7)):
        assert max(distances(run_torch(model, tokens), run_mlx(module, tokens)).values()) <= LIMIT


@pytest.mark.parametrize("prefix", ["text_model.", ""])
def test_names_of_old_and_new_files(prefix: str, tmp_path: Path) -> None:
    """transformers 5 has no prefix in its own names; files before 4.31 hold the places of tokens."""
    model = randomise(CLIPTextModel(CLIPTextConfig(**SMALL)))
    file = save(model, tmp_path) / "model.safetensors"
    state = {prefix + name.removeprefix("text_model."): value for name, value in load_file(file).items()}
    save_file(state | {f"{prefix}embeddings.position_ids": torch.arange(12)[None]}, file)
    assert max(distances(run_torch(model, ids()), run_mlx(load_module(tmp_path), ids())).values()) <= LIMIT


def test_pebbles_own() -> None:
    folder = skipstone_pebble.path("pebble") / "text_encoder"
    model = CLIPTextModel.from_pretrained(folder).float().eval()
    tokens = torch.randint(0, 1047, (2, 24), generator=torch.Generator().manual_seed(0))
    tokens[:, 9:] = 1048
    expected, single = run_torch(model, tokens), run_mlx(load_module(folder), tokens)
    assert max(distances(expected, single).values()) <= LIMIT
    for dtype, bits, floor in (("float16", None, 60), ("bfloat16", None, 40), ("float32", 8, 45), ("float32", 4, 20)):
        module = load_module(folder, dtype, bits)
        assert module.report.unquantised == ()
        assert len(module.report.quantised) == (12 if bits else 0)
        assert min(psnr(single[name], value) for name, value in run_mlx(module, tokens).items()) >= floor


def test_what_does_not_fit() -> None:
    module = MlxCLIP.from_config(SMALL)
    for shape in ((12,), (1, 13), (1, 0)):
        with pytest.raises(BackboneError, match="at most 12 tokens"):
            module(mx.zeros(shape, dtype=mx.int32))
    with pytest.raises(ModelError, match=r"CLIPTextModel.*eos_token_id.*rope"):
        MlxCLIP.from_config(SMALL | {"eos_token_id": [1, 2], "rope": 1})
