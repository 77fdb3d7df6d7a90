"""The students that ship: they fit their teacher, stay small, and come closer to its pictures than few steps."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import skipstone
import skipstone_pebble
from skipstone.calibration.procedure import CalibrationOptions
from skipstone.errors import CertificateError, GuestError, SpecError
from skipstone.evaluation.columns import parse_column
from skipstone.evaluation.engine_subject import DEFAULT_SAMPLER, EngineSubject
from skipstone.evaluation.prompts import load_prompts
from skipstone.evaluation.subject import SampleRequest
from skipstone.metrics import PSNR, Sample
from skipstone.policies.student import StudentCard, shipped_students
from skipstone_pebble.package import PACKAGE

PROMPTS = (
    "a guitar on a purple background",
    "a small blue heart on a red background",
    "a hamburger left of a crab on a blue background",
    "an eggplant above a star on a purple background",
)
LARGEST = 6_000_000  # bytes of a student
STUDENTS = list(PACKAGE.students.items())


def pictures(spec: str, guidance: float = 3.0, model: str = "pebble") -> list[Sample]:
    subject = EngineSubject(model, model, guidance)
    items = [SampleRequest(prompt, seed) for seed, prompt in enumerate(PROMPTS)]
    drawn, _ = subject.draw(items, subject.resolve_column(parse_column(spec, *DEFAULT_SAMPLER)))
    return [
        Sample(pixels, i.prompt, g.calls) for pixels, i, g in zip(subject.pictures(drawn), items, drawn, strict=True)
    ]


def closeness(found: list[Sample], full: list[Sample]) -> float:
    return statistics.median(
        PSNR().measure(Sample(a.pixels, reference=b.pixels)) for a, b in zip(found, full, strict=True)
    )


@pytest.mark.parametrize(("name", "folder"), STUDENTS, ids=[name for name, _ in STUDENTS])
def test_a_shipped_student_beats_its_teacher_at_equal_cost(name: str, folder: Path) -> None:
    card = StudentCard.read(folder)
    assert shipped_students()[name] == folder
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) < LARGEST
    full = pictures("fixed @ unipc / trailing / 12", card.guidance, card.teacher)
    mine = pictures(f"student(path={name!r})", card.guidance, card.teacher)
    assert {sample.calls for sample in mine} == {card.steps / 2}  # one row of the two of a guided call
    guided = pictures(f"fixed @ ddim / trailing / {max(1, card.steps // 2)}", card.guidance, card.teacher)
    assert closeness(mine, full) > closeness(guided, full) + 3
    # Without guidance its teacher makes as many steps of one row, and Pebble-DiT is as close with these.
    if card.teacher == "pebble":
        other = pictures(f"fixed @ ddim / trailing / {card.steps}", 1.0, card.teacher)
        assert closeness(mine, full) > closeness(other, full) + 0.5


def test_a_cascade_keeps_some_and_draws_others_anew_at_the_cost_that_a_hook_counts() -> None:
    """The hook on both networks is held against what the runs say, by the subject itself."""
    spec = "cascade(path='pebble-consistency-2', limit={limit}, then='adaptive_grid(calls=6)')"
    student = pictures("student(path='pebble-consistency-2')")
    model = pictures("adaptive_grid(calls=6)")
    for limit in (0.0, 0.33, 1000.0):
        for mine, kept, anew in zip(pictures(spec.format(limit=limit)), student, model, strict=True):
            expected = kept if mine.calls == kept.calls else anew
            assert mine.calls == (kept.calls if expected is kept else kept.calls + anew.calls)
            np.testing.assert_allclose(mine.pixels, expected.pixels, atol=1e-5)  # other rows in the batch: rounding
            assert limit == 0.33 or (expected is kept) == (limit > 0)


def test_a_pipeline_is_not_adapted_to_a_cascade() -> None:
    with pytest.raises(GuestError, match="adapt changes none"):
        skipstone.adapt(skipstone_pebble.load_pipeline(), "cascade(path='pebble-consistency-2')")


def test_a_student_of_one_guidance_stands_beside_no_other() -> None:
    with pytest.raises(SpecError, match="Give --guidance 3"):
        pictures("cascade(path='pebble-consistency-2')", guidance=5.0)


def test_a_certificate_covers_the_weights_of_the_student(tmp_path: Path) -> None:
    mine = shutil.copytree(PACKAGE.students["pebble-consistency-2"], tmp_path / "mine")
    made = skipstone.calibrate(
        "pebble",
        [prompt.text for prompt in load_prompts("pebble-tuning", limit=12)],
        "psnr >= 5 @ 50%",
        settings=[f"cascade(path={str(mine)!r}, limit=1000, then='fixed') @ ddim / trailing / 4"],
        options=CalibrationOptions(steps=4),
        cache=tmp_path / "cache",
    )
    column = parse_column(str(made.save_pretrained(tmp_path / "kept")), *DEFAULT_SAMPLER)
    EngineSubject("pebble", "pebble").load([column])
    file = mine / "pytorch_lora_weights.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file)
    with pytest.raises(CertificateError, match="student"):
        EngineSubject("pebble", "pebble").load([column])


def test_some_ship() -> None:
    assert STUDENTS
