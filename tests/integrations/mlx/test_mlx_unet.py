"""`UNet2DConditionModel` on MLX against diffusers' own, on small configurations of every kind and on Pebble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
from diffusers import UNet2DConditionModel
from mlx_parity import LIMIT, draw, psnr, randomise, relative, save, to_mlx

import skipstone_pebble
from skipstone.errors import BackboneError, ModelError
from skipstone.integrations.mlx.layers import slice_attention
from skipstone.integrations.mlx.loading import load_module
from skipstone.integrations.mlx.unet import UNet2DConditionModel as MlxUNet

SMALL: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "attention_head_dim": 4,
}
XL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 20,
    "transformer_layers_per_block": (1, 2),
    "attention_head_dim": (2, 4),
    "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "sd15": {},
    "sd2": {"use_linear_projection": True, "attention_head_dim": (2, 4), "upcast_attention": True},
    "xl": XL,
    "pebble": {
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "layers_per_block": 1,
        "time_embedding_dim": 24,
    },
    "layers of each block": {"layers_per_block": (1, 2), "norm_eps": 1e-3, "act_fn": "gelu", "freq_shift": 1},
    "no attention in the middle": {"mid_block_type": "UNetMidBlock2D", "flip_sin_to_cos": False},
    "no middle": {"mid_block_type": None, "center_input_sample": True, "conv_in_kernel": 1, "conv_out_kernel": 5},
    "layers of each residual block": {
        "layers_per_block": 1,
        "transformer_layers_per_block": ((2,), (1,)),
        "reverse_transformer_layers_per_block": ((1, 2), (2, 1)),
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        "downsample_padding": 0,
        "mid_block_scale_factor": 2.0,
    },
}


def build(**options: Any) -> UNet2DConditionModel:
    return randomise(UNet2DConditionModel(**SMALL | options))  # type: ignore[return-value]


def inputs(model: UNet2DConditionModel, size: tuple[int, int] = (8, 8)) -> tuple[list[Any], dict[str, Any]]:
    config = model.config
    width = config.cross_attention_dim
    given = [draw(2, config.in_channels, *size), torch.tensor([3, 981]), draw(2, 7, width, seed=2)]
    added = {}
    if config.addition_embed_type:
        added = {"text_embeds": draw(2, 20, seed=3), "time_ids": draw(2, 6, seed=4).abs() * 300}
    return given, added


@torch.inference_mode()
def run_torch(model: UNet2DConditionModel, given: list[Any], added: dict[str, Any]) -> torch.Tensor:
    output: torch.Tensor = model(*given, added_cond_kwargs=added or None).sample
    return output


def run_mlx(model: Any, given: list[Any], added: dict[str, Any]) -> Any:
    return model(*map(to_mlx, given), added_cond_kwargs={key: to_mlx(value) for key, value in added.items()} or None)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_it_computes_what_diffusers_computes(name: str, tmp_path: Path) -> None:
    model = build(**CONFIGURATIONS[name])
    given, added = inputs(model)
    got = run_mlx(load_module(save(model, tmp_path)), given, added)
    assert relative(run_torch(model, given, added), got) <= LIMIT


@pytest.mark.parametrize("size", [(7, 8), (5, 3), (16, 4)])
def test_any_height_and_width(size: tuple[int, int], tmp_path: Path) -> None:
    """Also those that are no multiple of the steps down, whose way up ends at an odd size."""
    model = build(
        block_out_channels=(32, 64, 64),
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        layers_per_block=1,
    )
    given, added = inputs(model, size)
    assert relative(run_torch(model, given, added), run_mlx(load_module(save(model, tmp_path)), given, added)) <= LIMIT


def test_a_number_for_all_rows_is_that_number_for_each(tmp_path: Path) -> None:
    module = load_module(save(build(), tmp_path))
    sample, _, context = map(to_mlx, inputs(build())[0])
    each = module(sample, mx.array([37, 37]), context)
    assert mx.array_equal(module(sample, 37, context), each)
    assert not mx.array_equal(module(sample, 38, context), each)


def test_slices_of_attention_change_nothing_but_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build()
    given, added = inputs(model)
    module = load_module(save(model, tmp_path))
    whole, attention, rows = run_mlx(module, given, added), mx.fast.scaled_dot_product_attention, []

    def count(q: Any, *args: Any, **options: Any) -> Any:
        rows.append(q.shape[2])
        return attention(q, *args, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", count)
    with slice_attention(5):
        sliced = run_mlx(module, given, added)
    assert max(rows) == 5
    assert relative(whole, sliced) <= LIMIT
    run_mlx(module, given, added)
    assert max(rows) == 64


@pytest.mark.parametrize(("upcast", "expected"), [(True, mx.float32), (False, mx.float16)])
def test_upcast_attention_computes_scores_in_float32(
    upcast: bool, expected: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option of Stable Diffusion 2, whose scores overflow in half precision."""
    module = load_module(save(build(upcast_attention=upcast), tmp_path), "float16")
    attention, kinds = mx.fast.scaled_dot_product_attention, set()

    def note(*arrays: Any, **options: Any) -> Any:
        kinds.update(array.dtype for array in arrays)
        return attention(*arrays, **options)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", note)
    assert run_mlx(module, *inputs(build())).dtype == mx.float16
    assert kinds == {expected}


REFUSED = {
    "resnet_time_scale_shift": "scale_shift",
    "class_embed_type": "timestep",
    "encoder_hid_dim_type": "text_proj",
    "time_cond_proj_dim": 256,
    "only_cross_attention": True,
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "an_option_of_tomorrow": 1,
}


@pytest.mark.parametrize("option", REFUSED)
def test_options_that_are_not_ported_are_refused_by_name(option: str) -> None:
    with pytest.raises(ModelError, match=f"UNet2DConditionModel.*{option}.*torch"):
        MlxUNet.from_config(SMALL | {option: REFUSED[option]})


def test_all_refused_options_are_in_one_message() -> None:
    with pytest.raises(ModelError) as raised:
        MlxUNet.from_config(SMALL | REFUSED)
    assert [option for option in REFUSED if option not in str(raised.value)] == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"norm_num_groups": 7}, "sizes"),
        ({"layers_per_block": [1, 2, 3]}, "layers_per_block: expected a value for each of the 2 blocks, got 3"),
        ({"block_out_channels": [32]}, "block_out_channels"),
        ({"up_block_types": ["UpBlock2D"]}, "up_block_types"),
        ({"attention_head_dim": 0}, "attention_head_dim: expected a whole number in 1"),
        ({"addition_embed_type": "text_time"}, "addition_time_embed_dim"),
        ({"in_channels": "four"}, "in_channels: expected a whole number"),
        ({"act_fn": "sine"}, "'sine' is not ported"),
    ],
)
def test_sizes_that_do_not_fit(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        MlxUNet.from_config(SMALL | wrong)


def test_arrays_that_do_not_fit() -> None:
    module, x, c = MlxUNet.from_config(SMALL), mx.zeros((1, 8, 8, 4)), mx.zeros((1, 7, 48))
    with pytest.raises(BackboneError, match=r"\(batch, height, width, 4\), got \(1, 4, 8, 8\)"):
        module(x.transpose(0, 3, 1, 2), 1, c)
    with pytest.raises(BackboneError, match=r"\(1, tokens, 48\), got \(1, 7, 32\)"):
        module(x, 1, c[..., :32])
    with pytest.raises(BackboneError, match="time_ids"):
        MlxUNet.from_config(SMALL | XL)(x, 1, c, {"text_embeds": mx.zeros((1, 20))})


def pebble_inputs() -> tuple[list[Any], dict[str, Any]]:
    return [draw(1, 8, 8, 8), torch.tensor([15]), draw(1, 24, 128, seed=2)], {}


def test_pebble_with_its_own_weights() -> None:
    folder = skipstone_pebble.path("pebble") / "unet"
    expected = run_torch(UNet2DConditionModel.from_pretrained(folder).float().eval(), *pebble_inputs())
    single = run_mlx(load_module(folder), *pebble_inputs())
    assert relative(expected, single) <= LIMIT
    assert psnr(single, run_mlx(load_module(folder, "float16"), *pebble_inputs())) >= 60
    assert psnr(single, run_mlx(load_module(folder, "bfloat16"), *pebble_inputs())) >= 40
    assert psnr(single, run_mlx(load_module(folder, bits=8), *pebble_inputs())) >= 50
