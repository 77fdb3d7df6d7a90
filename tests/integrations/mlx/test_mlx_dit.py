"""The transformers of SD3 and FLUX on MLX against diffusers' own: small ones of every kind, and Pebble-DiT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from mlx_parity import LIMIT, draw, psnr, randomise, relative, save, to_mlx

import skipstone_pebble
from skipstone.errors import BackboneError, ModelError
from skipstone.integrations.mlx.flux import FluxTransformer2DModel as MlxFlux
from skipstone.integrations.mlx.layers import slice_attention
from skipstone.integrations.mlx.loading import load_module
from skipstone.integrations.mlx.sd3 import SD3Transformer2DModel as MlxSD3

PEBBLE = Path(skipstone_pebble.__file__).parent / "weights_dit" / "transformer"
SD3: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 16,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 20,
    "pos_embed_max_size": 7,
}
SD3_KINDS: dict[str, dict[str, Any]] = {
    "sd3": {},
    "sd3.5 large": {"qk_norm": "rms_norm"},
    "sd3.5 medium": {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)},
    "dual in the last block": {"dual_attention_layers": (2,), "out_channels": None},
    "one block": {"num_layers": 1, "patch_size": 1, "pos_embed_max_size": 16},
}
FLUX: dict[str, Any] = {
    "in_channels": 8,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "axes_dims_rope": (4, 4, 8),
}


def inputs_sd3(config: Any, rows: int = 8, columns: int = 12, batch: int = 3) -> list[torch.Tensor]:
    """Latents, times, prompts and pooled prompts; the times are those at which rounding matters most, and 0."""
    times = torch.tensor([999.3, 500.25, 0.0])[:batch]
    return [
        draw(batch, config.in_channels, rows, columns),
        times,
        draw(batch, 5, config.joint_attention_dim, seed=2),
        draw(batch, config.pooled_projection_dim, seed=3),
    ]


def run_sd3(model: Any, inputs: list[torch.Tensor]) -> torch.Tensor:
    x, times, prompt, pooled = inputs
    with torch.no_grad():
        found: torch.Tensor = model(x, prompt, pooled, times, return_dict=False)[0]
    return found


def inputs_flux(guidance: bool, side: int = 8) -> dict[str, torch.Tensor]:
    """Packed latents of a picture whose positions are far from each other, and prompts."""
    cells = torch.arange(side * side)
    made = {
        "hidden_states": draw(2, side * side, FLUX["in_channels"]),
        "encoder_hidden_states": draw(2, 7, FLUX["joint_attention_dim"], seed=2),
        "pooled_projections": draw(2, FLUX["pooled_projection_dim"], seed=3),
        "timestep": torch.tensor([1.0, 0.413]),
        "img_ids": torch.stack([cells * 0, cells // side * 9, cells % side * 8], 1).float(),
        "txt_ids": torch.zeros(7, 3),
    }
    return made | ({"guidance": torch.tensor([3.5, 1.0])} if guidance else {})


@pytest.mark.parametrize("kind", SD3_KINDS)
def test_sd3_is_that_of_diffusers(kind: str, tmp_path: Path) -> None:
    """Sides that differ, and are smaller than the table of positions, of which an odd number of rows is left over."""
    model = randomise(SD3Transformer2DModel(**(SD3 | SD3_KINDS[kind])))
    inputs = inputs_sd3(model.config)
    loaded = load_module(save(model, tmp_path))
    assert isinstance(loaded, MlxSD3)
    assert relative(run_sd3(model, inputs), loaded(*map(to_mlx, inputs))) <= LIMIT


def test_pebble_dit_is_that_of_diffusers() -> None:
    model, loaded = SD3Transformer2DModel.from_pretrained(PEBBLE).float().eval(), load_module(PEBBLE)
    inputs = inputs_sd3(model.config, 8, 8)
    expected = run_sd3(model, inputs)
    assert relative(expected, loaded(*map(to_mlx, inputs))) <= LIMIT
    with slice_attention(7):
        assert relative(expected, loaded(*map(to_mlx, inputs))) <= LIMIT


def test_one_token_stands_for_equal_ones() -> None:
    """The empty rows of a prompt without T5, of which Pebble-DiT has 256, in one."""
    model = MlxSD3.from_config(SD3)
    x, times, prompt, pooled = map(to_mlx, inputs_sd3(model.config))
    rows = mx.concatenate([prompt, mx.repeat(prompt[:, -1:], 5, axis=1)], axis=1)
    got = model(x, times, prompt, pooled, mx.full((3,), 6.0))
    assert relative(model(x, times, rows, pooled), got) <= LIMIT
    assert relative(model(x, times, prompt, pooled), got) > 100 * LIMIT


@pytest.mark.parametrize(
    ("precision", "least"), [(("float16", None), 60), (("bfloat16", None), 42), (("float32", 8), 40)]
)
def test_pebble_dit_in_fewer_bits(precision: tuple[str, int | None], least: float) -> None:
    """dB of the prediction; the weights of Pebble-DiT are float16 in its file, so that float16 loses little."""
    inputs = list(map(to_mlx, inputs_sd3(load_module(PEBBLE).config, 8, 8)))
    got = load_module(PEBBLE, *precision)(*inputs)
    assert got.dtype == getattr(mx, precision[0])
    assert psnr(load_module(PEBBLE)(*inputs), got) >= least


@pytest.mark.parametrize("guidance", [False, True])
def test_flux_is_that_of_diffusers(guidance: bool, tmp_path: Path) -> None:
    model = randomise(FluxTransformer2DModel(**FLUX, guidance_embeds=guidance))
    inputs = inputs_flux(guidance)
    loaded = load_module(save(model, tmp_path))
    assert isinstance(loaded, MlxFlux)
    with torch.no_grad():
        expected = model(**inputs, return_dict=False)[0]
    assert relative(expected, loaded(**{name: to_mlx(value) for name, value in inputs.items()})) <= LIMIT


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_flux_in_half_precision(dtype: str, tmp_path: Path) -> None:
    """Nothing on the way turns to float32, and times and positions lose nothing: they are float32 in either."""
    model = randomise(FluxTransformer2DModel(**FLUX, guidance_embeds=True))
    folder, inputs = save(model, tmp_path), {n: to_mlx(x) for n, x in inputs_flux(True).items()}
    full, half = load_module(folder), load_module(folder, dtype)
    got = half(**inputs)
    assert got.dtype == getattr(mx, dtype)
    assert psnr(full(**inputs), got) >= {"float16": 60, "bfloat16": 40}[dtype]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SD3 | {"qk_norm": "layer_norm"}, "qk_norm"),
        (SD3 | {"pos_embed_max_size": None}, "pos_embed_max_size"),
        (SD3 | {"context_refiner": 2, "colour": 1}, "context_refiner.*colour"),
        (SD3 | {"caption_projection_dim": 16}, "attention_head_dim = 32, got 16"),
    ],
)
def test_sd3_refuses_what_is_not_ported(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        MlxSD3.from_config(config)


@pytest.mark.parametrize(
    ("config", "said"),
    [(FLUX | {"axes_dims_rope": (4, 4, 4)}, "attention_head_dim = 16"), (FLUX | {"qk_norm": "none"}, "qk_norm")],
)
def test_flux_refuses_what_is_not_ported(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        MlxFlux.from_config(config)


def test_sd3_names_inputs_that_do_not_fit() -> None:
    model = MlxSD3.from_config(SD3)
    x, times, prompt, pooled = map(to_mlx, inputs_sd3(model.config))
    with pytest.raises(BackboneError, match=r"timestep \(2,\) in place of \(3\).*pooled_projections"):
        model(x, times[:2], prompt, pooled[:, :-1])
    with pytest.raises(BackboneError, match="multiples of 2, got 7 x 12"):
        model(x[:, :-1], times, prompt, pooled)
    with pytest.raises(BackboneError, match="7 x 7 patches, and the latent has 4 x 8"):
        model(mx.zeros((3, 8, 16, 4)), times, prompt, pooled)


def test_flux_names_inputs_that_do_not_fit() -> None:
    inputs = {name: to_mlx(value) for name, value in inputs_flux(True).items()}
    with pytest.raises(BackboneError, match="no guidance_embeds"):
        MlxFlux.from_config(FLUX)(**inputs)
    model = MlxFlux.from_config(FLUX | {"guidance_embeds": True})
    with pytest.raises(BackboneError, match=r"img_ids \(63, 3\) in place of \(64, 3\)"):
        model(**inputs | {"img_ids": inputs["img_ids"][1:]})
    inputs.pop("guidance")
    with pytest.raises(BackboneError, match="give it guidance"):
        model(**inputs)


def test_float16_of_the_prompt_stays_finite(tmp_path: Path) -> None:
    """Where the tokens of the prompt leave the range of float16 they are clipped, as in diffusers."""
    model = randomise(SD3Transformer2DModel(**SD3))
    with torch.no_grad():
        model.transformer_blocks[0].ff_context.net[2].bias.fill_(6e4)
        model.context_embedder.bias.fill_(6e4)
    inputs = inputs_sd3(model.config)
    got = load_module(save(model, tmp_path), "float16")(*map(to_mlx, inputs))
    assert bool(mx.isfinite(got).all())
    assert psnr(run_sd3(model, inputs), got) > 20
