"""A model that takes no prompts, end to end on seeds alone: tuned, calibrated, audited and adapted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from outcome import Shell

import skipstone
from skipstone import CalibrationOptions
from skipstone.errors import PromptError, SpecError
from skipstone.tuning.report import RESULTS

ASKED = {"target": "psnr >= 20 @ 60%", "confidence": 0.7}
SETTINGS = ("stride(tol=0.0)", "stride(tol=0.02)", "stride(tol=9.0)")


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny DDIM pipeline with random weights."""
    import torch
    from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        attention_head_dim=8,
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-ddim"
    DDIMPipeline(unet, DDIMScheduler(clip_sample=False, timestep_spacing="trailing")).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(unconditional: Path) -> Any:
    from diffusers import DDIMPipeline

    found = DDIMPipeline.from_pretrained(unconditional)
    found.set_progress_bar_config(disable=True)
    return found


def test_tune_then_generate_by_the_grid(unconditional: Path, shell: Shell, tmp_path: Path) -> None:
    where = ("--model", str(unconditional), "--device", "cpu")
    small = ("--samples", "2", "--check", "3", "--fine", "16", "--calls", "4", "--no-rivals")
    out = shell("tune", *where, *small, "--out", str(tmp_path / "grids"))
    assert out.code == 0, out.err
    assert "2 samples are few" in out.err
    assert "--samples 24" in out.err
    assert "on seeds that were not tuned on" in out.out + out.err
    assert "The two references agree to" in out.out + out.err
    found = json.loads((tmp_path / "grids" / RESULTS).read_text())
    assert (found["prompts"], found["samples"], found["checked"]) == ("seeds", 2, 3)
    assert found["references"]["agreement"]["median"] >= 10 + max(row["psnr"]["median"] for row in found["rows"])
    assert {len(row["samples"]) for row in found["rows"]} == {3}
    drawn = shell("generate", *where, "--policy", str(tmp_path / "grids" / "path-4"), "--out", "a.png", "--json")
    assert drawn.code == 0, drawn.err
    assert json.loads(drawn.out)["calls"] == 4


def test_calibrate_audit_and_adapt(pipe: Any, tmp_path: Path) -> None:
    import torch

    options = CalibrationOptions(steps=6, samples=14)
    policy = skipstone.calibrate(pipe, None, settings=SETTINGS, cache=tmp_path / "cache", options=options, **ASKED)
    made = policy.certificate
    assert made.promise == "at least 60 % of seeds have psnr >= 20"
    assert (made.prompts["source"], made.prompts["count"]) == ("random seeds", 14)
    folder = policy.save_pretrained(tmp_path / "mine")
    card = (folder / "README.md").read_text()
    assert "with confidence 70%, over the draw of the seeds." in card
    assert "To samples whose seeds are drawn at random" in card
    assert "prompt" not in card.partition("## What is not promised")[0]
    seeds = [json.loads(line)["seed"] for line in (folder / "prompts.jsonl").read_text().splitlines()]
    assert len(set(seeds)) == 14

    with skipstone.adapt(pipe, skipstone.load_policy(folder)) as adapted:
        pipe(batch_size=2, num_inference_steps=6, generator=torch.Generator().manual_seed(1), output_type="np")
    assert [run.calls for run in adapted.last] == pytest.approx([made.best.calls] * 2, abs=2)

    report = skipstone.audit(folder, pipe, samples=2, cache=tmp_path / "cache")
    assert "2 samples were drawn now, 2 in all (new random seeds)." in report.words
    assert not any("prompt" in line for line in report.words)
    skipstone.audit(folder, pipe, samples=2, cache=tmp_path / "cache")
    audited = [json.loads(line)["seed"] for line in (folder / "audit.jsonl").read_text().splitlines()]
    assert len({*audited, *seeds}) == 4 + 14
    with pytest.raises(SpecError, match="the promise is about seeds"):
        skipstone.audit(folder, pipe, samples=1, prompts=["a cat"], cache=tmp_path / "cache")


def test_calibrate_from_the_command_line(unconditional: Path, shell: Shell, tmp_path: Path) -> None:
    where = ("--model", str(unconditional), "--device", "cpu", "--steps", "6")
    asked = ("--target", ASKED["target"], "--confidence", "0.7", "--samples", "12", "--cache", str(tmp_path / "cache"))
    done = shell("calibrate", *where, *map(str, asked), "-p", "error_control(tol=0.0)", "--out", str(tmp_path / "mine"))
    assert done.code == 0, done.err
    assert "Asked for: at least 60 % of seeds have psnr >= 20" in done.err
    assert "over the draw of the seeds." in done.out
    assert "It is promised to seeds like these" in done.out
    assert "prompts" not in done.err


def test_the_number_of_samples_is_asked_for_with_a_figure(pipe: Any) -> None:
    with pytest.raises(SpecError, match=r"needs at least 22, and a third of all search: try \d+"):
        skipstone.calibrate(pipe, None, "psnr >= 30 @ 90%")
    with pytest.raises(SpecError, match="needs at least 22 seeds in the final test"):
        skipstone.calibrate(pipe, None, "psnr >= 30 @ 90%", options=CalibrationOptions(samples=12))
    with pytest.raises(SpecError, match="expected 2 to 100,000"):
        skipstone.calibrate(pipe, None, "psnr >= 30 @ 90%", options=CalibrationOptions(samples=1))
    with pytest.raises(SpecError, match="no categories"):
        skipstone.calibrate(pipe, None, "psnr >= 30 @ 90%", options=CalibrationOptions(samples=99, groups="category"))
    with pytest.raises(PromptError, match="draws without a prompt"):
        skipstone.calibrate(pipe, [f"prompt {k}" for k in range(40)], "psnr >= 30 @ 90%")


def test_a_model_that_takes_prompts_is_not_tuned_or_calibrated_on_seeds(tiny_pebble: Path, shell: Shell) -> None:
    where = ("--model", str(tiny_pebble), "--out", "out")
    for command in (("tune",), ("calibrate", "--target", "psnr >= 30 @ 90%")):
        for more in ((), ("--samples", "4")):
            out = shell(*command, *where, *more)
            assert out.code == 2
            assert "Missing option '--prompts'" in out.err
        both = shell(*command, *where, "--prompts", "pebble", "--samples", "4")
        assert both.code == 2
        assert "--samples is for models that take no prompts" in both.err
    with pytest.raises(PromptError, match="Expected prompts to calibrate on, got none"):
        skipstone.calibrate(str(tiny_pebble), None, "psnr >= 30 @ 90%")


@pytest.mark.parametrize("check", ["pebble", "-3", "2.5", "²", "9" * 30])
def test_the_check_of_a_model_without_prompts_is_a_number(check: str, unconditional: Path, shell: Shell) -> None:
    out = shell("tune", "--model", str(unconditional), "--samples", "2", f"--check={check}", "--out", "out")
    assert out.code == 2
    assert "expected a number of seeds" in out.err
    assert not Path("out").exists()
