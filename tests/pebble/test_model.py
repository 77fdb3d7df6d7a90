"""Pebble as a problem and a backbone, on a tiny pipeline of its format: equal to diffusers, seeds, damaged files."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from skipstone.engine.drivers import denoise, denoise_many
from skipstone.errors import ModelError, PromptError, SpecError
from skipstone.policies import Fixed, ThirdOrder
from skipstone.solvers import DDIM
from skipstone_pebble.model import Pebble, to_uint8

PROMPTS = ("a red apple", "a cat left of a rocket")


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Pebble:
    return Pebble.load(tiny_model, guidance=3.0)


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


@pytest.mark.parametrize("guidance", [3.0, 1.0])
def test_the_bare_run_is_what_the_diffusers_pipeline_makes(model: Pebble, tiny_model: Path, guidance: float) -> None:
    from diffusers import StableDiffusionPipeline

    model = model.guided(guidance)
    problems = [model.problem(p, seed, 20) for seed, p in enumerate(PROMPTS)]
    ours = model.decode([r.x for r in denoise_many(model.backbone, problems, DDIM(), Fixed())])
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        list(PROMPTS),
        latents=torch.stack([p.x for p in problems]),
        guidance_scale=guidance,
        num_inference_steps=20,
        height=64,
        width=64,
        output_type="np",
    ).images
    assert theirs.std() > 0.05
    assert np.abs(np.stack(ours) - theirs).max() < 1e-4


def test_a_sample_is_the_same_alone_and_in_a_batch(model: Pebble) -> None:
    problems = [model.problem(p, 7, 10) for p in PROMPTS]
    together = denoise_many(model.backbone, problems, DDIM(), ThirdOrder(tol=0.9))
    for problem, result in zip(problems, together, strict=True):
        alone = denoise(model.backbone, problem, DDIM(), ThirdOrder(tol=0.9))
        torch.testing.assert_close(alone.x, result.x, rtol=1e-4, atol=1e-4)
        assert alone.run.cost == result.run.cost < 10


def test_the_prompt_and_the_seed_both_matter(model: Pebble) -> None:
    def made(prompt: str, seed: int) -> Any:
        return denoise(model.backbone, model.problem(prompt, seed, 5), DDIM(), Fixed()).x

    assert torch.equal(made(PROMPTS[0], 1), made(PROMPTS[0], 1))
    assert not torch.allclose(made(PROMPTS[0], 1), made(PROMPTS[0], 2))
    assert not torch.allclose(made(PROMPTS[0], 1), made(PROMPTS[1], 1))


def test_pixels_are_unquantised_and_rounded_to_the_nearest(model: Pebble) -> None:
    (pixels,) = model.decode([model.problem("a cat", 0, 1).x])
    assert (pixels.shape, pixels.dtype) == ((64, 64, 3), np.float32)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert len(np.unique(pixels)) > 256
    eight = to_uint8(pixels)
    assert eight.dtype == np.uint8
    assert np.abs(eight / 255 - pixels).max() <= 0.5 / 255 + 1e-6


def test_problems_that_cannot_be_posed(model: Pebble) -> None:
    with pytest.raises(PromptError, match="empty"):
        model.problem("  ")
    with pytest.raises(SpecError, match="at least 1 step"):
        model.problem("a cat", steps=0)
    with pytest.raises(SpecError, match="Did you mean 'karras'"):
        model.problem("a cat", grid="karas")


def manifest(folder: Path) -> None:
    files = [f for f in folder.rglob("*") if f.is_file()]
    sums = {str(f.relative_to(folder)): {"sha256": hashlib.sha256(f.read_bytes()).hexdigest()} for f in files}
    (folder / "manifest.json").write_text(json.dumps({"files": sums}))


def test_a_flipped_bit_is_found_by_the_manifest(copy: Path) -> None:
    manifest(copy)
    assert Pebble.load(copy).name == "copy"
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match="damaged: expected SHA-256"):
        Pebble.load(copy)
    weights.unlink()
    with pytest.raises(ModelError, match="found no such file; fetch or train"):
        Pebble.load(copy)


@pytest.mark.parametrize("part", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_damaged_weights_without_a_manifest_are_one_sentence(copy: Path, part: str) -> None:
    (copy / part).write_bytes((copy / part).read_bytes()[:1000])
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        Pebble.load(copy)
    assert "\n" not in str(error.value)


def test_models_of_another_kind_are_refused(copy: Path) -> None:
    with pytest.raises(ModelError, match=r"skipstone\.adapt"):
        Pebble.load("stabilityai/stable-diffusion-xl-base-1.0")
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, "_class_name": "FluxPipeline"}))
    with pytest.raises(ModelError, match="FluxPipeline"):
        Pebble.load(copy)
    (copy / "model_index.json").write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        Pebble.load(copy)
