"""Students of several sizes: what each learns from, how a training goes on, which levels, what is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from integrations.guest.families import build
from PIL import Image

from skipstone.errors import SpecError
from skipstone.numerics.schedule import Cosine, FlowMatching
from skipstone.numerics.sizes import parse_sizes, shift_time
from skipstone.numerics.tables import Table
from skipstone.policies.student import StudentCard
from skipstone_train.students import captioned
from skipstone_train.students.captioned import sort_by_size
from skipstone_train.students.data import Drawings
from skipstone_train.students.distill import distill
from skipstone_train.students.levels import Levels, shift_shares
from skipstone_train.students.loop import CHECKPOINT, Loop, TrainingError
from skipstone_train.students.network import StudentNetwork
from skipstone_train.students.settings import DistillSettings
from skipstone_train.students.sizes import build_buckets, resize_teacher
from skipstone_train.students.stage import Stage
from skipstone_train.students.targets import spread_evenly
from skipstone_train.students.teacher import Teacher

PROMPTS = ["a cat", "a dog on a mat", "a bus"]
SMALL = DistillSettings(
    method="consistency", steps=2, fine_steps=4, guidance=3.0, rank=2, batch=4, train_steps=6, pictures=5,
    picture_steps=2, precision="no", sizes=("16", "24x16"),
)  # fmt: skip


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3"])
def test_a_student_of_two_sizes(family: str, tmp_path: Path) -> None:
    said: list[str] = []
    shapes = Counter[tuple[int, ...]]()
    pipe = build(family)
    network = pipe.unet if family != "sd3" else pipe.transformer

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            shapes[tuple(args[0].shape[-2:])] += 1
            ids = kwargs.get("added_cond_kwargs", {}).get("time_ids")
            if ids is not None:  # SDXL is told the size, which is that of the picture
                assert ids[0, -2:].tolist() == [2 * side for side in args[0].shape[-2:]]

    hook = network.register_forward_pre_hook(note, with_kwargs=True)
    out = distill(
        pipe, PROMPTS, "consistency", 2, out=tmp_path, settings=SMALL, on_progress=lambda *a: said.append(a[0])
    )
    hook.remove()
    card = StudentCard.read(out)
    assert card.settings is not None
    assert card.training is not None
    assert card.settings["sizes"] == ["16", "24x16"]
    sizes = card.training["sizes"]
    assert {name: part["drawings"] for name, part in sizes.items()} == {"16x16": 2, "24x16": 3}
    assert sum(part["steps"] for part in sizes.values()) == 6
    # two measurements of memory at each size, and the steps that the card says
    assert shapes == {(8, 8): 2 + sizes["16x16"]["steps"], (8, 12): 2 + sizes["24x16"]["steps"]}
    assert sizes["16x16"]["memory_gib"] > 0
    assert [line.split(":")[0] for line in said if "Memory" in line] == ["Memory at 16x16", "Memory at 24x16"]
    assert said.index(next(s for s in said if "Memory" in s)) < said.index(next(s for s in said if "Training" in s))


@cache
def drawings(height: int, width: int, count: int = 3) -> Drawings:
    generator = torch.Generator().manual_seed(height + 2 * width)
    return Drawings(tuple(PROMPTS[:count]), torch.randn(count, 4, height, width, generator=generator), rows=0)


def loop_of(folder: Path, settings: DistillSettings = SMALL) -> tuple[Loop, Stage]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    teacher = Teacher.of(build("sd15"))
    sizes = settings.parsed_sizes
    learnt = [drawings(size.height // 2, size.width // 2) for size in sizes]
    buckets = build_buckets(teacher, sizes, resize_teacher(teacher, sizes), learnt)
    network = StudentNetwork(teacher.denoiser, rank=2, seed=1)
    stage = Stage(settings, teacher, network, buckets, accelerator, 2)
    return Loop(network, accelerator, folder, {"a": 1}, rate=1e-3, steps=settings.train_steps), stage


@pytest.mark.parametrize("changes", [{}, {"grow": 0.5, "shift": True}])
def test_a_resumed_training_of_sizes_is_one_that_never_stopped(changes: dict[str, Any], tmp_path: Path) -> None:
    settings = replace(SMALL, **changes)
    whole, stage = loop_of(tmp_path / "whole", settings)
    whole.run(stage.loss_function(stage.network.module, whole))
    loop, stage = loop_of(tmp_path / "parts", settings)
    loop.run(stage.loss_function(stage.network.module, loop), stop=3)
    loop, stage = loop_of(tmp_path / "parts", settings)
    loop.run(stage.loss_function(stage.network.module, loop))
    assert loop.step == whole.step == 6
    assert all(map(torch.equal, whole.average, loop.average))
    assert whole.recent == loop.recent


def test_one_size_that_is_the_models_own_is_no_size_bit_for_bit(tmp_path: Path) -> None:
    settings = replace(SMALL, sizes=("16",), shift=True)
    sized, stage = loop_of(tmp_path / "sized", settings)
    sized.run(stage.loss_function(stage.network.module, sized))
    plain, stage = loop_of(tmp_path / "plain", settings)
    stage = replace(stage, settings=replace(SMALL, sizes=()), drawings=drawings(8, 8))
    plain.run(stage.loss_function(stage.network.module, plain))
    assert all(map(torch.equal, sized.average, plain.average))


def test_checkpoints_from_before_there_were_sizes_go_on(tmp_path: Path) -> None:
    _, stage = loop_of(tmp_path)
    facts = replace(stage, settings=replace(SMALL, sizes=())).loop(tmp_path, "", 0.0).facts
    assert not facts.keys() & {"sizes", "grow", "shift"}
    assert stage.loop(tmp_path, "", 0.0).facts["sizes"] == ("16", "24x16")


def test_other_sizes_do_not_go_on(tmp_path: Path) -> None:
    settings = replace(SMALL, train_steps=1)
    distill(build("sd15"), PROMPTS, "consistency", 2, out=tmp_path, settings=settings)
    kept = (tmp_path / "training-2" / CHECKPOINT).read_bytes()
    with pytest.raises(TrainingError, match="Give the same settings"):
        distill(build("sd15"), PROMPTS, "consistency", 2, out=tmp_path, settings=replace(settings, sizes=("16", "32")))
    assert (tmp_path / "training-2" / CHECKPOINT).read_bytes() == kept


def test_progressive_grows_in_its_first_stage_alone(tmp_path: Path) -> None:
    _, stage = loop_of(tmp_path, replace(SMALL, grow=0.5))
    assert stage.size_plan(stage.drawings).joins(100) == (0, 50)  # type: ignore[arg-type]
    later = replace(stage, previous=stage.network.values())
    assert later.size_plan(stage.drawings).joins(100) == (0, 0)  # type: ignore[arg-type]


# -- levels -----------------------------------------------------------------------------------------

SHARES = torch.linspace(0, 0.999, 200)


@pytest.mark.parametrize("ratio", [0.5, 1.0, 4.0, 9.0])
def test_along_a_straight_path_the_shift_is_the_published_one(ratio: float) -> None:
    expected = torch.tensor([shift_time(float(share), ratio) for share in SHARES])
    assert torch.allclose(shift_shares(FlowMatching(), ratio, SHARES), expected, atol=2e-3)
    # a scheduler that is shifted already is shifted once more
    both = FlowMatching(3.0)
    moved = torch.tensor([both.sigma(float(share)) for share in shift_shares(both, ratio, SHARES)])
    expected = torch.tensor([shift_time(both.sigma(float(share)), ratio) for share in SHARES])
    assert torch.allclose(moved, expected, atol=5e-3)


@pytest.mark.parametrize("ratio", [0.5, 4.0])
@pytest.mark.parametrize("schedule", [Cosine(), Table.from_scheduler(build("sd15").scheduler)], ids=["cosine", "table"])
def test_of_other_schedules_log_snr_moves_by_the_log_of_the_ratio(schedule: Any, ratio: float) -> None:
    def log_snr(share: float) -> float:
        return 2 * float(np.log(schedule.alpha(share) / schedule.sigma(share)))

    shares = torch.linspace(0.2, 0.45, 20)
    moved = shift_shares(schedule, ratio, shares)
    differences = [log_snr(float(a)) - log_snr(float(b)) for a, b in zip(shares, moved, strict=True)]
    assert differences == pytest.approx([np.log(ratio)] * 20, abs=0.25)


@pytest.mark.parametrize("schedule", [FlowMatching(3.0), Cosine(), Table.from_scheduler(build("sd15").scheduler)])
def test_every_level_is_still_trained(schedule: Any) -> None:
    moved = shift_shares(schedule, 4.0, spread_evenly(torch.Generator().manual_seed(0), 20_000, torch.device("cpu")))
    assert bool((moved >= 0).all() and (moved < 1).all())
    assert bool((moved.sort().values.diff() >= 0).all())
    fine = len(Levels.of(schedule, 50)) - 1
    counts = torch.bincount((moved * fine).long(), minlength=fine)
    assert int(counts.min()) > 0
    assert int(counts[fine // 2 :].sum()) > 10_000  # most of them noisier


def test_a_training_step_has_the_shifted_levels_of_its_size(tmp_path: Path) -> None:
    shifted, plain = (loop_of(tmp_path, replace(SMALL, shift=shift))[1].at_sizes() for shift in (True, False))
    for name, ratio in (("16x16", 1.0), ("24x16", 1.5)):
        found, before = shifted[name].batch(0, 0), plain[name].batch(0, 0)
        assert torch.equal(found.noise, before.noise)
        moved = shift_shares(shifted[name].teacher.schedule, ratio, before.share)
        assert torch.equal(found.share, before.share if ratio == 1 else moved)
        assert torch.equal(found.share, before.share) is (ratio == 1)


# -- pictures ---------------------------------------------------------------------------------------


def paint(folder: Path, name: str, width: int, height: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(width).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(name)


def test_pictures_go_to_the_size_of_their_aspect_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captioned, "LEAST_PSNR", -100.0)  # the weights of this autoencoder are random
    for name, width, height in (("square", 40, 40), ("wide", 60, 40), ("wider", 90, 50), ("tall", 30, 45)):
        paint(tmp_path / "in", name, width, height)
    found = captioned.read_captions(tmp_path / "in")
    some = sort_by_size(found, parse_sizes(["16", "24x16", "16x24", "24"]))
    assert [[caption for _, caption in part] for part in some] == [["square"], ["wide", "wider"], ["tall"], ["square"]]
    with pytest.raises(SpecError, match="got none of 4 whose aspect ratio is nearest to 16x64"):
        sort_by_size(found, parse_sizes(["16", "16x64"]))
    settings = replace(SMALL, sizes=("16", "24x16"), train_steps=2)
    out = distill(build("sd15"), tmp_path / "in", "consistency", 2, out=tmp_path / "mine", settings=settings)
    training: Any = StudentCard.read(out).training
    assert {name: part["drawings"] for name, part in training["sizes"].items()} == {"16x16": 2, "24x16": 2}


# -- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": ("16", "2O")}, "Expected a size such as 768x512"),
        ({"sizes": ("16", "16x16")}, "16x16 twice"),
        ({"sizes": (), "shift": True}, "expected sizes with shift"),
        ({"sizes": ("16",), "grow": 0.5}, "at least two sizes with grow"),
        ({"grow": 0.5, "minutes": 1.0}, "train_steps with grow"),
        ({"pictures": 1}, "at least one of pictures for each size"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        ("sd15", "18x16", r"multiples of 4 pixels, got 18x16: .*the U-Net halves latents 1 times\. Try 16x16"),
        ("sd3", "16x18", r"multiples of 4 pixels, got 16x18: .*a token has 2 latents a side\. Try 16x16"),
        ("sd3", "64x16", "at most 32 pixels a side, got 64x16: the transformer knows no other places"),
    ],
)
def test_sizes_that_the_model_cannot_have(family: str, size: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=message):
        distill(build(family), PROMPTS, out=tmp_path, settings=replace(SMALL, steps=4, sizes=("16", size)))
    assert not list(tmp_path.iterdir())


def test_a_size_in_the_pipelines_call_too(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="Expected sizes, or height in the settings"):
        distill(Teacher.of(build("sd15"), {"height": 16}), PROMPTS, "consistency", 2, out=tmp_path, settings=SMALL)


def test_a_size_that_takes_too_much_memory_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    distill(
        build("sd15"),
        PROMPTS,
        "consistency",
        2,
        out=tmp_path / "known",
        settings=replace(SMALL, sizes=("16", "64"), train_steps=1),
    )
    sizes = json.loads((tmp_path / "known" / "student.json").read_text())["training"]["sizes"]
    small, large = sizes["16x16"]["memory_gib"], sizes["64x64"]["memory_gib"]
    assert large > 1.5 * small
    settings = replace(SMALL, sizes=("16", "64"), max_memory=(small + large) / 2)
    with pytest.raises(TrainingError, match=r"GiB, got .* at 64x64: .*leave 64x64 out of --sizes"):
        distill(build("sd15"), PROMPTS, "consistency", 2, out=tmp_path / "mine", settings=settings)
    assert not (tmp_path / "mine" / "training-2").exists()
