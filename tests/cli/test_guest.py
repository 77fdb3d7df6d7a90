"""`skipstone generate` and `compare` with pipelines that diffusers loads: real ones, tiny, saved to folders."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from diffusers import EulerAncestralDiscreteScheduler
from outcome import Shell, list_files
from PIL import Image

import skipstone
from skipstone.engine import trace as traces
from skipstone.integrations.torch import CallCounter

SKIPS = "interval(every=2)"


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of pipelines by family."""
    from tests.integrations.guest.families import build

    home = tmp_path_factory.mktemp("pipelines")
    for family in ("sd15", "dit", "ddpm", "wan21", "flux", "zimage", "sd15-inpaint"):
        build(family).save_pretrained(home / family)
    noisy = build("sd15")
    noisy.scheduler = EulerAncestralDiscreteScheduler.from_config(noisy.scheduler.config)
    noisy.save_pretrained(home / "noisy")
    return home


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), int)


def test_a_pipeline_keeps_its_scheduler_and_says_what_it_was_told(shell: Shell, saved: Path, tmp_path: Path) -> None:
    told = [
        "--set",
        "height=24",
        "--set",
        "width=16",
        "--set",
        "negative_prompt=a dog",
        "--steps",
        "10",
        "--guidance",
        "4",
    ]
    done = shell("generate", "a cat", "--model", str(saved / "sd15"), "--policy", SKIPS, *told, "--json", "--trace")
    assert (done.code, list_files(tmp_path)) == (0, ["a-cat-0.png", "a-cat-0.trace.json"])
    line = json.loads(done.out)
    assert line["spec"] == "interval @ own / 10"
    assert 0 < line["calls"] < line["full_calls"] == 11  # PNDM makes one call more than it is asked for
    assert line["settings"] == {"height": 24, "width": 16, "negative_prompt": "a dog"}
    assert line["guidance"] == 4.0
    assert traces.load(tmp_path / "a-cat-0.trace.json").run.cost == line["calls"]
    with Image.open(tmp_path / "a-cat-0.png") as picture:
        assert picture.size == (16, 24)
        assert json.loads(picture.text["settings"]) == line["settings"]
        assert picture.text["spec"] == line["spec"]


@pytest.mark.parametrize(
    ("family", "prompt", "more"),
    [
        ("sd15", "a cat", []),
        ("dit", "7", []),
        ("ddpm", None, []),
        ("sd15", "a cat", ["--solver", "dpmpp", "--grid", "karras"]),
    ],
)
def test_a_seed_is_the_same_picture_alone_and_in_a_batch(
    shell: Shell, saved: Path, tmp_path: Path, family: str, prompt: str | None, more: list[str]
) -> None:
    common = ["generate", *([prompt] if prompt else []), "--model", str(saved / family), "--steps", "6", *more]
    assert shell(*common, "--seed", "1", "--out", "alone.png").code == 0
    assert shell(*common, "-n", "3", "--out", "batch").code == 0
    zero, one, two = (pixels(path) for path in sorted((tmp_path / "batch").iterdir()))
    assert abs(pixels(tmp_path / "alone.png") - one).max() <= 1
    assert min(abs(zero - one).max(), abs(two - one).max()) > 3


def test_classes_go_by_number_or_name(shell: Shell, saved: Path, tmp_path: Path) -> None:
    index = json.loads((saved / "dit" / "model_index.json").read_text())
    index["id2label"] = {"3": "red fox, Vulpes vulpes", "7": "cock"}
    copy = tmp_path / "copy"
    copy.mkdir()
    for part in (saved / "dit").iterdir():
        if part.is_dir():
            (copy / part.name).symlink_to(part)
    (copy / "model_index.json").write_text(json.dumps(index))
    for prompt, out in (("Vulpes vulpes", "name.png"), ("3", "number.png"), ("cock", "other.png")):
        assert shell("generate", prompt, "--model", str(copy), "--steps", "4", "--out", out).code == 0
    assert (pixels(tmp_path / "name.png") == pixels(tmp_path / "number.png")).all()
    assert (pixels(tmp_path / "name.png") != pixels(tmp_path / "other.png")).any()
    assert "Did you mean 'red fox'?" in shell("generate", "red fix", "--model", str(copy)).err
    assert "got '8'" in shell("generate", "8", "--model", str(copy)).err


def test_a_video_is_an_animated_file(shell: Shell, saved: Path, tmp_path: Path) -> None:
    told = ["--set", "num_frames=5", "--set", "height=16", "--set", "width=32", "--steps", "6"]
    done = shell("generate", "a cat", "--model", str(saved / "wan21"), "--policy", SKIPS, *told)
    assert (done.code, list_files(tmp_path)) == (0, ["a-cat-0.webp"])
    with Image.open(tmp_path / "a-cat-0.webp") as video:
        assert (video.n_frames, video.size) == (5, (32, 16))
        assert json.loads(video.getexif()[0x010E])["spec"] == "interval @ own / 6"


def test_videos_of_a_comparison_play_on_its_page(shell: Shell, saved: Path, tmp_path: Path) -> None:
    told = ["--set", "num_frames=5", "--set", "height=16", "--set", "width=32", "--steps", "4", "--repeats", "1"]
    done = shell("compare", "a cat", "--model", str(saved / "wan21"), "-p", SKIPS, *told, "--html", "boss.html")
    assert done.code == 0, done.err
    found = re.findall(
        r'src="data:image/webp;base64,([^"]*)" width="32" height="16"', (tmp_path / "boss.html").read_text()
    )
    assert len(found) == 2
    for uri in found:
        with Image.open(io.BytesIO(base64.b64decode(uri))) as video:
            assert (video.n_frames, video.size) == (5, (32, 16))


def test_a_picture_to_start_from(shell: Shell, saved: Path, tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(tmp_path / "from.png")
    common = ["generate", "a cat", "--steps", "10", "--json", "--image", "from.png", "--set", "strength=0.5"]
    line = json.loads(shell(*common, "--model", str(saved / "sd15"), "--out", "a.png").out)
    assert line["full_calls"] < 10
    assert line["settings"] == {"strength": 0.5, "image": "@from.png"}
    masked = shell(*common, "--model", str(saved / "sd15-inpaint"), "--set", "mask_image=@from.png", "--out", "b.png")
    assert masked.code == 0
    assert "takes a picture: --image" in shell("generate", "a cat", "--model", str(saved / "sd15-inpaint")).err


def test_a_comparison(shell: Shell, saved: Path, tmp_path: Path) -> None:
    columns = ("third_order", "fewer", "fixed @ dpmpp / karras / 10", "fixed @ own", "error_control @ own / leading")
    asked = [part for column in columns for part in ("-p", column)]
    common = ["--model", str(saved / "sd15"), "--steps", "14", "--repeats", "1", "--solver", "unipc", "--out", "here"]
    done = shell("compare", "a cat", "a dog", "--grid", "trailing", *common, *asked)
    assert done.code == 0, done.err
    here = tmp_path / "here"
    records = [json.loads(line) for line in (here / "samples.jsonl").read_text().splitlines()]
    assert sorted(list_files(here)) == sorted(
        ["sheet.png", "timeline.png", "table.md", "samples.jsonl", *(r["picture"] for r in records)]
    )
    specs = list(dict.fromkeys(r["spec"] for r in records))
    assert specs[0] == "fixed @ unipc / trailing / 14"
    assert specs[3:] == ["fixed @ dpmpp / karras / 10", "fixed @ own / 14", "error_control @ own / leading / 14"]
    calls = {spec: [r["calls"] for r in records if r["spec"] == spec] for spec in specs}
    assert calls["fixed @ dpmpp / karras / 10"] == [10, 10]
    assert calls["fixed @ own / 14"] == [15, 15]  # PNDM's
    assert all(r["identical"] for r in records[:2])
    mean = sum(calls[specs[1]]) / 2
    assert all(mean <= made < mean + 1 for made in calls[specs[2]])
    assert "scheduler that the pipeline came with" in (here / "table.md").read_text()


ADDS_NOISE = "its scheduler adds noise at every step"


def test_a_preset_falls_back_where_a_takeover_is_refused(shell: Shell, saved: Path, tmp_path: Path) -> None:
    common = ["a cat", "--model", str(saved / "noisy"), "--steps", "12", "--out", "a.png", "--force", "--json"]
    done = shell("generate", *common, "--policy", "fast")
    assert done.code == 0, done.err
    assert done.err.count(ADDS_NOISE) == 1
    line = json.loads(done.out)
    assert line["spec"] == "error_control(tol=0.01) @ own / 12"
    assert line["refusal"].startswith(ADDS_NOISE)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.text["spec"] == line["spec"]
    fell_back = pixels(tmp_path / "a.png")
    again = shell("generate", *common, "--policy", line["spec"])
    assert (again.code, "refusal" in again.out) == (0, False)
    assert (pixels(tmp_path / "a.png") == fell_back).all()


@pytest.mark.parametrize("policy", ["adaptive_grid(calls=10)", "fast @ adams"])
def test_whoever_names_the_policy_or_the_solver_is_told_of_the_refusal(shell: Shell, saved: Path, policy: str) -> None:
    done = shell("generate", "a cat", "--model", str(saved / "noisy"), "--steps", "4", "--policy", policy)
    assert done.code == 2
    assert f"The pipeline cannot be taken over: {ADDS_NOISE}" in done.err


def test_a_comparison_says_which_presets_fell_back(shell: Shell, saved: Path, tmp_path: Path) -> None:
    asked = ["-p", "balanced", "-p", "fewer", "-p", "fast", "--steps", "14", "--repeats", "2", "--solver", "ddim"]
    done = shell("compare", "a cat", "--model", str(saved / "noisy"), *asked, "--out", "here")
    assert done.code == 0, done.err
    assert (done.err + done.out).count(ADDS_NOISE) == 1
    records = [json.loads(line) for line in (tmp_path / "here" / "samples.jsonl").read_text().splitlines()]
    named = {r["column"]: r["spec"] for r in records}
    assert named["balanced (error_control)"] == "error_control @ ddim / own / 14"
    assert named["fast (error_control(tol=0.01))"] == "error_control(tol=0.01) @ ddim / own / 14"
    assert [r["column"] for r in records if "refusal" in r] == [c for c in named if "(" in c]
    table = (tmp_path / "here" / "table.md").read_text()
    assert table.count(ADDS_NOISE) == 1
    assert "as many steps as `balanced (error_control)` makes calls" in table


def test_an_estimate_says_which_presets_fell_back(shell: Shell, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a cat\n")
    asked = ["--model", str(saved / "noisy"), "--prompts", "one.txt", "--steps", "14", "--repeats", "1", "-p", "fast"]
    done = shell("estimate", *asked)
    assert done.code == 0, done.err
    assert re.search(r"^fast \(error_control\(tol=0\.01\)\) (saves|costs) ", done.out, re.MULTILINE)
    assert (done.err + done.out).count(ADDS_NOISE) == 1
    (found,) = json.loads(shell("estimate", *asked, "--json").out)["policies"]
    assert found["policy"] == "fast (error_control(tol=0.01))"
    assert found["spec"] == "error_control(tol=0.01) @ own / 14"
    assert found["refusal"].startswith(ADDS_NOISE)


def test_a_saved_preset_falls_back_as_its_name_does(shell: Shell, saved: Path, tmp_path: Path) -> None:
    skipstone.save_policy("fast", tmp_path / "kept")
    common = ["a cat", "--model", str(saved / "noisy"), "--steps", "12", "--json", "--force"]
    by_name, by_folder = shell("generate", *common, "-p", "fast"), shell("generate", *common, "-p", "./kept")
    assert by_folder.code == 0, by_folder.err
    assert json.loads(by_folder.out)["spec"] == json.loads(by_name.out)["spec"] == "error_control(tol=0.01) @ own / 12"
    assert "./kept would take the pipeline's loop over, and cannot here" in by_folder.err


def test_samples_of_a_model_without_prompts_are_told_apart_by_seed(shell: Shell, tmp_path: Path) -> None:
    from tests.integrations.guest.families import build

    pipe = build("ddim")
    pipe.unet.register_to_config(sample_size=16)
    pipe.save_pretrained(tmp_path / "model")
    done = shell("compare", "--model", "model", "-n", "2", "-p", SKIPS, "--steps", "8", "--repeats", "1", "--seed", "4")
    assert done.code == 0, done.err
    lines = (tmp_path / "comparison" / "samples.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [(r["prompt"], r["seed"]) for r in records] == [("", 4), ("", 5)] * 2
    assert len({r["picture"] for r in records}) == 4


def test_calls_that_nobody_counted_are_refused(
    shell: Shell, saved: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(CallCounter, "_count", lambda *_: None)
    done = shell("generate", "a cat", "--model", str(saved / "sd15"), "--steps", "3")
    assert (done.code, list_files(tmp_path)) == (2, [])
    assert "4 calls, but the hook on the denoiser counted 0" in done.err


@pytest.mark.parametrize(
    ("family", "arguments", "said"),
    [
        ("sd15", ["a cat", "--set", "heigth=32"], "Did you mean 'height'?"),
        ("sd15", ["a cat", "--set", "height"], "--set NAME=VALUE"),
        ("sd15", ["a cat", "--set", "guidance_scale=3"], "by --guidance"),
        ("sd15", ["a cat", "--set", "timesteps=[5, 3]"], "custom timestep"),
        ("sd15", ["a cat", "--set", "ip_adapter_image=@nowhere.png"], "nowhere.png"),
        ("sd15", ["a cat", "--image", "nowhere.png"], "nowhere.png"),
        ("sd15", ["a cat", "--dtype", "float8"], "float16, bfloat16"),
        ("sd15", ["a cat", "--device", "cuda:99"], "cannot be loaded on cuda:99"),
        ("sd15", ["a cat", "--policy", "pid"], "dpm_adaptive"),
        ("sd15", ["a cat", "--policy", "fixed @ dpmpp(order=3)"], "released=True"),
        ("sd15", ["a cat", "--solver", "ddim", "--grid", "karras"], "use_karras_sigmas"),
        ("sd15", ["a cat", "--solver", "dpmpp", "--grid", "karras(rho=5.0)"], "rho=7"),
        ("sd15", ["a cat", "--solver", "dpmpp", "--grid", "uniform"], "uniform(open=True)"),
        ("sd15", ["a cat", "--policy", "fixed @ 0"], "at least 1 step"),
        ("sd15", [], "prompt is empty"),
        ("flux", ["a cat", "--solver", "ddim"], "flow-matching"),
        ("flux", ["a cat", "--grid", "karras"], "write own"),
        ("ddpm", ["a cat"], "without a prompt"),
        ("ddpm", ["--guidance", "3"], "no guidance_scale"),
        ("dit", ["a cat"], "draws classes"),
        ("dit", ["7", "--image", __file__], "no picture"),
        ("dit", ["7", "--solver", "ddim(eta=0.5)"], "no eta"),
        ("zimage", ["a cat"], "ZImagePipeline cannot be adapted"),
        (".", ["a cat"], "holds no model_index.json"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    shell: Shell, saved: Path, tmp_path: Path, family: str, arguments: list[str], said: str
) -> None:
    done = shell("generate", *arguments, "--model", str(saved / family))
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert len([line for line in done.err.splitlines() if line.startswith("skipstone:")]) == 1
    assert "Traceback" not in done.err
    assert list_files(tmp_path) == []


@pytest.mark.parametrize(
    ("index", "said"),
    [
        ("{", "damaged"),
        ('{"_class_name": "MyOwnPipeline"}', "does not have"),
        ('{"_class_name": "StableAudioPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}', "makes sound"),
        ('{"_class_name": "StableDiffusionPipeline"}', "no scheduler"),
        ('{"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "DDIMScheduler"]}', "cannot be loaded"),
    ],
)
def test_a_folder_that_is_damaged(shell: Shell, tmp_path: Path, index: str, said: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(index)
    done = shell("generate", "a cat", "--model", "model")
    assert done.code == 2
    assert said in done.err
    assert "Traceback" not in done.err


def test_weights_that_are_missing(shell: Shell, saved: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    for part in (saved / "sd15").iterdir():
        if part.name != "unet":
            (tmp_path / "model" / part.name).symlink_to(part)
    done = shell("generate", "a cat", "--model", "model")
    assert done.code == 2
    assert "model cannot be loaded on cpu" in done.err


def test_a_hub_id_without_a_connection(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    done = shell("generate", "a cat", "--model", "nobody/nothing-at-all")
    assert done.code == 2
    assert "the Hugging Face hub cannot be reached" in done.err


def test_nothing_is_overwritten_and_no_weights_are_loaded_first(
    shell: Shell, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from skipstone.evaluation.checkpoints import Checkpoint

    monkeypatch.setattr(Checkpoint, "load", None)
    (tmp_path / "a-cat-0.png").write_bytes(b"mine")
    done = shell("generate", "a cat", "--model", str(saved / "sd15"))
    assert (done.code, (tmp_path / "a-cat-0.png").read_bytes()) == (2, b"mine")
    assert "--force" in done.err
