"""Students of tiny pipelines: what is trained, what is written, how diffusers runs it, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from integrations.guest.families import build

import skipstone
from skipstone.errors import GuestError, ModelError, OutputError, PlanError, PromptError, SpecError
from skipstone.integrations.students import load_student, network_fingerprint
from skipstone.policies.student import CARD, Student, StudentCard
from skipstone_train.students.data import Drawings
from skipstone_train.students.distill import distill
from skipstone_train.students.export import export_student
from skipstone_train.students.loop import CHECKPOINT, Loop, TrainingError
from skipstone_train.students.network import StudentNetwork
from skipstone_train.students.settings import DistillSettings
from skipstone_train.students.stage import Stage
from skipstone_train.students.teacher import Teacher

PROMPTS = ["a cat", "a dog on a mat", "a bus"]
FAMILIES = {"sd15": "unet", "sdxl": "unet", "sd3": "transformer"}
SMALL = DistillSettings(
    method="consistency", steps=2, fine_steps=4, guidance=3.0, rank=2, batch=4, train_steps=3, pictures=4,
    picture_steps=2, precision="no",
)  # fmt: skip


def trained(pipe: Any, out: Path, **changes: Any) -> Path:
    settings = DistillSettings(**{**vars(SMALL), **changes})
    return distill(pipe, PROMPTS, settings.method, settings.steps, out=out, settings=settings)


def answer(network: Any, pipe: Any) -> torch.Tensor:
    """What a network says to noise at one level."""
    teacher = Teacher.of(pipe)
    condition = teacher.encode(PROMPTS[:2])
    from skipstone_train.students.teacher import call_denoiser

    x = torch.randn(2, network.config.in_channels, 8, 8, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return call_denoiser(network, x, torch.tensor([900.0, 400.0]), condition)


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_loads_the_lora_and_draws_what_the_student_drew_bit_for_bit(family: str, tmp_path: Path) -> None:
    pipe = build(family)
    teacher = Teacher.of(pipe)
    network = StudentNetwork(teacher.denoiser, rank=2, seed=1)
    generator = torch.Generator().manual_seed(2)
    network.assign([v + 0.1 * torch.randn(v.shape, generator=generator) for v in network.values()])
    card = StudentCard(1, "consistency", 2, "lora", teacher.part, 3.0, family, "")
    export_student(tmp_path, teacher, network, card)
    words = {"num_inference_steps": 2, "guidance_scale": 1.0, "output_type": "latent"}
    scheduler = diffusers.SchedulerMixin
    kind = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())["_class_name"]
    pipe.scheduler = getattr(diffusers, kind).from_pretrained(tmp_path, subfolder="scheduler")
    mine = pipe("a cat", generator=torch.Generator().manual_seed(0), **words).images

    plain = build(family)
    bare = plain("a cat", generator=torch.Generator().manual_seed(0), **words).images
    plain.load_lora_weights(tmp_path)
    plain.scheduler = getattr(diffusers, kind).from_pretrained(tmp_path, subfolder="scheduler")
    theirs = plain("a cat", generator=torch.Generator().manual_seed(0), **words).images
    assert isinstance(plain.scheduler, scheduler)
    assert torch.equal(mine, theirs)
    assert not torch.equal(mine, bare)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("rank", [0, 2])
def test_training_changes_the_student_alone(family: str, rank: int, tmp_path: Path) -> None:
    pipe = build(family)
    before = {name: value.clone() for name, value in pipe.components[FAMILIES[family]].state_dict().items()}
    parts = {
        name: network_fingerprint(part) for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)
    }
    bare = answer(getattr(pipe, FAMILIES[family]), pipe)
    folder = trained(pipe, tmp_path / "mine", rank=rank)
    after = pipe.components[FAMILIES[family]].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert parts == {n: network_fingerprint(p) for n, p in pipe.components.items() if isinstance(p, torch.nn.Module)}
    student = load_student(folder, getattr(pipe, FAMILIES[family]))
    assert not torch.equal(answer(student, pipe), bare)
    assert torch.equal(answer(getattr(pipe, FAMILIES[family]), pipe), bare)  # loading changes the teacher neither


def test_progressive_writes_the_student_of_every_stage(tmp_path: Path) -> None:
    folder = trained(build("sd15"), tmp_path / "mine", method="progressive", steps=1, fine_steps=0, first_steps=4)
    assert [StudentCard.read(folder / f"steps-{n}").steps for n in (4, 2)] == [4, 2]
    card = StudentCard.read(folder)
    assert (card.steps, card.method, card.weights) == (1, "progressive", "lora")
    assert card.training is not None
    # a training step of 4 samples: two steps of the student before, and one forward and backward
    assert card.training["rows"] == 4 * (2 + 3)
    config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert (config["_class_name"], config["timestep_spacing"]) == ("DDIMScheduler", "trailing")


def test_what_is_drawn_is_kept_and_found_again(tmp_path: Path) -> None:
    calls: list[str] = []
    pipe = build("sd15")
    settings = DistillSettings(**vars(SMALL))
    for _ in range(2):
        distill(
            pipe, PROMPTS, "consistency", 2, out=tmp_path, settings=settings, on_progress=lambda *a: calls.append(a[0])
        )
    files = list((tmp_path / "drawings").iterdir())
    assert len(files) == 1
    assert sum("Training" in what for what in calls) == SMALL.train_steps  # the second finds the first's checkpoint


# -- the loop ---------------------------------------------------------------------------------------


@cache
def _drawings() -> Drawings:
    return Drawings(tuple(PROMPTS), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(3)), rows=0)


def loop_of(folder: Path, steps: int = 6, **changes: Any) -> tuple[Loop, Callable[[int, int], torch.Tensor]]:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    teacher = Teacher.of(build("sd15"))
    network = StudentNetwork(teacher.denoiser, rank=2, seed=1)
    stage = Stage(SMALL, teacher, network, _drawings(), accelerator, 2)
    loop = Loop(network, accelerator, folder, {"a": 1}, **{"rate": 1e-3, "steps": steps, **changes})
    return loop, stage.loss_function(network.module, loop)


def test_a_resumed_training_is_one_that_never_stopped(tmp_path: Path) -> None:
    whole, loss = loop_of(tmp_path / "whole")
    whole.run(loss)
    first, loss = loop_of(tmp_path / "parts")
    first.run(loss, stop=3)
    second, loss = loop_of(tmp_path / "parts")
    second.run(loss)
    for name in ("average", "target"):
        assert all(map(torch.equal, getattr(whole, name), getattr(second, name)))
    assert all(map(torch.equal, whole.network.values(), second.network.values()))
    assert (whole.recent, whole.rows, whole.step) == (second.recent, second.rows, second.step)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    loop, loss = loop_of(tmp_path)
    loop.run(loss, stop=2)
    kept = (tmp_path / CHECKPOINT).read_bytes()
    again, loss = loop_of(tmp_path)

    def broken(step: int, part: int) -> torch.Tensor:
        return loss(step, part) * (float("nan") if step == 4 else 1.0)

    with pytest.raises(TrainingError, match=r"Step 4: expected a finite loss, got nan\. The checkpoint of step 2"):
        again.run(broken)
    assert (tmp_path / CHECKPOINT).read_bytes() == kept


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, loss = loop_of(tmp_path)
    loop.run(loss, stop=2)
    kept = (tmp_path / CHECKPOINT).read_bytes()
    save = torch.save

    def full(state: Any, file: Path) -> None:
        save({"step": 0}, file)  # what fitted
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OutputError, match=r"No space left on device.*is whole"):
        loop.save()
    assert [p.name for p in tmp_path.iterdir() if p.suffix in (".pt", ".part")] == [CHECKPOINT]
    assert (tmp_path / CHECKPOINT).read_bytes() == kept


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    loop, loss = loop_of(tmp_path)
    loop.run(loss, stop=1)
    other, loss = loop_of(tmp_path)
    other.facts = {"a": 2}
    with pytest.raises(TrainingError, match="Give the same settings"):
        other.run(loss)


def test_accumulated_parts_count_as_one_step(tmp_path: Path) -> None:
    loop, loss = loop_of(tmp_path, steps=2, accumulate=2)
    loop.run(loss)
    assert loop.step == 2
    assert loop.rows == 2 * 2 * 4 * (2 + 1 + 3)  # guided teacher, target, forward and backward of each part


# -- what is refused --------------------------------------------------------------------------------


def _lcm(pipe: Any) -> None:
    pipe.scheduler = diffusers.LCMScheduler.from_config(pipe.scheduler.config)


def _named(pipe: Any) -> None:
    pipe.register_to_config(_name_or_path="somebody/sdxl-turbo")


def _guidance_input(pipe: Any) -> None:
    pipe.unet.register_to_config(time_cond_proj_dim=8)


def _adapter(pipe: Any) -> None:
    StudentNetwork(pipe.unet, rank=2)


@pytest.mark.parametrize(
    ("change", "sign"),
    [(_lcm, "LCMScheduler"), (_named, "turbo"), (_guidance_input, "time_cond_proj_dim"), (_adapter, "'student'")],
)
def test_a_distilled_teacher_is_refused_with_its_sign(change: Callable[[Any], None], sign: str, tmp_path: Path) -> None:
    pipe = build("sd15")
    change(pipe)
    with pytest.raises(ModelError, match=f"distilled already: .*{sign}"):
        trained(pipe, tmp_path)
    assert not list(tmp_path.iterdir())


def test_pipelines_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"Expected a teacher among StableDiffusionPipeline.*got FluxPipeline"):
        trained(build("flux"), tmp_path)


@pytest.mark.parametrize("prompts", [[], ["a cat", " "]])
def test_no_prompts_are_refused(prompts: list[str], tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="at least one prompt"):
        distill(build("sd15"), prompts, out=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "progressive", "steps": 3, "first_steps": 8}, "a power of two.*first_steps=12"),
        ({"steps": 4, "fine_steps": 50}, "multiple of steps.*fine_steps=48"),
        ({"batch": 6, "accumulate": 4}, "multiple of accumulate"),
        ({"steps": 0}, "steps to be a whole number in 1..64"),
        ({"method": "magic"}, "'progressive', 'consistency'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DistillSettings(**settings)


def test_half_precision_is_trained_by_a_lora_under_autocast_alone(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float32, got bfloat16"):
        trained(build("sd15").to(torch.bfloat16), tmp_path)


# -- the student in the library ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(build("sd15"), tmp_path_factory.mktemp("students") / "mine")


def test_a_student_of_another_teacher_is_refused(folder: Path) -> None:
    other = build("sd15").unet
    with torch.no_grad():
        next(iter(other.parameters())).mul_(1.5)
    with pytest.raises(ModelError, match=r"student of .* with fingerprint .* Run it on its own teacher"):
        load_student(folder, other)


def test_whoever_may_read_the_card_may_read_the_weights(folder: Path) -> None:
    weights = (folder / "pytorch_lora_weights.safetensors").stat().st_mode
    assert weights == (folder / CARD).stat().st_mode


def test_a_student_is_not_loaded_on_top_of_an_adapter(folder: Path) -> None:
    pipe = build("sd15")
    pipe.load_lora_weights(folder)
    with pytest.raises(ModelError, match="expected its teacher without adapters"):
        load_student(folder, pipe.unet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / CARD).write_text("{"), "expected JSON"),
        (lambda f: (f / CARD).write_text('{"format": 9}'), "expected a field"),
        (lambda f: (f / "pytorch_lora_weights.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda f: (f / "pytorch_lora_weights.safetensors").unlink(), "is damaged"),
        (lambda f: (f / CARD).unlink(), "Expected a folder of skipstone distill"),
    ],
)
def test_damaged_students_are_refused_in_a_sentence(
    change: Callable[[Path], Any], message: str, folder: Path, tmp_path: Path
) -> None:
    import shutil

    copied = tmp_path / "copied"
    shutil.copytree(folder, copied)
    change(copied)
    with pytest.raises(ModelError, match=message):
        load_student(copied, build("sd15").unet)


def test_steps_that_the_student_was_not_trained_for_are_refused(folder: Path) -> None:
    assert Student(str(folder)).num_steps == 2
    assert Student(str(folder), 6).num_steps == 6
    with pytest.raises(SpecError, match="a multiple of 2"):
        Student(str(folder), 3)


def test_adapt_does_not_change_weights_and_says_so(folder: Path) -> None:
    with pytest.raises(GuestError, match=r"has weights of its own.*README\.md"):
        skipstone.adapt(build("sd15"), Student(str(folder)))


def test_a_backbone_without_the_students_weights_is_refused(folder: Path) -> None:
    from skipstone.testing.backbones.mixture import Mixture
    from skipstone.testing.policies import PolicySetup

    setup = PolicySetup(backbone=Mixture(guidance=3.0))
    with pytest.raises(PlanError, match="puts the weights in place"):
        skipstone.denoise(setup.backbone, setup.problem(), setup.solver, Student(str(folder)))


# -- memory -----------------------------------------------------------------------------------------


def test_the_memory_of_a_training_is_known_before_it_starts(tmp_path: Path) -> None:
    words = r"at most 0\.0001 GiB, got .*Train a LoRA of a smaller --rank"
    with pytest.raises(TrainingError, match=words):
        trained(build("sd15"), tmp_path / "one", max_memory=0.0001)
    assert not (tmp_path / "one" / "training-2").exists()
    assert trained(build("sd15"), tmp_path / "two", max_memory=1.0).is_dir()


def test_what_a_sample_keeps_grows_with_the_batch_and_shrinks_with_parts(tmp_path: Path) -> None:
    from skipstone_train.students.memory import estimate_memory

    found = {}
    for name, rank, accumulate in (("whole", 2, 1), ("parts", 2, 2), ("weights", 0, 1)):
        teacher = Teacher.of(build("sd15"))
        from accelerate import Accelerator

        network = StudentNetwork(teacher.denoiser, rank)
        settings = DistillSettings(**{**vars(SMALL), "rank": rank, "accumulate": accumulate})
        stage = Stage(settings, teacher, network, _drawings(), Accelerator(cpu=True), 2)
        before = network.values()
        found[name] = estimate_memory(stage, stage.loop(tmp_path, "", 0.0))
        assert all(map(torch.equal, before, network.values()))
    assert found["whole"].samples == 2 * found["parts"].samples == 4
    assert found["whole"].sample == found["parts"].sample > 100_000  # activations of 8 channels at 8 x 8 and below
    assert found["weights"].training > 5 * found["whole"].training > 0
