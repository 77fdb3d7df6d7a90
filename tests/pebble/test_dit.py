"""The transformer's family: it learns, and its folder is a StableDiffusion3Pipeline that draws the same latents."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline

import skipstone_pebble as pebble
from skipstone.engine.drivers import denoise_many
from skipstone.errors import ModelError
from skipstone.policies import Fixed
from skipstone.solvers import DDIM
from skipstone_pebble import dit, text
from skipstone_pebble import null_text_encoder as silent
from skipstone_pebble.dit import DiT, DiTSettings
from skipstone_pebble.family import Network
from skipstone_pebble.model import Pebble
from skipstone_pebble.recipe import autoencoder, denoiser, export, sampling
from skipstone_pebble.recipe.autoencoder import AutoencoderSettings
from skipstone_pebble.recipe.denoiser import DenoiserTrainer
from skipstone_pebble.recipe.trainer import TrainingArguments

SMALL = DiTSettings(blocks=2, heads=2, head_width=16, width=32, layers=2, batch=8, pairs=40, rate=3e-3)
PROMPTS = ["a red apple on a blue background", "a cat left of a rocket"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def network(tokenizer) -> Network:
    """With blocks that do something, as those of a new network do not."""
    torch.manual_seed(0)
    network = DiT().build(SMALL, tokenizer)
    for weight in network.denoiser.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.2)
    for module in network.modules.values():
        module.eval()
    return network


@pytest.fixture(scope="module")
def folder(network: Network, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    coder = autoencoder.build(AutoencoderSettings(width=8, blocks=(1, 0, 0, 0)))
    return export.save_pipeline(tmp_path_factory.mktemp("exported") / "dit", coder, DiT(), network)


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> StableDiffusion3Pipeline:
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _drawn(pipeline: StableDiffusion3Pipeline, noise: torch.Tensor, **more: Any) -> torch.Tensor:
    call = {"guidance_scale": 3.0, "num_inference_steps": 5, "output_type": "latent", **more}
    latents: torch.Tensor = pipeline(PROMPTS, latents=noise, **call).images
    return latents


def test_a_few_steps_lower_the_loss(discs, tokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    coder = autoencoder.build(AutoencoderSettings(width=8, blocks=(1, 0, 0, 0)))
    cache = denoiser.build_cache(coder, discs, seed=0, pairs=SMALL.pairs)
    run = TrainingArguments(tmp_path, steps=40, decay=10, warmup=5)
    trainer = DenoiserTrainer(DiT(), DiT().build(SMALL, tokenizer), cache, SMALL, run)
    losses = [trainer.advance()["loss"] for _ in range(40)]
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])


def test_the_pipeline_draws_what_the_recipe_draws(folder: Path, pipeline: StableDiffusion3Pipeline) -> None:
    """One row stands for the 256 that the silent T5 puts after a prompt."""
    noise = sampling.initial_noise([0, 1])
    ours = sampling.sample_latents(DiT(), DiT().load(folder), PROMPTS, noise, 5, 3.0)
    assert (ours - noise).abs().max() > 0.1
    torch.testing.assert_close(_drawn(pipeline, noise), ours, rtol=1e-4, atol=1e-4)
    assert (_drawn(pipeline, noise, max_sequence_length=1) - ours).abs().max() > 1e-3


def test_the_engine_draws_what_the_pipeline_draws(folder: Path, pipeline: StableDiffusion3Pipeline) -> None:
    model = Pebble.load(folder)
    problems = [model.problem(prompt, seed, 5) for seed, prompt in enumerate(PROMPTS)]
    ours = torch.stack([r.x for r in denoise_many(model.backbone, problems, DDIM(), Fixed())])
    noise = torch.stack([problem.x for problem in problems])
    theirs = _drawn(pipeline, noise, num_inference_steps=None, sigmas=[1.0, 0.8, 0.6, 0.4, 0.2])
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert model.image(ours[0]).size == (64, 64)
    assert model.judge is None


@pytest.mark.parametrize("rows", [1, 7])
def test_any_number_of_empty_rows_is_one_row(network: Network, pipeline, rows: int) -> None:
    x, times = sampling.initial_noise([0, 1]), torch.tensor([800.0, 300.0])
    condition = network.encoder(text.tokens(network.tokenizer, PROMPTS))[0]
    pipeline.transformer.load_state_dict(network.denoiser.state_dict())
    empty = condition.new_zeros(2, rows, condition.shape[-1])
    told = {"encoder_hidden_states": torch.cat([condition[:, :-1], empty], 1), "pooled_projections": condition[:, -1]}
    plain = pipeline.transformer(x, timestep=times, **told).sample
    torch.testing.assert_close(dit.forward(network.denoiser, x, times, condition, rows), plain, rtol=1e-4, atol=1e-5)


def test_every_other_sample_is_trained_with_one_empty_row(network: Network) -> None:
    x, times = sampling.initial_noise([0, 1]), torch.tensor([800.0, 300.0])
    condition = network.encoder(text.tokens(network.tokenizer, PROMPTS))[0]
    network.denoiser.train()
    mixed = dit.forward(network.denoiser, x, times, condition)
    network.denoiser.eval()
    for row, empty in enumerate((silent.MAX_SEQUENCE_LENGTH, 1)):
        alone = dit.forward(network.denoiser, x, times, condition, empty)
        torch.testing.assert_close(mixed[row], alone[row], rtol=1e-4, atol=1e-5)


def test_the_target_leads_from_noise_to_the_picture() -> None:
    latents, noise = sampling.initial_noise([0, 1, 2]), sampling.initial_noise([3, 4, 5])
    noisy, times, flow = DiT().corrupt(latents, noise, torch.tensor([0.0, 0.5, 0.9]))
    assert 0 < times[0] < 100
    assert times[1] == pytest.approx(500)
    torch.testing.assert_close(noisy - times[:, None, None, None] / 1000 * flow, latents)


def test_the_text_encoders_can_start_from_pebbles(tokenizer) -> None:
    with torch.no_grad():
        network = DiT().build(DiTSettings(blocks=1, heads=1, head_width=16), tokenizer, pebble.path())
    own = Pebble.load()
    tokens = text.tokens(own.tokenizer, PROMPTS)
    want = own.encoder(tokens, output_hidden_states=True).hidden_states[-2]
    rows = network.encoder(tokens)[0][:, :-1]
    torch.testing.assert_close(rows, torch.cat([want, want], -1))
    with pytest.raises(ModelError, match="another shape"):
        DiT().build(SMALL, tokenizer, pebble.path())


def test_a_t5_that_says_something_is_for_the_pipeline(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy", ignore=shutil.ignore_patterns("manifest.json")))
    config = copy / "text_encoder_3" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 2}))
    with pytest.raises(ModelError, match=r"T5 has 2 layers.*skipstone\.adapt"):
        Pebble.load(copy)
