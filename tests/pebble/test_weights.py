"""The model that ships: its size, its checksums, and that it draws and reads what it says."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import skipstone_pebble as pebble
from skipstone.errors import ModelError
from skipstone_pebble.judge import Judge, check_facts
from skipstone_pebble.words import known_words

FIGURES = Path(__file__).parents[2] / "research" / "pebble"


@pytest.fixture(scope="module")
def pipeline():
    from diffusers import StableDiffusionPipeline

    began = time.perf_counter()
    made = StableDiffusionPipeline.from_pretrained(pebble.path())
    made.loading_seconds = time.perf_counter() - began
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize(("name", "limit"), [("pebble", 20e6), ("pebble-dit", 25e6)])
def test_all_weights_are_small_and_the_judge_below_2_mb(name: str, limit: float) -> None:
    files = [file for file in pebble.path(name).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < limit
    assert (pebble.path(name) / "judge.safetensors").stat().st_size < 2e6


@pytest.mark.parametrize("name", pebble.SHIPPED)
def test_every_file_is_in_the_manifest(name: str) -> None:
    folder = pebble.path(name)
    listed = set(json.loads((folder / "manifest.json").read_text())["files"])
    found = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert found == listed | {"manifest.json"}


def test_the_transformer_draws_what_it_is_told() -> None:
    from skipstone import denoise, policy, solver
    from skipstone_pebble.model import Pebble

    model = Pebble.load("pebble-dit")
    prompts = ["a red apple on a blue background", "a cat left of a rocket on a yellow background"]
    for prompt in prompts:
        problem = model.problem(prompt, 0, 50, "uniform")
        result = denoise(model.backbone, problem, solver("adams"), policy("fast"))
        assert result.run.cost < 25
        assert model.judge is not None
        assert model.judge(model.decode([result.x])[0], prompt) == 1.0


def test_a_damaged_or_missing_file_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(pebble.path(), folder)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelError, match=r"model.safetensors is damaged: expected SHA-256 \w{64}, got"):
        pebble._checked(folder)
    weights.unlink()
    with pytest.raises(ModelError, match="no such file; reinstall"):
        pebble._checked(folder)
    with pytest.raises(ModelError, match="manifest"):
        pebble._checked(tmp_path)


def test_the_shipped_tokenizer_has_one_token_for_every_word(pipeline) -> None:
    assert {word for word in known_words() if len(pipeline.tokenizer(word).input_ids) != 3} == set()


def test_the_pipeline_draws_what_the_judge_reads(pipeline) -> None:
    import torch

    prompts = ["a red apple on a blue background", "a house on a yellow background"]
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    images = pipeline(
        prompts, num_inference_steps=25, guidance_scale=3.0, generator=generators, output_type="np"
    ).images
    assert images.shape == (2, 64, 64, 3)
    readings = Judge.load().read(images)
    assert all(check_facts(reading, prompt)["background"] for reading, prompt in zip(readings, prompts, strict=True))
    assert Judge.load().score(images, prompts)[0] >= 0.5


def test_the_weights_are_used_in_single_precision(pipeline) -> None:
    import torch

    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}


def test_the_figures_are_those_of_these_weights() -> None:
    """The committed figures name the manifest they were measured on, and stay above the issue's floors."""
    result = json.loads((FIGURES / "judge.json").read_text())
    manifest = json.loads((pebble.path() / "manifest.json").read_text())["files"]
    for name, digest in result["weights"].items():
        assert manifest[name]["sha256"] == digest, (
            f"{name} has changed: run python -m skipstone_pebble.recipe.evaluate again"
        )
    assert min(result["prompts"].values()) >= 200
    for name, bounds in result["bars"].items():
        assert result["figures"][name] >= bounds["floor"]
    rows = [row for row in result["readings"] if "object" in row["facts"]]
    assert np.mean([row["facts"]["object"] for row in rows]) == pytest.approx(result["figures"]["object"])


def test_the_judge_reads_real_renders_in_layouts_it_never_saw() -> None:
    figures = json.loads((FIGURES / "judge_test.json").read_text())
    assert figures["pictures"] >= 1000
    assert figures["all"] >= 0.97


def test_the_text_encoder_is_named_as_every_release_of_transformers_reads_it() -> None:
    names = load_file(pebble.path() / "text_encoder" / "model.safetensors")
    assert names
    assert all(name.startswith("text_model.") for name in names)
