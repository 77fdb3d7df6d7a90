"""LoRAs merged on MLX change the weights that diffusers changes, each by the same amount."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
import numpy as np
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.utils import convert_state_dict_to_kohya
from mlx.utils import tree_flatten
from mlx_parity import draw, randomise
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import skipstone_pebble
from skipstone.errors import ModelError
from skipstone.integrations.mlx.loading import load_module, quantise
from skipstone.integrations.mlx.lora import load_lora
from skipstone.integrations.mlx.unet import UNet2DConditionModel as MlxUNet

FOLDER = Path("shared", "data", "weights_lora_sd")  # beside the repository, or further up
SHARED = next((path / FOLDER for path in Path(__file__).parents if (path / FOLDER).is_dir()), FOLDER)
LIMIT = 1e-6  # of the largest value of a weight
UNET: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
    "layers_per_block": 2,
    "attention_head_dim": 4,
}
XL = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 24,
    "use_linear_projection": True,
}
CLIP: dict[str, Any] = {
    "vocab_size": 1049,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 24,
    "projection_dim": 24,
}
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj"]
MANY = [
    *ATTENTION,
    "proj_in",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "conv1",
    "conv_shortcut",
    "time_emb_proj",
    "conv",
]


def build(kind: str = "") -> Any:
    """A small pipeline of random weights, the same at each call."""
    tokenizer = CLIPTokenizer.from_pretrained(skipstone_pebble.path("pebble") / "tokenizer")
    unet = randomise(UNet2DConditionModel(**XL if kind == "xl" else UNET))
    encoder = randomise(CLIPTextModel(CLIPTextConfig(**CLIP)), 1)
    if kind == "xl":
        second = randomise(CLIPTextModelWithProjection(CLIPTextConfig(**CLIP)), 2)
        return StableDiffusionXLPipeline(
            AutoencoderTiny(), encoder, second, tokenizer, tokenizer, unet, DDIMScheduler()
        )
    return StableDiffusionPipeline(
        AutoencoderTiny(), encoder, tokenizer, unet, DDIMScheduler(), None, None, requires_safety_checker=False
    )


def components(pipeline: Any) -> dict[str, Any]:
    names = ("unet", "text_encoder", "text_encoder_2")
    return {name: pipeline.components[name] for name in names if name in pipeline.components}


def fused(pipeline: Any, file: Path, scale: float = 1.0) -> dict[str, dict[str, torch.Tensor]]:
    """All weights after diffusers has merged a LoRA."""
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(lora_scale=scale, components=pipeline._lora_loadable_modules)
    pipeline.unload_lora_weights()
    return {name: dict(module.state_dict()) for name, module in components(pipeline).items()}


def in_torch_layout(module: Any) -> dict[str, torch.Tensor]:
    found = {}
    for name, value in tree_flatten(module.parameters()):
        array = torch.from_numpy(np.array(value.astype(mx.float32)))
        found[name] = array.permute(0, 3, 1, 2) if array.ndim == 4 else array
    return found


def on_mlx(pipeline: Any, folder: Path) -> dict[str, Any]:
    found = {}
    for name, module in components(pipeline).items():
        module.save_pretrained(folder / name)
        found[name] = load_module(folder / name)
    return found


def assert_same_weights(
    module: Any, expected: Mapping[str, torch.Tensor], before: Mapping[str, torch.Tensor]
) -> set[str]:
    """Every weight is the expected one; returns the names of those that are not as before."""
    got = in_torch_layout(module)
    expected = {module.rename(name): value.float() for name, value in expected.items() if module.rename(name)}
    assert got.keys() == expected.keys()
    far = [name for name in got if (got[name] - expected[name]).abs().max() > LIMIT * expected[name].abs().max()]
    assert far == []
    return {name for name in got if not torch.equal(got[name], before[name])}


@dataclass
class Adapter:
    """LoRA matrices of a pipeline's components, in the names of peft."""

    unet: dict[str, torch.Tensor]
    text_encoder: dict[str, torch.Tensor]
    metadata: dict[str, Any]


def make_adapter(targets: list[str], rank: int = 4, **options: Any) -> Adapter:
    pipeline, states, metadata = build(), [], []
    for module, names in ((pipeline.unet, targets), (pipeline.text_encoder, [*TEXT, "fc1"])):
        config = LoraConfig(r=rank, target_modules=names, init_lora_weights=False, **options)
        module.add_adapter(config)
        state = get_peft_model_state_dict(module)
        states.append({name: draw(*value.shape, seed=i) * 0.1 for i, (name, value) in enumerate(state.items())})
        metadata.append(module.peft_config["default"].to_dict())
    return Adapter(
        *states, {"unet_lora_adapter_metadata": metadata[0], "text_encoder_lora_adapter_metadata": metadata[1]}
    )


def write_peft(adapter: Adapter, folder: Path, **options: Any) -> Path:
    StableDiffusionPipeline.save_lora_weights(folder, adapter.unet, adapter.text_encoder, **options)
    return folder / "pytorch_lora_weights.safetensors"


def write_with_settings(adapter: Adapter, folder: Path) -> Path:
    return write_peft(adapter, folder, **adapter.metadata)


def write_diffusers(adapter: Adapter, folder: Path) -> Path:
    """The names of diffusers 0.21 to 0.24."""
    found = {}
    for part, state, middle in (
        ("unet", adapter.unet, "lora"),
        ("text_encoder", adapter.text_encoder, "lora_linear_layer"),
    ):
        for name, value in state.items():
            new = name.replace("lora_A", f"{middle}.down").replace("lora_B", f"{middle}.up")
            found[f"{part}.{new}"] = value
    save_file(found, folder / "diffusers.safetensors")
    return folder / "diffusers.safetensors"


def write_old_diffusers(adapter: Adapter, folder: Path) -> Path:
    """The names of diffusers 0.12 to 0.20, for attention alone."""
    found = {}
    for name, value in adapter.unet.items():
        path, side = name.removesuffix(".weight").rsplit(".", 1)
        path = path.replace(".to_out.0", ".to_out")
        head, last = path.rsplit(".", 1)
        found[f"unet.{head}.processor.{last}_lora.{'down' if side == 'lora_A' else 'up'}.weight"] = value
    save_file(found, folder / "old.safetensors")
    return folder / "old.safetensors"


def write_kohya(adapter: Adapter, folder: Path) -> Path:
    names = {f"unet.{name}": value for name, value in adapter.unet.items()}
    names |= {f"text_encoder.{name}": value for name, value in adapter.text_encoder.items()}
    found = {}
    for name, value in convert_state_dict_to_kohya(names).items():
        name = name.replace("lora_te_", "lora_te_text_model_") if "lora_te_text_model" not in name else name
        found[name] = value * 0 + 3.0 if name.endswith(".alpha") else value
    save_file({name: value.contiguous() for name, value in found.items()}, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


FORMATS: dict[str, tuple[Callable[[Adapter, Path], Path], list[str], dict[str, Any]]] = {
    "peft": (write_peft, MANY, {}),
    "peft with settings": (write_with_settings, MANY, {"lora_alpha": 6, "alpha_pattern": {"to_q": 2}}),
    "peft with the root of the rank": (write_with_settings, ATTENTION, {"lora_alpha": 3, "use_rslora": True}),
    "diffusers": (write_diffusers, MANY, {}),
    "old diffusers": (write_old_diffusers, ATTENTION, {}),
    "kohya": (write_kohya, MANY, {}),
}


@pytest.mark.parametrize("name", FORMATS)
def test_they_change_what_diffusers_changes(name: str, tmp_path: Path) -> None:
    scale = 0.4
    write, targets, options = FORMATS[name]
    file = write(make_adapter(targets, **options), tmp_path)
    pipeline = build()
    modules = on_mlx(pipeline, tmp_path)
    before = {part: in_torch_layout(module) for part, module in modules.items()}
    report = load_lora(modules, file, scale)
    expected = fused(pipeline, file, scale)
    changed = {
        f"{part}.{path}"
        for part, module in modules.items()
        for path in assert_same_weights(module, expected[part], before[part])
    }
    assert changed == set(report.changed)
    assert len(changed) > 50


SGM = {  # layers of SDXL by kohya's names
    "lora_unet_input_blocks_1_0_in_layers_2": (16, 16, 3),
    "lora_unet_input_blocks_2_0_out_layers_3": (16, 16, 3),
    "lora_unet_input_blocks_3_0_op": (16, 16, 3),
    "lora_unet_input_blocks_4_0_emb_layers_1": (32, 64, 0),
    "lora_unet_input_blocks_4_0_skip_connection": (32, 16, 1),
    "lora_unet_input_blocks_5_1_transformer_blocks_0_attn1_to_q": (32, 32, 0),
    "lora_unet_middle_block_0_in_layers_2": (32, 32, 3),
    "lora_unet_middle_block_1_proj_in": (32, 32, 0),
    "lora_unet_middle_block_2_in_layers_2": (32, 32, 3),
    "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_0_proj": (256, 32, 0),
    "lora_unet_output_blocks_2_1_transformer_blocks_0_attn2_to_out_0": (32, 32, 0),
    "lora_unet_output_blocks_2_2_conv": (32, 32, 3),
    "lora_unet_output_blocks_5_0_skip_connection": (16, 32, 1),
    "lora_unet_input_blocks_0_0": (16, 4, 3),
    "lora_unet_out_2": (4, 16, 3),
    "lora_unet_time_embed_0": (64, 16, 0),
    "lora_unet_label_emb_0_2": (64, 64, 0),
    "lora_te1_text_model_encoder_layers_1_mlp_fc1": (64, 32, 0),
    "lora_te2_text_model_encoder_layers_0_self_attn_out_proj": (32, 32, 0),
}


def test_kohyas_names_of_sdxl(tmp_path: Path) -> None:
    found = {}
    for i, (name, (out, width, kernel)) in enumerate(SGM.items()):
        down, up = ((kernel, kernel), (1, 1)) if kernel else ((), ())
        found[f"{name}.lora_down.weight"] = draw(2, width, *down, seed=i) * 0.1
        found[f"{name}.lora_up.weight"] = draw(out, 2, *up, seed=-i - 1) * 0.1
        found[f"{name}.alpha"] = torch.tensor(1.5)
    file = tmp_path / "xl.safetensors"
    save_file(found, file)
    pipeline = build("xl")
    modules = on_mlx(pipeline, tmp_path)
    before = {part: in_torch_layout(module) for part, module in modules.items()}
    report = load_lora(modules, file)
    expected = fused(pipeline, file)
    changed = [assert_same_weights(module, expected[part], before[part]) for part, module in modules.items()]
    assert list(map(len, changed)) == [17, 1, 1]
    assert len(report.changed) == len(SGM)


@pytest.mark.parametrize("student", ["pebble-consistency-2", "pebble-progressive-1"])
def test_pebbles_students(student: str, tmp_path: Path) -> None:
    folder = skipstone_pebble.path("pebble")
    file = Path(skipstone_pebble.__file__).parent / "students" / student
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    module = load_module(folder / "unet")
    before = in_torch_layout(module)
    report = load_lora(module, file)
    pipeline.load_lora_weights(file)
    pipeline.fuse_lora(components=["unet"])
    pipeline.unload_lora_weights()
    changed = assert_same_weights(module, pipeline.unet.state_dict(), before)
    assert changed == {name.removeprefix("unet.") for name in report.changed}
    assert len(changed) == len(load_file(file / "pytorch_lora_weights.safetensors")) // 2


SD15 = {"cross_attention_dim": 768, "sample_size": 64}
SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared LoRAs are not here")
def test_shared_loras_of_stable_diffusion() -> None:
    """Files without names: their pairs stand in the order of the modules of diffusers 0.4 to 0.13."""
    from skipstone.integrations.mlx.clip import CLIPTextModel as MlxCLIP
    from skipstone.integrations.mlx.lora import find_changes

    unet, encoder = MlxUNet.from_config(SD15), MlxCLIP.from_config(CLIP_L)
    file = SHARED / "lora_disney.safetensors"
    state = load_file(file)
    changes = find_changes({"unet": unet, "text_encoder": encoder}, file)
    names = [f"{part.component}.{part.path}" for part in changes.parts]
    assert len(names) == len(set(names)) == 144 + 48
    places = [
        *((f"down_blocks.{i}", j) for i in range(3) for j in range(2)),
        *((f"up_blocks.{i}", j) for i in range(1, 4) for j in range(3)),
        ("mid_block", 0),
    ]
    blocks = [f"unet.{block}.attentions.{j}.transformer_blocks.0" for block, j in places]
    assert [name.removesuffix(".attn1.to_q") for name in names[:144:9]] == blocks
    assert [name.removeprefix(f"{blocks[0]}.") for name in names[:9]] == [
        *(f"attn1.{name}" for name in ATTENTION),
        "ff.net.0.proj",
        *(f"attn2.{name}" for name in ATTENTION),
    ]
    assert [name.rsplit(".", 3)[1:] for name in names[144:152]] == [
        [str(i), "self_attn", name] for i in range(2) for name in ("k_proj", "v_proj", "q_proj", "out_proj")
    ]
    assert changes.file.tokens == ("<s1>", "<s2>")
    for name, number in (("unet", 143), ("unet", 60), ("text_encoder", 47)):
        part = [one for one in changes.parts if one.component == name][number]
        expected = state[f"{name}:{number}:up"] @ state[f"{name}:{number}:down"]
        assert torch.equal(torch.from_numpy(np.array(part.delta())), expected)
    second = find_changes(MlxUNet.from_config(SD2), SHARED / "gors_color_unet.pt")
    assert len(second.parts) == 128
    assert second.parts[-1].path == "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    with pytest.raises(ModelError, match="does not fit"):
        find_changes(unet, SHARED / "gors_color_unet.pt")


ORDER = [  # of the modules of diffusers 0.4 to 0.13, in the small network
    f"{block}.attentions.{i}.transformer_blocks.0.{name}"
    for block, i in [
        *((f"down_blocks.{block}", i) for block in range(2) for i in range(2)),
        *((f"up_blocks.{block}", i) for block in range(2) for i in range(3)),
        ("mid_block", 0),
    ]
    for name in [*(f"attn1.{one}" for one in ATTENTION), "ff.net.0.proj", *(f"attn2.{one}" for one in ATTENTION)]
]


def sequence(names: list[str], before: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Up and down of each layer."""
    found = []
    for i, name in enumerate(names):
        out, width = before[f"{name}.weight"].shape
        found += [draw(out, 1, seed=i), draw(1, width, seed=-i - 1)]
    return found


@pytest.mark.parametrize("form", ["safetensors", "list", "list without GEGLU"])
def test_files_without_names_follow_the_order_of_the_network(form: str, tmp_path: Path) -> None:
    module, before = small()
    names = [name for name in ORDER if form != "list without GEGLU" or "ff" not in name]
    values = sequence(names, before)
    file = tmp_path / "lora.safetensors"
    if form == "safetensors":
        sides = {f"unet:{i // 2}:{('up', 'down')[i % 2]}": value for i, value in enumerate(values)}
        save_file(sides | {"<s1>": draw(32)}, file, {"<s1>": "<embed>"})
    else:
        file = tmp_path / "lora.pt"
        torch.save([torch.nn.Parameter(value) for value in values], file)
    report = load_lora(module, file, 0.5)
    expected = dict(before)
    for i, name in enumerate(names):
        expected[f"{name}.weight"] = before[f"{name}.weight"] + 0.5 * values[2 * i] @ values[2 * i + 1]
    assert assert_same_weights(module, expected, before) == {f"{name}.weight" for name in names}
    assert report.tokens == (("<s1>",) if form == "safetensors" else ())


def test_files_without_names_that_do_not_fit(tmp_path: Path) -> None:
    module, before = small()
    values = sequence(ORDER, before)
    torch.save(values[:-2], tmp_path / "short.pt")
    torch.save(values[:-1], tmp_path / "odd.pt")
    torch.save(values[::-1], tmp_path / "reversed.pt")
    sides = {f"unet:{i // 2}:{('up', 'down')[i % 2]}": value for i, value in enumerate(values)}
    save_file({name: value for name, value in sides.items() if name != "unet:3:up"}, tmp_path / "half.safetensors")
    save_file({name: value for name, value in sides.items() if ":7:" not in name}, tmp_path / "gap.safetensors")
    save_file({f"text_encoder:0:{side}": draw(2, 2) for side in ("up", "down")}, tmp_path / "text.safetensors")
    for name, said in {
        "short.pt": "98 layers of a network that it does not name",
        "odd.pt": "expected pairs of matrices, got 197 matrices",
        "reversed.pt": "does not fit",
        "half.safetensors": "expected up and down of unet:3",
        "gap.safetensors": "expected up and down of unet:7",
        "text.safetensors": "1 layers of text_encoder, which is not given",
    }.items():
        with pytest.raises(ModelError, match=said):
            load_lora(module, tmp_path / name)


def small() -> tuple[Any, dict[str, torch.Tensor]]:
    module = MlxUNet.from_config(UNET)
    return module, in_torch_layout(module)


def pair(path: str, out: int, width: int, rank: int = 2) -> dict[str, torch.Tensor]:
    return {f"unet.{path}.lora_A.weight": draw(rank, width), f"unet.{path}.lora_B.weight": draw(out, rank)}


QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
GOOD = pair(QUERY, 32, 32)
WRONG: dict[str, tuple[dict[str, torch.Tensor], list[str]]] = {
    "unknown layers": (
        GOOD | pair("mid_block.attentions.7.to_q", 32, 32) | {"unet.hello": torch.zeros(1)},
        ["mid_block.attentions.7.to_q.lora_A.weight", "mid_block.attentions.7.to_q.lora_B.weight", "unet.hello"],
    ),
    "another format": ({f"lora_unet_{QUERY.replace('.', '_')}.hada_w1_a": torch.zeros(2, 2)}, ["hada_w1_a"]),
    "dora": (GOOD | {f"unet.{QUERY}.lora_magnitude_vector": torch.zeros(32)}, ["lora_magnitude_vector"]),
    "other shapes": (
        pair(QUERY, 32, 48) | pair("mid_block.attentions.0.proj_in", 32, 32),
        [rf"{QUERY}: expected matrices for \(32, 32\), got \(2, 48\) and \(32, 2\)", r"proj_in.*\(32, 32, 1, 1\)"],
    ),
    "ranks that differ": (
        {f"unet.{QUERY}.lora_A.weight": draw(2, 32), f"unet.{QUERY}.lora_B.weight": draw(32, 3)},
        ["got"],
    ),
    "half a pair": ({f"unet.{QUERY}.lora_A.weight": draw(2, 32)}, [f"up or down is missing: unet.{QUERY}"]),
    "another component": (
        GOOD | {"text_encoder.a.lora_A.weight": draw(2, 2)},
        ["changes text_encoder, which is not given"],
    ),
    "nothing": ({}, ["without low-rank matrices"]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_does_not_fit_changes_nothing(name: str, tmp_path: Path) -> None:
    state, said = WRONG[name]
    module, before = small()
    save_file(state, tmp_path / "lora.safetensors")
    for one in said:
        with pytest.raises(ModelError, match=one):
            load_lora(module, tmp_path / "lora.safetensors")
    after = in_torch_layout(module)
    assert [key for key in before if not torch.equal(before[key], after[key])] == []


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    module, _ = small()
    save_file(GOOD, tmp_path / "lora.safetensors")
    raw = (tmp_path / "lora.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(raw[:-40])
    (tmp_path / "cut.pt").write_bytes(raw)
    torch.save({"a": Path()}, tmp_path / "code.pt")
    save_file(GOOD, tmp_path / "settings.safetensors", {"lora_adapter_metadata": "{"})
    save_file(GOOD, tmp_path / "dora.safetensors", {"lora_adapter_metadata": '{"unet.use_dora": true}'})
    for name, said in {
        "none.safetensors": "got no file",
        ".": "got no file",
        "cut.safetensors": "Fetch the LoRA again",
        "cut.pt": "Use a safetensors file",
        "code.pt": "Use a safetensors file",
        "settings.safetensors": "not JSON",
        "dora.safetensors": "unet.use_dora",
    }.items():
        with pytest.raises(ModelError, match=said):
            load_lora(module, tmp_path / name)


def test_a_component_can_be_left_out(tmp_path: Path) -> None:
    module, before = small()
    save_file(GOOD | {"text_encoder.a.lora_A.weight": draw(2, 2)}, tmp_path / "lora.safetensors")
    report = load_lora({"unet": module, "text_encoder": None}, tmp_path / "lora.safetensors")
    assert report.changed == (f"unet.{QUERY}.weight",)
    assert report.left_out == ("text_encoder",)
    after = in_torch_layout(module)
    assert [key for key in before if not torch.equal(before[key], after[key])] == [f"{QUERY}.weight"]


def test_quantised_weights_are_refused_and_merging_comes_first(tmp_path: Path) -> None:
    module, _ = small()
    save_file(GOOD, tmp_path / "lora.safetensors")
    load_lora(module, tmp_path / "lora.safetensors")
    quantise(module, 8)
    with pytest.raises(ModelError, match=r"quantised weights \(unet\).*without bits"):
        load_lora(module, tmp_path / "lora.safetensors")


def test_half_precision_is_kept(tmp_path: Path) -> None:
    pipeline = build()
    pipeline.unet.save_pretrained(tmp_path / "unet")
    module = load_module(tmp_path / "unet", "bfloat16")
    save_file(GOOD, tmp_path / "lora.safetensors")
    load_lora(module, tmp_path / "lora.safetensors")
    assert {value.dtype for _, value in tree_flatten(module.parameters())} == {mx.bfloat16}
