"""`AutoencoderKL` and `AutoencoderTiny` on MLX against diffusers' own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
from diffusers import AutoencoderKL, AutoencoderTiny
from mlx_parity import LIMIT, draw, psnr, randomise, relative, save, to_mlx
from safetensors.torch import load_file, save_file

import skipstone_pebble
from skipstone.errors import BackboneError, ModelError
from skipstone.integrations.mlx.autoencoder import AutoencoderKL as MlxKL
from skipstone.integrations.mlx.autoencoder_tiny import AutoencoderTiny as MlxTiny
from skipstone.integrations.mlx.loading import load_module

KL: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (16, 32, 32),
    "norm_num_groups": 8,
    "layers_per_block": 2,
}
KL_OPTIONS: dict[str, dict[str, Any]] = {
    "stable diffusion": {},
    "sd3 and flux": {"latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1},
    "no attention": {"mid_block_add_attention": False, "act_fn": "mish"},
    "another number of channels": {"in_channels": 1, "out_channels": 2, "layers_per_block": 1},
}
TINY: dict[str, Any] = {
    "encoder_block_out_channels": (16, 16, 16),
    "decoder_block_out_channels": (16, 16, 16),
    "num_encoder_blocks": (1, 2, 0),
    "num_decoder_blocks": (2, 1, 0),
}
TINY_OPTIONS: dict[str, dict[str, Any]] = {"taesd": {}, "other": {"latent_channels": 16, "act_fn": "gelu"}}


@torch.inference_mode()
def parts(model: Any, pictures: torch.Tensor, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    if isinstance(model, AutoencoderTiny):
        return {"latents": model.encode(pictures).latents, "pictures": model.decode(latents).sample}
    found = model.encode(pictures).latent_dist
    return {"mean": found.mean, "logvar": found.logvar, "pictures": model.decode(latents).sample}


def mlx_parts(module: Any, pictures: torch.Tensor, latents: torch.Tensor) -> dict[str, Any]:
    encoded, decoded = module.encode(to_mlx(pictures)), module.decode(to_mlx(latents))
    if isinstance(module, MlxTiny):
        return {"latents": encoded, "pictures": decoded}
    return {"mean": encoded[0], "logvar": encoded[1], "pictures": decoded}


@pytest.mark.parametrize(
    ("cls", "options"),
    [(AutoencoderKL, KL | more) for more in KL_OPTIONS.values()]
    + [(AutoencoderTiny, TINY | more) for more in TINY_OPTIONS.values()],
    ids=[*KL_OPTIONS, *TINY_OPTIONS],
)
@pytest.mark.parametrize("size", [(8, 8), (6, 10)])
def test_they_compute_what_diffusers_computes(
    cls: Any, options: dict[str, Any], size: tuple[int, int], tmp_path: Path
) -> None:
    model = randomise(cls(**options))
    height, width = size
    given = (
        draw(2, options.get("in_channels", 3), 4 * height, 4 * width),
        draw(2, options.get("latent_channels", 4), height, width, seed=2),
    )
    expected, got = parts(model, *given), mlx_parts(load_module(save(model, tmp_path)), *given)
    assert expected.keys() == got.keys()
    assert max(relative(expected[name], got[name]) for name in expected) <= LIMIT


def test_the_variance_has_the_limits_of_diffusers(tmp_path: Path) -> None:
    model = randomise(AutoencoderKL(**KL))
    with torch.no_grad():
        model.quant_conv.weight.mul_(1e4)  # type: ignore[union-attr]
    pictures = draw(1, 3, 16, 16)
    expected = parts(model, pictures, draw(1, 4, 4, 4))["logvar"]
    got = load_module(save(model, tmp_path)).encode(to_mlx(pictures))[1]
    assert (float(expected.min()), float(expected.max())) == (got.min().item(), got.max().item()) == (-30, 20)


def test_names_of_attention_before_diffusers_0_15(tmp_path: Path) -> None:
    """The files of Stable Diffusion 1.5 have them."""
    model = randomise(AutoencoderKL(**KL))
    latents = draw(1, 4, 4, 4)
    file = save(model, tmp_path) / "diffusion_pytorch_model.safetensors"
    new = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}
    state = load_file(file)
    for name in list(state):
        for a, b in new.items():
            if a in name:
                state[name.replace(a, b)] = state.pop(name)
    save_file(state, file)
    assert sum(".proj_attn." in name for name in state) == 4
    expected = parts(model, draw(1, 3, 16, 16), latents)["pictures"]
    assert relative(expected, load_module(tmp_path).decode(to_mlx(latents))) <= LIMIT


def test_pebbles_own() -> None:
    folder = skipstone_pebble.path("pebble") / "vae"
    model = AutoencoderTiny.from_pretrained(folder).float().eval()
    pictures, latents = draw(1, 3, 32, 32), draw(1, 8, 4, 4)
    expected, single = parts(model, pictures, latents), mlx_parts(load_module(folder), pictures, latents)
    assert max(relative(expected[name], single[name]) for name in expected) <= LIMIT
    for dtype, floor in (("float16", 55), ("bfloat16", 38)):
        got = mlx_parts(load_module(folder, dtype), pictures, latents)
        assert got["pictures"].dtype == getattr(mx, dtype)
        assert min(psnr(single[name], got[name]) for name in single) >= floor


def test_half_precision_and_quantised_weights(tmp_path: Path) -> None:
    model = randomise(AutoencoderKL(**KL))
    given = draw(1, 3, 32, 32), draw(1, 4, 8, 8)
    expected = parts(model, *given)
    save(model, tmp_path)
    for dtype, bits, floor in (("float16", None, 50), ("bfloat16", None, 35), ("float32", 8, 50), ("float32", 4, 25)):
        module = load_module(tmp_path, dtype, bits)
        assert psnr(expected["pictures"], module.decode(to_mlx(given[1]))) >= floor
        assert module.report.bits == bits
        assert len(module.report.quantised) == (8 if bits else 0)


def test_what_is_not_ported_or_does_not_fit() -> None:
    with pytest.raises(ModelError, match=r"AutoencoderKL.*down_block_types.*AttnDownEncoderBlock2D"):
        MlxKL.from_config(KL | {"down_block_types": ["AttnDownEncoderBlock2D"] * 3})
    with pytest.raises(ModelError, match="up_block_types: expected a value for each of the 3 blocks, got 2"):
        MlxKL.from_config(KL | {"up_block_types": ["UpDecoderBlock2D"] * 2})
    with pytest.raises(ModelError, match=r"AutoencoderTiny.*upsample_fn"):
        MlxTiny.from_config(TINY | {"upsample_fn": "bilinear"})
    with pytest.raises(ModelError, match="decoder_block_out_channels"):
        MlxTiny.from_config(TINY | {"decoder_block_out_channels": [16]})
    for module in (MlxKL.from_config(KL), MlxTiny.from_config(TINY)):
        with pytest.raises(BackboneError, match=r"latents \(batch, height, width, 4\), got \(1, 4, 8, 8\)"):
            module.decode(mx.zeros((1, 4, 8, 8)))
        with pytest.raises(BackboneError, match=r"pictures \(batch, height, width, 3\), got \(8, 8, 3\)"):
            module.encode(mx.zeros((8, 8, 3)))
