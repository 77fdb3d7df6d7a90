"""Students that take the weight of guidance as an input: in diffusers, in ours, closed forms, what is refused."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from integrations.guest.families import build

import skipstone_pebble
from skipstone import registry
from skipstone.calibration.target import Target
from skipstone.engine.requests import Query
from skipstone.errors import ModelError, SpecError
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.models import load_embedded
from skipstone.evaluation.student_models import student_model
from skipstone.evaluation.subject import SampleRequest
from skipstone.integrations.students import guidance_embedding, load_student, network_fingerprint
from skipstone.integrations.torch import CallCounter
from skipstone.policies.student import CARD, StudentCard
from skipstone_train.students.distill import distill
from skipstone_train.students.export import export_student
from skipstone_train.students.levels import Levels
from skipstone_train.students.network import GUIDANCE_WIDTH, StudentNetwork, student_network
from skipstone_train.students.quality import QualityCheck
from skipstone_train.students.settings import DistillSettings
from skipstone_train.students.targets import Batch, ConsistencyTargets, Denoiser, ProgressiveTargets
from skipstone_train.students.teacher import GUIDANCE, Condition, Teacher, call_denoiser

PROMPTS = ["a cat", "a dog on a mat", "a bus"]
SMALL: dict[str, Any] = {
    "method": "consistency", "steps": 2, "fine_steps": 4, "guidance": 3.0, "guidance_range": (1.0, 8.0), "rank": 2,
    "batch": 4, "train_steps": 3, "pictures": 4, "picture_steps": 2, "precision": "no",
}  # fmt: skip


def trained(pipe: Any, out: Path, **changes: Any) -> Path:
    settings = DistillSettings(**{**SMALL, **changes})
    return distill(pipe, PROMPTS, settings.method, settings.steps, out=out, settings=settings)


def drawn(pipe: Any, guidance: float) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    words = {"num_inference_steps": 2, "guidance_scale": guidance, "output_type": "latent"}
    found: torch.Tensor = pipe("a cat", generator=generator, **words).images
    return found


def random_student(family: str, rank: int) -> tuple[Any, Teacher, StudentNetwork]:
    """A pipeline, and a student in it whose trained weights are not those it began with."""
    pipe = build(family)
    teacher = Teacher.of(pipe)
    network = StudentNetwork(teacher.denoiser, rank, seed=1, takes_guidance=True)
    generator = torch.Generator().manual_seed(2)
    network.assign([v + 0.05 * torch.randn(v.shape, generator=generator) for v in network.values()])
    return pipe, teacher, network


def exported(folder: Path, family: str, rank: int) -> tuple[Any, Any]:
    """A pipeline with a student as it was in training, and one of plain diffusers with what was written."""
    pipe, teacher, network = random_student(family, rank)
    card = StudentCard(1, "consistency", 2, "full", teacher.part, 3.0, family, "", guidance_range=(1.0, 8.0))
    export_student(folder, teacher, network, card)
    plain = build(family)
    plain.unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    for one in (pipe, plain):
        one.scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
    return pipe, plain


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_diffusers_draws_what_the_student_drew_bit_for_bit_at_every_guidance_in_one_branch(
    family: str, tmp_path: Path
) -> None:
    pipe, plain = exported(tmp_path, family, rank=0)
    found = {}
    for guidance in (1.0, 2.5, 8.0):
        with CallCounter(plain.unet) as counter:
            found[guidance] = drawn(plain, guidance)
        assert counter.rows == 2  # of two steps
        assert torch.equal(drawn(pipe, guidance), found[guidance])
    assert not torch.equal(found[2.5], found[8.0])


def test_a_lora_is_added_to_the_weights_and_rounded_once(tmp_path: Path) -> None:
    """The sum of a weight and its LoRA is rounded to half precision: by at most 2^-11 of itself, and nothing else."""
    pipe, plain = exported(tmp_path, "sd15", rank=2)
    merged = pipe.unet
    merged.fuse_lora()
    merged.unload_lora()
    mine, theirs = merged.state_dict(), plain.unet.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name].half().float(), theirs[name]) for name in mine)
    a, b = drawn(pipe, 5.0), drawn(plain, 5.0)
    assert float((a - b).norm() / b.norm()) < 0.01


def test_training_gives_the_network_what_pipelines_of_diffusers_give_it() -> None:
    pipe, teacher, network = random_student("sd15", rank=2)
    weights = torch.tensor([1.0, 2.7, 8.0])
    x, times = torch.randn(3, 4, 8, 8), torch.tensor([900.0, 400.0, 20.0])
    condition = teacher.encode(PROMPTS)
    embedding = pipe.get_guidance_scale_embedding(weights - 1, GUIDANCE_WIDTH)
    assert torch.equal(embedding, guidance_embedding(weights, GUIDANCE_WIDTH))
    with torch.no_grad():
        wanted = network.module(x, times, **condition, timestep_cond=embedding, return_dict=False)[0]
        found = call_denoiser(network.module, x, times, {**condition, GUIDANCE: weights})
        without = call_denoiser(network.module, x, times, condition)
    assert torch.equal(found, wanted)
    assert not torch.equal(found, without)


@pytest.mark.parametrize("rank", [0, 2])
def test_the_input_changes_nothing_at_first_and_the_module_is_given_back(rank: int) -> None:
    pipe = build("sd15")
    unet, before = pipe.unet, network_fingerprint(pipe.unet)
    config = dict(unet.config)
    bare = drawn(pipe, 3.0)
    with student_network(unet, rank, takes_guidance=True) as network:
        x, times, condition = (
            torch.randn(2, 4, 8, 8),
            torch.tensor([900.0, 4.0]),
            Teacher.of(build("sd15")).encode(["a", "b"]),
        )
        with torch.no_grad():
            without = call_denoiser(unet, x, times, condition)
            assert torch.equal(
                call_denoiser(unet, x, times, {**condition, GUIDANCE: torch.tensor([2.0, 7.0])}), without
            )
        with network.as_teacher():
            assert torch.equal(drawn(pipe, 3.0), bare)  # both branches
        assert unet.config.time_cond_proj_dim == GUIDANCE_WIDTH
    assert network_fingerprint(unet) == before
    assert dict(unet.config) == config


# -- closed forms: a linear teacher whose two branches have a gain each ------------------------------


class Branches:
    """Answers of a linear teacher: the clean estimate is x times the gain of its level and branch."""

    def __init__(self, count: int) -> None:
        self.gains = {
            "words": torch.linspace(0.9, 0.2, count).double(),
            "empty": torch.linspace(0.7, 0.1, count).double(),
        }

    def __call__(self, x: torch.Tensor, level: torch.Tensor, condition: Condition) -> torch.Tensor:
        words = condition["c"].view(-1) > 0
        gain = torch.where(words, self.gains["words"][level.long()], self.gains["empty"][level.long()])
        return gain.view(-1, 1) * x

    def guided(self, level: int, weight: float) -> float:
        empty = float(self.gains["empty"][level])
        return empty + weight * (float(self.gains["words"][level]) - empty)


def factor(levels: Levels, gain: float, start: int, end: int) -> float:
    keep = float(levels.sigma[end] / levels.sigma[start])
    return keep + (float(levels.alpha[end]) - keep * float(levels.alpha[start])) * gain


@pytest.mark.parametrize("method", ["progressive", "consistency"])
def test_the_target_of_every_sample_is_the_guided_step_at_its_own_weight(method: str) -> None:
    count, steps = 16, 8
    made = Levels.of(registry.parse("schedule", "cosine_table"), steps)
    levels = Levels(made.alpha.double(), made.sigma.double(), torch.arange(steps + 1).double())  # asked by its index
    linear = Branches(steps + 1)
    teacher = Denoiser(linear, levels, "x0", {"c": torch.zeros(1, 1)}, 1.0)
    weights = torch.linspace(1, 8, count).double()
    noise = torch.randn(2, count, 3, generator=torch.Generator().manual_seed(0)).double()
    share = (torch.arange(count) + 0.5) / count
    batch = Batch(noise[0], noise[1], {"c": torch.ones(count, 1), GUIDANCE: weights.flip(0)}, share)
    if method == "progressive":
        target = ProgressiveTargets(levels, teacher, nullcontext).make(batch)
    else:  # as many segments as levels: each target is one step of the teacher
        target = ConsistencyTargets(levels, steps, teacher, nullcontext, teacher, nullcontext).make(batch)
    length = 2 if method == "progressive" else 1
    for i, (level, weight) in enumerate(zip(target.level.tolist(), weights.flip(0).tolist(), strict=True)):
        wanted = 1.0
        for start in range(level, level - length, -1):
            wanted *= factor(levels, linear.guided(start, weight), start, start - 1)
        gain = target.clean[i] / target.x[i]
        torch.testing.assert_close(gain, torch.full_like(gain, float(gain[0])))  # linear
        assert factor(levels, float(gain[0]), level, level - length) == pytest.approx(wanted, rel=1e-9)


# -- trained, loaded, drawn with -----------------------------------------------------------------------


@pytest.mark.parametrize("rank", [0, 2])
def test_training_learns_the_projection_and_writes_full_weights(rank: int, tmp_path: Path) -> None:
    pipe = build("sd15")
    before = network_fingerprint(pipe.unet)
    folder = trained(pipe, tmp_path / "mine", rank=rank)
    card = StudentCard.read(folder)
    assert (card.weights, card.guidance_range, card.guidance) == ("full", (1.0, 8.0), 3.0)
    assert card.fingerprint == before == network_fingerprint(pipe.unet)
    student = load_student(folder, pipe.unet)
    assert student.config.time_cond_proj_dim == GUIDANCE_WIDTH
    assert bool(student.time_embedding.cond_proj.weight.any())
    readme = (folder / "README.md").read_text()
    assert "guidance_scale=3.0" in readme
    assert "1 to\n8" in readme


def test_progressive_stages_take_the_weight_too_and_keep_a_target(tmp_path: Path) -> None:
    settings = DistillSettings(**{**SMALL, "method": "progressive", "steps": 1, "fine_steps": 0, "first_steps": 2})
    quality = QualityCheck(Target.parse("psnr >= 0.1 @ 50%"), PROMPTS[:2], steps=2)
    folder = distill(build("sd15"), PROMPTS, "progressive", 1, out=tmp_path, settings=settings, quality=quality)
    assert [StudentCard.read(f).guidance_range for f in (folder / "steps-2", folder)] == [(1.0, 8.0)] * 2


@pytest.fixture(scope="module")
def tiny_pebble(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny pipeline as a folder in Pebble's format: its manifest makes it run in the engine's loop."""
    made = tmp_path_factory.mktemp("pebbles") / "tiny"
    shutil.copytree(tiny_model, made)
    (made / skipstone_pebble.MANIFEST).write_text(json.dumps({"files": {}}))
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_pebble: Path) -> Path:
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_pebble, safety_checker=None, feature_extractor=None)
    return trained(pipe, tmp_path_factory.mktemp("students") / "mine", rate=0.1)


def latents(model: Path, guidance: float, spec: str) -> list[torch.Tensor]:
    subject = EngineSubject(str(model), "tiny", guidance)
    column = subject.resolve_column(parse_column(spec, *DEFAULT_SAMPLER))
    samples, _ = subject.draw([SampleRequest("a cat", 0), SampleRequest("a red apple", 1)], column)
    assert [s.calls for s in samples] == [1.0, 1.0] if guidance != 1 else [2.0, 2.0]  # two rows each
    return [s.x for s in samples]


def test_a_student_draws_at_the_models_own_guidance(folder: Path, tiny_pebble: Path) -> None:
    spec = f"student(path={str(folder)!r})"
    low, high = latents(tiny_pebble, 1.5, spec), latents(tiny_pebble, 8.0, spec)
    assert not torch.equal(low[0], high[0])
    model = student_model(load_embedded(str(tiny_pebble), 5.0), str(folder))
    problem = model.problem("a cat", 0, 2)
    found = model.backbone.predict([Query(problem.x, 1.0, problem.cond)])[0].output
    with torch.inference_mode():
        weight = guidance_embedding(torch.tensor([5.0]), GUIDANCE_WIDTH)
        time = torch.tensor([model.schedule.timestep(1.0)])
        states = problem.cond["cond"][None]
        wanted = model.unet(problem.x[None], time, states, timestep_cond=weight, return_dict=False)[0][0]
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(("guidance", "better"), [(0.5, "guidance=1"), (9.0, "guidance=8")])
def test_guidance_outside_the_range_is_refused(guidance: float, better: str, folder: Path, tiny_pebble: Path) -> None:
    with pytest.raises(SpecError, match=rf"guidance in \[1, 8\], as it was trained, got {guidance:g}; try {better}\."):
        latents(tiny_pebble, guidance, f"student(path={str(folder)!r})")


def test_transformers_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"got SD3Transformer2DModel, which has no input.*leave guidance_range out"):
        trained(build("sd3"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_teacher_in_half_precision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="float32, got bfloat16"):
        trained(build("sd15").to(torch.bfloat16), tmp_path, precision="bf16")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guidance_range": (8.0, 1.0)}, "two numbers, the smaller first"),
        ({"guidance_range": (3.0,)}, "two numbers, the smaller first"),
        ({"guidance_range": (0.0, 8.0)}, r"a tuple, each element a number in \[1, 100\]"),
        ({"guidance_range": (1.0, float("nan"))}, "a tuple"),
        ({"guidance_range": (1.0, 2.0), "guidance": 7.5}, r"in guidance_range \[1, 2\], got 7.5; try guidance=2"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        DistillSettings(**settings)


def test_cards_without_a_range_stay_readable_and_a_damaged_range_is_refused(folder: Path, tmp_path: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({k: v for k, v in card.items() if k != "guidance_range"}))
    assert StudentCard.read(tmp_path).guidance_range == ()
    (tmp_path / CARD).write_text(json.dumps({**card, "guidance_range": [3.0]}))
    with pytest.raises(ModelError, match="two rising numbers as guidance_range"):
        StudentCard.read(tmp_path)
