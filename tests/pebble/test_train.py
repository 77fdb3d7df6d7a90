"""The recipe at tiny size: resuming is exact, wrong options are refused, the result is a pipeline's folder."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

import skipstone_pebble as pebble
from skipstone.errors import ModelError, SpecError
from skipstone_pebble import text
from skipstone_pebble.dit import DiTSettings
from skipstone_pebble.families import FAMILIES, load_family
from skipstone_pebble.family import Network
from skipstone_pebble.recipe import autoencoder, data, denoiser, export, train
from skipstone_pebble.recipe.autoencoder import AutoencoderSettings, DecoderTrainer
from skipstone_pebble.recipe.denoiser import DenoiserTrainer
from skipstone_pebble.recipe.trainer import Trainer, TrainingArguments, rate_factor
from skipstone_pebble.scenes import layouts, render, withheld
from skipstone_pebble.unet import UNetSettings

SMALL_CODER = AutoencoderSettings(width=8, blocks=(1, 0, 0, 0), batch=2)
SMALL_UNET = UNetSettings(channels=(16, 32), width=32, layers=1, batch=4, pairs=60)
SMALL_DIT = DiTSettings(blocks=2, heads=2, head_width=16, width=32, layers=2, batch=4, pairs=60)
SMALL = {"unet": SMALL_UNET, "dit": SMALL_DIT}


@pytest.fixture(scope="module")
def coder(discs):
    torch.manual_seed(0)
    model = autoencoder.build(SMALL_CODER)
    autoencoder.fit_encoder(model, data.picture_batch(1, 0, 128, discs), SMALL_CODER)
    return model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return text.build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def cache(coder, discs):
    return denoiser.build_cache(coder, discs, seed=0, pairs=SMALL_UNET.pairs)


def _denoiser(cache, tokenizer, run: TrainingArguments, family: str = "unet") -> DenoiserTrainer:
    torch.manual_seed(1)
    network = load_family(family).build(SMALL[family], tokenizer)
    return DenoiserTrainer(load_family(family), network, cache, SMALL[family], run)


def _same(one: Trainer, other: Trainer) -> bool:
    pairs = zip([*one.parameters, *one.average], [*other.parameters, *other.average], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_denoiser_is_the_unbroken_one_bit_for_bit(cache, tokenizer, tmp_path: Path, family: str) -> None:
    run = TrainingArguments(tmp_path / "unbroken", steps=6, decay=2, warmup=2)
    unbroken = _denoiser(cache, tokenizer, run, family)
    unbroken.train()
    broken = replace(run, folder=tmp_path / "broken")
    first = _denoiser(cache, tokenizer, replace(broken, stop=3), family)
    first.train()
    assert first.step == 3
    assert not _same(first, unbroken)
    second = _denoiser(cache, tokenizer, broken, family)
    second.train()
    assert second.step == 6
    assert _same(second, unbroken)


def test_a_resumed_decoder_is_the_unbroken_one_bit_for_bit(coder, discs, tmp_path: Path) -> None:
    start = {name: value.clone() for name, value in coder.state_dict().items()}

    def trained(folder: str, stop: int | None) -> DecoderTrainer:
        model = autoencoder.build(SMALL_CODER)
        model.load_state_dict(start)
        trainer = DecoderTrainer(
            model, SMALL_CODER, discs, TrainingArguments(tmp_path / folder, steps=4, decay=1, stop=stop)
        )
        trainer.train()
        return trainer

    unbroken = trained("unbroken", None)
    trained("broken", 2)
    assert _same(trained("broken", None), unbroken)


def test_other_options_do_not_resume(cache, tokenizer, tmp_path: Path) -> None:
    _denoiser(cache, tokenizer, TrainingArguments(tmp_path, steps=1)).train()
    with pytest.raises(ModelError, match="seed 0"):
        _denoiser(cache, tokenizer, TrainingArguments(tmp_path, seed=1, steps=2)).train()


def test_the_rate_rises_stays_and_falls() -> None:
    run = TrainingArguments(Path(), steps=100, decay=20, warmup=10)
    factors = [rate_factor(run, step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9:81] == [1.0] * 72
    assert all(a > b for a, b in pairwise(factors[80:]))
    assert 0 < factors[-1] < 0.05


def test_the_cache_holds_every_single_scene_and_nothing_withheld(cache) -> None:
    assert cache.singles == (42 * 8 - len(withheld().grounds)) * 3 * 9
    assert len(cache.scenes) == len(cache.latents[64]) == cache.singles + SMALL_UNET.pairs
    assert not any(withheld().contains(scene) for scene in cache.scenes)


def test_some_captions_are_empty_for_guidance(cache, tokenizer, tmp_path: Path) -> None:
    trainer = _denoiser(cache, tokenizer, TrainingArguments(tmp_path))
    captions = [caption for step in range(200) for caption in trainer.batch(step)[1]]
    assert 0.06 < np.mean([caption == "" for caption in captions]) < 0.15
    assert trainer.batch(7)[1] == trainer.batch(7)[1]


def test_the_encoder_keeps_what_linear_coding_can(coder, discs) -> None:
    pictures = data.picture_batch(5, 0, 16, discs)
    latents = autoencoder.encode(coder, pictures)
    assert latents.shape == (16, 8, 8, 8)
    through_model = coder.encode(pictures).latents * coder.config.scaling_factor
    torch.testing.assert_close(latents, through_model, atol=2e-4, rtol=1e-3)
    assert 0.5 < float(latents.std()) < 1.5


def test_the_command_makes_a_folder_that_diffusers_loads(discs, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train.sprites, "load_sprites", lambda folder: discs)
    threads = torch.get_num_threads()
    recipe = train.Recipe(
        tmp_path,
        tmp_path / "out",
        denoiser_steps=2,
        decoder_steps=2,
        sheet_steps=2,
        threads=threads,
        autoencoder=SMALL_CODER,
        denoiser=SMALL_UNET,
    )
    folder = train.train_pebble(recipe)
    for part in ("autoencoder", "denoiser"):
        lines = (tmp_path / "out" / part / "log.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["step"] == 2
        assert (tmp_path / "out" / part / "curve.png").stat().st_size > 1000
    assert (tmp_path / "out" / "denoiser" / "sheet_000002.png").is_file()
    manifest = json.loads((folder / export.MANIFEST).read_text())["files"]
    assert "unet/diffusion_pytorch_model.safetensors" in manifest
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3)
    again = export.export_run(tmp_path / "out", tmp_path / "again")
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()


def test_a_transformer_is_made_on_pebbles_autoencoder_and_words(discs, tmp_path: Path, monkeypatch) -> None:
    from diffusers import StableDiffusion3Pipeline

    monkeypatch.setattr(train.sprites, "load_sprites", lambda folder: discs)
    recipe = train.Recipe(
        tmp_path,
        tmp_path / "out",
        denoiser_steps=2,
        sheet_steps=2,
        threads=torch.get_num_threads(),
        base="pebble",
        denoiser=replace(SMALL_DIT, width=128),
    )
    folder = train.train_pebble(recipe)
    assert (tmp_path / "out" / "denoiser" / "sheet_000002.png").is_file()
    pipeline = StableDiffusion3Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    image = pipeline("a cat", num_inference_steps=2, output_type="np", max_sequence_length=1).images[0]
    assert image.shape == (64, 64, 3)
    for name in ("vae/diffusion_pytorch_model.safetensors", "tokenizer/merges.txt"):
        assert (folder / name).read_bytes() == (pebble.path() / name).read_bytes()
    again = export.export_run(tmp_path / "out", tmp_path / "again")
    weights = "transformer/diffusion_pytorch_model.safetensors"
    assert (again / weights).read_bytes() == (folder / weights).read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_command_line_names_the_family_and_its_settings(family: str, monkeypatch, tmp_path: Path) -> None:
    seen: list[train.Recipe] = []
    monkeypatch.setattr(train, "train_pebble", lambda recipe: seen.append(recipe))
    train.main(["art", "--out", str(tmp_path), "--family", family, "--batch", "8", "--first", "0.7"])
    (recipe,) = seen
    assert recipe.family.name == family
    assert (recipe.denoiser.batch, recipe.denoiser.first) == (8, 0.7)
    assert recipe.denoiser.rate == load_family(family).settings().rate


# -- sizes ------------------------------------------------------------------------------------------

BOTH = (48, 64)


@pytest.fixture(scope="module")
def cache_of_both(coder, discs):
    return denoiser.build_cache(coder, discs, seed=0, pairs=SMALL_UNET.pairs, sizes=BOTH)


def _trainer_of(sizes: tuple[int, ...], cache, tokenizer, run: TrainingArguments, family: str) -> DenoiserTrainer:
    torch.manual_seed(1)
    settings = replace(SMALL[family], sizes=sizes)
    return DenoiserTrainer(load_family(family), load_family(family).build(settings, tokenizer), cache, settings, run)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_resumed_denoiser_of_two_sizes_is_the_unbroken_one(
    cache_of_both, tokenizer, tmp_path: Path, family: str
) -> None:
    run = TrainingArguments(tmp_path / "unbroken", steps=6, decay=2, warmup=2)
    unbroken = _trainer_of(BOTH, cache_of_both, tokenizer, run, family)
    shapes = [unbroken.batch(step)[0].shape[1:] for step in range(6)]
    assert set(shapes) == {(8, 6, 6), (8, 8, 8)}  # and every batch has one of them
    unbroken.train()
    broken = replace(run, folder=tmp_path / "broken")
    _trainer_of(BOTH, cache_of_both, tokenizer, replace(broken, stop=3), family).train()
    second = _trainer_of(BOTH, cache_of_both, tokenizer, broken, family)
    second.train()
    assert _same(second, unbroken)


def test_the_latents_of_a_size_are_those_of_the_resized_pictures(cache_of_both, cache, coder, discs) -> None:
    assert torch.equal(cache_of_both.latents[64], cache.latents[64])
    assert cache_of_both.scenes == cache.scenes
    scene = cache.scenes[0]
    picture = data.to_tensor(render(scene, discs, layouts(scene)[0])[None])
    expected = autoencoder.encode(coder, data.resize_pictures(picture, 48)).half()
    torch.testing.assert_close(cache_of_both.latents[48][:1], expected, atol=2e-3, rtol=1e-2)
    assert float(data.resize_pictures(torch.full((1, 3, 64, 64), 0.25), 48).std()) < 1e-6


def test_one_of_two_sizes_sees_what_a_training_of_that_size_alone_sees(
    cache_of_both, cache, tokenizer, tmp_path: Path
) -> None:
    run = TrainingArguments(tmp_path, steps=6)
    both = _trainer_of(BOTH, cache_of_both, tokenizer, run, "unet")
    alone = _denoiser(cache, tokenizer, run)
    for step in range(6):
        (latents, captions), (expected, words) = both.batch(step), alone.batch(step)
        assert captions == words
        assert latents.shape[-1] == 6 or torch.equal(latents, expected)


def test_checkpoints_from_before_there_were_sizes_go_on(cache, tokenizer, tmp_path: Path) -> None:
    trainer = _denoiser(cache, tokenizer, TrainingArguments(tmp_path))
    assert "sizes" not in trainer.options
    both = replace(SMALL_UNET, sizes=BOTH)
    assert both.record["sizes"] == BOTH


@pytest.mark.parametrize("sizes", [(), (50,), (0,), (128,), (48, 48)])
def test_sizes_that_pebble_cannot_have(sizes: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="Expected"):
        UNetSettings(sizes=sizes)


def test_a_model_is_trained_further(coder, discs, tokenizer, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(train.sprites, "load_sprites", lambda folder: discs)
    start = _denoiser_of(tokenizer)
    base = export.save_pipeline(tmp_path / "base", coder, load_family("unet"), start)
    recipe = train.Recipe(
        tmp_path,
        tmp_path / "out",
        denoiser_steps=2,
        sheet_steps=2,
        threads=torch.get_num_threads(),
        base=str(base),
        further=True,
        denoiser=replace(SMALL_UNET, rate=1e-12, sizes=BOTH),
    )
    folder = train.train_pebble(recipe)
    made = load_family("unet").load(folder)
    for one, other in zip(made.parameters, start.parameters, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    for name in ("sheet_000002.png", "sheet_000002_48.png"):
        assert (tmp_path / "out" / "denoiser" / name).is_file()
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a cat", num_inference_steps=2, height=48, width=48).images[0].size == (48, 48)
    with pytest.raises(SpecError, match="name one, such as --base pebble"):
        replace(recipe, base=None)
    other = replace(recipe.denoiser, channels=(16, 16))
    with pytest.raises(ModelError, match="the denoiser of --base has another shape"):
        train.train_pebble(replace(recipe, out=tmp_path / "other", denoiser=other))


def _denoiser_of(tokenizer) -> Network:
    torch.manual_seed(7)
    return load_family("unet").build(SMALL_UNET, tokenizer)
