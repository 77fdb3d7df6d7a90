"""Compiled denoisers: the same numbers, and one compilation for each set of shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mlx.core")

import mlx.core as mx
from mlx_parity import LIMIT, relative

import skipstone_pebble
from skipstone.integrations.mlx.compiled import compile_denoiser
from skipstone.integrations.mlx.layers import slice_attention
from skipstone.integrations.mlx.loading import load_module, quantise
from skipstone.integrations.mlx.lora import load_lora
from skipstone.integrations.mlx.unet import UNet2DConditionModel

PEBBLE = skipstone_pebble.path("pebble") / "unet"
STUDENT = Path(skipstone_pebble.__file__).parent / "students" / "pebble-progressive-1"
SMALL: dict[str, Any] = {
    "block_out_channels": [16, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 16,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "attention_head_dim": 2,
}
XL = SMALL | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 4,
}


def draw(*shape: int) -> Any:
    return mx.random.normal(shape, key=mx.random.key(len(shape)))


def inputs(batch: int = 2, tokens: int = 7, size: int = 8) -> tuple[Any, ...]:
    return draw(batch, size, size, 4), 500, draw(batch, tokens, 16)


def test_one_compilation_for_each_set_of_shapes() -> None:
    module = UNet2DConditionModel.from_config(SMALL)
    compiled = compile_denoiser(module)
    x, _, context = inputs()
    for t in (999, 500.5, 3, mx.array(7.0)):
        assert relative(module(x, t, context), compiled(x, t, context)) <= LIMIT
    assert compiled.compilations == 1
    for given in (inputs(batch=4), inputs(tokens=12), inputs(size=16), inputs()):
        assert relative(module(*given), compiled(*given)) <= LIMIT
    assert compiled.compilations == 4
    assert relative(module(x, 1, context), compiled(x, mx.array([1.0, 1.0]), context)) <= LIMIT
    assert compiled.compilations == 5
    assert compiled.config.in_channels == 4


def test_the_conditions_of_sdxl() -> None:
    module = UNet2DConditionModel.from_config(XL)
    compiled = compile_denoiser(module)
    for seed in range(3):
        x, context = draw(2, 8, 8, 4) + seed, draw(2, 7, 16)
        added = {"text_embeds": draw(2, 4) * seed, "time_ids": mx.ones((2, 6)) * 100 * seed}
        assert relative(module(x, seed, context, added), compiled(x, seed, context, added_cond_kwargs=added)) <= LIMIT
    assert compiled.compilations == 1
    plain = compile_denoiser(UNet2DConditionModel.from_config(SMALL))
    assert relative(plain(*inputs()), plain(*inputs(), added_cond_kwargs=None)) == 0


@pytest.mark.parametrize("change", [lambda m: load_lora(m, STUDENT), lambda m: quantise(m, 4)], ids=["lora", "bits"])
def test_weights_that_change_later_have_their_effect(change: Callable[[Any], Any]) -> None:
    module = load_module(PEBBLE)
    compiled, given = compile_denoiser(module), (draw(1, 4, 4, 8), 500, draw(1, 3, 128))
    before = compiled(*given)
    mx.eval(before)
    change(module)
    assert relative(before, compiled(*given)) > 100 * LIMIT
    assert relative(module(*given), compiled(*given)) <= LIMIT


def test_slices_of_attention_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = compile_denoiser(UNet2DConditionModel.from_config(SMALL))
    whole, attention, rows = compiled(*inputs()), mx.fast.scaled_dot_product_attention, []
    monkeypatch.setattr(
        mx.fast, "scaled_dot_product_attention", lambda q, *a, **k: rows.append(q.shape[2]) or attention(q, *a, **k)
    )
    with slice_attention(5):
        assert relative(whole, compiled(*inputs())) <= LIMIT
    assert max(rows) == 5
    assert compiled.compilations == 2
    compiled(*inputs())
    assert compiled.compilations == 2
