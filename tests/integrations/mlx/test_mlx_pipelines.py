"""Whole pipelines on MLX against diffusers' own: one folder, prompt and noise, the same latents and pictures."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("mlx.core")

import mlx.core as mx
from diffusers import DDIMScheduler, DiffusionPipeline
from integrations.guest.families import build

import skipstone
from skipstone import registry
from skipstone.engine.drivers import denoise_many
from skipstone.errors import GuestWarning, ModelError, PromptError, SpecError
from skipstone.integrations.mlx.families import pack, unpack
from skipstone.integrations.mlx.pipeline import MlxPipeline

STEPS, GUIDANCE, LIMIT = 5, 4.0, 2e-5
SOLVERS = {"sd15": "ddim", "sdxl": "ddim", "sd3": "euler", "flux": "euler"}
PROMPTS = ["red fox", "two boats"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines, saved by diffusers."""
    found = {}
    for name in SOLVERS:
        pipe = build(name)
        if SOLVERS[name] == "ddim":
            pipe.scheduler = DDIMScheduler.from_config(
                pipe.scheduler.config, timestep_spacing="trailing", clip_sample=False
            )
        found[name] = tmp_path_factory.mktemp("pipelines") / name
        pipe.save_pretrained(found[name])
    return found


def load_mlx(name: str, folder: Path, **options: Any) -> MlxPipeline:
    pipe = skipstone.mlx.load(folder, **{"guidance": GUIDANCE, **options})
    return pipe.sized(16, 16) if name == "flux" else pipe


def run_torch(name: str, folder: Path, noise: list[Any], **call: Any) -> tuple[torch.Tensor, Any]:
    """Latents (N, C, H, W) and pictures that diffusers makes of this noise."""
    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    x = torch.stack([torch.from_numpy(np.array(one)) for one in noise])
    if name == "flux":
        x = pipe._pack_latents(x, *x.shape)
    if name == "sd3":
        call["sigmas"] = np.linspace(1.0, 1 / STEPS, STEPS)
    call |= {"prompt": PROMPTS, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "height": 16, "width": 16}
    latents, pictures = (pipe(latents=x, output_type=kind, **call).images for kind in ("latent", "np"))
    if name == "flux":
        latents = pipe._unpack_latents(latents, 16, 16, pipe.vae_scale_factor)
    return latents, pictures


def relative(ours: Any, theirs: Any) -> float:
    ours, theirs = np.array(ours), np.array(theirs)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


# FLUX takes no negative prompt.
@pytest.mark.parametrize(
    ("name", "negative"), [*((name, "") for name in SOLVERS), *((n, "pale moon") for n in SOLVERS if n != "flux")]
)
def test_it_draws_what_diffusers_draws(name: str, negative: str, folders: dict[str, Path]) -> None:
    pipe = load_mlx(name, folders[name]).with_negative_prompt(negative)
    problems = [pipe.problem(text, seed, STEPS, "trailing") for seed, text in enumerate(PROMPTS)]
    solver, policy = registry.parse("solver", SOLVERS[name]), registry.parse("policy", "fixed")
    results = denoise_many(pipe.backbone, problems, solver, policy)
    more = {"negative_prompt": [negative] * 2} if negative else {}
    latents, pictures = run_torch(name, folders[name], [p.x for p in problems], **more)
    for result, latent, picture, pixels in zip(
        results, latents, pictures, pipe.decode([r.x for r in results]), strict=True
    ):
        assert relative(result.x, latent) <= LIMIT
        assert np.abs(pixels - picture).max() <= 1e-4
        assert result.run.cost == STEPS


def test_other_guidance_and_sizes_are_the_same_networks(folders: dict[str, Path]) -> None:
    pipe = load_mlx("sd15", folders["sd15"])
    wide = pipe.guided(1.0).sized(16, 24)
    assert wide.parts is pipe.parts
    assert wide.pixels == (16, 24)
    (image,) = wide("red fox", "fixed", steps=2).images
    assert image.size == (24, 16)
    assert wide.backbone.branches == 1
    for wrong in ((15, 16), (0, 16)):
        with pytest.raises(SpecError, match="multiples of 2 pixels"):
            pipe.sized(*wrong)


def test_the_shift_of_flux_depends_on_the_size(folders: dict[str, Path]) -> None:
    pipe = skipstone.mlx.load(folders["flux"])
    assert pipe.sized(16, 16).schedule != pipe.sized(64, 64).schedule


def test_packing_is_that_of_diffusers_and_has_an_inverse() -> None:
    x = torch.arange(2 * 3 * 4 * 6).reshape(2, 3, 4, 6).float()
    packed = DiffusionPipeline and build("flux")._pack_latents(x, 2, 3, 4, 6)
    nhwc = mx.array(x.permute(0, 2, 3, 1).contiguous().numpy())
    np.testing.assert_array_equal(np.array(pack(nhwc)), packed.numpy())
    np.testing.assert_array_equal(np.array(unpack(pack(nhwc), 4, 6)), np.array(nhwc))


def test_a_call_draws_a_batch_and_says_its_memory(folders: dict[str, Path]) -> None:
    pipe = load_mlx("sd15", folders["sd15"])
    made = pipe(PROMPTS, "third_order", seed=3, steps=5, solver="ddim")
    (alone,) = pipe(PROMPTS[1], "third_order", seed=4, steps=5, solver="ddim").images
    assert np.array_equal(np.asarray(made.images[1]), np.asarray(alone))
    assert made.peak_memory >= made.active_memory > 0
    with pytest.raises(PromptError, match="empty"):
        pipe(" ")


def edited(folder: Path, to: Path, **index: Any) -> Path:
    """A copy of a pipeline's folder with other entries in its index."""
    shutil.copytree(folder, to)
    path = to / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | index))
    return to


def test_folders_that_cannot_run(folders: dict[str, Path], tmp_path: Path) -> None:
    own = folders["sd15"]
    other = edited(own, tmp_path / "other", _class_name="StableDiffusionUpscalePipeline")
    with pytest.raises(ModelError, match=r"StableDiffusionUpscalePipeline, which is not ported.*FluxPipeline.*torch"):
        skipstone.mlx.load(other)
    with pytest.raises(ModelError, match="no folder"):
        skipstone.mlx.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="model_index"):
        skipstone.mlx.load(tmp_path / "empty")
    lost = edited(own, tmp_path / "lost")
    shutil.rmtree(lost / "vae")
    with pytest.raises(ModelError, match="component vae"):
        skipstone.mlx.load(lost)
    torn = edited(own, tmp_path / "torn")
    (torn / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        skipstone.mlx.load(torn)
    strange = edited(own, tmp_path / "strange", scheduler=["diffusers", "NoScheduler"])
    with pytest.raises(ModelError, match="NoScheduler"):
        skipstone.mlx.load(strange)


def test_settings_that_are_none(folders: dict[str, Path]) -> None:
    with pytest.raises(SpecError, match=r"float16.*got 'float17'.*Did you mean"):
        skipstone.mlx.load(folders["sd15"], dtype="float17")
    with pytest.raises(SpecError, match="bits 4 or 8"):
        skipstone.mlx.load(folders["sd15"], bits=3)
    with pytest.raises(SpecError, match="8GB"):
        skipstone.mlx.load(folders["sd15"], memory_limit="much")


def test_a_component_that_is_left_out_is_said(folders: dict[str, Path], tmp_path: Path) -> None:
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    pipe = skipstone.mlx.load(edited(folders["sd15"], tmp_path / "checked", safety_checker=checker))
    with pytest.warns(GuestWarning, match="left out: safety_checker"):
        pipe("red fox", "fixed", steps=1)


@pytest.fixture(scope="module")
def lora(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of U-Net and text encoder of the tiny Stable Diffusion, saved by diffusers."""
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = DiffusionPipeline.from_pretrained(folders["sd15"])
    torch.manual_seed(3)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    folder = tmp_path_factory.mktemp("lora")
    layers = {name: get_peft_model_state_dict(getattr(pipe, name)) for name in ("unet", "text_encoder")}
    type(pipe).save_lora_weights(
        folder, unet_lora_layers=layers["unet"], text_encoder_lora_layers=layers["text_encoder"]
    )
    return folder


@pytest.mark.parametrize("staged", [False, True])
def test_a_lora_draws_what_it_draws_in_diffusers_and_can_be_unloaded(
    staged: bool, lora: Path, folders: dict[str, Path]
) -> None:
    pipe = load_mlx("sd15", folders["sd15"])
    pipe.parts.staged = staged
    bare = pipe("red fox", "fixed", steps=STEPS, solver="ddim").results[0]
    report = pipe.load_lora_weights(lora)
    assert {name.partition(".")[0] for name in report.changed} == {"unet", "text_encoder"}
    ours = pipe("red fox", "fixed", steps=STEPS, solver="ddim").results[0]
    theirs = DiffusionPipeline.from_pretrained(folders["sd15"])
    theirs.load_lora_weights(lora)
    noise = torch.from_numpy(np.array(pipe.problem("red fox", 0).x))[None]
    expected = theirs(
        "red fox", latents=noise, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="latent"
    ).images[0]
    assert relative(ours.x, expected) <= LIMIT
    assert relative(bare.x, expected) > 100 * LIMIT
    pipe.unload_lora_weights()
    again = pipe("red fox", "fixed", steps=STEPS, solver="ddim").results[0]
    assert np.array_equal(np.array(again.x), np.array(bare.x))


def test_a_lora_that_does_not_fit_changes_nothing(lora: Path, folders: dict[str, Path]) -> None:
    pipe = load_mlx("sdxl", folders["sdxl"])
    with pytest.raises(ModelError, match="does not fit"):
        pipe.load_lora_weights(lora)
    assert pipe.parts.loras == []
    small = skipstone.mlx.load(folders["sd15"], bits=8)
    if any(report.quantised for report in [small.parts.network("unet").report]):
        with pytest.raises(ModelError, match="quantised"):
            small.load_lora_weights(lora)


def test_stages_hold_one_kind_of_networks_at_a_time(folders: dict[str, Path]) -> None:
    pipe = load_mlx("sdxl", folders["sdxl"])
    whole = pipe("red fox", "fixed", steps=2)
    assert set(pipe.parts.loaded) == {"text_encoder", "text_encoder_2", "unet", "vae"}
    staged = load_mlx("sdxl", folders["sdxl"])
    staged.parts.staged = True
    problem = staged.problem("red fox", 0, 2)
    assert set(staged.parts.loaded) == {"text_encoder", "text_encoder_2"}
    (result,) = denoise_many(
        staged.backbone, [problem], registry.parse("solver", "unipc"), registry.parse("policy", "fixed")
    )
    assert staged.parts.loaded == ("unet",)
    assert np.array_equal(np.array(result.x), np.array(whole.results[0].x))
    staged.decode([result.x])
    assert staged.parts.loaded == ("vae",)


@pytest.fixture(scope="module")
def mixed(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Stable Diffusion with an autoencoder and a text encoder that are not ported."""
    from diffusers import AsymmetricAutoencoderKL

    folder = tmp_path_factory.mktemp("mixed") / "sd"
    pipe = DiffusionPipeline.from_pretrained(folders["sd15"])
    torch.manual_seed(1)
    pipe.vae = AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(4, 4),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(4, 4),
        norm_num_groups=2,
        sample_size=16,
    )
    pipe.vae.register_to_config(block_out_channels=(4, 4))
    pipe.text_encoder.config.hidden_act = "tanh"
    pipe.save_pretrained(folder)
    return folder


def test_components_that_are_not_ported_run_on_torch_where_that_is_asked_for(mixed: Path) -> None:
    strict = load_mlx("sd15", mixed)
    with pytest.raises(ModelError, match=r"activation 'tanh'.*--backend auto.*torch_fallback=True"):
        strict("red fox", "fixed", steps=1)
    pipe = load_mlx("sd15", mixed, torch_fallback=True)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", GuestWarning)
        problem = pipe.problem("red fox", 0, STEPS, "trailing")
        (result,) = denoise_many(
            pipe.backbone, [problem], registry.parse("solver", "ddim"), registry.parse("policy", "fixed")
        )
        (picture,) = pipe.decode([result.x])
    messages = " ".join(str(one.message) for one in said)
    assert "text_encoder runs on torch, on cpu" in messages
    assert "vae runs on torch, on cpu" in messages
    assert "AsymmetricAutoencoderKL is not ported" in messages
    theirs = DiffusionPipeline.from_pretrained(mixed)
    call = {"latents": torch.from_numpy(np.array(problem.x))[None], "guidance_scale": GUIDANCE}
    expected = theirs("red fox", num_inference_steps=STEPS, output_type="np", **call).images[0]
    assert np.abs(picture - expected).max() <= 1e-4
    before = pipe.identity()["weights"]
    with torch.no_grad():
        next(pipe.parts.network("vae").module.parameters()).add_(1.0)
    assert pipe.identity()["weights"] != before
