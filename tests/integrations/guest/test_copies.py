"""Copies, files and siblings of an adapted pipeline: of the classes that its parts had before."""

from __future__ import annotations

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoPipelineForImage2Image, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline

import skipstone

from .runs import BATCH, SPECS, STEPS, run_adapted, run_bare, traces


def test_other_pipelines_from_an_adapted_one(pipe: Any, plain: Any) -> None:
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    call = {"prompt": "a fox", "image": picture, "num_inference_steps": STEPS, "output_type": "latent"}
    expected = StableDiffusionImg2ImgPipeline.from_pipe(plain)(**call, generator=torch.manual_seed(0)).images
    with skipstone.adapt(pipe, SPECS[1]) as guest:
        run_bare(pipe)
        for make in (StableDiffusionImg2ImgPipeline, AutoPipelineForImage2Image):
            other = make.from_pipe(pipe)
            assert type(other) is StableDiffusionImg2ImgPipeline
            assert other.unet is pipe.unet
            assert torch.equal(other(**call, generator=torch.manual_seed(0)).images, expected)
        assert len(guest.last) == BATCH  # the account is that of the adapted pipeline
        with skipstone.adapt(other, "fixed"):
            assert torch.equal(other(**call, generator=torch.manual_seed(0)).images, expected)
    assert not traces(pipe, *pipe.components.values())


def test_saved_while_adapted_it_loads_as_what_it_was(pipe: Any, tmp_path: Path) -> None:
    with skipstone.adapt(pipe, SPECS[1]) as guest:
        run_bare(pipe)
        pipe.save_pretrained(tmp_path)
        assert "skipstone" not in (tmp_path / "model_index.json").read_text()
        loaded = StableDiffusionPipeline.from_pretrained(tmp_path)
        assert guest.last.saved > 0
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded) is StableDiffusionPipeline
    assert torch.equal(run_bare(loaded), run_bare(pipe))


@pytest.mark.parametrize("how", ["parts", "from_pretrained", "from_pipe"])
def test_what_the_class_of_an_adapted_pipeline_makes_is_bare(pipe: Any, tmp_path: Path, how: str) -> None:
    """The class of an adapted pipeline is one of its own, which leads to its policy."""
    reference = run_bare(pipe)
    pipe.save_pretrained(tmp_path)
    with skipstone.adapt(pipe, SPECS[0]):
        made = {
            "parts": lambda: type(pipe)(**pipe.components, requires_safety_checker=False),
            "from_pretrained": lambda: type(pipe).from_pretrained(tmp_path),
            "from_pipe": lambda: type(pipe).from_pipe(pipe),
        }[how]()
        made.set_progress_bar_config(disable=True)
        assert type(made) is StableDiffusionPipeline
        assert torch.equal(run_bare(made), reference)
        assert not torch.equal(run_bare(pipe), reference)
    assert torch.equal(run_bare(made), reference)


def test_what_the_class_of_a_part_makes_within_a_run_is_bare(pipe: Any) -> None:
    made: list[Any] = []

    def keep(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        made.extend(type(part).from_config(part.config) for part in (p.scheduler, p.unet))
        return values

    run_adapted(pipe, SPECS[1], callback_on_step_end=keep)
    assert {type(part) for part in made} == {type(pipe.scheduler), type(pipe.unet)}
    assert not traces(*made)


@pytest.mark.parametrize("how", ["deepcopy", "copy", "pickle"])
def test_a_copy_of_an_adapted_pipeline_is_bare(pipe: Any, how: str) -> None:
    reference = run_bare(pipe)
    with skipstone.adapt(pipe, SPECS[0]):
        copies = {
            "deepcopy": lambda: copy.deepcopy(pipe),
            "copy": lambda: copy.copy(pipe),
            "pickle": lambda: pickle.loads(pickle.dumps(pipe)),
        }
        other = copies[how]()
        assert not traces(other, *other.components.values())
        assert type(other) is StableDiffusionPipeline
        assert torch.equal(run_bare(other), reference)
        assert not torch.equal(run_bare(pipe), reference)


def test_parts_copied_within_a_run_are_bare_and_complete(pipe: Any, plain: Any) -> None:
    """Offloading makes the network refer to itself, which a copy has to follow."""
    pipe.enable_model_cpu_offload(device="cpu")
    made: dict[str, Any] = {}

    def keep(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        made[f"unet {step}"], made[f"scheduler {step}"] = copy.deepcopy(p.unet), copy.deepcopy(p.scheduler)
        return values

    expected = run_adapted(plain, SPECS[1])
    ran = run_adapted(pipe, SPECS[1], callback_on_step_end=keep)
    assert torch.equal(ran.output, expected.output)
    assert not traces(*made.values(), pipe, *pipe.components.values())
    unet = made["unet 3"]
    x, text = torch.ones(1, 4, 8, 8), torch.ones(1, 4, 8)
    assert torch.equal(unet(x, 5, text).sample, plain.unet(x, 5, text).sample)
    assert made["scheduler 3"].timesteps.tolist() == made["scheduler 5"].timesteps.tolist()


def test_a_network_saved_within_a_run_is_of_its_own_class(pipe: Any) -> None:
    files: list[bytes] = []

    def keep(p: Any, step: int, t: Any, values: dict[str, Any]) -> dict[str, Any]:
        torch.save(p.unet, buffer := io.BytesIO())
        files.append(buffer.getvalue())
        return values

    run_adapted(pipe, SPECS[1], callback_on_step_end=keep)
    loaded = torch.load(io.BytesIO(files[2]), weights_only=False)
    assert not traces(loaded)
    assert type(loaded) is type(pipe.unet)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), pipe.unet.parameters(), strict=True))
