"""The zoo's video network in its pipeline: nothing is lost on the way, and the motion judge sees motion."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from diffusers import WanPipeline

from research.zoo.data import DIRECTIONS
from research.zoo.export import facts_of, load
from research.zoo.motion import MotionJudge, as_drawn, direction
from research.zoo.network import build
from research.zoo.pipeline import build_autoencoder, build_pipeline, call_settings, parse_prompt, prompts_of
from research.zoo.recipes import RECIPES, wan

RECIPE = replace(RECIPES["clips_flow"], network=wan(1))
LABELS = RECIPE.domain.words
NOTHING = " ".join(("anything", "anywhere"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of one block with random weights, in the format of a finished one."""
    torch.manual_seed(0)
    made, network = tmp_path_factory.mktemp("clips"), build(RECIPE.network, RECIPE.counts)
    for parameter in network.parameters():  # new ones leave the output at zero
        torch.nn.init.normal_(parameter, std=0.1)
    network.core.save_pretrained(made)  # type: ignore[operator]
    assert network.words is not None
    safetensors.torch.save_file(network.words.state_dict(), made / "words.safetensors")
    (made / "scheduler").mkdir()
    scheduler = json.dumps(RECIPE.schedule.scheduler_config())
    (made / "scheduler" / "scheduler_config.json").write_text(scheduler, encoding="utf-8")
    (made / "zoo.json").write_text(json.dumps(facts_of(RECIPE)), encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def pipe(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Its pipeline, written and read."""
    out = tmp_path_factory.mktemp("pipeline")
    build_pipeline(folder).save_pretrained(out)
    found = WanPipeline.from_pretrained(out)
    found.set_progress_bar_config(disable=True)
    return found


def test_prompts_are_the_networks_own_labels_to_the_last_bit(folder: Path, pipe: Any) -> None:
    network, prompts = load(folder), prompts_of(LABELS)
    labels = torch.tensor([parse_prompt(prompt, LABELS) for prompt in prompts])
    assert len(set(map(tuple, labels.tolist()))) == len(prompts) == len(LABELS[0]) * len(LABELS[1])
    said, free = pipe.encode_prompt(prompts, [NOTHING] * len(prompts), max_sequence_length=len(LABELS))
    assert torch.equal(said, network.tokens(labels))
    assert torch.equal(free, network.tokens(network.unlabelled(len(prompts))))


@pytest.mark.parametrize(
    ("prompt", "labels"),
    [
        ("A GHOST, moving left.", (4, 1)),
        ("down it goes: a cat face", (6, 2)),
        ("a soccer ball", (0, 4)),
        ("upstairs, a starfish", (8, 4)),
    ],
)
def test_words_are_found_whole_in_any_order(prompt: str, labels: tuple[int, int]) -> None:
    assert parse_prompt(prompt, LABELS) == labels


@pytest.mark.parametrize(("centre", "scale"), [(0.0, 1.0), (0.25, 1.5)])
def test_the_autoencoder_repeats_latents(centre: float, scale: float) -> None:
    clip = torch.rand(2, 3, 4, 6, 6) * 2 - 1
    coder = build_autoencoder(centre, scale)
    std, mean = (torch.tensor(coder.config[name])[:, None, None, None] for name in ("latents_std", "latents_mean"))
    shown = coder.decode(scale * (clip - centre) * std + mean).sample
    shown = shown.reshape(2, 3, 7, 6, 2, 6, 2)
    assert torch.allclose(shown, shown[:, :, :, :, :1, :, :1].expand_as(shown), atol=0)
    frames = shown[:, :, :, :, 0, :, 0]
    assert torch.allclose(frames[:, :, ::2], clip, atol=2e-6)
    assert torch.equal(frames[:, :, 1::2], frames[:, :, 2::2])


def test_the_pipeline_is_the_networks_own_run(folder: Path, pipe: Any) -> None:
    network, facts = load(folder), json.loads((folder / "zoo.json").read_text(encoding="utf-8"))
    prompt, steps, guidance = "a frog moving up", 3, 3.0
    video = pipe(
        prompt,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(5),
        **call_settings(facts),
    ).frames[0]
    labels = torch.tensor([parse_prompt(prompt, LABELS)])
    latents = torch.randn(1, *RECIPE.shape, generator=torch.Generator().manual_seed(5))
    pipe.scheduler.set_timesteps(steps)
    with torch.inference_mode():
        for timestep in pipe.scheduler.timesteps:
            said, free = (network(latents, timestep.expand(1), given) for given in (labels, network.unlabelled(1)))
            latents = pipe.scheduler.step(free + guidance * (said - free), timestep, latents).prev_sample
    own = (latents[0] / 2 + 0.5).clamp(0, 1).permute(1, 2, 3, 0).numpy()
    assert own.std() > 0.05
    assert np.abs(as_drawn(video) - own).max() < 1e-5


def moving(way: tuple[float, float], frames: int = 8, side: int = 24) -> np.ndarray[Any, Any]:
    """A soft dark spot on a ground, moving this way."""
    down, across = np.mgrid[:side, :side]
    shown = []
    for frame in range(frames):
        x, y = (side / 2 + step * (frame - (frames - 1) / 2) for step in way)
        spot = np.clip(6 - np.hypot(across - x, down - y), 0, 1)
        shown.append(np.array([0.9, 0.8, 0.3]) * (1 - spot[..., None]))
    return np.stack(shown)


def test_the_direction_is_that_of_the_spot() -> None:
    none = len(DIRECTIONS)
    for number, way in enumerate(DIRECTIONS.values()):
        clip = moving(way)
        assert direction(clip) == number
        assert direction(clip[::-1]) == number ^ 1
        assert direction(clip * 0.1 + 0.9) == none  # too pale to be seen
        assert direction(np.repeat(clip[:1], 8, 0)) == none
        assert direction(moving((way[0] / 3, way[1] / 3))) == none
    assert direction(moving((0.9, 0.9))) == none
    assert direction(np.full((8, 24, 24, 3), 0.5)) == none


def test_the_judge_scores_shares_of_the_prompt() -> None:
    judge, clip = MotionJudge.load(), moving(DIRECTIONS["left"])
    thing, way = judge.see(clip)
    assert way == 1
    wrong = LABELS[0][(thing + 1) % len(LABELS[0])]
    assert judge.score(clip, f"a {wrong} moving left") == 0.5
    assert judge.score(clip, f"a {wrong} moving up") == 0.0
    assert judge.score(clip, "moving left") == 1.0
    assert judge.score(np.repeat(np.repeat(np.repeat(clip, 2, 0)[1:], 2, 1), 2, 2), "moving left") == 1.0
    assert judge.object(np.full((8, 24, 24, 3), 0.5)) == len(LABELS[0])
