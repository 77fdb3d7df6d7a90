"""Folders for MLX: what is read, what is refused, and what the message says."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
import mlx.nn as nn
from diffusers import UNet2DConditionModel
from mlx.utils import tree_flatten
from mlx_parity import draw, psnr, randomise, save, to_mlx
from safetensors.torch import load_file, save_file

from skipstone.errors import MissingPackage, ModelError
from skipstone.integrations.mlx import loading
from skipstone.integrations.mlx.loading import LoadReport, find_weights, load_module

STEM = "diffusion_pytorch_model"
UNET: dict[str, Any] = {
    "block_out_channels": (32, 64),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 48,
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "attention_head_dim": 4,
}


@pytest.fixture(scope="module")
def model() -> Any:
    return randomise(UNet2DConditionModel(**UNET))


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    return save(model, tmp_path / "unet")


def weights(module: Any) -> dict[str, Any]:
    return dict(tree_flatten(module.parameters()))


def assert_has_weights(module: Any, model: Any, dtype: torch.dtype = torch.float32) -> None:
    """Every parameter, bit for bit."""
    found, expected = weights(module), model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in found.items():
        array = value.transpose(0, 3, 1, 2) if value.ndim == 4 else value
        got = torch.tensor(array.astype(mx.float32).tolist())
        assert torch.equal(got, expected[name].to(dtype).float()), name


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_those_of_the_file(dtype: str, folder: Path, model: Any) -> None:
    module = load_module(folder, dtype)
    assert {value.dtype for value in weights(module).values()} == {getattr(mx, dtype)}
    assert_has_weights(module, model, getattr(torch, dtype))
    assert module.report == LoadReport(folder, (f"{STEM}.safetensors",), dtype)
    assert str(module.report) == f"unet: {dtype}"
    assert not module.training


def test_shards(model: Any, tmp_path: Path) -> None:
    folder = save(model, tmp_path / "unet", max_shard_size="100KB")
    assert len(find_weights(folder)) > 2
    assert_has_weights(load_module(folder), model)
    gone = find_weights(folder)[1]
    gone.unlink()
    with pytest.raises(ModelError, match=f"missing: {gone.name}"):
        load_module(folder)


def test_the_variant_fp16_is_read_where_it_fits(model: Any, tmp_path: Path) -> None:
    """It is taken for float16, and where there is nothing else."""
    half = UNet2DConditionModel(**UNET)
    half.load_state_dict(model.state_dict())
    folder = save(half.half(), tmp_path / "unet", variant="fp16")
    assert [file.name for file in find_weights(folder)] == [f"{STEM}.fp16.safetensors"]
    assert_has_weights(load_module(folder), half)
    save(model, folder)
    assert [file.name for file in find_weights(folder)] == [f"{STEM}.safetensors"]
    assert [file.name for file in find_weights(folder, "float16")] == [f"{STEM}.fp16.safetensors"]
    save(half, tmp_path / "shards", variant="fp16", max_shard_size="100KB")
    assert_has_weights(load_module(tmp_path / "shards"), half)


def test_convolutions_are_laid_out_once(folder: Path) -> None:
    """In the order of MLX in memory too: a transposed view would be copied at each call."""
    assert [name for name, value in weights(load_module(folder)).items() if not memoryview(value).c_contiguous] == []


def test_missing_unexpected_and_misshapen_weights_are_all_listed(folder: Path) -> None:
    file = folder / f"{STEM}.safetensors"
    state = load_file(file)
    gone = ["conv_in.bias", "mid_block.resnets.0.norm1.weight", "time_embedding.linear_1.weight"]
    for name in gone:
        del state[name]
    state |= {"adapter.weight": torch.zeros(2), "conv_out.weight": torch.zeros(4, 32, 1, 1)}
    state["conv_norm_out.bias"] = torch.zeros(32, dtype=torch.int32)
    save_file(state, file)
    with pytest.raises(ModelError) as raised:
        load_module(folder)
    said = str(raised.value)
    assert [name for name in gone if f"missing: {name}" not in said] == []
    assert "unexpected: adapter.weight" in said
    assert "conv_out.weight: expected (4, 32, 3, 3), got (4, 32, 1, 1)" in said
    assert "conv_norm_out.bias: expected floating point" in said


def test_long_lists_are_cut(folder: Path) -> None:
    save_file({f"a{i}": torch.zeros(1) for i in range(5000)}, folder / f"{STEM}.safetensors")
    with pytest.raises(ModelError, match=r"and \d{4} more") as raised:
        load_module(folder)
    assert len(str(raised.value)) < 20_000


def test_damaged_files(folder: Path) -> None:
    file = folder / f"{STEM}.safetensors"
    raw = file.read_bytes()
    for damaged in (b"", raw[:5], raw[:1000], raw[:-1], b"\xff" * 100, b"{}"):
        file.write_bytes(damaged)
        with pytest.raises(ModelError, match="Fetch it again"):
            load_module(folder)


def change_config(folder: Path, **options: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) | options
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}), encoding="utf-8")


def test_classes_that_are_not_ported(folder: Path) -> None:
    change_config(folder, _class_name="AutoencoderKLWan")
    with pytest.raises(ModelError, match="AutoencoderKLWan is not ported") as raised:
        load_module(folder)
    assert [name for name in loading.PORTED if name not in str(raised.value)] == []
    change_config(folder, _class_name="Unet2DConditionModel")
    with pytest.raises(ModelError, match="Did you mean 'UNet2DConditionModel'"):
        load_module(folder)
    for wrong in ({"_class_name": ...}, {"_class_name": ..., "architectures": []}, {"_class_name": 3}):
        change_config(folder, **wrong)
        with pytest.raises(ModelError, match=r"_class_name|3 is not ported"):
            load_module(folder)


def test_every_ported_class_is_there() -> None:
    for name in loading.PORTED:
        assert loading.find_network({"_class_name": name}, "").__name__ == name
        assert loading.find_network({"architectures": [name]}, "").__name__ == name


def test_a_refused_option_names_the_folder(folder: Path) -> None:
    change_config(folder, class_embed_type="timestep")
    with pytest.raises(ModelError, match=rf"{folder}.*class_embed_type"):
        load_module(folder)


HOSTILE = (0, -1, 7, 2**40, None, "x", [], [1], [0, 0], [3, 5, 7], 1.5, float("nan"), True, {}, ["DownBlock2D"] * 2)


@pytest.mark.parametrize("name", ["UNet2DConditionModel", "AutoencoderKL", "AutoencoderTiny", "CLIPTextModel"])
def test_any_option_of_any_value_builds_a_network_or_is_refused_in_a_sentence(name: str) -> None:
    cls = loading.find_network({"_class_name": name}, "")
    built, refused = 0, []
    for option in fields(cls.Config):
        small = UNET if name.startswith("UNet") else {}
        for value in HOSTILE:
            try:
                built += bool(weights(cls.from_config(small | {option.name: value})))
            except ModelError as e:
                refused.append(str(e))
        if option.name in cls.POSITIVE - cls.IGNORED:
            zero = [0] if "block_out" in option.name else 0
            with pytest.raises(ModelError, match=f"{option.name}.*1..10,000,000, got 0"):
                cls.from_config(small | {option.name: zero})
    assert [message for message in refused if not message.startswith(name)] == []
    assert built > 10


def test_folders_that_are_none(folder: Path, tmp_path: Path) -> None:
    for path, said in ((tmp_path / "none", "got no folder"), (tmp_path, "got no config.json")):
        with pytest.raises(ModelError, match=said):
            load_module(path)
    (folder / "config.json").write_text("[", encoding="utf-8")
    with pytest.raises(ModelError, match="expected JSON"):
        load_module(folder)


def test_weights_of_other_formats(folder: Path) -> None:
    (folder / f"{STEM}.safetensors").rename(folder / f"{STEM}.bin")
    with pytest.raises(ModelError, match=rf"got {STEM}.bin.*save_pretrained"):
        load_module(folder)
    (folder / f"{STEM}.bin").unlink()
    with pytest.raises(ModelError, match="got no weights"):
        load_module(folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"weight_map": {"a": "../b.safetensors"}}', "names of files beside it"),
        ('{"weight_map": {"a": 1}}', "expected text"),
        ("{}", "weight_map: expected an object"),
        ("{", "expected JSON"),
    ],
)
def test_a_damaged_index(content: str, said: str, folder: Path) -> None:
    (folder / f"{STEM}.safetensors").unlink()
    (folder / f"{STEM}.safetensors.index.json").write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=said):
        load_module(folder)


def test_precisions_that_are_none(folder: Path) -> None:
    with pytest.raises(ModelError, match="Did you mean 'float16'"):
        load_module(folder, "flaot16")
    with pytest.raises(ModelError, match="Expected 8 or 4 bits, or None, got 5"):
        load_module(folder, bits=5)


@pytest.mark.parametrize(("bits", "floor"), [(8, 45), (4, 20)])
def test_quantised_weights(bits: int, floor: float, folder: Path, model: Any) -> None:
    """Linear layers whose rows are whole groups; the report names the others."""
    module = load_module(folder, "float16", bits)
    layers = dict(module.named_modules())
    linear = {name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    fits = {name for name in linear if model.get_submodule(name).in_features % 32 == 0}
    assert fits != linear
    assert set(module.report.quantised) == fits
    assert set(module.report.unquantised) == linear - fits
    assert all(isinstance(layers[name], nn.QuantizedLinear) and layers[name].bits == bits for name in fits)
    assert all(type(layers[name]) is nn.Linear for name in linear - fits)
    assert f"{len(fits)} linear layers in {bits} bits, {len(linear - fits)} stayed in float16" in str(module.report)
    assert loading.is_quantised(module)
    assert not loading.is_quantised(load_module(folder))
    x, context = draw(1, 4, 8, 8), draw(1, 7, 48, seed=2)
    with torch.inference_mode():
        expected = model(x, 500, context).sample
    assert psnr(expected, module(to_mlx(x), 500, to_mlx(context))) >= floor


def test_mlx_that_is_missing_or_too_old(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(loading, "version", lambda name: "0.5.1")
    with pytest.raises(MissingPackage, match=rf"Expected MLX {loading.MIN_MLX} or later, got 0.5.1.*pip install"):
        load_module(tmp_path)

    def absent(name: str) -> str:
        raise loading.PackageNotFoundError(name)

    monkeypatch.setattr(loading, "version", absent)
    with pytest.raises(MissingPackage, match=r"MLX is not installed. Type: pip install"):
        load_module(tmp_path)


@pytest.mark.parametrize(("platform", "package"), [("linux", r"mlx\[cpu\]"), ("darwin", "mlx")])
def test_mlx_without_its_library(platform: str, package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On Linux the package alone has none: it comes with `mlx[cpu]`."""
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(MissingPackage, match=f'cannot be imported.*pip install "{package}>='):
        load_module(tmp_path)
