"""`skipstone distill` as a shell sees it, on the tiny pipeline."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from outcome import Shell

import skipstone
from skipstone.policies.student import StudentCard
from skipstone_train.students import quality

WORDS = (
    "--train-steps 2 --batch 2 --pictures 2 --picture-steps 2 --rank 2 --precision no --limit 2 --guidance 2 --out mine"
)


def test_help_teaches_and_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom skipstone import cli\nsys.argv = ['skipstone', 'distill', '--help']\n"
        "try: cli.main()\nfinally: print(sorted({'torch', 'accelerate', 'numpy', 'peft'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "student(path='mine', steps=2)" in done.stdout


def test_a_student_is_trained_shown_and_compared(tiny_pebble: Path, shell: Shell, tmp_path: Path) -> None:
    made = shell("distill", "--model", str(tiny_pebble), "--steps", "2", *shlex.split(WORDS))
    assert made.code == 0, made.err
    assert "mine: a student of 2 steps" in made.out
    assert "student(path='mine', steps=2): 1 calls" in made.out
    assert all((tmp_path / "mine" / name).is_file() for name in ("sheet.png", "losses.png", "README.md"))
    assert StudentCard.read(tmp_path / "mine").teacher == tiny_pebble.name
    command = shlex.split(made.out.splitlines()[-1].removeprefix("See it: skipstone "))
    compared = shell(*command, "-p", "student(path='mine', steps=4)", "--repeats", "1", "--out", "compared")
    assert compared.code == 0, compared.err
    rows = [json.loads(line) for line in (tmp_path / "compared" / "samples.jsonl").read_text().splitlines()]
    calls = {row["column"]: row["calls"] for row in rows if "calls" in row}
    assert [calls[name] for name in calls if name.startswith("student")] == [1, 2]  # half a guided call each step


def test_the_last_stage_that_keeps_the_target_is_the_student(tiny_pebble: Path, shell: Shell, tmp_path: Path) -> None:
    words = ("distill", "--model", str(tiny_pebble), "--method", "progressive", "--steps", "1", "--first-steps", "4")
    made = shell(*words, "--target", "psnr >= 0.1 @ 50%", *shlex.split(WORDS))
    assert made.code == 0, made.err
    assert StudentCard.read(tmp_path / "mine").steps == 1
    curve = json.loads((tmp_path / "mine" / quality.CURVE).read_text())
    assert [(p["steps"], p["kept"]) for p in curve["points"]] == [(4, True), (2, True), (1, True)]
    missed = shell(*words, "--target", "psnr >= 98 @ 90%", *shlex.split(WORDS.replace("mine", "other")))
    assert missed.code == 3
    assert "No stage keeps psnr >= 98 @ 90%: with 4 steps it is 0 (0 to" in missed.err
    assert (tmp_path / "other" / "steps-4" / "student.json").is_file()
    assert not (tmp_path / "other" / "student.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method magic", "'progressive', 'consistency'"),
        ("--target 'psnr >= 20 @ 90%'", "expected --method progressive"),
        ("--method progressive --steps 3 --first-steps 8", "a power of two"),
        ("--prompts nowhere.txt", "No prompt set or file is called 'nowhere.txt'"),
        ("--out some.json", "expected a folder"),
        ("--guidance-range 8 1", "two numbers, the smaller first"),
        ("--guidance-range 1 2 --guidance 7.5", "try guidance=2"),
        ("--guidance-range 0 2", "greater than or equal to 1"),
        ("--guidance-range 1", "requires 2 arguments"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(words: str, message: str, tiny_pebble: Path, shell: Shell) -> None:
    done = shell("distill", "--model", str(tiny_pebble), *shlex.split(words))
    assert done.code == 2
    assert message in " ".join(done.err.replace("│", " ").split())


def test_a_student_of_a_range_of_guidance_is_drawn_with_at_any_of_them(
    tiny_pebble: Path, shell: Shell, tmp_path: Path
) -> None:
    made = shell(
        "distill", "--model", str(tiny_pebble), "--steps", "2", "--guidance-range", "1", "4", *shlex.split(WORDS)
    )
    assert made.code == 0, made.err
    card = StudentCard.read(tmp_path / "mine")
    assert (card.guidance_range, card.guidance, card.weights) == ((1.0, 4.0), 2.0, "full")
    assert "student(path='mine', steps=2): 1 calls" in made.out
    command = shlex.split(made.out.splitlines()[-1].removeprefix("See it: skipstone "))
    refused = shell(*command, "--guidance", "5", "--out", "compared")
    assert refused.code == 2
    assert "expected guidance in [1, 4], as it was trained, got 5; try guidance=4" in " ".join(refused.err.split())


def test_words_that_the_model_does_not_know_are_named(tiny_pebble: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("a zebra\na cat\n")
    done = shell("distill", "--model", str(tiny_pebble), "--prompts", "words.txt", "--steps", "2", *shlex.split(WORDS))
    assert done.code == 0, done.err
    assert "Pebble does not know 'zebra'" in done.err


def test_the_public_name_is_the_satellite_s() -> None:
    assert skipstone.distill.__module__ == "skipstone_train.students.distill"


def test_sizes_are_said_with_their_memory_or_refused_by_name(tiny_pebble: Path, shell: Shell, tmp_path: Path) -> None:
    words = ("distill", "--model", str(tiny_pebble), "--steps", "2", *shlex.split(WORDS))
    refused = shell(*words, "--sizes", "48,50")
    assert refused.code == 2
    assert "Expected sizes in multiples of 16 pixels, got 50x50" in refused.err
    too_much = shell(*words, "--sizes", "48,64", "--shift", "--max-memory", "0.001")
    assert too_much.code == 2
    lines = [line.split(":")[0] for line in too_much.err.splitlines() if line.startswith("Memory")]
    assert lines == ["Memory at 48x48", "Memory at 64x64"]
    assert "leave 48x48 out of --sizes" in too_much.err
    assert not (tmp_path / "mine" / "training-2").exists()
